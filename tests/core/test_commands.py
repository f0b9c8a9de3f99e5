"""Stored commands, the clients that may reply, and the commands that the server carries out (`docs/protocol.md`).

Layer: tests.

A command has one reply. A `cancel` works even if no agent is connected.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.core.errors import (
    AlreadyAnswered,
    Deleted,
    Finished,
    Forbidden,
    IdConflict,
    InvalidName,
    InvalidRequest,
    InvalidText,
    NotFound,
    StillStreaming,
    TenutoError,
    TooLarge,
    TooMany,
)
from tenuto.core.limits import Limits
from tenuto.core.message_state import ClaimState
from tenuto.core.model import Command as CommandSeen
from tenuto.core.ops import Claim, Command, Entry, Finish, Reply
from tenuto.core.requests import Caller, ReplyCommand, SendCommand, SettleCommand, needs
from tenuto.core.state import apply_entry
from tests.core.harness import ADMIN, AGENT, ANN, APP, BOB, NAMELESS, PERSON, SERVER, LogHarness, served_log

HALF = "\ud83d"  # half of a surrogate pair
EVE = Caller(id="eve", may_read=False)
REMOTE = Caller(id="far", is_server=True)  # the hub acts for an agent in another process, named "far"
FAR = Caller(id="far")


@pytest.fixture
def harness() -> LogHarness:
    """Return a harness where each request is a batch of its own."""
    return LogHarness()


@pytest.fixture
def batch() -> LogHarness:
    """Return a harness that collects requests in one batch until `commit`."""
    return LogHarness(batches=True)


@pytest.fixture
def served() -> LogHarness:
    """Return a channel with agents and a user message whose turn waits."""
    return served_log("q")


# -- sending ---------------------------------------------------------------------------------------------------


def test_a_command_is_stored_as_it_was_sent(harness: LogHarness) -> None:
    harness.stream("m")
    result = harness.command("c", "steer", target="m", data={"to": "the point"}, expires_s=60, caller=BOB)
    (op,) = result.ops
    assert isinstance(op, Command)
    assert (op.id, op.name, op.target, op.data, op.by) == ("!c", "steer", "m", {"to": "the point"}, "bob")
    assert (op.at_ms, op.expires_ms, result.serial) == (1_000, 61_000, 2)
    assert harness.known_command("c").command() == CommandSeen(
        id="c", name="steer", target="m", data={"to": "the point"}, from_="bob", expires_at=61_000
    )


def test_only_a_cancel_needs_a_target(harness: LogHarness) -> None:
    harness.command("c", "approve")
    with pytest.raises(InvalidRequest):
        harness.cancel("c2", None)


def test_messages_and_commands_may_have_the_same_id(harness: LogHarness) -> None:
    harness.create("x", text="a message")
    harness.command("x", "mine")
    assert (harness.text("x"), harness.known_command("x").name) == ("a message", "mine")


def test_repeated_command_returns_its_first_serial(harness: LogHarness) -> None:
    harness.stream("m")
    first = harness.command("c", "steer", target="m", data={"a": 1, "b": 2})
    again = harness.command("c", "steer", target="m", data={"b": 2, "a": 1}, expires_s=5)
    assert (first.serial, again.serial, again.ops) == (2, 2, ())


def test_repeated_command_succeeds_although_a_new_one_would_be_refused() -> None:
    harness = LogHarness(Limits(open_commands=1))
    harness.stream("m")
    harness.cancel("c", "m")
    harness.reply("c")
    harness.command("other")
    harness.delete("m")
    assert (harness.cancel("c", "m").ops, harness.cancel("c", "m").serial) == ((), 2)


@pytest.mark.parametrize(
    "other",
    [{"name": "approve"}, {"target": None}, {"target": "n"}, {"data": {"a": 2}}, {"data": None}, {"caller": BOB}],
)
def test_another_command_with_the_same_id_is_a_conflict(harness: LogHarness, other: dict[str, Any]) -> None:
    harness.stream("m")
    harness.stream("n")
    fields: dict[str, Any] = {"name": "steer", "target": "m", "data": {"a": 1}}
    harness.command("c", **fields)
    with pytest.raises(IdConflict):
        harness.command("c", **{**fields, **other})


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "x" * 65, ".", "..", "é", "a\n", "!c", HALF])
def test_invalid_name_id_or_target_of_a_command_is_refused(harness: LogHarness, bad: str) -> None:
    harness.stream("m")
    for send in (
        lambda: harness.command("c", bad),
        lambda: harness.command(bad, "steer"),
        lambda: harness.command("c", "steer", target=bad),
        lambda: harness.cancel("c", bad),
    ):
        with pytest.raises((InvalidName, InvalidText)):
            send()
    assert len(harness.log) == 1


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, HALF, "!c"])
def test_store_does_not_read_an_invalid_target(bad: str) -> None:
    assert needs("!c", SendCommand(name="cancel", target=bad), Caller()) == ("!c",)


def test_decision_about_a_command_reads_the_command_and_its_target() -> None:
    assert needs("!c", SendCommand(name="cancel", target="m"), Caller()) == ("!c", "m")
    assert needs("!c", SendCommand(name="approve"), Caller()) == ("!c",)
    assert needs("!c", ReplyCommand(), Caller()) == ("!c",)
    assert needs("!c", SettleCommand(), Caller()) == ("!c",)


@pytest.mark.parametrize("name", ["cancel", "steer"])
def test_command_for_a_missing_or_deleted_target_is_refused(harness: LogHarness, name: str) -> None:
    harness.stream("gone")
    harness.delete("gone")
    with pytest.raises(NotFound):
        harness.command("c", name, target="never")
    with pytest.raises(Deleted):
        harness.command("c", name, target="gone")


def test_sender_without_read_access_does_not_learn_which_targets_exist(harness: LogHarness) -> None:
    harness.stream("gone")
    harness.delete("gone")
    harness.create("done", text="x")
    for target in ("never", "gone", "done"):
        with pytest.raises(NotFound) as refusal:
            harness.cancel("c", target, caller=EVE)
        assert (
            refusal.value.problem()
            == NotFound(f"message {target!r} does not exist in this channel; check the target").problem()
        )


def test_finished_answer_may_be_steered_but_not_cancelled(harness: LogHarness) -> None:
    harness.stream("m")
    harness.finish("m")
    harness.command("c1", "steer", target="m")
    with pytest.raises(Finished):
        harness.cancel("c2", "m")


@pytest.mark.parametrize("expires_s", [0, -1, float("nan"), float("inf"), 24 * 3600 + 1])
def test_command_expires_after_at_most_a_day(harness: LogHarness, expires_s: float) -> None:
    with pytest.raises(InvalidRequest):
        harness.command("c", "approve", expires_s=expires_s)


def test_data_is_bounded() -> None:
    harness = LogHarness(Limits(data_bytes=20))
    harness.command("c", "mine", data={"x": "a" * 10})
    for send in (
        lambda: harness.command("d", "mine", data={"x": "a" * 20}),
        lambda: harness.reply("c", data="a" * 20),
        lambda: harness.reply("c", error="é" * 10),
    ):
        with pytest.raises(TooLarge) as refusal:
            send()
        assert refusal.value.details == {"limit": 20}
    assert harness.known_command("c").is_open


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "bad",
    [nested(65), nested(100_000), 2**63, float("nan"), float("inf"), {1: 2}, object()],
    ids=["65 deep", "very deep", "2**63", "nan", "inf", "a key of number", "an object"],
)
def test_command_data_that_json_cannot_represent_is_refused(harness: LogHarness, bad: object) -> None:
    harness.command("c", "mine")
    for send in (
        lambda: harness.command("d", "mine", data={"x": bad}),
        lambda: harness.reply("c", data=[bad]),
        lambda: harness.reply("c", error=[bad]),
    ):
        with pytest.raises(InvalidRequest):
            send()
    assert len(harness.log) == 1


def test_lone_surrogate_in_a_command_is_refused(harness: LogHarness) -> None:
    harness.command("c", "mine")
    for send in (
        lambda: harness.command("d", "mine", data=HALF),
        lambda: harness.command("d", "mine", data={HALF: 1}),
        lambda: harness.reply("c", data={"x": [HALF]}),
        lambda: harness.reply("c", error={HALF: 1}),
    ):
        with pytest.raises(InvalidText):
            send()
    assert len(harness.log) == 1


@pytest.mark.parametrize("data", [None, False, 0, "", [], {}, {"x": None}, "text", 1.5])
def test_command_data_is_stored_unchanged(harness: LogHarness, data: object) -> None:
    harness.command("c", "mine", data=data)
    harness.reply("c", data=data)
    known = harness.known_command("c")
    assert known.reply is not None
    assert (known.data, known.reply.data) == (data, data)
    assert type(known.data) is type(data)


def test_log_keeps_a_copy_of_the_data_of_a_command(harness: LogHarness) -> None:
    data: dict[str, Any] = {"x": [1]}
    harness.command("c", "mine", data=data)
    harness.reply("c", data=data)
    data["x"].append(2)
    known = harness.known_command("c")
    assert known.reply is not None
    assert (known.data, known.reply.data) == ({"x": [1]}, {"x": [1]})


def people(count: int) -> list[Caller]:
    return [Caller(id=f"person-{number}", may_write=False) for number in range(count)]


def test_number_of_waiting_commands_is_bounded() -> None:
    harness = LogHarness(Limits(open_commands=2))
    first, second, third = people(3)
    harness.command("c1", caller=first)
    harness.command("c2", caller=second)
    with pytest.raises(TooMany) as refusal:
        harness.command("c3", caller=third)
    assert (refusal.value.details, refusal.value.retry, refusal.value.status) == ({"limit": 2}, True, 429)
    harness.reply("c1")
    harness.command("c3", caller=third)


def test_commands_of_the_same_batch_count_towards_the_bound() -> None:
    batch = LogHarness(Limits(open_commands=2), batches=True)
    first, second, third = people(3)
    batch.command("c1", caller=first)
    batch.command("c2", caller=second)
    with pytest.raises(TooMany):
        batch.command("c3", caller=third)
    batch.reply("c2")
    batch.command("c3", caller=third)
    batch.commit()
    assert [one.id for one in batch.state.pending_commands()] == ["!c1", "!c3"]


def test_one_sender_may_have_a_quarter_of_the_waiting_commands(harness: LogHarness) -> None:
    for number in range(25):
        harness.command(f"c{number}", caller=PERSON)
    with pytest.raises(TooMany) as refusal:
        harness.command("more", caller=PERSON)
    assert refusal.value.details == {"limit": 25}
    harness.command("more", caller=BOB)
    harness.reply("c0")
    harness.command("again", caller=PERSON)


def test_cancel_is_accepted_while_other_commands_fill_the_bound() -> None:
    harness = LogHarness(Limits(open_commands=1))
    harness.stream("m")
    harness.command("c", caller=PERSON)
    with pytest.raises(TooMany):
        harness.command("steer", target="m", caller=BOB)
    harness.cancel("stop", "m", caller=PERSON)
    harness.cancel("stop-2", "m", caller=BOB)
    assert len(harness.state.pending_commands()) == 3
    harness.reply("c")
    harness.command("c2", caller=PERSON)  # cancels that wait do not count towards the bound of other commands


def test_number_of_waiting_cancels_of_one_target_is_bounded(harness: LogHarness) -> None:
    harness.stream("m")
    harness.stream("n")
    for number in range(16):
        harness.cancel(f"stop-{number}", "m", caller=PERSON)
    with pytest.raises(TooMany) as refusal:
        harness.cancel("one-more", "m", caller=BOB)
    assert refusal.value.details == {"limit": 16}
    harness.cancel("other", "n", caller=BOB)


@pytest.mark.parametrize("caller", [SERVER, APP], ids=["server", "app"])
def test_bound_does_not_apply_to_the_server_and_the_app(caller: Caller) -> None:
    harness = LogHarness(Limits(open_commands=1))
    harness.stream("m")
    harness.command("c1", caller=PERSON)
    for number in range(17):
        harness.cancel(f"stop-{number}", "m", caller=PERSON if number < 16 else caller)
        harness.command(f"ask-{number}", caller=caller)


def test_command_of_a_client_that_created_too_many_channels_creates_no_channel() -> None:
    late = Caller(id="eve", may_begin=False)
    harness = LogHarness()
    with pytest.raises(TooMany):
        harness.command("c", caller=late)
    assert harness.log == []
    harness.command("c", caller=BOB)
    harness.command("c2", caller=late)  # the channel exists now
    harness.create("m", text="x", caller=late)
    batch = LogHarness(batches=True)
    batch.command("c", caller=BOB)
    batch.command("c2", caller=late)


def test_cancel_that_is_carried_out_at_once_does_not_count_towards_the_bound() -> None:
    harness = LogHarness(Limits(open_commands=1))
    harness.is_served = True
    harness.create("q", text="question")
    harness.command("c1")
    assert len(harness.cancel("c2", "q").ops) == 3


# -- regenerate ------------------------------------------------------------------------------------------------


def regenerate(harness: LogHarness, command_id: str, target: str | None, **fields: Any) -> Any:
    return harness.command(command_id, "regenerate", target=target, **fields)


def test_regenerate_makes_a_message_wait_again_in_one_decision(served: LogHarness) -> None:
    served.claim("q")
    served.end("q")
    result = regenerate(served, "c", "q", caller=BOB)
    command, claim, reply = result.ops
    assert isinstance(command, Command)
    assert result.serial == served.known_command("c").created
    assert claim == Claim(id="q", state="pending", generation=8, at_ms=1_000)
    assert reply == Reply(id="!c", ok=True, data=None, error=None, by=None, at_ms=1_000)
    assert served.known("q").is_pending
    assert list(served.state.pending) == ["q"]
    assert served.known("q").version == 1  # viewers get no event about the message
    assert regenerate(served, "c", "q", caller=BOB).ops == ()  # a repeat
    served.claim("q", 8)
    served.end("q", 9)
    assert regenerate(served, "c2", "q").ops[1].generation == 16
    with pytest.raises(AlreadyAnswered):
        served.reply("c", caller=ADMIN)


def test_regenerate_of_a_waiting_message_changes_nothing(served: LogHarness) -> None:
    assert [type(op) for op in regenerate(served, "c", "q").ops] == [Command, Reply]
    assert served.known("q").claim == ClaimState("pending")


def test_regenerate_is_refused_while_an_answer_runs_and_without_agents(served: LogHarness) -> None:
    served.claim("q")
    with pytest.raises(StillStreaming):
        regenerate(served, "c1", "q")
    served.end("q")
    served.stream("a", reply_to="q")
    with pytest.raises(StillStreaming):
        regenerate(served, "c2", "q")
    with pytest.raises(InvalidRequest, match="assistant"):
        regenerate(served, "c3", "a")
    with pytest.raises(InvalidRequest, match="target"):
        regenerate(served, "c4", None)
    served.finish("a")
    served.is_served = False
    with pytest.raises(Finished):
        regenerate(served, "c5", "q")
    with pytest.raises(NotFound):
        regenerate(served, "c6", "q", caller=EVE)


def test_regenerated_messages_count_towards_the_bound_of_waiting_ones_within_a_batch() -> None:
    harness = LogHarness(Limits(pending_messages=1), batches=True)
    for message_id in ("q", "p"):
        harness.create(message_id, text="question")  # no agent serves the channel, so they do not wait
    harness.commit()
    harness.is_served = True
    regenerate(harness, "c1", "q")
    with pytest.raises(TooMany):
        regenerate(harness, "c2", "p")


# -- cancel ----------------------------------------------------------------------------------------------------


def test_cancel_of_a_waiting_turn_is_carried_out_in_one_decision(served: LogHarness) -> None:
    result = served.cancel("c", "q", caller=BOB)
    command, claim, reply = result.ops
    assert result.serial == served.known_command("c").created == served.cancel("c", "q", caller=BOB).serial
    assert isinstance(command, Command)
    assert claim == Claim(id="q", state="cancelled", generation=0, by=None, at_ms=1_000)
    assert reply == Reply(id="!c", ok=True, data=None, error=None, by=None, at_ms=1_000)
    assert not served.known_command("c").is_open
    assert not served.known("q").is_open
    with pytest.raises(Finished):
        served.claim("q")


def test_a_turn_is_cancelled_once(served: LogHarness) -> None:
    served.cancel("c1", "q")
    with pytest.raises(Finished):
        served.cancel("c2", "q")


def test_a_turn_is_cancelled_once_in_a_batch(batch: LogHarness) -> None:
    batch.is_served = True
    batch.create("q", text="question")
    batch.cancel("c1", "q")
    with pytest.raises(Finished):
        batch.cancel("c2", "q")
    assert len(batch.commit()) == 4


def test_cancel_of_a_running_turn_waits_for_its_worker(served: LogHarness) -> None:
    served.claim("q")
    assert [type(op) for op in served.cancel("c", "q").ops] == [Command]
    assert served.known("q").is_open


def test_a_cancel_of_an_answer_waits_for_its_writer(harness: LogHarness) -> None:
    harness.stream("m", "text")
    assert [type(op) for op in harness.cancel("c", "m", caller=BOB).ops] == [Command]
    assert harness.message("m").status == "streaming"
    harness.finish("m", "cancelled")
    harness.reply("c")
    assert not harness.known_command("c").is_open


def test_cancel_of_a_user_message_without_a_turn_waits_for_the_writer_of_its_answer(harness: LogHarness) -> None:
    harness.create("q", text="question")
    harness.stream("a", reply_to="q")
    assert [type(op) for op in harness.cancel("c", "q").ops] == [Command]


def test_cancel_of_a_user_message_without_turn_and_answer_is_refused(harness: LogHarness) -> None:
    harness.create("q", text="question")
    harness.stream("a", reply_to="q")
    harness.finish("a")
    with pytest.raises(Finished):
        harness.cancel("c", "q")


def test_cancel_of_a_waiting_turn_stops_an_answer_by_another_writer(
    served: LogHarness,
) -> None:
    served.stream("a", "text", reply_to="q")
    assert [type(op) for op in served.cancel("c", "q").ops] == [Command]
    served.settle("c")
    assert served.message("a").status == "cancelled"
    assert served.known("q").claim is not None
    assert not served.known("q").is_open


def test_an_answer_begun_in_the_same_batch_is_seen(batch: LogHarness) -> None:
    batch.create("q", text="question")
    batch.stream("a", "text", reply_to="q")
    batch.append("a", "text", at=0)  # the draft reads the message and finds no change
    batch.cancel("c1", "q")
    batch.cancel("c2", "q")
    batch.cancel("c3", "a")
    batch.settle("c1")
    batch.commit()
    assert batch.message("a").status == "cancelled"


def test_two_clients_may_cancel_the_same_answer(harness: LogHarness) -> None:
    harness.stream("m")
    harness.cancel("c1", "m", caller=ANN)
    harness.cancel("c2", "m", caller=BOB)
    harness.settle("c1")
    harness.settle("c2")
    one, two = harness.known_command("c1").reply, harness.known_command("c2").reply
    assert one is not None
    assert two is not None
    assert (one.ok, two.ok, two.error["code"]) == (True, False, "finished")


# -- settling --------------------------------------------------------------------------------------------------


def test_server_carries_out_a_cancel_of_any_writer(harness: LogHarness) -> None:
    harness.stream("m", "half an ans", meta={"model": "x"})
    harness.stream("n", "another")
    harness.cancel("c", "m", caller=BOB)
    harness.now_ms = 3_000
    result = harness.settle("c")
    assert result.ops == (
        Finish(id="m", status="cancelled", reason=None, meta={"model": "x"}, at_ms=3_000),
        Reply(id="!c", ok=True, data=None, error=None, by=None, at_ms=3_000),
    )
    assert (harness.message("m").status, harness.text("m")) == ("cancelled", "half an ans")
    assert harness.message("n").status == "streaming"
    with pytest.raises(Finished):
        harness.append("m", "wer")


def test_the_server_ends_all_answers_and_the_turn(served: LogHarness) -> None:
    served.claim("q")
    served.stream("a1", reply_to="q")
    served.stream("a2", reply_to="q", caller=BOB)
    served.stream("a3", reply_to="q")
    served.finish("a3")
    served.stream("other")
    served.cancel("c", "q")
    served.settle("c")
    status = {one: served.message(one).status for one in ("a1", "a2", "a3", "other")}
    assert status == {"a1": "cancelled", "a2": "cancelled", "a3": "complete", "other": "streaming"}
    assert served.known("q").claim == ClaimState("cancelled", 1, "agent")


def test_cancel_of_an_answer_cancels_its_turn(served: LogHarness) -> None:
    served.claim("q")
    served.stream("a", reply_to="q")
    served.cancel("c", "a")
    served.settle("c")
    assert served.message("a").status == "cancelled"
    assert not served.known("q").is_open


def test_a_turn_without_an_answer_yet_is_cancelled(served: LogHarness) -> None:
    served.claim("q")
    served.cancel("c", "q")
    assert [type(op) for op in served.settle("c").ops] == [Claim, Reply]
    assert not served.known("q").is_open


def test_a_turn_that_was_taken_over_is_cancelled_in_its_last_attempt(served: LogHarness) -> None:
    served.claim("q")
    served.claim("q", 1)
    served.cancel("c", "q")
    (claim, _) = served.settle("c").ops
    assert claim == Claim(id="q", state="cancelled", generation=2, by="agent", at_ms=1_000)


def test_cancel_ends_an_answer_after_a_takeover(harness: LogHarness) -> None:
    harness.stream("m")
    harness.cancel("c", "m")
    harness.interrupt("m")
    harness.take_over("m")
    harness.settle("c")
    assert harness.message("m").status == "cancelled"


@pytest.mark.parametrize("end", ["finish", "interrupt", "delete"])
def test_cancel_that_came_too_late_gets_the_reply_finished(harness: LogHarness, end: str) -> None:
    harness.stream("m")
    harness.cancel("c", "m")
    getattr(harness, end)("m")
    (reply,) = harness.settle("c").ops
    assert isinstance(reply, Reply)
    assert (reply.ok, reply.error["code"]) == (False, "finished")


@pytest.mark.parametrize("is_expired", [False, True])
def test_command_with_a_reply_is_not_settled_again(harness: LogHarness, is_expired: bool) -> None:
    harness.stream("m")
    harness.cancel("c", "m")
    harness.reply("c", ok=False, error="not now")
    result = harness.settle("c", is_expired=is_expired)
    assert (result.ops, result.serial) == ((), 3)
    assert harness.message("m").status == "streaming"


def test_a_cancel_is_carried_out_also_when_it_expires_first(harness: LogHarness) -> None:
    harness.stream("m")
    harness.cancel("c", "m")
    harness.settle("c", is_expired=True)
    assert harness.message("m").status == "cancelled"


@pytest.mark.parametrize("name", ["steer", "approve", "mine"])
def test_command_without_a_reply_expires(harness: LogHarness, name: str) -> None:
    harness.stream("m")
    harness.command("c", name, target="m")
    assert harness.settle("c").ops == ()
    assert harness.known_command("c").is_open
    (reply,) = harness.settle("c", is_expired=True).ops
    assert isinstance(reply, Reply)
    assert (reply.ok, reply.error["code"], reply.by) == (False, "expired", None)
    assert harness.settle("c", is_expired=True).ops == ()
    with pytest.raises(AlreadyAnswered):
        harness.reply("c")


def test_unknown_command_is_not_settled(harness: LogHarness) -> None:
    with pytest.raises(NotFound):
        harness.settle("c")


# -- replies ---------------------------------------------------------------------------------------------------


def test_the_first_reply_counts(harness: LogHarness) -> None:
    harness.command("c", "approve", caller=ANN)
    first = harness.reply("c", ok=True, data={"by": "bob"}, caller=BOB)
    with pytest.raises(AlreadyAnswered):
        harness.reply("c", ok=False, caller=ANN)
    with pytest.raises(AlreadyAnswered):
        harness.reply("c", ok=True, data={"by": "bob"}, caller=BOB)
    reply = harness.known_command("c").reply
    assert reply == Reply(id="!c", ok=True, data={"by": "bob"}, error=None, by="bob", at_ms=1_000)
    assert (first.serial, harness.known_command("c").reply_serial) == (2, 2)


def test_of_two_replies_in_a_batch_the_first_counts(batch: LogHarness) -> None:
    batch.command("c", "approve")
    batch.reply("c", data=1)
    with pytest.raises(AlreadyAnswered):
        batch.reply("c", data=2)
    assert len(batch.commit()) == 2


def test_the_same_reply_again_is_success_with_its_first_serial(harness: LogHarness) -> None:
    harness.command("c", "approve")
    first = harness.reply("c", data=1, request="r")
    harness.create("m", text="in between")
    again = harness.reply("c", data=1, request="r")
    assert (first.serial, again.serial, again.ops) == (2, 2, ())
    with pytest.raises(AlreadyAnswered):
        harness.reply("c", data=1, request="other")


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, HALF])
def test_invalid_request_id_of_a_reply_is_refused(harness: LogHarness, bad: str) -> None:
    harness.command("c", "approve")
    with pytest.raises(InvalidName):
        harness.reply("c", request=bad)


STRANGERS = [BOB, replace(BOB, may_write=False), PERSON, replace(ANN, may_write=False), NAMELESS]


@pytest.mark.parametrize("caller", STRANGERS)
@pytest.mark.parametrize("name", ["cancel", "steer"])
def test_reply_to_a_cancel_or_steer_by_another_client_is_refused(
    harness: LogHarness, name: str, caller: Caller
) -> None:
    harness.stream("m")
    harness.command("c", name, target="m", caller=PERSON)
    with pytest.raises(Forbidden):
        harness.reply("c", caller=caller)
    assert harness.known_command("c").is_open


@pytest.mark.parametrize("caller", [ANN, APP, replace(APP, may_write=False), SERVER, ADMIN])
@pytest.mark.parametrize("name", ["cancel", "steer"])
def test_writer_app_and_admin_may_reply_to_a_cancel_or_steer(harness: LogHarness, name: str, caller: Caller) -> None:
    harness.stream("m")
    harness.command("c", name, target="m", caller=PERSON)
    harness.reply("c", caller=caller)
    assert not harness.known_command("c").is_open


def test_writer_may_reply_for_the_user_message_and_after_its_answer_ended(harness: LogHarness) -> None:
    harness.create("q", text="question", caller=PERSON)
    harness.stream("a", reply_to="q")
    harness.cancel("c1", "q", caller=PERSON)
    harness.cancel("c2", "a", caller=PERSON)
    harness.reply("c1", caller=ANN)
    harness.finish("a", "cancelled")
    harness.reply("c2", caller=ANN)
    assert list(harness.state.pending_commands()) == []


def test_only_the_newest_writer_of_an_answer_may_reply(harness: LogHarness) -> None:
    harness.stream("m")
    harness.interrupt("m")
    harness.take_over("m", caller=BOB)
    harness.cancel("c", "m", caller=PERSON)
    with pytest.raises(Forbidden):
        harness.reply("c", caller=ANN)
    harness.reply("c", caller=BOB)


def test_client_with_the_name_of_a_writer_in_the_process_may_not_reply(harness: LogHarness) -> None:
    harness.stream("m", caller=APP)
    harness.cancel("c", "m", caller=PERSON)
    with pytest.raises(Forbidden):
        harness.reply("c", caller=Caller(id="app"))
    harness.reply("c", caller=APP)


@pytest.mark.parametrize("name", ["cancel", "steer"])
def test_worker_of_the_turn_may_reply(served: LogHarness, name: str) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.command("c", name, target="q", caller=PERSON)
    for stranger in (replace(FAR, id="farther"), replace(FAR, id="fa"), PERSON):
        with pytest.raises(Forbidden):
            served.reply("c", caller=stranger)
    served.reply("c", caller=replace(FAR, may_read=False, may_write=False))
    assert not served.known_command("c").is_open


@pytest.mark.parametrize("is_taken", [False, True])
def test_client_that_starts_an_answer_of_its_own_may_not_reply_for_another_writer(
    served: LogHarness, is_taken: bool
) -> None:
    """Otherwise such a client could reply that all answers stopped, and keep the server from stopping them."""
    if is_taken:
        served.claim("q", caller=REMOTE, lease_s=15)
    else:
        served.stream("a", reply_to="q", caller=ANN)
    served.stream("mine", reply_to="q", caller=BOB)
    served.cancel("c", "q", caller=PERSON)
    with pytest.raises(Forbidden):
        served.reply("c", caller=BOB)
    served.settle("c")
    assert {one.id for one in served.state.messages.values() if one.is_streaming} == set()


def test_worker_of_a_turn_may_not_reply_for_an_answer_by_another_writer(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.stream("a", reply_to="q", caller=BOB)
    served.cancel("c", "a", caller=PERSON)
    with pytest.raises(Forbidden):
        served.reply("c", caller=FAR)
    served.reply("c", caller=BOB)


def test_an_agent_of_several_names_answers_for_each_of_them(served: LogHarness) -> None:
    served.claim("q", caller=replace(REMOTE, id="far~two"), lease_s=15)
    served.cancel("c", "q", caller=PERSON)
    served.reply("c", caller=FAR)


@pytest.mark.parametrize("end", ["done", "taken by another"])
def test_worker_that_lost_the_turn_may_not_reply(served: LogHarness, end: str) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.command("c", "steer", target="q", caller=PERSON)
    if end == "done":
        served.end("q", 1, caller=REMOTE)
    else:
        served.claim("q", 1, caller=AGENT)
    with pytest.raises(Forbidden):
        served.reply("c", caller=FAR)


def test_repeated_reply_succeeds_after_its_sender_lost_the_turn(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.command("c", "steer", target="q", caller=PERSON)
    first = served.reply("c", caller=FAR, request="r")
    served.end("q", 1, caller=REMOTE)
    assert served.reply("c", caller=FAR, request="r").serial == first.serial


def test_reply_to_a_steer_without_a_target_needs_write_access(harness: LogHarness) -> None:
    harness.command("c", "steer", caller=PERSON)
    with pytest.raises(Forbidden):
        harness.reply("c", caller=PERSON)
    harness.reply("c", caller=BOB)


@pytest.mark.parametrize("name", ["approve", "mine"])
def test_any_client_may_reply_to_other_commands(harness: LogHarness, name: str) -> None:
    harness.command("c", name, caller=AGENT)
    harness.reply("c", caller=PERSON)
    assert not harness.known_command("c").is_open


def test_client_without_read_access_does_not_learn_which_commands_exist(harness: LogHarness) -> None:
    harness.command("open", "approve")
    harness.command("done", "approve")
    harness.reply("done")
    for command_id in ("open", "done", "never"):
        with pytest.raises(NotFound) as refusal:
            harness.reply(command_id, caller=EVE)
        expected = NotFound(f"command {command_id!r} does not exist in this channel; check the id")
        assert refusal.value.problem() == expected.problem()
    assert harness.known_command("open").is_open


def test_sender_without_read_access_may_reply_to_its_own_command(harness: LogHarness) -> None:
    harness.command("c", "approve", caller=EVE)
    harness.reply("c", ok=False, caller=EVE)
    assert not harness.known_command("c").is_open


def test_reply_to_an_unknown_command_is_refused(harness: LogHarness) -> None:
    with pytest.raises(NotFound):
        harness.reply("c")


@pytest.mark.parametrize(
    "send",
    [
        lambda harness: harness.cancel("c", "nobody"),
        lambda harness: harness.command("c", "a b"),
        lambda harness: harness.command("c", data=float("nan")),
        lambda harness: harness.reply("other", data=HALF),
        lambda harness: harness.reply("never"),
        lambda harness: harness.cancel("other", "m"),
    ],
)
def test_a_refused_command_adds_nothing(batch: LogHarness, send: Any) -> None:
    batch.stream("m", "")
    batch.command("other")
    batch.commit()
    batch.append("m", "a")
    with pytest.raises(TenutoError):
        send(batch)
    batch.append("m", "b")
    assert [one.serial for one in batch.commit()] == [3]
    assert (batch.text("m"), list(batch.state.commands)) == ("ab", ["!other"])


def test_a_dropped_batch_leaves_no_command_and_no_reply(batch: LogHarness) -> None:
    batch.command("c1")
    batch.commit()
    batch.command("c2")
    batch.reply("c1", request="r")
    batch.draft = type(batch.draft)(batch.state)
    assert batch.known_command("c1").is_open
    assert batch.command("c2").ops != ()
    assert batch.reply("c1", request="r").ops != ()


def test_of_two_replies_in_a_log_the_first_counts(harness: LogHarness) -> None:
    harness.command("c", "approve")
    harness.reply("c", data="first")
    first = harness.known_command("c").reply
    apply_entry(harness.state, Entry(3, Reply(id="!c", ok=False, data="second", error=None, by="bob")))
    assert (harness.known_command("c").reply, harness.known_command("c").reply_serial, harness.state.serial) == (
        first,
        2,
        3,
    )


def test_approval_or_denial_is_noted_at_its_tool_call(harness: LogHarness) -> None:
    call = {"type": "tool", "call": "c1", "name": "pay", "input": "{}", "state": "called"}
    harness.stream("m", parts=[call])
    harness.command("withdrawn", "approve", target="m", data={"call": "c1"})
    harness.reply("withdrawn", ok=False, error={"code": "withdrawn"}, caller=BOB)
    assert harness.message("m").parts == [call]
    harness.command("yes", "approve", target="m", data={"call": "c1"})
    harness.reply("yes", ok=True, data={"reason": "r" * 2_000}, caller=BOB)
    assert harness.message("m").parts == [{**call, "approval": {"id": "yes", "approved": True, "reason": "r" * 1_000}}]
    harness.command("no", "approve", target="m", data={"call": "c1"})
    result = harness.reply("no", ok=False, caller=BOB)
    denied = {**call, "state": "denied", "approval": {"id": "no", "approved": False}}
    assert harness.message("m").parts == [denied]
    for rest in ([{"type": "file", "call": ["c1"]}], []):
        harness.update("m", generation=1, parts=[{**call, "input": "redacted"}, *rest])
        redacted = {**call, "input": "redacted", "approval": denied["approval"]}
        assert harness.message("m").parts == [redacted, *rest]
    for other in ({**call, "state": "error", "output": "no"}, {**call, "call": "c2"}):
        harness.part("m", 0, other)
        approval = {"approval": denied["approval"]} if other["call"] == "c1" else {}
        assert harness.message("m").parts == [{**other, **approval}]
    assert harness.known_command("no").reply_serial == result.serial
