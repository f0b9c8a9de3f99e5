"""The links of a client: one for its requests, and more as its channels need them.

Layer: client. `Links` owns the tasks of a client. A socket follows a channel once, and a limited number of channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tenuto.client.feed import EventConsumer, Feed
from tenuto.client.link import Link
from tenuto.core.errors import LocalError, TenutoError

logger = logging.getLogger("tenuto.client")


class Links:
    """The links of one client, from `start` to `close`. The first one carries the requests."""

    def __init__(self, new: Callable[[], Link], *, max_channels: int) -> None:
        self._new = new
        self._max_channels = max_channels  # limit of channels per link
        self._links: list[Link] = []
        self._runs: dict[Link, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._main: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()

    async def start(self) -> None:
        """Begin to connect, if that has not happened yet. It does not wait for a connection."""
        if self._main is None:
            self._main = asyncio.get_running_loop().create_task(self._run(), name="tenuto-client")
            await self._ready.wait()

    def stop(self) -> None:
        """Begin to end all links."""
        self._stop.set()

    async def close(self) -> None:
        """End all links, and wait for their end."""
        self.stop()
        if self._main is not None:
            await asyncio.wait([self._main])

    @property
    def is_connected(self) -> bool:
        """Return whether the link for requests has a connection now."""
        return bool(self._links) and self._links[0].is_live

    @property
    def error(self) -> TenutoError | None:
        """Return why the link for requests has stopped connecting; None while it connects."""
        return self._links[0].error if self._links else None

    @property
    def first(self) -> Link:
        """Return the link for requests. Raises LocalError if the client is not open."""
        if not self._links or self._stop.is_set():
            raise LocalError("Client is not open; use `async with Client(...) as client`")
        return self._links[0]

    def feed(self, channel: str, consumer: EventConsumer, history: int | None, flush_ms: int | None) -> Feed:
        """Return a feed of `channel` on the first link with room, or on a new one. Raises LocalError."""
        first = self.first
        room = (
            link for link in self._links if channel not in link.receivers and len(link.receivers) < self._max_channels
        )
        link = next(room, None) or self._open()

        def let_go() -> None:
            if link is not first and not link.receivers:
                self._links.remove(link)
                link.end(self._runs.pop(link))

        return Feed(link, channel, consumer, history=history, flush_ms=flush_ms, when_closed=let_go)

    def _open(self) -> Link:
        assert self._tasks is not None
        link = self._new()
        self._links.append(link)
        self._runs[link] = self._tasks.create_task(link.run(), name="tenuto-link")
        return link

    async def _run(self) -> None:
        """Run the tasks of the client until it stops."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._open()
                self._ready.set()
                await self._stop.wait()
                for link, run in self._runs.items():
                    link.end(run)
        except Exception:
            logger.exception("the client has failed")
        finally:
            self._ready.set()
            self._stop.set()
