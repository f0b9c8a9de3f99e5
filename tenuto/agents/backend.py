"""The operations that a turn needs of its hub, in this process or in another one.

Layer: agents.

The same handler runs in both places; `local` and `tenuto.client` each have a `Backend`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol, TypeVar

from tenuto.core.errors import Deleted, Draining, NotFound, TenutoError
from tenuto.core.events import CommandReply, Page
from tenuto.core.limits import Limits
from tenuto.core.model import Command, Json, Message
from tenuto.portal import Writer

logger = logging.getLogger("tenuto.agents")

RETRY_S = 1.0  # wait before the next try after the store failed

T = TypeVar("T")


class Watch(ABC):
    """The state of a channel, followed while a turn runs."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()  # set when the channel may have changed
        self._on_change: Callable[[], None] = lambda: None

    @abstractmethod
    def commands(self) -> list[Command]:
        """Return the commands that wait for a reply."""

    @abstractmethod
    async def reply_to(self, command: Command) -> CommandReply:
        """Wait for the reply to a command that was sent since this watch began, and return it."""

    @abstractmethod
    def waiting(self) -> list[Message]:
        """Return the user messages that wait for an agent."""

    @abstractmethod
    def close(self) -> None:
        """Stop following the channel."""

    async def changed(self) -> None:
        """Wait until the channel may have changed since the last call."""
        await self._woken.wait()
        self._woken.clear()

    def follow(self, on_change: Callable[[], None]) -> None:
        """Call `on_change` now, and whenever the channel may have changed, until `close`. A watch has one follower."""
        self._on_change = on_change
        on_change()

    def wake(self) -> None:
        """Note that the channel may have changed."""
        self._woken.set()
        self._on_change()


class Sent(NamedTuple):
    """A stored command, and its reply if it has one already."""

    command: Command
    reply: CommandReply | None


class Backend(Protocol):
    """The operations of a hub that a turn uses, in the name of its agent."""

    limits: Limits  # those that content is checked against before it is sent

    @property
    def is_shutting_down(self) -> bool:
        """Return whether the process is about to end; its turns are then left for another process."""

    def drains(self, error: BaseException) -> bool:
        """Return whether `error` comes of the shutdown of this hub, whose turns another process then has."""

    def now_ms(self) -> int:
        """Return the time in ms since 1970."""

    @property
    def may_begin(self) -> bool:
        """Return whether a handler may begin: no other process can have its turn, as far as this one knows."""

    def reason_of(self, error: BaseException) -> str | None:
        """Return the reason to store for a turn that `error` ended: in development the exception's name, else None."""

    def write(
        self, channel: str, message_id: str, *, reply_to: str, parent: str | None, meta: dict[str, Json]
    ) -> Writer:
        """Return the writer of a new answer, for `async with`. It follows `parent`, else `reply_to`."""

    async def take_over(self, channel: str, message_id: str) -> Writer:
        """Take over an interrupted answer, and return its writer, for `async with`."""

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Return a message, and the cursor from which to follow it. Raises NotFound, Deleted."""

    async def page(self, channel: str, *, before: int | None, limit: int) -> Page:
        """Return a page of messages, newest first."""

    async def command(self, channel: str, name: str, *, id: str, target: str, data: Json, expires_s: float) -> Sent:
        """Send a command of this attempt. Raises Fenced if a later one has the turn."""

    def note_new(self, channel: str, command_id: str) -> None:
        """Note that no command of this id was sent before, so that the hub need not look for it in its store."""

    async def reply(self, channel: str, command_id: str, *, ok: bool, data: Json, error: Json) -> None:
        """Reply to a command; to a step as this attempt."""

    async def watch(self, channel: str) -> Watch:
        """Follow a channel from now on."""

    async def take_waiting(self, channel: str, message_id: str, *, turn: str) -> bool:
        """Take a waiting user message into the turn of message `turn`. Return False if another turn has it."""

    def progress(self, channel: str, data: dict[str, Json]) -> None:
        """Show people the state of the agent, which is never stored."""


async def find(backend: Backend, channel: str, message_id: str) -> Message | None:
    """Return a message, or None if it does not exist."""
    try:
        message, _ = await backend.read(channel, message_id)
    except (NotFound, Deleted):
        return None
    return message


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `call`, and repeat it while the store fails. Raises errors that a retry cannot cure."""
    while True:
        try:
            return await call()
        except TenutoError as error:
            if not error.retry or isinstance(error, Draining):
                raise
            logger.warning("an agent tries again in %g s: %s", RETRY_S, error)
        await asyncio.sleep(RETRY_S)
