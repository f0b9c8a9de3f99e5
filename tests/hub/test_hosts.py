"""Hosts and origins are parsed as a whole or not at all."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.app import Hub
from tenuto.core.errors import LocalError
from tenuto.hub.access.hosts import Host, Origin, parse_host, parse_origin

HOSTS: list[tuple[str, Host | None]] = [
    ("localhost", Host("localhost", None)),
    ("LOCALHOST:8000", Host("localhost", 8000)),
    ("127.0.0.1:1", Host("127.0.0.1", 1)),
    ("[::1]:65535", Host("::1", 65535)),
    ("[0:0::1]", Host("::1", None)),
    ("my_service", Host("my_service", None)),
    ("", None),
    ("[::1]evil:8000", None),
    ("[::1%25lo]", None),
    ("::1", None),
    ("user@localhost", None),
    ("localhost:0", None),
    ("localhost:65536", None),
    ("localhost:８０", None),
    ("localhost\n", None),
    ("lоcalhost", None),  # with a Cyrillic letter
    ("a" * 301, None),
]


@pytest.mark.parametrize(("text", "host"), HOSTS)
def test_host_is_parsed_exactly(text: str, host: Host | None) -> None:
    assert parse_host(text) == host


ORIGINS: list[tuple[str, Origin | None]] = [
    ("http://localhost:3000", Origin("http", "localhost", 3000)),
    ("https://chat.example", Origin("https", "chat.example", 443)),
    ("http://[::1]", Origin("http", "::1", 80)),
    ("capacitor://localhost", Origin("capacitor", "localhost", None)),
    ("", None),
    ("null", None),
    ("http://", None),
    ("HTTP://localhost", None),
    ("http://localhost/", None),
    ("http://localhost http://evil.example", None),
]


@pytest.mark.parametrize(("text", "origin"), ORIGINS)
def test_origin_is_parsed_exactly(text: str, origin: Origin | None) -> None:
    assert parse_origin(text) == origin


@given(st.text(alphabet="[]:@/?#%.:1a localhost", max_size=20))
def test_parsed_host_is_the_whole_text(text: str) -> None:
    host = parse_host(text)
    if host is not None:
        assert re.fullmatch(r"[a-z0-9_.-]+(:[0-9]+)?|\[[0-9a-f:.]+\](:[0-9]+)?", text.lower())
        assert host.port is None or text.endswith(f":{text.rpartition(':')[2]}")


MISTAKES: list[tuple[Any, str]] = [
    ("https://app.example", "got the string 'https://app.example'"),
    (["https://app.example/"], "got 'https://app.example/'"),
    (["https://app.example:443"], "got 'https://app.example:443'"),
    (["HTTPS://App.example"], "got 'HTTPS://App.example'"),
    (["https://*.app.example"], "got 'https://*.app.example'"),
    (["null"], "got 'null'"),
    (["ws://localhost:3000"], "got 'ws://localhost:3000'"),
    (["wss://app.example"], "got 'wss://app.example'"),
    ([b"https://app.example"], "got 19 bytes"),
    (7, "an object of type int: 7"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES)
def test_setting_that_no_page_would_match_is_refused(given: Any, expected: str) -> None:
    with pytest.raises(LocalError) as refused:
        Hub("memory://", allowed_origins=given)
    assert refused.value.detail.startswith("allowed_origins must")
    assert '"https://app.example"' in refused.value.detail
    assert expected in refused.value.detail


@pytest.mark.parametrize("given", ["chat.example", "https://chat.example/", "capacitor://localhost", "*", 7])
def test_public_origin_is_one_origin(given: Any) -> None:
    with pytest.raises(LocalError, match="public_origin must"):
        Hub("memory://", public_origin=given)
