"""The client for threads and scripts: blocking versions of its calls.

Layer: client.

A `SyncClient` runs a `Client` on its own event loop in a daemon thread. All threads may use it, also at the same time.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from tenuto.client.client import Client, Presence
from tenuto.client.feed import Subscription
from tenuto.client.writer import RemoteWriter
from tenuto.core.errors import LocalError, TenutoError
from tenuto.core.events import Batch, Page, ServerEvent
from tenuto.core.model import Command, Json, Member, Message
from tenuto.portal import Portal, SyncWriter, run_on, writing

T = TypeVar("T")
STOP_S = 5.0


class SyncClient:
    """A blocking `Client` with the same arguments: `with SyncClient("http://127.0.0.1:8000") as client`."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)
        self._portal = Portal("tenuto-client")

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
    def error(self) -> TenutoError | None:
        """Return why the client has stopped connecting (`Client.error`)."""
        return self._client.error

    def create(self, channel: str, **fields: Any) -> Message:
        """Create a message, as `Client.create` does."""
        return self._run(self._client.create(channel, **fields))

    def update(self, channel: str, message_id: str, **fields: Any) -> Message:
        """Update a message, as `Client.update` does."""
        return self._run(self._client.update(channel, message_id, **fields))

    def finish(self, channel: str, message_id: str, **fields: Any) -> None:
        """Finish a message, as `Client.finish` does."""
        self._run(self._client.finish(channel, message_id, **fields))

    def delete(self, channel: str, message_id: str) -> None:
        """Delete a message, as `Client.delete` does."""
        self._run(self._client.delete(channel, message_id))

    def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        """Return a message, as `Client.read` does."""
        return self._run(self._client.read(channel, message_id))

    def history(self, channel: str, *, before: int | None = None, limit: int | None = None) -> Page:
        """Return a page of messages, as `Client.history` does."""
        return self._run(self._client.history(channel, before=before, limit=limit))

    def command(self, channel: str, name: str, **fields: Any) -> Command:
        """Send a command, as `Client.command` does."""
        return self._run(self._client.command(channel, name, **fields))

    def reply(self, channel: str, command_id: str, **fields: Any) -> None:
        """Reply to a command, as `Client.reply` does."""
        self._run(self._client.reply(channel, command_id, **fields))

    def members(self, channel: str) -> list[Member]:
        """Return the present members, as `Client.members` does."""
        return self._run(self._client.members(channel))

    def signal(self, channel: str, name: str, data: Json = None) -> None:
        """Send a signal, as `Client.signal` does."""
        self._run(self._client.signal(channel, name, data))

    def message(self, channel: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer, as `Client.message` does: `with client.message("chat:1") as m: m.append("…")`."""

        async def open_writer() -> RemoteWriter:
            return await self._client.message(channel, **fields).open()

        return writing(self._run, open_writer)

    def take_over(self, channel: str, message_id: str, **fields: Any) -> AbstractContextManager[SyncWriter]:
        """Return a writer that continues a message, as `Client.take_over` does."""

        async def open_writer() -> RemoteWriter:
            return await self._client.take_over(channel, message_id, **fields).open()

        return writing(self._run, open_writer)

    @contextmanager
    def presence(
        self, channel: str, data: dict[str, Json] | None = None, *, member: str | None = None
    ) -> Iterator[SyncPresence]:
        """Return a presence, for `with client.presence("chat:1", {"name": "Ada"}) as here: here.update(…)`."""

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
        """Return the channel's events, as `Client.subscribe` does: `for event in client.subscribe("chat:1")`."""

        async def subscribe() -> Subscription:
            return self._client.subscribe(channel, since=since, history=history, flush_ms=flush_ms)

        return SyncSubscription(self, self._run(subscribe()))

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        """Run `call` on the client's loop and return its result.

        It has its own timeout there; a subscription has none.
        """
        loop = self._portal.loop
        if loop is None:
            call.close()
            raise LocalError("SyncClient is not open; use `with SyncClient(...) as client`")
        return run_on(loop, call, remedy="use `Client` and await its methods there")


class SyncPresence:
    """The blocking version of `Presence`."""

    def __init__(self, client: SyncClient, presence: Presence) -> None:
        self._client = client
        self._presence = presence
        self.channel = presence.channel

    def update(self, data: dict[str, Json]) -> None:
        """Replace the member's data, as `Presence.update` does."""
        self._client._run(self._presence.update(data))


class SyncSubscription:
    """The blocking version of `Subscription`."""

    def __init__(self, client: SyncClient, subscription: Subscription) -> None:
        self._client = client
        self._subscription = subscription
        self.channel = subscription.channel

    @property
    def cursor(self) -> str | None:
        """Return the cursor to resume from (`Subscription.cursor`)."""
        return self._subscription.cursor

    def __iter__(self) -> Iterator[ServerEvent]:
        for batch in self.batches():
            yield from batch.events

    def batches(self) -> Iterator[Batch]:
        """Yield the events in batches, as `Subscription.batches` does."""
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
