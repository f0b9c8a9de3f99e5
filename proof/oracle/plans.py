"""Plans: texts that each process of a run knows in advance, from the seed and the id of a message.

Layer: oracle.

Pure, and quick to import: a viewer can judge each character when it is shown, without a question to another process. A
`Plan` has one writer. A `Script` has several, one after the other: each piece names its writer and attempt, because a
successor that wrote the planned text would hide a token of a fenced writer. You can change the words freely.

`Acknowledged` has the messages that producers know to be stored, for processes that cannot see the log of the store. A
run feeds it with the reports of its producers, and compares the messages of the server with it. It counts entries: with
the head of a channel they show that no serial was skipped and no entry was stored twice.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from dataclasses import dataclass, field
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


Json = dict[str, Any]


@dataclass
class AcknowledgedMessage:
    """One message, as far as its producer knows that it is stored."""

    plan: Planned
    channel: str
    lengths: list[int]
    status: str | None = None  # None: its creation was not acknowledged
    progress: int = 0
    has_meta: bool = False
    is_deleted: bool = False
    is_over: bool = False  # whether its producer sends no further request
    entries: int = 0
    entries_before: int = 0  # number of entries of earlier producers

    def stored(self, report: Json) -> None:
        """Take a report: the producer knows that this content is stored."""
        self.lengths = report["lengths"]
        self.progress = report["progress"]
        self.status = report.get("status", self.status or "streaming")
        self.has_meta = self.has_meta or report.get("meta", False)
        self.is_deleted = self.is_deleted or report.get("deleted", False)
        self.entries = self.entries_before + report["entries"]

    def found(self, report: Json) -> None:
        """Take the report of a successor. The last request of the earlier producer may be stored unacknowledged."""
        before = (self.status, self.lengths, self.progress, self.has_meta, self.is_deleted)
        self.status = report["status"]
        self.is_deleted = report.get("deleted", False)
        if not self.is_deleted:
            self.lengths = report.get("lengths", self.lengths)
            self.progress = report.get("progress", self.progress)
            self.has_meta = report.get("meta", False)
        else:
            self.is_over = True
        found = (self.status, self.lengths, self.progress, self.has_meta, self.is_deleted)
        self.entries_before = self.entries = self.entries + (found != before)

    def wrong(self, message: Json | None) -> str | None:
        """Return how the server's `message`, read after all acknowledgements, contradicts them; None if it does not."""
        if message is None:
            is_missing = self.status is not None and not self.plan.is_deleted
            return f"{self.plan.id} was acknowledged and is missing" if is_missing else None
        if self.is_deleted:
            return f"{self.plan.id} was deleted and still exists"
        parts, status = message.get("parts", []), message["status"]
        wrong = self.plan.wrong(parts, is_whole=status == "complete")
        if wrong is not None:
            return wrong
        parts = counted(parts)
        for index, length in enumerate(self.lengths):
            stored = len(parts[index]["text"]) if index < len(parts) else 0
            if stored < length or (self.is_over and self.status != "complete" and stored != length):
                return f"{self.plan.id}, part {index}: {length} characters were acknowledged, {stored} are stored"
        if self.status not in (None, "streaming", status) or (self.is_over and status != self.status):
            return f"{self.plan.id} was acknowledged as {self.status} and is {status}"
        if self.has_meta and message.get("meta") != self.plan.meta:
            return f"{self.plan.id} has meta {message.get('meta')}, acknowledged was {self.plan.meta}"
        return None


@dataclass
class Acknowledged:
    """All messages of a run. `kind` is that of their texts, except in the channels of `kinds`."""

    seed: int
    steps: int
    messages: dict[str, AcknowledgedMessage] = field(default_factory=dict)
    refusals: list[Json] = field(default_factory=list)
    epochs: dict[str, str] = field(default_factory=dict)
    kind: Kind = "plan"
    kinds: dict[str, Kind] = field(default_factory=dict)

    def kind_of(self, channel: str) -> Kind:
        """Return the kind of the texts in a channel."""
        return self.kinds.get(channel, self.kind)

    def begin(self, message_id: str, channel: str) -> AcknowledgedMessage:
        """Return the message, which may exist from now on."""
        known = self.messages.get(message_id)
        if known is None:
            plan = PLANNED[self.kind_of(channel)](self.seed, message_id, steps=self.steps)
            known = self.messages[message_id] = AcknowledgedMessage(plan, channel, [0] * plan.text_parts)
        return known

    def report(self, report: Json, channel: str) -> None:
        """Take a report of a producer."""
        match report["say"]:
            case "begins":
                self.begin(report["id"], channel)
            case "stored":
                self.messages[report["id"]].stored(report)
            case "found":
                self.begin(report["id"], channel).found(report)
            case "over":
                self.messages[report["id"]].is_over = True
            case "refused":
                self.refusals.append(report)

    @property
    def characters(self) -> int:
        """Return how many characters were acknowledged."""
        return sum(sum(one.lengths) for one in self.messages.values())

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
