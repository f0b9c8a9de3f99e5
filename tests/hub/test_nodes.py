"""The lease of a node, the nodes whose leases have expired, and the clock of the store, which all of them use.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from proof.simulation.clock import SimClock
from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import StoreUnavailable
from tenuto.hub.clock import Clock, StoreClock
from tenuto.hub.nodes import BATCH_BYTES, LATE_S, TERM_MS, NodeLease
from tenuto.hub.people.presence import HOLD_BYTES
from tenuto.stores.base import Hold, Renewal
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.virtual import virtually

DAY_MS = 24 * 3600 * 1000


class FailingStore(SharedMemoryStore):
    """A store that refuses calls with too many bytes, and takes its time."""

    limit_bytes = 1 << 30  # a call with more is too slow
    takes_s = 0.0

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        await asyncio.sleep(self.takes_s)
        if sum(len(hold.value) for hold in values.values() if hold) > self.limit_bytes:
            raise StoreUnavailable("the store is down")
        return await super().hold(node, term_ms, values)


async def node_on(store: FailingStore, name: str) -> NodeLease:
    """Return a node with a lease, for which no time passes."""
    lease = NodeLease(store, name, lambda: 0.0)
    await lease.renew()
    return lease


async def test_lease_returns_before_many_holds_are_put_again_and_the_hold_about_the_node_is_the_last() -> None:
    store = FailingStore(now_ms=lambda: 0)
    here = await node_on(store, "a")
    here.holds.sources = [lambda: {"turns/a": b"t"}]
    here.holds.about_node = lambda: {"here/a": b"%d" % here.holds.losses}
    names = [f"members/{number:02}/a" for number in range(20)]
    for name in names:
        here.holds.show(name, b"x" * 50_000)
    await here.put()
    assert (await store.holds("here/"))["here/a"][1].value == b"0"
    store.limit_bytes = BATCH_BYTES + HOLD_BYTES
    store.lose_holds()
    await here.renew()
    assert here.is_kept_since(0.0)
    assert 0 < len(await store.holds("members/")) < 20
    assert len(await store.holds("turns/")) == 1
    assert await store.holds("here/") == {}
    here.holds.show(names[0], None)
    await here.put()
    assert list(await store.holds("members/")) == names[1:]
    assert (await store.holds("here/"))["here/a"][1].value == b"1"


async def test_renewal_that_failed_and_is_carried_out_later_brings_earlier_holds_back_for_a_minute_at_most() -> None:
    store, now_s, turns = FailingStore(now_ms=lambda: 0), 0.0, b"busy"
    here = NodeLease(store, "a", lambda: now_s)
    here.holds.sources = [lambda: {"turns/a": turns}]
    here.holds.show("members/1/a", b"x")
    store.limit_bytes = -1
    with pytest.raises(StoreUnavailable):
        await here.renew()
    store.limit_bytes, turns = 1 << 30, b"idle"
    here.holds.show("members/1/a", None)
    await here.put()
    await store.hold("a", TERM_MS, {"turns/a": Hold(b"busy"), "members/1/a": Hold(b"x")})
    store.limit_bytes, now_s = -1, LATE_S / 2
    with pytest.raises(StoreUnavailable):
        await here.renew()
    store.limit_bytes, now_s = 1 << 30, LATE_S
    await here.put()
    assert await store.holds("") == {"turns/a": ("a", Hold(b"idle"))}


@virtually
async def test_first_lease_may_take_ten_seconds_and_a_renewal_two() -> None:
    store = FailingStore(now_ms=lambda: 0)
    store.takes_s = 9.0
    node = await node_on(store, "n1")
    assert node.renewal is not None
    with pytest.raises(StoreUnavailable, match="within 2 s"):
        await node.renew()
    store.takes_s = 11.0
    with pytest.raises(StoreUnavailable, match="within 10 s"):
        await node_on(store, "n2")


def test_ids_sort_by_time_and_keep_rising_if_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = Clock(), [*range(31, 2000, 3), *range(1000, 1010), 2001, 2001]
    monkeypatch.setattr(clock, "now_ms", iter(times).__next__)
    ids = [clock.new_id() for _ in times]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(("skew_ms", "expected"), [(DAY_MS, "is 86400 s ahead of"), (-DAY_MS, "is 86400 s behind")])
@virtually
async def test_large_difference_of_the_clocks_is_logged_once(
    skew_ms: int, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub = new_hub(Shared())
    await hub.start()
    assert isinstance(hub.clock, StoreClock)
    own = hub.clock._own
    assert isinstance(own, SimClock)
    for _ in range(2):
        assert "clock of this machine" not in caplog.text
        own.skew_ms = skew_ms
        await asyncio.sleep(5.0)
        lines = [line.getMessage().partition(" that of the store;")[0] for line in caplog.records]
        assert lines == [f"the clock of this machine {expected}"]
        own.skew_ms = 0
        await asyncio.sleep(5.0)
        caplog.clear()
