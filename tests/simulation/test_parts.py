"""The simulator's own parts: time, processes, connections, the store, the stored, and a view's judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random

import pytest

from holdfast.core.document import document
from holdfast.core.draft import Draft
from holdfast.core.events import Batch, ChannelAttached, MessageAppend, MessageUpdate
from holdfast.core.limits import Limits
from holdfast.core.ops import Append, Claim, Create, Delete, Entry, Finish, Op, Reply, Takeover, Writer
from holdfast.core.state import ChannelState
from holdfast.stores.base import Committed, CommitUnknown, Conflict, Head, StoreUnavailable, Write
from oracle.responses import ViewOracle
from simulation.clock import Process, Stuck, VirtualLoop
from simulation.faults import FaultModel
from simulation.network import Pipe
from simulation.store import SimStore, StoreClient
from simulation.trace import Trace, Violation
from simulation.stored import GENERATION, StoredLogs, marks

HOUR_S = 3600.0


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    loop.close()


# Time and processes


def test_time_jumps_to_the_next_deadline(loop: VirtualLoop) -> None:
    async def nap() -> float:
        await asyncio.sleep(HOUR_S)
        return loop.time()

    assert loop.run_until_complete(nap()) == HOUR_S
    assert loop.steps < 10


def test_timers_of_one_deadline_run_in_the_order_they_were_made(loop: VirtualLoop) -> None:
    ran: list[int] = []

    async def main() -> None:
        for number in range(5):
            loop.call_at(1.0, ran.append, number)
        await asyncio.sleep(2.0)

    loop.run_until_complete(main())
    assert ran == [0, 1, 2, 3, 4]


def test_waiting_for_what_never_comes_is_noticed(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        loop.run_until_complete(main())


def test_a_loop_that_waits_for_nothing_is_noticed(loop: VirtualLoop) -> None:
    def again() -> None:
        loop.call_soon(again)

    async def main() -> None:
        again()
        await asyncio.sleep(1.0)

    with pytest.raises(Stuck):
        loop.run_until_complete(main())


def test_nothing_of_a_killed_process_runs_any_more(loop: VirtualLoop) -> None:
    process = Process("p")
    ran: list[str] = []

    async def job() -> None:
        try:
            while True:
                await asyncio.sleep(1.0)
                ran.append("step")
        finally:
            ran.append("finally")

    async def main() -> None:
        process.start(loop, job())
        await asyncio.sleep(2.5)
        process.is_held = True
        await asyncio.sleep(HOUR_S)

    loop.run_until_complete(main())
    assert ran == ["step", "step"]
    assert len(process.held) == 1


def test_what_a_process_begins_is_of_that_process(loop: VirtualLoop) -> None:
    process = Process("p")
    ran: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1.0)
        ran.append("child")

    async def parent() -> None:
        loop.call_later(1.0, ran.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    async def main() -> None:
        process.start(loop, parent())
        await asyncio.sleep(0.5)
        process.is_held = True
        await asyncio.sleep(1.0)
        assert ran == []
        loop.thaw(process)
        await asyncio.sleep(0.1)

    loop.run_until_complete(main())
    assert sorted(ran) == ["child", "timer"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_process_can_be_stopped_after_any_step(loop: VirtualLoop, steps: int) -> None:
    process = Process("p")
    ran: list[int] = []

    async def job() -> None:
        for number in range(100):
            ran.append(number)
            await asyncio.sleep(0)

    def stop() -> None:
        process.is_held = True

    async def main() -> None:
        process.start(loop, job())
        process.after_steps(steps, stop)
        await asyncio.sleep(1.0)

    loop.run_until_complete(main())
    assert len(ran) == steps


# Connections


def pipe(loop: VirtualLoop, **fault_model: object) -> Pipe[int]:
    """A pipe in this fault_model."""
    return Pipe(loop, FaultModel(**fault_model), Random(1))  # type: ignore[arg-type]


def test_what_is_sent_arrives_in_order_and_later(loop: VirtualLoop) -> None:
    async def main() -> tuple[list[int | None], float]:
        line = pipe(loop, latency_s=(0.1, 2.0))
        for number in range(20):
            line.put(number, 1)
        return [await line.take() for _ in range(20)], loop.time()

    taken, now_s = loop.run_until_complete(main())
    assert taken == list(range(20))
    assert now_s >= 0.1


def test_a_cut_loses_what_has_not_arrived(loop: VirtualLoop) -> None:
    async def main() -> list[int | None]:
        line = pipe(loop, latency_s=(1.0, 1.0))
        line.put(1, 1)
        await asyncio.sleep(0.5)
        line.put(2, 1)
        await asyncio.sleep(0.7)
        line.cut()
        return [await line.take(), await line.take()]

    assert loop.run_until_complete(main()) == [1, None]


def test_a_hole_swallows_and_tells_nobody(loop: VirtualLoop) -> None:
    async def main() -> None:
        line = pipe(loop)
        line.is_hole = True
        line.put(1, 1)
        async with asyncio.timeout(HOUR_S):
            await line.take()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(main())


def test_a_sender_waits_while_too_much_is_under_way(loop: VirtualLoop) -> None:
    async def main() -> list[bool]:
        line = pipe(loop, latency_s=(0.1, 0.1), room_bytes=10)
        line.put(1, 11)
        full = [line.is_full]
        waiting = loop.create_task(line.until_room())
        await asyncio.sleep(1.0)
        full.append(waiting.done())
        await line.take()
        await waiting
        return full

    assert loop.run_until_complete(main()) == [True, False]


# The store, and the stored


class Disk:
    """A store and what is true of it."""

    def __init__(self, loop: VirtualLoop, *, is_exclusive: bool = True, **fault_model: object) -> None:
        self.stored = StoredLogs(is_exclusive=is_exclusive)
        self.trace = Trace(loop)
        self.fault_model = FaultModel(**fault_model)  # type: ignore[arg-type]
        self.store = SimStore(loop, self.fault_model, self.stored, self.trace, is_exclusive=is_exclusive)

    def line(self) -> StoreClient:
        return self.store.connect(Process("p"), Random(1))


def write(state: ChannelState, *ops: Op, epoch: str = "e1") -> Write:
    """The write of a hub that stands at `state`."""
    draft = Draft(state)
    for op in ops:
        draft.add(op)
    ids = {op.id for op in ops if isinstance(op, Create)}
    documents = [document(message) for one in sorted(ids) if (message := draft.message(one)) is not None]
    return Write(channel="c", epoch=epoch, expected=state.serial, entries=draft.entries(), documents=documents)


def create(message_id: str, *, streaming: bool = True) -> Create:
    return Create(
        id=message_id,
        role="assistant",
        author=None,
        status="streaming" if streaming else "complete",
        parts=[{"type": "text", "text": "hi"}],
        meta={},
        parent=None,
        reply_to=None,
        at_ms=1,
        digest=b"",
    )


FIRST = write(ChannelState("c"), create("m"))


def test_what_the_store_takes_is_true_before_anybody_is_answered(loop: VirtualLoop) -> None:
    disk = Disk(loop, store_s=(1.0, 1.0))

    async def main() -> tuple[int, list[Committed | Conflict]]:
        call = loop.create_task(disk.line().commit([FIRST]))
        await asyncio.sleep(0.999)
        return disk.stored.head("c").serial, await call

    assert loop.run_until_complete(main()) == (1, [Committed(1)])


@pytest.mark.parametrize("seed", range(4))
def test_an_unclear_commit_is_stored_or_not(loop: VirtualLoop, seed: int) -> None:
    disk = Disk(loop, unknown_chance=1.0)
    line = disk.store.connect(Process("p"), Random(seed))
    with pytest.raises(CommitUnknown):
        loop.run_until_complete(line.commit([FIRST]))
    head = loop.run_until_complete(line.head("c"))
    assert head.serial == disk.stored.head("c").serial
    assert disk.trace.violation is None


def test_a_store_that_is_down_stores_nothing(loop: VirtualLoop) -> None:
    disk = Disk(loop, down_chance=1.0)
    with pytest.raises(StoreUnavailable):
        loop.run_until_complete(disk.line().commit([FIRST]))
    assert disk.stored.head("c").serial == 0


def test_what_was_on_its_way_to_an_embedded_store_is_done_or_lost_with_its_process(loop: VirtualLoop) -> None:
    disk = Disk(loop, store_s=(1.0, 1.0))
    line = disk.line()
    process = line._process

    async def main() -> None:
        process.start(loop, line.commit([FIRST]))
        await asyncio.sleep(0)
        process.is_alive, process.is_held = False, True
        line.process_died()
        serial = disk.stored.head("c").serial
        await asyncio.sleep(HOUR_S)
        assert disk.stored.head("c").serial == serial

    loop.run_until_complete(main())


def test_a_power_cut_takes_what_was_not_synced_and_begins_a_new_epoch(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    state = ChannelState("c", "e1", 1)
    disk.store.commit("p", [FIRST])
    disk.store.sync()
    disk.store.commit("p", [write(state, create("n"))])
    disk.store.power_cut()
    log = disk.stored.head("c")
    assert (log.epoch, log.serial) == ("cut1", 1)
    assert loop.run_until_complete(disk.line().head("c")) == Head("cut1", 1)
    assert [message.id for message in log.messages(1)] == ["m"]
    assert disk.stored.has_changed_epoch("c", 1)


BEFORE: tuple[Op, ...] = (create("m"), create("done", streaming=False))


@pytest.mark.parametrize(
    "op",
    [
        create("m"),
        Append(id="m", part=0, at=3, text="x"),
        Append(id="m", part=0, at=1, text="i!"),
        Append(id="m", part=1, at=0, text="x"),
        Append(id="done", part=0, at=2, text="x"),
        Append(id="nobody", part=0, at=0, text="x"),
        Finish(id="done", status="failed", reason=None, meta={}, at_ms=2),
        Takeover(id="m", generation=3, writer=Writer()),
        Delete(id="nobody"),
        Append(id="m", part=0, at=2, text=marks(2, 2, 1)),
        Append(id="m", part=0, at=2, text=marks(1, 3, 1)),
        Finish(id="m", status="complete", reason=None, meta={}, at_ms=2, request=f"r{GENERATION}2"),
        Claim(id="done", state="taken", generation=1),
        Reply(id="!nobody", ok=True, data=None, error=None, by=None),
    ],
    ids=lambda op: f"{type(op).__name__}-{op.id}",
)
def test_an_entry_that_no_rule_lets_through_is_a_violation(op: Op) -> None:
    stored = StoredLogs(is_exclusive=True)
    entries = [Entry(serial, one) for serial, one in enumerate((*BEFORE, op), 1)]
    with pytest.raises(Violation):
        stored.apply(Write(channel="c", epoch="e1", expected=0, entries=entries))


def test_a_hole_in_the_serials_is_a_violation() -> None:
    stored = StoredLogs(is_exclusive=True)
    with pytest.raises(Violation):
        stored.apply(Write(channel="c", epoch="e1", expected=0, entries=[Entry(2, create("m"))]))


def test_a_stored_document_that_is_not_the_fold_is_a_violation(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    other = write(ChannelState("c"), create("m"), Append(id="m", part=0, at=2, text="!"))
    wrong = Write(channel="c", epoch="e1", expected=0, entries=FIRST.entries, documents=other.documents)
    with pytest.raises(Violation):
        disk.store.commit("p", [wrong])


# A view's judge


@pytest.fixture
def oracle(loop: VirtualLoop) -> ViewOracle:
    """Somebody who watches a channel in which "hi", " you" and "!" were written."""
    disk = Disk(loop)
    disk.store.commit("p", [FIRST])
    for serial, (at, text) in enumerate(((2, " you"), (6, "!")), 1):
        entry = Entry(serial + 1, Append(id="m", part=0, at=at, text=text))
        disk.store.commit("p", [Write(channel="c", epoch="e1", expected=serial, entries=[entry])])
    return ViewOracle("ann", "c", disk.stored, disk.trace, Limits())


def attached(serial: int, *, resumed: bool = False) -> ChannelAttached:
    more, before = (None, None) if resumed else (False, 1)
    return ChannelAttached(channel="c", epoch="e1", serial=serial, resumed=resumed, more=more, before=before)


def whole(oracle: ViewOracle, serial: int) -> MessageUpdate:
    message = oracle._stored.head("c").at("m", serial)
    assert message is not None
    return MessageUpdate(serial=serial, message=message)


def more(serial: int, at: int, text: str) -> MessageAppend:
    return MessageAppend(serial=serial, id="m", part=0, at=at, text=text)


def test_a_view_that_shows_what_is_true_is_fine(oracle: ViewOracle) -> None:
    oracle.begin(None)
    oracle.receive(Batch(events=[attached(1), whole(oracle, 1)], cursor="e1:1"), 3)
    oracle.receive(Batch(events=[more(3, 2, " you!")], cursor="e1:3"), 3)
    assert oracle.is_settled


Tells = Callable[[ViewOracle], Batch]
LIES: dict[str, Tells] = {
    "not attached": lambda oracle: Batch(events=[whole(oracle, 1)], cursor="e1:1"),
    "an entry too many": lambda oracle: Batch(events=[attached(4), whole(oracle, 3)], cursor="e1:4"),
    "another epoch": lambda oracle: Batch(events=[attached(3), whole(oracle, 3)], cursor="e2:3"),
    "too little text": lambda oracle: Batch(events=[attached(3), whole(oracle, 2)], cursor="e1:3"),
    "a wrong label": lambda oracle: Batch(
        events=[attached(3), MessageUpdate(serial=2, message=whole(oracle, 3).message)], cursor="e1:3"
    ),
    "no message": lambda oracle: Batch(events=[attached(3)], cursor="e1:3"),
    "resumed from nothing": lambda oracle: Batch(events=[attached(3, resumed=True), whole(oracle, 3)], cursor="e1:3"),
}


@pytest.mark.parametrize("tells", LIES.values(), ids=LIES)
def test_a_first_batch_that_is_not_true_is_a_violation(oracle: ViewOracle, tells: Tells) -> None:
    oracle.begin(None)
    with pytest.raises(Violation):
        oracle.receive(tells(oracle), 3)


@pytest.mark.parametrize(
    "batch",
    [
        Batch(events=[more(3, 6, "!")], cursor="e1:3"),
        Batch(events=[more(3, 2, " me!")], cursor="e1:3"),
        Batch(events=[more(3, 2, " ")]),
        Batch(events=[more(2, 2, " you")], cursor="e1:3"),
    ],
    ids=["a gap", "other text", "not the text it had", "less than the cursor says"],
)
def test_a_batch_that_does_not_continue_the_view_is_a_violation(oracle: ViewOracle, batch: Batch) -> None:
    oracle.begin(None)
    oracle.receive(Batch(events=[attached(1), whole(oracle, 1)], cursor="e1:1"), 3)
    with pytest.raises(Violation):
        oracle.receive(batch, 3)
        oracle.receive(Batch(events=[], cursor="e1:3"), 3)


def test_what_was_sent_before_it_was_stored_is_a_violation_also_when_it_is_stored_by_now(oracle: ViewOracle) -> None:
    oracle.begin(None)
    with pytest.raises(Violation, match="before it was stored"):
        oracle.receive(Batch(events=[attached(3), whole(oracle, 3)], cursor="e1:3"), 2)


def test_going_back_is_a_violation_also_for_a_page_that_was_loaded_anew(oracle: ViewOracle) -> None:
    oracle.begin(None)
    oracle.receive(Batch(events=[attached(3), whole(oracle, 3)], cursor="e1:3"), 3)
    oracle.reload()
    oracle.begin(None)
    with pytest.raises(Violation, match="back to"):
        oracle.receive(Batch(events=[attached(2), whole(oracle, 2)], cursor="e1:2"), 3)


def test_a_new_start_where_little_was_missed_is_a_violation(oracle: ViewOracle) -> None:
    oracle.begin(None)
    oracle.receive(Batch(events=[attached(1), whole(oracle, 1)], cursor="e1:1"), 3)
    oracle.begin("e1:1")
    with pytest.raises(Violation, match="needless"):
        oracle.receive(Batch(events=[attached(3), whole(oracle, 3)], cursor="e1:3"), 3)
