"""The text of a part that a client has, so that an adapter notices when another text takes its place.

Layer: interop.
"""

from __future__ import annotations

from zlib import crc32


class SentText:
    """The length and the checksum of a text that was sent; the text itself is not kept."""

    __slots__ = ("_sum", "length")

    def __init__(self, text: str = "") -> None:
        """Begin with `text`, which the client has."""
        self.length = 0  # code points
        self._sum = 0
        self.add(text)

    def add(self, text: str) -> None:
        """Note that `text` was sent after the rest."""
        self.length += len(text)
        self._sum = crc32(text.encode(), self._sum)

    def begins(self, text: str) -> bool:
        """Return whether `text` begins with the text that was sent."""
        return len(text) >= self.length and crc32(text[: self.length].encode()) == self._sum

    def is_all_of(self, text: str) -> bool:
        """Return whether `text` is the text that was sent."""
        return len(text) == self.length and self.begins(text)
