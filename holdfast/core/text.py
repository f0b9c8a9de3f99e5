"""Text that grows: pieces with the serial that brought each, joined when somebody needs it.

Layer: core.

`Text` is how the fold keeps an appendable part. An append costs its own text, whatever
stands before it; a reader at an old serial gets what it misses by one bisection. Lengths are code points.
Serials and lengths live in arrays (16 bytes per append), not objects (400 bytes measured for a decoded entry).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

# Small pieces are joined once this many have gathered: each character is copied once more, and a
# piece then outweighs its own bookkeeping.
JOIN_PIECES = 64
# Beyond this many marks every other one of the older half goes: 1 MiB of marks per part, and a resume from
# long ago then repeats a few tokens (harmless: `at` tells a viewer what it has).
MAX_MARKS = 65_536
# A stored mark about every so many bytes of UTF-8 JSON (`docs/decisions/0001`).
MARK_BYTES = 256


class Text:
    """The text of one part, with a mark (serial, length) for each append."""

    __slots__ = ("_loose", "_pieces", "_starts", "length", "mark_lengths", "mark_serials")

    def __init__(self, text: str = "", serial: int = 0) -> None:
        self._pieces: list[str] = []
        self._starts: list[int] = []  # where each piece begins
        self._loose = 0  # how many pieces at the end are not joined yet
        self.length: int = 0
        self.mark_serials = array("Q")
        self.mark_lengths = array("Q")
        self.append(text, serial)

    def append(self, text: str, serial: int) -> None:
        """Add `text`, brought by entry `serial`, which is not below any before it."""
        if text:
            self._pieces.append(text)
            self._starts.append(self.length)
            self._loose += 1
            self.length += len(text)
            if self._loose >= JOIN_PIECES:
                self._join_loose()
        serials = self.mark_serials
        if serials and serials[-1] != serial and len(serials) < MAX_MARKS:  # as nearly always
            serials.append(serial)
            self.mark_lengths.append(self.length)
        else:
            self.mark(serial, self.length)

    def mark(self, serial: int, length: int) -> None:
        """Remember that at `serial` the text was at least `length` long."""
        if self.mark_serials and self.mark_serials[-1] == serial:
            self.mark_lengths[-1] = length
            return
        self.mark_serials.append(serial)
        self.mark_lengths.append(length)
        if len(self.mark_serials) > MAX_MARKS:
            half = MAX_MARKS // 2
            self.mark_serials = self.mark_serials[:half:2] + self.mark_serials[half:]
            self.mark_lengths = self.mark_lengths[:half:2] + self.mark_lengths[half:]

    def length_at(self, serial: int) -> int:
        """A length that everybody who has seen `serial` has at least; exact where every mark is kept."""
        index = bisect_right(self.mark_serials, serial)
        return self.mark_lengths[index - 1] if index else 0

    def last_serial(self, until: int) -> int:
        """The serial of the last mark not above `until`, or 0."""
        index = bisect_right(self.mark_serials, until)
        return self.mark_serials[index - 1] if index else 0

    def slice(self, start: int, end: int | None = None) -> str:
        """The text from `start` to `end` (code points). Costs what it returns."""
        stop = self.length if end is None else min(end, self.length)
        if start >= stop:
            return ""
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, stop - 1)
        offset = self._starts[first]
        joined = self._pieces[first] if last == first + 1 else "".join(self._pieces[first:last])
        return joined[start - offset : stop - offset]

    def __str__(self) -> str:
        if len(self._pieces) > 1:
            self._pieces[:] = ["".join(self._pieces)]
            self._starts[:] = [0]
            self._loose = 0
        return self._pieces[0] if self._pieces else ""

    def marks_after(self, start: int) -> Iterator[tuple[int, int]]:
        """The marks (serial, length) that lie beyond length `start`."""
        index = bisect_right(self.mark_lengths, start)
        return zip(self.mark_serials[index:], self.mark_lengths[index:], strict=True)

    def cost_bytes(self) -> int:
        """About how much memory this takes."""
        return self.length + 80 * len(self._pieces) + 16 * len(self.mark_serials) + 300

    def _join_loose(self) -> None:
        first = len(self._pieces) - self._loose
        self._pieces[first:] = ["".join(self._pieces[first:])]
        del self._starts[first + 1 :]
        self._loose = 0


class TextFork:
    """A draft of a `Text`: shares what stands, keeps its own additions and their marks."""

    __slots__ = ("_base", "_base_length", "_own", "length")

    def __init__(self, base: Text | TextFork) -> None:
        self._base = base
        self._base_length: int = base.length
        self._own = Text()
        self.length: int = base.length

    def append(self, text: str, serial: int) -> None:
        """Add `text` to the draft alone."""
        self._own.append(text, serial)
        self.length += len(text)

    def slice(self, start: int, end: int | None = None) -> str:
        """The text from `start` to `end` (code points)."""
        stop = self.length if end is None else min(end, self.length)
        edge = self._base_length
        below = self._base.slice(start, min(stop, edge)) if start < edge else ""
        return below + self._own.slice(max(0, start - edge), max(0, stop - edge))

    def length_at(self, serial: int) -> int:
        """As of a `Text`."""
        return self._base.length_at(serial) if not (own := self._own.length_at(serial)) else self._base_length + own

    def marks_after(self, start: int) -> Iterator[tuple[int, int]]:
        """As of a `Text`."""
        edge = self._base_length
        yield from self._base.marks_after(start)
        for serial, length in self._own.marks_after(max(0, start - edge)):
            yield serial, edge + length

    def __str__(self) -> str:
        return self.slice(0)
