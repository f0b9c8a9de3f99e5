"""The oracle of questions accepts each correct course of a turn, and finds each wrong one.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from proof.oracle.questions import Question, Questions
from tenuto.core.turns import reply_id
from tests.oracle.test_plans import STEPS, script_text
from tests.oracle.test_views import SEED

Json = dict[str, Any]
ID = "ask-0"


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
    wrong = questions.wrong(question, stored(*answers))
    assert wrong is not None
    assert why in wrong


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ([], "no answer"),
        ([INTERRUPTED], "left with"),
        ([answer(1, "streaming", (2, 1, "bot-1"))], "still stream"),
        ([answer(1, "streaming", (2, 1, "bot-1")), answer(2, "complete")], "still stream"),
    ],
)
def test_question_with_an_open_turn_is_not_settled(answers: list[Json], why: str) -> None:
    questions, question = one_question()
    missing = questions.unsettled(question, stored(*answers))
    assert missing is not None
    assert why in missing


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
