"""Stored commands, the clients that may reply, and the commands that the server carries out (`docs/protocol.md`).

Layer: tests.

A command has one reply. A `cancel` works even if no agent is connected.
"""

from __future__ import annotations

from contextlib import suppress
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
    NotFound,
    StillStreaming,
    TooLarge,
    TooMany,
)
from tenuto.core.limits import Limits
from tenuto.core.model import OPTIONS_KEY
from tenuto.core.ops import Claim, Command, Finish, Reply
from tenuto.core.requests import Caller, references, regenerate_options_id, stored_options
from tenuto.core.state import ClaimState
from tenuto.core.turns import UNREAD, question_id, step_id
from tests.core.harness import ADMIN, AGENT, ANN, APP, BOB, NAMELESS, PERSON, SERVER, LogHarness

EVE = Caller(id="eve", may_read=False)
REMOTE = Caller(id="far", is_server=True)  # the hub acts for an agent in another process, named "far"
FAR = Caller(id="far")


# -- sending ---------------------------------------------------------------------------------------------------


def test_only_a_cancel_needs_a_target(harness: LogHarness) -> None:
    harness.command("c", "approve")
    with pytest.raises(InvalidRequest):
        harness.cancel("c2", None)


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


def test_number_of_waiting_commands_is_bounded() -> None:
    harness = LogHarness(Limits(open_commands=2))
    first, second, third = (Caller(id=f"person-{number}", may_write=False) for number in range(3))
    harness.command("c1", caller=first)
    harness.command("c2", caller=second)
    with pytest.raises(TooMany) as refusal:
        harness.command("c3", caller=third)
    assert (refusal.value.details, refusal.value.retry, refusal.value.status) == ({"limit": 2}, True, 429)
    harness.reply("c1")
    harness.command("c3", caller=third)


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
    assert claim == Claim(id="q", state="pending", generation=128, at_ms=1_000)
    assert reply == Reply(id="!c", ok=True, data=None, error=None, by=None, at_ms=1_000)
    assert served.known("q").is_pending
    assert list(served.state.turns) == ["q"]
    assert served.known("q").version == 1  # viewers get no event about the message
    assert regenerate(served, "c", "q", caller=BOB).ops == ()  # a repeat
    served.claim("q", 128)
    served.end("q", 129)
    assert regenerate(served, "c2", "q").ops[1].generation == 256
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


TOOLS = [{"type": "function", "name": "weather"}]


def options_of(harness: LogHarness, message_id: str) -> dict[str, Any]:
    """Return the options of the last regenerate of a message, as an agent finds them."""
    meta = {OPTIONS_KEY: harness.message(regenerate_options_id(message_id)).parts[0]["data"]}
    return stored_options(meta, [harness.message(one) for one in references(meta).values()])


def again(harness: LogHarness, command_id: str, **fields: Any) -> list[str]:
    """Let the message "q" wait again. Return the types of the operations, and end its turn."""
    ops = regenerate(harness, command_id, "q", **fields).ops
    generation = harness.known("q").claim.generation  # type: ignore[union-attr]
    harness.claim("q", generation)
    harness.end("q", generation + 1)
    return [type(op).__name__ for op in ops]


def test_options_of_a_regenerate_are_kept_beside_the_message_in_the_same_decision(served: LogHarness) -> None:
    served.claim("q")
    served.end("q")
    asked, options = served.message("q"), {"tools": TOOLS, "model": "m2", "seed": 7}
    assert again(served, "c1", options=options) == ["Command", "Create", "Create", "Create", "Claim", "Reply"]
    assert served.known_command("c1").sent.data is None  # viewers get no option
    assert options_of(served, "q") == options
    # one that is created anew, after this one was forgotten, has no options of this one
    assert served.message(regenerate_options_id("q")).parts[0]["name"] == str(asked.created)
    assert served.message("q") == asked
    assert served.state.newest == "q"  # the next message follows the question
    assert again(served, "c2", options=options) == ["Command", "Claim", "Reply"]
    assert again(served, "c3", options={"model": "m3"}) == ["Command", "Create", "Update", "Claim", "Reply"]
    assert options_of(served, "q") == {"model": "m3"}
    assert again(served, "c4") == ["Command", "Update", "Claim", "Reply"]
    assert options_of(served, "q") == {}
    assert again(served, "c5") == ["Command", "Claim", "Reply"]
    served.create("p", text="next")
    assert served.message("p").parent == "q"


def test_regenerate_with_other_options_is_another_command(served: LogHarness) -> None:
    with pytest.raises(StillStreaming):  # the first attempt may begin with the options of the question
        regenerate(served, "c", "q", options={"seed": 1})
    served.claim("q")
    served.end("q")
    regenerate(served, "c", "q", options={"seed": 1})
    assert regenerate(served, "c", "q", options={"seed": 1}).ops == ()
    for other in ({"seed": 2}, {}):
        with pytest.raises(IdConflict):
            regenerate(served, "c", "q", options=other)
    assert options_of(served, "q") == {"seed": 1}


