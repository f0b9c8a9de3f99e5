"""Long poll: for networks that let nothing through but requests with answers.

You are in `transports`. One request is one batch: what is missed at once, or the next batch when it comes. A feed lives
only as long as the request; the cursor is the same as on every other transport.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Send

from holdfast.core.cursor import Cursor
from holdfast.core.events import ChannelAttached, encode_json
from holdfast.core.names import check_channel
from holdfast.hub.feed import Behind, EncodedBatch, Feed
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Expired, Scope
from holdfast.transports.door import identify
from holdfast.transports.passport import Passport
from holdfast.transports.past import known_since, past_of
from holdfast.transports.query import Query
from holdfast.transports.sse import Open, allowed_history, check_serving, since_of

MAX_WAIT_S = 60  # networks cut what is silent for longer
DEFAULT_WAIT_S = 25


async def poll(app: Open, scope: Scope, receive: Receive, send: Send, channel: str) -> None:
    """`GET /v1/channels/{channel}/poll`. Raises what HTTP is to answer, before anything was sent."""
    hub = app.hub
    query = Query(scope)
    passport = await admit_poll(hub, scope, channel)
    try:
        identity = passport.identity
        past = past_of(hub, identity, channel)
        since = known_since(past, since_of(scope, query))
        history = allowed_history(identity, channel, query.whole("history", 0, hub.limits.history))
        wait_s = query.whole("wait_s", 0, MAX_WAIT_S)
        woken = asyncio.Event()
        feed = await hub.attach(channel, since, history=history, flush_ms=0, wake=woken.set)
        try:
            batch = await _take(feed)
            events = _news(batch, since)
            if not events and scope["method"] != "HEAD" and not hub.is_draining:
                woken.clear()
                patience_s = min(DEFAULT_WAIT_S if wait_s is None else wait_s, passport.left_s())
                if not await _is_still_there(woken, receive, patience_s):
                    return
                if feed.is_behind and not hub.is_draining:
                    await asyncio.sleep(hub.flush_ms / 1000)  # one flush window: for more than a first token
                if passport.is_expired:
                    raise Expired("this identity has expired while the request waited")
                batch = await _take(feed)
                events = batch.raw if batch is not None else []
            cursor = str(feed.cursor)
            if past is not None:
                cursor = f"{cursor}:{past.mark(cursor)}"
        finally:
            feed.close()
    finally:
        passport.leave()
    await _answer(app, scope, send, cursor, events)


async def admit_poll(hub: HubCore, scope: Scope, channel: str) -> Passport:
    """Who polls, with a seat. No ticket is for this: whoever polls can send a header."""
    await check_serving(hub)
    passport = Passport(hub, scope, await identify(hub, scope))
    passport.identity.check("subscribe", check_channel(channel))
    passport.sit()
    return passport


async def _take(feed: Feed) -> EncodedBatch | None:
    """What `feed` is owed, asking the store where it must. Raises StoreUnavailable."""
    while True:
        try:
            return feed.take()
        except Behind:
            await feed.catch_up()


def _news(batch: EncodedBatch | None, since: Cursor | None) -> list[bytes]:
    """The first batch without the event that only says that all is as the client knows it."""
    if batch is None:
        return []
    attached = batch.events[0]
    assert isinstance(attached, ChannelAttached)
    is_known = attached.resumed and since is not None and since.epoch == attached.epoch
    return batch.raw[1:] if is_known else batch.raw


async def _is_still_there(woken: asyncio.Event, receive: Receive, wait_s: float) -> bool:
    """Wait until there is something to take, at most `wait_s`; False if the peer has left meanwhile."""
    loop = asyncio.get_running_loop()
    leaving = loop.create_task(_until_left(receive))
    waking = loop.create_task(woken.wait())
    try:
        done, _ = await asyncio.wait((leaving, waking), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return leaving not in done
    finally:
        leaving.cancel()
        waking.cancel()
        await asyncio.gather(leaving, waking, return_exceptions=True)


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
