"""Server-Sent Events: a channel's events as they happen, for EventSource, `curl -N` and our own clients.

Layer: transports.

A stream is a feed with a sender: woken, it takes what it is owed as one batch and writes it.
Nothing is queued, and an idle stream is a few small objects; so keep requests, headers and closures out of it.
`docs/protocol.md`, "SSE", is the contract; the framing of events is `hub.feed`'s, since it is shared by all streams.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from starlette.types import Message, Receive, Send

from holdfast.core.cursor import Cursor, parse_cursor
from holdfast.core.errors import Draining, HoldfastError, StoreUnavailable, TooMany
from holdfast.core.names import check_channel
from holdfast.hub.feed import Behind, EncodedBatch, Feed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Expired, Identity, Scope
from holdfast.transports.access import header, identify
from holdfast.transports.chunks import Chunks
from holdfast.transports.codec import unexpected
from holdfast.transports.credentials import Credentials
from holdfast.transports.heartbeats import Heartbeats
from holdfast.transports.problem import Headers
from holdfast.transports.query import Query
from holdfast.transports.resume_limits import ResumeLimits, known_since, resume_limits_of
from holdfast.transports.sender import DirectSender, Sender, TaskSender

logger = logging.getLogger("holdfast.transports")

HEARTBEAT_S = 15  # proxies cut what is silent for 60 s, and one of exactly that would race them
# EventSource adds no jitter of its own: those who lost the same server would all come back in one moment.
RETRY_MS = (1000, 3000)
LONG_RETRY_MS = (15_000, 45_000)  # for whoever was refused for a reason that will not pass at once

_STARTED = "holdfast.is_started"
_COMMENT: Message = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
_PING: Message = {"type": "http.response.body", "body": b"event: ping\ndata: {}\n\n", "more_body": True}


class Open(Protocol):
    """What of the app a streaming endpoint needs (`transports.app.App`)."""

    hub: HubCore
    heartbeats: Heartbeats
    chunks: Chunks

    def cors(self, scope: Scope) -> Headers:
        """The CORS headers of an answer to this request."""


class EventStream:
    """One viewer's stream of one channel."""

    __slots__ = (
        "_app",
        "_catching_up",
        "_is_ours",
        "_ping",
        "_seal",
        "credentials",
        "feed",
        "ping_s",
        "resume_limits",
        "sender",
    )

    def __init__(self, app: Open, send: Send, credentials: Credentials, *, is_ours: bool, ping_s: int | None) -> None:
        self._app = app
        self._is_ours = is_ours
        self.credentials = credentials
        self._seal = seal_of(app.hub, credentials)
        self._ping = _COMMENT if ping_s is None else _PING
        self._catching_up: asyncio.Task[None] | None = None
        self.ping_s = ping_s or HEARTBEAT_S
        self.feed: Feed | None = None
        self.resume_limits: ResumeLimits | None = None  # of a viewer who may not look at what was before
        self.sender: Sender = DirectSender(send, self) if app.hub.drive_by_hand else TaskSender(send, self)

    async def run(self, receive: Receive) -> None:
        """Carry the stream until the peer leaves, or break it off: only a subclass may end it as complete."""
        heartbeats, ticket = self._app.heartbeats, self.credentials.ticket
        slot = heartbeats.add(self, self.ping_s)
        try:
            if ticket is not None:
                self._app.hub.tickets.opened(ticket, self)
            self.credentials.watch(self.expire)
            self.wake()
            await self.sender.carry(receive)
        finally:
            heartbeats.remove(self, slot)
            if ticket is not None:
                self._app.hub.tickets.closed(ticket, self)
            if self._catching_up is not None:
                self._catching_up.cancel()
                await asyncio.wait([self._catching_up])

    def close(self) -> None:
        """Leave the channel, and give back what the connection took. A second call does nothing."""
        self.credentials.leave()
        if self.feed is not None:
            self.feed.close()
            self.feed = None

    def expire(self) -> None:
        """The identity is over: what comes now is for somebody who shows a new token."""
        self._leave(Expired())

    def replace(self) -> None:
        """The stream of this ticket was opened again, by a page that has lost this one or by another page."""
        self._leave(TooMany())

    def wake(self) -> None:
        """There is something to take, or the hub leaves. A thousand viewers of a channel pay for each line here."""
        sender = self.sender
        if sender.is_over:
            return
        if self._app.hub.is_draining:
            self._leave(Draining())
            return
        feed = self.feed
        if sender.is_busy or feed is None or self._catching_up is not None:
            return
        try:
            batch = feed.take()
            if batch is not None:
                self.write_batch(batch)
                if not sender.is_busy:  # a write that went through at once frees nobody
                    feed.done()
        except Behind:
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up(feed))
        except Exception:  # the channel's tick goes on to its other viewers; this one has not been told what it took
            logger.exception("a stream is broken off")
            self._leave(unexpected())

    def freed(self) -> None:
        """The sender is free again: more comes with the channel's next tick, joined."""
        if self.feed is not None:
            self.feed.done()

    def received(self, message: Message) -> bool:
        """A viewer says nothing after its request but that it has left."""
        return bool(message["type"] != "http.disconnect")

    async def until_room(self) -> None:
        """There is always room for nothing."""

    def send_heartbeat(self) -> None:
        """Show the peer, and the proxies between, that this stream lives."""
        if self.credentials.is_expired:  # a machine that slept has slept through its timers, too
            self.expire()
        elif not self.sender.is_busy and not self.sender.is_over:
            self.sender.write(self._ping)

    def write_batch(self, batch: EncodedBatch) -> None:
        """Write what the feed gave."""
        if batch.cursor and (self._seal or self.resume_limits is not None):  # what is said in passing has no cursor
            extra = self._seal if self.resume_limits is None else self._seal + self.resume_limits.mark(batch.cursor)
            self.sender.write({"type": "http.response.body", "body": sealed(batch, extra), "more_body": True})
        else:
            self.sender.write_batch(batch, self._app.chunks)

    async def _catch_up(self, feed: Feed) -> None:
        try:
            await feed.catch_up()
        except StoreUnavailable as error:
            logger.warning("a stream is broken off, the store does not answer: %s", error)
            self.sender.end()
        except Exception:
            logger.exception("a stream is broken off")
            self.sender.end()
        finally:
            self._catching_up = None
        self.wake()

    def _leave(self, why: HoldfastError) -> None:
        """Break off, and tell an EventSource when to come back: our clients have their own back-off."""
        if self.sender.is_over:
            return
        is_told = not self.sender.is_busy and not self._is_ours
        last = {"type": "http.response.body", "body": farewell(why), "more_body": True} if is_told else None
        self.sender.end(last)


