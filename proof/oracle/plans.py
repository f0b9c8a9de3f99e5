"""Plans: texts that each process of a run knows in advance, from the seed and the id of a message.

Layer: oracle.

Pure, and quick to import: a viewer can judge each character when it is shown, without a question to another process. A
`Plan` has one writer. A `Script` has several, one after the other: each piece names its writer and attempt, because a
successor that wrote the planned text would hide a token of a fenced writer. You can change the words freely.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["plan", "script"]
Content = Literal["plain", "thinking", "progress"]
Afterwards = Literal["nothing", "meta", "delete"]

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


@dataclass(frozen=True)
class Append:
    """Text for a part whose length is then `at`."""

    part: int
    at: int
    text: str

    @property
    def end(self) -> int:
        return self.at + len(self.text)


@dataclass(frozen=True)
class Put:
    """The n-th value of the part that shows progress."""

    part: int
    number: int


Step = Append | Put


class Planned(Protocol):
    """The content of a message that its id determines: a `Plan` or a `Script`."""

    @property
    def id(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]:
        """Return the last `meta` of the message."""
        ...

    @property
    def is_deleted(self) -> bool:
        """Return whether its producer deletes it when it is complete."""
        ...

    @property
    def text_parts(self) -> int:
        """Return how many of its parts have a text."""
        ...

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """Return how `parts` differ from the plan, or None; without `is_whole` a beginning of the plan is enough."""
        ...


class Plan:
    """One message by one writer: its steps, and its end."""

    def __init__(self, seed: int, message_id: str, *, steps: int) -> None:
        self.id = message_id
        self.seed = seed
        chosen = random.Random(f"{seed}:{message_id}")
        self.content: Content = chosen.choices(("plain", "thinking", "progress"), (3, 1, 1))[0]
        self.afterwards: Afterwards = chosen.choices(("nothing", "meta", "delete"), (7, 2, 1))[0]
        self.steps = self._steps(chosen, steps)

    @classmethod
    def plain(cls, seed: int, message_id: str, *, steps: int) -> Plan:
        """Return the first plan from `seed` on that is one text and does not change after its end."""
        plans = (cls(number, message_id, steps=steps) for number in itertools.count(seed))
        return next(plan for plan in plans if plan.content == "plain" and plan.afterwards == "nothing")

    def _steps(self, chosen: random.Random, count: int) -> list[Step]:
        lengths = [0, 0]
        steps: list[Step] = []
        for number in range(count):
            if self.content == "progress" and number % 4 == 3:
                steps.append(Put(1, number))
                continue
            part = chosen.choice((0, 0, 0, 1)) if self.content == "thinking" else 0
            text = chosen.choice(NASTY if chosen.random() < 0.3 else ORDINARY)
            steps.append(Append(part, lengths[part], text))
            lengths[part] += len(text)
        return steps

    @property
    def opening(self) -> list[dict[str, Any]]:
        """Return the parts of the create request; a plain message has none, and its first append opens one."""
        if self.content == "thinking":
            return [{"type": "reasoning", "text": ""}, {"type": "text", "text": ""}]
        if self.content == "progress":
            return [{"type": "text", "text": ""}, self.value(0)]
        return []

    @property
    def meta(self) -> dict[str, Any]:
        return {"title": f"about {self.id}"} if self.afterwards == "meta" else {}

    @property
    def text_parts(self) -> int:
        return len(self.texts)

    @property
    def is_deleted(self) -> bool:
        return self.afterwards == "delete"

    @staticmethod
    def value(number: int) -> dict[str, Any]:
        """Return the part that shows progress."""
        return {"type": "data", "name": "progress", "data": number}

    @cached_property
    def texts(self) -> list[str]:
        """Return the whole text of each part that has one."""
        texts = ["", ""]
        for step in self.steps:
            if isinstance(step, Append):
                texts[step.part] += step.text
        return texts if self.content == "thinking" else texts[:1]

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """Return how `parts` differ from the plan, or None; without `is_whole` a beginning of the plan is enough."""
        count = 1 if self.content == "plain" else 2
        if len(parts) > count or (is_whole and len(parts) < count):
            return f"{self.id} has {len(parts)} parts, planned are {count}"
        for index, part in enumerate(parts):
            if part["type"] == "data":
                if self.content != "progress" or index != 1:
                    return f"{self.id}: part {index} is {part!r}"
                known = [0, *(step.number for step in self.steps if isinstance(step, Put))]
                if part != self.value(known[-1]) and (is_whole or part not in map(self.value, known)):
                    return f"{self.id}: part {index} is {part!r}, planned is up to {known[-1]}"
                continue
            expected, seen = self.texts[index] if index < len(self.texts) else "", part["text"]
            if not expected.startswith(seen) or (is_whole and seen != expected):
                return f"{self.id}, part {index}: {first_difference(expected, seen)}"
        return None


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

    text_parts = 1
    is_deleted = False

    def __init__(self, seed: int, message_id: str, *, steps: int) -> None:
        self.id = message_id
        self.steps = steps
        self.meta: dict[str, Any] = {}
        self._seed = seed

    def text(self, piece: Piece) -> str:
        """Return the text of a piece."""
        head = f"⟦{piece.number} {piece.attempt} {piece.writer}⟧"
        return head + _WORDS[zlib.crc32(f"{self._seed}:{self.id}:{head}".encode()) % len(_WORDS)]

    def whole(self, writer: str) -> str:
        """Return the whole text by one writer."""
        return "".join(self.text(Piece(number, 0, writer)) for number in range(self.steps))

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


PLANNED: dict[Kind, type[Plan] | type[Script]] = {"plan": Plan, "script": Script}


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
