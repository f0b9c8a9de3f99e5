"""Log lines about refused peers: each says why, and no peer can fill the log.

Layer: transports.

Any peer can be refused as often as it likes, and a page that reconnects is. So each reason is logged once an hour, and
at most ten reasons a minute; a line says how many requests were refused without one.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from holdfast.core.errors import HoldfastError

logger = logging.getLogger("holdfast.transports")

REPEAT_S = 3600.0  # between two lines with one reason
PERIOD_S = 60.0
LINES = 10  # in a period
MAX_REASONS = 100  # remembered at once


class Refusals:
    """Logs refusals within their bounds. One instance serves a process."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._logged_at_s: OrderedDict[str, float] = OrderedDict()
        self._period_at_s = 0.0
        self._lines = 0
        self._left_out = 0

    def log(self, peer: str, error: HoldfastError) -> None:
        """Log that `peer` was refused with `error`, unless that was logged already or too much was."""
        now_s = self._now_s()
        if now_s - self._period_at_s >= PERIOD_S:
            self._period_at_s, self._lines = now_s, 0
        logged_at_s = self._logged_at_s.get(error.detail)
        if (logged_at_s is not None and now_s - logged_at_s < REPEAT_S) or self._lines >= LINES:
            self._left_out += 1
            return
        self._lines += 1
        self._logged_at_s[error.detail] = now_s
        self._logged_at_s.move_to_end(error.detail)
        if len(self._logged_at_s) > MAX_REASONS:
            self._logged_at_s.popitem(last=False)
        more = f" ({self._left_out} more requests were refused since the last such line)" if self._left_out else ""
        self._left_out = 0
        logger.warning("refused %s with %s: %s%s", peer or "a peer without an address", error.code, error.detail, more)


refusals = Refusals()
