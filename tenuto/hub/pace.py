"""The pace of commits for viewers: when the committer stores text that only viewers wait for.

Layer: hub.

Inside of a flush window the text is stored shortly before the end of the window, because viewers see it no earlier. A
slow store must start earlier, so the committer reports how long its commits take. After the windows of all viewers,
they see the text as soon as it is stored; such text of many channels shares a commit, at the next point of the ticks'
grid after the last one (the gap). A writer asks `begin` when it has new text; without viewers it commits at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from tenuto.hub.channel import Channel
from tenuto.hub.ticks import Ticks

PATIENCE_S = 0.04  # longest delay of a commit that only viewers wait for; equals the default flush window
SPARE_S = 0.001  # safety margin, in addition to twice the recent duration of a commit


class Begin(Enum):
    """When a writer queues new text at the committer, and when the committer takes it."""

    NOW = auto()  # now; the next commit begins without a gap
    AFTER_GAP = auto()  # now; the next commit may keep its gap to the last one
    LATER = auto()  # at the call of the callback, as for NOW


class Pace:
    """The recent duration of commits, and the timers of commits that viewers wait for."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self.gap = CommitGap(ticks)
        self._took_s = 0.0  # moving average of the time from queueing an item until it is stored

    def took(self, took_s: float) -> None:
        """Update the average by a commit that took `took_s` from queued to stored: fast upwards, slowly downwards."""
        more_s = took_s - self._took_s
        self._took_s += more_s * (0.5 if more_s > 0 else 0.1)

    def begin(self, channel: Channel, callback: Callable[[], None]) -> Begin:
        """Return when to commit text for the viewers of `channel`; if LATER, call `callback` then.

        That is so early that the text is stored by the next flush. Until the flush no viewer sees a difference if more
        text is stored. The gap never delays text inside of a flush window, so it makes no text miss its flush.
        """
        ends_s = channel.window_ends_s()
        over_s = min(ends_s, default=0.0)
        now_s = asyncio.get_running_loop().time()
        if self._ticks.tick_s(over_s) <= now_s:  # until the tick, a flush of earlier text may still be due
            # other viewers of the channel may have a longer window, with a flush that the gap would miss
            is_inside = self._ticks.tick_s(max(ends_s, default=0.0)) > now_s
            return Begin.NOW if is_inside or channel.has_unbuffered_viewers else Begin.AFTER_GAP
        if self._ticks.call_before(min(over_s, now_s + PATIENCE_S), 2 * self._took_s + SPARE_S, callback):
            return Begin.LATER
        return Begin.NOW


class CommitGap:
    """The gap that the committer keeps between the beginnings of two commits.

    It ends at the first point of the ticks' grid after the earlier beginning. So a commit begins at once if that point
    has passed, and all text that one tick has queued shares a commit.
    """

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._cut_s = -1.0  # loop time at which the last commit began
        self._is_urgent = False  # True: the next commit keeps no gap
        self._over: asyncio.Event | None = None  # set to end the gap; None: no gap is kept now

    def end(self) -> None:
        """End the gap, and keep none before the next commit, because a queued item is urgent."""
        self._is_urgent = True
        if self._over is not None:
            self._over.set()

    def reset(self) -> None:
        """Keep a gap before the next commit, because no urgent item is queued any more."""
        self._is_urgent = False

    async def keep(self) -> bool:
        """Wait for the end of the gap, and note that a commit begins now. Return whether there was a gap."""
        over = asyncio.Event()
        is_kept = not self._is_urgent and self._ticks.call_after(self._cut_s, over.set)
        if is_kept:
            self._over = over
            await over.wait()
            self._over = None
        self._cut_s = asyncio.get_running_loop().time()
        return is_kept
