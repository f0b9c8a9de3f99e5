"""The memory store keeps every promise, and the one for tests those of a shared store."""

import pytest

from proof.simulation.store import SharedMemoryStore
from tenuto.stores.base import Hold, Renewal
from tenuto.stores.memory import MemoryStore
from tests.stores.contract import SharedStoreContract, StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> MemoryStore:
        return MemoryStore()


class TestSharedMemoryStore(SharedStoreContract):
    @pytest.fixture
    async def store(self) -> SharedMemoryStore:
        return SharedMemoryStore()


async def test_a_lease_ends_one_term_after_its_last_renewal() -> None:
    now_ms = 0
    store = SharedMemoryStore(now_ms=lambda: now_ms)
    begun = await store.hold("n1", 4_000, {"a": Hold(b"1"), "b": Hold(b"2", 10_000)})
    for now_ms in (3_999, 7_998):
        assert await store.hold("n1", 4_000, {}) == Renewal(now_ms, frozenset({"n1"}), begun.lease)
    now_ms = 11_997
    assert set(await store.holds("")) == {"a"}
    now_ms = 11_998
    assert await store.holds("") == {}
    assert (await store.hold("n2", 4_000, {})).nodes == {"n2"}


async def test_a_node_that_was_paused_for_longer_than_its_lease_does_not_get_its_holds_back() -> None:
    now_ms = 0
    store = SharedMemoryStore(now_ms=lambda: now_ms)
    begun = await store.hold("n1", 4_000, {"a": Hold(b"1")})
    now_ms = 4_000
    back = await store.hold("n1", 4_000, {})
    assert (back.nodes, await store.holds("")) == ({"n1"}, {})
    assert back.lease != begun.lease
