"""Watching a channel: views and subscriptions, over connections that come and go.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tenuto import Hub, Identity
from tenuto.client import Client, Subscription
from tenuto.core import events
from tenuto.core.errors import Forbidden, LocalError
from tests.client.script import Script, message_of
from tests.client.script import client_of as scripted
from tests.client.wire import Wire, becomes, client_of, until


async def some(subscription: Subscription, count: int) -> list[events.Batch]:
    """Return the next batches of a subscription."""
    async with asyncio.timeout(60), aclosing(subscription.batches()) as coming:
        return [await anext(coming) for _ in range(count)]


# Views ------------------------------------------------------------------------------------------------------------


async def test_view_reports_changes(hub: Hub, client: Client) -> None:
    await hub.create("c", text="first")
    async with client.channel("c") as view, asyncio.timeout(60):
        changes = aiter(view)
        assert (await anext(changes)).is_new_start
        second = await hub.create("c", text="second")
        change = await anext(changes)
        assert (change.messages, change.is_new_start) == (frozenset([second.id]), False)
        assert (view.message(second.id), view.message("other")) == (second, None)
        await hub.delete("c", second.id)
        assert (await anext(changes)).messages == frozenset([second.id])
    assert view.state == "closed"


async def test_view_begins_anew_when_its_cursor_is_not_valid_any_more() -> None:
    script = Script()
    async with scripted(script) as client:
        view = client.channel("c")
        first = await script.socket()
        first.say(type="ok", ref=(await first.frame("attach"))["ref"])
        first.say(type="events", channel="c", cursor="e:1", events=[attached("e", 1)])
        await view.live()
        first.bye(4100, "gone")
        second = await script.socket()
        assert "since" not in await second.frame("attach")


async def test_channel_that_the_server_detaches_is_attached_again_and_no_other_one() -> None:
    script = Script()
    async with scripted(script) as client:
        views = {name: client.channel(name) for name in ("c", "d")}
        socket = await script.socket()
        for _ in views:
            attach = await socket.frame("attach")
            socket.say(type="ok", ref=attach["ref"])
            socket.say(type="events", channel=attach["channel"], cursor="e:1", events=[attached("e", 1)])
        for view in views.values():
            await view.live()
        socket.say(type="error", ref=None, channel="c", code="store_unusable", status=500)
        again = await socket.frame("attach")
        assert (again["channel"], again["since"]) == ("c", "e:1")
        assert (views["c"].state, views["d"].state) == ("reconnecting", "live")
        socket.say(type="ok", ref=again["ref"])
        socket.say(type="events", channel="c", cursor="e:2", events=[attached("e", 2)])
        await views["c"].live()


async def test_gap_is_repaired_by_a_new_start() -> None:
    script = Script()
    async with scripted(script) as client:
        view = client.channel("c")
        socket = await script.socket()
        socket.say(type="ok", ref=(await socket.frame("attach"))["ref"])
        socket.say(type="events", channel="c", cursor="e:2", events=[attached("e", 2), shown("abc", 2)])
        lost = {"type": "message.append", "serial": 4, "id": "m", "part": 0, "at": 9, "text": "xyz"}
        socket.say(type="events", channel="c", cursor="e:4", events=[lost])
        socket.say(type="ok", ref=(await socket.frame("detach"))["ref"])
        again = await socket.frame("attach")
        assert "since" not in again
        # Events that are still on their way belong to the earlier attach.
        socket.say(type="events", channel="c", cursor="e:5", events=[{**lost, "serial": 5}])
        socket.say(type="ok", ref=again["ref"])
        socket.say(type="events", channel="c", cursor="e:5", events=[attached("e", 5), shown("abc...xyz", 5)])
        await until(view, lambda: [message.text for message in view.messages] == ["abc...xyz"])
        assert view.gaps == 1


def attached(epoch: str, serial: int) -> dict[str, object]:
    place = {"channel": "c", "epoch": epoch, "serial": serial}
    return {"type": "channel.attached", **place, "resumed": False, "more": False, "before": 1}


def shown(text: str, serial: int) -> dict[str, object]:
    message = message_of("m", version=serial, parts=[{"type": "text", "text": text}])
    return {"type": "message.update", "serial": serial, "message": message}


async def test_older_messages_are_loaded_page_by_page(hub: Hub, client: Client) -> None:
    for number in range(7):
        await hub.create("c", text=str(number))
    async with client.channel("c", history=3) as view:
        assert ("".join(message.text for message in view.messages), view.more) == ("456", True)
        assert await view.older(limit=3)
        assert "".join(message.text for message in view.messages) == "123456"
        assert not await view.older(limit=3)
        assert not await view.older()
        assert "".join(message.text for message in view.messages) == "0123456"


async def test_refused_view_is_closed_with_the_reason(hub: Hub, wire: Wire) -> None:
    async def nobody(_: object) -> Identity:
        return Identity(client_id="ada", capabilities=frozenset(["publish"]))

    hub.authenticate = nobody
    async with client_of(wire) as client:
        view = client.channel("c")
        with pytest.raises(Forbidden):
            await view.live()
        assert isinstance(view.error, Forbidden)
        with pytest.raises(Forbidden):
            await some(client.subscribe("c"), 1)
        with pytest.raises(Forbidden):
            async for _ in view:
                pass


async def test_a_view_ends_with_its_client(client: Client) -> None:
    view = client.channel("c")
    await view.live()
    await client.close()
    assert view.state == "closed"
    with pytest.raises(LocalError):
        client.channel("c")


# Subscriptions ----------------------------------------------------------------------------------------------------


async def test_subscription_resumes_from_its_cursor(hub: Hub, client: Client) -> None:
    await hub.create("c", text="one")
    subscription = client.subscribe("c")
    await some(subscription, 1)
    # The batch at which a loop is left counts as not taken.
    assert subscription.cursor is None
    (first,) = await some(subscription, 1)
    await hub.create("c", text="two")
    (again,) = await some(client.subscribe("c", since=first.cursor), 1)
    attach, event = again.events
    assert isinstance(attach, events.ChannelAttached)
    assert attach.resumed
    assert isinstance(event, events.MessageCreate)
    assert event.message.text == "two"


async def test_a_subscription_survives_its_connections(hub: Hub, wire: Wire, client: Client) -> None:
    async def write() -> None:
        async with hub.message("c") as message:
            for number in range(20):
                await message.append(f"{number} ")
                await message.flush()
                dials = wire.dials
                wire.cut()
                await becomes(lambda dials=dials: wire.dials > dials)  # type: ignore[misc]

    seen, writing = "", asyncio.create_task(write())
    async with asyncio.timeout(60):
        async for event in client.subscribe("c", flush_ms=0):
            seen = applied(seen, event)
            if isinstance(event, events.MessageFinish):
                break
    await writing
    assert seen == "".join(f"{number} " for number in range(20))


def applied(text: str, event: events.ServerEvent) -> str:
    """Return the text of the only message, after `event`."""
    match event:
        case events.MessageUpdate() | events.MessageCreate():
            return event.message.text
        case events.MessageAppend():
            assert event.at <= len(text)
            return text + event.text[len(text) - event.at :]
        case events.MessagePart():
            return str(event.part["text"])
    return text


async def test_a_channel_may_be_watched_twice_and_many_at_once(hub: Hub, wire: Wire, client: Client) -> None:
    await hub.create("c0", text="hello")
    views = [client.channel(f"c{number}") for number in range(150)]
    (batch,) = await some(client.subscribe("c0"), 1)
    assert isinstance(batch.events[1], events.MessageUpdate)
    await asyncio.gather(*(view.live() for view in views))
    assert wire.dials == 2
    for view in views[100:]:
        view.close()
    assert (await client.create("c0", text="again")).text == "again"
    await until(views[0], lambda: len(views[0].messages) == 2)


async def test_feed_pauses_while_its_subscriber_reads_no_events(hub: Hub, wire: Wire, client: Client) -> None:
    subscription = client.subscribe("c", flush_ms=0)
    batches, text = subscription.batches(), ""
    async with asyncio.timeout(60), hub.message("c") as message, aclosing(batches):
        await anext(batches)
        for _ in range(60):
            await message.append("y" * 10_000)
            await message.flush()
        await becomes(lambda: any(frame["type"] == "detach" for frame in wire.sent))
        async for batch in batches:
            for event in batch.events:
                text = applied(text, event)
            if len(text) == 600_000:
                break
    assert [frame["type"] for frame in wire.sent if frame["type"] != "pong"].count("attach") == 2
