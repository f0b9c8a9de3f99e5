"""The benchmarks of several processes on PostgreSQL, in small: a wrong byte or a failed measurement leaves no figure.

Layer: tests.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import bench.__main__ as main
from bench import postgres, report
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


# Programs that are not installed ------------------------------------------------------------------------------------


def run_all(names: list[str], page: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run benchmarks. Return the exit code, and the page that they have written."""
    page.write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.setattr(main, "_end_cleanly_on_signals", lambda: None)  # the signal handlers are pytest's here
    monkeypatch.setattr(
        sys, "argv", ["bench", *names, "--quick", "--dir", str(OPTIONS.directory), "--markdown", str(page)]
    )
    return main.main(), page.read_text()


def test_a_run_without_postgres_has_the_reason_in_its_rows_and_does_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.postgres.PROGRAMS", tmp_path)
    code, page = run_all(["postgres"], tmp_path / "page.md", monkeypatch)
    assert code == 0
    reason = "**not measured**: NotInstalled: PostgreSQL is missing (Debian: apt-get install postgresql)"
    assert f"| postgres | {reason} |" in page
    assert "0 over budget, 1 not measured or void" in capsys.readouterr().out
