"""How slow this machine is now, for limits of times that were measured on another day.

Layer: tests.
"""

from __future__ import annotations

import time

REFERENCE_S = 0.06  # what the loop takes on the machine of the limits
ROUNDS = 5


def slowness() -> float:
    """Return by which factor this machine is slower than that of the limits, at least 1 and at most 4."""
    return min(4.0, max(1.0, min(_loop_s() for _ in range(ROUNDS)) / REFERENCE_S))


def _loop_s() -> float:
    began_s = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return time.perf_counter() - began_s
