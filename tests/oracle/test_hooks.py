"""The oracle of hooks accepts correct calls, and finds each wrong one.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
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

    def keep(self, serial: int) -> None:
        self.oracle.note_kept({"hook/h/c": f"e1:{serial}".encode()})


def begun_by_another(hooked: OfTwoNodes) -> None:
    hooked.begin(0, "message.create", 1, "m")
    hooked.now_s += 50.0


def ended_by_another(hooked: OfTwoNodes) -> None:
    hooked.begin(0, "message.finish", 2, "m")
    hooked.oracle.end_call("c", hooked.processes[0])


@pytest.mark.parametrize("fault_s", [0.0, 100.0 - FAULT_S], ids=["long before", "just before"])
@pytest.mark.parametrize(
    ("before", "call", "why"),
    [
        # the call began soon after the fault
        (begun_by_another, lambda h: h.begin(1, "message.create", 1, "m"), "while A1 calls it since 100"),
        (ended_by_another, lambda h: h.begin(1, "message.create", 1, "m"), "after 2"),
        (lambda h: h.keep(1), lambda h: h.begin(1, "message.create", 1, "m"), "though its position is 1"),
        (lambda h: h.keep(2), lambda h: h.keep(1), "goes back"),
    ],
    ids=["at the same time", "an earlier entry", "before its position", "a position that goes back"],
)
def test_call_of_another_node_is_wrong_unless_a_fault_was_just_before(
    before: Callable[[OfTwoNodes], None], call: Callable[[OfTwoNodes], None], why: str, fault_s: float
) -> None:
    hooked = OfTwoNodes(fault_s)
    before(hooked)
    with pytest.raises(Violation, match=why) if not fault_s else nullcontext():
        call(hooked)
