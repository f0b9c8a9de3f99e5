"""Tokens of five characters, about as long as a model's token, of two kinds; and how late their producers are.

`token` contains its append time: microseconds (CLOCK_MONOTONIC, one clock for all processes of a machine) modulo 36**5,
which is 60.5 s, in base 36. `known_token` contains its number, so a text can be checked without a copy of the sent one.
Tokens are never split, so the offset of each is a multiple of its width.
"""

import functools
import hashlib
import math
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

__all__ = ["WIDTH", "Lateness", "Sent", "appended", "known_text", "known_token", "latencies_ms", "summary", "token"]

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


def appended(sent: Collection[Sent], seconds: float) -> dict[str, Any]:
    """Return the totals of a closed loop of appends."""
    ordered = sorted(wait for each in sent for wait in each.waits_s)
    return {
        "tokens": sum(each.tokens for each in sent),
        "seconds": seconds,
        "wait_ms": [ordered[int(len(ordered) * share)] * 1000 for share in (0.5, 0.99)] if ordered else [],
        # tokens of the producer that sent fewest: it shows whether all were served
        "fewest": min(each.tokens for each in sent),
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
