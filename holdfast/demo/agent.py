"""What the demo's agents say: answers from the documentation, at the pace of a model, without one.

You are in `demo`, in its pure part: nothing here waits. An answer is settled before its first token is sent, by its
question and by what its meta says (`Settled`): the seed, what people said to it meanwhile and where, and what they
allowed. That is what lets another process go on with it: it knows how much is stored, makes the same steps and sends
the rest.

Wording and pace may change freely. An answer that was running meanwhile notices by the fingerprint it began with.
"""

import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from holdfast.demo.passages import Library, Passage, library

__all__ = [
    "LONGEST_S",
    "SHORTEST_S",
    "Decision",
    "Said",
    "Settled",
    "Step",
    "asks_to_delete",
    "continue_at",
    "is_as_begun",
    "plan",
    "script",
]

SHORTEST_S = 30.0  # long enough to press F5 a few times, kill the server, and start it again
LONGEST_S = 75.0
_ENOUGH_S = (36.0, 46.0)  # no further passage is begun after a time between these

_TOKEN_S = (0.012, 0.028)  # 50 tokens a second, as models of today do
_THINKING_S = (0.6, 1.2)
_PAUSE_S = (0.3, 1.5)
_PAUSES_PER_SENTENCE = 0.1

_OPENING = (
    "I am not a model. I am a small program that looks for the words of your question in this project's own "
    "documentation and reads out what it finds, at the pace at which a model would write it 🌊\n\n"
)
_FOUND = "This is what fits best:\n\n"
_FOUND_NOTHING = (
    "Those words stand nowhere in it, so I have no answer. So that you have something to break, this is how "
    "it begins:\n\n"
)
_READING_ON = "Nothing else in it shares a word with your question. I read on where the first of these stands:\n\n"
_EMPTY = "But there is no documentation here yet, so I have nothing to read, and I shall take my time over it.\n\n"
# In several scripts, one of them with combining marks, since splitting such text is where naive transports
# break.
_CLOSING = (
    "That was all from me. (A holdfast is the root that keeps kelp in its place while the water moves around "
    "it: 付着器 · 부착기 · المُثَبِّت · Haftorgan 🧜🏽‍♀️)"
)
OTHER_TEXT = (
    "\n\nI stop here: while I was away the text that I was reading from changed, and what I would say now "
    "does not go on from what I said then."
)

_MAY_I = (
    "You want me to delete what was said here before. That cannot be undone, so I ask first. Whoever is here may "
    "answer, in any window.\n\n"
)

# All of it has to fit into the answer's meta, which has 16 KiB.
LONGEST_SAID = 200  # code points of what somebody said meanwhile; the rest is not heard
MOST_SAID = 10
_SAID_ENOUGH_S = 12.0
_ENOUGH = re.compile(r"\b(short|shorter|brief|briefly|enough)\b", re.IGNORECASE)
_DELETE = re.compile(r"\s*(please,?\s+)?delete\b", re.IGNORECASE)


class Step(NamedTuple):
    """One token of an answer: wait, then append."""

    text: str
    delay_s: float


class Said(Struct, frozen=True, kw_only=True):
    """What somebody said to an answer while it ran: from `at` code points on it takes that up."""

    at: int
    text: str
    by: str


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether the messages `gone` may be deleted; `by` is nobody where nobody answered, or nothing had to be asked."""

    ok: bool
    by: str | None = None
    gone: list[str] = []


class Settled(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is settled about an answer. It is the answer's meta, for whoever goes on with it."""

    seed: int
    fingerprint: str  # of the answer as it began
    said: list[Said] = []
    decision: Decision | None = None

    @classmethod
    def of(cls, question_id: str, question: str, source: Library | None = None) -> Self:
        """What follows from a question: nothing here is drawn, so that asking twice is asking once."""
        seed = int.from_bytes(hashlib.sha256(question_id.encode()).digest()[:4])
        return cls(seed=seed, fingerprint=_fingerprint(_beginning(question, seed, source)))

    def hear(self, said: Iterable[Said]) -> Self:
        """The same, and what people said meanwhile."""
        return replace(self, said=[*self.said, *said][:MOST_SAID])


def asks_to_delete(question: str) -> bool:
    """Is this what people must agree to first?"""
    return _DELETE.match(question) is not None


# The steps --------------------------------------------------------------------------------------------------


def plan(question: str, settled: Settled, source: Library | None = None) -> list[Step]:
    """All steps of the answer to `question`, as far as they are settled."""
    steps = _beginning(question, settled.seed, source)
    if settled.decision is not None:
        steps += _paced(_outcome(settled.decision), random.Random(settled.seed + 1))
    for number, said in enumerate(settled.said):
        chance = random.Random(settled.seed + 2 + number)
        steps = _cut(steps, said.at) + _turned_to(said, chance, source or library())
    return steps


def is_as_begun(question: str, settled: Settled, source: Library | None = None) -> bool:
    """Would the answer begin with the same text today?"""
    return _fingerprint(_beginning(question, settled.seed, source)) == settled.fingerprint


def _beginning(question: str, seed: int, source: Library | None) -> list[Step]:
    if asks_to_delete(question):
        return list(_paced(_MAY_I, random.Random(seed)))
    return script(question, seed, source)


