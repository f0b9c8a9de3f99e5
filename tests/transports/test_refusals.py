"""Log lines about refused peers: each reason once an hour, and few in all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tenuto.core.errors import Forbidden, StoreUnavailable, StoreUnusable
from tenuto.hub import tasks
from tenuto.hub.access.identity import Identity
from tenuto.transports import access, codec
from tenuto.transports.codec import Refusals
from tests.transports.asgi import ask
from tests.transports.conftest import new_hub
from tests.virtual import Time


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines since the last call."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_a_reason_is_logged_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    log = Refusals(time)
    for _ in range(1000):
        log.log("192.0.2.1", Forbidden("a foreign page"))
    assert lines_of(caplog) == ["refused 192.0.2.1 with forbidden: a foreign page"]
    time.now_s += codec.REPEAT_S
    log.log("192.0.2.1", Forbidden("a foreign page"))
    assert lines_of(caplog) == ["refused 192.0.2.1 with forbidden: a foreign page (999 more since the last such line)"]


def test_requests_that_a_store_fails_leave_the_lines_of_the_hub(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "failures", tasks.LineLimit(Time()))
    for number in range(99):
        codec.for_peers(StoreUnusable(f"message {number} is damaged"))
    codec.for_peers(StoreUnavailable("disk"))
    lines = [one.partition("a request failed because of the store: ")[2] for one in lines_of(caplog)]
    assert lines == ["message 0 is damaged", "disk (98 more since the last such line)"]
    assert codec.failures is not tasks.store_failures


def test_reasons_that_a_peer_varies_fill_neither_the_log_nor_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    log = Refusals(time)
    for minute in range(30):
        for number in range(1000):
            log.log("192.0.2.1", Forbidden(f"the page {minute} {number} is foreign"))
        time.now_s += tasks.PERIOD_S
    assert len(lines_of(caplog)) == 30 * tasks.LINES
    assert len(log._logged_at_s) == tasks.MAX_REASONS


async def test_exceptions_of_a_verifier_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many verifiers raise for a bad token. The text of the exception may differ for each."""
    monkeypatch.setattr(access, "refusals", Refusals(Time()))
    attempts = itertools.count()

    async def verify(scope: Any) -> Identity | None:
        raise LookupError(f"token {next(attempts)} is bad")

    hub = new_hub(authenticate=verify)
    for _ in range(300):
        assert (await ask(hub, client=("192.0.2.1", 5)))[0] == 500
    (record,) = caplog.records
    assert record.getMessage() == "the verifier failed for a request of 192.0.2.1"
    assert record.exc_text is not None
    assert "LookupError: token 0 is bad" in record.exc_text
    await hub.close()


async def test_two_mistakes_of_a_verifier_at_one_line_are_both_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text is logged once an hour, and another text of that line a minute later."""
    time = Time()
    monkeypatch.setattr(access, "refusals", Refusals(time))
    claims, users = iter(("sub", "sub", "name", "sub", "name")), dict[str, str]()

    async def verify(scope: Any) -> Identity | None:
        return Identity(client_id=users[next(claims)])

    hub = new_hub(authenticate=verify)
    for _ in range(5):
        assert (await ask(hub, client=("192.0.2.1", 5)))[0] == 500
        time.now_s += tasks.PERIOD_S
    lines = [str(record.exc_text).rpartition("\n")[2] for record in caplog.records]
    assert lines == ["KeyError: 'sub'", "KeyError: 'name'"]
    await hub.close()
