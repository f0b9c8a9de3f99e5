"""The hub for threads: blocking versions of its calls.

Layer: hub.

For code without an event loop: Celery tasks, Django views, scripts. Calls run on the hub's loop if
it has one, else on a separate loop in a daemon thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from tenuto.core.errors import StoreUnavailable
from tenuto.core.events import Page
from tenuto.core.model import Message
from tenuto.hub.access.questions import current_route
from tenuto.hub.writer import MessageWriter
from tenuto.portal import NoResponse, Portal, SyncWriter, run_on, writing

T = TypeVar("T")
TIMEOUT_S = 60.0  # longest time of one call; calls on a failing store give up long before


class AsyncHub(Protocol):
    """The methods of the hub that have blocking versions."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the event loop on which the hub runs, or None."""

    async def close(self) -> None:
        """Close the hub, as `Hub.close` does. The methods below correspond to those of `Hub`, too."""

    def message(self, channel: str, *args: Any, **fields: Any) -> MessageWriter: ...

    async def create(self, channel: str, *args: Any, **fields: Any) -> Message: ...

    async def update(self, channel: str, message_id: str, *args: Any, **fields: Any) -> Message: ...

    async def finish(self, channel: str, message_id: str, *args: Any, **fields: Any) -> None: ...

    async def delete(self, channel: str, message_id: str) -> None: ...

    async def history(self, channel: str, *args: Any, **fields: Any) -> Page: ...


class SyncHub:
    """Blocking versions of the hub's main calls, made by `Hub.sync`. Threads other than the hub's own may use them."""

    def __init__(self, hub: AsyncHub) -> None:
        self._hub = hub
        self._portal = Portal("tenuto-sync")  # the thread that runs the hub if the app has no event loop
        self._left: asyncio.AbstractEventLoop | None = None  # the event loop of this object that was closed last
        self._has_left = threading.Event()

    def create(self, channel: str, **fields: Any) -> Message:
        """Create a message, as `Hub.create` does."""
        return self._run(self._hub.create(channel, **fields))

    def update(self, channel: str, message_id: str, **fields: Any) -> Message:
        """Update a message, as `Hub.update` does."""
        return self._run(self._hub.update(channel, message_id, **fields))

    def finish(self, channel: str, message_id: str, **fields: Any) -> None:
        """Finish a message, as `Hub.finish` does."""
        self._run(self._hub.finish(channel, message_id, **fields))

    def delete(self, channel: str, message_id: str) -> None:
        """Delete a message, as `Hub.delete` does."""
        self._run(self._hub.delete(channel, message_id))

    def history(self, channel: str, **fields: Any) -> Page:
        """Return a page of history, as `Hub.history` does."""
        return self._run(self._hub.history(channel, **fields))

    def message(self, channel: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer, as `Hub.message` does: `with hub.sync.message("chat:1") as m: m.append("…")`."""
        return writing(self._run, lambda: self._open(channel, fields))

    def close(self) -> None:
        """Close the hub if it runs on this object's own loop."""
        self._portal.stop(self._hub.close, TIMEOUT_S)

    async def release_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Close the hub if `loop` is this object's loop, so that the hub can run on another loop. Called by the hub."""
        if loop is self._portal.loop:
            self._left, self._has_left = loop, threading.Event()
            await asyncio.to_thread(self.close)
            self._has_left.set()
        elif loop is self._left:
            await asyncio.to_thread(self._has_left.wait, TIMEOUT_S)
        return loop is self._left

    async def _open(self, channel: str, fields: dict[str, Any]) -> MessageWriter:
        return await self._hub.message(channel, **fields).open()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        # The loop runs `call` in a copy of the context, which shares this route with `stream_response`. The main thread
        # serves no blocking route, and all tasks inherit its context.
        if threading.current_thread() is not threading.main_thread():
            current_route()
        try:
            return run_on(self._loop(), call, remedy="await the methods of the hub itself there", timeout_s=TIMEOUT_S)
        except NoResponse:
            raise StoreUnavailable(f"hub did not respond within {TIMEOUT_S:.0f} s; try again") from None

    def _loop(self) -> asyncio.AbstractEventLoop:
        running = self._hub.loop
        if running is not None and running is not self._portal.loop:
            return running
        return self._portal.start()
