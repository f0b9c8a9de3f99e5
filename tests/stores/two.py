"""The contracts of stores, run by two instances on one PostgreSQL store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenuto.stores import open_url
from tenuto.stores.base import Notice, SharedStore, Store
from tenuto.stores.postgres.store import PostgresStore
from tests.postgres import Postgres
from tests.stores.contract import LAW, PATIENCE_S, SharedStoreContract, StoreContract, check_fold


def opened(server: Postgres, schema: str) -> AbstractAsyncContextManager[PostgresStore]:
    """Open the store in `schema`."""
    return opened_at(f"{server.url}?schema={schema}")


@asynccontextmanager
async def opened_at(url: str) -> AsyncIterator[PostgresStore]:
    """Open the store that `url` names."""
    store = open_url(url)
    assert isinstance(store, PostgresStore)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def until_it_listens(store: SharedStore) -> None:
    """Wait until notices reach `store`; those that were sent before are lost."""
    is_listening = asyncio.Event()
    store.listen(lambda _: is_listening.set())
    async with asyncio.timeout(PATIENCE_S):
        await is_listening.wait()


class Two:
    """Two instances on one store, which is a `Store`: each call uses one of them, often that of the call before."""

    name, is_exclusive = PostgresStore.name, PostgresStore.is_exclusive

    def __init__(self, *stores: PostgresStore) -> None:
        self.stores = stores
        self._draw = Random(1)
        self._current = stores[0]

    def __getattr__(self, name: str) -> Any:
        if self._draw.random() < 0.4:
            self._current = self._draw.choice(self.stores)
        return getattr(self._current, name)

    async def open(self) -> None:
        for store in self.stores:
            await store.open()

    async def close(self) -> None:
        for store in self.stores:
            await store.close()

    def listen(self, on_notice: Callable[[Notice | None], None]) -> None:
        self.stores[0].listen(on_notice)

    async def notify(self, notices: Sequence[Notice]) -> None:
        await self.stores[0].notify(notices)

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        return sorted({due for store in self.stores for due in await store.tidy(now_ms)})

    def stats(self) -> dict[str, int]:
        counts = [store.stats() for store in self.stores]
        return {name: sum(one[name] for one in counts) for name in counts[0]}


class TwoContract(StoreContract, SharedStoreContract):
    """The contracts of a `store` that is `Two`."""

    @pytest.fixture
    async def other(self, store: Store) -> PostgresStore:
        assert isinstance(store, Two)
        return store.stores[1]

    # Fewer examples than for other stores, because each act is a round trip.
    @settings(LAW, max_examples=20)
    @given(st.data())
    async def test_a_store_returns_the_fold_of_all_entries(self, store: Store, data: st.DataObject) -> None:
        await check_fold(store, data)
