"""Tokens of five characters, about what a model's token has, of two kinds.

`token` carries the time at which it was appended: microseconds (CLOCK_MONOTONIC, one clock for all processes of a
machine) modulo 36**5, which is 60.5 s, in base 36. `known_token` carries its place, so that a text can be checked by
somebody who was not told what was sent. Tokens are never cut, so the place of each is a multiple of its width.
"""

import time

__all__ = ["WIDTH", "known_text", "known_token", "latencies_ms", "token"]

WIDTH = 5
_CYCLE: int = 36**WIDTH
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [a + b for a in _DIGITS for b in _DIGITS]
_SEED_STEP = 7_919  # longer than any text of ours is, in tokens: texts of neighbouring seeds share none


def token(at_s: float | None = None) -> str:
    """A token of now, or of `at_s`."""
    return _digits(time.monotonic_ns() // 1000 if at_s is None else int(at_s * 1e6))


def known_token(seed: int, n: int) -> str:
    """The `n`-th token of the text of `seed`; another place or seed has another."""
    return _digits(seed * _SEED_STEP + n)


def known_text(seed: int, count: int) -> str:
    """The first `count` tokens of the text of `seed`."""
    return "".join(known_token(seed, n) for n in range(count))


def latencies_ms(text: str, at: int, known: int, arrived_s: float, piece: int = WIDTH) -> list[float]:
    """How old each token of `text`, which stands at `at`, was when it arrived; not those before `known`.

    A token begins every `piece` characters; what stands between them is only there to make the text longer.
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
