"""Time for the hub: the wall clock, new ids, and deadlines. A simulator can replace the first two.

Layer: hub.

asyncio provides waiting (a virtual loop has virtual time). `Deadlines` adds keys, and forgives a suspended process.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Hashable

from msgspec import Struct

from tenuto.core.names import base32, check_id

logger = logging.getLogger("tenuto.hub")

APART_MS = 60_000  # a larger difference between the clocks of the machine and of the store is logged


class Clock:
    """The wall clock, and ids that contain its time."""

    owner = "this machine"  # whose clock it is, for log messages

    def __init__(self) -> None:
        self._last_ms = 0  # time in the last id
        self._count = 0  # counter in the last id

    def now_ms(self) -> int:
        """Return the time in milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def random_bits(self, bits: int) -> int:
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
            if self._count >= 1 << 15:  # more than its three characters hold
                self._last_ms, self._count = self._last_ms + 1, 0
        return base32(self._last_ms, 10) + base32(self._count, 3) + base32(self.random_bits(25), 5)

    def id_or_new(self, given: str | None) -> str:
        """Return the id `given`, or a new one for None. Raises InvalidName."""
        return self.new_id() if given is None else check_id(given)

    def new_epoch(self) -> str:
        """Return the name of a new epoch: random, so that two epochs never share one."""
        return base32(self.random_bits(40), 8)


class StoreClock(Clock):
    """The clock of a store that several hubs share, so that they agree about each time; `own` is that of the machine.

    Each renewal of the lease measures it. Between two renewals, and while they fail, the clock of the event loop
    continues it. Before the first one it is the clock of the machine.
    """

    owner = "the store"

    def __init__(self, own: Clock) -> None:
        super().__init__()
        self._own = own
        self._now_s: Callable[[], float] = time.monotonic  # the clock of the event loop
        self._ahead_ms: float | None = None  # the store's clock, less that of the event loop
        self._is_apart = False  # True: a difference was logged, and is still more than half of APART_MS

    def now_ms(self) -> int:
        return self._own.now_ms() if self._ahead_ms is None else int(1000 * self._now_s() + self._ahead_ms)

    def random_bits(self, bits: int) -> int:
        return self._own.random_bits(bits)

    def new_id(self) -> str:
        # ids keep rising, so one from a clock that is ahead would give its time to later ones
        return self._own.new_id() if self._ahead_ms is None else super().new_id()

    def measure(self, store_ms: int, sent_s: float, now_s: Callable[[], float]) -> None:
        """Note that the store's clock read `store_ms` between loop time `sent_s` and now; `now_s` is the loop's clock.

        The time goes back only if the former measurement would be later than the store can be now. So a slow response
        does not set it back, but a store whose clock was set back does.
        """
        earliest_ms, latest_ms = store_ms - 1000 * now_s(), store_ms + 1 - 1000 * sent_s
        known_ms = earliest_ms if self._ahead_ms is None else self._ahead_ms
        self._now_s, self._ahead_ms = now_s, min(max(known_ms, earliest_ms), latest_ms)
        apart_ms = self._own.now_ms() - self.now_ms()
        was_apart, self._is_apart = self._is_apart, abs(apart_ms) > APART_MS / (2 if self._is_apart else 1)
        if self._is_apart and not was_apart:
            logger.warning(
                "the clock of this machine is %d s %s that of the store; the hub uses that of the store, but checks "
                "tokens by that of this machine: set the wrong one, for example by NTP",
                *(abs(apart_ms) // 1000, "ahead of" if apart_ms > 0 else "behind"),
            )


AWAY_S = 3.0  # a timer that fires this late means that the process was suspended, so all deadlines are extended


class _Deadline(Struct):
    due_s: float
    action: Callable[[], None]
    fires_s: float  # when `timer` fires: when the deadline is due, or earlier
    timer: asyncio.Handle | None = None  # uvloop's handles do not know their time


class Deadlines:
    """Deadlines by key. An action runs once, when its deadline has passed and was neither moved nor dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Hashable, _Deadline] = {}
        self._away_s = -AWAY_S  # when the process was last found to have been suspended
        self._is_over = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._due

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Hashable, due_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `due_s`; replaces the deadline of `key`."""
        known = self._due.get(key)
        if known is not None and known.due_s <= due_s:  # its timer is set anew when it fires
            known.due_s, known.action = due_s, action
            return
        self.drop(key)
        if not self._is_over:  # `close` ends all deadlines, also later ones
            new = self._due[key] = _Deadline(due_s, action, due_s)
            new.timer = self._loop.call_at(due_s, self._run, key, new)

    def hasten(self, key: Hashable, due_s: float) -> None:
        """Move the deadline of `key` to `due_s`, if there is one, and it is later."""
        known = self._due.get(key)
        if known is not None and due_s < known.due_s:
            self.set(key, due_s, known.action)

    def drop(self, key: Hashable) -> None:
        """Drop the deadline of `key`, if there is one."""
        known = self._due.pop(key, None)
        if known is not None and known.timer is not None:
            known.timer.cancel()

    def close(self) -> None:
        """Drop all deadlines and stop the timers."""
        self._is_over = True
        for key in tuple(self._due):
            self.drop(key)

    def _run(self, key: Hashable, known: _Deadline) -> None:
        now_s, fired_s = self._loop.time(), known.fires_s
        if now_s - fired_s > AWAY_S:
            self._away_s = now_s
        if fired_s <= self._away_s:  # requests that renew the overdue deadlines may wait to be read
            known.due_s = max(known.due_s, self._away_s + AWAY_S)
        if known.due_s > now_s:
            known.fires_s = known.due_s
            known.timer = self._loop.call_at(known.due_s, self._run, key, known)
            return
        del self._due[key]
        try:
            known.action()
        except Exception:  # a failed action must not hold up other deadlines
            logger.exception("the action at deadline %r failed; please report this bug", key)
