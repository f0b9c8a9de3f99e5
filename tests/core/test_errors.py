"""What an error lets be told of itself."""

from __future__ import annotations

import json

import pytest

from holdfast.core.errors import public_reason
from holdfast.core.limits import Limits
from holdfast.core.model import check_json


class Spoken(Exception):
    def __init__(self, reason: object) -> None:
        super().__init__("a secret")
        self.public_reason = reason


def test_a_reason_is_told_as_it_is() -> None:
    assert public_reason(Spoken("over_quota")) == "over_quota"
    assert public_reason(Spoken("é 👋")) == "é 👋"


@pytest.mark.parametrize("error", [ValueError("a secret"), Spoken(None), Spoken(5), Spoken(b"x"), Spoken({"a": 1})])
def test_what_names_none_or_no_text_tells_nothing(error: Exception) -> None:
    assert public_reason(error) is None


@pytest.mark.parametrize("long", ["x" * 10_000, "é" * 10_000, "👋" * 10_000])
def test_a_reason_is_bounded(long: str) -> None:
    assert public_reason(Spoken(long)) == long[:200]


@pytest.mark.parametrize("half", ["\ud83d", "a\udc4b b", "\udc4b\ud83d" * 300])
def test_a_reason_can_be_stored_whatever_stands_in_it(half: str) -> None:
    reason = public_reason(Spoken(half))
    assert reason is not None
    check_json(reason, Limits().data_bytes, "reason", depth=1)
    assert json.loads(reason.encode().decode().join('""')) == half.encode("utf-8", "replace").decode()[:200]
