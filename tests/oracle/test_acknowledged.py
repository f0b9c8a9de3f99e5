"""Acknowledged text must be stored, and each entry is counted once.

Layer: tests.
"""

from __future__ import annotations

import pytest

from proof.oracle.plans import Acknowledged
from tests.oracle.test_views import SEED, message, plan_of


def test_missing_acknowledged_text_is_wrong() -> None:
    plan = plan_of("plain")
    known = Acknowledged(SEED, 12)
    known.report({"say": "begins", "id": plan.id}, "c")
    one = known.messages[plan.id]
    assert one.wrong(None) is None
    known.report({"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 2}, "c")
    assert one.wrong(message(plan, 5)) is None
    assert one.wrong(message(plan, 9)) is None
    assert one.wrong(message(plan, 4)) is not None
    assert one.wrong(None) is not None
    end = {"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 3, "status": "failed"}
    known.report(end, "c")
    assert one.wrong(message(plan, 5)) is not None
    known.report({"say": "over", "id": plan.id}, "c")
    assert one.wrong(message(plan, 5, "failed")) is None
    assert one.wrong(message(plan, 6, "failed")) is not None


@pytest.mark.parametrize(("found", "entries"), [([5], 2), ([9], 3)])
def test_successor_that_finds_unacknowledged_text_finds_one_entry_more(found: list[int], entries: int) -> None:
    plan = plan_of("plain")
    known = Acknowledged(SEED, 12)
    known.report({"say": "begins", "id": plan.id}, "c")
    known.report({"say": "stored", "id": plan.id, "lengths": [5], "progress": 0, "entries": 2}, "c")
    report = {"say": "found", "id": plan.id, "lengths": found, "progress": 0, "status": "streaming", "meta": False}
    known.report(report, "c")
    assert known.messages[plan.id].entries == entries
