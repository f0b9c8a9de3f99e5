"""What people and agents say where several may write one answer: each piece tells who wrote it, and in which attempt.

Layer: chaos.

Pure, as `plan` is, which cannot serve here: whoever takes an answer over would write what
the one before had planned, and a token from a writer that was fenced off would look right. Here the same place has
another text by another hand. Safe to change: the words.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, NamedTuple

from chaos.plan import first_difference

__all__ = ["Piece", "Script"]

_PIECE = re.compile(r"⟦(\d+) (\d+) ([\w~-]+)⟧([^⟦]*)")
_WORDS = (
    "and ",
    "then ",
    "🙂",
    "e\u0301 ",
    "中文 ",
    "\r\n",
    "\n\n",
    "\ndata: x\n\n",
    "holds ",
    "a rock, ",
    '"\\',
    "</p>",
)


class Piece(NamedTuple):
    """What is appended at once."""

    number: int  # from 0, over all attempts
    attempt: int  # at the turn; 0 of a question
    who: str


class Script:
    """One message that is whole with `steps` pieces, by one hand or by several, one after the other."""

    text_parts = 1
    is_deleted = False

    def __init__(self, seed: int, message_id: str, *, steps: int) -> None:
        self.id = message_id
        self.steps = steps
        self.meta: dict[str, Any] = {}
        self._seed = seed

    def text(self, piece: Piece) -> str:
        """The piece as it is written."""
        head = f"⟦{piece.number} {piece.attempt} {piece.who}⟧"
        return head + _WORDS[zlib.crc32(f"{self._seed}:{self.id}:{head}".encode()) % len(_WORDS)]

    def whole(self, who: str) -> str:
        """All of it, by somebody who was not disturbed."""
        return "".join(self.text(Piece(number, 0, who)) for number in range(self.steps))

    def pieces(self, text: str) -> list[Piece]:
        """The pieces that `text` has. What is no piece is left out: `wrong` tells of that."""
        return [Piece(int(one[1]), int(one[2]), one[3]) for one in _PIECE.finditer(text)]

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """What is wrong with `parts`; None if they are what was written, or with `is_whole` False a beginning of it."""
        if len(parts) > 1 or any(part["type"] != "text" for part in parts):
            return f"{self.id} has the parts {[part['type'] for part in parts]}, one text is written"
        text = parts[0]["text"] if parts else ""
        pieces = self.pieces(text)
        expected = "".join(map(self.text, pieces))
        if text != expected:
            return f"{self.id}: {first_difference(expected, text)}"
        for number, piece in enumerate(pieces):
            before = pieces[number - 1] if number else piece
            if piece.number != number:
                return f"{self.id}: {piece} stands where piece {number} is due"
            if piece.attempt < before.attempt or (piece.attempt == before.attempt and piece.who != before.who):
                return f"{self.id}: {piece} stands after {before}, by a writer who has it no more"
        if len(pieces) > self.steps or (is_whole and len(pieces) < self.steps):
            return f"{self.id} has {len(pieces)} pieces, written are {self.steps}"
        return None
