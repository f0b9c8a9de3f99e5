"""Growing text: pieces, with the serial of the entry that added each, joined on demand.

Layer: core.

The fold keeps the text of an appendable part as `Text`. The cost of an append depends on its own text only, not on
the text before it; one bisection finds the text that a reader at an old serial misses. Lengths are code points.
Serials and lengths live in arrays (16 bytes per append), not objects (400 bytes measured for a decoded entry).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

# This many small pieces are joined into one: each character is copied once more, and a
# piece then outweighs its own bookkeeping.
JOIN_PIECES = 64
# Beyond this many marks every other mark of the older half is dropped: 1 MiB of marks per part, and a resume from
# an old serial then repeats a few tokens (harmless: the view skips text before its own length, by `at`).
MAX_MARKS = 65_536
# A stored mark about every so many bytes of UTF-8 JSON (`docs/decisions/0001`).
MARK_BYTES = 256


class Text:
    """The text of one part, with a mark (serial, length) for each append."""

    __slots__ = ("_loose", "_pieces", "_starts", "length", "mark_lengths", "mark_serials")

    def __init__(self, text: str = "", serial: int = 0) -> None:
        self._pieces: list[str] = []
        self._starts: list[int] = []  # the offset of each piece
        self._loose = 0  # number of pieces at the end that are not joined yet
        self.length: int = 0
        self.mark_serials = array("Q")
        self.mark_lengths = array("Q")
        self.append(text, serial)

    def append(self, text: str, serial: int) -> None:
        """Add `text` of entry `serial`, which must not be below an earlier one."""
        if text:
            self._pieces.append(text)
            self._starts.append(self.length)
            self._loose += 1
            self.length += len(text)
            if self._loose >= JOIN_PIECES:
                self._join_loose()
        serials = self.mark_serials
        if serials and serials[-1] != serial and len(serials) < MAX_MARKS:  # hot path: the common case inline
            serials.append(serial)
            self.mark_lengths.append(self.length)
        else:
            self.mark(serial, self.length)

    def mark(self, serial: int, length: int) -> None:
        """Record that at `serial` the text was at least `length` long."""
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
        """Return a length that each viewer at `serial` has at least; exact if all marks are kept."""
        index = bisect_right(self.mark_serials, serial)
        return self.mark_lengths[index - 1] if index else 0

    def last_serial(self, until: int) -> int:
        """Return the serial of the last mark that is not above `until`, or 0."""
        index = bisect_right(self.mark_serials, until)
        return self.mark_serials[index - 1] if index else 0

    def slice(self, start: int, end: int | None = None) -> str:
        """Return the text from `start` to `end` (code points). The cost is proportional to the result."""
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
        """Return the marks (serial, length) beyond length `start`."""
        index = bisect_right(self.mark_lengths, start)
        return zip(self.mark_serials[index:], self.mark_lengths[index:], strict=True)

    def cost_bytes(self) -> int:
        """Return an estimate of the memory that this uses."""
        return self.length + 80 * len(self._pieces) + 16 * len(self.mark_serials) + 300

    def _join_loose(self) -> None:
        first = len(self._pieces) - self._loose
        self._pieces[first:] = ["".join(self._pieces[first:])]
        del self._starts[first + 1 :]
        self._loose = 0


class TextFork:
    """A draft on top of a `Text`: shares the text of its base, and keeps its own additions and their marks."""

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
        """Return the text from `start` to `end` (code points)."""
        stop = self.length if end is None else min(end, self.length)
        edge = self._base_length
        below = self._base.slice(start, min(stop, edge)) if start < edge else ""
        return below + self._own.slice(max(0, start - edge), max(0, stop - edge))

    def length_at(self, serial: int) -> int:
        """Return the length at `serial`, as `Text.length_at`."""
        return self._base.length_at(serial) if not (own := self._own.length_at(serial)) else self._base_length + own

    def marks_after(self, start: int) -> Iterator[tuple[int, int]]:
        """Yield the marks beyond length `start`, as `Text.marks_after`."""
        edge = self._base_length
        yield from self._base.marks_after(start)
        for serial, length in self._own.marks_after(max(0, start - edge)):
            yield serial, edge + length

    def __str__(self) -> str:
        return self.slice(0)
