"""The benchmarks themselves: each runs, small, on real processes; a wrong byte or a failed measurement is reported.

Layer: tests.

These tests check no figure about speed: the runs are far too short for that.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bench import ai_sdk, burst, client, conversations, fanout, memory, photos, postgres, report, slow, soak, storm
from bench.common import Options, Row, Void, attempt, check, load_client, served
from bench.proc import tree
from tests.postgres import needs_postgres, running_postgres
from tests.redis_server import needs_redis

ROOT = Path(__file__).parents[2]
KINDS = ("sse", "websocket")
FRAMES = 12

Batches = list[tuple[float, str]]


@pytest.fixture
def options() -> Iterator[Options]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # on a disk: a row has the bytes that reach one
        yield Options(is_quick=True, directory=Path(place))


def verdicts(rows: list[Row]) -> list[bool | None]:
    assert [row.note for row in rows if row.has_failed] == []
    return [row.is_met for row in rows]


def figure(row: Row) -> float:
    """Return the median of a row."""
    return float(row.measured.split()[0].replace(",", ""))


# A wrong run is void ------------------------------------------------------------------------------------------------


def tampered(kind: str, tamper: Callable[[Batches], None]) -> None:
    """Have a server send a tampered answer to three viewers, and check their views."""
    recorded, sent = client.recording(kind, FRAMES, frames_per_s=200)
    tamper(recorded["channels"][client.CHANNEL]["batches"])
    client.replay(recorded, sent, viewers=3)


@pytest.mark.parametrize("kind", KINDS)
def test_correct_text_is_not_void(kind: str) -> None:
    tampered(kind, lambda batches: None)


def lose(batches: Batches) -> None:
    del batches[5]


def double(batches: Batches) -> None:
    batches.insert(5, batches[5])


def double_at_the_end(batches: Batches) -> None:
    """Add the last text again as a new append at the end, which the wire's rules allow."""
    at_s, last = batches[-1]
    again = last.replace(f'"serial": {FRAMES}', f'"serial": {FRAMES + 1}').replace(f"e:{FRAMES}", f"e:{FRAMES + 1}")
    batches.append((at_s, again.replace(f'"at": {10 * (FRAMES - 1)}', f'"at": {10 * FRAMES}')))


def change(batches: Batches) -> None:
    at_s, batch = batches[5]
    batches[5] = (at_s, batch.replace("0123456789", "0123456798"))


def swap(batches: Batches) -> None:
    (at_s, first), (later_s, second) = batches[5:7]
    batches[5:7] = [(at_s, second), (later_s, first)]


@pytest.mark.parametrize("tamper", [lose, list.pop, double, double_at_the_end, change, swap])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_doubled_or_wrong_token_voids_the_run(kind: str, tamper: Callable[[Batches], None]) -> None:
    with pytest.raises(Void):
        tampered(kind, tamper)


# Failed measurements ------------------------------------------------------------------------------------------------


def test_a_server_that_dies_under_its_viewers_voids_the_run(tmp_path: Path) -> None:
    with served(tmp_path / "bench.db") as server, load_client() as load:
        load.request("connect", kind="sse", channels=["bench:1"] * 3, timeout_s=40, **server.address)
        load.request("capture")
        os.kill(server.child.pid, signal.SIGKILL)
        drained = load.request("drain", timeout_s=40)
        with pytest.raises(Void, match="3 connections were ended by the server"):
            check(load.request("decode"), {"wrong": 0}, drained)


# No process or file is left behind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "processes", "end"), [("soak", 2, signal.SIGINT), ("beside", 4, signal.SIGTERM)])
def test_interrupted_run_leaves_no_processes_or_files(
    name: str, processes: int, end: signal.Signals, tmp_path: Path
) -> None:
    folders = [tmp_path / "databases", tmp_path / "configuration"]
    for folder in folders:
        folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "resume", name, "--quick", "--dir", str(folders[0])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(folders[1])},
        text=True,
    ) as run:
        assert run.stderr is not None
        while not run.stderr.readline().startswith("resume: "):  # the requirements are checked, and it measures
            assert run.poll() is None
        handles: dict[int, int] = {}
        while len(handles) < processes:
            for pid in tree(run.pid):
                if pid not in handles:
                    with contextlib.suppress(ProcessLookupError):  # it has already ended
                        handles[pid] = os.pidfd_open(pid)
            assert run.poll() is None
        run.send_signal(end)
        output, _ = run.communicate(timeout=120)
    assert run.returncode == 130
    assert "resume in mid-stream" in output  # the finished row is kept
    assert output.endswith("\ninterrupted\n")
    for handle in handles.values():
        assert select.select([handle], [], [], 60)[0], "a process is still there"
        os.close(handle)
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_rows_before_a_failure_are_kept() -> None:
    def run() -> Iterator[Row]:
        yield Row("first", "1 ms")
        raise Void("a token was lost")

    first, second = list(attempt("lossy", run))
    assert (first.measured, first.has_failed) == ("1 ms", False)
    assert (second.what, second.measured, second.note, second.has_failed) == (
        "lossy",
        "VOID",
        "Void: a token was lost",
        True,
    )


