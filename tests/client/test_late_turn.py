"""Turns of agents that did not run for a while, or had no connection.

Layer: tests. In virtual time.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from tenuto.agents.turn import Turn
from tenuto.client import Client, Timing
from tests.client.test_agents import answers, virtual_hub, working
from tests.client.wire import Wire, becomes, client_of
from tests.virtual import virtually

# a client that sleeps: no time limit of its own ends a connection
SLEEPY = Timing(silence_s=1000.0, response_s=1000.0, send_s=1000.0)


def drowsy(wire: Wire, awake: asyncio.Event) -> Any:
    """Dials as `wire` does, but reads and sends only while `awake`."""

    async def dial(url: str, headers: dict[str, str]) -> Any:
        line = await wire(url, headers)
        receive, send = line.receive, line.send

        async def late_receive() -> str:
            frame = await receive()
            await awake.wait()
            return frame

        async def late_send(text: str) -> None:
            await awake.wait()
            await send(text)

        line.receive, line.send = late_receive, late_send  # type: ignore[method-assign]
        return line

    return dial


@virtually
async def test_agent_that_slept_begins_no_turn_of_another_worker() -> None:
    awake = asyncio.Event()
    awake.set()
    async with virtual_hub() as (hub, wire):

        def serve(name: str, words: int, **options: Any) -> Client:
            client = client_of(wire, client_id=name, **options)

            @client.agent("chat:*", slots=words)
            async def bot(turn: Turn) -> None:
                async with turn.reply() as message:
                    for _ in range(words):
                        await message.append(".")
                        await asyncio.sleep(1)

            return client

        async with (
            working(serve("sleeper", 1000, dial=drowsy(wire, awake), timing=SLEEPY)),
            working(serve("other", 20)),
        ):
            await asyncio.sleep(1)
            await hub.create("chat:1", text="?")
            await asyncio.sleep(4.9)  # its last frame was long ago, and its next is due
            awake.clear()
            for _ in range(60):
                await asyncio.sleep(1)
                if [len(one.text) for one in await answers(hub)] == [10]:  # the other one writes the answer anew
                    break
            awake.set()
            await asyncio.sleep(60)
        found = [(one.author, len(one.text), one.status) for one in await answers(hub)]
        assert found == [("sleeper", 20, "complete")]


@pytest.mark.parametrize("seed", range(20))
@virtually
async def test_a_cut_soon_after_an_outage_costs_no_turn(seed: int) -> None:
    attempts: list[int] = []
    is_away = False
    async with virtual_hub() as (hub, wire):

        async def dial(url: str, headers: dict[str, str]) -> Any:
            if is_away:
                raise OSError("no view is open")
            return await wire(url, headers)

        client = client_of(wire, client_id="bot", dial=dial, timing=Timing(), random=Random(seed))

        @client.agent("chat:*")
        async def bot(turn: Turn) -> None:
            attempts.append(turn.attempt)
            async with turn.reply() as message:
                for _ in range(12):
                    await message.append(".")
                    await asyncio.sleep(1)

        async with working(client):
            await asyncio.sleep(6)
            is_away = True
            wire.cut()
            await asyncio.sleep(4)
            is_away = False
            await becomes(lambda: hub.runtime.scheduler.stats()["agents"] == 1)
            await hub.create("chat:1", text="?")
            await asyncio.sleep(2)
            wire.cut()
            await asyncio.sleep(60)
        assert [one.status for one in await answers(hub)] == ["complete"]
        assert attempts == [1]
