"""Join surrogate pairs in text that arrives in pieces.

Layer: core; the writers of the hub and of the client use it. Some model providers send the two UTF-16 halves of an
emoji in separate deltas. The wire refuses half a pair.
"""

from __future__ import annotations


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
