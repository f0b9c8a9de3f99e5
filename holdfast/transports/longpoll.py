"""Long poll: for networks that let nothing through but requests with answers.

Layer: transports.

One request is one answer: what is missed at once, or the next batch when it comes. A feed
lives only as long as the request; the cursor is the same as on every other transport, with one field more: a place in
the channel's presence, which is not in the log. Between two polls nobody else remembers what the poller was told.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Send

from holdfast.core.cursor import Cursor
from holdfast.core.events import ChannelAttached, PresenceSync, Signal, encode_json
from holdfast.core.names import check_channel
from holdfast.hub.feed import Behind, EncodedBatch, Feed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Expired, Scope
from holdfast.transports.access import identify
from holdfast.transports.credentials import Credentials
from holdfast.transports.query import Query
from holdfast.transports.resume_limits import ResumeLimits, known_since, resume_limits_of
from holdfast.transports.sse import Open, allowed_history, check_serving, since_of

MAX_WAIT_S = 60  # networks cut what is silent for longer
DEFAULT_WAIT_S = 25


async def poll(app: Open, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """`GET /v1/channels/{channel}/poll`. Raises what HTTP is to answer, before anything was sent."""
    hub = app.hub
    query = Query(scope)
    credentials = await admit_poll(hub, scope, channel)
    try:
        identity = credentials.identity
        resume_limits = resume_limits_of(hub, identity, channel)
        since = known_since(resume_limits, since_of(scope, query))
        history = allowed_history(identity, channel, query.whole("history", 0, hub.limits.history))
        wait_s = query.whole("wait_s", 0, MAX_WAIT_S)
        woken = asyncio.Event()
        feed = await hub.attach(channel, since, history=history, flush_ms=0, wake=woken.set, has_passing=True)
        try:
            visit = _Visit(hub, feed, since, resume_limits)
            events = await visit.begin()
            if not events and scope["method"] != "HEAD":
                patience_s = min(DEFAULT_WAIT_S if wait_s is None else wait_s, credentials.left_s())
                awaited = await _await_events(visit, woken, receive, credentials, patience_s)
                if awaited is None:
                    return
                events = awaited
            cursor = visit.cursor(is_told=bool(events))
        finally:
            feed.close()
    finally:
        credentials.leave()
    await _answer(app, scope, send, cursor, events)


async def admit_poll(hub: HubCore, scope: Scope, channel: str) -> Credentials:
    """Who polls, with a seat. No ticket is for this: whoever polls can send a header."""
    await check_serving(hub)
    credentials = Credentials(hub, scope, await identify(hub, scope))
    credentials.identity.check("subscribe", check_channel(channel))
    credentials.sit()
    return credentials


class _Visit:
    """What one poll is owed: of the log by its feed, of presence by the place in its cursor."""

    def __init__(self, hub: HubCore, feed: Feed, since: Cursor | None, resume_limits: ResumeLimits | None) -> None:
        self.hub = hub
        self.feed = feed
        self._since = since
        self._resume_limits = resume_limits
        self._presence_state = feed.channel.presence_state
        self._life = self._presence_state.life = self._presence_state.life or hub.clock.new_epoch()
        self._told = self._told_of(since)  # position in the presence state; None: nothing that counts here

    async def begin(self) -> list[bytes]:
        """What was missed since the last poll. Raises StoreUnavailable."""
        batch = await self._take()
        assert batch is not None
        attached, since = batch.events[0], self._since
        assert isinstance(attached, ChannelAttached)
        if since is None or not attached.resumed or since.epoch != attached.epoch:
            return batch.raw  # which says who is here
        # The first event only says that all is as the client knows it.
        return batch.raw[1:] + self._missed_presence()

    async def more(self) -> list[bytes]:
        """What came since the last call. Raises StoreUnavailable."""
        events: list[bytes] = []
        while (batch := await self._take()) is not None:  # first of the log, then of what is said in passing
            events += batch.raw
        return events

    def cursor(self, *, is_told: bool) -> str:
        """Where the client stands now. To be called right after `begin` or `more`: the presence state moves on.

        Whoever was told nothing keeps their place: what made no event until now (somebody came, and left) makes none.
        """
        position = self._presence_state.position if is_told or self._told is None else self._told
        cursor, place = self.feed.cursor, Cursor(self._life, position)
        if self._resume_limits is not None:
            cursor = cursor._replace(extra=self._resume_limits.mark(str(cursor)))
            # Marked, too: between two positions one could look for who has left before one came.
            place = place._replace(extra=self._resume_limits.mark(str(place)))
        return str(cursor.with_presence(place))

    async def _take(self) -> EncodedBatch | None:
        """What the feed is owed, asking the store where it must."""
        while True:
            try:
                return self.feed.take()
            except Behind:
                await self.feed.catch_up()

    def _missed_presence(self) -> list[bytes]:
        """Who came and went between two polls; who is here, where nobody knows what the client was told.

        Signals of that time are for those who were there.
        """
        if self._told is None:
            now = self._presence_state.presence()
            return [encode_json(PresenceSync(members=now.members, count=now.count))]
        return [encode_json(event) for event in self._presence_state.since(self._told) if not isinstance(event, Signal)]

    def _told_of(self, since: Cursor | None) -> int | None:
        place = known_since(self._resume_limits, since.presence if since is not None else None)
        if place is None or place.epoch != self._life or place.serial > self._presence_state.position:
            return None
        return place.serial


async def _await_events(
    visit: _Visit, woken: asyncio.Event, receive: Receive, credentials: Credentials, patience_s: float
) -> list[bytes] | None:
    """What comes within `patience_s`; None if the peer has left meanwhile. Raises Expired, StoreUnavailable.

    Not every wake-up brings something: who came and left within a moment is told to nobody.
    """
    hub, loop = visit.hub, asyncio.get_running_loop()
    over_s = loop.time() + patience_s
    leaving = loop.create_task(_until_left(receive))
    leaving.add_done_callback(lambda _: woken.set())
    events: list[bytes] = []
    is_over = False
    try:
        while not (events or is_over or hub.is_draining):
            woken.clear()
            if leaving.done():
                return None
            try:
                async with asyncio.timeout_at(over_s):
                    await woken.wait()
            except TimeoutError:
                is_over = True
            if leaving.done():
                return None
            if visit.feed.is_behind and not hub.is_draining:
                await asyncio.sleep(hub.flush_ms / 1000)  # one flush window: for more than a first token
            if credentials.is_expired:
                raise Expired("this identity has expired while the request waited")
            events = await visit.more()
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    return events


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(app: Open, scope: Scope, send: Send, cursor: str, events: list[bytes]) -> None:
    body = b'{"cursor":%b,"events":[%b]}' % (encode_json(cursor), b",".join(events))
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
        *app.cors(scope),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
