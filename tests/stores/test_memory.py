"""The memory store keeps every promise, and the one for tests those of a shared store."""

import pytest

from proof.simulation.store import SharedMemoryStore
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
