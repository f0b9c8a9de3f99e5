"""Plans: texts that each process of a run knows in advance, from the seed and the id of a message.

Layer: oracle.

Pure, and quick to import: a viewer can judge each character when it is shown, without a question to another process.
Each piece of a `Script` names its writer and attempt: otherwise a successor that wrote the same text would hide a token
of a fenced writer. You can change the words freely.

`Acknowledged` has the messages that producers know to be stored, for processes that cannot see the log of the store. A
run feeds it with the reports of its producers, and compares the messages of the server with it. It counts entries: with
the head of a channel they show that no serial was skipped and no entry was stored twice.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

# Text that breaks naive code (framing, code points, line ends), between ordinary words.
ORDINARY = ("and ", "then ", "a ", "wave ", "takes ", "hold ", "of ", "rock, ")
NASTY = (
    "🙂",
    "👩\u200d🚀",
    "e\u0301",
    "中文 ",
    "שלום ",
    "\r\n",
    "\r",
    "\n\n",
    "\u2028",
    "\ndata: x\n\n",
    "</p>",
    '"\\',
)
_PIECE = re.compile(r"⟦(\d+) (\d+) ([\w~-]+)⟧([^⟦]*)")
_WORDS = ORDINARY[:2] + NASTY
_AROUND = 24  # characters shown on each side of a difference


def counted(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts that count: not those of superseded attempts."""
    return [part for part in parts if part["type"] != "attempt"]


class Piece(NamedTuple):
    """The text of one append in a `Script`."""

    number: int  # number of the piece, from 0, over all attempts
    attempt: int  # number of the attempt at the turn; 0 for a question
    writer: str


class Script:
    """One message of `steps` pieces, by one writer or by several, one after the other."""

    def __init__(self, seed: int, message_id: str, *, steps: int) -> None:
        self.id = message_id
        self.steps = steps
        self._seed = seed

    def text(self, piece: Piece) -> str:
        """Return the text of a piece."""
        head = f"⟦{piece.number} {piece.attempt} {piece.writer}⟧"
        return head + _WORDS[zlib.crc32(f"{self._seed}:{self.id}:{head}".encode()) % len(_WORDS)]

    def texts(self, writer: str) -> list[str]:
        """Return all pieces by one writer."""
        return [self.text(Piece(number, 0, writer)) for number in range(self.steps)]

    def pieces(self, text: str) -> list[Piece]:
        """Return the pieces in `text`; it leaves out other text, which `wrong` reports."""
        return [Piece(int(one[1]), int(one[2]), one[3]) for one in _PIECE.finditer(text)]

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """Return how `parts` differ from a script, or None; without `is_whole` a beginning of it is enough."""
        attempts = [part for part in parts if part["type"] == "attempt"]
        if attempts != parts[: len(attempts)]:
            return f"{self.id} has an attempt behind {parts[0]['type']}: {[part['type'] for part in parts]}"
        for attempt in attempts:
            if "attempt" in [part["type"] for part in attempt["parts"]]:
                return f"{self.id} has an attempt in an attempt"
            if (wrong := self.wrong(attempt["parts"], is_whole=False)) is not None:
                return f"{wrong}, in an attempt"
            if attempt["characters"] != sum(len(part["text"]) for part in attempt["parts"]):
                return f"{self.id} has an attempt of {attempt['characters']} characters: {attempt['parts']}"
        parts = counted(parts)
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
            if piece.attempt < before.attempt or (piece.attempt == before.attempt and piece.writer != before.writer):
                return f"{self.id}: {piece} stands after {before}, by a writer that has lost the message"
        if len(pieces) > self.steps or (is_whole and len(pieces) < self.steps):
            return f"{self.id} has {len(pieces)} pieces, written are {self.steps}"
        return None


def first_difference(expected: str, seen: str) -> str:
    """Return where two texts begin to differ, with the characters around that offset."""
    place = next(
        (index for index, (one, other) in enumerate(zip(expected, seen, strict=False)) if one != other),
        min(len(expected), len(seen)),
    )
    around = slice(max(0, place - _AROUND), place + _AROUND)
    return (
        f"differs at {place} (lengths {len(expected)} expected, {len(seen)} seen): "
        f"expected …{expected[around]!r}…, seen …{seen[around]!r}…"
    )


Json = dict[str, Any]


@dataclass
class AcknowledgedMessage:
    """One message, as far as its producer knows that it is stored."""

    script: Script
    channel: str
    length: int = 0
    status: str | None = None  # None: its creation was not acknowledged
    is_over: bool = False  # whether its producer sends no further request
    entries: int = 0

    def stored(self, report: Json) -> None:
        """Take a report: the producer knows that this content is stored."""
        self.length = report["length"]
        self.status = report.get("status", self.status or "streaming")
        self.entries = report["entries"]

    def wrong(self, message: Json | None) -> str | None:
        """Return how the server's `message`, read after all acknowledgements, contradicts them; None if it does not."""
        if message is None:
            return f"{self.script.id} was acknowledged and is missing" if self.status is not None else None
        parts, status = message.get("parts", []), message["status"]
        wrong = self.script.wrong(parts, is_whole=status == "complete")
        if wrong is not None:
            return wrong
        stored = sum(len(part["text"]) for part in counted(parts))
        if stored < self.length or (self.is_over and self.status != "complete" and stored != self.length):
            return f"{self.script.id}: {self.length} characters were acknowledged, {stored} are stored"
        if self.status not in (None, "streaming", status) or (self.is_over and status != self.status):
            return f"{self.script.id} was acknowledged as {self.status} and is {status}"
        return None


@dataclass
class Acknowledged:
    """All messages of a run."""

    seed: int
    steps: int
    messages: dict[str, AcknowledgedMessage] = field(default_factory=dict)
    epochs: dict[str, str] = field(default_factory=dict)

    def begin(self, message_id: str, channel: str) -> AcknowledgedMessage:
        """Return the message, which may exist from now on."""
        script = Script(self.seed, message_id, steps=self.steps)
        return self.messages.setdefault(message_id, AcknowledgedMessage(script, channel))

    def report(self, report: Json, channel: str) -> None:
        """Take a report of a producer."""
        match report["say"]:
            case "begins":
                self.begin(report["id"], channel)
            case "stored":
                self.messages[report["id"]].stored(report)
            case "over":
                self.messages[report["id"]].is_over = True

    @property
    def characters(self) -> int:
        """Return how many characters were acknowledged."""
        return sum(one.length for one in self.messages.values())

    def of(self, channel: str) -> dict[str, AcknowledgedMessage]:
        """Return the messages of a channel."""
        return {id: one for id, one in self.messages.items() if one.channel == channel}

    def wrong_epoch(self, channel: str, cursor: str) -> str | None:
        """Return the fault in the epoch of `cursor`, or None: a log keeps its epoch while its store keeps it."""
        epoch = cursor.partition(":")[0]
        known = self.epochs.get(channel, "-")
        if known != "-" and epoch != known:
            return f"channel {channel} was in epoch {known} and is in {epoch}"
        self.epochs[channel] = epoch
        return None
