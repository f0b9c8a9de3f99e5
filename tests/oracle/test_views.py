"""The view oracle of plans accepts a correct view, and finds each kind of wrong one.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from proof.oracle.plans import Piece, Script
from proof.oracle.views import PlanOracle
from proof.wirecheck import Checker

Json = dict[str, Any]
SEED = 3


def view(serial: int, *messages: Json) -> Checker:
    """Return a view after a new start that holds `messages`."""
    checker = Checker("c")
    checker.begin(None)
    start = {"type": "channel.attached", "channel": "c", "epoch": "e", "serial": serial, "resumed": False}
    updates = [
        {"type": "message.update", "serial": serial, "message": {"created": 1, **one, "version": serial}}
        for one in messages
    ]
    checker.take([start, *updates], f"e:{serial}")
    assert checker.violations == []
    return checker


def kinds_after(oracle: PlanOracle, before: list[Json], after: list[Json]) -> list[str]:
    """Return the kinds of violations if a person sees `before`, and `after` a reload."""
    oracle.look(view(4, *before))
    oracle.look(view(5, *after))
    return [one.kind for one in oracle.violations]


@pytest.mark.parametrize(
    ("count", "status", "kinds"),
    [(3, "streaming", []), (4, "streaming", []), (2, "streaming", ["shrunk", "changed"]), (4, "complete", ["untrue"])],
)
def test_shown_text_stays_after_a_reload(count: int, status: str, kinds: list[str]) -> None:
    assert kinds_after(PlanOracle(SEED, 6), [written(3, "streaming")], [written(count, status)]) == kinds


def test_finished_message_stays_finished() -> None:
    before, after = written(3, "failed"), written(4, "failed")
    assert kinds_after(PlanOracle(SEED, 6), [before], [after]) == ["reopened"]


def test_message_does_not_disappear() -> None:
    assert kinds_after(PlanOracle(SEED, 6), [written(3, "streaming")], []) == ["vanished"]


def again(attempts: list[int], count: int, *, keeps: str = "all") -> Json:
    """Return a message whose first attempts wrote so many pieces, and the last one `count`."""
    texts = [
        {"type": "attempt", "parts": written(one, "", number + 1)["parts"], "characters": 0}
        for number, one in enumerate(attempts)
    ]
    for one in texts:
        one["characters"] = len(one["parts"][0]["text"])
    parts = written(count, "", len(attempts) + 1)["parts"]
    return written(0, "streaming") | {"parts": [*texts, *parts] if keeps == "all" else [*parts, *texts]}


def test_superseded_attempt_may_restart_its_text_but_not_lose_it() -> None:
    first = written(3, "streaming")
    assert kinds_after(PlanOracle(SEED, 6), [first], [again([4], 2)]) == []
    assert kinds_after(PlanOracle(SEED, 6), [again([4], 2)], [again([4, 3], 1)]) == []
    assert kinds_after(PlanOracle(SEED, 6), [first], [again([2], 2)]) == ["changed"]
    assert kinds_after(PlanOracle(SEED, 6), [first], [written(2, "streaming", 2)]) == ["shrunk", "changed"]
    assert kinds_after(PlanOracle(SEED, 6), [again([4], 2)], [written(3, "streaming", 2)])[:1] == ["shrunk"]
    assert kinds_after(PlanOracle(SEED, 6), [], [again([3], 2, keeps="behind")]) == ["untrue"]


def written(count: int, status: str, attempt: int = 1, writer: str = "a") -> Json:
    """Return a message of a script with `count` pieces by one writer."""
    script = Script(SEED, "m", steps=6)
    text = "".join(script.text(Piece(number, attempt, writer)) for number in range(count))
    return {"id": "m", "role": "assistant", "status": status, "parts": [{"type": "text", "text": text}]}
