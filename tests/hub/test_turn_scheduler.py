"""The turn scheduler: who gets which turn, when something newer interrupts, and when it is tried no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast import Hub
from holdfast.agents.turn import Turn
from holdfast.core.decide_work import ATTEMPTS
from holdfast.core.errors import StoreUnavailable
from holdfast.core.limits import Limits
from holdfast.core.model import Message
from holdfast.core.ops import Claim, Command
from holdfast.hub.leases import BROKEN_S
from holdfast.hub.turns import LEASE_S
from holdfast.hub.workers import AssignedTurn, WhenBusy
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Write
from holdfast.stores.memory import MemoryStore
from tests.virtual import virtual_clock, virtually

CHANNEL = "chat:1"


def new_hub(store: Any = "memory://") -> Hub:
    return Hub(store, hooks_signals=False, drain_s=0.0, clock=virtual_clock())


class Worker:
    """Somebody elsewhere who takes turns and keeps what was said of them."""

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


async def asked(hub: Hub, worker: Worker, *message_ids: str) -> None:
    """The hub has started, the worker is there, and so much is asked, one after the other."""
    await hub.start()
    hub.runtime.scheduler.register(worker)
    for message_id in message_ids:
        await hub.create(CHANNEL, id=message_id, text="?")


async def answers(hub: Hub) -> list[Message]:
    """The answers in the channel, oldest first."""
    return [one for one in (await hub.history(CHANNEL)).messages[::-1] if one.role == "assistant"]


# -- what is newer -------------------------------------------------------------------------------------------------


@virtually
async def test_of_several_messages_close_together_only_the_newest_is_worked_on() -> None:
    hub = new_hub()
    await hub.start()
    worker = Worker(when_busy="interrupt")
    hub.runtime.scheduler.register(worker)
    for number in range(5):
        await hub.create(CHANNEL, id=f"m{number}", text="?")
    await asyncio.sleep(1)
    for turn in worker.begun:  # a worker ends what is cancelled
        if turn.message_id != "m4":
            hub.runtime.scheduler.end(worker, turn, "cancelled", lambda answer: None)
    await asyncio.sleep(10)
    assert [turn.message_id for turn in worker.begun] == ["m0", "m4"]
    state = hub.channel(CHANNEL).state
    ends = {one.id: one.claim.state for one in state.messages.values() if one.claim is not None}
    assert ends == {**dict.fromkeys(("m0", "m1", "m2", "m3"), "cancelled"), "m4": "taken"}
    cancels = [command.target for command in state.commands.values()]
    assert sorted(map(str, cancels)) == ["m0", "m1", "m2", "m3"]  # each was asked for once
    await hub.close()


@virtually
async def test_message_that_arrives_while_another_is_claimed_interrupts_it() -> None:
    hub = new_hub(Slow())
    await hub.start()
    worker = Worker(when_busy="interrupt")
    hub.runtime.scheduler.register(worker)

    async def later() -> None:
        await asyncio.sleep(0.025)  # decided in one batch with the claim of the first message
        await hub.create(CHANNEL, id="m1", text="?")

    await asyncio.gather(hub.create(CHANNEL, id="m0", text="?"), later())
    await asyncio.sleep(10)
    assert [command.target for command in hub.channel(CHANNEL).state.commands.values()] == ["m0"]
    assert [turn.message_id for turn in worker.begun] == ["m0", "m1"]
    await hub.close()


@virtually
async def test_messages_that_waited_for_an_agent_that_interrupts_are_cancelled_but_for_the_newest() -> None:
    hub = new_hub()
    await hub.start()
    serving = Worker("other")
    serving.free = 0  # it serves the channel and has no room
    hub.runtime.scheduler.register(serving)
    for number in range(3):
        await hub.create(CHANNEL, id=f"m{number}", text="?")
    worker = Worker(when_busy="interrupt")
    hub.runtime.scheduler.register(worker)
    await asyncio.sleep(10)
    assert [turn.message_id for turn in worker.begun] == ["m2"]
    await hub.close()


class Slow(MemoryStore):
    """A store that takes its time, so that what comes meanwhile is decided together."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        await asyncio.sleep(0.05)
        return await super().commit(writes)


class Failing(MemoryStore):
    """A store that cannot store the first commands."""

    failures = 3

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        if self.failures and any(isinstance(entry.op, Command) for write in writes for entry in write.entries):
            self.failures -= 1
            raise StoreUnavailable("not now")
        return await super().commit(writes)


