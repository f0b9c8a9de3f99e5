"""The oracle of promises finds ends that are too early or too late, and accepts those of a correct hub.

Layer: tests.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from proof.oracle import Violation
from proof.oracle.log import StoredLogs
from proof.oracle.promises import NodeLeases, Promises
from tenuto.core.ops import Claim, Create, Finish, Op, WriterIdentity
from tenuto.stores.base import Head
from tests.oracle.entries import create, write

PLACE = ("c", "m")


START_MS = 1_750_000_000_000


@dataclass
class Process:
    name: str = "A1"
    is_alive: bool = True
    pauses: int = 0


@dataclass(eq=False)
class Connection:
    process: Process = field(default_factory=Process)
    ended_s: float | None = None


class Scene:
    """The promises of a hub, and the facts that they receive."""

    def __init__(self, *, is_exclusive: bool = True) -> None:
        self.now_s = 0.0
        self.stored = StoredLogs()
        self.nodes = NodeLeases(lambda: self.now_s, self.stored)
        nodes = None if is_exclusive else self.nodes
        self.promises = Promises(lambda: self.now_s, self.stored, start_ms=START_MS, nodes=nodes, live_node=lambda: "n")
        self.promises.healthy_s = 0.0

    def store(self, *ops: Op) -> None:
        one = write(self.stored, *ops)
        self.stored.apply(one)
        self.promises.apply(one)

    def lose_power(self, kept: int) -> None:
        self.stored.lose_power("c", Head("e1", kept), "e2")
        self.promises.lose_power(["c"])

    def at(self, now_s: float) -> None:
        self.now_s = now_s


@pytest.fixture
def scene() -> Scene:
    return Scene()


def message(**fields: object) -> Create:
    return create("m", author="ada", parts=[], writer=WriterIdentity(by="ada", node=None, lease_ms=15_000), **fields)


def user_message() -> Create:
    return create("m", role="user", author="ada", status="complete", parts=[], is_pending=True)


def check_due_at(scene: Scene, due_s: float) -> None:
    """Check that a message has to have ended about `due_s`, and not before."""
    scene.at(due_s - 0.5)
    scene.promises.check_due()
    scene.at(due_s + 0.5)
    with pytest.raises(Violation, match="still streams"):
        scene.promises.check_due()


def begin_message(scene: Scene, connection: Connection, *, has_response: bool) -> None:
    """Let a writer create a message on `connection` at 10 s; the connection breaks at 11 s."""
    scene.at(10.0)
    scene.store(message())
    scene.promises.note_request(PLACE, connection)
    if has_response:
        scene.promises.note_response(PLACE, connection)
    scene.at(11.0)
    connection.ended_s = 11.0


@pytest.mark.parametrize(("has_response", "due_s"), [(True, 16.0), (False, 27.0)])
def test_connection_with_a_response_leaves_three_seconds_after_its_end_and_else_the_whole_term(
    scene: Scene, has_response: bool, due_s: float
) -> None:
    begin_message(scene, Connection(Process()), has_response=has_response)
    check_due_at(scene, due_s)


def interrupted() -> Finish:
    return Finish(id="m", status="interrupted", reason="writer_gone", meta={}, at_ms=START_MS)


@pytest.mark.parametrize("is_next", [False, True], ids=["of the dying hub", "of the next hub"])
def test_end_three_seconds_after_a_connection_of_a_dead_hub_is_early_for_the_next_one_alone(
    scene: Scene, is_next: bool
) -> None:
    process = Process()
    begin_message(scene, Connection(process), has_response=True)
    scene.at(14.0)
    process.is_alive = False  # while a commit may be on its way to the store
    if is_next:
        scene.promises.note_boot()
    with pytest.raises(Violation, match="sign of life") if is_next else nullcontext():
        scene.store(interrupted())


def claim() -> Claim:
    return Claim(id="m", generation=1, state="taken", by="bot", node=None, lease_ms=15_000)


def claim_message(scene: Scene) -> None:
    scene.store(user_message(), claim())


@pytest.mark.parametrize("is_lost", [False, True])
def test_message_that_a_turn_took_in_is_claimed_early_once_that_attempt_is_lost(scene: Scene, is_lost: bool) -> None:
    host = replace(claim(), id="host")
    scene.store(user_message(), replace(user_message(), id="host"), host)
    scene.store(replace(claim(), within="host", within_generation=1))
    scene.promises.note_taken_in(PLACE, "host", 1)
    scene.at(5.0)
    if is_lost:
        scene.store(replace(host, generation=2))
    with nullcontext() if is_lost else pytest.raises(Violation, match="sign of life"):
        scene.store(replace(claim(), generation=2))


@pytest.mark.parametrize(
    ("back_s", "stopped_s", "is_right"), [(12.9, 0.0, True), (11.0, 0.0, False), (11.0, 4.0, True)]
)
def test_leave_of_a_member_that_returned_to_another_node_is_a_violation(
    back_s: float, stopped_s: float, is_right: bool
) -> None:
    """A node sees later that it returned, and the members of a node that has stopped leave."""
    scene, member = Scene(is_exclusive=False), ("c", "bob")
    scene.promises.members.stopped_s = lambda: stopped_s
    first = Connection(Process("A1"))
    scene.at(5.0)
    scene.promises.members.note_entered(member, first)
    first.ended_s = 10.0
    scene.at(back_s)
    scene.promises.members.note_entered(member, Connection(Process("B1")))
    scene.at(13.5)
    with nullcontext() if is_right else pytest.raises(Violation, match="leave of"):
        scene.promises.members.check_leave(member, 9.0)


def test_attempt_that_a_hub_counts_as_running_after_its_lease_is_a_violation(scene: Scene) -> None:
    claim_message(scene)
    connection = Connection(Process())
    scene.at(10.0)
    scene.promises.note_turn_request(PLACE, 1, connection)
    scene.promises.check_running(PLACE, 1, "n")
    scene.at(26.9)
    scene.promises.check_running(PLACE, 1, "n")
    scene.at(27.1)
    scene.promises.check_running(PLACE, 2, "n")  # another attempt, which the hub has yet to read
    with pytest.raises(Violation, match="without a sign of life"):
        scene.promises.check_running(PLACE, 1, "n")


@pytest.mark.parametrize(("begun_s", "limit_s"), [(0.0, 17.0), (6.0, 23.0)])
def test_hub_that_reads_a_turn_late_has_no_other_term_unless_it_has_begun_since(begun_s: float, limit_s: float) -> None:
    scene = Scene(is_exclusive=False)
    scene.nodes.steady_s = 0.0
    scene.store(replace(user_message(), at_ms=START_MS), replace(claim(), at_ms=START_MS))
    for second in range(int(limit_s) + 1):
        scene.at(second)
        if second >= begun_s:
            scene.nodes.hold("late", 4_000)
    scene.promises.check_running(PLACE, 1, "late")
    scene.at(limit_s + 0.1)
    with pytest.raises(Violation, match="without a sign of life"):
        scene.promises.check_running(PLACE, 1, "late")


# -- after a power cut -------------------------------------------------------------------------------------------------


def test_turn_that_a_power_cut_lost_is_not_due(scene: Scene) -> None:
    claim_message(scene)
    scene.lose_power(0)
    assert not scene.promises.is_busy


def test_lease_whose_end_was_lost_is_due_again(scene: Scene) -> None:
    scene.at(10.0)
    scene.store(message())
    scene.store(Finish(id="m", status="complete", reason=None, meta={}, at_ms=1, request=None))
    scene.lose_power(1)
    check_due_at(scene, 27.0)
