"""The state machine of a turn: it follows the log, except while a claim is under way.

Layer: tests. `tests/hub/test_turn_scheduler.py` tests the scheduler that drives it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tenuto.core.errors import StillStreaming, TenutoError
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.core.turns import TRANSITIONS, ChannelTurns, Left, Phase, TurnEvent, TurnMachine
from tests.core.harness import AGENT, LogHarness, served_log

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
FAR = Caller(id="far", is_server=True)  # a worker in another process, for which the hub sends requests


def observed(log: LogHarness, message_id: str = "q", *, is_orphan: bool = False) -> TurnMachine[str]:
    """Return the turn of a message as a hub knows it that has just read the log."""
    turn = TurnMachine[str](message_id)
    turn.observe(log.state.messages.get(message_id), is_orphan=is_orphan)
    return turn


def look(turn: TurnMachine[str], log: LogHarness, *, is_orphan: bool = False) -> Left[str] | None:
    return turn.observe(log.state.messages.get(turn.message_id), is_orphan=is_orphan)


# -- the table and its drawing ---------------------------------------------------------------------------------


def test_drawing_in_the_document_is_that_of_the_table() -> None:
    lines = [
        f"    {'[*]' if phase is Phase.NEW else phase.name} --> {target.name}: {', '.join(events)}\n"
        for phase, row in TRANSITIONS.items()
        for target in Phase
        if (events := [event.name.lower() for event, to in row.items() if to is target])
    ]
    drawing = f"stateDiagram-v2\n{''.join(lines)}    OVER --> [*]"
    assert f"```mermaid\n{drawing}\n```\n" in ARCHITECTURE.read_text()


# -- following the log -----------------------------------------------------------------------------------------


def test_turn_in_this_process_is_not_an_orphan_while_it_runs() -> None:
    log = served_log("q")
    turn = observed(log)
    turn.send_claim()
    log.claim("q", caller=AGENT)
    look(turn, log, is_orphan=True)
    turn.resolve(TurnEvent.TAKEN, 1)
    look(turn, log, is_orphan=True)
    assert (turn.phase, turn.attempt) == (Phase.RUNNING, 1)


@pytest.mark.parametrize("batches", [False, True])
def test_claim_that_must_be_alone_follows_the_claims_and_deletions_before_it(batches: bool) -> None:
    log = served_log("q1", "q2")
    log.batches = batches
    log.ask("q1", ClaimTurn(generation=0, lost=()), AGENT)
    with pytest.raises(StillStreaming, match="'q1'"):
        log.ask("q2", ClaimTurn(generation=0, lost=()), AGENT)
    log.delete("q1")
    assert log.ask("q2", ClaimTurn(generation=0, lost=()), AGENT).generation == 1
    log.commit()
    assert list(log.state.turns) == ["q2"]


# -- messages that a turn takes in -----------------------------------------------------------------------------


def held(log: LogHarness, *, is_known: bool = True) -> ChannelTurns[str]:
    """Let the turn of `q1` take `q2` in, and return both turns. Without `is_known` it does not get the result."""
    log.claim("q1", caller=FAR, lease_s=15)
    turns = ChannelTurns[str]()
    for message_id in ("q1", "q2"):
        turns.put(observed(log, message_id))
    turn = turns.get("q2")
    assert turn is not None
    turn.send_claim()
    log.ask("q2", ClaimTurn(generation=0, lease_s=15, within="q1", within_generation=1), FAR)
    look(turn, log)
    turn.unheard = None if is_known else ("q1", 1)
    turn.resolve(TurnEvent.TAKEN_IN if is_known else TurnEvent.REFUSED)
    assert turn.host == ("q1", 1)
    return turns


@pytest.mark.parametrize("is_known", [True, False])
def test_turn_is_held_while_the_attempt_that_has_it_runs_and_knows_it(is_known: bool) -> None:
    log = served_log("q1", "q2")
    turns = held(log, is_known=is_known)
    host, turn = turns.values()
    assert turns.held_by("q1") == [turn]
    assert turns.is_lost(turn) is not is_known
    log.claim("q1", 1, caller=FAR, lease_s=15)
    look(host, log)
    assert turns.is_lost(turn)


def test_of_two_requests_for_one_message_the_stored_one_counts() -> None:
    log = served_log("q1", "q2")
    log.claim("q1", caller=FAR, lease_s=15)
    turn = observed(log, "q2")
    turn.send_claim()
    turn.send_claim()
    log.ask("q2", ClaimTurn(generation=0, lease_s=15, within="q1", within_generation=1), FAR)
    look(turn, log)
    turn.resolve(TurnEvent.REFUSED)
    assert turn.phase is Phase.CLAIMING  # the other request is under way
    turn.resolve(TurnEvent.TAKEN_IN)
    assert turn.phase is Phase.HELD


# -- laws ------------------------------------------------------------------------------------------------------

_STEPS = ("claim", "own claim", "take in", "resolve", "lose", "due", "look", "end", "cancel", "delete")


@given(st.lists(st.sampled_from(_STEPS), max_size=30))
def test_turn_agrees_with_the_log_whenever_no_claim_is_under_way(steps: list[str]) -> None:
    log = served_log("host", "q")
    log.claim("host", caller=FAR, lease_s=15)
    turn = observed(log)
    lost = -1  # number of the attempt that was lost last
    outcome: TurnEvent | None = None  # outcome of the claim under way
    for step in steps:
        try:
            match step:
                case "claim":
                    log.claim("q", log.known("q").claim.generation, caller=replace(FAR, id="other"), lease_s=15)
                case "own claim" | "take in" if turn.phase is Phase.WAITING:
                    within = "host" if step == "take in" else None
                    turn.send_claim()
                    outcome = TurnEvent.REFUSED
                    request = ClaimTurn(generation=turn.attempt, lease_s=15, within=within, within_generation=1)
                    log.ask("q", request, FAR)
                    outcome = TurnEvent.TAKEN if within is None else TurnEvent.TAKEN_IN
                    own = turn.attempt + 1
                case "resolve" if outcome is not None:
                    look(turn, log)
                    turn.resolve(outcome, own if outcome is TurnEvent.TAKEN else None)
                    outcome = None
                case "lose" if turn.is_taken:
                    lost = turn.attempt
                    turn.lose()
                case "due":
                    turn.due()
                case "end" | "cancel":
                    log.end("q", log.known("q").claim.generation, "done" if step == "end" else "cancelled")
                case "delete":
                    log.delete("q")
        except TenutoError:
            pass  # the log refuses the claim, because the turn is over or another attempt has it
        look(turn, log)
        claim = log.known("q").claim
        assert claim is not None
        if turn.phase is Phase.CLAIMING:
            assert outcome is not None
        elif not claim.is_open:
            assert turn.phase is Phase.OVER
        elif claim.state == "pending" or claim.generation == lost:
            assert turn.phase is Phase.WAITING
        else:
            assert turn.phase is (Phase.RUNNING if claim.within is None else Phase.HELD)
            assert turn.attempt == claim.generation
