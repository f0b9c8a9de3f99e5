"""A channel's events over HTTP: Server-Sent Events as they happen, and long polls.

Layer: transports.

A stream is a feed with a sender: when the feed wakes it, it takes the missed events as one batch and writes them.
There is no queue, and an idle stream is a few small objects; so keep requests, headers and closures out of it.
`docs/protocol.md`, 5, is the contract. `hub.channel` frames the events, because all streams share those bytes.

A long poll is for networks that deliver only complete responses: the missed events at once, or the next batch when it
comes. A feed lives only as long as the request. The cursor is the same as on every other transport, with one more
field: a position in the channel's presence, which is not in the log. Between two polls the server does not remember the
events that it sent to the client.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Protocol

from starlette.types import Message, Receive, Send

from tenuto.core.errors import Draining, TenutoError, TooMany
from tenuto.core.events import ChannelAttached, Cursor, PresenceSync, Signal, encode_json, parse_cursor
from tenuto.hub.access.identity import Expired, Scope, header
from tenuto.hub.channel import Behind, EncodedBatch, Feed, take
from tenuto.hub.hub import HubCore
from tenuto.transports.access import OPERATOR, Credentials, ResumeLimits, admit_stream, allowed_start
from tenuto.transports.codec import GUARDS, Headers, Query, unexpected
from tenuto.transports.operations import BY_NAME
from tenuto.transports.sender import DirectSender, Heartbeats, Sender, TaskSender, abort_if_unread, break_off

logger = logging.getLogger("tenuto.transports")

HEARTBEAT_S = 15  # shorter than 60 s, after which many proxies cut silent connections
# Range of reconnect delays. EventSource adds no jitter: all clients that lost the same server would reconnect at once.
RETRY_MS = (1000, 3000)
LONG_RETRY_MS = (15_000, 45_000)  # range of delays after a refusal whose reason will last

_STARTED = "tenuto.is_started"
# A comment. `httpx-sse` makes an event of each blank line behind the first `id`, so none follows.
_COMMENT: Message = {"type": "http.response.body", "body": b":\n", "more_body": True}
_PING: Message = {"type": "http.response.body", "body": b"event: ping\ndata: {}\n\n", "more_body": True}


class StreamApp(Protocol):
    """The parts of the app (`transports.app.App`) that a streaming endpoint needs."""

    hub: HubCore
    heartbeats: Heartbeats

    def added_headers(self, scope: Scope) -> Headers:
        """Return the headers for CORS, and for the cookie of a visitor, of the response to this request."""


@dataclass(slots=True, eq=False)
class EventStream:
    """One viewer's stream of one channel. It holds a feed's cursor and a sender, but no events."""

    _app: StreamApp
    send: InitVar[Send]
    credentials: Credentials
    _: KW_ONLY
    is_own_client: bool  # True: no farewell when it is broken off; a channel's stream begins with its id (`you`)
    ping_s: int | None  # the period of events named `ping`; None: comments at the usual period
    sender_class: InitVar[type[Sender] | None] = None  # None: as the hub and the caller allow
    sender: Sender = field(init=False)
    feed: Feed | None = field(default=None, init=False)
    # resume limits of a viewer without the capability `history`; else None
    resume_limits: ResumeLimits | None = field(default=None, init=False)
    _seal: str = field(default="", init=False)  # with which a stream that a ticket opened can resume
    heartbeat: Message | None = field(init=False)  # None: the reader gets no heartbeat
    _catching_up: asyncio.Task[None] | None = field(default=None, init=False)

    def __post_init__(self, send: Send, sender_class: type[Sender] | None) -> None:
        hub, credentials = self._app.hub, self.credentials
        if credentials.ticket is not None:
            self._seal = hub.tickets.seal(credentials.ticket)
        self.heartbeat = _COMMENT if self.ping_s is None else _PING
        if sender_class is None:  # middleware, and the timeout in an operator's `send`, need a current task
            sender_class = DirectSender if hub.drive_by_hand and credentials.identity is not OPERATOR else TaskSender
        self.sender = sender_class(send, self)

    async def run(self, receive: Receive) -> None:
        """Run the stream until the peer disconnects, or break it off. Only a subclass may complete the response."""
        heartbeats, ticket = self._app.heartbeats, self.credentials.ticket
        slot = heartbeats.add(self, self.ping_s or HEARTBEAT_S)
        try:
            if ticket is not None:
                self._app.hub.tickets.opened(ticket, self)
            self.credentials.watch(self.expire)
            self.listen()
            self.wake()
            await self.sender.carry(receive)
            break_off(receive)
        finally:
            abort_if_unread(receive, lambda: self._app.hub.viewing.is_over)
            heartbeats.remove(self, slot)
            if ticket is not None:
                self._app.hub.tickets.closed(ticket, self)
            if self._catching_up is not None:
                self._catching_up.cancel()
                await asyncio.wait([self._catching_up])

    def listen(self) -> None:
        """Let the feed wake this stream from now on, when its response has begun."""
        if self.feed is not None:
            self.feed.wake = self.wake

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
            self._catch_up(feed.catch_up)
        except Exception:
            self._fail()

    def freed(self) -> None:
        """Let the channel's tick wake this stream again, because the sender is free. Missed events come joined."""
        if self.feed is not None:
            self.feed.done()

    async def received(self, message: Message) -> bool:
        """Return False if the viewer has disconnected; after its request it sends no other message."""
        return bool(message["type"] != "http.disconnect")

    def send_heartbeat(self) -> None:
        """Send a heartbeat, for the peer and for proxies in between; end the stream of a peer that reads nothing."""
        self.sender.check_reader()
        if self.credentials.is_expired:  # check here, too: the timers of a suspended machine do not run
            self.expire()
        elif self.heartbeat is not None and not self.sender.is_busy and not self.sender.is_over:
            self.sender.write(self.heartbeat)

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send a batch of the feed."""
        if batch.cursor and (self._seal or self.resume_limits is not None):  # ephemeral batches have no cursor
            extra = self._seal if self.resume_limits is None else self._seal + self.resume_limits.mark(batch.cursor)
            body = b"%b:%b\n\n" % (batch.sse.removesuffix(b"\n\n"), extra.encode())  # the cursor is at its end
            self.sender.write({"type": "http.response.body", "body": body, "more_body": True})
        else:
            self.sender.write_batch(batch)

    def _catch_up(self, read: Callable[[], Awaitable[None]]) -> None:
        self._catching_up = asyncio.get_running_loop().create_task(self._read(read))

    async def _read(self, read: Callable[[], Awaitable[None]]) -> None:
        """Wait for `read`, a read of the store, and go on; end the stream if it fails."""
        try:
            await read()
        except TenutoError as error:
            logger.warning("an event stream is broken off because its channel cannot be read: %s", error)
            self.sender.end()
        except Exception:
            self._fail()
        finally:
            self._catching_up = None
        self.wake()

    def _fail(self) -> None:
        """Log the exception, and end the stream, because its viewer has missed a batch.

        The exception goes no further: the tick must go on to the channel's other viewers.
        """
        logger.exception("an event stream is broken off; please report this bug")
        self._break_off(unexpected())

    def _break_off(self, why: TenutoError) -> None:
        """Break the stream off. An EventSource first gets its reconnect delay; Tenuto's own clients compute theirs."""
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
        about = encode_json({"type": "you", **stream.credentials.describe(channel)})
        await start_stream(app, scope, send, b"event: you\ndata: %b\n\n" % about if stream.is_own_client else b"")
        await stream.run(receive)
    finally:
        stream.close()


