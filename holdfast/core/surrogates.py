"""Text that comes in pieces cut anywhere, also within a character of two UTF-16 halves.

You are in `core`: both writers use it, the hub's and the client's. Model providers split an emoji between two
deltas; on the wire half a pair is refused.
"""

from __future__ import annotations


class SurrogateJoiner:
    """Joins halves of surrogate pairs over the pieces of one text."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""  # a leading half, until its other half comes

    def write(self, text: str) -> str:
        """What of `held` and `text` is whole; a leading half at its end is held back, other halves become U+FFFD."""
        if text.isascii() and not self.held:
            return text
        text, self.held = self.held + text, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self.held = text[:-1], text[-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def end(self) -> str:
        """What to write for a half whose other half never came."""
        held, self.held = self.held, ""
        return "\ufffd" if held else ""


def whole_text(text: str) -> str:
    """`text` with its halves joined; what stays half becomes U+FFFD."""
    surrogates = SurrogateJoiner()
    return surrogates.write(text) + surrogates.end()
