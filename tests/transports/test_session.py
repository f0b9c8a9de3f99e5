"""A socket's session without a socket: its requests, the frames it sends, and when it is full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tenuto.app import Hub
from tenuto.core.errors import StoreUnavailable
from tenuto.core.limits import Limits
from tenuto.hub.access.identity import CAPABILITIES, Identity
from tenuto.hub.channel import Feed
from tests.transports.conftest import new_hub
from tests.transports.lines import Line


@pytest.fixture
async def own_hub() -> AsyncIterator[Hub]:
    hub = new_hub(limits=Limits(socket_requests=10, socket_request_bytes=100_000, socket_channels=3))
    await hub.start()
    yield hub
    await hub.close()


async def test_waiting_channels_alternate_and_each_sends_all_missed_events(own_hub: Hub) -> None:
    line = Line(own_hub)
    for channel in ("a", "b", "c"):
        line.request("attach", channel=channel, flush_ms=0)
    for _ in range(6):
        await line.frame()
    for number in range(3):
        for channel in ("b", "a"):
            await own_hub.create(channel, id=f"m{number}", text="x")
    await asyncio.sleep(0)
    taken = [await line.frame(), await line.frame()]
    assert [frame["channel"] for frame in taken] == ["b", "a"]
    assert [len(frame["events"]) for frame in taken] == [4, 4]  # the epoch, and three messages
    assert line.take() is None


async def test_socket_is_full_while_its_requests_or_replies_are_too_large(own_hub: Hub) -> None:
    line = Line(own_hub)
    line.request("create", channel="c", id="m1", text="x" * 90_000)
    assert line.session.is_full  # the request and the weight of its reply
    await line.frame()
    assert not line.session.is_full
    line.request("history", channel="c")
    assert line.session.is_full
    await line.rest()
    assert not line.session.is_full
    line.request("history", channel="c")
    await line.rest()
    assert line.session.is_full  # two pages of 90 kB that were not sent
    line.take()
    assert not line.session.is_full


async def test_peer_is_not_silent_while_its_requests_fill_the_session(own_hub: Hub) -> None:
    line = Line(own_hub)
    line.request("presence", channel="c")
    line.request("create", channel="c", id="m1", text="x" * 90_000)
    for now_s in (5.0, 10.0, 15.0):
        line.session.keep_alive(now_s=now_s)
    assert line.session.closing is None


async def test_peer_is_not_silent_before_it_got_pings(own_hub: Hub) -> None:
    """While the event loop is blocked, it gets none."""
    line, viewer = Line(own_hub), Line(own_hub)
    line.request("presence", channel="c")
    for now_s in (60.0, 65.0, 70.0):
        assert line.session.closing is None
        for one in (line, viewer):
            one.session.keep_alive(now_s=now_s)
    assert line.session.closing == (4001, "silent")
    assert viewer.session.closing is None  # no member, writer or agent is lost with it
    assert viewer.take() == {"type": "ping", "n": 1}
    viewer.session.keep_alive(now_s=75.0)
    assert viewer.take() == {"type": "ping", "n": 2}


@pytest.mark.parametrize("reason", ["draining", "store_unavailable"])
async def test_closed_session_takes_and_sends_no_frames(own_hub: Hub, reason: str) -> None:
    line = Line(own_hub)
    line.request("attach", channel="c")
    await line.frame()
    own_hub.viewing.is_cut_off = reason != "draining"
    line.session.drain()
    line.session.drain()
    line.request("create", ref=7, channel="c", id="m1")
    line.session.receive(None, now_s=0.0)
    line.now_s = 100.0
    bye = line.take()
    assert bye is not None
    assert (bye["type"], bye["reason"]) == ("bye", reason)
    assert line.take() is None
    assert line.session.closing == (1012, reason)
    assert own_hub.stats()["feeds"] == 0
    assert (await own_hub.info("c")).serial == 0


@pytest.mark.parametrize("is_live", [False, True])
async def test_events_that_cannot_be_encoded_end_the_session(own_hub: Hub, is_live: bool) -> None:
    await own_hub.create("c", id="m1", text="x")
    line = Line(own_hub)
    if not is_live:  # the first batch has the present members
        own_hub.channel("c").presence_state.enter("bot", "agent", 0, {"tool": object()})
    line.request("attach", channel="c", flush_ms=0)
    assert (await line.frame())["type"] == "ok"
    if is_live:
        assert (await line.frame())["type"] == "events"
        own_hub.channel("c").presence_state.enter("bot", "agent", 0, {"tool": object()})
    assert await line.frame() == {"type": "bye", "reason": "internal"}
    assert line.session.closing == (4000, "internal")
    assert line.take() is None
    assert own_hub.stats()["feeds"] == 0


async def test_attaches_of_one_channel_get_responses_in_order(own_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    line, attach, gate = Line(own_hub), own_hub.attach, asyncio.Event()
    await own_hub.create("c", id="m1", text="one")

    async def slow_at_first(channel: str, *about: Any, **more: Any) -> Feed:
        feed = await attach(channel, *about, **more)
        if channel == "c":
            await gate.wait()
        return feed

    monkeypatch.setattr(own_hub, "attach", slow_at_first)
    line.request("attach", 1, channel="c", history=0)
    await asyncio.sleep(0)  # let the session read the channel
    line.request("attach", 2, channel="c", history=0)  # superseded before its turn
    line.request("attach", 3, channel="c", history=1)
    line.request("attach", 4, channel="other")
    assert (await line.frame())["ref"] == 4
    asyncio.get_running_loop().call_later(0.01, gate.set)
    while (frame := await line.frame())["type"] == "events":
        assert frame["channel"] == "other"
    assert [frame["ref"], (await line.frame())["ref"], (await line.frame())["ref"]] == [1, 2, 3]
    batch = await line.frame()
    assert [event["type"] for event in batch["events"]] == ["channel.attached", "message.update"]
    await line.rest()
    assert line.take() is None
    assert own_hub.stats()["feeds"] == 2


async def test_an_attach_that_fails_gets_its_response_before_the_next_one(
    own_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, attach = Line(own_hub), own_hub.attach

    async def failing(*about: Any, **more: Any) -> Feed:
        monkeypatch.setattr(own_hub, "attach", attach)
        await asyncio.sleep(0.01)
        raise StoreUnavailable("not now")

    monkeypatch.setattr(own_hub, "attach", failing)
    line.request("attach", 1, channel="c")
    await asyncio.sleep(0)
    line.request("attach", 2, channel="c")
    replies = [await line.frame() for _ in range(3)]
    assert [(one["type"], one.get("ref")) for one in replies] == [("error", 1), ("ok", 2), ("events", None)]


async def test_client_may_not_send_the_servers_signal(own_hub: Hub) -> None:
    for client in ("ada", None):  # a signal without a sender would look like the server's
        line = Line(own_hub, Identity(client_id=client))
        line.request("signal", channel="c", name="nobody_listening", data={"message": "m1"})
        assert (await line.frame())["code"] == "forbidden"
    assert own_hub.channel("c").presence_state.position == 0


async def test_without_history_a_new_start_shows_streaming_messages_only(own_hub: Hub) -> None:
    await own_hub.create("c", id="old", text="x")
    async with own_hub.message("c", id="live") as message:
        await message.append("so far")
        await message.flush()
        line = Line(own_hub, Identity(client_id="ada", capabilities=CAPABILITIES - {"history"}))
        line.request("attach", channel="c", history=50)
        await line.frame()
        events = (await line.frame())["events"]
    assert [event["message"]["id"] for event in events[1:]] == ["live"]
