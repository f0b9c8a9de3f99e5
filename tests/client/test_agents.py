"""Agents in another process: the same handlers, over connections that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from typing import Any

import pytest

from holdfast import Hub
from holdfast.agents.turn import Turn, reply_id
from holdfast.client import Client
from holdfast.core.model import Message
from tests.client.wire import Wire, becomes, client_of
from tests.transports.conftest import Served, new_hub, serving


@contextlib.asynccontextmanager
async def working(client: Client) -> AsyncIterator[None]:
    """`client` with its agents running."""
    task = asyncio.ensure_future(client.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def answers(hub: Hub, channel: str = "chat:1") -> list[Message]:
    page = await hub.history(channel)
    return [one for one in page.messages[::-1] if one.role == "assistant"]


async def until_answered(hub: Hub, count: int = 1, channel: str = "chat:1") -> list[Message]:
    """The answers, once `count` have ended."""
    async with asyncio.timeout(30):
        async for _ in hub.subscribe(channel):
            found = [one for one in await answers(hub, channel) if one.status != "streaming"]
            if len(found) >= count:
                return found
    raise AssertionError


async def test_a_handler_elsewhere_answers_as_one_in_the_hub(hub: Hub, wire: Wire) -> None:
    seen: list[Any] = []
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        seen.append((turn.attempt, await turn.history()))
        turn.progress("using a tool")
        async with turn.reply(meta={"model": "m"}) as message:
            await message.append("you said ")
            await message.append(turn.text)

    async with working(client):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        asked = await hub.create("chat:1", text="hello", author="ann")
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.author, answer.status) == ("you said hello", "bot", "complete")
        assert (answer.id, answer.reply_to, answer.meta) == (reply_id(asked.id, 1), asked.id, {"model": "m"})
        assert seen == [(1, [{"role": "user", "content": "hello"}])]
        await becomes(lambda: hub.desk.stats()["turns_running"] == 0)


async def test_asking_steering_and_stopping_reach_it(hub: Hub, wire: Wire) -> None:
    seen: list[Any] = []
    begun = asyncio.Event()
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("May I? ")
            seen.append(await turn.ask("approve", {"tool": "rm"}))
            seen.append([steer.text for steer in await turn.steered()])
            await message.append("Yes. ")
            await message.flush()
            begun.set()
            await asyncio.Event().wait()

    async with working(client):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        asked = await hub.create("chat:1", text="?", author="ann")
        state = hub.channel("chat:1").state
        await becomes(lambda: bool(state.pending_commands()))
        (question,) = state.pending_commands()
        await hub.command("chat:1", "steer", target=asked.id, data={"text": "quickly"})
        await hub.create("chat:1", text="and short")
        await hub.reply("chat:1", question.id[1:], ok=True, data="go", by="ann")
        async with asyncio.timeout(10):
            await begun.wait()
        assert (seen[0].ok, seen[0].data, seen[0].by) == (True, "go", "ann")
        assert seen[1] == ["quickly", "and short"]
        sent_s = time.monotonic()
        await hub.command("chat:1", "cancel", target=asked.id, by="ann")
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.status) == ("May I? Yes. ", "cancelled")
        assert time.monotonic() - sent_s < 1.9  # the agent did it, not the server
        assert len((await hub.history("chat:1")).messages) == 3


async def test_connections_that_break_lose_no_turn_and_double_none(hub: Hub, wire: Wire) -> None:
    client = client_of(wire, client_id="bot")
    turns = 0

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        nonlocal turns
        turns += 1
        async with turn.reply() as message:
            for word in ["one", "two", "three", "four", "five"]:
                await message.append(f"{word} ")
                wire.cut()
                await asyncio.sleep(0.01)

    async with working(client):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        for _ in range(3):
            await hub.create("chat:1", text="?")
        found = await until_answered(hub, 3)
        assert [(one.text, one.status) for one in found] == [("one two three four five ", "complete")] * 3
        assert turns == 3


async def test_a_handler_that_raises_elsewhere_leaves_failed(hub: Hub, wire: Wire) -> None:
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("half")
            raise RuntimeError("secret")

    async with working(client):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        await hub.create("chat:1", text="?")
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.status) == ("half", "failed")
        assert "secret" not in str(answer)


@contextlib.asynccontextmanager
async def agent_process(served: Served, name: str, on_crash: str = "restart") -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.client.agent_process",
        f"http://127.0.0.1:{served.port}",
        name,
        on_crash,
        stdout=PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
async def test_an_agent_that_is_killed_is_seen_to_be_gone_and_another_takes_over(on_crash: str) -> None:
    hub = new_hub()
    async with serving(hub) as served, agent_process(served, "first", on_crash) as first:
        await served.until(lambda: hub.desk.has_agent("chat:1"))
        asked = await hub.create("chat:1", text="?")
        assert first.stdout is not None
        async with asyncio.timeout(20):
            assert await first.stdout.readline() == b"working\n"
        async with agent_process(served, "second", on_crash):
            await served.until(lambda: hub.desk.stats()["agents"] == 2)
            killed_s = time.monotonic()
            first.send_signal(signal.SIGKILL)
            message_id = reply_id(asked.id, 1)
            async with asyncio.timeout(20):
                async for event in hub.subscribe("chat:1"):
                    is_it = event.__struct_config__.tag == "message.finish" and event.id == message_id
                    if is_it:
                        break
            assert time.monotonic() - killed_s < 6
            assert event.status == "interrupted"
            found = await until_answered(hub, 1 if on_crash == "continue" else 2)
            texts = [(one.text, one.status) for one in found]
            while on_crash == "continue" and texts[0][1] != "complete":
                await asyncio.sleep(0.05)
                texts = [(one.text, one.status) for one in await answers(hub)]
            assert (
                texts
                == {
                    "restart": [("half ", "interrupted"), ("whole", "complete")],
                    "continue": [("half whole", "complete")],
                }[on_crash]
            )
            assert [one.id for one in (await hub.members("chat:1")).members] == ["second"]


async def test_an_agent_that_leaves_leaves_its_answer_interrupted_for_another(hub: Hub, wire: Wire) -> None:
    begun = asyncio.Event()
    first, second = client_of(wire, client_id="first"), client_of(wire, client_id="second")

    @first.agent("chat:*")
    async def half(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("half ")
            begun.set()
            await asyncio.Event().wait()

    @second.agent("chat:*", on_crash="continue")
    async def whole(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("whole")

    async with working(first):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        asked = await hub.create("chat:1", text="?")
        async with asyncio.timeout(10):
            await begun.wait()
    message, _ = await hub.read("chat:1", reply_id(asked.id, 1))
    assert (message.text, message.status) == ("half ", "streaming")  # nobody asked for its end: its lease runs out
    async with working(second), asyncio.timeout(20):
        async for event in hub.subscribe("chat:1"):
            if event.__struct_config__.tag == "message.finish" and event.status == "complete":
                break
    assert [(one.text, one.status) for one in await answers(hub)] == [("half whole", "complete")]


@pytest.mark.parametrize("code", ["already_answered", "forbidden"])
async def test_a_steer_that_cannot_be_answered_harms_no_turn(hub: Hub, wire: Wire, code: str) -> None:
    """It had expired, say; or the agent may not answer commands."""
    got: list[str] = []
    begun, steered = asyncio.Event(), asyncio.Event()
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("on")
            begun.set()
            await steered.wait()
            for _ in range(2):
                got.extend(steer.text for steer in await turn.steered())

    async with working(client), asyncio.timeout(10):
        await becomes(lambda: hub.desk.has_agent("chat:1"))
        asked = await hub.create("chat:1", text="?")
        await begun.wait()
        wire.refuse = lambda frame: code if frame["type"] == "reply" else None
        await hub.command("chat:1", "steer", target=asked.id, data="shorter")
        await becomes(lambda: bool(client.channel("chat:1").commands))
        steered.set()
        (answer,) = await until_answered(hub)
    assert (answer.status, got) == ("complete", ["shorter"] if code == "forbidden" else [])
