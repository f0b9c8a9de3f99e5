"""Tokens of five characters, about as long as a model's token, of two kinds; and how late their producers are.

`token` contains its append time: microseconds (CLOCK_MONOTONIC, one clock for all processes of a machine) modulo 36**5,
which is 60.5 s, in base 36. `known_token` contains its number, so a text can be checked without a copy of the sent one.
Tokens are never split, so the offset of each is a multiple of its width.
"""

import asyncio
import functools
import hashlib
import math
import time
from array import array
from collections import Counter, defaultdict
from typing import Any

WIDTH = 5
_CYCLE: int = 36**WIDTH
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_PER_S = 10_000  # the unit of lateness
_SEED_STEP = 7_919  # longer than any text, in tokens: texts of neighbouring seeds share none
_KNOWN = 1 << 16  # number of different tokens of `Sent`
_STEP = 97  # number of tokens between the beginnings of two producers' texts


def token(at_s: float | None = None) -> str:
    """Return a token of now, or of `at_s`."""
    return _digits(time.monotonic_ns() // 1000 if at_s is None else int(at_s * 1e6))


def known_token(seed: int, n: int) -> str:
    """Return the `n`-th token of the text of `seed`; each number and seed has its own."""
    return _digits(seed * _SEED_STEP + n)


def known_text(seed: int, count: int) -> str:
    """Return the first `count` tokens of the text of `seed`."""
    return "".join(known_token(seed, n) for n in range(count))


def summary(text: str, message_id: str) -> dict[str, Any]:
    """Return the text sent to one channel, in the form that the load client compares."""
    return {"id": message_id, "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def latencies_ms(text: str, at: int, known: int, arrived_s: float, piece: int = WIDTH) -> list[float]:
    """Return the age on arrival of each token in `text`, which begins at offset `at`; not of those before `known`.

    A token begins every `piece` characters; the characters between them only make the text longer.
    """
    arrived_us = int(arrived_s * 1e6)
    first = -(-max(at, known) // piece) * piece - at
    return [
        (arrived_us - int(text[start : start + WIDTH], 36)) % _CYCLE / 1000
        for start in range(first, len(text) - WIDTH + 1, piece)
    ]


def _digits(number: int) -> str:
    rest, low = divmod(number % _CYCLE, 36 * 36)
    high, middle = divmod(rest, 36 * 36)
    return _DIGITS[high] + _PAIRS[middle] + _PAIRS[low]


@functools.cache
def _known_tokens() -> list[str]:
    return [known_token(0, n) for n in range(_KNOWN)]


class Sent:
    """The tokens that one producer has sent, and the duration of each of its waits.

    Each producer has its own text, known beforehand: making and keeping tokens would add to the measured work.
    """

    def __init__(self, producer: int) -> None:
        self.tokens = 0
        self.waits_s = array("d")
        self._first = producer * _STEP
        self._known = _known_tokens()

    def next(self) -> str:
        """Return the next token and count it as sent."""
        token = self._known[(self._first + self.tokens) % _KNOWN]
        self.tokens += 1
        return token

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(self._known[(self._first + n) % _KNOWN] for n in range(self.tokens))


class Appenders:
    """Agents in a server's own process, which await that their tokens are stored: a closed loop."""

    def __init__(self) -> None:
        self._sent: dict[str, Sent] = {}

    async def begin_one(self, channel: str) -> None:
        """Open an answer in a channel."""

    async def store(self, channel: str, texts: list[str]) -> None:
        """Append tokens to the answer of a channel; when this returns, all are stored."""
        raise NotImplementedError

    async def finish_one(self, channel: str) -> str:
        """End the answer of a channel. Return the id of its message."""
        raise NotImplementedError

    async def begin(self, *, channels: list[str]) -> dict[str, Any]:
        """Open an answer in each of `channels`, for `append` and `grow`."""
        for channel in channels:
            self._sent[channel] = Sent(len(self._sent))
            await self.begin_one(channel)
        return {}

    async def append(self, *, seconds: float, at_once: int) -> dict[str, Any]:
        """Grow all answers for `seconds`: each gets `at_once` tokens and then waits until they are stored."""
        for sent in self._sent.values():
            del sent.waits_s[:]
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for channel, sent in self._sent.items():
                group.create_task(self._append(channel, sent, started_s + seconds, at_once))
        waits_s = sorted(wait for sent in self._sent.values() for wait in sent.waits_s)
        return {
            "tokens": sum(sent.tokens for sent in self._sent.values()),
            "seconds": time.monotonic() - started_s,
            "wait_ms": [waits_s[int(len(waits_s) * share)] * 1000 for share in (0.5, 0.99)] if waits_s else [],
        }

    async def _append(self, channel: str, sent: Sent, until_s: float, at_once: int) -> None:
        begun_s = time.monotonic()
        while begun_s < until_s:
            await self.store(channel, [sent.next() for _ in range(at_once)])
            now_s = time.monotonic()
            sent.waits_s.append(now_s - begun_s)
            begun_s = now_s

    async def grow(self, *, channel: str, count: int) -> dict[str, Any]:
        """Grow the answer of `channel` by `count` tokens, stored one by one."""
        if channel not in self._sent:
            await self.begin(channels=[channel])
        for _ in range(count):
            await self.store(channel, [self._sent[channel].next()])
        return {"text": self._sent[channel].text}

    async def finish(self) -> dict[str, Any]:
        """End the answers. Return them as they were sent."""
        sent, self._sent = self._sent, {}
        ids = await asyncio.gather(*map(self.finish_one, sent))
        return {
            "messages": {channel: summary(one.text, id) for (channel, one), id in zip(sent.items(), ids, strict=True)}
        }


class Lateness:
    """How late producers are: this distinguishes a machine that could not keep up from a lost token.

    A token is late if it is made after its due time. If a producer is still delayed when its next token, or its end, is
    due, that counts as late too. Lateness is counted in tenths of a millisecond: in a soak, a list of half a million
    numbers would itself be memory growth.
    """

    def __init__(self) -> None:
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._next_s: dict[object, float] = {}  # for each producer the due time of its next token

    def made(self, producer: object, late_s: float, next_s: float = math.inf) -> None:
        """Note a token, made `late_s` after its due time. The next one, or the end, is due at `next_s`
        (CLOCK_MONOTONIC).

        One call for both, because it runs for every token, in the time of the server under test.
        """
        self._counts[int(late_s * _PER_S)] += 1
        self._next_s[producer] = next_s

    def ended(self, producer: object) -> None:
        """Note that the producer has made all its tokens, and all are stored."""
        self._next_s.pop(producer, None)

    def percentiles_ms(self) -> list[float]:
        """Return median, p99 and maximum of the lateness of all tokens due so far; zeros if none was due."""
        now_s = time.monotonic()
        held_up = [int((now_s - due_s) * _PER_S) for due_s in self._next_s.values() if due_s < now_s]
        late = sorted((Counter(self._counts) + Counter(held_up)).items())
        return [_at(late, share) / _PER_S * 1000 for share in (0.5, 0.99, 1.0)]


def _at(late: list[tuple[int, int]], share: float) -> int:
    """Return the number below which this share lies. `late` holds sorted pairs of number and count."""
    below = int(sum(count for _, count in late) * share)
    value = 0
    for value, count in late:  # noqa: B007 - the last of them where all are below
        below -= count
        if below < 0:
            break
    return value