@pytest.mark.parametrize(
    ("name", "options"), [("steer", {"seed": 1}), ("regenerate", {"kept": {}}), ("regenerate", {"": 1})]
)
def test_options_that_cannot_be_kept_are_refused(served: LogHarness, name: str, options: dict[str, Any]) -> None:
    served.claim("q")
    served.end("q")
    with pytest.raises(InvalidRequest, match="options"):
        served.command("c", name, target="q", options=options)
    large = {f"large{number}": "x" * 600 for number in range(70)}
    with pytest.raises(TooLarge, match="list of large options"):
        regenerate(served, "c", "q", options=large)
    assert list(served.state.messages) == ["q"]


def test_no_message_of_a_client_takes_the_id_of_options(served: LogHarness) -> None:
    with pytest.raises(InvalidName, match="are those of options"):
        served.create(regenerate_options_id("q"), text="mine")


@pytest.mark.parametrize("made_id", [question_id, step_id])
def test_no_command_of_a_client_takes_the_id_of_a_question_or_step(served: LogHarness, made_id: Any) -> None:
    with pytest.raises(InvalidName, match="choose another id"):
        served.command(made_id("c", "q", 1, "approve"), "approve", target="q", caller=PERSON)


def test_options_of_many_values_keep_the_small_ones_among_those_that_a_reader_looks_for(served: LogHarness) -> None:
    served.claim("q")
    served.end("q")
    regenerate(served, "c", "q", options={**{f"l{number}": "x" * 600 for number in range(64)}, "model": "m2"})
    assert options_of(served, "q")["model"] == "m2"


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
    with pytest.raises(Finished):
        served.cancel("c2", "q", caller=BOB)


def test_cancel_of_a_user_message_without_a_turn_waits_for_the_writer_of_its_answer_while_one_runs(
    harness: LogHarness,
) -> None:
    harness.create("q", text="question")
    harness.stream("a", reply_to="q")
    assert [type(op) for op in harness.cancel("c", "q").ops] == [Command]
    harness.finish("a")
    with pytest.raises(Finished):
        harness.cancel("c2", "q")


def test_cancel_of_a_waiting_turn_stops_an_answer_by_another_writer(served: LogHarness) -> None:
    served.stream("a", "text", reply_to="q")
    assert [type(op) for op in served.cancel("c", "q").ops] == [Command]
    served.settle("c")
    assert served.message("a").status == "cancelled"
    assert served.known("q").claim is not None
    assert not served.known("q").is_open


# -- settling --------------------------------------------------------------------------------------------------


def test_server_carries_out_a_cancel_of_any_writer(harness: LogHarness) -> None:
    harness.stream("m", "half an ans", meta={"model": "x"})
    harness.stream("n", "another")
    harness.cancel("c", "m", caller=BOB)
    harness.now_ms = 3_000
    assert harness.settle("c").ops == (
        Finish(id="m", status="cancelled", reason=None, meta={"model": "x"}, at_ms=3_000),
        Reply(id="!c", ok=True, data=None, error=None, by=None, at_ms=3_000),
    )
    assert (harness.message("m").status, harness.text("m")) == ("cancelled", "half an ans")
    assert harness.message("n").status == "streaming"
    with pytest.raises(Finished):
        harness.append("m", "wer")


def test_command_without_a_reply_expires(harness: LogHarness) -> None:
    harness.stream("m")
    harness.command("c", target="m")
    assert harness.settle("c").ops == ()
    assert harness.known_command("c").is_open
    (reply,) = harness.settle("c", is_expired=True).ops
    assert isinstance(reply, Reply)
    assert (reply.ok, reply.error["code"], reply.by) == (False, "expired", None)
    assert harness.settle("c", is_expired=True).ops == ()
    with pytest.raises(AlreadyAnswered):
        harness.reply("c")


# -- replies ---------------------------------------------------------------------------------------------------


WHO = {
    "ann": ANN,
    "ann_reads": replace(ANN, may_write=False),
    "bob": BOB,
    "person": PERSON,
    "nameless": NAMELESS,
    "app": APP,
    "app_reads": replace(APP, may_write=False),
    "app_id": Caller(id="app"),
    "server": SERVER,
    "admin": ADMIN,
    "far": FAR,
    "far_blind": replace(FAR, may_read=False, may_write=False),
    "fa": replace(FAR, id="fa"),
}

