"""Turns of several hubs on one store: a message finds the agent of another node, and is answered once.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from tenuto.agents.local import LocalBackend
from tenuto.agents.turn import Turn
from tenuto.app import Hub
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.core.ops import Create
from tenuto.hub.lifecycle import TIDY_S
from tenuto.hub.turns import scheduler as shared_turns
from tenuto.hub.turns.scheduler import LEASE_S, AssignedTurn
from tenuto.portal import Writer
from tenuto.stores.base import Changes, Committed, Conflict, Hold, Renewal, StoreReplaced, Write
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.test_turn_scheduler import Worker
from tests.virtual import virtually


async def started(*hubs: Hub) -> None:
    """Start `hubs`, and wait until each knows the others."""
    for hub in hubs:
        await hub.start()
    await asyncio.sleep(1.5)


async def say(hub: Hub, channel: str, message_id: str) -> None:
    await hub.create(channel, id=message_id, role="user", text="?")


async def answered(hub: Hub, channel: str, message_id: str, within_s: float) -> list[str]:
    """Return the status of the answers to a message, once its turn is over. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while (turn := await hub.turn(channel, message_id)).state in ("waiting", "running"):  # noqa: ASYNC110 - virtual
            await asyncio.sleep(0.05)
    return [one.status for one in turn.answers]


async def answer(turn: Turn) -> None:
    async with turn.reply() as message:
        await message.append("!")


class Remote(Worker):
    """A worker of another process with one slot, which the hub knows until the connection ends."""

    def __init__(self) -> None:
        super().__init__("bot")
        self.free = 1


class FailedOver(Shared):
    """A store that begins another life once, without its notes and holds."""

    is_replaced = False
    node = ""

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        if self.is_replaced:
            raise StoreReplaced("the store has failed over")
        self.node = node
        return await super().hold(node, term_ms, values)

    async def open(self) -> None:
        await super().open()
        if self.is_replaced:
            self.is_replaced = False
            await self.note(dict.fromkeys(await self.notes("")))
            await self.hold(self.node, 0, {})


@virtually
async def test_message_after_a_failover_that_lost_the_note_of_its_pattern_waits_for_the_agent() -> None:
    store, agent = FailedOver(), Remote()
    hub = new_hub(store, 1)
    await hub.start()
    hub.runtime.scheduler.register(Remote())
    await asyncio.sleep(0.1)
    noted = await store.notes("served/")
    assert list(noted) == ["served/chat:*"]
    run, begun = hub._run, asyncio.Event()
    assert run is not None
    store.is_replaced = True
    await asyncio.wait([run.main])
    hub.on_start(begun.set)
    await begun.wait()
    await say(hub, "chat:1", "q")
    assert (await hub.turn("chat:1", "q")).state == "waiting"
    assert await store.notes("served/") == noted
    hub.runtime.scheduler.register(agent)
    await asyncio.sleep(1.0)
    assert [turn.message_id for turn in agent.begun] == ["q"]


@virtually
async def test_agent_is_known_at_each_node_and_for_a_minute_after_it_has_left() -> None:
    here, there = (new_hub(store, number) for store in [Shared()] for number in (1, 2))
    await started(here, there)
    known = [hub.runtime.scheduler.workers.agents for hub in (here, there)]
    agent = Remote()
    there.runtime.scheduler.register(agent)
    for still in (True, True, False):
        await asyncio.sleep(2.5 if still else 62.5)
        assert [one("chat:1") for one in known] == [{"bot": "chat:*"} if still else {}] * 2
        assert [one("room:1") for one in known] == [{}, {}]
        there.runtime.scheduler.unregister(agent, is_broken=True)  # the second time it has left before


@virtually
async def test_note_of_a_pattern_is_removed_after_a_day_unless_another_node_has_stored_a_later_one() -> None:
    store = Shared()
    hub = new_hub(store, 1)
    await store.note({"served/old": b"1", "served/new": b"1"})
    await hub.start()
    await store.note({"served/new": b"%d" % hub.clock.now_ms()})
    await asyncio.sleep(TIDY_S + 1)
    assert list(await store.notes("served/")) == ["served/new"]


@virtually
async def test_hub_whose_restart_was_cancelled_starts_on_its_next_use_and_notices_the_next_failover() -> None:
    store, draining = FailedOver(), asyncio.Event()
    hub = new_hub(store, 1)

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            draining.set()
            await asyncio.sleep(1.0)

    await hub.start()
    hub.start_task(slow_to_end())
    store.is_replaced = True
    await draining.wait()
    restarting = hub._restarting
    assert restarting is not None
    assert hub._run is not None
    restarting.cancel()
    await asyncio.wait([restarting, hub._run.main])
    await hub.create("chat:1", id="m", text="hi")
    store.is_replaced = True
    ended, _ = await asyncio.wait([hub._run.main], timeout=10.0)
    assert len(ended) == 1


