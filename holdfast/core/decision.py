"""The input and output of a decision, shared by `decide` and `decide_work`.

Layer: core.

Field names of `Decision` reach the results on every transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from holdfast.core.message_state import CommandState, MessageState
from holdfast.core.ops import Op


class Decidable(Protocol):
    """The part of a draft, on top of a channel's state, that a decision may read."""

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
    """The operations to store for a request, and the fields of its result besides the serial."""

    ops: tuple[Op, ...] = ()
    result_op: int = -1  # index in `ops` of the operation whose serial the result carries
    serial: int = 0  # serial of the earlier entry, if `ops` is empty because the request has no effect
    generation: int | None = None
    part: int | None = None
    length: int | None = None
    lengths: list[int] | None = None
