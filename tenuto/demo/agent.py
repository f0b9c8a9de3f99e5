"""The text of the demo's answers, at the pace of a model: ready answers, or quotations from the documentation.

Layer: demo.

This is the pure part; it never waits. The question and the answer's meta (`Settled`) determine the whole answer before
its first token is sent: the seed, the steering of people and its offsets, and their decision. Another process can
therefore continue an answer: it reads how much is stored, computes the same steps and sends the rest.

Wording and pace may change freely. A running answer detects the change by its fingerprint.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from tenuto.demo.answers import ready_answer
from tenuto.demo.passages import Library, Passage, library

__all__ = [
    "LONGEST_S",
    "SHORTEST_S",
    "DeleteDecision",
    "Settled",
    "Steering",
    "Step",
    "asks_to_delete",
    "continue_at",
    "is_as_begun",
    "plan",
    "script",
]

SHORTEST_S = 30.0  # long enough that a visitor can press F5 a few times and kill the server during the answer
LONGEST_S = 75.0
_ENOUGH_S = (36.0, 46.0)  # range of the random time after which no further passage begins

_TOKEN_S = (0.012, 0.028)  # range of the pause before a token: 50 tokens a second on average, as many models write
_THINKING_S = (0.6, 1.2)
_PAUSE_S = (0.3, 1.5)
_PAUSES_PER_SENTENCE = 0.1

_FOUND = "These passages of the documentation fit your question best.\n\n"
_FOUND_NOTHING = (
    "The documentation does not contain those words, so I have no answer. To give you an answer to break, here is "
    "its beginning.\n\n"
)
_READING_ON = "No other passage shares a word with your question. I continue after the first of these.\n\n"
_EMPTY = "This installation has no documentation yet, so I have no passage to quote, and I shall take my time.\n\n"
# Several scripts, one of them with combining marks: naive transports break when they split such text.
_CLOSING = (
    "That was all from me. (A tenuto is the root that keeps kelp in its place while the water moves around "
    "it: 付着器 · 부착기 · المُثَبِّت · Haftorgan 🧜🏽‍♀️)"
)
OTHER_TEXT = (
    "\n\nI stop here: the documentation changed while this answer was interrupted, so my text would no longer "
    "continue the text above."
)

_MAY_I = (
    "You want me to delete the messages above. That cannot be undone, so I ask first. Everyone in this chat may "
    "reply, in any window.\n\n"
)

# All steering must fit into the answer's meta, which has 16 KiB.
LONGEST_STEERING = 200  # limit of code points of one steering text; the rest is ignored
MOST_STEERING = 10
_STEERING_ENOUGH_S = 12.0
_ENOUGH = re.compile(r"\b(short|shorter|brief|briefly|enough)\b", re.IGNORECASE)
_DELETE = re.compile(r"\s*(please,?\s+)?delete\b", re.IGNORECASE)


class Step(NamedTuple):
    """One token of an answer, and the delay before it."""

    text: str
    delay_s: float


class Steering(Struct, frozen=True, kw_only=True):
    """A text that a person sent to a running answer; from offset `at` on the answer takes it up."""

    at: int
    text: str
    by: str


class DeleteDecision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the messages `to_delete` may be deleted. `by` is None if no person replied, or no reply was needed."""

    ok: bool
    by: str | None = None
    to_delete: list[str] = []


class Settled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values that determine an answer. The answer's meta stores them, for a process that continues it."""

    seed: int
    fingerprint: str  # fingerprint of the answer as it began
    steering: list[Steering] = []
    decision: DeleteDecision | None = None

    @classmethod
    def of(cls, question_id: str, question: str, source: Library | None = None) -> Self:
        """Return the values that follow from a question, without randomness: a repeated question gives the same."""
        seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4])
        return cls(seed=seed, fingerprint=_fingerprint(_beginning(question, seed, source)))

    def with_steering(self, steering: Iterable[Steering]) -> Self:
        """Return a copy that includes further steering."""
        return replace(self, steering=[*self.steering, *steering][:MOST_STEERING])