# Every row, small ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("under", ["serve", "granian"])
def test_fanout_rows_have_figures(kind: str, under: str, options: Options) -> None:
    shape = fanout.Shape(2, 3, 50, {("sse", "serve"): 1e6}, p50_limit_ms=1e6)
    rows = list(fanout.matrix(options, shape, kind, rounds=1, seconds=0.3, unders=(under,)))
    has_budget = (kind, under) == ("sse", "serve")
    assert verdicts(rows) == ([True, True] if has_budget else [None])


def test_conversation_rows_have_figures(options: Options) -> None:
    runs = [conversations.measure(options, 10, seconds=0.4) for _ in range(2)]
    for run in runs:
        assert run.tokens == 10 * 20 * 2
        assert 0 < run.latency_ms[0] <= run.latency_ms[1] <= run.latency_ms[2]
    *_, delivered, _, written = conversations.rows(runs)
    assert delivered.measured == "800 tokens"
    assert written.measured.endswith("2 rounds)")


def test_burst_rows_have_figures(options: Options) -> None:
    rows = burst.bursts(options, running=4, questions=6, rounds=1, before_s=0.5, after_s=4.0)
    assert [row.has_failed for row in rows] == [False, False, False]
    assert rows[0].is_met is not None
    assert figure(rows[1]) > 0
    assert figure(rows[2]) > 0
    assert rows[2].note == "6 new answers compared, each stored once"


def test_row_of_the_ai_sdk_has_a_figure(options: Options) -> None:
    row = ai_sdk.viewers(options, channels=2, each=3, rounds=1, seconds=0.2)
    assert row.is_met is not None
    assert figure(row) > 0


def test_memory_rows_have_figures(options: Options) -> None:
    rows = memory.memory(options, 10, 40, rounds=2, has_own_channels=True)
    assert verdicts(rows) == [None, None]


def test_photo_rows_have_figures(options: Options) -> None:
    assert len(verdicts(photos.run(options))) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_storm_rows_have_figures(kind: str, options: Options) -> None:
    rows = storm.storm(options, kind, viewers=20, rounds=1, before_s=0.3, after_s=5.0)
    first, second = verdicts(rows)
    assert (first is None, second) == (False, None)  # a busy machine may start a server late


@pytest.mark.parametrize("kind", KINDS)
def test_slow_reader_rows_have_figures(kind: str, options: Options) -> None:
    rows = list(slow.slow(options, kind, readers=5, answer=20_000, rounds=2, slow_ones=(2,)))
    assert verdicts(rows) == [None, None, True]


@needs_postgres
@needs_redis
def test_postgres_rows_have_figures() -> None:
    # in a folder that the account of PostgreSQL can reach
    options = Options(is_quick=True, directory=Path(tempfile.gettempdir()))
    sizes = postgres.Sizes(rounds=1, seconds=0.3, conversations=4, channels=4)
    with running_postgres(options.directory) as server:
        rows = list(postgres.delays(server, options, sizes))
        rows += attempt("two processes", partial(postgres.costs, server, sizes))
    assert [row.what for row in rows if row.is_met is None] == [rows[-2].what]
    assert len(rows) == 9
    assert all(figure(row) for row in rows)


@needs_postgres
def test_rows_of_a_killed_process_have_figures() -> None:
    sizes = postgres.Sizes(rounds=1, seconds=0.5, conversations=4, channels=4, viewers=8, before_s=0.3, after_s=3.0)
    with running_postgres() as server:
        live, adopted = rows = list(attempt("storm", partial(postgres.storms, server, sizes)))
    assert None not in verdicts(rows)
    assert figure(live) < figure(adopted)
    assert live.note == "4 and 4 viewers"  # half of them at each of the other processes


def test_soak_rows_have_figures(options: Options) -> None:
    rows = soak.soak(options, seconds=12.0, live=5, lasts_s=(0.2, 1.0), idle_s=0.5, old=20)
    assert verdicts(rows) == [None, True, True, None, None]


# The page -----------------------------------------------------------------------------------------------------------


def test_figures_are_written_between_the_marks_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{report.BEGIN}\nan older run\n{report.END}\nafter\n")
    command = [sys.executable, "-m", "bench", "resume", "--quick", "--dir", str(tmp_path), "--markdown", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    text = path.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n`python -m bench resume --quick`:\n")
    assert text.endswith(f" |\n{report.END}\nafter\n")
    assert "an older run" not in text
    assert str(tmp_path) not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| resume in mid-stream |")]
    assert row.endswith(", met |")
