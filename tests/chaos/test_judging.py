"""What a run knows of the truth: what is planned, what was acknowledged, what was shown."""

from __future__ import annotations

from typing import Any

from chaos.plan import Append, Plan, Put, first_difference
from chaos.truth import Truth
from chaos.viewer import Shown
from wirecheck import Checker

SEED = 3


def plan_of(kind: str, afterwards: str = "nothing") -> Plan:
    """The first plan of a kind."""
    plans = (Plan(SEED, f"m-{number}", steps=12) for number in range(1_000))
    return next(one for one in plans if (one.kind, one.afterwards) == (kind, afterwards))


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


def test_a_plan_is_the_same_wherever_it_is_made() -> None:
    assert Plan(1, "m", steps=9).steps == Plan(1, "m", steps=9).steps
    assert Plan(1, "m", steps=9).steps != Plan(2, "m", steps=9).steps


def test_each_step_begins_where_its_part_ends() -> None:
    plan = plan_of("thinking")
    for part in (0, 1):
        steps = [step for step in plan.steps if isinstance(step, Append) and step.part == part]
        assert [step.at for step in steps[1:]] == [step.end for step in steps[:-1]]
        assert "".join(step.text for step in steps) == plan.texts[part]


def test_a_beginning_is_right_until_the_message_is_complete() -> None:
    plan = plan_of("plain")
    whole = plan.texts[0]
    assert plan.wrong([], is_whole=False) is None
    assert plan.wrong(text(whole[:5]), is_whole=False) is None
    assert plan.wrong(text(whole), is_whole=True) is None
    assert plan.wrong(text(whole[:-1]), is_whole=True) is not None
    assert plan.wrong([], is_whole=True) is not None


def test_other_text_is_wrong_at_any_time() -> None:
    plan = plan_of("plain")
    assert plan.wrong(text("#"), is_whole=False) is not None
    assert plan.wrong(text(plan.texts[0] + "#"), is_whole=False) is not None
    assert plan.wrong(text(plan.texts[0], ""), is_whole=False) is not None


def test_a_part_that_shows_progress_has_one_of_its_values() -> None:
    plan = plan_of("progress")
    numbers = [step.number for step in plan.steps if isinstance(step, Put)]
    whole = text(plan.texts[0])
    assert plan.wrong([*whole, plan.value(numbers[0])], is_whole=False) is None
    assert plan.wrong([*whole, plan.value(numbers[0])], is_whole=True) is not None
    assert plan.wrong([*whole, plan.value(numbers[-1])], is_whole=True) is None
    assert plan.wrong([*whole, plan.value(1)], is_whole=False) is not None


def test_a_difference_is_told_with_what_stands_around_it() -> None:
    told = first_difference("x" * 100 + "left", "x" * 100 + "right")
    assert "differs at 100 (lengths 104 expected, 105 seen)" in told
    assert "left" in told
    assert "right" in told


def message(plan: Plan, length: int, status: str = "streaming") -> dict[str, Any]:
    return {"id": plan.id, "role": "assistant", "status": status, "parts": text(plan.texts[0][:length])}


def test_acknowledged_text_that_is_not_stored_is_wrong() -> None:
    plan = plan_of("plain")
    truth = Truth(SEED, 12)
    truth.heard({"say": "begins", "id": plan.id}, "c")
    written = truth.written[plan.id]
    assert written.wrong(None) is None
    truth.heard({"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 2}, "c")
    assert written.wrong(message(plan, 5)) is None
    assert written.wrong(message(plan, 9)) is None
    assert written.wrong(message(plan, 4)) is not None
    assert written.wrong(None) is not None
    done = {"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 3, "status": "failed"}
    truth.heard(done, "c")
    assert written.wrong(message(plan, 5)) is not None
    truth.heard({"say": "over", "id": plan.id}, "c")
    assert written.wrong(message(plan, 5, "failed")) is None
    assert written.wrong(message(plan, 6, "failed")) is not None


def test_a_successor_that_finds_more_than_was_acknowledged_found_one_entry_more() -> None:
    plan = plan_of("plain")
    for found, entries in (([5], 2), ([9], 3)):
        truth = Truth(SEED, 12)
        truth.heard({"say": "begins", "id": plan.id}, "c")
        truth.heard({"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 2}, "c")
        report = {"say": "found", "id": plan.id, "lengths": found, "progress": 0, "status": "streaming", "meta": False}
        truth.heard(report, "c")
        assert truth.written[plan.id].entries == entries


def test_a_log_keeps_its_epoch_once_it_has_one() -> None:
    truth = Truth(SEED, 12)
    assert truth.wrong_epoch("c", "-:0") is None
    assert truth.wrong_epoch("c", "e1:4") is None
    assert truth.wrong_epoch("c", "e1:9") is None
    assert truth.wrong_epoch("c", "e2:9") is not None


def starting(serial: int, *messages: dict[str, Any]) -> Checker:
    """A view after a new start."""
    checker = Checker("c")
    checker.begin(None)
    attached = {"type": "channel.attached", "channel": "c", "epoch": "e", "serial": serial, "resumed": False}
    updates = [
        {"type": "message.update", "serial": one["version"], "message": {"created": 1, **one}} for one in messages
    ]
    checker.take([attached, *updates], f"e:{serial}")
    assert checker.violations == []
    return checker


def test_what_was_shown_stays_over_a_reload() -> None:
    plan = plan_of("plain")
    for length, status, kinds in (
        (7, "streaming", []),
        (9, "streaming", []),
        (6, "streaming", ["shrunk"]),
        (9, "complete", ["untrue"]),
    ):
        shown = Shown(SEED, 12)
        shown.look(starting(4, message(plan, 7) | {"version": 4}))
        shown.look(starting(5, message(plan, length, status) | {"version": 5}))
        assert [one.kind for one in shown.violations] == kinds


def test_an_answer_that_was_over_stays_so() -> None:
    plan = plan_of("plain")
    shown = Shown(SEED, 12)
    shown.look(starting(4, message(plan, 7, "interrupted") | {"version": 4}))
    shown.look(starting(5, message(plan, 8, "interrupted") | {"version": 5}))
    assert [one.kind for one in shown.violations] == ["reopened"]


def test_a_message_goes_only_when_it_is_deleted() -> None:
    for afterwards, kinds in (("nothing", ["vanished"]), ("delete", [])):
        plan = plan_of("plain", afterwards)
        shown = Shown(SEED, 12)
        shown.look(starting(4, message(plan, 7) | {"version": 4}))
        shown.look(starting(5))
        assert [one.kind for one in shown.violations] == kinds
