"""Leases and holds end by the clock of the store, and a store that was opened again tells so."""

from pathlib import Path

from tenuto.stores.base import Hold, Renewal
from tenuto.stores.memory import Holds, MemoryStore
from tests.stores.files import opened


async def test_a_lease_ends_one_term_after_its_last_renewal() -> None:
    now_ms = 0
    store = MemoryStore(now_ms=lambda: now_ms)
    begun = await store.hold("n1", 4_000, {"a": Hold(b"1"), "b": Hold(b"2", 10_000)})
    for now_ms in (3_999, 7_998):
        assert await store.hold("n1", 4_000, {}) == Renewal(now_ms, frozenset({"n1"}), begun.lease)
    now_ms = 11_997
    assert set(await store.holds("")) == {"a"}
    now_ms = 11_998
    assert await store.holds("") == {}
    assert (await store.hold("n2", 4_000, {})).nodes == {"n2"}


def test_a_node_that_was_paused_for_longer_than_its_lease_does_not_get_its_holds_back() -> None:
    now_ms = 0
    holds = Holds(lambda: now_ms)
    begun = holds.hold("n1", 4_000, {"a": Hold(b"1")})
    now_ms = 4_000
    back = holds.hold("n1", 4_000, {})
    assert (back.nodes, holds.holds("")) == ({"n1"}, {})
    assert back.lease != begun.lease


async def test_a_store_file_that_was_opened_again_begins_other_leases(tmp_path: Path) -> None:
    leases = []
    for _ in range(2):
        async with opened(tmp_path / "chat.db") as store:
            assert await store.holds("") == {}
            leases.append((await store.hold("n1", 60_000, {"a": Hold(b"1")})).lease)
    assert leases[0] != leases[1]
