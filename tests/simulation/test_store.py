"""The simulated store checks each write against the log; the mutants show that it fails as a real one does.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from random import Random

import pytest
from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.log import StoredLogs
from proof.simulation.clock import Process, Trace, VirtualLoop
from proof.simulation.faults import FaultModel
from proof.simulation.store import SimStore
from tenuto.core.document import document
from tenuto.core.draft import Draft
from tenuto.core.ops import Append, Command, Create, Delete, Op, Reply
from tenuto.core.state import ChannelState, apply_entry
from tenuto.stores.base import StoreUnavailable, Write
from tests.oracle.entries import create


class Disk:
    """A store, its log, and its faults."""

    def __init__(self, loop: VirtualLoop, **faults: object) -> None:
        self.stored = StoredLogs()
        model = FaultModel(**faults)  # type: ignore[arg-type]
        self.store = SimStore(loop, model, self.stored, Trace(loop), is_exclusive=True)


def write(state: ChannelState, *ops: Op, documents: Sequence[str] = ()) -> Write:
    """Return the write of a hub whose channel is at `state`. New messages and `documents` get a document."""
    draft = Draft(state)
    for op in ops:
        draft.add(op)
    ids = {op.id for op in ops if isinstance(op, Create)} | set(documents)
    made = [document(thing) for one in sorted(ids) if (thing := draft.thing(one)) is not None]
    return Write(channel="c", epoch="e1", expected=state.serial, entries=draft.entries(), documents=made)


FIRST = write(ChannelState("c"), create("m"))


def test_store_that_is_down_stores_no_entry(loop: VirtualLoop) -> None:
    disk = Disk(loop, down_chance=1.0)
    with pytest.raises(StoreUnavailable):
        loop.run_until_complete(disk.store.connect(Process("p"), Random(1)).commit([FIRST]))
    assert disk.stored.head("c").serial == 0


def test_failover_keeps_a_commit_of_several_channels_whole(loop: VirtualLoop) -> None:
    disk = Disk(loop)
    disk.store.commit("p", [FIRST, replace(FIRST, channel="d")])
    disk.store.fail_over(1)
    assert (disk.stored.head("c").serial, disk.stored.head("d").serial) == (0, 0)


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