@virtually
async def test_an_interruption_that_could_not_be_stored_is_asked_for_again() -> None:
    store = Failing()
    hub = new_hub(store)
    await hub.start()
    worker = Worker(when_busy="interrupt")
    hub.runtime.scheduler.register(worker)
    await hub.create(CHANNEL, id="m0", text="?")
    await asyncio.sleep(1)
    await hub.create(CHANNEL, id="m1", text="?")
    await asyncio.sleep(10)
    assert store.failures == 0
    assert [command.target for command in hub.channel(CHANNEL).state.commands.values()] == ["m0"]
    assert [turn.message_id for turn in worker.begun] == ["m0", "m1"]
    await hub.close()


@virtually
async def test_a_channel_full_of_commands_keeps_nobody_from_being_interrupted() -> None:
    hub = Hub("memory://", hooks_signals=False, drain_s=0.0, clock=virtual_clock(), limits=Limits(open_commands=1))
    await hub.start()
    worker = Worker(when_busy="interrupt")
    hub.runtime.scheduler.register(worker)
    await hub.create(CHANNEL, id="m0", text="?")
    await hub.command(CHANNEL, "approve", expires_s=3600)
    await hub.create(CHANNEL, id="m1", text="?")
    await asyncio.sleep(5)
    assert [turn.message_id for turn in worker.begun] == ["m0", "m1"]
    await hub.close()


# -- who has room --------------------------------------------------------------------------------------------------


@virtually
async def test_a_slot_that_a_refused_claim_gave_back_is_offered() -> None:
    hub = new_hub(Slow())
    await hub.start()
    worker = Worker()
    worker.free = 2
    hub.runtime.scheduler.register(worker)
    await hub.create("chat:1", id="m1", text="?")
    await asyncio.sleep(1)

    async def meanwhile() -> None:
        await asyncio.sleep(0.01)  # decided together, before the second slot's claim: its message is cancelled
        await asyncio.gather(hub.command("chat:2", "cancel", target="m2"), hub.create("chat:3", id="m3", text="?"))

    await asyncio.gather(hub.create("chat:2", id="m2", text="?"), meanwhile())
    await asyncio.sleep(1)
    assert [turn.message_id for turn in worker.begun] == ["m1", "m3"]
    assert worker.free == 0
    await hub.close()


@virtually
async def test_what_waited_behind_a_message_that_was_deleted_as_it_was_claimed_is_next() -> None:
    hub = new_hub(Slow())
    await hub.start()
    crowded = Worker("other")
    crowded.free = 0
    hub.runtime.scheduler.register(crowded)
    for message_id in ("m1", "m2"):
        await hub.create(CHANNEL, id=message_id, text="?")
    worker = Worker()  # with room for more than one, so that its slot is no news

    async def meanwhile() -> None:
        await asyncio.sleep(0.01)
        hub.runtime.scheduler.register(worker)
        await hub.delete(CHANNEL, "m1")  # decided together, after the claim

    await asyncio.gather(hub.create("elsewhere", text="?"), meanwhile())
    await asyncio.sleep(1)
    assert [turn.message_id for turn in worker.begun] == ["m2"]
    assert worker.free == 9
    await hub.close()


@virtually
async def test_what_waits_is_next_when_a_turn_ended_while_it_took_another_message_in() -> None:
    hub, worker = new_hub(Slow()), Worker()
    await asked(hub, worker, "m1", "m2", "m3")
    await asyncio.sleep(1)

    async def meanwhile() -> None:
        await asyncio.sleep(0.01)
        hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda answer: None)
        hub.runtime.scheduler.freed(worker)

    taken, _ = await asyncio.gather(hub.take_waiting(CHANNEL, "m2", "far"), meanwhile())
    assert taken
    await asyncio.sleep(1)
    assert [turn.message_id for turn in worker.begun] == ["m1", "m3"]
    await hub.close()


@virtually
async def test_a_worker_that_had_more_turns_than_room_is_offered_one_when_it_has_room() -> None:
    hub = new_hub()
    await hub.start()
    worker = Worker()
    worker.free = -1  # it was asked for anew with fewer slots than it has turns
    hub.runtime.scheduler.register(worker)
    for number in range(3):
        await hub.create(f"chat:{number}", id=f"m{number}", text="?")
    for begun in (0, 0, 1, 2):
        await asyncio.sleep(1)
        assert len(worker.begun) == begun
        hub.runtime.scheduler.freed(worker)
    await hub.close()


