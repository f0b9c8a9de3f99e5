"""The written answers of the demo, and the pace at which they are sent. They stand for a model's.

Layer: demo. Pure: this module never waits.

Each file in the folder `answers` is one: the question as its title, then the answer. `[[row: figure]]` is a figure with
its row in `docs/benchmarks.md`; a test compares both. The question and the answer's meta (`Settled`) determine the
whole text, so another process continues an answer after its stored text.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

FASTEST_S, SLOWEST_S = 0.02, 0.09  # bounds of the mean pause between two tokens
LONGEST_S, THINKING_S = 30.0, 1.5  # duration of an answer, and the pause before it: time to press the buttons
LONGEST_STEERING, MOST_STEERING = 200, 10  # in code points, and texts: all must fit into the answer's meta of 16 KiB

_HELLO = "Hello, and welcome! I am the guide of this demo, and I am made to be interrupted.\n\n"
_MENU = """I know nine answers; here they are:

{questions}

Ask one of them, and break it while it runs. I am no model; the last one says how to use one."""
_MAY_I = "This deletes the messages above for good, so I ask first. Everyone in this chat may reply, in any window.\n\n"
# Several scripts, one of them with combining marks: naive transports break when they split such text.
_CLOSING = "That was all. (A tenuto is a note held for its full value: 保持音 · 테누토 · تينوتو · gehalten 🧜🏽‍♀️)"
_GREETING = re.compile(r"\s*(hello|hi|hey|hallo|moin|good (morning|afternoon|evening))\b[\s\w]{0,20}[!.?,]*\s*", re.I)
_ENOUGH = re.compile(r"\b(short|shorter|brief|briefly|enough)\b", re.IGNORECASE)
ASKS_TO_DELETE = re.compile(r"\s*(please,?\s+)?delete\b", re.IGNORECASE)
_FENCE = re.compile(r"^```", re.MULTILINE)
_FIGURE = re.compile(r"\[\[.+?: ([^:\]]+)\]\]")


class WrittenAnswer(NamedTuple):
    """A question, and its answer in Markdown."""

    question: str
    text: str


class Steering(Struct, frozen=True, kw_only=True):
    """A text that a person sent to a running answer; from offset `at` on the answer takes it up."""

    at: int
    text: str
    by: str


class Deletion(Struct, frozen=True, kw_only=True):
    """Whether `count` messages may be deleted. `by` is None if no person replied, or no reply was needed."""

    ok: bool
    by: str | None = None
    count: int = 0


class Settled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values that determine an answer, beside its question. The answer's meta stores them."""

    steering: list[Steering] = []
    decision: Deletion | None = None


@functools.cache
def written_answers() -> tuple[WrittenAnswer, ...]:
    """Return the written answers in their order, read once."""
    files = sorted((Path(__file__).parent / "answers").glob("*.md"))
    pairs = (file.read_text(encoding="utf-8").split("\n", 1) for file in files)
    return tuple(WrittenAnswer(title.removeprefix("# "), _FIGURE.sub(r"\1", text.strip())) for title, text in pairs)


def written_answer(question: str) -> str | None:
    """Return the answer to a question with nearly the same words as `question`; None if there is none."""
    wanted = _stems(question)
    known = [(_stems(one.question), one.text) for one in written_answers()]
    score, text = max((len(wanted & stems) / len(wanted | stems), text) for stems, text in known)
    return text if score >= 0.5 else None


def whole(question: str, settled: Settled) -> str:
    """Return the whole text of the answer to `question` that `settled` determines."""
    greeting = _HELLO if _GREETING.fullmatch(question) else ""
    text = _MAY_I if ASKS_TO_DELETE.match(question) else greeting + (written_answer(question) or _menu())
    text += _outcome(settled.decision) if settled.decision is not None else ""
    for steering in settled.steering:
        before = text[: steering.at]
        end_of_code = "\n```" if len(_FENCE.findall(before)) % 2 else ""
        text = f"{before}{end_of_code}\n\n{steering.by} says: {steering.text}\n\n"
        text += _CLOSING if _ENOUGH.search(steering.text) else written_answer(steering.text) or _menu()
    return text


def paced(text: str, start: int, chance: random.Random) -> Iterator[tuple[str, float]]:
    """Yield `text` from offset `start` on: tokens, which may split emoji and accents, and the delay before each."""
    tokens = max(1.0, len(text) / 4.5)
    mean_s = min(SLOWEST_S, max(FASTEST_S, LONGEST_S / tokens))
    if start == 0:
        yield "", THINKING_S
    for run in re.findall(r" ?\w+| ?[^\w\s]+|\s+", text[start:]):
        at = 0
        while at < len(run):
            size = 12 if run.isspace() else chance.randint(3, 7) if run.isascii() else chance.randint(1, 3)
            yield run[at : at + size], mean_s * chance.uniform(0.6, 1.4)
            at += size


def _menu() -> str:
    return _MENU.format(questions="\n".join(f"{n}. {one.question}" for n, one in enumerate(written_answers(), 1)))


def _outcome(decision: Deletion) -> str:
    if not decision.ok:
        return f"{f'{decision.by} said no' if decision.by else 'No reply came in time'}, so all messages stay."
    deleted = f"{decision.by} said yes. {decision.count} message{'s' if decision.count != 1 else ''} deleted"
    return f"{deleted}, in every window." if decision.count else "There was no message."


_STOP_WORDS = (
    " a an and are as at by can could do does for from get happen happened happens has have how i if in is it many may "
    "me much my of on one or our own run runs should tell that the their this to us use was we what when while who why "
    "will with would you your "
)
_SYNONYMS = {"refr": "f5", "relo": "f5", "die": "kill", "dead": "kill", "cras": "kill", "canc": "stop", "pric": "cost"}


def _stems(text: str) -> frozenset[str]:
    """Return the first letters of the words of `text` that tell questions apart, with one of them for synonyms."""
    words = (word[:4] for word in re.findall(r"\w+", text.casefold()) if f" {word} " not in _STOP_WORDS)
    return frozenset(_SYNONYMS.get(word, word) for word in words)