@virtually
async def test_handler_that_does_not_begin_leaves_the_answer_that_it_has_taken_over_to_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, take_over = Shared(), LocalBackend.take_over
    there, here = new_hub(store, 1), new_hub(store, 2)

    @there.agent("*", name="bot")
    async def begin(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("ab")
            await asyncio.sleep(3600.0)

    async def late(self: LocalBackend, channel: str, message_id: str) -> Writer:
        writer = await take_over(self, channel, message_id)
        monkeypatch.undo()
        store.refused = here.runtime.node
        await asyncio.sleep(4.5)
        store.refused = ""
        return writer

    @here.agent("*", name="bot", on_crash="continue")
    async def end(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("cd")

    await there.start()
    await say(there, "c", "q")
    await asyncio.sleep(1.0)
    await there.close()
    monkeypatch.setattr(LocalBackend, "take_over", late)
    await here.start()
    await answered(here, "c", "q", 60.0)
    await asyncio.sleep(60.0)
    answers = [one for one in (await here.history("c")).messages if one.role != "user"]
    assert [(one.status, one.text) for one in answers] == [("complete", "abcd")]


class Stalled(Shared):
    """A store that stores no answer of the node `refused` until `is_free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.is_free = asyncio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        begun = [entry.op for write in writes for entry in write.entries if isinstance(entry.op, Create)]
        if any(op.writer is not None and op.writer.node == self.refused for op in begun):
            await self.is_free.wait()
        return await super().commit(writes)


@virtually
@pytest.mark.parametrize("has_begun", [True, False])
async def test_answer_of_an_attempt_that_its_node_has_lost_goes_on_and_is_not_cancelled(has_begun: bool) -> None:
    store = Stalled()
    hub = new_hub(store, 1)

    @hub.agent("*", name="bot")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(str(turn.attempt))
            await asyncio.sleep(0.0 if turn.attempt == 2 else 60.0)

    await started(hub)
    if not has_begun:
        store.refused = hub.runtime.node
    await say(hub, "c", "q")
    await asyncio.sleep(0.5)
    store.refused = ""
    ((_, turn),) = hub.runtime.scheduler.where(lambda _: True, "c")
    hub.runtime.scheduler.lose("c", turn)
    store.is_free.set()
    assert await answered(hub, "c", "q", 3.0) == ["complete"]


@pytest.mark.parametrize("error", [StoreUnusable("it is damaged"), StoreUnavailable("too slow"), OSError("a mistake")])
@virtually
async def test_channel_that_cannot_be_read_holds_up_no_turn_of_another(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, release = Shared(), asyncio.Event()
    here, there, changes = new_hub(store, 1), new_hub(store, 2), store.changes

    async def damaged(channel: str, *, after: int, limit: int) -> Changes:
        if channel == "bad":
            raise error
        return await changes(channel, after=after, limit=limit)

    @there.agent("*", name="bot", slots=1)
    async def bot(turn: Turn) -> None:
        await release.wait()
        await answer(turn)

    await started(here, there)
    await say(there, "busy", "q")
    await say(here, "bad", "q")
    await say(here, "c", "q")
    monkeypatch.setattr(store, "changes", damaged)
    release.set()
    assert await answered(here, "c", "q", 2.5) == ["complete"]


@virtually
async def test_waiting_turns_that_no_agent_can_take_hide_no_other_from_the_other_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_turns, "SHOWN", 3)
    store = Shared()
    gone, here, there = (new_hub(store, number) for number in range(3))
    gone.agent("old:*", name="old")(answer)
    there.agent("new", name="bot")(answer)
    await started(gone, here, there)
    await gone.close()
    for number in range(3):
        await say(here, f"old:{number}", "q")
    await say(here, "new", "q")
    assert await answered(here, "new", "q", 2.5) == ["complete"]


@virtually
async def test_turn_of_a_worker_that_no_node_hears_of_is_over_when_another_agent_has_ended_it() -> None:
    store, worker = Shared(), Remote()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await started(here, there)
    here.runtime.scheduler.register(worker)
    await say(here, "chat:1", "q")
    await asyncio.sleep(1)
    there.agent("chat:*", name="other")(answer)
    for _ in range(20):  # the renewals reach this node's memory alone
        await asyncio.sleep(1)
        here.runtime.scheduler.renew(worker, AssignedTurn("chat:1", "q", 1))
    assert await answered(there, "chat:1", "q", 1) == ["complete"]
    here.runtime.scheduler.unregister(worker, is_broken=True)
    await there.close()
    await asyncio.sleep(LEASE_S)
    here.runtime.scheduler.register(again := Remote())
    await here.command("chat:1", "regenerate", target="q")
    await asyncio.sleep(1)
    assert [turn.message_id for turn in again.begun] == ["q"]


@virtually
async def test_turn_of_an_ended_node_gets_its_next_attempt_at_another_one() -> None:
    store, attempts = Shared(), list[int]()
    hubs = [new_hub(store, 1), new_hub(store, 2)]

    async def bot(turn: Turn) -> None:
        attempts.append(turn.attempt)
        await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    for hub in hubs:
        hub.agent("*", name="bot")(bot)
    await started(hubs[0])
    await say(hubs[0], "c", "q")
    await started(hubs[1])
    hubs[0].runtime.scheduler.end = lambda *_: None  # type: ignore[method-assign]
    await hubs[0].close()
    assert (await answered(hubs[1], "c", "q", 20.0), attempts) == ([], [1, 2])
