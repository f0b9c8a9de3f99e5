"""Scripts accept their text, and no other; acknowledged text must be stored.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from proof.oracle.plans import Acknowledged, Piece, Script
from tests.oracle.test_views import SEED, written

STEPS = 6


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


def script_text(id: str, *writers: tuple[int, int, str]) -> str:
    """Return the text of a message by `writers`: how many pieces, in which attempt, by which writer."""
    script = Script(SEED, id, steps=STEPS)
    pieces = [(attempt, writer) for count, attempt, writer in writers for _ in range(count)]
    return "".join(script.text(Piece(number, *piece)) for number, piece in enumerate(pieces))


@pytest.mark.parametrize(
    ("writers", "is_whole", "why"),
    [
        (((2, 2, "b"), (1, 1, "a")), False, "has lost the message"),  # a piece of a fenced writer
        (((2, 1, "a"), (1, 1, "b")), False, "has lost the message"),  # two writers of one attempt
        (((5, 1, "a"),), True, "has 5 pieces, written are 6"),
        (((7, 1, "a"),), False, "has 7 pieces"),
    ],
)
def test_piece_of_another_writer_is_wrong(writers: Any, is_whole: bool, why: str) -> None:
    wrong = Script(SEED, "m", steps=STEPS).wrong(text(script_text("m", *writers)), is_whole=is_whole)
    assert wrong is not None
    assert why in wrong


def test_missing_doubled_or_changed_piece_is_wrong() -> None:
    script = Script(SEED, "m", steps=STEPS)
    pieces = [script.text(Piece(number, 1, "a")) for number in range(3)]
    for bad in (pieces[1:], [*pieces, pieces[2]], [pieces[0], pieces[2]], ["#", *pieces], [*pieces, "#"]):
        assert script.wrong(text("".join(bad)), is_whole=False) is not None
    assert script.wrong(text("".join(pieces), ""), is_whole=False) is not None


# Acknowledged text ---------------------------------------------------------------------------------------------------


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
