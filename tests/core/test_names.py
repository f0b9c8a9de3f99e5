"""Names of channels and ids (`docs/protocol.md`, 2.1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.errors import InvalidName
from tenuto.core.names import check_channel, check_id, command_id, command_key

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:~@=+-"


@given(st.text(ALPHABET, min_size=1, max_size=64).filter(lambda name: name not in (".", "..")))
def test_names_of_the_alphabet_are_allowed(name: str) -> None:
    assert check_channel(name) == name
    assert check_id(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a b", "a\n", "\na", "a\x00", "é", "a%20", "a?b", "a#b", "a\\b", "*", "\ud800", "Ａ", "١"],
)
@pytest.mark.parametrize("check", [check_channel, check_id])
def test_other_names_are_refused(check: Callable[[object], str], name: str) -> None:
    with pytest.raises(InvalidName):
        check(name)


def test_a_channel_has_up_to_200_characters() -> None:
    assert check_channel("x" * 200) == "x" * 200
    with pytest.raises(InvalidName):
        check_channel("x" * 201)


def test_an_id_has_up_to_64_characters() -> None:
    assert check_id("x" * 64) == "x" * 64
    with pytest.raises(InvalidName):
        check_id("x" * 65)


def test_error_of_an_id_names_the_field() -> None:
    with pytest.raises(InvalidName, match=r"parent must be .*, got 'a b'"):
        check_id("a b", "parent")


@pytest.mark.parametrize("known", ["x", "A-b.c:d~1@2=3+4", "." * 3])
def test_a_command_is_known_by_its_id_again(known: str) -> None:
    assert command_key(known) != known
    assert command_id(command_key(known)) == known