# For each state of the target: the callers that may reply to a command about it.
MAY_REPLY = """
streaming        ann app app_reads server admin
of_a_question    ann app app_reads server admin
over             ann app app_reads server admin
taken_over       bob app app_reads server admin
of_the_app       app app_reads server admin
turn             far far_blind app app_reads server admin
turn_and_other   far far_blind app app_reads server admin
turn_that_waits  app app_reads server admin
two_answers      app app_reads server admin
other_answer     bob app app_reads server admin
turn_of_far_two  far far_blind app app_reads server admin
turn_over        app app_reads server admin
turn_lost        app app_reads server admin
"""
ROWS = MAY_REPLY.strip().splitlines()
STEERED = [row for row in ROWS if not row.startswith(("over", "turn_over"))]  # the end replies to steers


def target_in(state: str, served: LogHarness) -> str:
    """Bring the target of a command into a state of `MAY_REPLY`, and return its id; "q" is a question."""
    match state:
        case "of_the_app":
            served.stream("m", caller=APP)
        case "taken_over":
            served.stream("m")
            served.interrupt("m")
            served.take_over("m", caller=BOB)
        case "of_a_question" | "two_answers" | "turn_that_waits":
            served.stream("a", reply_to="q", caller=ANN)
        case "turn_of_far_two":
            served.claim("q", caller=replace(REMOTE, id="far~two"), lease_s=15)
        case "streaming" | "over":
            served.stream("m")
        case _:
            served.claim("q", caller=REMOTE, lease_s=15)
    if state in ("turn_and_other", "two_answers", "other_answer"):
        served.stream("b", reply_to="q", caller=BOB)
    return "b" if state == "other_answer" else "m" if "m" in served.state.messages else "q"


@pytest.mark.parametrize(("name", "row"), [*(("cancel", row) for row in ROWS), *(("steer", row) for row in STEERED)])
def test_callers_that_may_reply_to_a_cancel_or_steer_are_those_of_the_table(name: str, row: str) -> None:
    state, *expected = row.split()
    found = []
    for who, caller in WHO.items():
        served = LogHarness()
        served.is_served = state not in ("of_a_question", "two_answers")
        served.create("q", text="question", caller=PERSON)
        served.command("c", name, target=target_in(state, served), caller=PERSON)
        if state == "over":
            served.finish("m", "cancelled")
        elif state == "turn_over":
            served.end("q", 1, caller=REMOTE)
        elif state == "turn_lost":
            served.claim("q", 1, caller=AGENT)
        with suppress(Forbidden, NotFound):  # `far_blind` may not learn of other commands
            served.reply("c", caller=caller)
            found.append(who)
        assert served.known_command("c").is_open is (who not in found)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("end", ["finish", "interrupt", "delete", "cancel"])
def test_steers_of_an_answer_without_a_turn_get_a_reply_when_it_ends_and_later_ones_are_refused(end: str) -> None:
    log = LogHarness()
    log.create("q", text="question")
    log.stream("m", reply_to="q")
    log.stream("other")
    for target in ("m", "q", "other"):
        log.command(f"for-{target}", "steer", target=target)
    getattr(log, end)(*(["stop", "q"] if end == "cancel" else ["m"]))
    if end == "cancel":
        log.settle("stop")
    assert [one.sent.target for one in log.state.pending_commands()] == ["other"]
    for target in ("m", "q"):
        reply = log.known_command(f"for-{target}").reply
        assert (reply and (reply.ok, reply.error, reply.by)) == (False, UNREAD, None)
        with pytest.raises((Finished, Deleted)):
            log.command("late", "steer", target=target)


def test_reply_to_a_steer_without_a_target_needs_write_access(harness: LogHarness) -> None:
    harness.command("c", "steer", caller=PERSON)
    with pytest.raises(Forbidden):
        harness.reply("c", caller=PERSON)
    harness.reply("c", caller=BOB)


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
    harness.command("yes", "approve", target="m", data={"call": "c1"})  # a repeat of its sender
    assert harness.message("m").parts == [denied]
    for rest in ([{"type": "file", "call": ["c1"]}], []):
        harness.update("m", generation=1, parts=[{**call, "input": "redacted"}, *rest])
        redacted = {**call, "input": "redacted", "approval": denied["approval"]}
        assert harness.message("m").parts == [redacted, *rest]
    for other in ({**call, "state": "error", "output": "no"}, {**call, "call": "c2"}):
        harness.part("m", 0, other)
        harness.command(f"late-{other['call']}", "approve", target="m", data={"call": "c1"})
        harness.reply(f"late-{other['call']}", ok=True, caller=BOB)
        approval = {"approval": denied["approval"]} if other["call"] == "c1" else {}
        assert harness.message("m").parts == [{**other, **approval}]
    assert harness.known_command("no").reply_serial == result.serial
    harness.stream("n", parts=[call, call])  # a model may repeat the id of a call
    for id in ("first", "second", "again"):
        harness.command(id, "approve", target="n", data={"call": "c1"})
        harness.reply(id, ok=id != "first", caller=BOB)
        noted = [(part.get("approval", {}).get("id"), part["state"]) for part in harness.message("n").parts]
        assert noted == [("first", "denied"), (None if id == "first" else id, call["state"])]
