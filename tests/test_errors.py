"""Values and URLs in messages of errors: each is shown on one bounded line, and no URL with its secrets.

Layer: tests.
"""

from __future__ import annotations

import pytest

from tenuto.core.errors import shown, shown_url


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
    text = shown(value, 60)
    assert len(text) <= 60
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
