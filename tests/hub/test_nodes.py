"""The lease of a node, and the nodes whose leases have expired.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import StoreUnavailable
from tenuto.hub.nodes.nodes import BATCH_BYTES, NodeLease
from tenuto.hub.people.presence import HOLD_BYTES
from tenuto.stores.base import Hold, Renewal
from tests.virtual import virtually


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
