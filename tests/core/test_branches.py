"""The newest branch of a conversation: `tests/vectors/branches.json`, as in the browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenuto.core.model import Message
from tenuto.core.turns import newest_branch, versions_of

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "branches.json").read_text())


def messages_of(vector: dict[str, Any]) -> list[Message]:
    """Return the messages of a vector, each complete and with its id as text, unless the vector has these fields."""
    messages = []
    for created, given in enumerate(vector["messages"], 1):
        role: Any = "assistant" if "reply_to" in given else "user"
        text = [{"type": "text", "text": given["id"]}]
        fields = {"status": "complete", "parts": text, "parent": given.get("reply_to"), **given}
        messages.append(Message(role=role, created=created, version=created, created_at=0, updated_at=0, **fields))
    return messages


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_newest_branch_is_that_of_the_vector(vector: dict[str, Any]) -> None:
    assert " ".join(one.id for one in newest_branch(messages_of(vector))) == vector["branch"]


def test_versions_of_a_question_have_its_parent() -> None:
    edited = messages_of(VECTORS[1])
    assert [one.id for one in versions_of(edited[4], edited)] == ["p", "r"]
