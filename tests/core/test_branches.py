"""The newest branch of a conversation: the cases of `tests/web/conversation.test.js`, with the same rules."""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.core.model import Message
from tenuto.core.turns import newest_branch, versions_of


def question(id: str, created: int, parent: str | None = None, **fields: Any) -> Message:
    return message(id, created, role="user", parent=parent, **fields)


def answer(id: str, created: int, parent: str, **fields: Any) -> Message:
    return message(id, created, role="assistant", parent=parent, reply_to=parent, **fields)


def message(id: str, created: int, **fields: Any) -> Message:
    parts = [{"type": "text", "text": id}]
    known = {"status": "complete", "parts": parts, "version": created, "created_at": 0, "updated_at": 0}
    return Message(id=id, created=created, **{**known, **fields})


EDITED = [
    question("q", 1),
    answer("a", 2, "q"),
    question("p", 3, "a"),
    answer("b", 4, "p"),
    question("r", 5, "a"),
    answer("c", 6, "r"),
]


@pytest.mark.parametrize(
    ("messages", "branch"),
    [
        ([question("q", 1), question("p", 2, "q"), answer("a", 3, "q"), answer("b", 4, "p")], "q p a b"),
        (EDITED, "q a r c"),
        ([*EDITED, question("s", 7, "b")], "q a p b s"),
        ([question("q", 1), answer("a", 2, "q"), question("r", 3)], "r"),
        ([question("q", 1), answer("a", 2, "q"), question("p", 3, "a"), answer("b", 4, "q")], "q b"),
        (
            [
                question("q", 1),
                answer("a", 2, "q", status="interrupted"),
                question("p", 3, "a"),
                answer("b", 4, "q"),
                answer("c", 5, "p"),
            ],
            "q p b c",
        ),
        (
            [
                question("q", 1),
                answer("a", 2, "q", status="interrupted"),
                answer("b", 3, "q", status="failed", parts=[]),
            ],
            "q a b",
        ),
    ],
)
def test_newest_branch(messages: list[Message], branch: str) -> None:
    assert " ".join(one.id for one in newest_branch(messages)) == branch


def test_versions_of_a_question_have_its_parent() -> None:
    assert [one.id for one in versions_of(EDITED[4], EDITED)] == ["p", "r"]
