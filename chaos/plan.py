"""What producers write: each message is determined by the run's seed and its own id.

Layer: chaos.

Pure: every process of a run knows from this alone what the truth will be, so a viewer can
judge each character when it is shown, and nobody has to be asked. Safe to change: the mixture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

__all__ = ["Append", "Plan", "Planned", "Put", "Step", "first_difference"]

Kind = Literal["plain", "thinking", "progress"]
Afterwards = Literal["nothing", "meta", "delete"]

# What breaks naive code (framing, code points, line ends), in the middle of ordinary words.
_ORDINARY = ("and ", "then ", "a ", "wave ", "takes ", "hold ", "of ", "rock, ")
_NASTY = (
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
_AROUND = 24  # characters shown on each side of a difference


@dataclass(frozen=True)
class Append:
    """Text for a part that then has the length `at`."""

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
    """What is known of a message by its id: a `Plan`, or a `Script` of several who write."""

    @property
    def id(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]:
        """What `meta` holds in the end."""
        ...

    @property
    def is_deleted(self) -> bool:
        """Is it deleted when it is complete?"""
        ...

    @property
    def text_parts(self) -> int:
        """How many of its parts have a text."""
        ...

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """What is wrong with `parts`; None if they are what was written, or with `is_whole` False a beginning of it."""
        ...


class Plan:
    """One message: how it begins, the steps, and what becomes of it when it is complete."""

    def __init__(self, seed: int, message_id: str, *, steps: int) -> None:
        self.id = message_id
        chosen = random.Random(f"{seed}:{message_id}")
        self.kind: Kind = chosen.choices(("plain", "thinking", "progress"), (3, 1, 1))[0]
        self.afterwards: Afterwards = chosen.choices(("nothing", "meta", "delete"), (7, 2, 1))[0]
        self.steps = self._steps(chosen, steps)

    def _steps(self, chosen: random.Random, count: int) -> list[Step]:
        lengths = [0, 0]
        steps: list[Step] = []
        for number in range(count):
            if self.kind == "progress" and number % 4 == 3:
                steps.append(Put(1, number))
                continue
            part = chosen.choice((0, 0, 0, 1)) if self.kind == "thinking" else 0
            text = chosen.choice(_NASTY if chosen.random() < 0.3 else _ORDINARY)
            steps.append(Append(part, lengths[part], text))
            lengths[part] += len(text)
        return steps

    @property
    def opening(self) -> list[dict[str, Any]]:
        """The parts to create the message with; a plain one has none, and its first append opens one."""
        if self.kind == "thinking":
            return [{"type": "reasoning", "text": ""}, {"type": "text", "text": ""}]
        if self.kind == "progress":
            return [{"type": "text", "text": ""}, self.value(0)]
        return []

    @property
    def meta(self) -> dict[str, Any]:
        """What `meta` holds in the end."""
        return {"title": f"about {self.id}"} if self.afterwards == "meta" else {}

    @property
    def text_parts(self) -> int:
        return len(self.texts)

    @property
    def is_deleted(self) -> bool:
        return self.afterwards == "delete"

    @staticmethod
    def value(number: int) -> dict[str, Any]:
        """The part that shows progress."""
        return {"type": "data", "name": "progress", "data": number}

    @cached_property
    def texts(self) -> list[str]:
        """The whole text of each part that has one."""
        texts = ["", ""]
        for step in self.steps:
            if isinstance(step, Append):
                texts[step.part] += step.text
        return texts if self.kind == "thinking" else texts[:1]

    def wrong(self, parts: list[dict[str, Any]], *, is_whole: bool) -> str | None:
        """What is wrong with `parts`; None if they are what was written, or with `is_whole` False a beginning of it."""
        count = 1 if self.kind == "plain" else 2
        if len(parts) > count or (is_whole and len(parts) < count):
            return f"{self.id} has {len(parts)} parts, planned are {count}"
        for index, part in enumerate(parts):
            if part["type"] == "data":
                if self.kind != "progress" or index != 1:
                    return f"{self.id}: part {index} is {part!r}"
                known = [0, *(step.number for step in self.steps if isinstance(step, Put))]
                if part != self.value(known[-1]) and (is_whole or part not in map(self.value, known)):
                    return f"{self.id}: part {index} is {part!r}, planned is up to {known[-1]}"
                continue
            expected, seen = self.texts[index] if index < len(self.texts) else "", part["text"]
            if not expected.startswith(seen) or (is_whole and seen != expected):
                return f"{self.id}, part {index}: {first_difference(expected, seen)}"
        return None


def first_difference(expected: str, seen: str) -> str:
    """Where two texts part, with what stands around it."""
    place = next(
        (index for index, (one, other) in enumerate(zip(expected, seen, strict=False)) if one != other),
        min(len(expected), len(seen)),
    )
    around = slice(max(0, place - _AROUND), place + _AROUND)
    return (
        f"differs at {place} (lengths {len(expected)} expected, {len(seen)} seen): "
        f"expected …{expected[around]!r}…, seen …{seen[around]!r}…"
    )
