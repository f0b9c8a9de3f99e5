"""Tokens of five characters, about as long as a model's token, of two kinds.

`token` contains its append time: microseconds (CLOCK_MONOTONIC, one clock for all processes of a machine) modulo 36**5,
which is 60.5 s, in base 36. `known_token` contains its number, so a text can be checked without a copy of the sent one.
Tokens are never split, so the offset of each is a multiple of its width.
"""

import hashlib
import time
from typing import Any

__all__ = ["WIDTH", "known_text", "known_token", "latencies_ms", "summary", "token"]

WIDTH = 5
_CYCLE: int = 36**WIDTH
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SEED_STEP = 7_919  # longer than any text, in tokens: texts of neighbouring seeds share none


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
