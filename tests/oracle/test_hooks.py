"""The oracle of hooks accepts correct calls, and finds each wrong one.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.hooks import FAULT_S, HookOracle
from proof.oracle.log import StoredLogs
from tenuto.core.ops import Op
from tenuto.hub.hooks import KINDS, HookEvent
from tests.oracle.entries import END, create, write


class Hook(NamedTuple):
    name: str = "h"
    kinds: tuple[str, ...] = KINDS
    pattern: str = "*"


class Process:
    name = "A1"
    is_alive = True


PROCESS = Process()


class Hooked:
    """A hook, and a channel in which a message was created (1), finished (2), and a second one created (3)."""

    def __init__(self) -> None:
        self.stored = StoredLogs()
        self.oracle = HookOracle(Hook(), self.stored)
        self.oracle.note_registered()
        self.oracle.note_kept({"hook-registered/h": b"1"})
        self.store(create("m"), END, create("n"))

    def store(self, *ops: Op, epoch: str = "e1") -> None:
        self.stored.apply(write(self.stored, *ops, epoch=epoch))

    def event(self, kind: str, serial: int, message_id: str, epoch: str = "e1") -> HookEvent:
        log = self.stored.epoch("c", epoch)
        message = log.now(message_id) if log is not None else None
        return HookEvent(type=kind, channel="c", serial=serial, epoch=epoch, id=message_id, message=message)

    def call(self, kind: str, serial: int, message_id: str, epoch: str = "e1") -> None:
        """Call the hook, let the call succeed, and keep its position."""
        event = self.event(kind, serial, message_id, epoch)
        self.oracle.check_call(event, PROCESS)
        self.oracle.note_done(event)
        self.oracle.end_call("c")
        self.oracle.note_kept({"hook/h/c": f"{epoch}:{serial}".encode()})

    @property
    def missing(self) -> list[str]:
        return self.oracle.missing(["c"])


@pytest.fixture
def hooked() -> Hooked:
    return Hooked()


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(lambda h: h.event("message.create", 4, "o"), id="an entry that is not stored"),
        pytest.param(lambda h: h.event("message.create", 1, "m", "e9"), id="an epoch that never existed"),
        pytest.param(lambda h: h.event("message.update", 1, "m"), id="another kind"),
        pytest.param(lambda h: h.event("message.create", 1, "n"), id="another message"),
        pytest.param(lambda h: replace(h.event("message.create", 1, "m"), message=None), id="no message"),
        pytest.param(
            lambda h: replace(h.event("message.create", 3, "n"), message=h.event("message.create", 1, "m").message),
            id="the content of another message",
        ),
        pytest.param(
            lambda h: replace(h.event("message.finish", 2, "m"), message=h.stored.head("c").at("m", 1)),
            id="an earlier version",
        ),
    ],
)
def test_wrong_call_is_a_violation(hooked: Hooked, event: Callable[[Hooked], HookEvent]) -> None:
    with pytest.raises(Violation):
        hooked.oracle.check_call(event(hooked), PROCESS)


def test_call_for_an_earlier_entry_is_a_violation(hooked: Hooked) -> None:
    hooked.oracle.check_call(hooked.event("message.create", 3, "n"), PROCESS)
    hooked.oracle.end_call("c")
    with pytest.raises(Violation, match="after 3"):
        hooked.oracle.check_call(hooked.event("message.create", 1, "m"), PROCESS)


def test_position_that_goes_back_is_a_violation(hooked: Hooked) -> None:
    hooked.oracle.note_kept({"hook/h/c": b"e1:2"})
    with pytest.raises(Violation, match="goes back"):
        hooked.oracle.note_kept({"hook/h/c": b"e1:1"})


class OfTwoNodes(Hooked):
    """The hook of two nodes, after a fault at `fault_s`."""

    def __init__(self, fault_s: float) -> None:
        super().__init__()
        self.now_s, other = 100.0, Process()
        self.processes = (PROCESS, other)
        self.oracle = HookOracle(
            Hook(), self.stored, is_shared=True, now_s=lambda: self.now_s, was_healthy=lambda since_s: fault_s < since_s
        )

    def begin(self, place: int, kind: str, serial: int, message_id: str) -> None:
        self.oracle.check_call(self.event(kind, serial, message_id), self.processes[place])
        self.now_s += 1.0


FAULTS = pytest.mark.parametrize("fault_s", [0.0, 100.0 - FAULT_S], ids=["long before", "just before"])


def check(fault_s: float, call: Callable[[], None], why: str) -> None:
    """Check that `call` is wrong, unless the fault was just before."""
    if fault_s:
        call()
        return
    with pytest.raises(Violation, match=why):
        call()


@FAULTS
def test_two_nodes_call_a_hook_at_the_same_time_only_after_a_fault(fault_s: float) -> None:
    hooked = OfTwoNodes(fault_s)
    hooked.begin(0, "message.create", 1, "m")
    hooked.now_s += 50.0  # the call began soon after the fault
    check(fault_s, lambda: hooked.begin(1, "message.create", 1, "m"), "while A1 calls it since 100")


@FAULTS
def test_node_calls_a_hook_again_for_an_earlier_entry_only_after_a_fault(fault_s: float) -> None:
    hooked = OfTwoNodes(fault_s)
    hooked.begin(0, "message.finish", 2, "m")
    hooked.oracle.end_call("c", hooked.processes[0])
    check(fault_s, lambda: hooked.begin(1, "message.create", 1, "m"), "after 2")


@FAULTS
def test_node_calls_a_hook_again_before_its_position_only_after_a_fault(fault_s: float) -> None:
    hooked = OfTwoNodes(fault_s)
    hooked.oracle.note_kept({"hook/h/c": b"e1:1"})
    check(fault_s, lambda: hooked.begin(1, "message.create", 1, "m"), "though its position is 1")


@FAULTS
def test_position_of_two_nodes_goes_back_only_after_a_fault(fault_s: float) -> None:
    hooked = OfTwoNodes(fault_s)
    hooked.oracle.note_kept({"hook/h/c": b"e1:2"})
    check(fault_s, lambda: hooked.oracle.note_kept({"hook/h/c": b"e1:1"}), "goes back")
