"""Acknowledged text must be stored.

Layer: tests.
"""

from __future__ import annotations

from proof.oracle.plans import Acknowledged
from tests.oracle.test_views import SEED, written

LENGTHS = [len(written(count, "streaming")["parts"][0]["text"]) for count in range(6)]


def known_to_be_stored(count: int) -> Acknowledged:
    known = Acknowledged(SEED, 6)
    known.report({"say": "begins", "id": "m"}, "c")
    assert known.messages["m"].wrong(None) is None
    known.report({"say": "stored", "id": "m", "length": LENGTHS[count], "entries": 2}, "c")
    return known


def test_missing_acknowledged_text_is_wrong() -> None:
    known = known_to_be_stored(3)
    one = known.messages["m"]
    assert one.wrong(written(3, "streaming")) is None
    assert one.wrong(written(4, "streaming")) is None
    assert one.wrong(written(2, "streaming")) is not None
    assert one.wrong(None) is not None
    known.report({"say": "stored", "id": "m", "length": LENGTHS[3], "entries": 3, "status": "failed"}, "c")
    assert one.wrong(written(3, "streaming")) is not None
    known.report({"say": "over", "id": "m"}, "c")
    assert one.wrong(written(3, "failed")) is None
    assert one.wrong(written(4, "failed")) is not None
