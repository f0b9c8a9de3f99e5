"""The client for threads and scripts: the same calls, blocking.

Layer: client.

A `SyncClient` runs a `Client` on an event loop of its own in a daemon thread; any thread may use
it, several at once too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast.client.client import Client
from holdfast.client.presence import Presence
from holdfast.client.subscription import Subscription
from holdfast.client.writer import RemoteWriter
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.events import Batch, Page, ServerEvent
from holdfast.core.model import Command, Json, Member, Message, Part

T = TypeVar("T")
STOP_S = 5.0


class SyncClient:
    """Blocking twin of `Client`, with the same arguments: `with SyncClient("http://127.0.0.1:8000") as client`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to connect; entering the block does it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast-client", daemon=True)
            self._thread.start()
            self._run(self._client.start())

    def close(self) -> None:
        """Let go of everything."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._client.close(), loop).result(STOP_S)
            asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(STOP_S)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(STOP_S)
            loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def error(self) -> HoldfastError | None:
        """As `Client.error`."""
        return self._client.error

    def create(self, channel: str, **fields: Any) -> Message:
        """As `Client.create`."""
        return self._run(self._client.create(channel, **fields))

    def update(self, channel: str, message_id: str, **fields: Any) -> Message:
        """As `Client.update`."""
        return self._run(self._client.update(channel, message_id, **fields))

    def finish(self, channel: str, message_id: str, **fields: Any) -> None:
        """As `Client.finish`."""
        self._run(self._client.finish(channel, message_id, **fields))

    def delete(self, channel: str, message_id: str) -> None:
        """As `Client.delete`."""
        self._run(self._client.delete(channel, message_id))

    def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """As `Client.read`."""
        return self._run(self._client.read(channel, message_id))

    def history(self, channel: str, *, before: int | None = None, limit: int | None = None) -> Page:
        """As `Client.history`."""
        return self._run(self._client.history(channel, before=before, limit=limit))

    def command(self, channel: str, name: str, **fields: Any) -> Command:
        """As `Client.command`."""
        return self._run(self._client.command(channel, name, **fields))

    def reply(self, channel: str, command_id: str, **fields: Any) -> None:
        """As `Client.reply`."""
        self._run(self._client.reply(channel, command_id, **fields))

    def members(self, channel: str) -> list[Member]:
        """As `Client.members`."""
        return self._run(self._client.members(channel))

    def signal(self, channel: str, name: str, data: Json = None) -> None:
        """As `Client.signal`."""
        self._run(self._client.signal(channel, name, data))

    @contextmanager
    def message(self, channel: str, **fields: Any) -> Iterator[SyncWriter]:
        """As `Client.message`: `with client.message("chat:1") as message: message.append("…")`."""

        async def made() -> RemoteWriter:
            return self._client.message(channel, **fields)

        with self._written(self._run(made())) as writer:
            yield writer

    @contextmanager
    def take_over(self, channel: str, message_id: str, **fields: Any) -> Iterator[SyncWriter]:
        """As `Client.take_over`."""

        async def made() -> RemoteWriter:
            return self._client.take_over(channel, message_id, **fields)

        with self._written(self._run(made())) as writer:
            yield writer

    @contextmanager
    def presence(
        self, channel: str, data: dict[str, Json] | None = None, *, member: str | None = None
    ) -> Iterator[SyncPresence]:
        """As `Client.presence`: `with client.presence("chat:1", {"name": "Ada"}) as here: here.update(…)`."""

        async def made() -> Presence:
            return await self._client.presence(channel, data, member=member).enter()

        presence = self._run(made())
        try:
            yield SyncPresence(self, presence)
        finally:
            self._run(presence.leave())

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> SyncSubscription:
        """As `Client.subscribe`: `for event in client.subscribe("chat:1")`."""

        async def made() -> Subscription:
            return self._client.subscribe(channel, since=since, history=history, flush_ms=flush_ms)

        return SyncSubscription(self, self._run(made()))

    @contextmanager
    def _written(self, writer: RemoteWriter) -> Iterator[SyncWriter]:
        self._run(writer.open())
        try:
            yield SyncWriter(self, writer)
        except BaseException as error:
            # What ends a thread, such as Ctrl-C, is to its message what cancellation is.
            cause = error if isinstance(error, Exception) else asyncio.CancelledError()
            self._run(writer.__aexit__(type(cause), cause, error.__traceback__))
            raise
        self._run(writer.__aexit__(None, None, None))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run `call` on the client's loop; one that is interrupted here is cancelled there."""
        loop = self._loop
        if loop is None:
            call.close()
            raise LocalError("the client is not open: use `with SyncClient(…) as client`")
        if threading.current_thread() is self._thread:
            call.close()
            raise LocalError("SyncClient blocks: on an event loop use Client")
        future = asyncio.run_coroutine_threadsafe(call, loop)
        try:
            return future.result()  # every call has a timeout of its own; a subscription waits as long as it takes
        except BaseException:
            future.cancel()
            raise


class SyncWriter:
    """Blocking twin of `RemoteWriter`."""

    def __init__(self, client: SyncClient, writer: RemoteWriter) -> None:
        self._client = client
        self._writer = writer
        self.channel = writer.channel
        self.id = writer.id

    @property
    def length(self) -> int:
        """As `RemoteWriter.length`."""
        return self._writer.length

    @property
    def meta(self) -> dict[str, Json]:
        """As `RemoteWriter.meta`."""
        return self._writer.meta

    def append(self, text: str, *, part: int | None = None) -> None:
        """As `RemoteWriter.append`."""
        self._client._run(self._writer.append(text, part=part))

    def part(self, part: Part, *, index: int | None = None) -> int:
        """As `RemoteWriter.part`."""
        return self._client._run(self._writer.part(part, index=index))

    def update(self, *, meta: dict[str, Json]) -> None:
        """As `RemoteWriter.update`."""
        self._client._run(self._writer.update(meta=meta))

    def flush(self) -> None:
        """As `RemoteWriter.flush`."""
        self._client._run(self._writer.flush())

    def finish(
        self, status: str = "complete", *, reason: str | None = None, meta: dict[str, Json] | None = None
    ) -> None:
        """As `RemoteWriter.finish`."""
        self._client._run(self._writer.finish(status, reason=reason, meta=meta))


class SyncPresence:
    """Blocking twin of `Presence`."""

    def __init__(self, client: SyncClient, presence: Presence) -> None:
        self._client = client
        self._presence = presence
        self.channel = presence.channel

    def update(self, data: dict[str, Json]) -> None:
        """As `Presence.update`."""
        self._client._run(self._presence.update(data))


class SyncSubscription:
    """Blocking twin of `Subscription`."""

    def __init__(self, client: SyncClient, subscription: Subscription) -> None:
        self._client = client
        self._subscription = subscription
        self.channel = subscription.channel

    @property
    def cursor(self) -> str | None:
        """As `Subscription.cursor`."""
        return self._subscription.cursor

    def __iter__(self) -> Iterator[ServerEvent]:
        for batch in self.batches():
            yield from batch.events

    def batches(self) -> Iterator[Batch]:
        """As `Subscription.batches`."""
        batches = self._subscription.batches()

        async def next_batch() -> Batch:
            return await anext(batches)

        async def end() -> None:
            await batches.aclose()

        try:
            while True:
                yield self._client._run(next_batch())
        finally:
            self._client._run(end())
