"""Subscriptions in process: `async for event in hub.subscribe("chat:1")`.

Layer: hub.

A subscription is a feed like that of a transport: a slow reader uses no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from tenuto.core.events import Batch, Cursor, ServerEvent, parse_cursor
from tenuto.hub.batches import Behind
from tenuto.hub.feed import Feed
from tenuto.hub.viewing import Viewing


class Attaching(Protocol):
    """The methods of the hub that a subscription uses."""

    @property
    def node(self) -> str:
        """Return the name of this run of the hub."""

    @property
    def viewing(self) -> Viewing:
        """Return whether viewers may stay."""

    async def attach(
        self,
        channel: str,
        since: Cursor | None,
        *,
        history: int | None,
        flush_ms: int | None,
        wake: Callable[[], None],
        has_ephemeral: bool,
    ) -> Feed:
        """Return a feed of `channel`."""


class Subscription:
    """The events of a channel, from a cursor on. It raises Draining when the hub shuts down."""

    def __init__(
        self, hub: Attaching, channel: str, since: str | None, history: int | None, flush_ms: int | None
    ) -> None:
        self.channel = channel
        # cursor of the last complete batch that was yielded; a later subscription resumes from it
        self.cursor: str | None = since
        self._hub = hub
        self._history = history
        self._flush_ms = flush_ms
        self._woken = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[ServerEvent]:
        async for batch in self.batches():
            for event in batch.events:
                yield event

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield the events in batches, each with its cursor, in the form that `core.view.View` accepts."""
        feed = await self._hub.attach(
            self.channel,
            parse_cursor(self.cursor),
            history=self._history,
            flush_ms=self._flush_ms,
            wake=self._woken.set,
            has_ephemeral=True,
        )
        node = self._hub.node
        try:
            while True:
                self._woken.clear()
                self._hub.viewing.check(has_ended=self._hub.node != node)
                batch = await take(feed, self._hub.viewing.reading)
                if batch is None:
                    await self._woken.wait()
                    continue
                yield batch
                self.cursor = batch.cursor or self.cursor
                feed.done()
                if not self._woken.is_set():
                    await self._woken.wait()
        finally:
            feed.close()


async def take(feed: Feed, reading: Callable[[], AbstractAsyncContextManager[None]] = nullcontext) -> Batch | None:
    """Take the missed events of `feed`; reads the store if needed, in the context `reading`."""
    while True:
        try:
            batch = feed.take()
        except Behind:
            async with reading():
                await feed.catch_up()
            continue
        return Batch(events=list(batch.events), cursor=batch.cursor or None) if batch is not None else None