def asks_to_delete(question: str) -> bool:
    """Return whether people must agree before the agent does what `question` asks."""
    return _DELETE.match(question) is not None


# The steps --------------------------------------------------------------------------------------------------


def plan(question: str, settled: Settled, source: Library | None = None) -> list[Step]:
    """Return all steps of the answer to `question` that `settled` determines."""
    steps = _beginning(question, settled.seed, source)
    if settled.decision is not None:
        steps += _paced(_outcome(settled.decision), random.Random(settled.seed + 1))
    for number, steering in enumerate(settled.steering):
        chance = random.Random(settled.seed + 2 + number)
        before = _first(steps, steering.at)
        steps = before + _steered(steering, _is_in_code(before), chance, source or library())
    return steps


def is_as_begun(question: str, settled: Settled, source: Library | None = None) -> bool:
    """Return whether the answer would still begin with the same text."""
    return _fingerprint(_beginning(question, settled.seed, source)) == settled.fingerprint


def _beginning(question: str, seed: int, source: Library | None) -> list[Step]:
    if asks_to_delete(question):
        return list(_paced(_MAY_I, random.Random(seed)))
    return script(question, seed, source)


def _outcome(decision: DeleteDecision) -> str:
    """Return the text that reports the decision of people."""
    count = len(decision.to_delete)
    if decision.ok:
        who = f"{decision.by} said yes. " if decision.by else ""
        what = (
            f"{count} message{'s' if count != 1 else ''} deleted, in every window."
            if count
            else "There was no message."
        )
        return who + what
    who = f"{decision.by} said no" if decision.by else "No reply came in time"
    return f"{who}, so all messages stay."


def _is_in_code(steps: Iterable[Step]) -> bool:
    """Return whether the text of `steps` ends within a fenced block of code."""
    return len(_FENCE.findall("".join(step.text for step in steps))) % 2 == 1


def _steered(steering: Steering, is_in_code: bool, chance: random.Random, source: Library) -> list[Step]:
    """Return the steps with which the answer continues after a steering text; a block of code ends first."""
    end = f"\n{_MARK}" if is_in_code else ""
    opening = f"{end}\n\n{steering.by} says: {steering.text}\n\n"
    if _ENOUGH.search(steering.text):
        return [*_paced(opening, chance), *_paced(_CLOSING, chance)]
    found = source.search(steering.text)
    opening += "So I turn to that.\n\n" if found else "The documentation does not mention that.\n\n"
    steps: list[Step] = []
    for text in [opening, *_with_headings(found)]:
        if sum(step.delay_s for step in steps) >= _STEERING_ENOUGH_S:
            break
        steps += _paced(text, chance)
    return [*steps, *_paced(_CLOSING, chance)]


def _first(steps: Iterable[Step], length: int) -> list[Step]:
    """Return the steps of the first `length` code points of text."""
    kept: list[Step] = []
    for step in steps:
        if length <= 0:
            break
        kept.append(step._replace(text=step.text[:length]))
        length -= len(step.text)
    return kept


def script(question: str, seed: int, source: Library | None = None) -> list[Step]:
    """Return the whole answer to `question`, between SHORTEST_S and LONGEST_S long; each call returns the same.

    It is a ready answer, or else the passages of `source`, by default those of the project's documentation.
    """
    chance = random.Random(seed)
    ready = ready_answer(question)
    steps = list(_paced(ready, chance)) if ready is not None else _quotations(question, chance, source or library())
    steps[0] = steps[0]._replace(delay_s=chance.uniform(*_THINKING_S))
    return _stretched(steps)


def _quotations(question: str, chance: random.Random, source: Library) -> list[Step]:
    """Return an answer that quotes the passages which fit `question`, between an introduction and a closing."""
    enough_s = chance.uniform(*_ENOUGH_S)
    steps: list[Step] = []
    spent_s = 0.0
    for text in _texts(question, source):
        if spent_s >= enough_s:
            break
        added = list(_paced(text, chance))
        steps += added
        spent_s += sum(step.delay_s for step in added)
    return [*steps, *_paced(_CLOSING, chance)]


