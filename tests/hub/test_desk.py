"""The desk: who gets which turn, when something newer interrupts, and when it is tried no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast import Hub
from holdfast.agents.turn import Turn
from holdfast.core.errors import StoreUnavailable
from holdfast.core.model import Message
from holdfast.core.ops import Claim
from holdfast.hub import desk
from holdfast.hub.desk import ATTEMPTS, BROKEN_S, LEASE_S
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Write
from holdfast.stores.memory import MemoryStore
from tests.virtual import virtual_clock, virtually

CHANNEL = "chat:1"


def new_hub(store: Any = "memory://") -> Hub:
    return Hub(store, hooks_signals=False, drain_s=0.0, clock=virtual_clock())


class Worker:
    """Somebody elsewhere who takes turns and keeps what was said of them."""

    is_local = False

    def __init__(self, name: str = "far", when_busy: desk.WhenBusy = "queue") -> None:
        self.name = name
        self.pattern = "chat:*"
        self.when_busy = when_busy
        self.free = 10
        self.begun: list[desk.Turn] = []
        self.over: list[tuple[str, str]] = []

    def begin(self, turn: desk.Turn) -> None:
        self.begun.append(turn)

    def ended(self, turn: desk.Turn, state: str) -> None:
        self.over.append((turn.message_id, state))


async def answers(hub: Hub) -> list[Message]:
    """The answers in the channel, oldest first."""
    return [one for one in (await hub.history(CHANNEL)).messages[::-1] if one.role == "assistant"]


# -- what is newer -------------------------------------------------------------------------------------------------


@virtually
async def test_of_several_messages_close_together_only_the_newest_is_worked_on() -> None:
    hub = new_hub()
    await hub.start()
    worker = Worker(when_busy="interrupt")
    hub.desk.register(worker)
    for number in range(5):
        await hub.create(CHANNEL, id=f"m{number}", text="?")
    await asyncio.sleep(1)
    for turn in worker.begun:  # a worker ends what is cancelled
        if turn.message_id != "m4":
            hub.desk.end(worker, turn, "cancelled", lambda answer: None)
    await asyncio.sleep(10)
    assert [turn.message_id for turn in worker.begun] == ["m0", "m4"]
    state = hub.channel(CHANNEL).state
    ends = {one.id: one.claim.state for one in state.messages.values() if one.claim is not None}
    assert ends == {**dict.fromkeys(("m0", "m1", "m2", "m3"), "cancelled"), "m4": "taken"}
    cancels = [command.target for command in state.commands.values()]
    assert sorted(map(str, cancels)) == ["m0", "m1", "m2", "m3"]  # each was asked for once
    await hub.close()


@virtually
async def test_messages_that_waited_for_an_agent_that_interrupts_are_cancelled_but_for_the_newest() -> None:
    hub = new_hub()
    await hub.start()
    serving = Worker("other")
    serving.free = 0  # it serves the channel and has no room
    hub.desk.register(serving)
    for number in range(3):
        await hub.create(CHANNEL, id=f"m{number}", text="?")
    worker = Worker(when_busy="interrupt")
    hub.desk.register(worker)
    await asyncio.sleep(10)
    assert [turn.message_id for turn in worker.begun] == ["m2"]
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
    hub.desk.register(worker)
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
        hub.desk.register(Worker())
    await asyncio.sleep(120)
    assert [(one.status, one.reason) for one in await answers(hub)] == [("failed", "crashed")]
    claim = (await hub._message(CHANNEL, "poison")).claim  # no client is told of it
    assert claim is not None
    assert (claim.state, claim.generation) == ("done", ATTEMPTS)
    assert hub.desk.stats()["turns_waiting"] == hub.desk.stats()["turns_running"] == 0
    await hub.close()


@virtually
async def test_a_worker_elsewhere_that_dies_of_a_message_is_not_given_it_for_ever() -> None:
    hub = new_hub()
    await hub.start()
    lives: list[Worker] = []
    for number in range(ATTEMPTS + 2):
        lives.append(Worker())
        hub.desk.register(lives[-1])
        if not number:
            await hub.create(CHANNEL, id="poison", text="?")
        await asyncio.sleep(1)
        hub.desk.unregister(lives[-1], is_broken=True)
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
        hub.desk.register(worker)
        if not number:
            await hub.create(CHANNEL, id="poison", text="?")
        await asyncio.sleep(1)
        hub.desk.unregister(worker, is_broken=True)
        await asyncio.sleep(BROKEN_S + 1)
    assert hub.desk.stats()["turns_waiting"] == 1
    assert await answers(hub) == []
    hub.desk.register(Worker())
    await asyncio.sleep(1)
    assert [one.status for one in await answers(hub)] == ["failed"]
    await hub.close()


@virtually
async def test_what_waited_behind_a_message_that_is_given_up_is_next() -> None:
    hub = new_hub()
    await hub.start()
    worker = Worker()
    hub.desk.register(worker)
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
    hub.desk.register(first)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.desk.unregister(first, is_broken=True)
    await asyncio.sleep(BROKEN_S - 0.1)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.desk.register(second)  # a blip
    await asyncio.sleep(60)
    assert [one.id for one in (await hub.members(CHANNEL)).members] == ["far"]
    hub.desk.unregister(second, is_broken=True)
    await asyncio.sleep(BROKEN_S + 0.1)
    assert (await hub.members(CHANNEL)).members == []
    third = Worker()
    hub.desk.register(third)
    hub.desk.unregister(third)  # of its own will: at once
    assert (await hub.members(CHANNEL)).members == []
    await hub.close()
