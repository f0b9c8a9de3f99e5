"""Growing text against a plain string: content, slices, lengths at a serial, forks, and costs.

Layer: tests.

Costs are checked as counts and ratios with room to spare, never as a race against the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from tenuto.core.text import JOIN_PIECES, MAX_MARKS, Text, TextFork

letters = st.sampled_from("ab é中🙂\n")
pieces = st.lists(st.tuples(st.text(letters, max_size=6), st.integers(0, 3)), max_size=3 * JOIN_PIECES)
real_pieces = st.lists(st.text(letters, min_size=1, max_size=6), max_size=2 * JOIN_PIECES)  # texts that are not empty
places = st.integers(0, 200)


class Plain:
    """The reference for a `Text`: a string, and its length after each append."""

    def __init__(self) -> None:
        self.text = ""
        self.lengths = {0: 0}  # for each serial the length of the text
        self.serial = 0

    def grow(self, texts: Iterable[Text | TextFork], piece: str, step: int) -> None:
        """Append `piece` to all of `texts` and to this, at a serial that is `step` higher."""
        self.serial += step
        self.text += piece
        self.lengths[self.serial] = len(self.text)
        for text in texts:
            text.append(piece, self.serial)

    def length_at(self, serial: int) -> int:
        return max((length for known, length in self.lengths.items() if known <= serial), default=0)

    def same_as(self, text: Text | TextFork) -> None:
        assert text.length == len(self.text)
        assert [text.length_at(serial) for serial in range(self.serial + 2)] == [
            self.length_at(serial) for serial in range(self.serial + 2)
        ]


@given(pieces, st.lists(st.tuples(places, places), max_size=8), st.integers(0, 3 * JOIN_PIECES))
def test_a_text_is_the_string_of_its_appends(
    appended: list[tuple[str, int]], slices: list[tuple[int, int]], joined_at: int
) -> None:
    text, plain = Text(), Plain()
    for count, (piece, step) in enumerate(appended):
        plain.grow([text], piece, step)
        if count == joined_at:
            assert str(text) == plain.text
    plain.same_as(text)
    for start, end in slices:
        assert text.slice(start, end) == plain.text[start:end]
        assert text.slice(start) == plain.text[start:]
    assert (str(text), text.slice(0)) == (plain.text, plain.text)


@given(pieces, pieces, st.lists(st.tuples(places, places), max_size=8))
def test_a_fork_is_the_text_with_its_own_additions_and_leaves_the_text_alone(
    appended: list[tuple[str, int]], more: list[tuple[str, int]], slices: list[tuple[int, int]]
) -> None:
    base, plain = Text("", 0), Plain()
    for piece, step in appended:
        plain.grow([base], piece, step)
    stood, marks = plain.text, list(base.marks_after(0))
    fork = TextFork(base)
    for piece, step in more:
        plain.grow([fork], piece, step + (1 if plain.text == stood else 0))
    plain.same_as(fork)
    for start, end in slices:
        assert fork.slice(start, end) == plain.text[start:end]
    assert str(fork) == plain.text
    assert (str(base), base.length, list(base.marks_after(0))) == (stood, len(stood), marks)


@given(pieces, real_pieces, places)
def test_fork_has_the_marks_of_an_equally_grown_text(
    appended: list[tuple[str, int]], more: list[str], start: int
) -> None:
    base, whole, plain = Text("", 0), Text("", 0), Plain()
    for piece, step in appended:
        plain.grow([base, whole], piece, step)
    fork = TextFork(base)
    for piece in more:
        plain.grow([fork, whole], piece, 1)
    assert list(fork.marks_after(start)) == list(whole.marks_after(start))


@given(pieces, places)
def test_marks_after_a_length_lie_beyond_it(appended: list[tuple[str, int]], start: int) -> None:
    text, plain = Text(), Plain()
    for piece, step in appended:
        plain.grow([text], piece, step)
    marks = list(text.marks_after(start))
    assert all(length > start for _, length in marks)
    assert all(plain.lengths[serial] == length for serial, length in marks)
    assert marks == sorted(marks)
    if text.length > start:
        assert marks[-1][1] == text.length


def test_two_hundred_thousand_single_characters_stay_small() -> None:
    text = Text()
    for serial in range(1, 200_001):
        text.append("x", serial)
    assert text.length == 200_000
    assert len(text.mark_serials) <= MAX_MARKS
    # A character, its share of a piece of 64, and at most a mark: far from the 400 bytes of a decoded entry.
    assert text.cost_bytes() < 200_000 * 10
    assert str(text) == "x" * 200_000


def cpu_s(appends: int) -> float:
    """Return the CPU seconds of many appends of one character, with a reader of the end after every hundredth."""
    text = Text()
    started_s = time.process_time()
    for serial in range(1, appends + 1):
        text.append("x", serial)
        if serial % 100 == 0:
            text.slice(text.length_at(serial - 100))
    return time.process_time() - started_s


def test_cost_of_an_append_is_independent_of_the_text_before_it() -> None:
    few = min(cpu_s(20_000) for _ in range(3))
    many = min(cpu_s(200_000) for _ in range(2))
    assert many < 10 * few * 4  # with quadratic cost it would be a hundred times as much