def continue_at(steps: Iterable[Step], length: int) -> list[Step]:
    """Return the rest of `steps` after `length` stored code points; the first step may be half a token."""
    left: list[Step] = []
    for step in steps:
        if length < len(step.text):
            left.append(step._replace(text=step.text[length:]))
        length = max(0, length - len(step.text))
    return left


def _fingerprint(steps: Iterable[Step]) -> str:
    """Return a hash of the answer's text, so that a process does not continue an answer with another beginning."""
    return hashlib.sha256("".join(step.text for step in steps).encode()).hexdigest()[:16]


def _texts(question: str, source: Library) -> Iterator[str]:
    """Yield the texts of an answer, best first; the caller stops when the answer is long enough."""
    if not source.passages:
        yield _EMPTY
        return
    found = source.search(question)
    yield _FOUND if found else _FOUND_NOTHING
    yield from _with_headings(found)
    if found:
        yield _READING_ON
    start = source.passages.index(found[0]) if found else 0
    in_order = source.passages[start:] + source.passages[:start]
    quoted = frozenset(found)
    yield from _with_headings([passage for passage in in_order if passage not in quoted])


def _with_headings(passages: Sequence[Passage]) -> Iterator[str]:
    for (source, headings), group in itertools.groupby(passages, key=lambda found: (found.source, found.headings)):
        title = " › ".join(headings)
        yield f"**{quotable(title)}** · `{source}`\n\n" if title else f"`{source}`\n\n"
        yield from (f"{quotable(passage.text)}\n\n" for passage in group)


_MARK = "```"
_FENCE = re.compile(rf"^{_MARK}.*$", re.MULTILINE)
_IMAGE_OR_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def quotable(markdown: str) -> str:
    """Return `markdown` as it can stand in an answer: without relative links, and with its blocks of code closed."""
    text = _IMAGE_OR_LINK.sub(r"\1", markdown).strip()
    fences = _FENCE.findall(text)
    if len(fences) % 2 == 0:
        return text
    # A long block of code was cut: the piece has its first line, or its last one.
    is_end = fences[0].strip() == _MARK and text.endswith(_MARK)
    return f"{_MARK}\n{text}" if is_end else f"{text}\n{_MARK}"


# The tokens of a typical tokenizer: a word with the space before it, a run of other marks, or white space.
_RUN = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_LONGEST_TOKEN = 12
_END_OF_SENTENCE = re.compile(r"[.!?:]\s*|\n+")


def _paced(text: str, chance: random.Random) -> Iterator[Step]:
    """Yield `text` as tokens with their delays, with an occasional pause at the end of a sentence."""
    pause_s = 0.0
    for token in _tokens(text, chance):
        yield Step(token, chance.uniform(*_TOKEN_S) + pause_s)
        is_pausing = _END_OF_SENTENCE.fullmatch(token) and chance.random() < _PAUSES_PER_SENTENCE
        pause_s = chance.uniform(*_PAUSE_S) if is_pausing else 0.0


def _tokens(text: str, chance: random.Random) -> Iterator[str]:
    for run in _RUN.findall(text):
        rest = run
        while rest:
            size = _token_size(rest, chance)
            yield rest[:size]
            rest = rest[size:]


def _token_size(run: str, chance: random.Random) -> int:
    """Return the length of the next token of `run`. It may split emoji and accents, as real models do."""
    if run.isspace():
        return _LONGEST_TOKEN
    if not run.isascii():
        return chance.randint(1, 3)
    return len(run) if len(run) <= 7 else chance.randint(3, 6)


def _stretched(steps: list[Step]) -> list[Step]:
    """Return `steps`, slowed down if their text is too short for SHORTEST_S."""
    total_s = sum(step.delay_s for step in steps)
    factor = max(1.0, SHORTEST_S / total_s)
    return [step._replace(delay_s=step.delay_s * factor) for step in steps]
