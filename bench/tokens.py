"""Tokens of five characters, about as long as a model's token, of two kinds.

`token` contains its append time: microseconds (CLOCK_MONOTONIC, one clock for all processes of a machine) modulo 36**5,
which is 60.5 s, in base 36. `known_token` contains its number, so a text can be checked without a copy of the sent one.
Tokens are never split, so the offset of each is a multiple of its width.
"""

import asyncio
import functools
import hashlib
import time
from typing import Any

WIDTH = 5
_CYCLE: int = 36**WIDTH
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
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


@functools.cache
def _known_tokens() -> list[str]:
    return [known_token(0, n) for n in range(_KNOWN)]


def _digits(number: int) -> str:
    rest, low = divmod(number % _CYCLE, 36 * 36)
    high, middle = divmod(rest, 36 * 36)
    return _DIGITS[high] + _PAIRS[middle] + _PAIRS[low]


class Sent:
    """The tokens that one producer has sent.

    Each producer has its own text, known beforehand: making and keeping tokens would add to the measured work.
    """

    def __init__(self, producer: int) -> None:
        self.tokens = 0
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
        started_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for channel, sent in self._sent.items():
                group.create_task(self._append(channel, sent, started_s + seconds, at_once))
        tokens = sum(sent.tokens for sent in self._sent.values())
        return {"tokens": tokens, "seconds": time.monotonic() - started_s}

    async def _append(self, channel: str, sent: Sent, until_s: float, at_once: int) -> None:
        while time.monotonic() < until_s:
            await self.store(channel, [sent.next() for _ in range(at_once)])

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