# -- what a running turn has taken in ----------------------------------------------------------------------------


async def claim_of(hub: Hub, message_id: str) -> tuple[str, int]:
    """How the turn of the message stands, and at which attempt."""
    claim = (await hub.runtime.message(CHANNEL, message_id)).claim  # no client is told of it
    assert claim is not None
    return claim.state, claim.generation


async def with_one_taken_in(hub: Hub, worker: Worker) -> None:
    """The worker has the turn of `m1`, and has taken `m2` into it."""
    await asked(hub, worker, "m1", "m2")
    await asyncio.sleep(0.1)
    assert await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")
    assert await claim_of(hub, "m2") == ("taken", 1)


@virtually
async def test_what_was_taken_in_ends_with_the_turn_that_has_it() -> None:
    hub, worker = new_hub(), Worker()
    await with_one_taken_in(hub, worker)
    await hub.create(CHANNEL, id="m3", text="?")
    for _ in range(10):  # the turn is renewed, and what it has with it
        await asyncio.sleep(LEASE_S / 2)
        assert hub.runtime.scheduler.renew(worker, worker.begun[0])
    assert await claim_of(hub, "m2") == ("taken", 1)
    assert hub.runtime.scheduler.stats()["turns_running"] == 1
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda answer: None)
    await asyncio.sleep(1)
    assert (await claim_of(hub, "m1"), await claim_of(hub, "m2")) == (("done", 1), ("done", 1))
    assert [turn.message_id for turn in worker.begun] == ["m1", "m3"]
    await hub.close()


@virtually
async def test_what_was_taken_in_is_cancelled_with_the_turn_that_has_it() -> None:
    hub, worker = new_hub(), Worker()
    await with_one_taken_in(hub, worker)
    await hub.command(CHANNEL, "cancel", target="m1")
    await asyncio.sleep(5)  # nobody says so, so the server does
    assert (await claim_of(hub, "m1"), await claim_of(hub, "m2")) == (("cancelled", 1), ("cancelled", 1))
    assert worker.over == [("m1", "cancelled")]
    await asyncio.sleep(60)
    assert len(worker.begun) == 1
    await hub.close()


@pytest.mark.parametrize("is_broken", [True, False], ids=["its socket broke", "it was not heard of"])
@virtually
async def test_what_was_taken_in_waits_again_when_the_worker_that_has_it_dies(is_broken: bool) -> None:
    hub, worker = new_hub(), Worker()
    await with_one_taken_in(hub, worker)
    successor = Worker()
    hub.runtime.scheduler.unregister(worker, is_broken=is_broken)
    hub.runtime.scheduler.register(successor)
    await asyncio.sleep(BROKEN_S + 1 if is_broken else LEASE_S + 1)
    assert [(turn.message_id, turn.generation) for turn in successor.begun] == [("m1", 2)]
    assert not await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")
    hub.runtime.scheduler.end(successor, successor.begun[0], "done", lambda answer: None)
    await asyncio.sleep(1)
    assert [(turn.message_id, turn.generation) for turn in successor.begun] == [("m1", 2), ("m2", 2)]
    await hub.close()


@pytest.mark.parametrize("is_there", [True, False], ids=["the worker goes on", "the worker is gone"])
@virtually
async def test_what_was_taken_in_is_known_after_a_restart_of_the_hub(is_there: bool) -> None:
    store = MemoryStore()
    hub, worker = new_hub(store), Worker()
    await with_one_taken_in(hub, worker)
    await hub.close()
    hub, successor = new_hub(store), Worker()
    await hub.start()
    hub.runtime.scheduler.register(successor)
    for _ in range(10 if is_there else 0):
        assert hub.runtime.scheduler.renew(successor, worker.begun[0])
        await asyncio.sleep(LEASE_S / 2)
    if is_there:
        assert await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")
        hub.runtime.scheduler.end(successor, worker.begun[0], "done", lambda answer: None)
        await asyncio.sleep(60)
        assert (successor.begun, await claim_of(hub, "m2")) == ([], ("done", 1))
    else:
        await asyncio.sleep(LEASE_S + 1)
        assert [turn.message_id for turn in successor.begun] == ["m1"]
        hub.runtime.scheduler.end(successor, successor.begun[0], "done", lambda answer: None)
        await asyncio.sleep(1)
        assert [turn.message_id for turn in successor.begun] == ["m1", "m2"]
    await hub.close()


