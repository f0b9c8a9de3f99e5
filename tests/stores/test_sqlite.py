"""The SQLite store keeps every promise, and what only a file can be asked: crashes, locks, foreign and full disks."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.stores.sqlite import SqliteStore
from holdfast.testing import StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "chat.db")
        await store.open()
        yield store
        await store.close()
