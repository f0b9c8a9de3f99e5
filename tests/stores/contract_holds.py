"""The part of the contract of stores about the leases of nodes and their holds.

Layer: testing. `StoreContract` contains it.
"""

from __future__ import annotations

from tenuto.stores.base import Hold, Store

MINUTE_MS = 60_000


class HoldsContract:
    """The tests of `Store.hold` and `Store.holds`."""

    async def test_holds_of_all_nodes_are_found_by_prefix(self, store: Store) -> None:
        first = await store.hold("n1", MINUTE_MS, {"x/a": Hold(b"1"), "y": Hold(b"2")})
        second = await store.hold("n2", MINUTE_MS, {"x/b": Hold(b"3", first.now_ms + MINUTE_MS), "x/a": None})
        assert second.now_ms >= first.now_ms > 1_700_000_000_000  # ms since 1970
        assert (set(first.nodes), set(second.nodes)) == ({"n1"}, {"n1", "n2"})
        expected = {"x/a": ("n1", Hold(b"1")), "x/b": ("n2", Hold(b"3", first.now_ms + MINUTE_MS))}
        assert await store.holds("x/") == expected
        again = await store.hold("n2", MINUTE_MS, {"y": Hold(b"4"), "x/b": None})
        assert again.lease == second.lease
        assert await store.holds("") == {"x/a": ("n1", Hold(b"1")), "y": ("n2", Hold(b"4"))}

    async def test_holds_end_with_the_lease_of_their_node_or_at_their_time(self, store: Store) -> None:
        first = await store.hold("n1", MINUTE_MS, {"with-node": Hold(b"1")})
        later_ms = first.now_ms + MINUTE_MS
        await store.hold("n1", MINUTE_MS, {"later": Hold(b"2", later_ms), "over": Hold(b"3", first.now_ms)})
        assert set(await store.holds("")) == {"with-node", "later"}
        assert (await store.hold("n1", 0, {})).nodes == set()
        assert await store.holds("") == {"later": ("n1", Hold(b"2", later_ms))}

    async def test_lease_that_its_node_has_ended_is_not_revived_by_a_late_renewal(self, store: Store) -> None:
        await store.hold("n1", MINUTE_MS, {})
        await store.hold("n1", 0, {})
        assert (await store.hold("n1", MINUTE_MS, {"late": Hold(b"1")})).nodes == set()
        assert await store.holds("") == {}

    async def test_renewal_shows_that_a_lease_has_begun_and_ended_since_the_last_one(self, store: Store) -> None:
        before = await store.hold("n1", MINUTE_MS, {})
        assert (await store.hold("n1", MINUTE_MS, {})).ended == before.ended
        await store.hold("n2", MINUTE_MS, {})
        await store.hold("n2", 0, {})
        after = await store.hold("n1", MINUTE_MS, {})
        assert (after.nodes, after.lease) == (before.nodes, before.lease)
        assert after.ended != before.ended