async def _channel_stream(app: StreamApp, scope: Scope, send: Send, channel: str) -> EventStream | None:
    """Return a stream with its feed; None if the response has been sent already."""
    hub = app.hub
    query = Query(scope)
    credentials = await admit_stream(hub, scope, query, channel, BY_NAME["events"])
    limit = query.whole("history", 0, hub.limits.history)
    resume_limits, since, history = allowed_start(hub, credentials.identity, channel, since_of(scope, query), limit)
    flush_ms = query.whole("flush_ms", 0, 1000)
    ping_s = query.whole("ping_s", 2, HEARTBEAT_S)
    if scope["method"] == "HEAD":
        await send_empty_stream(app, scope, send)
        return None
    credentials.take_slot()
    stream = EventStream(app, send, credentials, is_own_client=is_own_client(scope, query), ping_s=ping_s)
    stream.resume_limits = resume_limits
    try:
        stream.feed = await hub.attach(  # `listen` replaces `wake`
            channel, since, history=history, flush_ms=flush_ms, wake=lambda: None, has_ephemeral=True
        )
    except BaseException:
        stream.close()
        raise
    if credentials.is_counted:
        stream.feed.on_first = lambda batch: credentials.charge(batch.encoded_bytes)
    return stream


async def send_refusal(app: StreamApp, scope: Scope, send: Send, error: TenutoError) -> None:
    """Send an EventSource that should try again a stream that ends; a status other than 200 would stop it for good.

    For every other error and client, raise `error`.
    """
    if (error.retry or isinstance(error, Expired)) and not is_own_client(scope, Query(scope)):
        await send_empty_stream(app, scope, send, farewell(error))
    else:
        raise error


