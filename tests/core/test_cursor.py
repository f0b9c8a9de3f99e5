"""Valid and invalid cursors (`docs/protocol.md`, 2.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.events import EMPTY, MAX_SERIAL, Cursor, kept_serial, parse_cursor

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


@pytest.mark.parametrize(
    ("text", "cursor"),
    [
        ("e1:0", Cursor("e1", 0)),
        ("e1:17", Cursor("e1", 17)),
        ("-:0", EMPTY),
        ("A_-9:9007199254740992", Cursor("A_-9", 2**53)),
        ("e1:17:p4", Cursor("e1", 17, "p4")),
        ("e1:17:a:b=/?", Cursor("e1", 17, "a:b=/?")),
        ("e1:17:", Cursor("e1", 17)),
    ],
)
def test_cursor_has_an_epoch_a_serial_and_optional_fields(text: str, cursor: Cursor) -> None:
    assert parse_cursor(text) == cursor


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "e1",
        "e1:",
        ":1",
        "e1:x",
        "e1:-1",
        "e1:+1",
        "e1:1\n",
        "é:1",
        "e1:١",  # a digit of another script
        "e1:12345678901234567",  # a serial with more digits than any valid one
        "x" * 33 + ":1",
        "e1:1:" + "x" * 301,
        "e1:1:é",
        "\ud800:1",
        "\x00",
    ],
)
def test_invalid_cursor_is_parsed_as_none(text: str | None) -> None:
    assert parse_cursor(text) is None


@given(st.text(ALPHABET, min_size=1, max_size=32), st.integers(0, 2**53), st.text("abc:/=+!~", max_size=20))
def test_written_cursor_is_parsed_back(epoch: str, serial: int, extra: str) -> None:
    cursor = Cursor(epoch, serial, extra)
    assert parse_cursor(str(cursor)) == cursor


@given(st.one_of(st.text(max_size=40), st.text("e1:-0 \n", max_size=9)))
def test_parsing_any_text_never_raises(text: str) -> None:
    cursor = parse_cursor(text)
    assert cursor is None or str(cursor) == text.removesuffix(":") or str(cursor) == text


@given(st.integers(0, 2**53), st.text("abc:/=+!~", max_size=20), st.integers(0, 2**53), st.text("h9_-", max_size=23))
def test_presence_position_is_the_last_field_of_a_cursor(serial: int, extra: str, place: int, mark: str) -> None:
    presence = Cursor("life", place, mark)
    cursor = Cursor("e1", serial, extra).with_presence(presence)
    assert cursor.presence == presence
    assert (parse_cursor(str(cursor)) or EMPTY).presence == presence
    assert cursor.with_presence(EMPTY).presence == EMPTY
    assert str(cursor).startswith(f"e1:{serial}:{extra}@life:")


@pytest.mark.parametrize("extra", ["", "@", "p4", "life:3", "@life", "@life:", "@life:x", "@:3", "@@life:3", "7m0.5"])
def test_invalid_presence_position_is_none(extra: str) -> None:
    assert Cursor("e1", 1, extra).presence is None


@pytest.mark.parametrize(
    ("epoch", "current", "kept"),
    [
        ("a", "a", MAX_SERIAL),
        ("b_a_7", "b_a_7", MAX_SERIAL),
        ("a", "b_a_7", 7),
        ("b_a_7", "c_b_9", 9),
        ("a", "c_b_9", -1),  # two failovers later
        ("b_a_7", "c_a_7", 7),  # two failovers without an entry between them
        ("b_a_9", "c_a_7", 7),
        ("b_d_7", "c_a_7", -1),
        ("b", "a", -1),
        ("", "a", -1),
        ("", "b__7", -1),
        ("-", "a_b", -1),
    ],
)
def test_an_epoch_names_the_serial_up_to_which_it_follows_another(epoch: str, current: str, kept: int) -> None:
    assert kept_serial(epoch, current) == kept
