"""Rates and counts of clients, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tenuto.core.errors import TooMany
from tenuto.core.limits import MIB
from tenuto.hub.access import rates
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.rates import Rates
from tests.virtual import Time

ADA = Identity(client_id="ada", capabilities=frozenset({"subscribe", "history", "publish", "presence", "command"}))
EVE = Identity(client_id="eve", capabilities=frozenset({"subscribe"}))
BOT = Identity(client_id="bot", capabilities=frozenset({"append"}))
WITHOUT_ID = Identity(capabilities=frozenset({"subscribe"}))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def counted(time: Time) -> Rates:
    return Rates(now_s=time)


def how_many(act: Callable[[], object], most: int = 10_000) -> int:
    """Return how often `act` succeeds before `TooMany`, at most `most` times."""
    for count in range(most):
        try:
            act()
        except TooMany:
            return count
    return most


def test_client_may_send_a_burst_of_two_seconds_and_then_fifty_requests_a_second(counted: Rates, time: Time) -> None:
    assert how_many(lambda: counted.request(ADA)) == 100
    time.now_s += 1
    assert how_many(lambda: counted.request(ADA)) == 50
    time.now_s += 0.1
    assert how_many(lambda: counted.request(ADA)) == 5
    time.now_s += 3600
    assert how_many(lambda: counted.request(ADA)) == 100


def test_request_is_refused_for_earlier_traffic_and_not_for_its_own(counted: Rates, time: Time) -> None:
    for _ in range(2):  # edits with 4 MiB, and responses with 8 MiB
        counted.request(ADA, size=4 * MIB)
        counted.charge(ADA, size=8 * MIB)
    with pytest.raises(TooMany, match=r"'ada' has used 194 of 100 requests at once.*Wait 2 s") as refused:
        counted.request(ADA)
    assert refused.value.details == {"limit": 50, "retry_after_s": 2}
    time.now_s += 2  # 1.9 s, rounded up
    counted.request(ADA)


def test_client_may_cause_traffic_of_a_gibibyte_an_hour(counted: Rates, time: Time) -> None:
    counted.charge(ADA, size=2 * 1024 * MIB)  # an hour ahead of the rate
    time.now_s += 3599
    with pytest.raises(TooMany, match="of traffic, the limit is 1073741824 in an hour"):
        counted.request(ADA)


def test_client_may_send_twenty_signals_a_second(counted: Rates, time: Time) -> None:
    assert how_many(lambda: counted.signal(ADA)) == 20
    time.now_s += 0.5
    assert how_many(lambda: counted.signal(ADA)) == 10


def test_client_may_begin_a_thousand_channels_an_hour(counted: Rates, time: Time) -> None:
    for _ in range(1000):
        assert counted.may_begin(ADA)
        counted.began(ADA)
    assert not counted.may_begin(ADA)
    time.now_s += 3.7
    assert counted.may_begin(ADA)


def test_client_may_open_twenty_connections_and_reuse_a_closed_slot(counted: Rates) -> None:
    slots = [counted.connect(ADA) for _ in range(20)]
    with pytest.raises(TooMany):
        counted.connect(ADA)
    slots[0].leave()
    slots[0].leave()
    again = counted.connect(ADA)
    with pytest.raises(TooMany):
        counted.connect(ADA)
    for slot in [*slots, again]:
        slot.leave()
    assert how_many(lambda: counted.connect(ADA)) == 20


def test_small_open_bodies_are_bounded_in_number(counted: Rates) -> None:
    with ExitStack() as stack:
        assert how_many(lambda: stack.enter_context(counted.body(ADA, largest_bytes=MIB))) == 128
        with counted.body(EVE, largest_bytes=MIB) as body:
            body.grow(MIB)
        with counted.body(BOT, largest_bytes=MIB) as body:
            body.grow(100 * MIB)
    with counted.body(ADA, largest_bytes=MIB) as body:
        assert how_many(lambda: body.grow(MIB)) == 8


def test_clients_without_an_id_are_counted_by_address(counted: Rates) -> None:
    assert how_many(lambda: counted.request(WITHOUT_ID, "192.0.2.1")) == 100
    assert how_many(lambda: counted.request(WITHOUT_ID, "192.0.2.2")) == 100


def test_trusted_identity_is_not_counted(counted: Rates) -> None:
    assert how_many(lambda: counted.request(BOT), 1000) == 1000
    assert how_many(lambda: counted.signal(BOT), 1000) == 1000
    assert how_many(lambda: counted.connect(BOT), 1000) == 1000
    assert how_many(lambda: counted.request(BOT, size=MIB), 1000) == 1000
    counted.charge(BOT, size=1024 * MIB)
    counted.began(BOT)
    assert len(counted._clients) == 0


def test_counted_clients_are_bounded_and_connected_ones_stay(counted: Rates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_CLIENTS", 10)
    slots = [counted.connect(ADA) for _ in range(20)]
    for number in range(500):
        counted.request(Identity(client_id=f"c{number}", grants={}))
    assert len(counted._clients) <= 11
    with pytest.raises(TooMany):
        counted.connect(ADA)
    slots[0].leave()
    counted.connect(ADA)
