"""Checks of parts and JSON, and their wire form (`docs/protocol.md`, 2.3 and 2.4)."""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.core.errors import InvalidRequest, TooLarge
from tenuto.core.events import encode_json
from tenuto.core.limits import Limits
from tenuto.core.model import Message, check_json, check_part

LIMITS = Limits()


@pytest.mark.parametrize(
    ("part", "stored"),
    [
        ({"type": "text"}, {"type": "text", "text": ""}),
        ({"type": "text", "text": "a", "x": 1}, {"type": "text", "text": "a"}),
        ({"type": "tool", "call": "c", "name": "n"}, {"type": "tool", "call": "c", "name": "n", "input": ""}),
        (
            {"type": "tool", "call": "c", "name": "n", "output": None, "state": None, "x": 1},
            {"type": "tool", "call": "c", "name": "n", "input": ""},
        ),
        ({"type": "data", "name": "n"}, {"type": "data", "name": "n", "data": None}),
    ],
)
def test_a_part_is_filled_in_and_unknown_fields_are_ignored(part: dict[str, Any], stored: dict[str, Any]) -> None:
    assert check_part(part, LIMITS) == stored


@pytest.mark.parametrize(
    "part",
    [
        None,
        "text",
        {},
        {"text": "hi"},
        {"type": "nonsense"},
        {"type": ["text"]},
        {"type": "text", "text": None},
        {"type": "text", "text": 5},
        {"type": "reasoning", "text": {}},
        {"type": "tool"},
        {"type": "tool", "call": 1, "name": "n"},
        {"type": "tool", "call": "c", "name": "n", "input": {}},
        {"type": "data"},
        {"type": "source", 1: 2},
        {"type": "data", "name": "n", "data": object()},
        {"type": "file", "data": object()},
    ],
)
def test_invalid_part_is_refused(part: object) -> None:
    with pytest.raises(InvalidRequest):
        check_part(part, LIMITS)


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.5, "x", [], {}, [[{"a": [None]}]], 2**63 - 1, -(2**63)])
def test_check_json_returns_the_size_of_a_json_value(value: object) -> None:
    assert check_json(value, 1_000, "it", depth=8) == len(encode_json(value))


def test_json_is_bounded_in_bytes_and_depth() -> None:
    assert check_json("x" * 8, 10, "it", depth=0) == 10
    with pytest.raises(TooLarge) as refusal:
        check_json("x" * 9, 10, "it", depth=0)
    assert (refusal.value.details, check_json([[[]]], 30, "it", depth=2)) == ({"limit": 10}, 6)
    assert check_json({"a": {"b": {}}}, 30, "it", depth=2) == 14
    for deeper in ([[[[]]]], {"a": {"b": {"c": {}}}}, [{"a": [{}]}]):
        with pytest.raises(InvalidRequest):
            check_json(deeper, 30, "it", depth=2)


def test_fields_of_an_app_are_kept_as_given() -> None:
    part = {"type": "source", "x": None, "y": [], "z": {}, "b": False, "n": 0}
    parts, meta = [{"type": "text", "text": ""}, part], {"x": None, "y": []}
    times = {"created": 1, "version": 1, "created_at": 0, "updated_at": 0}
    given = Message(id="m", role="user", status="complete", parts=parts, meta=meta, **times)
    assert encode_json(given).endswith(
        b'"parts":[{"type":"text","text":""},{"type":"source","x":null,"y":[],"z":{},"b":false,"n":0}],'
        b'"meta":{"x":null,"y":[]},"created":1,"version":1,"created_at":0,"updated_at":0}'
    )