@virtually
async def test_what_a_turn_in_this_process_had_taken_in_is_worked_on_after_a_crash() -> None:
    store = MemoryStore()
    heard: list[tuple[str, int, list[str]]] = []
    for _ in range(2):
        hub = new_hub(store)

        @hub.agent("chat:*", name="bot")
        async def bot(turn: Turn) -> None:
            await asyncio.sleep(1)
            heard.append((turn.message.id, turn.attempt, [one.text for one in await turn.steered()]))
            if turn.message.id == "m1" and turn.attempt == 1:
                await asyncio.sleep(1000)

        await hub.start()
        if not heard:
            await hub.create(CHANNEL, id="m1", text="first")
            await hub.create(CHANNEL, id="m2", text="second")
        await asyncio.sleep(20)
        states = await claim_of(hub, "m1"), await claim_of(hub, "m2")
        await hub.close()  # at once, with the turn as it is
        if len(heard) == 1:
            assert states == (("taken", 1), ("taken", 1))
    assert heard == [("m1", 1, ["second"]), ("m1", 2, []), ("m2", 2, [])]
    assert states == (("done", 2), ("done", 2))


@virtually
async def test_a_message_may_be_taken_in_twice_by_the_turn_that_has_it_and_by_no_other() -> None:
    hub, worker = new_hub(), Worker(when_busy="parallel")
    worker.free = 2
    await asked(hub, worker, "m1", "m2", "m3")
    await asyncio.sleep(1)
    assert await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")
    assert await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")  # its answer was lost
    assert not await hub.take_waiting(CHANNEL, "m3", "far", turn="m2")
    assert not await hub.take_waiting(CHANNEL, "m3", "far")  # whoever names no turn may be any
    assert not await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")  # a turn of its own
    assert not await hub.take_waiting(CHANNEL, "m3", "other", turn="m1")
    assert not await hub.take_waiting(CHANNEL, "m1", "far", turn="m1")
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda answer: None)
    await asyncio.sleep(1)
    assert (await claim_of(hub, "m3"), await claim_of(hub, "m2")) == (("done", 1), ("taken", 1))
    assert not await hub.take_waiting(CHANNEL, "m3", "far", turn="m1")
    await hub.close()


@virtually
async def test_what_a_turn_took_in_that_had_ended_already_waits_again() -> None:
    hub, worker = new_hub(Slow()), Worker()
    await asked(hub, worker, "m1", "m2")
    await asyncio.sleep(1)
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda answer: None)  # decided before
    await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")
    await asyncio.sleep(1)
    assert [(turn.message_id, turn.generation) for turn in worker.begun] == [("m1", 1), ("m2", 2)]
    await hub.close()


