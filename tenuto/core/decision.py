"""The input and output of a decision, shared by `decide` and the modules that it calls.

Layer: core.

Field names of `Decision` reach the results on every transport.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from tenuto.core.message_state import CommandState, MessageState
from tenuto.core.ops import Op


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

    def running(self) -> Iterator[MessageState]: ...


class Decision(Struct, frozen=True, kw_only=True):
    """The operations to store for a request, and the fields of its result other than the serial."""

    ops: tuple[Op, ...] = ()
    result_op: int = -1  # index in `ops`; the result of the request carries the serial of this operation
    serial: int = 0  # only if the request has no effect (`ops` is empty): serial of the earlier entry that it repeats
    generation: int | None = None
    part: int | None = None
    length: int | None = None
    lengths: list[int] | None = None
