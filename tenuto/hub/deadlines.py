"""Deadlines: actions that run at a time unless they are moved or dropped before.

Layer: hub.

All deadlines share one timer. Each append of a remote writer moves a deadline, which costs one entry of a dict. Times
are those of the event loop's clock, so that a wall clock that is set back makes no deadline early or late.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Hashable

logger = logging.getLogger("tenuto.hub")

KEPT_DROPPED = 1_000  # number of dropped entries that the heap may hold, in addition to one per live deadline
AWAY_S = 3.0  # a timer that fires this late means that the process was suspended, so all deadlines are extended


class Deadlines:
    """Deadlines by key. An action runs once, when its deadline has passed and was neither moved nor dropped."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._heap: list[tuple[float, int, Hashable]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def __contains__(self, key: Hashable) -> bool:
        return key in self._due

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: Hashable, due_s: float, action: Callable[[], None]) -> None:
        """Call `action` at `due_s`; replaces the deadline of `key`."""
        known = self._due.get(key)
        self._due[key] = (due_s, action)
        if known is None or due_s < known[0]:  # a later deadline enters the heap only when the old one is due
            self._push(due_s, key)

    def hasten(self, key: Hashable, due_s: float) -> None:
        """Move the deadline of `key` to `due_s`, if there is one, and it is later."""
        known = self._due.get(key)
        if known is not None and due_s < known[0]:
            self.set(key, due_s, known[1])

    def drop(self, key: Hashable) -> None:
        """Drop the deadline of `key`, if there is one."""
        self._due.pop(key, None)

    def close(self) -> None:
        """Drop all deadlines and stop the timer."""
        self._is_over = True
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _push(self, due_s: float, key: Hashable) -> None:
        # more than half of the entries were dropped: rebuild the heap
        if len(self._heap) > 2 * len(self._due) + KEPT_DROPPED:
            self._heap = [(due, self._next(), known) for known, (due, _) in self._due.items() if known != key]
            heapq.heapify(self._heap)
        number = self._next()
        heapq.heappush(self._heap, (due_s, number, key))
        if self._heap[0][1] == number:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._is_over:
            self._timer = self._loop.call_at(self._heap[0][0], self._run)

    def _run(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        if self._heap and now_s - self._heap[0][0] > AWAY_S:
            self._extend_overdue(now_s)
        while self._heap and self._heap[0][0] <= now_s:
            _, _, key = heapq.heappop(self._heap)
            known = self._due.get(key)
            if known is None:
                continue
            due_s, action = known
            if due_s > now_s:
                heapq.heappush(self._heap, (due_s, self._next(), key))
                continue
            del self._due[key]
            try:
                action()
            except Exception:  # a failed action must not hold up other deadlines
                logger.exception("a deadline's action failed")
        self._arm()

    def _extend_overdue(self, now_s: float) -> None:
        """Extend the overdue deadlines: the process was suspended, and requests that renew them may wait to be read."""
        for key, (due_s, action) in self._due.items():
            if due_s <= now_s:
                self._due[key] = (now_s + AWAY_S, action)

    def _next(self) -> int:
        self._count += 1
        return self._count
