"""The public reason of an error."""

from __future__ import annotations

import json

import pytest

from tenuto.core.errors import public_reason
from tenuto.core.limits import Limits
from tenuto.core.model import check_json


class Spoken(Exception):
    def __init__(self, reason: object) -> None:
        super().__init__("a secret")
        self.public_reason = reason


def test_public_reason_is_returned_unchanged() -> None:
    assert public_reason(Spoken("over_quota")) == "over_quota"
    assert public_reason(Spoken("é 👋")) == "é 👋"


@pytest.mark.parametrize("error", [ValueError("a secret"), Spoken(None), Spoken(5), Spoken(b"x"), Spoken({"a": 1})])
def test_error_without_a_text_reason_has_no_public_reason(error: Exception) -> None:
    assert public_reason(error) is None


@pytest.mark.parametrize("long", ["x" * 10_000, "é" * 10_000, "👋" * 10_000])
def test_public_reason_is_bounded(long: str) -> None:
    assert public_reason(Spoken(long)) == long[:200]


@pytest.mark.parametrize("half", ["\ud83d", "a\udc4b b", "\udc4b\ud83d" * 300])
def test_public_reason_can_always_be_stored(half: str) -> None:
    reason = public_reason(Spoken(half))
    assert reason is not None
    check_json(reason, Limits().data_bytes, "reason", depth=1)
    assert json.loads(reason.encode().decode().join('""')) == half.encode("utf-8", "replace").decode()[:200]
