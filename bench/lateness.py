"""How late producers are: this distinguishes a machine that could not keep up from a lost token.

A token is late if it is made after its due time. If a producer is still delayed when its next token, or its end, is
due, that counts as late too. Lateness is counted in tenths of a millisecond: in a soak, a list of half a million
numbers would itself be memory growth.
"""

import math
import time
from collections import Counter, defaultdict

__all__ = ["Lateness"]

_PER_S = 10_000


class Lateness:
    """The lateness of all producers that share it."""

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
