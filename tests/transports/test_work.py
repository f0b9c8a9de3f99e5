"""Sockets of people and agents: presence, commands, leases and turns, in virtual time (docs/protocol.md, 7.2, 8.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto.hub.access.identity import Identity, Scope
from tenuto.transports.session import MAX_PATTERNS
from tests.hub.hubs import new_hub
from tests.transports.lines import LiveLine as Line
from tests.virtual import virtually

# Presence


class Clogged(Line):
    """A peer that answers no ping, and when it is clogged reads `bytes_s` bytes a second."""

    is_clogged = False
    bytes_s = 1e-6

    async def send(self, message: Any) -> None:
        text = message.get("text", "")
        if self.is_clogged:
            await asyncio.sleep(len(text) / self.bytes_s)
        if not text.startswith('{"type":"ping"'):
            await super().send(message)


@pytest.mark.parametrize("is_by_hand", [False, True], ids=["task", "hand"])
@pytest.mark.parametrize("holding", ["presence", "lease", "turn"])
@virtually
async def test_silent_peer_with_a_lease_is_closed_despite_unread_text(holding: str, is_by_hand: bool) -> None:
    hub = new_hub()
    hub.drive_by_hand = is_by_hand
    peer = Clogged(hub)
    await peer.ask("attach", channel="chat:1")
    match holding:
        case "presence":
            await peer.ask("presence", channel="chat:1")
        case "lease":
            await peer.ask("create", channel="chat:1", id="a", role="assistant", status="streaming", lease_s=3600)
        case "turn":
            await peer.ask("work", pattern="chat:*")
    peer.is_clogged = True
    await hub.create("chat:1", text="it is written, and never read")
    peer_left_s = asyncio.get_running_loop().time() + 20
    async with asyncio.timeout_at(peer_left_s):
        await peer.serving
    await asyncio.sleep(peer_left_s - asyncio.get_running_loop().time())
    assert (await hub.members("chat:1")).members == []
    if holding == "lease":
        assert (await hub.read("chat:1", "a"))[0].status == "interrupted"
    assert hub.runtime.scheduler.stats()["agents"] == 0


@virtually
async def test_peer_is_not_silent_while_it_reads() -> None:
    hub = new_hub()
    for number in range(6):
        await hub.create("chat:1", id=f"m{number}", text="x" * 250_000)
    peer = Clogged(hub)
    peer.bytes_s = 32_000
    await peer.ask("presence", channel="chat:1")
    peer.is_clogged, begun_s = True, asyncio.get_running_loop().time()
    await peer.ask("attach", channel="chat:1")
    await peer.serving
    assert asyncio.get_running_loop().time() - begun_s > 46.0  # it has read all


@virtually
async def test_server_stops_reading_from_a_peer_that_does_not_read() -> None:
    hub = new_hub()
    await hub.create("chat:1", text="x" * 500_000)
    peer = Clogged(hub)
    await peer.ask("detach", channel="chat:1")
    peer.is_clogged = True
    for _ in range(2_000):
        peer.request("history", ref=0, channel="chat:1")
    await asyncio.sleep(1)
    assert peer._inbox.qsize() > 1_940


# Turns


@virtually
async def test_patterns_that_an_agent_has_ended_need_no_room() -> None:
    hub = new_hub()
    agent = Line(hub, "bot")
    for number in range(2 * MAX_PATTERNS):
        assert (await agent.ask("work", pattern=f"chat:{number}:*"))["type"] == "ok"
        await agent.ask("work", pattern=f"chat:{number}:*", slots=0)


@virtually
async def test_message_that_an_agent_took_in_and_did_not_work_on_waits_again_when_its_turn_ends() -> None:
    hub = new_hub()
    agent, person = Line(hub, "bot"), Line(hub, "ann")
    await agent.ask("work", pattern="chat:*")
    await person.ask("create", channel="chat:1", id="q1", text="hello")
    about = {"channel": "chat:1", "message": (await agent.turn())["message"]["id"], "generation": 1}
    for other in ("q2", "q3"):
        await person.ask("create", channel="chat:1", id=other, text="and?")
        assert (await agent.ask("turn.take", channel="chat:1", message=other, turn="q1"))["taken"]
    wrong: list[Any] = ["q3", [3], ["q3"] * 1_001, ["q3", ""]]
    codes = [(await agent.ask("turn.done", **about, unheard=unheard))["code"] for unheard in wrong]
    assert codes == ["invalid_request"] * 3 + ["invalid_name"]
    for _ in range(2):  # a repeat after a lost response
        assert (await agent.ask("turn.done", **about, unheard=["none", "q3"]))["type"] == "ok"
    assert (await agent.turn())["message"]["id"] == "q3"


# Callers without read access


@virtually
async def test_caller_without_read_access_learns_no_serials() -> None:
    async def authenticate(scope: Scope) -> Identity:
        return Identity(client_id="eve", capabilities=frozenset({"publish", "append", "command"}))

    hub = new_hub(authenticate=authenticate)
    received = []
    for channel in ("chat:1", "empty:1"):
        line = Line(hub)
        if channel == "chat:1":
            await hub.create(channel, id="of-the-doctor", text="x", author="doc")
            await hub.command(channel, "approve", by="doc")
        responses = [
            await line.ask("create", channel=channel, id="m", text="hi"),
            await line.ask("create", channel=channel, id="m", text="hi"),  # sent again
            await line.ask("create", channel=channel, id="n", text="hi", parent="m"),
            await line.ask("create", channel=channel, id="o", text="hi", reply_to="n"),
            await line.ask("create", channel=channel, id="s", role="assistant", status="streaming"),
            await line.ask("append", channel=channel, id="s", text="more", at=0),
            await line.ask("create", channel=channel, id="s", role="assistant", status="streaming"),
            await line.ask("command", channel=channel, id="c", name="cancel", target="s"),
            await line.ask("finish", channel=channel, id="s", status="cancelled"),
            await line.ask("update", channel=channel, id="m", text="ho"),
            await line.ask("reply", channel=channel, id="c"),
            await line.ask("command", channel=channel, id="c", name="cancel", target="s"),
        ]
        for response in responses:
            assert response["type"] == "ok", response
            if "message" in response:
                del response["message"]["created_at"], response["message"]["updated_at"]
            if "cursor" in response:
                assert response.pop("cursor") == f"{hub.channel(channel).state.epoch}:0"
            response.get("command", {}).pop("expires_at", None)
            response.get("reply", {}).pop("expires_at", None)
        received.append(responses)
        await line.cut()
    assert received[0] == received[1]
    messages = [response["message"] for response in received[0] if "message" in response]
    assert [one.get("parent") for one in messages] == [None, None, "m", "n", None, None, None]
    assert [(one["created"], one["version"]) for one in messages] == [(0, 0)] * 5 + [(0, 1)] * 2
    assert {response["serial"] for response in received[0]} == {0}
