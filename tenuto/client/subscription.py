"""Following a channel: `async for event in client.subscribe("chat:1")`.

Layer: client.

It corresponds to the hub's `Subscription`. Its reader may be slow: the client keeps a bounded number of bytes, and the
server joins the events that it has not sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from tenuto.client.feed import EventConsumer, Feed
from tenuto.core.errors import TenutoError
from tenuto.core.events import Batch, ChannelAttached, EphemeralEvent, ServerEvent

# Limit, in characters, of unread frames; above it the feed pauses after the current batch.
WAITING = 256 * 1024

OpenFeed = Callable[[EventConsumer], Feed]


class Subscription:
    """The events of a channel from a cursor on, over any number of connections. It ends only with an error.

    Events come as soon as their batch is complete; presence and signals at once. Raises the server's refusal.
    """

    def __init__(self, channel: str, since: str | None, open_feed: OpenFeed) -> None:
        self.channel = channel
        # cursor of the last batch that the app has read; a later subscription resumes from it
        self.cursor: str | None = since
        self._open_feed = open_feed

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        async with aclosing(self.batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the events in batches, in the form that `core.view.View` accepts. Ephemeral batches have no cursor."""
        inbox = _Inbox(self.cursor)
        feed = inbox.feed = self._open_feed(inbox)
        feed.open()
        try:
            await feed.link.until_connected()
            while True:
                batch = await inbox.next_batch()
                yield batch
                self.cursor = batch.cursor or self.cursor
        finally:
            feed.close()


class _Inbox:
    """Complete batches that the app has not read yet."""

    def __init__(self, cursor: str | None) -> None:
        self.cursor = cursor
        self.feed: Feed | None = None
        self._batches: deque[tuple[Batch, int]] = deque()
        self._size = 0
        self._pieces: list[ServerEvent] = []  # pieces of an incomplete batch
        self._pieces_size = 0
        self._error: TenutoError | None = None
        self._woken = asyncio.Event()

    async def next_batch(self) -> Batch:
        """Return the next batch. After the last batch, raise the error that ended the feed."""
        while not self._batches:
            if self._error is not None:
                raise self._error
            if self.feed is not None:
                self.feed.go_on()
            self._woken.clear()
            await self._woken.wait()
        batch, size = self._batches.popleft()
        self._size -= size
        return batch

    def receive(self, events: list[ServerEvent], cursor: str | None, size: int) -> None:
        if (
            cursor is None
            and not self._pieces
            and events
            and all(isinstance(event, EphemeralEvent) for event in events)
        ):
            self._add(Batch(events=events), size)
            return
        self._pieces += events
        self._pieces_size += size
        if cursor is None:
            return
        self.cursor = cursor
        batch, size = Batch(events=self._pieces, cursor=cursor), self._pieces_size
        self.cut()
        self._add(batch, size)

    def cut(self) -> None:
        self._pieces, self._pieces_size = [], 0

    def failed(self, error: TenutoError) -> None:
        self._error = error
        self._woken.set()

    def _add(self, batch: Batch, size: int) -> None:
        self._batches.append((batch, size))
        self._size += size
        self._woken.set()
        if self._size > WAITING and self.feed is not None:
            self.feed.pause()


def is_new_start(events: list[ServerEvent]) -> bool:
    """Return whether `events` begin with a new start, so that they replace the present state."""
    return any(isinstance(event, ChannelAttached) and not event.resumed for event in events)
