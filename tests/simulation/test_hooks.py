"""What an ear says of a hook: it must find each of these, and nothing where all is right."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from msgspec.structs import replace

from holdfast.core.ops import Delete, Entry, Finish, Op, Update
from holdfast.hub.hooks import KINDS, HookEvent
from holdfast.stores.base import Write
from simulation.clock import Process, VirtualLoop
from simulation.faults import FaultModel
from simulation.hooks import HookOracle, HookPlan, is_expected
from simulation.store import SimStore
from simulation.trace import Trace, Violation
from simulation.stored import StoredLogs
from tests.simulation.test_parts import create

PROCESS = Process("A1")
PLAN = HookPlan(
    name="h", kinds=KINDS, pattern="*", pause_s=0.0, fail_chance=0.0, hang_chance=0.0, late_chance=0.0
)  # fmt: skip
END = Finish(id="m", status="complete", reason=None, meta={}, at_ms=2)


class Scene:
    """A hook, and a channel in which a message was created (1), finished (2), and a second one created (3)."""

    def __init__(self) -> None:
        self.stored = StoredLogs(is_exclusive=True)
        self.ear = HookOracle(PLAN, self.stored)
        self.ear.begins()
        self.ear.noted({"hook-registered/h": b"1"})
        self.store(create("m"), END, create("n"))

    def store(self, *ops: Op, epoch: str = "e1") -> None:
        at = self.stored.head("c").serial
        entries = [Entry(serial, op) for serial, op in enumerate(ops, at + 1)]
        self.stored.apply(Write(channel="c", epoch=epoch, expected=at, entries=entries))

    def event(self, kind: str, serial: int, message_id: str, epoch: str = "e1") -> HookEvent:
        log = self.stored.epoch("c", epoch)
        message = log.now(message_id) if log is not None else None
        return HookEvent(type=kind, channel="c", serial=serial, epoch=epoch, id=message_id, message=message)

    def tell(self, kind: str, serial: int, message_id: str, epoch: str = "e1") -> None:
        event = self.event(kind, serial, message_id, epoch)
        self.ear.hears(event, PROCESS)
        self.ear.heard(event)
        self.ear.leaves("c")
        self.ear.noted({"hook/h/c": f"{epoch}:{serial}".encode()})


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_all_that_is_told_in_order_is_fine(scene: Scene) -> None:
    assert len(scene.ear.missing(["c"])) == 3
    scene.tell("message.create", 1, "m")
    scene.tell("message.finish", 2, "m")
    scene.tell("message.create", 3, "n")
    assert scene.ear.missing(["c"]) == []


def test_a_late_one_is_told_what_is_left(scene: Scene) -> None:
    scene.store(Delete(id="m"), Update(id="n", parts=None, meta={}, at_ms=3))
    scene.tell("message.create", 3, "n")
    scene.tell("message.delete", 4, "m")
    assert scene.ear.missing(["c"]) == ["h c 5 message.update n"]
    scene.tell("message.update", 5, "n")
    assert scene.ear.missing(["c"]) == []


def test_what_was_there_before_the_hook_is_not_due(scene: Scene) -> None:
    ear = HookOracle(PLAN, scene.stored)
    assert ear.missing(["c"]) == ["h is not registered"]
    ear.begins()
    ear.noted({"hook-registered/h": b"1"})
    assert ear.missing(["c"]) == []
    scene.store(Delete(id="n"))
    assert ear.missing(["c"]) == ["h c 4 message.delete n"]


def test_the_next_life_of_a_channel_is_told_from_its_beginning(scene: Scene) -> None:
    scene.tell("message.create", 3, "n")
    scene.stored.delete_channel("c", ["n"])
    scene.store(create("m"), epoch="e2")
    assert scene.ear.missing(["c"]) == ["h c 1 message.create m"]
    scene.tell("message.create", 1, "m", "e2")
    with pytest.raises(Violation, match="after the next log"):
        scene.ear.hears(scene.event("message.create", 1, "m"), PROCESS)


def test_one_that_failed_is_told_again_and_one_that_is_noted_is_not(scene: Scene) -> None:
    scene.ear.hears(scene.event("message.create", 1, "m"), PROCESS)
    scene.ear.leaves("c")
    scene.tell("message.create", 1, "m")
    with pytest.raises(Violation, match="though its position is 1"):
        scene.tell("message.create", 1, "m")


def test_after_a_kill_it_is_told_again_what_was_not_noted(scene: Scene) -> None:
    process = Process("A1")
    scene.ear.hears(scene.event("message.create", 1, "m"), process)
    with pytest.raises(Violation, match="still at work"):
        scene.ear.hears(scene.event("message.create", 1, "m"), PROCESS)
    process.is_alive = False
    scene.ear.hears(scene.event("message.create", 1, "m"), PROCESS)


Tells = Callable[[Scene], HookEvent]
LIES: dict[str, Tells] = {
    "of what was not stored": lambda scene: scene.event("message.create", 4, "o"),
    "of a log that never was": lambda scene: scene.event("message.create", 1, "m", "e9"),
    "of another kind": lambda scene: scene.event("message.update", 1, "m"),
    "of another message": lambda scene: scene.event("message.create", 1, "n"),
    "of one that is not there": lambda scene: replace(scene.event("message.create", 1, "m"), message=None),
    "of one as it never was": lambda scene: replace(
        scene.event("message.create", 3, "n"), message=scene.event("message.create", 1, "m").message
    ),
    "of one as it was before": lambda scene: replace(
        scene.event("message.finish", 2, "m"), message=scene.stored.head("c").at("m", 1)
    ),
}


@pytest.mark.parametrize("tells", LIES.values(), ids=LIES)
def test_what_is_not_true_is_a_violation(scene: Scene, tells: Tells) -> None:
    with pytest.raises(Violation):
        scene.ear.hears(tells(scene), PROCESS)


def test_an_earlier_one_after_a_later_one_is_a_violation(scene: Scene) -> None:
    scene.ear.hears(scene.event("message.create", 3, "n"), PROCESS)
    scene.ear.leaves("c")
    with pytest.raises(Violation, match="after 3"):
        scene.ear.hears(scene.event("message.create", 1, "m"), PROCESS)


def test_a_position_that_goes_back_is_a_violation(scene: Scene) -> None:
    scene.ear.noted({"hook/h/c": b"e1:2"})
    with pytest.raises(Violation, match="goes back"):
        scene.ear.noted({"hook/h/c": b"e1:1"})


def test_what_a_power_cut_took_of_its_notes_it_may_be_told_again() -> None:
    loop = VirtualLoop()
    stored = StoredLogs(is_exclusive=True)
    store = SimStore(loop, FaultModel(), stored, Trace(loop), is_exclusive=True)
    store.note({"hook/h/c": b"e1:1"})
    store.sync()
    store.note({"hook/h/c": b"e1:2", "hook-registered/h": b"1"})
    store.power_cut()
    kept = loop.run_until_complete(store.connect(PROCESS, Random(1)).notes("hook"))
    assert kept == {"hook/h/c": b"e1:1"}
    loop.close()


def test_only_failures_on_purpose_may_be_logged_of_a_hook() -> None:
    assert is_expected(("h", "c", "OnPurpose", 1.0))
    assert not is_expected(("h", "c", "KeyError", 1.0))
