"""Log lines about refused peers: each reason once an hour, and few in all."""

from __future__ import annotations

import pytest

from holdfast.core.errors import Forbidden
from holdfast.transports import refusals
from holdfast.transports.refusals import Refusals


class Time:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines since the last call."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_a_reason_is_logged_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    log = Refusals(time)
    for _ in range(1000):
        log.log("192.0.2.1", Forbidden("the page is foreign"))
    assert lines_of(caplog) == ["refused 192.0.2.1 with forbidden: the page is foreign"]
    time.now_s += refusals.REPEAT_S
    log.log("192.0.2.1", Forbidden("the page is foreign"))
    assert lines_of(caplog) == [
        "refused 192.0.2.1 with forbidden: the page is foreign "
        "(999 more requests were refused since the last such line)"
    ]


def test_reasons_that_a_peer_varies_fill_neither_the_log_nor_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    log = Refusals(time)
    for minute in range(30):
        for number in range(1000):
            log.log("192.0.2.1", Forbidden(f"the page {minute} {number} is foreign"))
        time.now_s += refusals.PERIOD_S
    assert len(lines_of(caplog)) == 30 * refusals.LINES
    assert len(log._logged_at_s) == refusals.MAX_REASONS
