"""The simulated store passes each write to the log, and fails in each way that a real one does.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from random import Random

import pytest
from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.log import StoredLogs
from proof.simulation.clock import Process, Trace, VirtualLoop
from proof.simulation.faults import FaultModel
from proof.simulation.store import SimStore, StoreClient
from tenuto.core.document import document
from tenuto.core.draft import Draft
from tenuto.core.events import kept_serial
from tenuto.core.ops import Append, Command, Create, Delete, Op, Reply
from tenuto.core.state import ChannelState, apply_entry
from tenuto.stores.base import (
    Committed,
    CommitUnknown,
    Conflict,
    Head,
    Hold,
    StoreReplaced,
    StoreUnavailable,
    Write,
    head_of,
)
from tests.oracle.entries import create

HOUR_S = 3600.0


class Disk:
    """A store, its log, and its faults."""

    def __init__(self, loop: VirtualLoop, *, seed: int = 0, **faults: object) -> None:
        self.stored = StoredLogs()
        self.trace = Trace(loop)
        model = FaultModel(**faults)  # type: ignore[arg-type]
        self.store = SimStore(loop, model, self.stored, self.trace, is_exclusive=True, seed=seed)

    def client(self, process: Process | None = None, seed: int = 1) -> StoreClient:
        return self.store.connect(process or Process("p"), Random(seed))


def write(state: ChannelState, *ops: Op, documents: Sequence[str] = ()) -> Write:
    """Return the write of a hub whose channel is at `state`. New messages and `documents` get a document."""
    draft = Draft(state)
    for op in ops:
        draft.add(op)
    ids = {op.id for op in ops if isinstance(op, Create)} | set(documents)
    made = [document(thing) for one in sorted(ids) if (thing := draft.thing(one)) is not None]
    return Write(channel="c", epoch="e1", expected=state.serial, entries=draft.entries(), documents=made)


FIRST = write(ChannelState("c"), create("m"))


def test_write_is_in_the_log_before_its_response(loop: VirtualLoop) -> None:
    disk = Disk(loop, store_s=(1.0, 1.0))

    async def main() -> tuple[int, list[Committed | Conflict]]:
        call = loop.create_task(disk.client().commit([FIRST]))
        await asyncio.sleep(0.999)
        return disk.stored.head("c").serial, await call

    assert loop.run_until_complete(main()) == (1, [Committed(1)])


@pytest.mark.parametrize("seed", range(4))
def test_commit_with_an_unknown_outcome_is_stored_or_not(loop: VirtualLoop, seed: int) -> None:
    disk = Disk(loop, unknown_chance=1.0)
    client = disk.client(seed=seed)
    with pytest.raises(CommitUnknown):
        loop.run_until_complete(client.commit([FIRST]))
    head = loop.run_until_complete(head_of(client, "c"))
    assert head.serial == disk.stored.head("c").serial
    assert disk.trace.violation is None


def test_deletion_note_and_hold_with_an_unknown_outcome_are_stored_or_not(loop: VirtualLoop) -> None:
    async def main(disk: Disk) -> tuple[bool, bool, bool]:
        client, head = disk.client(), Head("e1", 1)
        with pytest.raises(CommitUnknown):
            await client.delete_channel("c", expected=head, used_up=["m"], until_ms=1)
        with pytest.raises(CommitUnknown):
            await client.note({"n": b"1"})
        with pytest.raises(StoreUnavailable):
            await client.hold("node", 4_000, {"h": Hold(b"1")})
        return await head_of(client, "c") != head, "n" in await client.notes("n"), "h" in await client.holds("h")

    outcomes = []
    for seed in range(8):
        disk = Disk(loop, seed=seed, silent_chance=1.0)
        disk.store.commit("p", [FIRST])
        outcomes.append(loop.run_until_complete(main(disk)))
        assert disk.trace.violation is None, disk.trace.violation
    assert [{*outcome} for outcome in zip(*outcomes, strict=True)] == [{False, True}] * 3


def test_store_that_is_down_stores_no_entry(loop: VirtualLoop) -> None:
    disk = Disk(loop, down_chance=1.0)
    with pytest.raises(StoreUnavailable):
        loop.run_until_complete(disk.client().commit([FIRST]))
    assert disk.stored.head("c").serial == 0


def test_embedded_store_carries_a_waiting_call_out_or_loses_it_with_its_process(loop: VirtualLoop) -> None:
    disk = Disk(loop, store_s=(1.0, 1.0))
    process = Process("p")
    client = disk.client(process)

    async def main() -> None:
        process.start(loop, client.commit([FIRST]))
        await asyncio.sleep(0)
        process.is_alive, process.is_held = False, True
        client.process_died()
        serial = disk.stored.head("c").serial
        await asyncio.sleep(HOUR_S)
        assert disk.stored.head("c").serial == serial

    loop.run_until_complete(main())


def test_power_cut_loses_writes_since_the_last_sync_and_begins_an_epoch(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    state = ChannelState("c", "e1", 1)
    disk.store.commit("p", [FIRST])
    disk.store.sync()
    disk.store.commit("p", [write(state, create("n"))])
    disk.store.power_cut()
    log = disk.stored.head("c")
    assert (log.epoch, log.serial) == ("cut1", 1)
    assert loop.run_until_complete(head_of(disk.client(), "c")) == Head("cut1", 1)
    assert [message.id for message in log.messages(1)] == ["m"]
    assert disk.stored.has_changed_epoch("c", 1)


def test_failover_loses_the_last_commits_and_begins_following_epochs(loop: VirtualLoop) -> None:
    """The second failover loses the first entry of the epoch that the first one began."""
    disk, state = Disk(loop), ChannelState("c", "e1", 1)
    disk.store.commit("p", [FIRST])
    disk.store.commit("p", [write(state, create("n"))])
    disk.store.fail_over(1)
    log = disk.stored.head("c")
    assert (kept_serial("e1", log.epoch), log.serial) == (1, 1)
    assert (disk.stored.has_lost("c", "m", 0), disk.stored.has_lost("c", "n", 0)) == (False, True)
    disk.store.commit("p", [replace(write(state, create("o")), epoch=log.epoch)])
    disk.store.fail_over(1)
    last = disk.stored.head("c")
    assert (kept_serial(log.epoch, last.epoch), kept_serial("e1", last.epoch), last.serial) == (1, 1, 1)
    assert [message.id for message in last.messages(1)] == ["m"]
    client = disk.client()
    loop.run_until_complete(client.open())
    assert loop.run_until_complete(head_of(client, "c")) == Head(last.epoch, 1)


def test_failover_keeps_a_commit_of_several_channels_whole(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    disk.store.commit("p", [FIRST, replace(FIRST, channel="d")])
    disk.store.fail_over(1)
    assert (disk.stored.head("c").serial, disk.stored.head("d").serial) == (0, 0)


def test_store_that_failed_over_refuses_its_clients_until_they_open_it_again(loop: VirtualLoop) -> None:
    disk = Disk(loop, store_s=(1.0, 1.0))

    async def main() -> None:
        client = disk.client()
        await client.open()
        commit, read = loop.create_task(client.commit([FIRST])), loop.create_task(client.heads(["c"]))
        await asyncio.sleep(0)
        disk.store.fail_over(0)
        with pytest.raises(CommitUnknown):
            await commit
        with pytest.raises(StoreUnavailable, match="was lost"):
            await read
        with pytest.raises(StoreReplaced):
            await client.commit([FIRST])
        await client.open()
        assert isinstance((await client.commit([FIRST]))[0], Committed)

    loop.run_until_complete(main())


def test_power_cut_loses_notes_since_the_last_sync(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    disk.store.note({"hook/h/c": b"e1:1"})
    disk.store.sync()
    disk.store.note({"hook/h/c": b"e1:2", "hook-registered/h": b"1"})
    disk.store.power_cut()
    assert loop.run_until_complete(disk.client().notes("hook")) == {"hook/h/c": b"e1:1"}


def test_document_that_differs_from_the_log_is_a_violation(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    other = write(ChannelState("c"), create("m"), Append(id="m", part=0, at=2, text="!"))
    wrong = Write(channel="c", epoch="e1", expected=0, entries=FIRST.entries, documents=other.documents)
    with pytest.raises(Violation):
        disk.store.commit("p", [wrong])


def test_data_of_a_command_with_a_reply_whose_target_is_deleted_is_a_violation(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that keeps the data is a mutant; the real one is accepted."""
    command = Command(id="!c", name="x", target="m", data=1, by=None, at_ms=1, expires_ms=2, digest=b"")
    reply = Reply(id="!c", ok=True, data=2, error=None, by=None)
    first = write(ChannelState("c"), create("m"), command, reply, documents=["m", "!c"])
    for is_mutant in (False, True):
        disk = Disk(loop)
        disk.store.commit("p", [first])
        state = ChannelState("c")
        for entry in first.entries:
            apply_entry(state, entry)
        state.epoch = "e1"
        if is_mutant:
            monkeypatch.setattr("tenuto.stores.memory._Channel.drop_data_of_deleted", lambda *_: None)
        with pytest.raises(Violation, match="stored is Command") if is_mutant else nullcontext():
            disk.store.commit("p", [write(state, Delete(id="m"), documents=["m"])])
