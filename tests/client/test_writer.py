"""The writer over the network: the end of its block, its refusals, its bounds and its lease.

Layer: tests.

`test_writer_laws` checks that no content is lost.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest

from tenuto import Hub, Limits
from tenuto.client import Client, Timing, Unreachable
from tenuto.core.errors import Busy, Fenced, Finished, IdConflict, TenutoError, TooLarge
from tenuto.core.model import Message
from tenuto.hub.access.tokens import jwt_verifier
from tests.client.script import Script, ScriptedSocket, message_of
from tests.client.script import client_of as scripted
from tests.client.test_agents import virtual_hub
from tests.client.wire import Wire, becomes, client_of, until
from tests.virtual import virtually


async def stored(hub: Hub, message_id: str) -> Message:
    return (await hub.read("c", message_id))[0]


async def test_a_block_writes_a_message(hub: Hub, client: Client) -> None:
    asked = await client.create("c", text="Why?", id="q")
    async with client.message("c", id="a", reply_to="q", meta={"model": "m"}) as message:
        assert await message.part({"type": "reasoning", "text": "Let me "}) == 0
        await message.append("see.", part=0)
        await message.append("Be")
        await message.append("cause.")
        assert message.length == 8
        assert await message.part({"type": "tool", "call": "1", "name": "look", "input": ""}) == 2
        await message.append('{"x":1}', part=2)
        await message.append(" Really.")
        assert message.length == 16
        await message.update(meta={"tokens": 3, "model": None})
        await message.finish(meta={"usage": 9})
    answer = await stored(hub, "a")
    assert answer.parts == [
        {"type": "reasoning", "text": "Let me see."},
        {"type": "text", "text": "Because."},
        {"type": "tool", "call": "1", "name": "look", "input": '{"x":1}'},
        {"type": "text", "text": " Really."},
    ]
    assert (answer.status, answer.reply_to, answer.parent) == ("complete", asked.id, asked.id)
    assert answer.meta == message.meta == {"tokens": 3, "usage": 9}


# How it ends ------------------------------------------------------------------------------------------------------


async def test_check_stores_nothing_and_finds_out_that_the_message_was_stopped(hub: Hub, client: Client) -> None:
    with pytest.raises(Finished):
        async with client.message("c", id="a") as message:
            await message.check()
            await message.append("a")
            await message.flush()
            version = (await stored(hub, "a")).version
            await message.check()
            assert (await stored(hub, "a")).version == version
            await hub.finish("c", "a", status="cancelled")
            await message.check()


@virtually
async def test_too_large_text_ends_the_message_as_failed() -> None:
    async with virtual_hub(limits=Limits(message_bytes=1000)) as (hub, wire), client_of(wire) as client:
        with pytest.raises(TooLarge):
            async with client.message("c") as message:
                await message.append("x" * 900)
                await message.append("y" * 200)
        left = await stored(hub, message.id)
        assert (left.status, left.reason, left.text) == ("failed", "too_large", "x" * 900)


async def test_taken_id_raises_id_conflict(client: Client) -> None:
    async with client.message("c", id="m") as message:
        await message.append("first")
    with pytest.raises(IdConflict):
        await client.message("c", id="m").open()


# Bounds -----------------------------------------------------------------------------------------------------------


async def begun(script: Script) -> tuple[ScriptedSocket, dict[str, Any]]:
    """Respond to the create of a message. Return the socket and the create."""
    socket = await script.socket()
    frame = await socket.frame("create")
    socket.say(type="ok", ref=frame["ref"], message=message_of(frame["id"]), serial=1, generation=1, cursor="epoch:1")
    return socket, frame


async def test_a_writer_ahead_of_a_slow_store_waits() -> None:
    script = Script()
    async with scripted(script, limits=Limits(writer_bytes=10_000)) as client:
        message = client.message("c")
        opening = asyncio.create_task(message.open())
        socket, _ = await begun(script)
        await opening
        count = 0

        async def write() -> None:
            nonlocal count
            for _ in range(100):
                await message.append("x" * 1000)
                count += 1

        writing = asyncio.create_task(write())
        frames = [await socket.frame() for _ in range(8)]
        socket.say(type="ping", n=1)
        await socket.frame("pong")
        assert count == 10  # eight requests in flight, two pieces behind them, and the eleventh waits
        sizes = []
        while not writing.done():
            frame = frames.pop(0) if frames else await socket.frame()
            sizes.append(len(frame.get("text") or frame["value"]["text"]))
            socket.say(type="ok", ref=frame["ref"])
            await asyncio.sleep(0)
        assert max(sizes) > 1000  # text that gathers meanwhile is sent as one request
        await writing


@virtually
async def test_store_that_refuses_for_too_long_raises_and_content_is_kept() -> None:
    async with virtual_hub() as (hub, wire):
        async with client_of(wire, timing=Timing()) as client, client.message("c") as message:
            wire.refuse = lambda frame: "busy" if frame["type"] == "part" else None
            await message.append("kept")
            with pytest.raises(Busy):
                await message.flush()
            wire.refuse = lambda frame: None
            await message.append(" and stored")
        assert (await stored(hub, message.id)).text == "kept and stored"


@virtually
async def test_server_that_is_unreachable_for_too_long_raises() -> None:
    script = Script()
    script.refusals.extend(OSError("no route to host") for _ in range(1000))
    async with scripted(script, timing=Timing()) as client:
        with pytest.raises(Unreachable, match="no route to host"):
            await client.create("c", text="x")
        with pytest.raises(Unreachable):
            async with client.message("c"):
                pass


# Leases -----------------------------------------------------------------------------------------------------------


@virtually
async def test_lease_of_an_idle_writer_is_renewed() -> None:
    script = Script()
    async with scripted(script) as client:
        message = client.message("c", lease_s=0.09)
        opening = asyncio.create_task(message.open())
        socket, frame = await begun(script)
        assert frame["lease_s"] == 0.09
        await opening
        for _ in range(3):
            renewal = await socket.frame()
            assert (renewal["type"], renewal["generation"], renewal["lease_s"]) == ("lease", 1, 0.09)
            socket.say(type="ok", ref=renewal["ref"], lease_s=0.09)
        renewal = await socket.frame()
        socket.say(type="error", ref=renewal["ref"], code="fenced", generation=2)
        await becomes(lambda: message.error is not None)
        with pytest.raises(Fenced):
            await message.append("too late")


@virtually
async def test_an_interrupted_message_can_be_taken_over() -> None:
    async with virtual_hub() as (hub, wire), client_of(wire) as client, client_of(other := Wire(hub)) as zombie:
        dying = await zombie.message("c", lease_s=5).open()
        await dying.append("Once upon")
        await dying.flush()
        async with client.channel("c") as view:
            other.is_away = True
            other.cut()
            await until(view, lambda: view.messages[0].status == "interrupted")
        refusals = iter(["store_unavailable"])
        wire.refuse = lambda frame: next(refusals, None) if frame["type"] == "takeover" else None
        async with client.take_over("c", dying.id) as message:
            assert (message.generation, message.length, message.text) == (2, 9, "Once upon")
            message.begin_again({"model": "m"}, supersedes=False)
            await message.flush()
            assert (await stored(hub, dying.id)).meta == {"model": "m"}
            await message.append(" a time")
            wire.cut()
            other.is_away = False
            with pytest.raises(Fenced):
                await dying.append("...")
                await dying.flush()
            await message.append(".")
    left = await stored(hub, dying.id)
    assert (left.status, left.text) == ("complete", "Once upon a time.")


@virtually
async def test_message_that_broke_upstream_is_interrupted_by_its_lease() -> None:
    class BrokeOff(TenutoError):
        code, ends_as = "broke_off", "interrupted"

    async with virtual_hub() as (hub, wire), client_of(wire) as client, client.channel("c") as view:
        with pytest.raises(BrokeOff):
            async with client.message("c") as message:
                await message.append("half an ans")
                raise BrokeOff
        await until(view, lambda: view.messages[0].status != "streaming")
        left = await stored(hub, message.id)
    assert (left.status, left.text) == ("interrupted", "half an ans")


# Tokens -----------------------------------------------------------------------------------------------------------


async def test_live_connection_gets_new_tokens_and_a_message_continues() -> None:
    secret, given = "a secret of at least thirty-two bytes, as it should be", 0
    verifier = jwt_verifier(secret=secret, audience="chat", leeway_s=0.0)
    hub = Hub("memory://", authenticate=verifier, hooks_signals=False)
    wire = Wire(hub)

    async def provider() -> str:
        nonlocal given
        given += 1
        grants = {"c" if given == 1 else "*": ["subscribe", "history", "publish", "append"]}
        return jwt.encode({"sub": "ada", "exp": time.time() + 60, "aud": "chat", "tenuto": grants}, secret)

    def ahead() -> float:
        """Return a time at which a token has 1.5 s left, while it lasts a minute by the server's clock."""
        return time.time() + 58.5

    async with asyncio.timeout(60), client_of(wire, token_provider=provider, now=ahead) as client:
        async with client.message("c") as message:
            while given < 3:
                await message.append("on ")
                await message.flush()
                await asyncio.sleep(0.01)  # the pace of a model: this lasts as long as two tokens
        assert (await stored(hub, message.id)).text == message.text
        await client.create("not-by-the-first", text="token")
    assert wire.dials == 1
    await wire.end()
    await hub.close()
