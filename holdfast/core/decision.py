"""What a decision looks at and what it says: shared by `decide` and `decide_work`.

Layer: core.

Field names of `Decision` reach the answers of every transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from holdfast.core.ops import Op
from holdfast.core.state import CommandState, MessageState


class Decidable(Protocol):
    """What a decision may look at: a draft on top of a channel's state."""

    @property
    def newest(self) -> str | None: ...

    @property
    def is_empty(self) -> bool: ...

    def message(self, message_id: str) -> MessageState | None: ...

    def command(self, key: str) -> CommandState | None: ...

    def streaming(self) -> Iterator[MessageState]: ...

    def open_commands(self) -> list[CommandState]: ...

    def pending(self) -> list[MessageState]: ...


class Decision(Struct, frozen=True, kw_only=True):
    """What to store, and what the answer says besides its serial."""

    ops: tuple[Op, ...] = ()
    told: int = -1  # which of `ops` it is whose serial is answered
    serial: int = 0  # of what stood already, where there is nothing to store
    generation: int | None = None
    part: int | None = None
    length: int | None = None
    lengths: list[int] | None = None
