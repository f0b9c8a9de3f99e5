"""The turn scheduler: it assigns turns to workers, interrupts them for newer messages, and limits attempts."""

from __future__ import annotations

import asyncio

import pytest

from tenuto import Hub
from tenuto.core.turns import ATTEMPTS, WhenBusy, reply_id
from tenuto.hub.turns.scheduler import LEASE_S, AssignedTurn
from tests.hub.hubs import new_hub
from tests.hub.test_commit_outcomes import ScriptedStore
from tests.virtual import virtually

CHANNEL = "chat:1"


class Worker:
    """A worker in another process. It notes the turns that begin and end."""

    is_local = False

    def __init__(self, name: str = "far", when_busy: WhenBusy = "queue") -> None:
        self.name = name
        self.pattern = "chat:*"
        self.when_busy = when_busy
        self.free = 10
        self.begun: list[AssignedTurn] = []
        self.over: list[tuple[str, str]] = []

    def begin(self, turn: AssignedTurn) -> None:
        self.begun.append(turn)

    def ended(self, turn: AssignedTurn, state: str) -> None:
        self.over.append((turn.message_id, state))


async def start_with_messages(hub: Hub, worker: Worker, *message_ids: str) -> None:
    """Start the hub, register the worker, and create these user messages one after the other."""
    await hub.start()
    hub.runtime.scheduler.register(worker)
    for message_id in message_ids:
        await hub.create(CHANNEL, id=message_id, text="?")


async def claim_of(hub: Hub, message_id: str) -> tuple[str, int]:
    """Return the state and the generation of the message's claim."""
    claim = (await hub.runtime.message(CHANNEL, message_id)).claim  # events to clients carry no claim
    assert claim is not None
    return claim.state, claim.generation


@virtually
async def test_message_may_be_taken_in_again_by_its_own_turn_only() -> None:
    hub, worker = new_hub(), Worker(when_busy="parallel")
    worker.free = 2
    await start_with_messages(hub, worker, "m1", "m2", "m3")
    await asyncio.sleep(1)
    assert await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")
    assert await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")  # a repeat after a lost result
    assert not await hub.take_waiting(CHANNEL, "m3", "far", turn="m2")
    assert not await hub.take_waiting(CHANNEL, "m3", "far")  # without a turn, the request may be of another turn
    assert not await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")  # `m2` has its own turn
    assert not await hub.take_waiting(CHANNEL, "m3", "other", turn="m1")
    assert not await hub.take_waiting(CHANNEL, "m1", "far", turn="m1")
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda result: None)
    await asyncio.sleep(1)
    assert (await claim_of(hub, "m3"), await claim_of(hub, "m2")) == (("done", 1), ("taken", 1))
    assert not await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")


@pytest.mark.parametrize("end", ["done", "lost"])
@virtually
async def test_message_that_is_taken_in_while_a_dead_agent_may_still_work_on_it_ends_with_its_host(end: str) -> None:
    hub, worker = new_hub(), Worker(when_busy="parallel")
    await start_with_messages(hub, worker, "m1", "m2")
    await hub.command(CHANNEL, "cancel", target="m1")  # its handler does not end: it has died
    await asyncio.sleep(3)
    await hub.command(CHANNEL, "regenerate", target="m1")
    _, host = worker.begun
    for _ in range(2):  # a repeat after a lost result
        assert await hub.take_waiting(CHANNEL, "m1", "far", turn="m2")
    if end == "done":
        hub.runtime.scheduler.end(worker, host, "done", lambda result: None)
        await asyncio.sleep(1)
        assert await claim_of(hub, "m1") == ("done", 129)
    else:
        hub.runtime.scheduler.left(worker, host)
        await asyncio.sleep(1)
        assert await claim_of(hub, "m1") == ("taken", 129)
        await asyncio.sleep(LEASE_S)  # in which the handler may still run
        assert await claim_of(hub, "m1") == ("taken", 130)


@virtually
async def test_message_that_a_turn_has_without_knowing_it_waits_for_a_turn_of_its_own() -> None:
    store, worker = ScriptedStore(), Worker()
    hub = new_hub(store)
    await start_with_messages(hub, worker, "m1", "m2")
    await asyncio.sleep(1)
    store.gate = asyncio.Event()
    taking = asyncio.ensure_future(hub.take_waiting(CHANNEL, "m2", "far", turn="m1"))
    await store.is_committing.wait()
    taking.cancel()  # for example because the handler waits for a limited time
    store.gate.set()
    await asyncio.sleep(1)
    assert await claim_of(hub, "m2") == ("taken", 1)  # the log has what the agent was not told
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda result: None)
    await asyncio.sleep(1)
    assert (await claim_of(hub, "m1"), await claim_of(hub, "m2")) == (("done", 1), ("taken", 2))
    assert [turn.message_id for turn in worker.begun] == ["m1", "m2"]


@virtually
async def test_message_that_a_lost_attempt_has_taken_in_is_offered_at_once() -> None:
    hub, worker = new_hub(), Worker(when_busy="parallel")
    worker.free = 1
    await start_with_messages(hub, worker, "m1", "m2")
    assert await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")
    await asyncio.sleep(1)
    worker.free = 2
    hub.runtime.scheduler.left(worker, worker.begun[0])
    await asyncio.sleep(1)
    assert [await claim_of(hub, one) for one in ("m1", "m2")] == [("taken", 2), ("taken", 2)]


@pytest.mark.parametrize(("broken_s", "waits_s"), [(1, 4), (5, 8)])
@virtually
async def test_answer_is_made_again_soon_after_the_death_of_the_agent_whose_turn_was_cancelled(
    broken_s: float, waits_s: float
) -> None:
    """The turn ends two seconds after the `cancel`, before or after the connection of the agent has broken."""
    hub, worker, other = new_hub(), Worker(), Worker("other")
    await start_with_messages(hub, worker, "m1")
    await hub.command(CHANNEL, "cancel", target="m1")
    await asyncio.sleep(broken_s)
    hub.runtime.scheduler.unregister(worker, is_broken=True)
    hub.runtime.scheduler.register(other)
    await asyncio.sleep(2)
    await hub.command(CHANNEL, "regenerate", target="m1")
    await asyncio.sleep(waits_s - broken_s - 2.1)
    assert await claim_of(hub, "m1") == ("pending", 128)
    await asyncio.sleep(0.2)
    assert (await claim_of(hub, "m1"), len(other.begun)) == (("taken", 129), 1)


@pytest.mark.parametrize("outcome", ["ok", "no", "lost", "kept"])
@virtually
async def test_turn_that_is_given_up_has_one_answer_whatever_the_commit(outcome: str) -> None:
    store, worker = ScriptedStore(), Worker()
    hub = new_hub(store)
    await start_with_messages(hub, worker, "poison", "next")
    poison = await hub.message(CHANNEL, id=reply_id("poison", 1), author="far", reply_to="poison").open()
    await poison.append("half")
    await asyncio.sleep(ATTEMPTS * LEASE_S - 1)
    store.script = [outcome]
    await asyncio.sleep(10)
    answers = [one for one in (await hub.history(CHANNEL)).messages if one.role == "assistant"]
    assert [(one.text, one.status, one.reason) for one in answers] == [("half", "failed", "crashed")]
    assert await claim_of(hub, "poison") == ("done", ATTEMPTS + 1)
    assert await claim_of(hub, "next") == ("taken", 1)
