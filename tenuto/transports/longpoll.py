"""Long poll: for networks that deliver only complete responses.

Layer: transports.

Each request gets one response: the missed events at once, or the next batch when it comes. A feed lives only as long as
the request. The cursor is the same as on every other transport, with one more field: a position in the channel's
presence, which is not in the log. Between two polls the server does not remember the events that it sent to the client.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Receive, Send

from tenuto.core.events import ChannelAttached, Cursor, PresenceSync, Signal, encode_json
from tenuto.hub.access.identity import Expired, Scope
from tenuto.hub.batches import Behind, EncodedBatch
from tenuto.hub.feed import Feed
from tenuto.hub.hub import HubCore
from tenuto.transports.access import (
    ResumeLimits,
    admit_poll,
    allowed_history,
    describe_caller,
    known_since,
    resume_limits_of,
)
from tenuto.transports.codec import GUARDS
from tenuto.transports.credentials import Credentials
from tenuto.transports.headers import Query
from tenuto.transports.sse import StreamApp, is_own_client, since_of

MAX_WAIT_S = 60  # longest wait of a poll; many networks cut connections that are silent for longer
DEFAULT_WAIT_S = 25


async def poll(app: StreamApp, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """Serve `GET /v1/channels/{channel}/poll`. Raises the error of the response, before the response has started."""
    hub = app.hub
    query = Query(scope)
    identity = await admit_poll(hub, scope, channel)
    credentials = Credentials(hub, scope, identity)
    credentials.take_slot()
    try:
        resume_limits = resume_limits_of(hub, identity, channel)
        since = known_since(resume_limits, since_of(scope, query))
        history = allowed_history(identity, channel, query.whole("history", 0, hub.limits.history))
        wait_s = query.whole("wait_s", 0, MAX_WAIT_S)
        woken = asyncio.Event()
        feed = await hub.attach(channel, since, history=history, flush_ms=0, wake=woken.set, has_ephemeral=True)
        try:
            this_poll = _Poll(hub, feed, since, resume_limits)
            events = await this_poll.begin()
            if not events and scope["method"] != "HEAD":
                timeout_s = min(DEFAULT_WAIT_S if wait_s is None else wait_s, credentials.left_s())
                awaited = await _await_events(this_poll, woken, receive, credentials, timeout_s)
                if awaited is None:
                    return
                events = awaited
            cursor = this_poll.cursor(has_events=bool(events))
        finally:
            feed.close()
    finally:
        credentials.leave()
    about = describe_caller(hub, identity, channel) if is_own_client(scope, query) else None
    credentials.charge(sum(map(len, events)))
    await _send_response(app, scope, send, cursor, events, about)


class _Poll:
    """The missed events of one poll: stored ones from its feed, ephemeral ones from the position in its cursor."""

    def __init__(self, hub: HubCore, feed: Feed, since: Cursor | None, resume_limits: ResumeLimits | None) -> None:
        self.hub = hub
        self.feed = feed
        self._since = since
        self._resume_limits = resume_limits
        self._presence_state = feed.channel.presence_state
        self._epoch = self._presence_state.epoch = self._presence_state.epoch or hub.clock.new_epoch()
        self._known = self._known_position(since)  # position in the presence state; None if the cursor has no valid one

    async def begin(self) -> list[bytes]:
        """Return the events since the last poll as JSON. Raises StoreUnavailable."""
        batch = await self._take()
        assert batch is not None
        attached, since = batch.events[0], self._since
        assert isinstance(attached, ChannelAttached)
        if since is None or not attached.resumed or since.epoch != attached.epoch:
            return batch.raw  # its first event already contains the present members
        # Leave out the first event, which only confirms the client's view.
        return batch.raw[1:] + self._missed_presence()

    async def more(self) -> list[bytes]:
        """Return the events since the last call. Raises StoreUnavailable."""
        events: list[bytes] = []
        while (batch := await self._take()) is not None:  # first the events of the log, then the ephemeral ones
            events += batch.raw
        return events

    def cursor(self, *, has_events: bool) -> str:
        """Return the client's new cursor: the positions up to which the feed has taken events.

        If no event was delivered, keep the client's previous position: a member that came and left makes no event.
        """
        position = self.feed.ephemeral_position if has_events or self._known is None else self._known
        assert position is not None
        cursor, presence = self.feed.cursor, Cursor(self._epoch, position)
        if self._resume_limits is not None:
            cursor = cursor._replace(extra=self._resume_limits.mark(str(cursor)))
            # Signed, too: otherwise a client could use other positions to find out about members that left before it
            # attached.
            presence = presence._replace(extra=self._resume_limits.mark(str(presence)))
        return str(cursor.with_presence(presence))

    async def _take(self) -> EncodedBatch | None:
        """Return the feed's next batch; reads the store if the feed is behind."""
        while True:
            try:
                return self.feed.take()
            except Behind:
                async with self.hub.viewing.reading():
                    await self.feed.catch_up()

    def _missed_presence(self) -> list[bytes]:
        """Return the presence events between two polls; all present members if the client's position is not known.

        Signals are left out, since they are only for the viewers at their time.
        """
        if self._known is None:
            now = self._presence_state.presence()
            return [encode_json(PresenceSync(members=now.members, count=now.count))]
        return [
            encode_json(event) for event in self._presence_state.since(self._known) if not isinstance(event, Signal)
        ]

    def _known_position(self, since: Cursor | None) -> int | None:
        presence = known_since(self._resume_limits, since.presence if since is not None else None)
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
    is_over = False
    try:
        while not (events or is_over or hub.viewing.is_over):
            woken.clear()
            if disconnected.done():
                return None
            try:
                async with asyncio.timeout_at(deadline_s):
                    await woken.wait()
            except TimeoutError:
                is_over = True
            if disconnected.done():
                return None
            if this_poll.feed.is_behind and not hub.viewing.is_over:
                await asyncio.sleep(
                    hub.flush_ms / 1000
                )  # wait one flush window, so that the response contains more than the first piece of text
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


async def _send_response(
    app: StreamApp, scope: Scope, send: Send, cursor: str, events: list[bytes], about: dict[str, Any] | None
) -> None:
    you = b"" if about is None else b'"you":%b,' % encode_json(about)
    body = b'{%b"cursor":%b,"events":[%b]}' % (you, encode_json(cursor), b",".join(events))
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        *GUARDS,
        (b"content-length", str(len(body)).encode()),
        *app.added_headers(scope),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
