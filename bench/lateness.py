"""How late producers are: what tells a machine that could not keep up from a token that was lost.

A token is late when it is made after it was due, and so is the next one, or the end, of a producer that is still held
up when that is due. Counted in tenths of a millisecond: in a soak half a million numbers would be the growth that is
looked for.
"""

import math
import time
from collections import Counter, defaultdict

__all__ = ["Lateness"]

_PER_S = 10_000


class Lateness:
    """Of all producers that share it."""

    def __init__(self) -> None:
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._next_s: dict[object, float] = {}  # by producer

    def made(self, producer: object, late_s: float, next_s: float = math.inf) -> None:
        """It made a token so long after that was due; its next one, or its end, is due at `next_s` (CLOCK_MONOTONIC).

        One call for both, since this is done for every token, in the time of the server under test.
        """
        self._counts[int(late_s * _PER_S)] += 1
        self._next_s[producer] = next_s

    def ended(self, producer: object) -> None:
        """It has made all, and all is stored."""
        self._next_s.pop(producer, None)

    def told_ms(self) -> list[float]:
        """Median, p99 and worst of all tokens that were due by now; zeros when none was."""
        now_s = time.monotonic()
        held_up = [int((now_s - due_s) * _PER_S) for due_s in self._next_s.values() if due_s < now_s]
        late = sorted((Counter(self._counts) + Counter(held_up)).items())
        return [_at(late, share) / _PER_S * 1000 for share in (0.5, 0.99, 1.0)]


def _at(late: list[tuple[int, int]], share: float) -> int:
    """Of numbers that are sorted and counted, the one below which this share of them is."""
    below = int(sum(count for _, count in late) * share)
    value = 0
    for value, count in late:  # noqa: B007 - the last of them where all are below
        below -= count
        if below < 0:
            break
    return value
