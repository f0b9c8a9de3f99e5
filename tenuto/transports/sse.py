"""Server-Sent Events: a channel's events as they happen, for EventSource, `curl -N` and our own clients.

Layer: transports.

A stream is a feed with a sender: when the feed wakes it, it takes the missed events as one batch and writes them.
There is no queue, and an idle stream is a few small objects; so keep requests, headers and closures out of it.
`docs/protocol.md`, 5, is the contract. `hub.batches` frames the events, because all streams share those bytes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Protocol

from starlette.types import Message, Receive, Send

from tenuto.core.errors import Draining, TenutoError, TooMany
from tenuto.core.events import Cursor, encode_json, parse_cursor
from tenuto.hub.access.identity import Expired, Scope
from tenuto.hub.batches import Behind, EncodedBatch
from tenuto.hub.feed import Feed
from tenuto.hub.hub import HubCore
from tenuto.transports.access import (
    OPERATOR,
    ResumeLimits,
    admit_stream,
    allowed_history,
    describe_caller,
    known_since,
    resume_limits_of,
)
from tenuto.transports.codec import GUARDS, Headers, unexpected
from tenuto.transports.credentials import Credentials
from tenuto.transports.headers import Query, header
from tenuto.transports.operations import BY_NAME
from tenuto.transports.sender import Chunks, DirectSender, Heartbeats, Sender, TaskSender, abort_if_unread, break_off

logger = logging.getLogger("tenuto.transports")

HEARTBEAT_S = 15  # shorter than 60 s, after which many proxies cut silent connections
# Range of reconnect delays. EventSource adds no jitter: all clients that lost the same server would reconnect at once.
RETRY_MS = (1000, 3000)
LONG_RETRY_MS = (15_000, 45_000)  # range of delays after a refusal whose reason will last

_STARTED = "tenuto.is_started"
_COMMENT: Message = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
_PING: Message = {"type": "http.response.body", "body": b"event: ping\ndata: {}\n\n", "more_body": True}


class StreamApp(Protocol):
    """The parts of the app (`transports.app.App`) that a streaming endpoint needs."""

    hub: HubCore
    heartbeats: Heartbeats
    chunks: Chunks

    def added_headers(self, scope: Scope) -> Headers:
        """Return the headers for CORS, and for the cookie of a visitor, of the response to this request."""


class EventStream:
    """One viewer's stream of one channel. It holds a feed's cursor and a sender, but no events."""

    __slots__ = (
        "_app",
        "_catching_up",
        "_ping",
        "_seal",
        "credentials",
        "feed",
        "is_own_client",
        "ping_s",
        "resume_limits",
        "sender",
    )

    def __init__(
        self,
        app: StreamApp,
        send: Send,
        credentials: Credentials,
        *,
        is_own_client: bool,
        ping_s: int | None,
        sender_class: type[Sender] | None = None,
    ) -> None:
        self._app = app
        self.is_own_client = is_own_client
        self.credentials = credentials
        self._seal = seal_of(app.hub, credentials)
        self._ping = _COMMENT if ping_s is None else _PING
        self._catching_up: asyncio.Task[None] | None = None
        self.ping_s = ping_s or HEARTBEAT_S
        self.feed: Feed | None = None
        # resume limits of a viewer without the capability `history`; else None
        self.resume_limits: ResumeLimits | None = None
        if sender_class is None:
            is_by_hand = app.hub.drive_by_hand and credentials.identity is not OPERATOR
            sender_class = DirectSender if is_by_hand else TaskSender
        self.sender: Sender = sender_class(send, self, app.heartbeats)

    async def run(self, receive: Receive) -> None:
        """Run the stream until the peer disconnects, or break it off. Only a subclass may complete the response."""
        heartbeats, ticket = self._app.heartbeats, self.credentials.ticket
        slot = heartbeats.add(self, self.ping_s)
        try:
            if ticket is not None:
                self._app.hub.tickets.opened(ticket, self)
            self.credentials.watch(self.expire)
            self.wake()
            await self.sender.carry(receive)
            break_off(receive)
        finally:
            abort_if_unread(receive, is_draining=self._app.hub.viewing.is_over)
            heartbeats.remove(self, slot)
            if ticket is not None:
                self._app.hub.tickets.closed(ticket, self)
            if self._catching_up is not None:
                self._catching_up.cancel()
                await asyncio.wait([self._catching_up])

    def close(self) -> None:
        """Detach from the channel, and give back the connection slot. A second call has no effect."""
        self.credentials.leave()
        if self.feed is not None:
            self.feed.close()
            self.feed = None

    def expire(self) -> None:
        """End the stream, because its identity has expired: later events need a new token."""
        self._break_off(Expired())

    def replace(self) -> None:
        """End this stream, because a page has opened the stream of its ticket again."""
        self._break_off(TooMany())

    def wake(self) -> None:
        """Send the feed's batch, or end if viewers must leave. Hot path: this runs for each viewer and each batch."""
        sender = self.sender
        if sender.is_over:
            return
        if self._app.hub.viewing.is_over:
            self._break_off(Draining())
            return
        feed = self.feed
        if sender.is_busy or feed is None or self._catching_up is not None:
            return
        try:
            batch = feed.take()
            if batch is not None:
                self.write_batch(batch)
                if not sender.is_busy:  # the write did not block, so the sender does not call `freed`
                    feed.done()
        except Behind:
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up(feed))
        except Exception:
            self._fail()

    def freed(self) -> None:
        """Ask the channel's tick to wake this stream next time, because the sender is free again.

        Missed events come joined.
        """
        if self.feed is not None:
            self.feed.done()

    def received(self, message: Message) -> bool:
        """Return False if the viewer has disconnected; after its request it sends no other message."""
        return bool(message["type"] != "http.disconnect")

    async def until_room(self) -> None:
        """Return immediately, because the peer sends no input after its request: the server need not slow it down."""

    def send_heartbeat(self) -> None:
        """Send a heartbeat, for the peer and for the proxies in between."""
        if self.credentials.is_expired:  # check here, too: the timers of a suspended machine do not run
            self.expire()
        elif not self.sender.is_busy and not self.sender.is_over:
            self.sender.write(self._ping)

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send a batch of the feed."""
        if batch.cursor and (self._seal or self.resume_limits is not None):  # ephemeral batches have no cursor
            extra = self._seal if self.resume_limits is None else self._seal + self.resume_limits.mark(batch.cursor)
            self.sender.write({"type": "http.response.body", "body": sealed(batch, extra), "more_body": True})
        else:
            self.sender.write_batch(batch, self._app.chunks)

    async def _catch_up(self, feed: Feed) -> None:
        try:
            await feed.catch_up()
        except TenutoError as error:
            logger.warning("an event stream is broken off because its channel cannot be read: %s", error)
            self.sender.end()
        except Exception:
            logger.exception("an event stream is broken off")
            self.sender.end()
        finally:
            self._catching_up = None
        self.wake()

    def _fail(self) -> None:
        """Log the exception, and end the stream, because its viewer has missed a batch.

        The exception goes no further: the tick must go on to the channel's other viewers.
        """
        logger.exception("an event stream is broken off")
        self._break_off(unexpected())

    def _break_off(self, why: TenutoError) -> None:
        """Break the stream off.

        An EventSource is first sent its reconnect delay; Tenuto's own clients compute theirs.
        """
        if self.sender.is_over:
            return
        has_farewell = not self.sender.is_busy and not self.is_own_client
        last = {"type": "http.response.body", "body": farewell(why), "more_body": True} if has_farewell else None
        self.sender.end(last)


async def channel_events(app: StreamApp, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """Serve `GET /v1/channels/{channel}/events`. Raises the error of the response, before the response has started."""
    stream = await _channel_stream(app, scope, send, channel)
    if stream is None:
        return
    try:
        # The batches of a channel are the same bytes for all its viewers, so the caller's identity is sent in a
        # separate event. An EventSource does not get it.
        identity = stream.credentials.identity
        about = encode_json({"type": "you", **describe_caller(app.hub, identity, channel)})
        await start_stream(app, scope, send, b"event: you\ndata: %b\n\n" % about if stream.is_own_client else b"")
        await stream.run(receive)
    finally:
        stream.close()


async def _channel_stream(app: StreamApp, scope: Scope, send: Send, channel: str) -> EventStream | None:
    """Return a stream with its feed; None if the response has been sent already."""
    hub = app.hub
    query = Query(scope)
    is_own = is_own_client(scope, query)
    credentials: Credentials | None = None
    try:
        identity, ticket = await admit_stream(hub, scope, query, channel, BY_NAME["events"])
        credentials = Credentials(hub, scope, identity, ticket=ticket)
        resume_limits = resume_limits_of(hub, identity, channel)
        since = known_since(resume_limits, since_of(scope, query))
        history = allowed_history(identity, channel, query.whole("history", 0, hub.limits.history))
        flush_ms = query.whole("flush_ms", 0, 1000)
        ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
        if scope["method"] == "HEAD":
            await send_empty_stream(app, scope, send)
            return None
        credentials.take_slot()
        stream = EventStream(app, send, credentials, is_own_client=is_own, ping_s=ping_s)
        stream.resume_limits = resume_limits
        stream.feed = await hub.attach(
            channel, since, history=history, flush_ms=flush_ms, wake=stream.wake, has_ephemeral=True
        )
        if credentials.is_counted:
            stream.feed.on_first = credentials.charge_batch
    except BaseException as error:
        if credentials is not None:
            credentials.leave()
        await send_refusal(app, scope, send, error, is_own_client=is_own)
        return None
    return stream


async def send_refusal(app: StreamApp, scope: Scope, send: Send, error: BaseException, *, is_own_client: bool) -> None:
    """Send an EventSource that should try again a stream that ends; a status other than 200 would stop it for good.

    For every other error and client, raise `error`.
    """
    if not is_own_client and isinstance(error, TenutoError) and (error.retry or isinstance(error, Expired)):
        await send_empty_stream(app, scope, send, farewell(error))
    else:
        raise error


def seal_of(hub: HubCore, credentials: Credentials) -> str:
    """Return the seal with which a stream that a ticket opened can resume; empty for other streams."""
    return hub.tickets.seal(credentials.ticket) if credentials.ticket is not None else ""


def sealed(batch: EncodedBatch, extra: str) -> bytes:
    """Return the batch as Server-Sent Events with `extra` in its cursor.

    These bytes are for one viewer and not shared.
    """
    return b"%b:%b\n\n" % (batch.sse.removesuffix(b"\n\n"), extra.encode())


async def start_stream(app: StreamApp, scope: Scope, send: Send, first: bytes = b"") -> None:
    """Send the head of a stream, and the reconnect delay of an EventSource in the block of `first` or the next event.

    Some readers yield an empty event for a block of its own.
    """
    scope[_STARTED] = True
    await send(
        {"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.added_headers(scope)]}
    )
    await send({"type": "http.response.body", "body": _retry(RETRY_MS) + first, "more_body": True})


def is_started(scope: Scope) -> bool:
    """Return whether a stream has begun on this request. From then on no status can be sent."""
    return _STARTED in scope


async def send_empty_stream(app: StreamApp, scope: Scope, send: Send, body: bytes = b"") -> None:
    """Send a stream that ends immediately: for HEAD, or with a farewell.

    Its status is 200, because any other status stops an EventSource for good.
    """
    await send(
        {"type": "http.response.start", "status": 200, "headers": [*_stream_headers(), *app.added_headers(scope)]}
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


def farewell(error: TenutoError) -> bytes:
    """Return the event that informs an EventSource why its stream ends and when to reconnect."""
    retry_ms = RETRY_MS if isinstance(error, Draining) else LONG_RETRY_MS
    return _retry(retry_ms) + f'event: bye\ndata: "{error.code}"\n\n'.encode()


def is_own_client(scope: Scope, query: Query) -> bool:
    """Return whether the request has the header of Tenuto's own clients.

    Without it, the client may be an EventSource.
    """
    return query.text("sdk") is not None or header(scope, b"tenuto-client") is not None


def since_of(scope: Scope, query: Query) -> Cursor | None:
    """Return the viewer's cursor.

    EventSource reconnects to its old URL with a newer header, so the header takes precedence.
    """
    return parse_cursor(header(scope, b"last-event-id") or query.text("since"))


def _retry(between_ms: tuple[int, int]) -> bytes:
    return f"retry: {random.randint(*between_ms)}\n".encode()


def _stream_headers() -> Headers:
    return [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache, no-transform"),
        *GUARDS,
        (b"x-accel-buffering", b"no"),
    ]
