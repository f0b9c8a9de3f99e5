"""The message that a source writes into, as the handlers and writers of both processes have it.

Layer: sources.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from tenuto.core.model import Json, Part


class Writer(Protocol):
    """A message that is being written; `MessageWriter` has these methods."""

    cancelled_as: tuple[str, str | None]
    # returns another id if the id of the message is taken; None: the writer raises the error
    spare_id: Callable[[], str] | None

    @property
    def id(self) -> str: ...

    @property
    def meta(self) -> dict[str, Json]: ...

    @property
    def is_begun(self) -> bool: ...

    @property
    def is_over(self) -> bool: ...

    @property
    def length(self) -> int: ...

    async def append(self, text: str, *, part: int | None = None) -> None: ...

    async def part(self, part: Part, *, index: int | None = None) -> int: ...

    async def update(self, *, meta: dict[str, Json]) -> None: ...

    async def flush(self) -> None: ...

    async def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None: ...

    async def pipe(self, stream: object, *, source: str | None = None, text_field: str | None = None) -> Any: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
