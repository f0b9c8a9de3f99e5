"""The lease of a node, and the nodes whose leases have expired.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.hub.nodes.nodes import BATCH_BYTES, TERM_MS, IsMine, NodeLease, responsible_node
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


async def test_node_that_does_not_renew_its_lease_is_gone_after_its_term() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(6000, here, there)
    assert not here.is_gone("b")
    await cluster.pass_ms(TERM_MS - 1000, here)
    assert not here.is_gone("b")
    await cluster.pass_ms(1000, here)
    assert here.is_gone("b")


async def test_node_is_not_gone_because_the_store_did_not_respond_for_a_term() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(6000, here, there)
    cluster.store.is_down = True
    for _ in range(0, 2 * TERM_MS, 1000):
        with pytest.raises(StoreUnavailable):
            await cluster.pass_ms(1000, here)
        assert not here.is_gone("b")
    cluster.store.is_down = False
    await cluster.pass_ms(1000, there, here)
    assert not here.is_gone("b")


async def test_node_counts_no_lease_as_expired_before_a_term_has_passed_since_the_store_lost_its_leases() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(6000, here, there)
    cluster.store.lose_holds()
    await cluster.pass_ms(TERM_MS, here)
    assert not here.is_gone("b")
    await cluster.pass_ms(1000, here)
    assert here.is_gone("b")


async def test_lease_is_kept_since_its_first_renewal_unless_it_has_expired_between() -> None:
    cluster, regained = Cluster(), []
    here = await cluster.node("a")
    here.regained = lambda: regained.append(cluster.now_ms)
    await cluster.pass_ms(9000, here)
    assert here.is_kept_since(0.0)
    cluster.now_ms += TERM_MS - 1
    assert here.is_kept_since(9.0)
    cluster.now_ms += 1
    assert not here.is_kept_since(9.0)
    await here.renew()
    assert not here.is_kept_since(9.0)
    assert here.is_kept_since(9.0 + TERM_MS / 1000)
    assert regained == [9000 + TERM_MS]


async def test_lease_of_a_remote_writer_counts_from_its_stored_sign_of_life_and_a_second_for_the_commit() -> None:
    cluster = Cluster()
    here = await cluster.node("a")
    await cluster.pass_ms(60_000, here)
    assert here.left_s(15.0, 60_000) == 15.0
    assert here.left_s(15.0, 50_000) == 6.0
    assert here.left_s(15.0, 40_000) == 0.0
    assert here.left_s(15.0, 61_000) == 15.0  # decided by a node with a faster clock
    assert here.left_s(15.0, 0) == 15.0  # not known


async def test_lease_of_a_remote_writer_counts_from_no_moment_before_its_node_lived() -> None:
    cluster = Cluster()
    cluster.now_ms = 100_000
    here = await cluster.node("a")
    await cluster.pass_ms(4_000, here)
    assert here.left_s(15.0, 90_000) == 11.0
    cluster.now_ms += TERM_MS  # the node was suspended, or its store was down
    assert here.left_s(15.0, 90_000) == 15.0
    await cluster.pass_ms(3_000, here)
    assert here.left_s(15.0, 90_000) == 13.0


@pytest.mark.parametrize("event", ["leases lost", "clock set"])
async def test_lease_of_a_remote_writer_begins_anew_when_its_stored_time_may_be_wrong(event: str) -> None:
    cluster = Cluster()
    here = await cluster.node("a")
    await cluster.pass_ms(60_000, here)
    if event == "leases lost":
        cluster.store.lose_holds()
    else:
        cluster.store_ahead_ms = 3_600_000
    await cluster.pass_ms(2_000, here)
    assert here.left_s(15.0, 50_000) == 14.0


async def test_lease_of_a_remote_writer_has_its_full_term_on_an_exclusive_store() -> None:
    cluster = Cluster(is_exclusive=True)
    cluster.now_ms = 100_000
    assert (await cluster.node("a")).left_s(15.0, 1_000) == 15.0


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


async def test_lease_that_is_ended_is_gone_at_the_next_renewal() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(6000, here, there)
    await there.end()
    await cluster.pass_ms(1000, here, there)
    assert here.is_gone("b")


async def test_responsible_node_recovers_each_channel_first_and_after_a_term_each_node_does() -> None:
    cluster = Cluster()
    a, b, c = [await cluster.node(name) for name in "abc"]
    await cluster.pass_ms(9000, a, b, c)
    cluster.recovered.clear()
    await c.end()
    await cluster.pass_ms(1000, a, b)
    assert sorted(cluster.recovered) == sorted((responsible_node(channel, "ab"), channel) for channel in CHANNELS)
    assert {node for node, _ in cluster.recovered} == {"a", "b"}
    cluster.recovered.clear()
    await cluster.pass_ms(TERM_MS, a, b)
    assert sorted(cluster.recovered) == sorted((node, channel) for node in "ab" for channel in CHANNELS)


@pytest.mark.parametrize(
    ("error", "is_soon"), [(StoreUnavailable("the store is down"), True), (StoreUnusable("damaged"), False)]
)
async def test_recovery_is_repeated_soon_once_the_store_works_and_seldom_if_a_channel_is_damaged(
    error: TenutoError, is_soon: bool
) -> None:
    cluster = Cluster()
    here, _ = await cluster.node("a"), await cluster.node("b")
    cluster.error = error
    await cluster.pass_ms(100_000, here)
    cluster.error = None
    await cluster.pass_ms(5_000, here)
    assert bool(cluster.recovered) == is_soon
    await cluster.pass_ms(60_000, here)
    assert cluster.recovered


async def test_nodes_that_vanish_one_after_another_do_not_delay_the_recovery_by_each_node() -> None:
    cluster = Cluster()
    here, there, *others = [await cluster.node(name) for name in "abcdef"]
    await cluster.pass_ms(9000, here, there, *others)
    cluster.recovered.clear()
    while others:
        await others.pop().end()
        await cluster.pass_ms(2000, here, there, *others)
    assert {("a", "c0"), ("b", "c0")} <= set(cluster.recovered)


async def test_node_that_begins_and_ends_between_two_renewals_is_recovered() -> None:
    cluster = Cluster()
    here = await cluster.node("a")
    await cluster.pass_ms(9000, here)
    cluster.recovered.clear()
    await (await cluster.node("b")).end()
    await cluster.pass_ms(1000, here)
    assert cluster.recovered == [("a", channel) for channel in CHANNELS]


@virtually
async def test_recovery_that_begins_before_the_store_loses_its_leases_is_due_again_a_term_later() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(9000, here, there)
    await there.end()
    cluster.now_ms += 1000
    await here.renew()
    cluster.recovered.clear()
    cluster.store.reading_s = 0.5
    recovery = asyncio.create_task(here.recover(lambda is_mine: cluster._recover(here, is_mine)))
    await asyncio.sleep(0.1)
    cluster.store.lose_holds()
    await here.renew()
    await recovery
    assert not cluster.recovered
    cluster.store.reading_s = 0.0
    await cluster.pass_ms(5000, here)
    assert cluster.recovered


async def test_node_that_has_ended_stays_gone_although_its_last_renewal_arrives_late() -> None:
    cluster = Cluster()
    here, there = await cluster.node("a"), await cluster.node("b")
    await cluster.pass_ms(6000, here, there)
    await there.end()
    await cluster.store.hold("b", TERM_MS, {})
    await cluster.pass_ms(1000, here)
    assert here.is_gone("b")


@pytest.mark.parametrize(("channel", "node"), [("c0", "a"), ("c2", "c")])
def test_responsible_node_of_a_channel_is_the_same_in_each_version(channel: str, node: str) -> None:
    assert responsible_node(channel, "abc") == node


async def test_exclusive_store_has_no_other_living_node() -> None:
    cluster = Cluster(is_exclusive=True)
    here = await cluster.node("a")
    assert (here.is_gone("b"), here.is_gone("a"), here.renewal) == (True, False, None)


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
