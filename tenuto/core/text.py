"""Growing text: pieces, with the serial of the entry that added each, joined on demand; and the part that has it.

Layer: core.

The fold keeps the text of an appendable part as `Text`. The cost of an append depends on its own text only, not on
the text before it; one bisection finds the text that a reader at an old serial misses. Lengths are code points.
Serials and lengths live in arrays (16 bytes per append), not objects (400 bytes measured for a decoded entry).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

import msgspec

from tenuto.core.model import APPENDABLE, Part

# This many small pieces are joined into one. Joining copies each character once more, but then a piece is larger than
# the memory that Python needs to keep it.
JOIN_PIECES = 64
# Limit of marks per part: 1 MiB of memory. Beyond it, every other mark of the older half is dropped. A resume from an
# old serial then repeats a few characters, which the view skips by their offset `at`.
MAX_MARKS = 65_536
# Bytes of text (UTF-8 JSON) between two stored marks, about (`docs/decisions/0001`).
MARK_BYTES = 256
# A replaced part keeps a first value of at most so many bytes of JSON: those of calls, not of files or large data.
FIRST_BYTES = 1_024


class Text:
    """The text of one part, with a mark (serial, length at that serial) for each append."""

    __slots__ = ("_loose", "_pieces", "_starts", "length", "mark_lengths", "mark_serials")

    def __init__(self, text: str = "", serial: int = 0) -> None:
        self._pieces = [text] if text else []
        self._starts = [0] if text else []  # offsets at which the pieces begin
        self._loose = len(self._pieces)  # number of pieces at the end that are not joined yet
        self.length: int = len(text)
        self.mark_serials = array("Q", (serial,))
        self.mark_lengths = array("Q", (self.length,))

    def append(self, text: str, serial: int) -> None:
        """Add `text` of the entry `serial`, which must not be below that of an earlier entry."""
        if text:
            self._pieces.append(text)
            self._starts.append(self.length)
            self._loose += 1
            self.length += len(text)
            if self._loose >= JOIN_PIECES:
                first = len(self._pieces) - self._loose
                self._pieces[first:] = ["".join(self._pieces[first:])]
                del self._starts[first + 1 :]
                self._loose = 0
        serials = self.mark_serials
        if serials[-1] == serial:
            self.mark_lengths[-1] = self.length
            return
        serials.append(serial)
        self.mark_lengths.append(self.length)
        if len(serials) > MAX_MARKS:
            half = MAX_MARKS // 2
            self.mark_serials = serials[:half:2] + serials[half:]
            self.mark_lengths = self.mark_lengths[:half:2] + self.mark_lengths[half:]

    def length_at(self, serial: int) -> int:
        """Return the length that every viewer at `serial` has at least; exact if no mark was dropped."""
        index = bisect_right(self.mark_serials, serial)
        return self.mark_lengths[index - 1] if index else 0

    def last_mark(self, until: int) -> tuple[int, int]:
        """Return the last mark (serial, text length at it) whose serial is at most `until`; (0, 0) if there is none."""
        index = bisect_right(self.mark_serials, until)
        return (self.mark_serials[index - 1], self.mark_lengths[index - 1]) if index else (0, 0)

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
        """Return the marks (serial, text length at it) whose length is above `start`."""
        index = bisect_right(self.mark_lengths, start)
        return zip(self.mark_serials[index:], self.mark_lengths[index:], strict=True)

    def cost_bytes(self) -> int:
        """Return an estimate of the memory that this text uses."""
        return self.length + 80 * len(self._pieces) + 16 * len(self.mark_serials) + 300


class TextFork:
    """A copy of a `Text` for a draft: it shares the text of its base, and keeps its own additions and their marks.

    Its methods are those of `Text`.
    """

    __slots__ = ("_base", "_base_length", "_own", "length")

    def __init__(self, base: Text | TextFork) -> None:
        self._base = base
        self._base_length: int = base.length
        self._own = Text()
        self.length: int = base.length

    def append(self, text: str, serial: int) -> None:
        """Add `text` to this copy; the base stays as it is."""
        self._own.append(text, serial)
        self.length += len(text)

    def slice(self, start: int, end: int | None = None) -> str:
        stop = self.length if end is None else min(end, self.length)
        edge = self._base_length
        below = self._base.slice(start, min(stop, edge)) if start < edge else ""
        return below + self._own.slice(max(0, start - edge), max(0, stop - edge))

    def length_at(self, serial: int) -> int:
        return self._base.length_at(serial) if not (own := self._own.length_at(serial)) else self._base_length + own

    def marks_after(self, start: int) -> Iterator[tuple[int, int]]:
        edge = self._base_length
        yield from self._base.marks_after(start)
        for serial, length in self._own.marks_after(max(0, start - edge)):
            yield serial, edge + length

    def __str__(self) -> str:
        return self.slice(0)


class PartState:
    """The state of one part: its fields, and its growing text if its type has one."""

    __slots__ = ("changed", "fields", "first", "key", "opened", "text")

    def __init__(self, part: Part, opened: int, changed: int) -> None:
        self.key = APPENDABLE.get(part["type"], "")
        self.opened = opened  # serial of the entry that opened the part
        self.changed = changed  # serial of the last entry that replaced the part; appends do not count
        self.first: Part | None = None  # value with which a replaced part was opened; None: unknown, or not kept
        self.fields = part
        self.text: Text | TextFork | None = None
        if self.key:
            self.fields = {name: value for name, value in part.items() if name != self.key}
            self.text = Text(part.get(self.key, ""), changed)

    def fork(self) -> PartState:
        """Return a copy; changes to it leave this part as it is."""
        copy = PartState.__new__(PartState)
        copy.key, copy.opened, copy.changed, copy.fields = self.key, self.opened, self.changed, self.fields
        copy.first = self.first
        copy.text = TextFork(self.text) if self.text is not None else None
        return copy

    @property
    def length(self) -> int:
        """Return the length of the growing text in code points; 0 for a part without one."""
        return self.text.length if self.text is not None else 0

    def value(self, until: int | None = None) -> Part:
        """Return the part as clients see it; with `until`, only that many code points of its text."""
        if self.text is None:
            return self.fields
        text = str(self.text) if until is None else self.text.slice(0, until)
        return {**self.fields, self.key: text}

    def as_changed(self) -> Part:
        """Return the part as the entry at `changed` has left it: without the text that was appended since."""
        return self.value(self.text.length_at(self.changed) if self.text is not None else None)

    def replaced(self, part: Part, serial: int) -> PartState:
        """Return the state after entry `serial` has replaced the part by `part`; it keeps the first value if small."""
        new = PartState(part, self.opened, serial)
        new.first = self.first
        if self.changed == self.opened and len(msgspec.json.encode(first := self.as_changed())) <= FIRST_BYTES:
            new.first = first
        return new


class SurrogateJoiner:
    """Joins the halves of surrogate pairs across the pieces of one text."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""  # a high surrogate that waits for the low surrogate of its pair

    def write(self, text: str) -> str:
        """Return `held` plus `text`. A high surrogate at the end is held back; other lone halves become U+FFFD."""
        if text.isascii() and not self.held:
            return text
        text, self.held = self.held + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self.held = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def end(self) -> str:
        """Return U+FFFD if a high surrogate is still held, else an empty text."""
        held, self.held = self.held, ""
        return "\ufffd" if held else ""


def whole_text(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone halves replaced by U+FFFD."""
    surrogates = SurrogateJoiner()
    return surrogates.write(text) + surrogates.end()
