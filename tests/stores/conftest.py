"""A PostgreSQL server for each test module of its store, a schema of its own for each test, and a file.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.postgres import Postgres, running_postgres

_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"test_{next(_numbers)}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the place of a store file."""
    return tmp_path / "chat.db"
