"""The hub for threads: blocking twins of its calls.

Layer: hub.

For code without an event loop: Celery tasks, Django views, scripts. Calls run on the hub's loop if
it has one, else on a separate loop in a daemon thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.core.errors import LocalError, StoreUnavailable
from holdfast.core.events import Page
from holdfast.core.model import Json, Message, Part
from holdfast.hub.writer import MessageWriter
from holdfast.hub.wsgi import check_not_wsgi

if TYPE_CHECKING:
    from holdfast.hub.hub import HubCore

T = TypeVar("T")
TIMEOUT_S = 60.0  # for one call; a failing store gives up long before


class SyncHub:
    """Blocking twin of the hub's main calls; made by `Hub.sync`. Threads other than the hub's own may use it."""

    def __init__(self, hub: HubCore) -> None:
        self._hub = hub
        self._own: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._left: asyncio.AbstractEventLoop | None = None  # the loop that was closed last
        self._has_left = threading.Event()
        self._lock = threading.Lock()

    def create(self, channel: str, **fields: Any) -> Message:
        """Do as `Hub.create`."""
        return self._run(self._hub.create(channel, **fields))

    def update(self, channel: str, message_id: str, **fields: Any) -> Message:
        """Do as `Hub.update`."""
        return self._run(self._hub.update(channel, message_id, **fields))

    def finish(self, channel: str, message_id: str, **fields: Any) -> None:
        """Do as `Hub.finish`."""
        self._run(self._hub.finish(channel, message_id, **fields))

    def delete(self, channel: str, message_id: str) -> None:
        """Do as `Hub.delete`."""
        self._run(self._hub.delete(channel, message_id))

    def history(self, channel: str, **fields: Any) -> Page:
        """Do as `Hub.history`."""
        return self._run(self._hub.history(channel, **fields))

    @contextmanager
    def message(self, channel: str, **fields: Any) -> Iterator[SyncWriter]:
        """Do as `Hub.message`: `with hub.sync.message("chat:1") as m: m.append("…")`."""
        writer = self._run(self._open(channel, fields))
        try:
            yield SyncWriter(self, writer)
        except BaseException as error:
            self._run(writer.__aexit__(type(error), error, error.__traceback__))
            raise
        self._run(writer.__aexit__(None, None, None))

    def close(self) -> None:
        """Close the hub, if it runs on this object's loop."""
        with self._lock:
            loop, self._own = self._own, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._hub.close(), loop).result(TIMEOUT_S)
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(TIMEOUT_S)
            loop.close()

    async def release_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Close the hub on `loop` if that is this object's loop, so that another loop can run it. For the hub."""
        if loop is self._own:
            self._left, self._has_left = loop, threading.Event()
            await asyncio.to_thread(self.close)
            self._has_left.set()
        elif loop is self._left:
            await asyncio.to_thread(self._has_left.wait, TIMEOUT_S)
        return loop is self._left

    async def _open(self, channel: str, fields: dict[str, Any]) -> MessageWriter:
        return await self._hub.message(channel, **fields).open()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            loop = self._loop()
            if loop is _running_loop():
                raise LocalError("hub.sync blocks the event loop; await the methods of the hub itself there")
        except LocalError:
            call.close()
            raise
        future = asyncio.run_coroutine_threadsafe(call, loop)
        try:
            return future.result(TIMEOUT_S)
        except TimeoutError:
            if not future.cancel():
                raise  # the call itself raised
            raise StoreUnavailable(f"hub did not respond within {TIMEOUT_S:.0f} s") from None

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            running = self._hub.loop
            if running is not None and running is not self._own:
                return running
            check_not_wsgi()
            if self._own is None:
                self._own = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._own.run_forever, name="holdfast-sync", daemon=True)
                self._thread.start()
            return self._own


class SyncWriter:
    """Blocking twin of `MessageWriter`."""

    def __init__(self, hub: SyncHub, writer: MessageWriter) -> None:
        self._hub = hub
        self._writer = writer
        self.channel = writer.channel
        self.id = writer.id

    @property
    def length(self) -> int:
        """Do as `MessageWriter.length`."""
        return self._writer.length

    def append(self, text: str, *, part: int | None = None) -> None:
        """Do as `MessageWriter.append`."""
        self._hub._run(self._writer.append(text, part=part))

    def part(self, part: Part, *, index: int | None = None) -> int:
        """Do as `MessageWriter.part`."""
        return self._hub._run(self._writer.part(part, index=index))

    def update(self, *, meta: dict[str, Json]) -> None:
        """Do as `MessageWriter.update`."""
        self._hub._run(self._writer.update(meta=meta))

    def flush(self) -> None:
        """Do as `MessageWriter.flush`."""
        self._hub._run(self._writer.flush())

    def finish(self, status: str = "complete", *, reason: str | None = None) -> None:
        """Do as `MessageWriter.finish`."""
        self._hub._run(self._writer.finish(status, reason=reason))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
