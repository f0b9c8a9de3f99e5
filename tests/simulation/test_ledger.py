"""What the promises says is early or late, and what it must not say: each was once said of a hub that was right."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from holdfast.core.events import Batch, ChannelAttached, MessageCreate, PresenceLeave
from holdfast.core.limits import Limits
from holdfast.core.names import command_key
from holdfast.core.ops import Claim, Command, Create, Entry, Finish, Op, Reply, Writer
from holdfast.stores.base import Head, Write
from oracle.responses import ViewOracle
from simulation.clock import START_MS, Process, VirtualLoop
from simulation.faults import FaultModel
from oracle.promises import Promises
from simulation.network import Connection, Network
from simulation.trace import Trace, Violation
from simulation.stored import StoredLogs

PLACE = ("c", "m")


class Scene:
    """A promises, and what it is told."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.stored = StoredLogs(is_exclusive=True)
        self.promises = Promises(self.loop, self.stored, is_exclusive=True, live_node=lambda: "n")
        self.promises.healthy_s = 0.0
        self._net = Network(self.loop, FaultModel(), self.stored, Trace(self.loop))
        self._serial = 0

    def store(self, *ops: Op, epoch: str = "e1") -> None:
        entries = [Entry(self._serial + count, op) for count, op in enumerate(ops, 1)]
        write = Write(channel="c", epoch=epoch, expected=self._serial, entries=entries, documents=[])
        self._serial += len(ops)
        self.stored.apply(write)
        self.promises.apply(write)

    def delete_channel(self) -> None:
        self.stored.delete_channel("c", [])
        self.promises.forget(["c"])
        self._serial = 0

    def lose_power(self, kept: int) -> None:
        self.stored.lose_power("c", Head("e1", kept), "e2")
        self.promises.lose_power(["c"])
        self._serial = kept

    def line(self, process: Process) -> Connection:
        return Connection(self._net, process, Random(1))

    def oracle(self) -> ViewOracle:
        trace = self._net.trace
        return ViewOracle("viewer", "c", self.stored, trace, Limits(), promises=self.promises, now_s=self.loop.time)

    def at(self, now_s: float) -> None:
        self.loop._now_s = now_s


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.loop.close()


def created(*, role: str = "assistant", status: str = "streaming", is_pending: bool = False) -> Create:
    writer = Writer(by="ada", node=None, lease_ms=15_000) if status == "streaming" else None
    return Create(
        id="m",
        role=role,  # type: ignore[arg-type]
        author="ada",
        status=status,  # type: ignore[arg-type]
        parts=[],
        meta={},
        parent=None,
        reply_to=None,
        at_ms=1,
        digest=b"\x00" * 16,
        writer=writer,
        is_pending=is_pending,
    )


def write_on(scene: Scene, line: Connection, *, is_answered: bool) -> None:
    """A writer begins on `line`, at 10 s; it breaks at 11 s."""
    scene.at(10.0)
    scene.store(created())
    scene.promises.note_request(PLACE, line)
    if is_answered:
        scene.promises.note_response(PLACE, line)
    scene.at(11.0)
    line.ended_s = 11.0


def test_a_broken_socket_that_was_answered_leaves_three_seconds(scene: Scene) -> None:
    write_on(scene, scene.line(Process("A1")), is_answered=True)
    scene.at(18.0)
    scene.promises.check_due()
    scene.at(20.0)
    with pytest.raises(Violation, match="streams still"):
        scene.promises.check_due()


def test_one_on_which_nothing_was_acknowledged_leaves_the_whole_term(scene: Scene) -> None:
    write_on(scene, scene.line(Process("A1")), is_answered=False)
    scene.at(29.0)
    scene.promises.check_due()
    scene.at(31.0)
    with pytest.raises(Violation, match="streams still"):
        scene.promises.check_due()


def test_one_that_ended_with_its_hub_leaves_the_whole_term_to_the_next(scene: Scene) -> None:
    process = Process("A1")
    write_on(scene, scene.line(process), is_answered=True)
    process.is_alive = False
    scene.promises.note_boot()  # in the same moment
    scene.at(29.0)
    scene.promises.check_due()
    scene.at(32.0)
    with pytest.raises(Violation, match="streams still"):
        scene.promises.check_due()


def taken() -> Claim:
    return Claim(id="m", generation=1, state="taken", by="bot", node=None, lease_ms=15_000)


def ask(scene: Scene, epoch: str) -> None:
    scene.store(created(role="user", status="complete", is_pending=True), taken(), epoch=epoch)


def test_an_attempt_is_given_once_in_each_life_of_a_channel(scene: Scene) -> None:
    line = scene.line(Process("A1"))
    ask(scene, "e1")
    stamp = scene.stored.stamp
    scene.delete_channel()
    scene.promises.note_offer(PLACE, 1, stamp, line)  # which was on its way then
    ask(scene, "e2")
    scene.promises.note_offer(PLACE, 1, scene.stored.stamp, line)
    with pytest.raises(Violation, match="a second time"):
        scene.promises.note_offer(PLACE, 1, scene.stored.stamp, line)


