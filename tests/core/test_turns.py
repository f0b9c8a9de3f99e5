"""Turns and leases: the worker of a message, its writer, and the duration of both (`docs/protocol.md`, agents).

Layer: tests.

Claims and leases are entries that no viewer sees: they move the channel's serial and no version.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from tenuto.core.decide import GIVEN_BACK_MS
from tenuto.core.errors import Fenced, Finished, NotWriter, TooMany
from tenuto.core.limits import Limits
from tenuto.core.names import command_id
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import AppendText, Caller, ClaimTurn, CreateMessage, EndTurn, FinishMessage, RenewLease, needs
from tenuto.core.state import ClaimState
from tenuto.core.turns import UNREAD, WITHDRAWN, question_id, reply_id
from tests.core.harness import AGENT, ANN, APP, SERVER, LogHarness

REMOTE = Caller(id="agent", is_server=True)  # the hub acts for a worker in another process
OTHER_NODE = replace(AGENT, writer=WriterIdentity(by="agent", node="there"))


def claim_of(harness: LogHarness, message_id: str = "q") -> ClaimState:
    claim = harness.known(message_id).claim
    assert claim is not None
    return claim


# -- waiting turns ---------------------------------------------------------------------------------------------


def test_message_in_a_channel_without_agents_gets_no_turn() -> None:
    harness = LogHarness()
    harness.create("q", text="question")
    assert (harness.known("q").claim, harness.known("q").is_open) == (None, False)
    with pytest.raises(Finished):
        harness.claim("q")


def test_only_whole_messages_of_users_get_turns(served: LogHarness) -> None:
    for role in ("system", "assistant"):
        served.create(role, role=role, text="x")
    served.create("streams", role="user", status="streaming")
    served.finish("streams")
    assert list(served.state.turns) == ["q"]


def test_bytes_of_waiting_messages_are_bounded() -> None:
    harness = LogHarness(Limits(pending_bytes=100))
    harness.is_served = True
    harness.create("q1", text="x" * 60)  # counts as 75 bytes: 60 of text, and 15 for its part
    harness.create("q2", text="x" * 10)
    with pytest.raises(TooMany) as refusal:
        harness.create("q3", text="x")
    assert refusal.value.details == {"limit": 100}
    harness.cancel("c", "q1")
    harness.create("q3", text="x" * 1_000)  # a single message above the bound is accepted


# -- claims ----------------------------------------------------------------------------------------------------


def test_attempt_that_its_agent_gives_back_has_a_lease_that_ends_at_once(served: LogHarness) -> None:
    renewing, owner = ClaimTurn(generation=1, renews=True), Caller(id="agent")
    giving_back = replace(renewing, gives_back=True)
    served.claim("q", caller=REMOTE, lease_s=15.0)
    with pytest.raises(NotWriter):
        served.ask("q", giving_back, Caller(id="thief"))
    with pytest.raises(Fenced):  # a hub that has not read a renewal
        served.ask("q", replace(giving_back, confirmed=1), REMOTE)
    assert served.ask("q", giving_back, owner).ops
    assert claim_of(served) == ClaimState("taken", 1, "agent", lease_ms=GIVEN_BACK_MS, confirmed=1)
    assert served.ask("q", giving_back, owner).ops == ()  # the result of this request was lost
    with pytest.raises(Fenced):
        served.ask("q", renewing, owner)
    for late in (ClaimTurn(generation=1, lease_s=15), EndTurn(generation=1, confirmed=0, failure="failure")):
        with pytest.raises(Fenced):  # a hub that has not read the renewal
            served.ask("q", late, SERVER)
    assert served.ask("q", ClaimTurn(generation=1, confirmed=1, lease_s=15), REMOTE).generation == 2
    with pytest.raises(Fenced):
        served.ask("q", giving_back, owner)


def test_renewal_of_a_lease_stores_another_term_alone() -> None:
    harness = LogHarness()
    harness.ask("m", CreateMessage(status="streaming", lease_s=15.0), ANN)
    harness.now_ms = 5_000
    assert [len(harness.ask("m", RenewLease(lease_s=term_s), ANN).ops) for term_s in (15.0, 30.0, 30.0)] == [0, 1, 0]
    assert harness.known("m").alive_at == 5_000


def test_repeated_claim_succeeds_if_its_result_was_lost(served: LogHarness) -> None:
    served.claim("q", caller=AGENT)
    served.create("between", text="x")
    again = served.claim("q", caller=AGENT)
    assert (again.ops, again.generation, again.serial) == ((), 1, 2)


def test_answer_of_an_attempt_is_refused_once_the_turn_has_a_later_attempt(served: LogHarness) -> None:
    first, second = replace(AGENT, attempt=1), replace(OTHER_NODE, attempt=2)
    answer = CreateMessage(status="streaming", reply_to="q")
    assert needs("a", answer, first) == ("a", "q")
    assert needs("a", replace(answer, reply_to="no id\n"), first) == ("a",)
    assert needs("a", answer, AGENT) == ("a", "q")
    served.claim("q", caller=AGENT)
    served.ask("a1", answer, first)
    served.claim("q", 1, caller=OTHER_NODE)
    assert served.ask("a1", answer, first).ops == ()  # the result of this request was lost
    refused = "attempt 1 cannot begin a further answer to message 'q': attempt 2 has followed; end this handler"
    with pytest.raises(Fenced, match=refused) as refusal:
        served.ask("a2", answer, first)
    assert refusal.value.details == {"generation": 2}
    served.ask("a3", answer, second)
    served.end("q", 2, caller=OTHER_NODE)
    assert served.ask("a4", answer, second).ops  # a handler may write another answer after the end of its turn
    assert served.ask("a5", replace(answer, reply_to="gone"), first).ops


def test_no_agent_begins_an_answer_to_a_deleted_message(served: LogHarness) -> None:
    answer = CreateMessage(role="assistant", status="streaming", reply_to="q")
    served.claim("q", caller=AGENT)
    served.ask("a1", answer, replace(AGENT, attempt=1))
    served.delete("q")
    for caller in (replace(AGENT, attempt=1), Caller(id="agent")):  # an agent in another process names no attempt
        with pytest.raises(Fenced, match="'q' was deleted; begin no answer to it"):
            served.ask("a2", answer, caller)
    assert served.ask("u", replace(answer, role="user", status="complete"), ANN).ops


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_answer_of_a_remote_agent_shows_its_attempt_by_its_id(served: LogHarness, rounds: int) -> None:
    """After another round the attempt is refused as well, and after two it is not sought any more."""
    answer, owner = CreateMessage(status="streaming", reply_to="q"), Caller(id="agent")
    served.claim("q", caller=REMOTE)
    assert served.ask(reply_id("q", 1), answer, owner).ops
    served.ask(reply_id("q", 1), FinishMessage(status="complete", generation=1), owner)
    served.claim("q", 1, caller=REMOTE)
    assert served.ask(reply_id("q", 1), answer, owner).ops == ()  # it exists
    for number in range(rounds):
        served.end("q", 2 + 128 * number, caller=REMOTE)
        served.command(f"again{number}", "regenerate", target="q")
        served.claim("q", 128 + 128 * number, caller=REMOTE)
        served.claim("q", 129 + 128 * number, caller=REMOTE)
    late = reply_id("q", 1, 1)
    if rounds < 2:
        with pytest.raises(Fenced, match="attempt 1 cannot begin a further answer"):
            served.ask(late, answer, owner)
    else:
        assert served.ask(late, answer, owner).ops
    assert served.ask(reply_id("q", 2 + 128 * rounds), answer, owner).ops
    assert served.ask("of-a-person", answer, ANN).ops


# -- turns that are given up -----------------------------------------------------------------------------------


def give_up(harness: LogHarness, generation: int) -> None:
    """End the turn of `q` after its last attempt, as the hub does."""
    harness.ask("q", EndTurn(generation=generation, confirmed=0, failure="failure"), SERVER)


def answers_of(harness: LogHarness) -> list[tuple[str, str, str | None, str]]:
    """Return the answers, oldest first: id, status, reason and text."""
    known = sorted(harness.state.messages.values(), key=lambda one: one.created)
    answers = [one.message() for one in known if one.reply_to == "q"]
    return [(one.id, one.status, one.reason, one.text) for one in answers]


def begin_answer(harness: LogHarness, attempt: int, text: str, *, number: int = 0, parent: str | None = None) -> str:
    """Begin an answer as attempt `attempt` does; return its id."""
    id = reply_id("q", attempt, number)
    harness.stream(id, text, reply_to="q", parent=parent or "q", caller=replace(AGENT, attempt=attempt))
    return id


@pytest.mark.parametrize("status", ["streaming", "interrupted"])
def test_answer_of_a_turn_that_is_given_up_fails_and_its_last_attempt_writes_no_more(
    served: LogHarness, status: str
) -> None:
    served.claim("q")
    id = begin_answer(served, 1, "half")
    if status == "interrupted":
        served.interrupt(id)
    give_up(served, 1)
    assert answers_of(served) == [(id, "failed", "crashed", "half")]
    late = replace(AGENT, attempt=1)
    for request in (AppendText(text="late"), FinishMessage(status="complete"), FinishMessage(status="failed")):
        with pytest.raises(Fenced):
            served.ask(id, replace(request, generation=1), late)
    with pytest.raises(Fenced):
        begin_answer(served, 1, "late", number=1)
    with pytest.raises(Fenced):  # an agent in another process names no attempt
        served.stream(reply_id("q", 1, 1), reply_to="q", caller=Caller(id="agent"))
    assert answers_of(served) == [(id, "failed", "crashed", "half")]
    served.command("again", "regenerate", target="q")
    assert (claim_of(served).state, claim_of(served).generation) == ("pending", 128)


def test_each_answer_that_a_given_up_turn_has_left_fails_and_complete_ones_stay(served: LogHarness) -> None:
    served.claim("q")
    first = begin_answer(served, 1, "whole")
    served.finish(first, caller=AGENT, generation=1)
    second = begin_answer(served, 1, "half", number=1, parent=first)
    third = begin_answer(served, 1, "begun", number=2, parent=second)
    served.interrupt(second)
    give_up(served, 1)
    assert answers_of(served) == [
        (first, "complete", None, "whole"),
        (second, "failed", "crashed", "half"),
        (third, "failed", "crashed", "begun"),
    ]


def test_turn_with_a_complete_answer_is_given_up_without_a_failed_one(served: LogHarness) -> None:
    served.claim("q")
    id = begin_answer(served, 1, "whole")
    served.finish(id, caller=AGENT, generation=1)
    served.claim("q", 1)
    give_up(served, 2)
    assert answers_of(served) == [(id, "complete", None, "whole")]


def test_of_the_answers_of_several_attempts_the_newest_fails(served: LogHarness) -> None:
    """An agent that may not read what earlier attempts wrote begins an answer in each."""
    served.claim("q")
    first = begin_answer(served, 1, "one")
    served.claim("q", 1)
    second = begin_answer(served, 2, "two")
    served.interrupt(second)
    give_up(served, 2)
    assert answers_of(served) == [(first, "interrupted", None, "one"), (second, "failed", "crashed", "two")]
    with pytest.raises(Fenced):
        served.append(first, "late", caller=AGENT, generation=1)


def test_answer_of_an_earlier_round_and_a_deleted_one_do_not_fail_and_an_empty_one_does(served: LogHarness) -> None:
    served.claim("q")
    first = begin_answer(served, 1, "one")
    served.interrupt(first)
    served.end("q")
    served.command("again", "regenerate", target="q")
    served.claim("q", 128)
    second = begin_answer(served, 129, "two")
    served.delete(second, caller=AGENT)
    give_up(served, 129)
    assert answers_of(served) == [
        (first, "interrupted", None, "one"),
        (second, "streaming", None, ""),
        ("failure", "failed", "crashed", ""),
    ]


# -- questions -------------------------------------------------------------------------------------------------


def ask_question(harness: LogHarness, target: str, generation: int = 1) -> str:
    """Ask a question about `target`, as the turn of `q` does; return its id."""
    id = question_id("c", "q", generation, target)
    harness.command(id, "approve", target=target, generation=generation, expires_s=3600.0, caller=APP)
    return id


ENDS: dict[str, Callable[[LogHarness], object]] = {
    "given up": lambda log: give_up(log, 1),
    "done": lambda log: log.end("q"),
    "cancelled": lambda log: log.end("q", state="cancelled"),
    "cancel of a waiting turn": lambda log: (log.end("q", state="pending"), log.cancel("stop", "q")),
    "late cancel": lambda log: (log.cancel("stop", "q"), log.settle("stop")),
    "done by another attempt": lambda log: (log.claim("q", 1), log.end("q", 2)),
    "deleted": lambda log: log.delete("q"),
}
OVER = ("done", "cancelled")  # those with which a message that was taken in ends: the attempt itself ends the turn


@pytest.mark.parametrize("end", ENDS)
def test_questions_and_steers_of_a_turn_are_withdrawn_by_the_commit_that_ends_it_and_no_other_commands(
    served: LogHarness, end: str
) -> None:
    served.claim("q")
    answer = begin_answer(served, 1, "May I?")
    served.stream("spare", "And may I?", reply_to="q", parent=answer, caller=AGENT)
    asked = [ask_question(served, target) for target in ("q", answer, "spare")]
    served.command("of-a-client", "translate", target=answer)
    served.command("shorter", "steer", target="spare")
    served.create("another", text="question")
    served.claim("another")
    others = question_id("c", "another", 1, "")
    served.command(others, "approve", target="another", generation=1, caller=APP)
    served.command("for-another", "steer", target="another")
    served.interrupt(answer)
    served.interrupt("spare")
    del served.state.messages[answer]  # it has left memory
    ENDS[end](served)
    replies = [served.known_command(one).reply for one in (*asked, "shorter")]
    assert [r and (r.ok, r.error, r.by) for r in replies] == [(False, WITHDRAWN, "app")] * 3 + [(False, UNREAD, None)]
    assert [command_id(one.id) for one in served.state.pending_commands()] == ["of-a-client", others, "for-another"]
    assert not claim_of(served).is_open


def test_questions_of_a_turn_that_is_handed_over_stay_open(served: LogHarness) -> None:
    served.claim("q")
    asked = ask_question(served, "q")
    served.end("q", state="pending")
    assert served.known_command(asked).is_open
    served.claim("q", 1)
    with pytest.raises(Fenced):
        ask_question(served, "q", 1)


# -- messages that a turn has taken in -------------------------------------------------------------------------


def take_in(harness: LogHarness, message_id: str, attempt: int = 1) -> None:
    """Let this attempt at the turn of `q` take a message in."""
    known = claim_of(harness, message_id).generation
    harness.ask(message_id, ClaimTurn(generation=known, within="q", within_generation=attempt), AGENT)


@pytest.mark.parametrize("end", [*ENDS, "handed over"])
def test_message_that_a_turn_has_taken_in_ends_or_waits_by_the_commit_that_ends_the_turn(
    served: LogHarness, end: str
) -> None:
    served.create("held", text="and?")
    served.claim("q")
    take_in(served, "held")
    (ENDS | {"handed over": lambda log: log.end("q", state="pending")})[end](served)
    over = ClaimState("done" if end == "done" else "cancelled", 1, "agent", within="q", within_generation=1)
    assert claim_of(served, "held") == (over if end in OVER else ClaimState("pending", 1, "agent", spared=1))
    assert list(served.state.turns) == [one for one in ("q", "held") if served.state.messages[one].is_open]


def test_message_that_the_last_attempt_has_not_taken_in_waits_when_its_turn_ends(served: LogHarness) -> None:
    for message_id in ("again", "left", "unheard"):
        served.create(message_id, text="and?")
    served.claim("q")
    take_in(served, "again")
    take_in(served, "left")
    served.claim("q", 1)
    take_in(served, "again", 2)
    take_in(served, "unheard", 2)
    served.ask("q", EndTurn(generation=2, unheard=("unheard",)), AGENT)
    assert [claim_of(served, one).state for one in ("again", "left", "unheard")] == ["done", "pending", "pending"]
    assert served.claim("left", 1).generation == 2


@pytest.mark.parametrize("dies", [True, False])
def test_message_pays_one_attempt_however_often_its_turn_takes_it_in_again(served: LogHarness, dies: bool) -> None:
    served.create("held", text="and?")
    for attempt in range(1, 9):
        served.claim("q", attempt - 1)
        take_in(served, "held", attempt)
        held = claim_of(served, "held")
        assert (held.generation, held.spared) == (attempt, attempt - 1)
        if not dies:
            served.end("q", attempt, "pending")


@pytest.mark.parametrize("end", [*ENDS, "later attempt", "outside memory", "being cancelled"])
def test_turn_that_has_ended_or_is_being_cancelled_takes_no_message_in(served: LogHarness, end: str) -> None:
    served.create("q2", text="and?")
    served.claim("q")
    others: dict[str, Callable[[LogHarness], object]] = {
        "later attempt": lambda log: log.claim("q", 1),
        "outside memory": lambda log: log.state.messages.pop("q"),
        "being cancelled": lambda log: log.cancel("stop", begin_answer(log, 1, "To")),
    }
    (ENDS | others)[end](served)
    with pytest.raises(Finished, match="'q'"):
        take_in(served, "q2")
    assert claim_of(served, "q2").state == "pending"


def test_attempt_whose_turn_is_being_cancelled_takes_in_again_what_its_answers_may_contain(served: LogHarness) -> None:
    served.create("q2", text="and?")
    served.claim("q")
    take_in(served, "q2")
    served.cancel("stop", begin_answer(served, 1, "To"))
    served.claim("q", 1)
    take_in(served, "q2", 2)
    assert claim_of(served, "q2").within_generation == 2
