"""The benchmarks of several processes on PostgreSQL, in small: a wrong byte or a failed measurement leaves no figure.

Layer: tests.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench import postgres
from bench.common import Options, Row, attempt
from tests.bench.test_rows import figure, verdicts
from tests.postgres import Postgres, needs_postgres, running_postgres

# in a folder that the account of PostgreSQL can reach
OPTIONS = Options(is_quick=True, directory=Path(tempfile.gettempdir()))
SIZES = postgres.Sizes(rounds=1, seconds=0.5, conversations=4, channels=4, viewers=8, before_s=0.3, after_s=3.0)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def database(server: Postgres) -> Postgres:
    """Return the server with a database of its own."""
    name = f"bench_{next(_numbers)}"
    server.sql(f"CREATE DATABASE {name}")
    own = copy.copy(server)
    own.url = f"{server.url.rpartition('/')[0]}/{name}"
    return own


def storm(database: Postgres) -> list[Row]:
    return list(attempt("storm", partial(postgres.storms, database, SIZES)))


# Figures ------------------------------------------------------------------------------------------------------------


@needs_postgres
def test_rows_of_a_killed_process_have_figures(database: Postgres) -> None:
    live, adopted = rows = storm(database)
    assert None not in verdicts(rows)
    assert figure(live) < figure(adopted)
    assert live.note == "4 and 4 viewers"  # half of them at each of the other processes
