"""The memory store keeps every promise."""

from collections.abc import AsyncIterator

import pytest

from tenuto.stores.memory import MemoryStore
from tenuto.testing import RetentionContract, StoreContract


class TestMemoryStore(StoreContract, RetentionContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[MemoryStore]:
        store = MemoryStore()
        await store.open()
        yield store
        await store.close()
