"""A strict viewer in process, for the hub's tests.

Layer: tests.

It keeps a `core.view.View`, and a gap is a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tenuto.core.events import Batch, ServerEvent
from tenuto.core.model import Message
from tenuto.core.view import View
from tenuto.hub import HubCore

PATIENCE_S = 60.0


class Watcher:
    """A viewer that follows a channel as a client would."""

    def __init__(self, hub: HubCore, channel: str, *, since: str | None = None) -> None:
        self.view = View()
        self.batches: list[Batch] = []
        self._subscription = hub.subscribe(channel, since=since, flush_ms=0)
        self._stream = self._subscription.batches()

    @property
    def cursor(self) -> str | None:
        return self.view.cursor

    @property
    def events(self) -> list[ServerEvent]:
        return [event for batch in self.batches for event in batch.events]

    async def take(self) -> Batch:
        """Return the next batch."""
        async with asyncio.timeout(PATIENCE_S):
            batch = await anext(self._stream)
        self.batches.append(batch)
        self.view.receive(batch)
        return batch

    async def until(self, is_true: Callable[[View], bool]) -> list[Message]:
        """Follow the channel until `is_true` holds, and return the messages then shown."""
        while not is_true(self.view):
            await self.take()
        return self.view.messages()

    async def leave(self) -> None:
        await self._stream.aclose()


def has_ended(message_id: str) -> Callable[[View], bool]:
    """Return a predicate: the view shows the message, and it no longer streams."""
    return lambda view: any(one.id == message_id and one.status != "streaming" for one in view.messages())
