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
def test_names_of_the_alphabet_are_allowed_as_plain_text(name: str) -> None:
    for check in (check_channel, check_id):
        checked = check(type("Name", (str,), {})(name))
        assert (type(checked), checked) == (str, name)  # stores encode no subclass


@pytest.mark.parametrize(
    "name", ["", ".", "..", "\na", "a\n", "a%20", "*", "é", "\ud800", "Ａ", "١", *(f"a{one}b" for one in "/ \x00?#\\!")]
)
@pytest.mark.parametrize("check", [check_channel, check_id])
def test_other_names_are_refused(check: Callable[[object], str], name: str) -> None:
    with pytest.raises(InvalidName):
        check(name)


@pytest.mark.parametrize(("check", "limit"), [(check_channel, 200), (check_id, 64)])
def test_channels_and_ids_have_a_number_of_characters(check: Callable[[object], str], limit: int) -> None:
    assert check("x" * limit) == "x" * limit
    with pytest.raises(InvalidName):
        check("x" * (limit + 1))


def test_error_of_an_id_names_the_field() -> None:
    with pytest.raises(InvalidName, match=r"parent must be .*, got 'a b'"):
        check_id("a b", "parent")


@pytest.mark.parametrize("known", ["x", "A-b.c:d~1@2=3+4", "." * 3])
def test_a_command_is_known_by_its_id_again(known: str) -> None:
    assert command_key(known) != known
    assert command_id(command_key(known)) == known
