"""Server-Sent Events: a channel's events as they happen, for EventSource, `curl -N` and our own clients.

You are in `transports`. A stream is a feed with a sink: woken, it takes what it is owed as one batch and writes it.
Nothing is queued, and an idle stream is a few small objects; so keep requests, headers and closures out of it.
`docs/protocol.md`, "SSE", is the contract; the framing of events is `hub.feed`'s, since it is shared by all streams.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from holdfast.core.cursor import Cursor, parse_cursor
from holdfast.core.errors import Draining, HoldfastError, StoreUnavailable
from holdfast.core.names import check_channel
from holdfast.hub.feed import Behind, EncodedBatch, Feed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Scope
from holdfast.transports.door import header, identify
from holdfast.transports.problem import Headers, Message
from holdfast.transports.query import Query
from holdfast.transports.sink import HandSink, Receive, Send, Sink, TaskSink
from holdfast.transports.wheel import Beating, Wheel

logger = logging.getLogger("holdfast.transports")

HEARTBEAT_S = 15  # proxies cut what is silent for 60 s; some count from the last byte of another connection
# EventSource adds no jitter of its own: those who lost the same server would all come back in one moment.
RETRY_MS = (1000, 3000)
LONG_RETRY_MS = (15_000, 45_000)  # for whoever was refused for a reason that will not pass at once

_COMMENT: Message = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
_PING: Message = {"type": "http.response.body", "body": b"event: ping\ndata: {}\n\n", "more_body": True}


class Open(Protocol):
    """What of the app a stream needs (`transports.app.App`)."""

    hub: HubCore
    wheel: Wheel

    def cors(self, scope: Scope) -> Headers:
        """The CORS headers of an answer to this request."""


class EventStream:
    """One viewer's stream of one channel."""

    __slots__ = ("__weakref__", "_catching_up", "_hub", "_is_ours", "_ping", "_slot", "feed", "sink")

    def __init__(self, hub: HubCore, send: Send, *, is_ours: bool, ping: Message) -> None:
        self._hub = hub
        self._is_ours = is_ours
        self._ping = ping
        self._catching_up: asyncio.Task[None] | None = None
        self._slot: set[Beating] | None = None
        self.feed: Feed | None = None
        self.sink: Sink = HandSink(send, self) if hub.drive_by_hand else TaskSink(send, self)

    async def run(self, wheel: Wheel, receive: Receive, period_s: int) -> None:
        """Carry the stream until the peer leaves, or break it off. Never ends in a way that looks complete."""
        self._slot = wheel.add(self, period_s)
        try:
            self.wake()
            await self.sink.carry(receive)
        finally:
            self._slot.discard(self)
            if self.feed is not None:
                self.feed.close()
            if self._catching_up is not None:
                self._catching_up.cancel()
                await asyncio.wait([self._catching_up])

    def wake(self) -> None:
        """There is something to take, or the hub leaves."""
        if self._hub.is_draining:
            self._leave()
        elif self.feed is not None and not self.sink.is_busy and not self.sink.is_over and self._catching_up is None:
            self._take(self.feed)

    def freed(self) -> None:
        """The sink is free again: more comes with the channel's next tick, joined."""
        if self.feed is not None:
            self.feed.done()

    def received(self, message: Message) -> bool:
        """A viewer says nothing after its request but that it has left."""
        return bool(message["type"] != "http.disconnect")

    async def until_room(self) -> None:
        """There is always room for nothing."""

    def beat(self) -> None:
        """Show the peer, and the proxies between, that this stream lives."""
        if not self.sink.is_busy and not self.sink.is_over:
            self.sink.write(self._ping)

    def write_batch(self, batch: EncodedBatch) -> None:
        """Write what the feed gave."""
        self.sink.write({"type": "http.response.body", "body": batch.sse, "more_body": True})

    def _take(self, feed: Feed) -> None:
        try:
            batch = feed.take()
        except Behind:
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up(feed))
            return
        if batch is not None:
            self.write_batch(batch)

    async def _catch_up(self, feed: Feed) -> None:
        try:
            await feed.catch_up()
        except StoreUnavailable as error:
            logger.warning("a stream is broken off, the store does not answer: %s", error)
            self.sink.end()
        except Exception:
            logger.exception("a stream is broken off")
            self.sink.end()
        finally:
            self._catching_up = None
        self.wake()

    def _leave(self) -> None:
        """Break off, and tell an EventSource when to come back: our clients have their own back-off."""
        if self.sink.is_over:
            return
        if not self.sink.is_busy and not self._is_ours:
            self.sink.write({"type": "http.response.body", "body": farewell(Draining()), "more_body": True})
        self.sink.end()


async def channel_events(app: Open, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """`GET /v1/channels/{channel}/events`. Raises what HTTP is to answer, before anything was sent."""
    hub = app.hub
    is_ours = says_who_it_is(scope)
    try:
        if hub.is_draining:
            raise Draining("the server is leaving; another one, or it restarted, will serve")
        query = Query(scope)
        identity = await identify(hub, scope)
        identity.check("subscribe", check_channel(channel))
        identity.check("history", channel)
        ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
        stream = EventStream(hub, send, is_ours=is_ours, ping=_COMMENT if ping_s is None else _PING)
        history = query.whole("history", 0, hub.limits.history)
        flush_ms = query.whole("flush_ms", 0, 1000)
        since = since_of(scope, query)
        if scope["method"] == "HEAD":
            return await send_head(app, scope, send)
        stream.feed = await hub.attach(channel, since, history=history, flush_ms=flush_ms, wake=stream.wake)
    except HoldfastError as error:
        if is_ours or not error.retry:
            raise
        return await send_farewell(app, scope, send, error)
    del query, identity
    try:
        await start_stream(app, scope, send)
    except BaseException:
        stream.feed.close()
        raise
    await stream.run(app.wheel, receive, ping_s or HEARTBEAT_S)


async def start_stream(app: Open, scope: Scope, send: Send) -> None:
    """Send the head of a stream, and the delay after which an EventSource comes back by itself."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.cors(scope)]})
    await send({"type": "http.response.body", "body": retry_line(RETRY_MS), "more_body": True})


async def send_head(app: Open, scope: Scope, send: Send) -> None:
    """Answer HEAD: what GET would begin with."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.cors(scope)]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_farewell(app: Open, scope: Scope, send: Send, error: HoldfastError) -> None:
    """Refuse an EventSource for now: any status but 200 would stop it for ever."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.cors(scope)]})
    await send({"type": "http.response.body", "body": farewell(error), "more_body": False})


def farewell(error: HoldfastError) -> bytes:
    """The event that tells an EventSource why it is sent away, and when to come back."""
    retry_ms = RETRY_MS if isinstance(error, Draining) else LONG_RETRY_MS
    return retry_line(retry_ms) + f'event: bye\ndata: "{error.code}"\n\n'.encode()


def retry_line(between_ms: tuple[int, int]) -> bytes:
    """A `retry:` field, drawn anew each time."""
    return f"retry: {random.randint(*between_ms)}\n\n".encode()


def says_who_it_is(scope: Scope) -> bool:
    """Is this one of our clients? Whoever does not say so is taken for an EventSource."""
    return header(scope, b"holdfast-client") is not None or Query(scope).text("sdk") is not None


def since_of(scope: Scope, query: Query) -> Cursor | None:
    """Where the viewer was: EventSource comes back to its old URL with a newer header, so that one counts."""
    return parse_cursor(header(scope, b"last-event-id") or query.text("since"))


def _stream_headers() -> Headers:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    ]
