"""Where a turn works: what it needs of a hub in this process, or of a client of one elsewhere.

Layer: agents.

The same handler runs in both places; `local` and `holdfast.client` each have a `Backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from holdfast.core.errors import Deleted, NotFound
from holdfast.core.events import CommandReply, Page
from holdfast.core.model import Command, Json, Message, Part


class Writer(Protocol):
    """A message being written, as `MessageWriter` is."""

    id: str
    meta: dict[str, Json]
    cancelled_as: tuple[str, str | None]
    spare_id: Callable[[], str] | None  # makes another id where something else stands under ours; None: that is raised

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


class Watch(Protocol):
    """A look at a channel while a turn runs."""

    def commands(self) -> list[Command]:
        """Those that wait for an answer."""

    async def reply_to(self, command: Command) -> CommandReply:
        """Wait for the answer to a command that was sent since this look began."""

    def waiting(self) -> list[Message]:
        """User messages that wait for an agent."""

    async def changed(self) -> None:
        """Return when something may be another than at the last look."""

    def close(self) -> None:
        """Look no more."""


class Backend(Protocol):
    """What a turn needs."""

    @property
    def is_shutting_down(self) -> bool:
        """Is the process about to end? Then turns are left for the next one."""

    def write(
        self,
        channel: str,
        message_id: str,
        *,
        author: str,
        reply_to: str,
        parent: str | None,
        meta: dict[str, Json],
    ) -> Writer:
        """A new answer, to be entered; after `parent`, or else after what it answers."""

    async def take_over(self, channel: str, message_id: str, *, author: str) -> Writer:
        """An interrupted answer, to be entered and gone on with."""

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """A message, and the cursor to follow it from. Raises NotFound, Deleted."""

    async def page(self, channel: str, *, before: int | None, limit: int) -> Page:
        """Messages, newest first."""

    async def command(self, channel: str, name: str, *, target: str, data: Json, by: str, expires_s: float) -> Command:
        """Send a command."""

    async def reply(self, channel: str, command_id: str, *, ok: bool, data: Json, error: Json, by: str) -> None:
        """Result a command."""

    async def watch(self, channel: str) -> Watch:
        """Look at a channel from now on."""

    async def take_waiting(self, channel: str, message_id: str, *, by: str, turn: str) -> bool:
        """Take a user message that waits into the turn of message `turn`; False if somebody else has it."""

    def say(self, channel: str, name: str, data: dict[str, Json]) -> None:
        """What the agent does now, for those who look on."""


async def find(backend: Backend, channel: str, message_id: str) -> Message | None:
    """A message, if it is there."""
    try:
        message, _ = await backend.read(channel, message_id)
    except (NotFound, Deleted):
        return None
    return message
