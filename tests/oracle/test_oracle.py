"""The oracles accept each correct course, and find each kind of wrong one.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from proof.oracle.plans import Acknowledged, Piece, Script
from proof.oracle.questions import Question, Questions
from proof.oracle.views import PlanOracle
from proof.wirecheck import Checker
from tenuto.core.turns import reply_id

Json = dict[str, Any]
SEED = 3
STEPS = 6
ID = "ask-0"


def script_text(id: str, *writers: tuple[int, int, str]) -> str:
    """Return the text of a message by `writers`: how many pieces, in which attempt, by which writer."""
    script = Script(SEED, id, steps=STEPS)
    pieces = [(attempt, writer) for count, attempt, writer in writers for _ in range(count)]
    return "".join(script.text(Piece(number, *piece)) for number, piece in enumerate(pieces))


def written(count: int, status: str, attempt: int = 1) -> Json:
    """Return a message of a script with `count` pieces by one writer."""
    text = script_text("m", (count, attempt, "a"))
    return {"id": "m", "role": "assistant", "status": status, "parts": [{"type": "text", "text": text}]}


# Views: what one person was shown ------------------------------------------------------------------------------------


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


def kinds_after(before: list[Json], after: list[Json]) -> list[str]:
    """Return the kinds of violations if a person sees `before`, and `after` a reload."""
    oracle = PlanOracle(SEED, STEPS)
    oracle.look(view(4, *before))
    oracle.look(view(5, *after))
    return [one.kind for one in oracle.violations]


@pytest.mark.parametrize(
    ("count", "status", "kinds"),
    [(3, "streaming", []), (4, "streaming", []), (2, "streaming", ["shrunk", "changed"]), (4, "complete", ["untrue"])],
)
def test_shown_text_stays_after_a_reload(count: int, status: str, kinds: list[str]) -> None:
    assert kinds_after([written(3, "streaming")], [written(count, status)]) == kinds


def test_finished_message_stays_finished() -> None:
    before, after = written(3, "failed"), written(4, "failed")
    assert kinds_after([before], [after]) == ["reopened"]


def test_message_does_not_disappear() -> None:
    assert kinds_after([written(3, "streaming")], []) == ["vanished"]


def again(attempts: list[int], count: int, *, keeps: str = "all") -> Json:
    """Return a message whose first attempts wrote so many pieces, and the last one `count`."""
    *earlier, parts = (written(one, "", number)["parts"] for number, one in enumerate([*attempts, count], 1))
    texts = [{"type": "attempt", "parts": one, "characters": len(one[0]["text"])} for one in earlier]
    return written(0, "streaming") | {"parts": [*texts, *parts] if keeps == "all" else [*parts, *texts]}


def test_superseded_attempt_may_restart_its_text_but_not_lose_it() -> None:
    first = written(3, "streaming")
    assert kinds_after([first], [again([4], 2)]) == []
    assert kinds_after([again([4], 2)], [again([4, 3], 1)]) == []
    assert kinds_after([first], [again([2], 2)]) == ["changed"]
    assert kinds_after([first], [written(2, "streaming", 2)]) == ["shrunk", "changed"]
    assert kinds_after([again([4], 2)], [written(3, "streaming", 2)])[:1] == ["shrunk"]
    assert kinds_after([], [again([3], 2, keeps="behind")]) == ["untrue"]


# Scripts -------------------------------------------------------------------------------------------------------------


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": one} for one in texts]


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
    assert why in (Script(SEED, "m", steps=STEPS).wrong(text(script_text("m", *writers)), is_whole=is_whole) or "")


def test_missing_doubled_or_changed_piece_is_wrong() -> None:
    script = Script(SEED, "m", steps=STEPS)
    pieces = [script.text(Piece(number, 1, "a")) for number in range(3)]
    for bad in (pieces[1:], [*pieces, pieces[2]], [pieces[0], pieces[2]], ["#", *pieces], [*pieces, "#"]):
        assert script.wrong(text("".join(bad)), is_whole=False) is not None
    assert script.wrong(text("".join(pieces), ""), is_whole=False) is not None


# Acknowledged text ---------------------------------------------------------------------------------------------------


def test_missing_acknowledged_text_is_wrong() -> None:
    known = Acknowledged(SEED, STEPS)
    known.report({"say": "begins", "id": "m"}, "c")
    one = known.messages["m"]
    assert one.wrong(None) is None
    report = {"say": "stored", "id": "m", "length": len(script_text("m", (3, 1, "a"))), "entries": 2}
    known.report(report, "c")
    assert one.wrong(written(3, "streaming")) is None
    assert one.wrong(written(4, "streaming")) is None
    assert one.wrong(written(2, "streaming")) is not None
    assert one.wrong(None) is not None
    known.report({**report, "entries": 3, "status": "failed"}, "c")
    assert one.wrong(written(3, "streaming")) is not None
    known.report({"say": "over", "id": "m"}, "c")
    assert one.wrong(written(3, "failed")) is None
    assert one.wrong(written(4, "failed")) is not None


# Questions -----------------------------------------------------------------------------------------------------------


def answer(attempt: int, status: str, *writers: tuple[int, int, str], created: int | None = None) -> Json:
    """Return the answer that an attempt created; without `writers` it is whole, by one agent."""
    id = reply_id(ID, attempt)
    parts = [{"type": "text", "text": script_text(id, *(writers or ((STEPS, attempt, f"bot-{attempt}"),)))}]
    return {"id": id, "status": status, "reply_to": ID, "created": created or 1 + attempt, "parts": parts}


def stored(*answers: Json) -> dict[str, Json]:
    return {one["id"]: one for one in ({"id": ID, "status": "complete", "created": 1}, *answers)}


def one_question() -> tuple[Questions, Question]:
    question = Question(ID, "c", 2)
    return Questions(SEED, STEPS, {ID: question}), question


INTERRUPTED = answer(1, "interrupted", (2, 1, "bot-1"))


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([answer(1, "complete"), answer(2, "complete")], "more than the one answer that counts"),
        ([answer(1, "complete"), INTERRUPTED | {"id": reply_id(ID, 2), "created": 9}], "more than the one"),
        ([answer(1, "complete") | {"id": "other"}], "no attempt gives"),
        ([answer(2, "interrupted", created=2), answer(1, "complete", created=3)], "no attempt gives in this order"),
        ([INTERRUPTED, answer(2, "complete", (6, 1, "bot-1"))], "was begun by attempt 2"),
        ([INTERRUPTED, answer(2, "interrupted"), answer(3, "complete")], "the faults explain 2"),
        ([answer(1, "failed") | {"reason": "crashed"}], "has failed"),
        ([answer(1, "cancelled")], "no user sent a cancel"),
        ([answer(1, "interrupted", (1, 1, "a"), (1, 2, "b")), answer(2, "complete", (6, 2, "b"))], "attempt 2 at"),
    ],
)
def test_wrong_answers_are_found(answers: list[Json], why: str) -> None:
    questions, question = one_question()
    assert why in (questions.wrong(question, stored(*answers)) or "")


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "no answer"),
        ([INTERRUPTED], "left with"),
        ([answer(1, "streaming", (2, 1, "bot-1")), answer(2, "complete")], "still stream"),
    ],
)
def test_question_with_an_open_turn_is_not_settled(answers: list[Json], why: str) -> None:
    questions, question = one_question()
    assert why in (questions.unsettled(question, stored(*answers)) or "")


@pytest.mark.parametrize(
    ("author", "reason", "is_wrong"),
    [("node-1", "store_unavailable", False), ("bot-1", "store_unavailable", True), ("node-1", "error", True)],
)
def test_answer_may_be_failed_only_by_an_agent_whose_store_was_away_for_too_long(
    author: str, reason: str, is_wrong: bool
) -> None:
    questions, question = one_question()
    question.may_fail = frozenset({"node-1"})
    failed = answer(1, "failed") | {"author": author, "reason": reason}
    assert (questions.wrong(question, stored(failed)) is not None) == is_wrong


def test_settled_answers_do_not_change() -> None:
    questions, question = one_question()
    questions.settle(question, stored(INTERRUPTED, answer(2, "complete")))
    assert questions.wrong(question, stored(INTERRUPTED, answer(2, "complete"))) is None
    longer = answer(1, "interrupted", (3, 1, "bot-1"))  # holds a token of a fenced agent
    for later in (stored(longer, answer(2, "complete")), stored(answer(2, "complete")), {}):
        assert questions.wrong(question, later) is not None
