"""Agents in other processes, at the nodes of one store, in virtual time (docs/protocol.md, 8.5)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto.app import Hub
from tenuto.transports.codec import DRAINED
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.test_shared_turns import started
from tests.transports.lines import LiveLine as Line
from tests.virtual import virtually

CHANNEL = "chat:1"


async def asked(person: Line, agent: Line) -> dict[str, Any]:
    """Send a message; return the fields that name the turn, which `agent` gets."""
    await person.ask("create", channel=CHANNEL, text="hello")
    turn = await agent.turn()
    return {"channel": CHANNEL, "message": turn["message"]["id"], "generation": turn["generation"]}


def has_turn(agent: Line) -> bool:
    return any(frame["type"] == "turn" for frame in agent.frames)


async def worker(hub: Hub, name: str) -> Line:
    """Return the socket of an agent that takes turns."""
    agent = Line(hub, name)
    await agent.ask("work", pattern="chat:*")
    return agent


@pytest.mark.parametrize("is_closed_by_server", [False, True])
@virtually
async def test_socket_that_ends_while_a_renewal_is_stored_has_three_seconds_or_all_its_lease(
    is_closed_by_server: bool,
) -> None:
    store = Shared()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await started(here, there)
    agent, person = await worker(here, "bot1"), Line(here, "ann")
    about = await asked(person, agent)
    other = await worker(here, "bot2")
    commit = store.commit

    async def slow(*writes: Any) -> Any:
        await asyncio.sleep(0.1)
        return await commit(*writes)

    store.commit = slow  # type: ignore[method-assign, assignment]
    agent.request("turn.renew", ref=0, **about)
    await agent.cut(DRAINED if is_closed_by_server else 1006)
    await asyncio.sleep(3.5)
    assert has_turn(other) != is_closed_by_server


@virtually
async def test_socket_of_several_agents_continues_the_turn_of_each_at_a_node_without_its_channel() -> None:
    store = Shared()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await started(here, there)
    first, person = Line(here, "bot"), Line(here, "ann")
    await first.ask("work", pattern="chat:*", name="bot~two")
    about = await asked(person, first)
    await first.cut()
    again = Line(there, "bot")
    for name in ("bot~one", "bot~two"):
        await again.ask("work", pattern="chat:*", name=name)
    assert (await again.ask("turn.renew", **about))["type"] == "ok"
    assert (await again.ask("turn.done", **about))["type"] == "ok"


@pytest.mark.parametrize("how", ["gives it back", "gives it back while it renews it", "is cut off", "is abandoned"])
@virtually
async def test_turn_of_an_agent_that_gives_it_back_or_is_gone_goes_to_an_agent_of_another_node(how: str) -> None:
    """Its socket has broken for three seconds, or the supervisor of its process knows that it is gone."""
    store = Shared()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await started(here, there)
    agent, person = await worker(here, "bot1"), Line(here, "ann")
    about = await asked(person, agent)
    far = await worker(there, "bot2")
    await asyncio.sleep(2.0)  # the first node learns of it
    if how.startswith("gives it back"):
        await agent.ask("work", pattern="chat:*", slots=0)
        if how.endswith("renews it"):
            agent.request("turn.renew", ref=0, **about)  # is being stored when the agent gives the turn back
        assert (await agent.ask("turn.done", **about, state="lost"))["type"] == "ok"
    else:
        await agent.cut()
    if how == "is abandoned":
        here.runtime.scheduler.abandon("bot1")
    await asyncio.sleep(4.5 if how == "is cut off" else 1.5)
    assert has_turn(far)
    if how.startswith("gives it back"):
        assert (await agent.ask("turn.renew", **about))["type"] == "error"
    assert (await far.ask("turn.done", **{**about, "generation": 2}))["type"] == "ok"
