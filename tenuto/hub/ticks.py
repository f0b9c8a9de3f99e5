"""When feeds are woken: flush windows, and the timers that end them.

Layer: hub.

The feeds of a channel with one flush class form a group, which is released once per window. All windows end on a grid
of a few milliseconds, so one timer serves many channels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import ceil, floor
from typing import Protocol

logger = logging.getLogger("tenuto.hub")

# Classes of flush windows: the feeds of one class are released at the same tick, so that they share the bytes of a
# batch.
FLUSH_CLASSES_MS = (0, 20, 40, 100, 250, 500, 1000)
# Number of feeds released in one iteration of the loop: about a millisecond of work, so that a large channel delays no
# other.
SLICE_FEEDS = 100
EPHEMERAL_S = 0.1  # presence changes and signals within this time are sent together


def flush_class(flush_ms: int) -> int:
    """Return the flush class for `flush_ms` milliseconds: the shortest class of at least that length."""
    return next((known for known in FLUSH_CLASSES_MS if known >= flush_ms), FLUSH_CLASSES_MS[-1])


class Woken(Protocol):
    """The interface of a feed that its group uses."""

    wake: Callable[[], None]


class Ticks:
    """The timers of all flush windows, on a grid of a few milliseconds, so that one timer serves many channels."""

    GRID_S = 0.004
    # A time this close to a point of the grid is that point: products of floats, and timers, differ from it by less.
    _EXACT = 1e-6

    def __init__(self) -> None:
        self._due: dict[int, list[Callable[[], None]]] = {}

    def tick_s(self, due_s: float) -> float:
        """Return the time of the first point of the grid that is not before `due_s`."""
        return ceil(due_s / self.GRID_S) * self.GRID_S

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` at the first point of the grid that is not before `due_s` (of the loop's clock)."""
        self._call(ceil(due_s / self.GRID_S), callback)

    def _call(self, point: int, callback: Callable[[], None]) -> None:
        waiting = self._due.get(point)
        if waiting is None:
            waiting = self._due[point] = []
            asyncio.get_running_loop().call_at(point * self.GRID_S, self._run, point)
        waiting.append(callback)

    def call_before(self, over_s: float, lead_s: float, callback: Callable[[], None]) -> bool:
        """Call `callback` at the last grid point that is `lead_s` before the tick at `over_s`.

        Return False if that point has passed.
        """
        point = ceil(over_s / self.GRID_S) - ceil(lead_s / self.GRID_S)
        if point * self.GRID_S <= asyncio.get_running_loop().time():
            return False
        self._call(point, callback)
        return True

    def call_after(self, time_s: float, callback: Callable[[], None]) -> bool:
        """Call `callback` at the first point of the grid after `time_s`. Return False if that point has passed."""
        point = floor(time_s / self.GRID_S + self._EXACT) + 1
        if point * self.GRID_S <= asyncio.get_running_loop().time():
            return False
        self._call(point, callback)
        return True

    def _run(self, point: int) -> None:
        for callback in self._due.pop(point):
            try:
                callback()
            except Exception:  # an error in one channel must not delay the viewers of other channels
                logger.exception("a release of viewers failed")


class Group:
    """The feeds of one channel and flush class. They are released together, once per window; the first time at once."""

    __slots__ = ("_is_due", "_is_ephemeral_due", "_ticks", "_window_s", "feeds", "over_s")

    def __init__(self, ticks: Ticks, flush_ms: int) -> None:
        self._ticks = ticks
        self._window_s = flush_ms / 1000
        self.feeds: dict[Woken, None] = {}
        self._is_due = False  # True: a release is scheduled
        # True: a release of ephemeral events is scheduled; it does not start a flush window
        self._is_ephemeral_due = False
        # End of the flush window, in the loop's time: changes before it are released then, later ones at once. It
        # begins in the past, so the first release is immediate.
        self.over_s = 0.0

    def remove(self, feed: Woken) -> bool:
        """Remove `feed`. Return False if it was not in this group."""
        is_here = feed in self.feeds
        self.feeds.pop(feed, None)
        return is_here

    def moved(self) -> None:
        """Schedule a release of the feeds: at the end of their window, or at once if the window has passed."""
        if self._is_due or not self.feeds:
            return
        self._is_due = True
        loop = asyncio.get_running_loop()
        if loop.time() >= self.over_s:
            loop.call_soon(self._release)
        else:
            self._ticks.call_at(self.over_s, self._release)

    def ephemeral_moved(self) -> None:
        """Schedule a release of ephemeral events a little later, so that several of them are sent together."""
        if not self._is_ephemeral_due and self.feeds:
            self._is_ephemeral_due = True
            self._ticks.call_at(asyncio.get_running_loop().time() + EPHEMERAL_S, self._release_ephemeral)

    def _release_ephemeral(self) -> None:
        self._is_ephemeral_due = False
        self._wake_feeds()

    def _release(self) -> None:
        self._is_due = False
        self.over_s = asyncio.get_running_loop().time() + self._window_s
        self._wake_feeds()

    def _wake_feeds(self) -> None:
        if len(self.feeds) <= SLICE_FEEDS:
            for feed in tuple(self.feeds):
                feed.wake()
        else:
            self._release_slice(tuple(self.feeds), 0)

    def _release_slice(self, feeds: tuple[Woken, ...], start: int) -> None:
        for feed in feeds[start : start + SLICE_FEEDS]:
            if feed in self.feeds:
                feed.wake()
        if start + SLICE_FEEDS < len(feeds):
            asyncio.get_running_loop().call_soon(self._release_slice, feeds, start + SLICE_FEEDS)
