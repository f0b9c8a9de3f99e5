"""The memory store keeps every promise."""

from collections.abc import AsyncIterator

import pytest

from tenuto.stores.memory import MemoryStore
from tests.stores.contract import StoreContract
from tests.stores.contract_retention import RetentionContract


class TestMemoryStore(StoreContract, RetentionContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[MemoryStore]:
        store = MemoryStore()
        await store.open()
        yield store
        await store.close()