_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


async def start_stream(app: StreamApp, scope: Scope, send: Send, first: bytes = b"") -> None:
    """Send the head of a stream, and the reconnect delay of an EventSource in the block of `first` or the next event.

    Some readers yield an empty event for a block of its own.
    """
    scope[_STARTED] = True
    await send_head(app, scope, send, 200, _STREAM_HEADERS)
    await send({"type": "http.response.body", "body": _retry(RETRY_MS) + first, "more_body": True})


def is_started(scope: Scope) -> bool:
    """Return whether a stream has begun on this request. From then on no status can be sent."""
    return _STARTED in scope


async def send_empty_stream(app: StreamApp, scope: Scope, send: Send, body: bytes = b"") -> None:
    """Send a stream that ends immediately: for HEAD, or with a farewell.

    Its status is 200, because any other status stops an EventSource for good.
    """
    await send_head(app, scope, send, 200, _STREAM_HEADERS)
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_head(app: StreamApp, scope: Scope, send: Send, status: int, headers: Headers) -> None:
    """Send the head of a response that bypasses the middleware."""
    headers = [*headers, *GUARDS, *app.added_headers(scope)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


def farewell(error: TenutoError) -> bytes:
    """Return the event that informs an EventSource why its stream ends and when to reconnect."""
    return reconnect_delay(error) + f'event: bye\ndata: "{error.code}"\n\n'.encode()


def reconnect_delay(error: TenutoError) -> bytes:
    """Return the field that informs an EventSource when to reconnect after `error`."""
    return _retry(RETRY_MS if isinstance(error, Draining) else LONG_RETRY_MS)


def is_own_client(scope: Scope, query: Query) -> bool:
    """Return whether one of Tenuto's own clients sent the request; any other client may be an EventSource."""
    return query.text("sdk") is not None or header(scope, b"tenuto-client") is not None


def since_of(scope: Scope, query: Query) -> Cursor | None:
    """Return the viewer's cursor: of the header, which is newer when an EventSource reconnects, else of the URL."""
    return parse_cursor(header(scope, b"last-event-id") or query.text("since"))


def _retry(between_ms: tuple[int, int]) -> bytes:
    return f"retry: {random.randint(*between_ms)}\n".encode()


MAX_WAIT_S = 60  # longest wait of a poll; many networks cut connections that are silent for longer
DEFAULT_WAIT_S = 25


async def poll(app: StreamApp, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """Serve `GET /v1/channels/{channel}/poll`. Raises the error of the response, before the response has started."""
    hub = app.hub
    query = Query(scope)
    credentials = await admit_stream(hub, scope, None, channel, BY_NAME["poll"])
    credentials.take_slot()
    try:
        limit = query.whole("history", 0, hub.limits.history)
        resume_limits, since, history = allowed_start(hub, credentials.identity, channel, since_of(scope, query), limit)
        wait_s = query.whole("wait_s", 0, MAX_WAIT_S)
        woken = asyncio.Event()
        feed = await hub.attach(channel, since, history=history, flush_ms=0, wake=woken.set, has_ephemeral=True)
        try:
            this_poll = _Poll(hub, feed, since, resume_limits)
            events = await this_poll.begin()
            if not events and scope["method"] != "HEAD":
                timeout_s = min(DEFAULT_WAIT_S if wait_s is None else wait_s, credentials.left_s())
                awaited = await _await_events(this_poll, woken, receive, credentials, timeout_s)
                if awaited is None:  # the peer has disconnected
                    return
                events = awaited
            cursor = this_poll.cursor(has_events=bool(events))
        finally:
            feed.close()
    finally:
        credentials.leave()
    credentials.charge(sum(map(len, events)))
    you = b'"you":%b,' % encode_json(credentials.describe(channel)) if is_own_client(scope, query) else b""
    body = b'{%b"cursor":%b,"events":[%b]}' % (you, encode_json(cursor), b",".join(events))
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send_head(app, scope, send, 200, headers)
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Poll:
    """The missed events of one poll: stored ones from its feed, ephemeral ones from the position in its cursor."""

    def __init__(self, hub: HubCore, feed: Feed, since: Cursor | None, resume_limits: ResumeLimits | None) -> None:
        self.hub = hub
        self.feed = feed
        self._since = since
        self._resume_limits = resume_limits
        self._presence_state = feed.channel.presence_state
        # the epoch of positions in the presence state, which is not stored: the first poll of a channel makes one
        self._epoch = self._presence_state.epoch = self._presence_state.epoch or hub.clock.new_epoch()
        self._known = self._known_position(since)  # position in the presence state; None if the cursor has no valid one

    async def begin(self) -> list[bytes]:
        """Return the events since the last poll as JSON. Raises StoreUnavailable."""
        batch = await take(self.feed, self.hub.viewing.reading)
        assert batch is not None  # the first batch of a feed has `channel.attached` at least
        attached, since = batch.events[0], self._since
        assert isinstance(attached, ChannelAttached)
        if since is None or not attached.resumed or since.epoch != attached.epoch:
            return batch.raw  # the first event, of a new start or epoch, has the present members
        # Leave out the first event, which only confirms the client's view.
        return batch.raw[1:] + self._missed_presence()

    async def more(self) -> list[bytes]:
        """Return the events since the last call. Raises StoreUnavailable."""
        events: list[bytes] = []
        # `take` returns entries and ephemeral events apart
        while (batch := await take(self.feed, self.hub.viewing.reading)) is not None:
            events += batch.raw
        return events

    def cursor(self, *, has_events: bool) -> str:
        """Return the client's new cursor: the positions up to which the feed has taken events.

        If no event was delivered, keep the client's previous position: a member that came and left makes no event.
        """
        position = self.feed.ephemeral_position if has_events or self._known is None else self._known
        assert position is not None  # the feed has ephemeral events
        cursor, presence = self.feed.cursor, Cursor(self._epoch, position)
        if self._resume_limits is not None:
            cursor = cursor._replace(extra=self._resume_limits.mark(str(cursor)))
            # Signed, too: otherwise a client could use other positions to find out about members that left before it
            # attached.
            presence = presence._replace(extra=self._resume_limits.mark(str(presence)))
        return str(cursor.with_presence(presence))

    def _missed_presence(self) -> list[bytes]:
        """Return the presence events between two polls; all present members if the client's position is not known.

        Signals are left out, since they are only for the viewers at their time.
        """
        if self._known is None:
            now = self._presence_state.presence()
            return [encode_json(PresenceSync(members=now.members, count=now.count))]
        missed = self._presence_state.since(self._known)
        return [encode_json(event) for event in missed if not isinstance(event, Signal)]

    def _known_position(self, since: Cursor | None) -> int | None:
        """Return the client's position in the presence; None unless this hub gave it, to this client."""
        presence = since.presence if since is not None else None
        if self._resume_limits is not None:
            presence = self._resume_limits.known(presence)
        if presence is None or presence.epoch != self._epoch or presence.serial > self._presence_state.position:
            return None
        return presence.serial


async def _await_events(
    this_poll: _Poll, woken: asyncio.Event, receive: Receive, credentials: Credentials, timeout_s: float
) -> list[bytes] | None:
    """Return the events of the next `timeout_s` seconds; None if the peer disconnects.

    Not every wake-up brings an event: a member that came and left within a moment makes none. Raises Expired,
    StoreUnavailable.
    """
    hub, loop = this_poll.hub, asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    disconnected = loop.create_task(_until_disconnected(receive))
    disconnected.add_done_callback(lambda _: woken.set())
    events: list[bytes] = []
    try:
        while not events and loop.time() < deadline_s and not hub.viewing.is_over:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s):
                    await woken.wait()
            woken.clear()
            if disconnected.done():
                return None
            if this_poll.feed.is_behind and not hub.viewing.is_over:
                # wait one flush window, so that the response contains more than the first piece of text
                await asyncio.sleep(hub.flush_ms / 1000)
            if credentials.is_expired:
                raise Expired("the identity expired while the poll waited for events; send a new token")
            events = await this_poll.more()
    finally:
        disconnected.cancel()
        await asyncio.gather(disconnected, return_exceptions=True)
    return events


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