def _outcome(decision: Decision) -> str:
    """What became of a question that people had to agree to."""
    gone = len(decision.gone)
    if decision.ok:
        who = f"{decision.by} said yes. " if decision.by else ""
        what = f"{gone} message{'s' if gone != 1 else ''} deleted, in every window." if gone else "Nothing was there."
        return who + what
    who = f"{decision.by} said no" if decision.by else "Nobody answered in time"
    return f"{who}, so everything stays as it is."


def _turned_to(said: Said, chance: random.Random, source: Library) -> list[Step]:
    """What the answer goes on with after somebody said something to it."""
    opening = f"\n\n{said.by} says: {said.text}\n\n"
    if _ENOUGH.search(said.text):
        return [*_paced(opening, chance), *_paced(_CLOSING, chance)]
    found = source.search(said.text)
    opening += "So I turn to that.\n\n" if found else "Nothing I read says anything about that.\n\n"
    steps: list[Step] = []
    for text in [opening, *_with_headings(found)]:
        if sum(step.delay_s for step in steps) >= _SAID_ENOUGH_S:
            break
        steps += _paced(text, chance)
    return [*steps, *_paced(_CLOSING, chance)]


def _cut(steps: Iterable[Step], length: int) -> list[Step]:
    """The first `length` code points of `steps`."""
    kept: list[Step] = []
    for step in steps:
        if length <= 0:
            break
        kept.append(step._replace(text=step.text[:length]))
        length -= len(step.text)
    return kept


def script(question: str, seed: int, source: Library | None = None) -> list[Step]:
    """The whole answer to `question`, between SHORTEST_S and LONGEST_S, the same whenever it is asked for.

    `source` is where the passages come from, by default the project's documentation.
    """
    source = source or library()
    chance = random.Random(seed)
    enough_s = chance.uniform(*_ENOUGH_S)
    steps: list[Step] = []
    spent_s = 0.0
    for text in _texts(question, source):
        if spent_s >= enough_s:
            break
        added = list(_paced(text, chance))
        steps += added
        spent_s += sum(step.delay_s for step in added)
    steps += _paced(_CLOSING, chance)
    steps[0] = steps[0]._replace(delay_s=chance.uniform(*_THINKING_S))
    return _stretched(steps)


def continue_at(steps: Iterable[Step], length: int) -> list[Step]:
    """What is left of `steps` when `length` code points of them are stored; the first may be half a token."""
    left: list[Step] = []
    for step in steps:
        if length < len(step.text):
            left.append(step._replace(text=step.text[length:]))
        length = max(0, length - len(step.text))
    return left


def _fingerprint(steps: Iterable[Step]) -> str:
    """Tells one answer's text from another's, so that nobody goes on with a text begun otherwise."""
    return hashlib.sha256("".join(step.text for step in steps).encode()).hexdigest()[:16]


def _texts(question: str, source: Library) -> Iterator[str]:
    """What there is to say, best first, until the listener has had enough."""
    yield _OPENING
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
    said = frozenset(found)
    yield from _with_headings([passage for passage in in_order if passage not in said])


def _with_headings(passages: Sequence[Passage]) -> Iterator[str]:
    for (source, headings), group in itertools.groupby(passages, key=lambda found: (found.source, found.headings)):
        title = " › ".join(headings)
        yield f"{plain(title)}\n({source})\n\n" if title else f"{source}\n\n"
        yield from (f"{plain(passage.text)}\n\n" for passage in group)


_RULE_OF_TABLE = re.compile(r"^\|[\s|:-]+\|$\n?", re.MULTILINE)
_ROW_OF_TABLE = re.compile(r"^\| *(.*?) *\|$", re.MULTILINE)
_FENCE = re.compile(r"^```.*$\n?", re.MULTILINE)
_IMAGE_OR_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_EMPHASIS = re.compile(r"\*\*(.+?)\*\*|`([^`]+)`")


def plain(markdown: str) -> str:
    """`markdown` as one would read it aloud: the page shows text as it is."""
    text = _FENCE.sub("", _RULE_OF_TABLE.sub("", markdown))
    text = _ROW_OF_TABLE.sub(lambda row: row[1].replace(" | ", " · "), text)
    text = _IMAGE_OR_LINK.sub(r"\1", text)
    return _EMPHASIS.sub(lambda found: found[1] or found[2], text).strip()


# What a tokenizer might make of a text: a word with the space before it, a run of other marks, or white
# space.
_RUN = re.compile(r" ?\w+| ?[^\w\s]+|\s+")
_LONGEST_TOKEN = 12
_END_OF_SENTENCE = re.compile(r"[.!?:]\s*|\n+")


def _paced(text: str, chance: random.Random) -> Iterator[Step]:
    """`text` as tokens with their delays, and now and then a pause at the end of a sentence."""
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
    """How much of `run` the next token takes. Emoji and accents may be torn apart: real models do that."""
    if run.isspace():
        return _LONGEST_TOKEN
    if not run.isascii():
        return chance.randint(1, 3)
    return len(run) if len(run) <= 7 else chance.randint(3, 6)


def _stretched(steps: list[Step]) -> list[Step]:
    """`steps`, slowed down where there was too little to say."""
    total_s = sum(step.delay_s for step in steps)
    factor = max(1.0, SHORTEST_S / total_s)
    return [step._replace(delay_s=step.delay_s * factor) for step in steps]
