"""Time and new ids for the hub. A simulator can replace both.

Layer: hub.

asyncio provides waiting (a virtual loop has virtual time); this module provides the wall clock.
"""

from __future__ import annotations

import secrets
import time

from holdfast.core.names import base32, check_id


class Clock:
    """The wall clock, and ids that contain its time."""

    def __init__(self) -> None:
        self._last_ms = 0
        self._count = 0

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def random_bits(self, bits: int) -> int:
        """Return a random number of `bits` bits."""
        return secrets.randbits(bits)

    def new_id(self) -> str:
        """Return a new id of 18 characters: it sorts by time, within a millisecond by a counter; the rest is random.

        Ids keep rising if the clock is set back.
        """
        now_ms = self.now_ms()
        if now_ms > self._last_ms:
            self._last_ms, self._count = now_ms, 0
        else:
            self._count += 1
            if self._count >= 1 << 15:
                self._last_ms, self._count = self._last_ms + 1, 0
        return base32(self._last_ms, 10) + base32(self._count, 3) + base32(self.random_bits(25), 5)

    def id_or_new(self, given: str | None) -> str:
        """Return the id `given`, or a new one for None. Raises InvalidName."""
        return self.new_id() if given is None else check_id(given)

    def new_epoch(self) -> str:
        """Return the name of a new epoch: random, so that two epochs never share one."""
        return base32(self.random_bits(40), 8)