def test_an_attempt_is_not_given_before_it_is_stored(scene: Scene) -> None:
    scene.store(created(role="user", status="complete", is_pending=True))
    with pytest.raises(Violation, match="before that was stored"):
        scene.promises.note_offer(PLACE, 1, scene.stored.stamp, scene.line(Process("A1")))


def hear_of_a_leave(scene: Scene, *, begun_s: float, back_s: float) -> None:
    """A member is away from 10 s until `back_s`; at 30 s a stalled viewer reads what it was sent since `begun_s`."""
    scene.store(created())
    member, process = ("c", "bob"), Process("A1")
    first = scene.line(process)
    scene.promises.note_entered(member, first)
    first.ended_s = 10.0
    oracle = scene.oracle()
    scene.at(begun_s)
    oracle.begin(None)
    scene.at(back_s)  # of which the promises hears, whatever came first
    scene.promises.note_entered(member, scene.line(process))
    scene.at(30.0)
    attached = ChannelAttached(channel="c", epoch="e1", serial=1, resumed=False, more=False, before=1)
    message = scene.stored.head("c").at("m", 1)
    assert message is not None
    oracle.receive(Batch(events=[attached, MessageCreate(serial=1, message=message)], cursor="e1:1"), scene.stored.stamp)
    oracle.receive(Batch(events=[PresenceLeave(id="bob")], cursor=None), scene.stored.stamp)


def test_a_leave_of_long_ago_may_be_told_late(scene: Scene) -> None:
    hear_of_a_leave(scene, begun_s=12.0, back_s=14.0)


def test_nobody_is_said_to_have_left_who_was_back_in_time(scene: Scene) -> None:
    with pytest.raises(Violation, match="said to have left"):
        hear_of_a_leave(scene, begun_s=12.0, back_s=12.9)


def test_nobody_is_said_to_have_left_who_was_back_before_the_viewer_came(scene: Scene) -> None:
    with pytest.raises(Violation, match="said to have left"):
        hear_of_a_leave(scene, begun_s=20.0, back_s=14.0)


def test_a_goodbye_may_be_heard_late_by_a_hub_that_was_held_up(scene: Scene) -> None:
    member, line = ("c", "bob"), scene.line(Process("A1"))
    scene.promises.note_entered(member, line)
    scene.at(10.0)
    scene.promises.note_left(member, line=line)
    scene.at(20.0)
    line.ended_s = 20.0
    scene.promises.check_leave(member, 20.0)
    scene.at(22.0)
    scene.promises.note_entered(member, scene.line(Process("A1")))
    scene.at(24.0)
    with pytest.raises(Violation, match="said to have left"):
        scene.promises.check_leave(member, 24.0)


# What a power cut leaves has to end in time, too: the promises goes back with the stored.


def test_a_turn_that_was_taken_and_kept_is_waited_for(scene: Scene) -> None:
    ask(scene, "e1")
    scene.store(Claim(id="m", generation=1, state="done"))
    assert not scene.promises.is_busy
    scene.lose_power(2)
    assert scene.promises.is_busy
    scene.store(Claim(id="m", generation=1, state="done"), epoch="e2")
    assert not scene.promises.is_busy


def test_a_turn_that_was_lost_is_not_waited_for(scene: Scene) -> None:
    ask(scene, "e1")
    scene.lose_power(0)
    assert not scene.promises.is_busy


def test_a_lease_whose_end_was_lost_ends_once_more(scene: Scene) -> None:
    scene.at(10.0)
    scene.store(created())
    scene.store(Finish(id="m", status="complete", reason=None, meta=None, at_ms=1, request=None))
    scene.lose_power(1)
    scene.at(29.0)
    scene.promises.check_due()
    scene.at(31.0)
    with pytest.raises(Violation, match="streams still"):
        scene.promises.check_due()


def test_a_command_whose_answer_was_lost_expires_once_more(scene: Scene) -> None:
    key = command_key("k")
    scene.at(10.0)
    sent_ms = START_MS + 10_000
    scene.store(
        Command(
            id=key,
            name="approve",
            target=None,
            data=None,
            by="ada",
            at_ms=sent_ms,
            expires_ms=sent_ms + 20_000,
            digest=b"\x00" * 16,
        )
    )
    scene.store(Reply(id=key, ok=True, data=None, error=None, by="bob"))
    scene.lose_power(1)
    scene.at(34.0)
    scene.promises.check_due()
    scene.at(36.0)
    with pytest.raises(Violation, match="which has expired"):
        scene.promises.check_due()
