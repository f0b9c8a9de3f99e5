"""The shutdown of a process with agents: answers get time to complete, and another worker takes over the others."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator

import pytest

from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.client import Client
from tenuto.client.work import Signals
from tenuto.core.turns import reply_id
from tests.client.test_agents import answers, until_answered
from tests.client.wire import Wire, becomes, client_of
from tests.processes import python
from tests.transports.conftest import Served, new_hub, serving

AT_ONCE_S = 20.0  # less than the wait for an answer, and long for an interpreter that ends on a busy machine


@contextlib.asynccontextmanager
async def at_work(drain_s: float, text: str = "?") -> AsyncIterator[tuple[Hub, Served, Process, str]]:
    """Yield a hub, its server, the process of an agent that has begun an answer, and the id of the user message."""
    hub, program = new_hub(), ["-m", "tests.client.agent_process"]
    async with serving(hub) as served, python(*program, f"http://127.0.0.1:{served.port}", str(drain_s)) as process:
        await served.until(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
        asked = await hub.create("chat:1", text=text)
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"working\n"
        yield hub, served, process, asked.id


async def test_process_finishes_its_answer_after_a_signal_and_takes_no_other() -> None:
    async with at_work(drain_s=30.0) as (hub, served, process, asked), asyncio.timeout(60):
        process.send_signal(signal.SIGTERM)
        await served.until(lambda: not hub.runtime.scheduler.workers.has_agent("chat:1"))
        await hub.create("chat:2", text="and I?")
        await hub.command("chat:1", "steer", target=asked, data="go on")
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.status) == ("half and the rest", "complete")
        # the process ends by the signal as it would without the client, but later
        assert await process.wait() == -signal.SIGTERM
        assert (await answers(hub, "chat:2")) == []
        stats = hub.stats()
        assert (stats["turns_waiting"], stats["turns_running"]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "drain_s", "signals"),
    [("?", 0.2, [signal.SIGTERM]), ("approve", 50.0, [signal.SIGTERM]), ("?", 30.0, [signal.SIGINT, signal.SIGTERM])],
    ids=["does not end in time", "only waits", "a second signal"],
)
async def test_answer_is_left_to_another_worker_now(text: str, drain_s: float, signals: list[signal.Signals]) -> None:
    async with at_work(drain_s, text) as (hub, served, process, _), asyncio.timeout(60):
        channel, scheduler = hub.channel("chat:1"), hub.runtime.scheduler
        await served.until(lambda: text == "?" or list(channel.state.pending_commands()))
        for number in signals:
            await served.until(lambda: number == signals[0] or not scheduler.workers.has_agent("chat:1"))  # noqa: B023
            begun_s = time.monotonic()
            process.send_signal(number)
        assert await process.wait() == -signals[0]
        assert time.monotonic() - begun_s < AT_ONCE_S
        (answer,) = await until_answered(hub)
        assert (answer.text, answer.status) == ("half ", "interrupted")
        await served.until(lambda: scheduler.stats()["turns_waiting"] == 1)


async def test_draining_ends_with_its_turns_although_the_connection_breaks(hub: Hub, wire: Wire) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    turns, client = list[str](), client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        turns.append(turn.text)
        async with turn.reply() as message:
            begun.set()
            await go_on.wait()
            await message.append("whole")

    async with asyncio.timeout(60):
        running = asyncio.ensure_future(client.run(drain_s=None))
        await becomes(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
        await hub.create("chat:1", text="first")
        await begun.wait()
        client.drain()
        wire.cut()
        await becomes(lambda: wire.dials == 2 and client.is_connected)
        await becomes(lambda: not hub.runtime.scheduler.workers.has_agent("chat:1"))
        await hub.create("chat:1", text="second")
        wire.cut()  # the rest of its text, and the end of its turn, come after one more connection
        go_on.set()
        await running
    (answer,) = await answers(hub)
    assert (answer.text, answer.status, turns) == ("whole", "complete", ["first"])
    assert answer.id == reply_id((await hub.history("chat:1")).messages[-1].id, 1)
    assert (hub.runtime.scheduler.stats()["turns_waiting"], hub.runtime.scheduler.stats()["turns_running"]) == (1, 0)


async def test_draining_without_a_turn_or_a_connection_ends_at_once(hub: Hub, wire: Wire) -> None:
    client = client_of(wire, client_id="bot")

    @client.agent("chat:*")
    async def bot(turn: Turn) -> None:
        raise AssertionError

    async with asyncio.timeout(60):
        running = asyncio.ensure_future(client.run())
        await becomes(lambda: hub.runtime.scheduler.workers.has_agent("chat:1"))
        client.drain()
        await running
    away = Client("http://127.0.0.1:1")
    away.agent("chat:*")(bot)
    async with asyncio.timeout(60):
        running = asyncio.ensure_future(away.run())
        await asyncio.sleep(0)
        away.drain()
        await running


@pytest.fixture
def received() -> Iterator[list[str]]:
    """Yield the list of signals that the app's own handler of SIGTERM has received."""
    received: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append("app"))
    yield received
    signal.signal(signal.SIGTERM, before)


async def test_signal_is_passed_on_to_the_apps_handler_at_the_end(received: list[str]) -> None:
    notified, again = asyncio.Event(), asyncio.Event()
    with Signals(first=notified.set, again=again.set):
        signal.raise_signal(signal.SIGTERM)
        await notified.wait()
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        await again.wait()
        assert received == []
        signal.raise_signal(signal.SIGTERM)  # a third signal is not handled by the client
        assert received == ["app"]
    assert received == ["app", "app"]