async def channel_events(app: Open, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """`GET /v1/channels/{channel}/events`. Raises what HTTP is to answer, before anything was sent."""
    stream = await _channel_stream(app, scope, send, channel)
    if stream is None:
        return
    try:
        await start_stream(app, scope, send)
        await stream.run(receive)
    finally:
        stream.close()


async def _channel_stream(app: Open, scope: Scope, send: Send, channel: str) -> EventStream | None:
    """A stream with its feed; None if the request is answered already."""
    hub = app.hub
    query = Query(scope)
    is_ours = says_who_it_is(scope, query)
    credentials: Credentials | None = None
    try:
        credentials = await admit_stream(hub, scope, query, channel)
        identity = credentials.identity
        identity.check("subscribe", channel)
        resume_limits = resume_limits_of(hub, identity, channel)
        since = known_since(resume_limits, since_of(scope, query))
        history = allowed_history(identity, channel, query.whole("history", 0, hub.limits.history))
        flush_ms = query.whole("flush_ms", 0, 1000)
        ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
        if scope["method"] == "HEAD":
            await send_empty_stream(app, scope, send)
            return None
        credentials.sit()
        stream = EventStream(app, send, credentials, is_ours=is_ours, ping_s=ping_s)
        stream.resume_limits = resume_limits
        stream.feed = await hub.attach(
            channel, since, history=history, flush_ms=flush_ms, wake=stream.wake, has_passing=True
        )
    except HoldfastError as error:
        if credentials is not None:
            credentials.leave()
        if is_ours or not may_come_back(error):
            raise
        await send_empty_stream(app, scope, send, farewell(error))
        return None
    except BaseException:
        if credentials is not None:
            credentials.leave()
        raise
    return stream


async def admit_stream(hub: HubCore, scope: Scope, query: Query, channel: str) -> Credentials:
    """Who asks for a stream of `channel`, by a ticket or as for every request. It has no seat yet.

    A hub that leaves refuses before anything else. Raises Draining, InvalidName, Unauthenticated, Expired, Forbidden, …
    """
    await check_serving(hub)
    ticket = query.text("ticket")
    if ticket is None:
        identity = await identify(hub, scope)
        check_channel(channel)
        return Credentials(hub, scope, identity)
    known = hub.tickets.read(ticket, check_channel(channel), parse_cursor(header(scope, b"last-event-id")))
    return Credentials(hub, scope, known.identity(), ticket=known)


async def check_serving(hub: HubCore) -> None:
    """Raises Draining where the hub leaves: before anything else is looked at."""
    await hub.start()
    if hub.is_draining:
        raise Draining("the server is leaving; another one, or it when restarted, will serve")


def may_come_back(error: HoldfastError) -> bool:
    """Is it worth the while of an EventSource to try again? A status would stop it for ever."""
    return error.retry or isinstance(error, Expired)


def seal_of(hub: HubCore, credentials: Credentials) -> str:
    """What the cursors of a ticket's stream carry, so that it may come back; nothing on other streams."""
    return hub.tickets.seal(credentials.ticket) if credentials.ticket is not None else ""


def sealed(batch: EncodedBatch, extra: str) -> bytes:
    """The batch as Server-Sent Events, with `extra` in its cursor: for one viewer alone, so not shared."""
    return b"%b:%b\n\n" % (batch.sse.removesuffix(b"\n\n"), extra.encode())


async def start_stream(app: Open, scope: Scope, send: Send) -> None:
    """Send the head of a stream, and the delay after which an EventSource comes back by itself."""
    scope[_STARTED] = True
    await send({"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.cors(scope)]})
    await send({"type": "http.response.body", "body": _retry(RETRY_MS), "more_body": True})


def is_started(scope: Scope) -> bool:
    """Has a stream begun on this request? Then there is no way left to answer with a status."""
    return _STARTED in scope


async def send_empty_stream(app: Open, scope: Scope, send: Send, body: bytes = b"") -> None:
    """Result as a stream that is over: to HEAD, or with a farewell. Any status but 200 stops EventSource for ever."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.cors(scope)]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def farewell(error: HoldfastError) -> bytes:
    """What tells an EventSource why it is sent away, and when to come back."""
    retry_ms = RETRY_MS if isinstance(error, Draining) else LONG_RETRY_MS
    return _retry(retry_ms) + f'event: bye\ndata: "{error.code}"\n\n'.encode()


def says_who_it_is(scope: Scope, query: Query) -> bool:
    """Is this one of our clients? Whoever does not say so is taken for an EventSource."""
    return query.text("sdk") is not None or header(scope, b"holdfast-client") is not None


def since_of(scope: Scope, query: Query) -> Cursor | None:
    """Where the viewer was: EventSource comes back to its old URL with a newer header, so that one counts."""
    return parse_cursor(header(scope, b"last-event-id") or query.text("since"))


def allowed_history(identity: Identity, channel: str, wanted: int | None) -> int | None:
    """How many finished messages a new start may show: none to whoever may subscribe but not see history."""
    return wanted if identity.has("history", channel) else 0


def _retry(between_ms: tuple[int, int]) -> bytes:
    return f"retry: {random.randint(*between_ms)}\n\n".encode()


def _stream_headers() -> Headers:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    ]
