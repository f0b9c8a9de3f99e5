"""The client for threads and scripts: blocking twins of its calls.

Layer: client.

A `SyncClient` runs a `Client` on an event loop of its own in a daemon thread. All threads may use it, also at the same
time.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast.client.client import Client
from holdfast.client.presence import Presence
from holdfast.client.subscription import Subscription
from holdfast.client.writer import RemoteWriter
from holdfast.core.errors import HoldfastError, LocalError
from holdfast.core.events import Batch, Page, ServerEvent
from holdfast.core.model import Command, Json, Member, Message
from holdfast.portal import Portal, SyncWriter, run_on, writing

T = TypeVar("T")
STOP_S = 5.0


class SyncClient:
    """Blocking twin of `Client`, with the same arguments: `with SyncClient("http://127.0.0.1:8000") as client`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)
        self._portal = Portal("holdfast-client")

    def start(self) -> None:
        """Begin to connect. Entering the block calls this."""
        if self._portal.loop is None:
            self._portal.start()
            self._run(self._client.start())

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._portal.stop(self._client.close, STOP_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def error(self) -> HoldfastError | None:
        """Return `Client.error`."""
        return self._client.error

    def create(self, channel: str, **fields: Any) -> Message:
        """Do as `Client.create`."""
        return self._run(self._client.create(channel, **fields))

    def update(self, channel: str, message_id: str, **fields: Any) -> Message:
        """Do as `Client.update`."""
        return self._run(self._client.update(channel, message_id, **fields))

    def finish(self, channel: str, message_id: str, **fields: Any) -> None:
        """Do as `Client.finish`."""
        self._run(self._client.finish(channel, message_id, **fields))

    def delete(self, channel: str, message_id: str) -> None:
        """Do as `Client.delete`."""
        self._run(self._client.delete(channel, message_id))

    def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Do as `Client.read`."""
        return self._run(self._client.read(channel, message_id))

    def history(self, channel: str, *, before: int | None = None, limit: int | None = None) -> Page:
        """Do as `Client.history`."""
        return self._run(self._client.history(channel, before=before, limit=limit))

    def command(self, channel: str, name: str, **fields: Any) -> Command:
        """Do as `Client.command`."""
        return self._run(self._client.command(channel, name, **fields))

    def reply(self, channel: str, command_id: str, **fields: Any) -> None:
        """Do as `Client.reply`."""
        self._run(self._client.reply(channel, command_id, **fields))

    def members(self, channel: str) -> list[Member]:
        """Do as `Client.members`."""
        return self._run(self._client.members(channel))

    def signal(self, channel: str, name: str, data: Json = None) -> None:
        """Do as `Client.signal`."""
        self._run(self._client.signal(channel, name, data))

    def message(self, channel: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Do as `Client.message`: `with client.message("chat:1") as message: message.append("…")`."""

        async def open_writer() -> RemoteWriter:
            return await self._client.message(channel, **fields).open()

        return writing(self._run, open_writer)

    def take_over(self, channel: str, message_id: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Do as `Client.take_over`."""

        async def open_writer() -> RemoteWriter:
            return await self._client.take_over(channel, message_id, **fields).open()

        return writing(self._run, open_writer)

    @contextmanager
    def presence(
        self, channel: str, data: dict[str, Json] | None = None, *, member: str | None = None
    ) -> Iterator[SyncPresence]:
        """Do as `Client.presence`: `with client.presence("chat:1", {"name": "Ada"}) as here: here.update(…)`."""

        async def enter() -> Presence:
            return await self._client.presence(channel, data, member=member).enter()

        presence = self._run(enter())
        try:
            yield SyncPresence(self, presence)
        finally:
            self._run(presence.leave())

    def subscribe(
        self, channel: str, *, since: str | None = None, history: int | None = None, flush_ms: int | None = None
    ) -> SyncSubscription:
        """Do as `Client.subscribe`: `for event in client.subscribe("chat:1")`."""

        async def subscribe() -> Subscription:
            return self._client.subscribe(channel, since=since, history=history, flush_ms=flush_ms)

        return SyncSubscription(self, self._run(subscribe()))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run `call` on the client's loop. Each call has its own timeout there; a subscription waits without one."""
        loop = self._portal.loop
        if loop is None:
            call.close()
            raise LocalError("SyncClient is not open; use `with SyncClient(...) as client`")
        return run_on(loop, call, remedy="use `Client` and await its methods there")


class SyncPresence:
    """Blocking twin of `Presence`."""

    def __init__(self, client: SyncClient, presence: Presence) -> None:
        self._client = client
        self._presence = presence
        self.channel = presence.channel

    def update(self, data: dict[str, Json]) -> None:
        """Do as `Presence.update`."""
        self._client._run(self._presence.update(data))


class SyncSubscription:
    """Blocking twin of `Subscription`."""

    def __init__(self, client: SyncClient, subscription: Subscription) -> None:
        self._client = client
        self._subscription = subscription
        self.channel = subscription.channel

    @property
    def cursor(self) -> str | None:
        """Return `Subscription.cursor`."""
        return self._subscription.cursor

    def __iter__(self) -> Iterator[ServerEvent]:
        for batch in self.batches():
            yield from batch.events

    def batches(self) -> Iterator[Batch]:
        """Do as `Subscription.batches`."""
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
