"""The demo's agent: answers from the documentation, at the pace of a model, without one.

You are in `demo`. `script` and `continue_at` are pure: an answer is settled by its question and its seed
before its first token is sent. That is what lets another process go on with it: it knows how much is stored,
makes the same script and sends the rest. `answer` is the thin part that waits.

Wording and pace may change freely. An answer that was running meanwhile notices by the fingerprint it began
with.
"""

import asyncio
import hashlib
import itertools
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from holdfast.demo.passages import Library, Passage, library

__all__ = ["LONGEST_S", "SHORTEST_S", "Sleep", "Step", "Writer", "answer", "continue_at", "fingerprint", "script"]

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
_OTHER_TEXT = (
    "\n\nI stop here: while I was away the text that I was reading from changed, and what I would say now "
    "does not go on from what I said then."
)

Sleep = Callable[[float], Awaitable[object]]  # waits for so many seconds


class Step(NamedTuple):
    """One token of an answer: wait, then append."""

    text: str
    delay_s: float


class Writer(Protocol):
    """What `answer` needs of a message that is being written."""

    @property
    def length(self) -> int:
        """Code points of the text so far."""

    async def append(self, text: str) -> object: ...


# The script: pure -------------------------------------------------------------------------------------------


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


def fingerprint(steps: Iterable[Step]) -> str:
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


# The voice: the part that waits -----------------------------------------------------------------------------


async def answer(
    writer: Writer,
    question: str,
    seed: int,
    *,
    begun_as: str | None = None,
    sleep: Sleep = asyncio.sleep,
    source: Library | None = None,
) -> None:
    """Stream into `writer` what is not stored yet of the answer to `question`.

    `begun_as` is the fingerprint the answer began with: when ours is another, nothing is guessed, the answer
    says so and ends. Whatever `writer` raises goes through.
    """
    steps = script(question, seed, source)
    if begun_as is not None and begun_as != fingerprint(steps):
        await writer.append(_OTHER_TEXT)
        return
    for text, delay_s in continue_at(steps, writer.length):
        await sleep(delay_s)
        await writer.append(text)
