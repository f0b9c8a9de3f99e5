"""A PostgreSQL server for each test module of its store, a schema of its own for each test, and a file.

Layer: tests.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from tests.postgres import Postgres

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
