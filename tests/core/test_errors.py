"""The public reason of an error; values and URLs in its message: each on one bounded line, and no URL with secrets."""

from __future__ import annotations

import json

import pytest

from tenuto.core.errors import SHOWN_CHARACTERS, public_reason, shown, shown_url
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


class Strange:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("retry", "'retry'"),
        (None, "None"),
        (5, "5"),
        ([1, 2], "a list of 2 items"),
        ({"a": 1}, "an object of 1 keys"),
        (b"secret", "6 bytes"),
        ("\ud83d", r"'\ud83d'"),
        (Strange(), "<Strange>"),
    ],
)
def test_value_is_shown_by_its_repr(value: object, expected: str) -> None:
    assert shown(value) == expected


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "\n" * 10_000, "👋" * 10_000, 10**4_000, 10**10_000],
    ids=["text", "line ends", "emoji", "large number", "number beyond repr"],
)
def test_shown_value_is_bounded(value: object) -> None:
    text = shown(value)
    assert len(text) <= SHOWN_CHARACTERS
    assert text.isprintable()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/path", "'https://host/path'"),
        ("sqlite:////data/a@b.db?synchronous=off", "'sqlite:////data/a@b.db'"),
        ("postgres://ann:geheim@db:5432/chat?password=geheim#geheim", "'postgres://db:5432/chat'"),
        ("postgres://ann:ge/he?i#m@db/chat", "'postgres://db/chat'"),
        ("ann:geheim@db", "'db'"),
        ("http:///ann:geheim@host", "'http://host'"),
    ],
)
def test_url_is_shown_without_credentials_and_query(url: str, expected: str) -> None:
    assert shown_url(url) == expected
