"""Log lines about refused peers: each says why, and no peer can fill the log.

Layer: transports.

Any peer can be refused as often as it likes, and a page that reconnects is. So each reason is logged once an hour (a
store that is away, once a minute), and at most ten reasons a minute; a line says how many requests were refused without
one.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable

from tenuto.core.errors import TenutoError

logger = logging.getLogger("tenuto.transports")

REPEAT_S = 3600.0  # least time between two lines with the same reason
PERIOD_S = 60.0
LINES = 10  # limit of lines in a period
MAX_TEXT = 1000  # limit of characters of an exception's text in its reason
MAX_REASONS = 100  # limit of reasons that are remembered at the same time


class Refusals:
    """Logs each reason at most once an hour, and at most 10 lines a minute. An instance counts its own lines."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._logged_at_s: OrderedDict[str, float] = OrderedDict()
        self._period_at_s = 0.0
        self._lines = 0
        self._left_out = 0

    def log(self, peer: str, error: TenutoError) -> None:
        """Log that `peer` was refused with `error`, unless this reason was logged recently or too many lines were."""
        more = self._more(error.detail)
        if more is not None:
            logger.warning("refused %s with %s: %s%s", _name(peer), error.code, error.detail, more)

    def log_failure(self, peer: str, error: Exception) -> None:
        """Log that the app's verifier raised `error`, with its traceback, within the same limits.

        The reason is the exception with its text and the line that raised it. The text may differ for each token, so a
        line with another text is logged again only after a minute.
        """
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else ""
        kind = f"{type(error).__qualname__} at {place}"
        text = "".join(traceback.format_exception_only(error))[:MAX_TEXT]
        more = self._more(f"{kind}: {text}", kind)
        if more is not None:
            logger.error("the verifier failed for a request of %s%s", _name(peer), more, exc_info=error)

    def log_store(self, error: TenutoError) -> None:
        """Log that a request failed because of the store, within the same limits: each code once a minute."""
        more = self._more(f"store: {error.code}", repeat_s=PERIOD_S)
        if more is not None:
            logger.warning("a request failed because of the store: %s%s", error, more)

    def _more(self, reason: str, kind: str = "", repeat_s: float = REPEAT_S) -> str | None:
        """Return the end of a log line about `reason`, and count it as logged; None if it must not be logged now.

        Reasons of one `kind` are logged once a minute; `repeat_s` is the least time between two lines with this reason.
        """
        now_s = self._now_s()
        if now_s - self._period_at_s >= PERIOD_S:
            self._period_at_s, self._lines = now_s, 0
        never_s = now_s - REPEAT_S
        is_recent = now_s - self._logged_at_s.get(reason, never_s) < repeat_s
        if is_recent or now_s - self._logged_at_s.get(kind, never_s) < PERIOD_S or self._lines >= LINES:
            self._left_out += 1
            return None
        self._lines += 1
        for name in (reason, kind) if kind else (reason,):
            self._logged_at_s[name] = now_s
            self._logged_at_s.move_to_end(name)
            if len(self._logged_at_s) > MAX_REASONS:
                self._logged_at_s.popitem(last=False)
        left_out, self._left_out = self._left_out, 0
        return f" ({left_out} more requests since the last such line)" if left_out else ""


def _name(peer: str) -> str:
    return peer or "a peer without an address"


refusals = Refusals()
