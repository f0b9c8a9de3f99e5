"""Turns and leases: the worker of a message, its writer, and the duration of both (`docs/protocol.md`, agents).

Layer: tests.

Claims and leases are entries that no viewer sees: they move the channel's serial and no version.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tenuto.core.catch_up import events_since
from tenuto.core.decide_turns import GIVEN_BACK_MS
from tenuto.core.errors import Deleted, Fenced, Finished, NotFound, NotWriter, TooMany
from tenuto.core.limits import Limits
from tenuto.core.message_state import ClaimState
from tenuto.core.ops import Claim, Create, Finish, Lease, WriterIdentity
from tenuto.core.requests import Caller, ClaimTurn, CreateMessage, EndTurn, FinishMessage, needs
from tenuto.core.state import ChannelState, apply_entry
from tenuto.core.turns import reply_id
from tests.core.harness import AGENT, ANN, APP, BOB, LogHarness, served_log
from tests.core.worlds import fold

REMOTE = Caller(id="agent", is_server=True)  # the hub acts for a worker in another process
OTHER_NODE = replace(AGENT, writer=WriterIdentity(by="agent", node="there"))


@pytest.fixture
def served() -> LogHarness:
    """Return a channel with agents and a user message whose turn waits."""
    return served_log("q")


def claim_of(harness: LogHarness, message_id: str = "q") -> ClaimState:
    claim = harness.known(message_id).claim
    assert claim is not None
    return claim


# -- waiting turns ---------------------------------------------------------------------------------------------


def test_a_question_waits_where_agents_serve(served: LogHarness) -> None:
    assert claim_of(served) == ClaimState("pending", 0)
    assert served.known("q").is_open
    (entry,) = served.log
    assert isinstance(entry.op, Create)
    assert entry.op.is_pending


@pytest.mark.parametrize(
    "fields", [{"role": "assistant"}, {"role": "system"}, {"role": "tool"}, {"status": "streaming"}]
)
def test_only_whole_messages_of_users_wait(served: LogHarness, fields: dict[str, Any]) -> None:
    served.create("m", **fields)
    assert served.known("m").claim is None


def test_message_in_a_channel_without_agents_gets_no_turn() -> None:
    harness = LogHarness()
    harness.create("q", text="question")
    assert (harness.known("q").claim, harness.known("q").is_open) == (None, False)
    with pytest.raises(Finished):
        harness.claim("q")


def test_repeated_create_keeps_its_turn(served: LogHarness) -> None:
    served.is_served = False
    assert served.create("q", text="question").ops == ()
    assert claim_of(served).state == "pending"


@pytest.mark.parametrize("batches", [False, True], ids=["stored", "in one batch"])
def test_number_of_waiting_turns_is_bounded(batches: bool) -> None:
    harness = LogHarness(Limits(pending_messages=2), batches=batches)
    harness.is_served = True
    harness.create("q1", text="x")
    harness.create("q2", text="x")
    with pytest.raises(TooMany) as refusal:
        harness.create("q3", text="x")
    assert (refusal.value.details, refusal.value.retry, refusal.value.status) == ({"limit": 2}, True, 429)
    assert harness.create("q1", text="x").ops == ()  # a repeated request does not count again
    harness.create("answer", role="assistant", text="x")  # a message without a turn does not count
    harness.create("brought", text="x", caller=replace(ANN, brings_answer=True))
    harness.claim("q1")
    harness.create("q3", text="x")
    with pytest.raises(TooMany):
        harness.create("q4", text="x")
    harness.delete("q2")
    harness.create("q4", text="x")


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


def test_waiting_turns_are_restored_from_the_store(served: LogHarness) -> None:
    served.create("other", text="x")
    served.claim("other")
    found = [served.known("q"), served.known("other")]
    read = ChannelState("c", "e1", served.state.serial)
    read.insert(found)
    assert list(read.pending) == list(served.state.pending) == ["q"]
    served.claim("q")
    read.insert(found)
    assert not read.pending


def test_digest_of_a_message_does_not_depend_on_agents(served: LogHarness) -> None:
    served.is_served = False
    served.create("p", text="question")
    served.is_served = True
    assert served.create("p", text="question").ops == ()
    assert served.known("p").claim is None


# -- claims ----------------------------------------------------------------------------------------------------


def test_claim_takes_a_waiting_turn(served: LogHarness) -> None:
    result = served.claim("q", caller=REMOTE, lease_s=15)
    taken = Claim(id="q", state="taken", generation=1, by="agent", node=None, lease_ms=15_000, at_ms=1_000)
    assert (result.ops, result.generation, result.serial) == ((taken,), 1, 2)
    assert claim_of(served) == ClaimState("taken", 1, "agent", None, 15_000)
    assert served.known("q").is_open


def test_a_claim_in_process_has_no_lease_and_dies_with_its_node(served: LogHarness) -> None:
    served.claim("q", caller=AGENT, lease_s=15)
    assert claim_of(served) == ClaimState("taken", 1, "agent", "here", 0)


def test_of_two_claims_one_wins(served: LogHarness) -> None:
    served.claim("q", caller=AGENT)
    with pytest.raises(Fenced) as refusal:
        served.claim("q", caller=replace(AGENT, id="other"))
    assert refusal.value.details == {"generation": 1}


def test_of_two_claims_in_a_batch_one_wins() -> None:
    batch = LogHarness(batches=True)
    batch.is_served = True
    batch.create("q", text="question")
    batch.claim("q", caller=AGENT)
    with pytest.raises(Fenced):
        batch.claim("q", caller=REMOTE)
    assert len(batch.commit()) == 2


def test_claim_names_the_attempt_before_it(served: LogHarness) -> None:
    served.claim("q", caller=AGENT)
    result = served.claim("q", 1, caller=REMOTE, lease_s=20)
    assert result.generation == 2
    assert claim_of(served) == ClaimState("taken", 2, "agent", None, 20_000)
    with pytest.raises(Fenced):
        served.claim("q", 1, caller=REMOTE)
    assert served.claim("q", 2, caller=AGENT).generation == 3


def test_claim_that_names_a_later_attempt_is_fenced(served: LogHarness) -> None:
    with pytest.raises(Fenced) as refusal:
        served.claim("q", 1)
    assert refusal.value.details == {"generation": 0}


def test_claim_that_confirms_an_attempt_keeps_its_number_and_refuses_a_node_that_counted_it_as_lost(
    served: LogHarness,
) -> None:
    served.claim("q", caller=AGENT)
    confirming = ClaimTurn(generation=1, confirms=True)
    assert served.ask("q", confirming, AGENT).generation == 1
    assert claim_of(served) == ClaimState("taken", 1, "agent", "here", confirmed=1)
    assert served.ask("q", confirming, AGENT).ops == ()  # the result of this request was lost
    with pytest.raises(
        Fenced, match=r"attempt 1 \(confirmation 0\) .* current one is attempt 1 \(confirmation 1\): stop"
    ):
        served.claim("q", 1, caller=REMOTE)
    assert served.ask("q", ClaimTurn(generation=1, confirmed=1, lease_s=15), REMOTE).generation == 2
    with pytest.raises(Fenced):
        served.ask("q", ClaimTurn(generation=1, confirmed=1, confirms=True), AGENT)


def test_renewal_of_a_remote_attempt_confirms_it_and_is_refused_to_all_others(served: LogHarness) -> None:
    renewing, owner = ClaimTurn(generation=1, renews=True), Caller(id="agent")
    with pytest.raises(Fenced, match="the current one is attempt 0"):
        served.ask("q", renewing, owner)
    served.claim("q", caller=REMOTE, lease_s=15.0)
    for number in (1, 2):
        assert served.ask("q", renewing, owner).generation == 1
        assert claim_of(served) == ClaimState("taken", 1, "agent", lease_ms=15_000, confirmed=number)
    with pytest.raises(NotWriter):
        served.ask("q", renewing, Caller(id="thief"))
    with pytest.raises(Fenced, match=r"attempt 1 \(confirmation 1\) .* current one is attempt 1 \(confirmation 2\)"):
        served.ask("q", ClaimTurn(generation=1, confirmed=1), OTHER_NODE)  # by a hub that has not read the second one
    served.ask("q", ClaimTurn(generation=1, confirmed=2), OTHER_NODE)
    with pytest.raises(Fenced):
        served.ask("q", renewing, owner)
    with pytest.raises(NotWriter):  # an attempt in a hub's process has no lease
        served.ask("q", replace(renewing, generation=2), owner)
    served.end("q", 2, caller=OTHER_NODE)
    with pytest.raises(Finished):
        served.ask("q", renewing, owner)


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
    assert served.ask("q", ClaimTurn(generation=1, confirmed=1, lease_s=15), REMOTE).generation == 2
    with pytest.raises(Fenced):
        served.ask("q", giving_back, owner)


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
        served.end("q", 2 + 8 * number, caller=REMOTE)
        served.command(f"again{number}", "regenerate", target="q")
        served.claim("q", 8 + 8 * number, caller=REMOTE)
        served.claim("q", 9 + 8 * number, caller=REMOTE)
    late = reply_id("q", 1, 1)
    if rounds < 2:
        with pytest.raises(Fenced, match="attempt 1 cannot begin a further answer"):
            served.ask(late, answer, owner)
    else:
        assert served.ask(late, answer, owner).ops
    assert served.ask(reply_id("q", 2 + 8 * rounds), answer, owner).ops
    assert served.ask("of-a-person", answer, ANN).ops


@pytest.mark.parametrize("caller", [OTHER_NODE, REMOTE, replace(AGENT, id="other")])
def test_claim_by_another_process_with_the_same_name_is_fenced(served: LogHarness, caller: Caller) -> None:
    served.claim("q", caller=AGENT)
    with pytest.raises(Fenced):
        served.claim("q", caller=caller)


def test_two_remote_workers_with_one_name_are_distinct(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    with pytest.raises(Fenced):
        served.claim("q", caller=REMOTE, lease_s=15)


@pytest.mark.parametrize("state", ["done", "cancelled"])
def test_finished_turn_cannot_be_claimed(served: LogHarness, state: str) -> None:
    served.claim("q")
    served.end("q", 1, state)
    for generation in (0, 1):
        with pytest.raises(Finished):
            served.claim("q", generation)


# -- ends ------------------------------------------------------------------------------------------------------


def test_worker_ends_its_turn(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    result = served.end("q", 1, caller=REMOTE)
    assert result.ops == (Claim(id="q", state="done", generation=1, by="agent", at_ms=1_000),)
    assert claim_of(served) == ClaimState("done", 1, "agent", None, 0)
    assert not served.known("q").is_open


def test_repeated_end_returns_the_serial_of_the_first(served: LogHarness) -> None:
    served.claim("q")
    served.end("q", 1)
    again = served.end("q", 1)
    assert (again.ops, again.serial, again.generation) == ((), 3, 1)


def test_a_turn_that_is_done_is_not_cancelled_afterwards(served: LogHarness) -> None:
    served.claim("q")
    served.end("q", 1, "done")
    with pytest.raises(Finished):
        served.end("q", 1, "cancelled")
    assert claim_of(served).state == "done"


def test_worker_that_lost_a_turn_does_not_end_it(served: LogHarness) -> None:
    served.claim("q", caller=AGENT)
    served.claim("q", 1, caller=REMOTE, lease_s=15)
    with pytest.raises(
        Fenced, match=r"^attempt 1 of the turn of message 'q' is stale; the current one is attempt 2"
    ) as refusal:
        served.end("q", 1, caller=AGENT)
    assert refusal.value.details == {"generation": 2}
    served.end("q", 2, caller=REMOTE)


def test_worker_that_never_had_a_turn_does_not_end_it(served: LogHarness) -> None:
    with pytest.raises(Fenced):
        served.end("q", 1)
    served.claim("q")
    with pytest.raises(NotWriter):
        served.end("q", 1, caller=BOB)
    assert served.known("q").is_open


def test_the_app_may_end_a_turn(served: LogHarness) -> None:
    served.claim("q")
    served.end("q", 1, "cancelled", caller=APP)
    assert claim_of(served).state == "cancelled"


def test_deleted_message_has_no_turn(served: LogHarness) -> None:
    served.claim("q")
    served.delete("q")
    assert claim_of(served).state == "cancelled"
    assert not served.known("q").is_open
    with pytest.raises(Deleted):
        served.claim("q", 1)
    with pytest.raises(Deleted):
        served.end("q", 1)


def test_turn_of_an_unknown_message_is_not_found() -> None:
    with pytest.raises(NotFound):
        LogHarness().claim("q")


def test_turn_whose_every_attempt_crashed_gets_a_failed_answer(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.now_ms = 2_000
    given_up = EndTurn(generation=1, failure="sorry")
    first = served.ask("q", given_up, Caller(is_server=True))
    assert [type(op) for op in first.ops] == [Create, Finish, Claim]
    assert claim_of(served) == ClaimState("done", 1, "agent", None, 0)
    failed = served.message("sorry")
    assert (failed.role, failed.author, failed.status, failed.reason) == ("assistant", "agent", "failed", "crashed")
    assert (failed.reply_to, failed.parent, failed.parts, failed.created_at) == ("q", "q", [], 2_000)
    again = served.ask("q", EndTurn(generation=1, failure="other"), Caller(is_server=True))
    assert (again.ops, again.serial) == ((), first.serial)
    with pytest.raises(Finished):
        served.claim("q", 1)


def test_turn_with_a_newer_attempt_does_not_fail(served: LogHarness) -> None:
    served.claim("q", caller=REMOTE, lease_s=15)
    served.claim("q", 1, caller=AGENT)
    with pytest.raises(Fenced):
        served.ask("q", EndTurn(generation=1, failure="sorry"), Caller(is_server=True))
    assert served.state.message("sorry") is None


def test_turn_whose_node_has_confirmed_its_attempt_since_is_not_given_up(served: LogHarness) -> None:
    served.claim("q", caller=AGENT)
    given_up = EndTurn(generation=1, confirmed=0, failure="sorry")
    served.ask("q", ClaimTurn(generation=1, confirms=True), AGENT)
    with pytest.raises(
        Fenced, match=r"attempt 1 \(confirmation 0\) .* current one is attempt 1 \(confirmation 1\): stop"
    ):
        served.ask("q", given_up, Caller(is_server=True))
    assert served.state.message("sorry") is None
    served.ask("q", replace(given_up, confirmed=1), Caller(is_server=True))
    assert claim_of(served) == ClaimState("done", 1, "agent")


def test_an_edit_leaves_the_turn_alone(served: LogHarness) -> None:
    served.claim("q")
    served.update("q", text="another question")
    assert claim_of(served) == ClaimState("taken", 1, "agent", "here", 0)


# -- leases ----------------------------------------------------------------------------------------------------


def test_a_renewal_with_the_same_term_stores_nothing() -> None:
    harness = LogHarness()
    harness.stream("m", lease_s=15)
    result = harness.renew("m", 15)
    assert (result.ops, result.serial) == ((), 1)


def test_a_renewal_with_another_term_stores_the_term() -> None:
    harness = LogHarness()
    harness.stream("m", lease_s=15)
    assert harness.renew("m", 20.5).ops == (Lease(id="m", lease_ms=20_500, at_ms=harness.now_ms),)
    assert harness.renew("m", 20.5).ops == ()
    assert harness.known("m").writer == WriterIdentity(by="ann", node=None, lease_ms=20_500)


def test_a_renewal_in_the_batch_of_another_is_decided_on_it() -> None:
    batch = LogHarness(batches=True)
    batch.stream("m", "", lease_s=15)
    assert batch.renew("m", 30).ops != ()
    assert batch.renew("m", 30).ops == ()
    assert batch.renew("m", 15).ops != ()
    batch.commit()
    assert batch.known("m").writer == WriterIdentity(by="ann", node=None, lease_ms=15_000)


def test_text_joins_across_a_lease() -> None:
    batch = LogHarness(batches=True)
    batch.stream("m", "")
    batch.commit()
    serials = [batch.append("m", "a").serial, batch.renew("m", 60).serial, batch.append("m", "b").serial]
    assert serials == [2, 3, 2]
    batch.commit()
    assert batch.text("m") == "ab"
    assert fold(batch.log).messages["m"].writer == WriterIdentity(by="ann", node=None, lease_ms=60_000)


def test_a_writer_in_process_has_no_lease_to_renew() -> None:
    harness = LogHarness()
    harness.stream("m", caller=APP)
    assert harness.renew("m", 60, caller=APP).ops == ()
    assert harness.known("m").writer == WriterIdentity(by="app", node="here", lease_ms=0)


def test_lease_of_a_finished_answer_is_not_renewed() -> None:
    harness = LogHarness()
    harness.stream("m")
    harness.interrupt("m")
    with pytest.raises(Finished):
        harness.renew("m", 15)


def test_writer_that_was_taken_over_cannot_renew() -> None:
    harness = LogHarness()
    harness.stream("m")
    harness.interrupt("m")
    harness.take_over("m", caller=ANN, lease_s=15)
    for generation in (None, 1, 3):
        with pytest.raises(Fenced):
            harness.renew("m", 60, generation=generation)
    harness.renew("m", 60, generation=2)
    assert harness.known("m").writer == WriterIdentity(by="ann", node=None, lease_ms=60_000)


def test_a_takeover_brings_its_own_term() -> None:
    harness = LogHarness()
    harness.stream("m", lease_s=15)
    harness.renew("m", 60)
    harness.interrupt("m")
    harness.take_over("m", lease_s=20)
    assert harness.known("m").writer == WriterIdentity(by="bob", node=None, lease_ms=20_000)


# -- the turns that viewers see ---------------------------------------------------------------------------------


def test_claims_and_leases_move_the_serial_without_visible_change(served: LogHarness) -> None:
    served.stream("m", "text")
    before = {one: served.message(one) for one in ("q", "m")}
    served.now_ms = 9_000
    served.claim("q")
    served.renew("m", 60)
    served.end("q", 1)
    assert served.state.serial == 5
    assert {one: served.message(one) for one in ("q", "m")} == before
    assert (served.known("q").last, served.known("m").last) == (5, 4)
    for since in (2, 3, 4, 5):
        assert events_since(served.state, since, limit=200) == []


def test_claim_is_no_missed_change_in_a_catch_up() -> None:
    harness = LogHarness()
    harness.is_served = True
    for number in range(5):
        harness.create(f"q{number}", text="x")
    for number in range(5):
        harness.claim(f"q{number}")
    harness.create("m", text="seen")
    assert len(events_since(harness.state, 5, limit=1) or ()) == 1


def test_a_claim_does_not_hide_what_changed_before_it(served: LogHarness) -> None:
    """The search for missed changes goes back from the newest entry; a claim neither ends nor starts it."""
    served.create("m", text="x")
    served.update("q", text="y")
    served.claim("q")
    served.update("m", text="z")
    served.end("q", 1)
    changed = [one.id for one in served.state.changed_since(2)]
    assert changed == ["m", "q"]
    assert [one.id for one in served.state.changed_since(3)] == ["m"]
    assert [one.id for one in served.state.changed_since(5)] == []


def test_message_with_an_open_turn_stays_in_memory_until_it_ends(served: LogHarness) -> None:
    served.claim("q")
    served.command("c", "approve")
    served.state.trim(0)
    assert (list(served.state.messages), list(served.state.commands)) == (["q"], ["!c"])
    served.end("q", 1)
    served.reply("c")
    served.state.trim(0)
    assert (list(served.state.messages), list(served.state.commands)) == ([], [])
    assert served.state.complete_since == 5  # the reply's serial: a viewer that has seen it missed no change


def test_claim_for_a_message_that_is_not_in_memory_fails_an_assertion(served: LogHarness) -> None:
    state = ChannelState("c", "e1", 1)
    apply_entry(state, served.log[0])
    served.claim("q")
    apply_entry(state, served.log[1])
    assert (state.serial, state.complete_since) == (2, 2)
