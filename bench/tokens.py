"""Tokens that carry the time at which they were appended: five characters, about what a model's token has.

A token is the time in microseconds (CLOCK_MONOTONIC, one clock for all processes of a machine) modulo 36**5, which
is 60.5 s, in base 36. Tokens are never cut, so the place of each is a multiple of its width.
"""

import time

__all__ = ["WIDTH", "latencies_ms", "token"]

WIDTH = 5
_CYCLE_US: int = 36**WIDTH
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]


def token() -> str:
    """A token of now."""
    rest, low = divmod(time.monotonic_ns() // 1000 % _CYCLE_US, 36 * 36)
    high, middle = divmod(rest, 36 * 36)
    return _DIGITS[high] + _PAIRS[middle] + _PAIRS[low]


def latencies_ms(text: str, at: int, known: int, arrived_s: float) -> list[float]:
    """How long ago each whole token of `text`, which stands at `at`, was appended; not those before `known`."""
    arrived_us = int(arrived_s * 1e6)
    first = -(-max(at, known) // WIDTH) * WIDTH - at
    return [
        (arrived_us - int(text[start : start + WIDTH], 36)) % _CYCLE_US / 1000
        for start in range(first, len(text) - WIDTH + 1, WIDTH)
    ]
