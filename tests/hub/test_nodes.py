"""The lease of a node, and the nodes whose leases have expired.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tenuto.core.errors import StoreUnavailable, TenutoError
from tenuto.hub.nodes.nodes import BATCH_BYTES, IsMine, NodeLease, responsible_node
from tenuto.hub.people.presence import HOLD_BYTES
from tenuto.stores.base import Hold, Renewal
from tenuto.stores.memory import MemoryStore
from tests.virtual import virtually


class FailingStore(MemoryStore):
    """A store that refuses to renew leases while it is down."""

    is_down = False
    limit_bytes = 1 << 30  # a call with more is too slow
    takes_s = 0.0
    reading_s = 0.0

    async def holds(self, prefix: str) -> Mapping[str, tuple[str, Hold]]:
        await asyncio.sleep(self.reading_s)
        return await super().holds(prefix)

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        await asyncio.sleep(self.takes_s)
        if self.is_down or sum(len(hold.value) for hold in values.values() if hold) > self.limit_bytes:
            raise StoreUnavailable("the store is down")
        return await super().hold(node, term_ms, values)


class Cluster:
    """Nodes on one store, whose clock is also theirs."""

    def __init__(self, *, is_exclusive: bool = False) -> None:
        self.now_ms = 0
        self.store_ahead_ms = 0
        self.store = FailingStore(now_ms=lambda: self.now_ms + self.store_ahead_ms)
        self.store.is_exclusive = is_exclusive
        self.recovered: list[tuple[str, str]] = []  # nodes, each with a channel that it has recovered
        self.error: TenutoError | None = None  # ends each recovery

    async def node(self, name: str) -> NodeLease:
        lease = NodeLease(self.store, name, lambda: self.now_ms / 1000)
        await lease.renew()
        return lease

    async def pass_ms(self, ms: int, *nodes: NodeLease) -> None:
        """Let the time pass while `nodes` renew their leases each second, and recover when it is due."""
        for _ in range(0, ms, 1000):
            self.now_ms += 1000
            for node in nodes:
                await node.renew()
            for node in nodes:
                if node.is_recovery_due:
                    await node.recover(lambda is_mine, node=node: self._recover(node, is_mine))  # type: ignore[misc]

    async def _recover(self, node: NodeLease, is_mine: IsMine) -> None:
        if self.error is not None:
            raise self.error
        self.recovered += [(node.node, channel) for channel in CHANNELS if is_mine(channel)]


CHANNELS = [f"c{number}" for number in range(8)]


async def test_lease_returns_before_many_holds_are_put_again_and_the_hold_about_the_node_is_the_last() -> None:
    cluster = Cluster()
    here = await cluster.node("a")
    here.holds.sources = [lambda: {"turns/a": b"t"}]
    here.holds.about_node = lambda: {"here/a": b"%d" % here.holds.losses}
    names = [f"members/{number:02}/a" for number in range(20)]
    for name in names:
        here.holds.show(name, b"x" * 50_000)
    await here.put()
    assert (await cluster.store.holds("here/"))["here/a"][1].value == b"0"
    cluster.store.limit_bytes = BATCH_BYTES + HOLD_BYTES
    cluster.store.lose_holds()
    await here.renew()
    assert here.is_kept_since(0.0)
    assert 0 < len(await cluster.store.holds("members/")) < 20
    assert len(await cluster.store.holds("turns/")) == 1
    assert await cluster.store.holds("here/") == {}
    here.holds.show(names[0], None)
    await here.put()
    assert list(await cluster.store.holds("members/")) == names[1:]
    assert (await cluster.store.holds("here/"))["here/a"][1].value == b"1"


@pytest.mark.parametrize(("channel", "node"), [("c0", "a"), ("c2", "c")])
def test_responsible_node_of_a_channel_is_the_same_in_each_version(channel: str, node: str) -> None:
    assert responsible_node(channel, "abc") == node


@virtually
async def test_first_lease_may_take_ten_seconds_and_a_renewal_two() -> None:
    cluster = Cluster()
    cluster.store.takes_s = 9.0
    node = await cluster.node("n1")
    assert node.renewal is not None
    with pytest.raises(StoreUnavailable, match="within 2 s"):
        await node.renew()
    cluster.store.takes_s = 11.0
    with pytest.raises(StoreUnavailable, match="within 10 s"):
        await cluster.node("n2")
