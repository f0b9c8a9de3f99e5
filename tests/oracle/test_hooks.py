"""The oracle of hooks accepts correct calls, and finds each wrong one.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.hooks import HookOracle
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
