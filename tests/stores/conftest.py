"""A PostgreSQL server for each test module of its store, a schema of its own for each test, and a file.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

from tenuto.stores.base import Store
from tenuto.stores.sqlite.store import SqliteStore
from tests.postgres import Postgres
from tests.stores.contract import Chat
from tests.stores.files import opened

_numbers = count(1)


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Postgres:
    return postgres


@pytest.fixture
def schema() -> str:
    return f"test_{next(_numbers)}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the place of a store file."""
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path) as store:
        yield store


@pytest.fixture
def chat(store: Store) -> Chat:
    """Return the channel `c` of the test's store."""
    return Chat(store)