@virtually
async def test_what_a_turn_took_in_without_hearing_of_it_waits_again() -> None:
    hub, worker = new_hub(Slow()), Worker()
    await asked(hub, worker, "m1", "m2")
    await asyncio.sleep(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # it is stored a little later
            await hub.take_waiting(CHANNEL, "m2", "far", turn="m1")
    await asyncio.sleep(1)
    hub.runtime.scheduler.end(worker, worker.begun[0], "done", lambda answer: None)
    await asyncio.sleep(1)
    assert [(turn.message_id, turn.generation) for turn in worker.begun] == [("m1", 1), ("m2", 2)]
    await hub.close()


@virtually
async def test_what_was_taken_in_is_not_interrupted_by_itself() -> None:
    hub, worker = new_hub(), Worker(when_busy="interrupt")
    await with_one_taken_in(hub, worker)  # in the moment between the wish and the end
    await hub.create(CHANNEL, id="m3", text="?")
    await asyncio.sleep(5)
    assert [command.target for command in hub.channel(CHANNEL).state.commands.values()] == ["m1"]
    assert [turn.message_id for turn in worker.begun] == ["m1", "m3"]
    await hub.close()


# -- deleted channels ----------------------------------------------------------------------------------------------


@virtually
async def test_message_created_again_after_its_channel_was_deleted_waits_for_the_old_handler() -> None:
    hub = new_hub()
    loop, events = asyncio.get_running_loop(), list[tuple[str, str, float]]()

    @hub.agent("chat:*", name="bot", slots=2)
    async def bot(turn: Turn) -> None:
        events.append(("begins", turn.text, loop.time()))
        try:
            await asyncio.sleep(60 if turn.text == "old" else 1)
        finally:
            await asyncio.sleep(3)  # it cleans up
            events.append(("ends", turn.text, loop.time()))

    await hub.create(CHANNEL, id="m1", text="old")
    await asyncio.sleep(1)
    await hub.delete_channel(CHANNEL)
    await hub.create(CHANNEL, id="m1", text="new")
    await hub.create(CHANNEL, id="m2", text="other")  # it does not wait
    await asyncio.sleep(20)
    order = [(event, text) for event, text, _ in events if text != "other"]
    assert order == [("begins", "old"), ("ends", "old"), ("begins", "new"), ("ends", "new")]
    assert 2.9 < events[-1][2] - events[0][2] < 20
    assert (await claim_of(hub, "m1"), await claim_of(hub, "m2")) == (("done", 1), ("done", 1))
    assert hub.runtime.scheduler.stats() == {"agents": 1, "turns_waiting": 0, "turns_running": 0}
    await hub.close()


@pytest.mark.parametrize("is_done", [True, False], ids=["it sends turn.done", "its lease ends"])
@virtually
async def test_message_created_again_waits_for_a_worker_in_another_process(is_done: bool) -> None:
    hub, worker = new_hub(), Worker()
    await asked(hub, worker, "m1")
    await asyncio.sleep(1)
    await hub.delete_channel(CHANNEL)
    await hub.create(CHANNEL, id="m1", text="?")
    await asyncio.sleep(5)
    assert worker.over == [("m1", "cancelled")]
    assert not hub.runtime.scheduler.renew(worker, worker.begun[0])
    assert len(worker.begun) == 1
    if is_done:
        hub.runtime.scheduler.end(worker, worker.begun[0], "cancelled", lambda answer: None)
        await asyncio.sleep(1)
    else:
        await asyncio.sleep(LEASE_S)
    assert [turn.generation for turn in worker.begun] == [1, 1]
    await hub.close()


# -- what is tried no more -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [True, False], ids=["in its answer", "before its answer"])
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_a_message_whose_handler_takes_the_process_down_is_not_tried_for_ever(
    on_crash: Any, writes: bool
) -> None:
    store = MemoryStore()
    attempts: list[tuple[str, int]] = []
    for _ in range(ATTEMPTS + 3):
        hub = new_hub(store)

        @hub.agent("chat:*", name="bot", on_crash=on_crash)
        async def bot(turn: Turn) -> None:
            attempts.append((turn.message.id, turn.attempt))
            if turn.message.id != "poison":
                return
            if writes:
                async with turn.reply() as message:
                    await message.append("half ")
                    await message.flush()
                    await asyncio.sleep(1000)
            await asyncio.sleep(1000)

        await hub.start()
        if not attempts:
            await hub.create(CHANNEL, id="poison", text="?")
            await hub.create(CHANNEL, id="next", text="?")  # it waits behind the other
        await asyncio.sleep(20)
        found = await answers(hub)
        await hub.close()  # at once, with the turn as it is
    assert attempts == [*(("poison", attempt + 1) for attempt in range(ATTEMPTS)), ("next", 1)]
    *before, last = found
    assert (last.author, last.reply_to, last.status, last.reason, last.text) == (
        "bot",
        "poison",
        "failed",
        "crashed",
        "",
    )
    assert {one.status for one in before} <= {"interrupted"}
    assert len(before) == (0 if not writes else 1 if on_crash == "continue" else ATTEMPTS)


class Doubtful(MemoryStore):
    """A store that has its way with the commit that gives a turn up."""

    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.trouble = trouble
        self.troubled = asyncio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        ops = [entry.op for write in writes for entry in write.entries]
        if not self.trouble or not any(isinstance(op, Claim) and op.state == "done" for op in ops):
            return await super().commit(writes)
        trouble, self.trouble = self.trouble, ""
        self.troubled.set()
        if trouble == "refused":
            raise StoreUnavailable("not now")
        if trouble != "lost":
            await super().commit(writes)
        if trouble == "hangs":
            await asyncio.sleep(1000)
        raise CommitUnknown("who knows")


@pytest.mark.parametrize("trouble", ["refused", "lost", "stored", "hangs"])
@pytest.mark.parametrize("is_crash", [False, True], ids=["goes on", "crashes"])
@virtually
async def test_a_message_is_given_up_once_whatever_becomes_of_the_commit(trouble: str, is_crash: bool) -> None:
    store = Doubtful("")
    hub = new_hub(store)
    await hub.start()
    worker = Worker()
    hub.runtime.scheduler.register(worker)
    await hub.create(CHANNEL, id="poison", text="?")
    for _ in range(ATTEMPTS):
        await asyncio.sleep(LEASE_S + 1)
        store.trouble = trouble if len(worker.begun) == ATTEMPTS else ""
    async with asyncio.timeout(60):
        await store.troubled.wait()
    if is_crash:
        await hub.close()
        hub = new_hub(store)
        await hub.start()
        hub.runtime.scheduler.register(Worker())
    await asyncio.sleep(120)
    assert [(one.status, one.reason) for one in await answers(hub)] == [("failed", "crashed")]
    claim = (await hub.runtime.message(CHANNEL, "poison")).claim  # no client is told of it
    assert claim is not None
    assert (claim.state, claim.generation) == ("done", ATTEMPTS)
    assert hub.runtime.scheduler.stats()["turns_waiting"] == hub.runtime.scheduler.stats()["turns_running"] == 0
    await hub.close()


@virtually
async def test_a_worker_elsewhere_that_dies_of_a_message_is_not_given_it_for_ever() -> None:
    hub = new_hub()
    await hub.start()
    lives: list[Worker] = []
    for number in range(ATTEMPTS + 2):
        lives.append(Worker())
        hub.runtime.scheduler.register(lives[-1])
        if not number:
            await hub.create(CHANNEL, id="poison", text="?")
        await asyncio.sleep(1)
        hub.runtime.scheduler.unregister(lives[-1], is_broken=True)
        await asyncio.sleep(60)
    assert [[turn.generation for turn in life.begun] for life in lives] == [
        *([attempt + 1] for attempt in range(ATTEMPTS)),
        [],
        [],
    ]
    assert [(one.author, one.status, one.reason) for one in await answers(hub)] == [("far", "failed", "crashed")]
    await hub.close()


@virtually
async def test_a_message_that_had_its_attempts_waits_until_somebody_is_there() -> None:
    hub = new_hub()
    await hub.start()
    for number in range(ATTEMPTS):
        worker = Worker()
        hub.runtime.scheduler.register(worker)
        if not number:
            await hub.create(CHANNEL, id="poison", text="?")
        await asyncio.sleep(1)
        hub.runtime.scheduler.unregister(worker, is_broken=True)
        await asyncio.sleep(BROKEN_S + 1)
    assert hub.runtime.scheduler.stats()["turns_waiting"] == 1
    assert await answers(hub) == []
    hub.runtime.scheduler.register(Worker())
    await asyncio.sleep(1)
    assert [one.status for one in await answers(hub)] == ["failed"]
    await hub.close()


@virtually
async def test_what_waited_behind_a_message_that_is_given_up_is_next() -> None:
    hub = new_hub()
    await hub.start()
    worker = Worker()
    hub.runtime.scheduler.register(worker)
    for message_id in ("poison", "next"):
        await hub.create(CHANNEL, id=message_id, text="?")
    await asyncio.sleep(ATTEMPTS * LEASE_S + 1)  # it renews nothing
    assert [(turn.message_id, turn.generation) for turn in worker.begun] == [
        *(("poison", attempt) for attempt in range(1, ATTEMPTS + 1)),
        ("next", 1),
    ]
    await hub.close()


# -- who is seen ---------------------------------------------------------------------------------------------------


@virtually
async def test_an_agent_whose_socket_broke_is_seen_for_a_while_longer() -> None:
    hub = new_hub()
    await hub.start()
    first, second = Worker(), Worker()
    hub.runtime.scheduler.register(first)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.runtime.scheduler.unregister(first, is_broken=True)
    await asyncio.sleep(BROKEN_S - 0.1)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.runtime.scheduler.register(second)  # a blip
    await asyncio.sleep(60)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.runtime.scheduler.unregister(second, is_broken=True)
    await asyncio.sleep(BROKEN_S + 0.1)
    assert (await hub.members(CHANNEL)).members == []
    third = Worker()
    hub.runtime.scheduler.register(third)
    hub.runtime.scheduler.unregister(third)  # of its own will: at once
    assert (await hub.members(CHANNEL)).members == []
    await hub.close()
