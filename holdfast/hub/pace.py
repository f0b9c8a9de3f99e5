"""The pace of commits for viewers: text that only viewers wait for is stored shortly before their flush window ends.

Layer: hub.

Committing more often than viewers flush gains nothing. A slow store must start earlier, so the committer reports how
long its commits take. A writer asks `call_in_time` when it has new text; without viewers it commits at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from holdfast.hub.channel import Channel
from holdfast.hub.ticks import Ticks

PATIENCE_S = 0.04  # longest delay of a commit that only viewers wait for; equals the default flush window
SPARE_S = 0.001  # safety margin, in addition to twice the recent duration of a commit


class Pace:
    """The recent duration of commits, and the timers of commits that viewers wait for."""

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._took_s = 0.0  # moving average of the time from queueing an item until it is stored

    def took(self, took_s: float) -> None:
        """Update the average by a commit that took `took_s` from queued to stored: fast upwards, slowly downwards."""
        more_s = took_s - self._took_s
        self._took_s += more_s * (0.5 if more_s > 0 else 0.1)

    def call_in_time(self, channel: Channel, callback: Callable[[], None]) -> bool:
        """Call `callback`, which begins a commit, so early that the text is stored by the next flush of `channel`.

        Return False if a flush is due now or there are no viewers. Until the flush no viewer sees a difference if more
        text is stored.
        """
        over_s = channel.flush_s
        now_s = asyncio.get_running_loop().time()
        if over_s <= now_s:
            return False
        return self._ticks.call_before(min(over_s, now_s + PATIENCE_S), 2 * self._took_s + SPARE_S, callback)
