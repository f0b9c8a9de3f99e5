"""The benchmarks of several processes on PostgreSQL, in small: a wrong byte or a failed measurement leaves no figure.

Layer: tests.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import bench.__main__ as main
from bench import postgres_nodes, postgres_soak, report
from bench.common import Options, Row, attempt
from bench.postgres_soak import _Sample
from bench.proc import Child
from tests.bench import small
from tests.bench.small import expect_other_texts
from tests.bench.test_failures import only
from tests.bench.test_rows import figure, verdicts
from tests.postgres import Postgres, needs_postgres, running_postgres
from tests.redis_server import needs_redis

# in a folder that the account of PostgreSQL can reach
OPTIONS = Options(is_quick=True, directory=Path(tempfile.gettempdir()))
SIZES = postgres_nodes.Sizes(
    rounds=1,
    listening=(1, 3),
    seconds=0.5,
    channels=(2, 20),
    channel_rounds=1,
    channel_s=1.0,
    begun_s=0.0,
    viewers=8,
    before_s=0.3,
    after_s=3.0,
)
LASTS_S = (0.2, 0.6)

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    """Return the server with a database of its own."""
    database = f"bench_{next(_numbers)}"
    server.sql(f"CREATE DATABASE {database}")
    own = copy.copy(server)
    own.url = f"{server.url.rpartition('/')[0]}/{database}"
    return own


def soak(seconds: float) -> list[Row]:
    return postgres_soak.soak(OPTIONS, seconds=seconds, live=4, lasts_s=LASTS_S)


def rows_of(name: str, postgres: Postgres) -> list[Row]:
    runs: dict[str, Callable[[], Any]] = {
        "storm": partial(postgres_nodes.storm, postgres, SIZES),
        "channels": partial(postgres_nodes.channels, postgres, SIZES),
        "listening": partial(postgres_nodes.listening, OPTIONS, SIZES),
        "soak": partial(soak, 3.0),
    }
    return list(attempt(name, runs[name]))


ALL = [
    pytest.param("storm", marks=needs_postgres),
    pytest.param("channels", marks=needs_postgres),
    pytest.param("listening", marks=[needs_postgres, needs_redis]),
    pytest.param("soak", marks=needs_postgres),
]
MOMENTS = {"storm": "capture", "channels": "capture", "listening": "capture", "soak": "visit"}
COMPARED = ALL[:3]  # the soak compares each text when its viewer leaves


# Figures ------------------------------------------------------------------------------------------------------------


@needs_postgres
def test_rows_of_a_killed_process_have_figures(postgres: Postgres) -> None:
    live, adopted = rows = rows_of("storm", postgres)
    assert None not in verdicts(rows)
    assert figure(live) < figure(adopted)
    assert "4 and 4 viewers" in live.raw[0]  # half of them at each of the other processes


@needs_postgres
def test_rows_of_many_channels_have_figures(postgres: Postgres) -> None:
    rows = rows_of("channels", postgres)
    assert [verdict is None for verdict in verdicts(rows)] == [False, True, True]
    assert figure(rows[0]) >= 1
    assert [line.partition(",")[0] for line in rows[0].raw] == ['{"channels": 2', '{"channels": 20']


@needs_postgres
@needs_redis
def test_rows_of_listening_nodes_have_figures(postgres: Postgres) -> None:
    rows = rows_of("listening", postgres)
    assert verdicts(rows) == [None, None, None]
    assert all(figure(row) for row in rows[:2])
    notify, bus = ([float(line.rpartition(" ")[2].rstrip("}")) for line in row.raw] for row in rows[:2])
    assert notify[0] == pytest.approx(notify[1], rel=0.5)  # each node gets all notices
    assert bus[1] < bus[0]  # on a bus, only those of the channels that it follows
    assert rows[2].measured.endswith("listening nodes")


@needs_postgres
def test_rows_of_a_soak_have_figures() -> None:
    rows = soak(9.0)
    assert verdicts(rows) == [None, None, None, None, True, None]
    assert all(figure(row) for row in rows[:3])
    assert "retention removed " in rows[4].note


def samples(*sizes: int) -> list[_Sample]:
    """Return samples of a soak of 300 s, at even times."""
    return [_Sample(n * 300 / len(sizes), size, size * 1000, size, size * 1000) for n, size in enumerate(sizes)]


def test_a_soak_is_flat_if_its_last_third_is_no_higher_than_the_middle_one() -> None:
    judged = postgres_soak._rows(samples(10, 50, 90, 100, 80, 100, 110, 90, 70), 300, 50, "")
    assert [row.is_met for row in judged] == [True, True, True, None]
    growing = postgres_soak._rows(samples(10, 50, 90, 100, 80, 100, 111, 90, 70), 300, 50, "")
    assert [row.is_met for row in growing] == [False, False, False, None]
    assert [row.measured for row in growing] == ["1.11 ×"] * 4


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
    names = ["postgres", "postgres_nodes", "postgres_soak"]
    code, page = run_all(names, tmp_path / "page.md", monkeypatch)
    assert code == 0
    for name in names:
        reason = "**not measured**: PostgreSQL: PostgreSQL is missing (Debian: apt-get install postgresql)"
        assert f"| {name} | {reason} |" in page
    printed = capsys.readouterr()
    assert "0 over budget, 3 not measured or void" in printed.out
    assert "the run will fail" not in printed.err


# Failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", ["bench.load", "bench.server"])
def test_dead_process_gives_no_figure(which: str, name: str, postgres: Postgres) -> None:
    def kill(children: list[Child]) -> None:
        [child for child in children if str(child) == which][-1].kill()

    with small.in_the_middle(MOMENTS[name], kill):
        row = only(rows_of(name, postgres))
    assert row.what == name


@needs_postgres
@needs_redis
def test_nodes_that_receive_no_notice_give_no_figure(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Child.__init__

    def mute(self: Child, *arguments: str, core: int) -> None:
        start(self, *arguments, *(("--mute",) if arguments[0] == "bench.server" else ()), core=core)

    monkeypatch.setattr(Child, "__init__", mute)
    monkeypatch.setattr(postgres_nodes, "_TIMEOUT_S", 1.5)
    assert "no notice arrived at a node within 1.5 s: [0]" in only(rows_of("listening", postgres)).note


@pytest.mark.parametrize("name", COMPARED)
def test_wrong_text_voids_the_run(name: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_other_texts(monkeypatch)
    row = only(rows_of(name, postgres))
    assert row.measured == "VOID"
    assert "producers were late by " in row.note


@needs_postgres
def test_viewer_with_a_new_start_at_another_process_voids_the_run(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Child.read

    def forget(self: Child, *, timeout_s: float) -> Any:
        found = read(self, timeout_s=timeout_s)
        return found | {"new_starts": 1} if "new_starts" in found else found

    monkeypatch.setattr(Child, "read", forget)
    row = only(rows_of("storm", postgres))
    assert (row.measured, row.note.partition("\n")[0]) == (
        "VOID",
        "Void: 1 viewers got a new start instead of a resume",
    )
