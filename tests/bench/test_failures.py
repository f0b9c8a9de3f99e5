"""A failure within a benchmark leaves no figure: its row has the error, and the observations at that time.

Layer: tests.

Each benchmark is run small (`tests/bench/small.py`) on the real processes, and the failures are real too: a process is
killed, a port is taken, a limit is set, a disk is full.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bench.__main__ as main
import bench.common
from bench import client, conversations, highest, soak, storm
from bench.common import Options, Row, Served, Void, attempt, check, load_client, served
from bench.lateness import Lateness
from bench.proc import BenchError, Child
from tests.bench import small
from tests.bench.small import expect_other_texts, request_longer_texts
from tests.bench.test_peers import needs_redis_client

ROOT = Path(__file__).parents[2]
# benchmarks whose load lasts
STEADY = ["client", "fanout", "conversations", "highest", "slow", "storm", "burst", "soak"]
LOADED = [*STEADY, "memory"]  # benchmarks with the load client
ALL = [*LOADED, "resume", "turns", "answer"]

# In an own user namespace, an unprivileged user can mount a disk; some systems forbid it.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
TRY_MOUNT = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
can_mount = shutil.which("unshare") is not None and not subprocess.run(TRY_MOUNT, capture_output=True).returncode
needs_mount = pytest.mark.skipif(not can_mount, reason="no file system can be mounted here")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setattr(client, "_VIEWERS", 2)
    return Options(is_quick=True, directory=tmp_path)


def only(rows: list[Row]) -> Row:
    """Return the only row, which has no figure."""
    (row,) = rows
    assert row.has_failed
    assert row.measured in ("not measured", "VOID")
    assert (row.raw, row.is_met) == ((), None)
    return row


# Processes that die -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADED)
def test_dead_load_client_gives_no_figure(name: str, options: Options) -> None:
    def kill(children: list[Child]) -> None:
        next(child for child in children if str(child) == "bench.load").kill()

    with small.in_the_middle(small.MOMENTS[name], kill):
        row = only(small.run(name, options))
    assert (row.what, row.measured) == (name, "not measured")
    assert "bench.load is gone" in row.note


@pytest.mark.parametrize("name", ALL)
def test_dead_server_gives_no_figure(name: str, options: Options) -> None:
    def kill(children: list[Child]) -> None:
        [child for child in children if str(child) != "bench.load"][-1].kill()

    with small.in_the_middle(small.MOMENTS[name], kill):
        row = only(small.run(name, options))
    assert row.what == name


# Missing resources --------------------------------------------------------------------------------------------------


def test_port_taken_at_restart_gives_no_figure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def served_beside_another(database: Path, *, port: int = 0) -> Iterator[Served]:
        with contextlib.ExitStack() as stack:
            if port:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            yield stack.enter_context(served(database, port=port))

    monkeypatch.setattr(storm, "served", served_beside_another)
    monkeypatch.setattr(storm, "_TIMEOUT_S", 2.0)  # the process that listens there never responds
    assert "Address already in use" in only(small.run("storm", options)).note


def test_load_client_with_too_few_file_descriptors_is_reported(tmp_path: Path) -> None:
    with served(tmp_path / "bench.db") as server, load_client() as load:
        resource.prlimit(load.pid, resource.RLIMIT_NOFILE, (20, 20))
        with pytest.raises(BenchError, match="Too many open files"):
            load.request("connect", kind="sse", channels=["bench:1"] * 30, timeout_s=5, **server.address)


def test_server_with_too_few_file_descriptors_is_reported(tmp_path: Path) -> None:
    with served(tmp_path / "bench.db") as server, load_client() as load:
        resource.prlimit(server.child.pid, resource.RLIMIT_NOFILE, (30, 30))
        with pytest.raises(BenchError, match=r"\d+ of 40 viewers not attached"):
            load.request("connect", kind="sse", channels=["bench:1"] * 40, timeout_s=0.5, **server.address)


# words of a full disk: of Tenuto, the kernel and Redis
SAYS_FULL = ("the disk is full", "No space left on device", "AOF write error")


@needs_mount
@pytest.mark.parametrize(
    "name",
    [
        "conversations",  # stands for all benchmarks whose producers are awaited
        "storm",
        "soak",
        "resume",
        "turns",
        pytest.param("XADD", marks=needs_redis_client),
    ],
)
def test_full_disk_gives_no_figure(name: str) -> None:
    ran = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.bench.small", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    verdict = ran.stdout.partition("\n")[0].removeprefix(f"{name}: ").partition(": ")[0]
    assert verdict in ("not measured", "VOID")
    assert ran.stdout.count(f"{name}: ") == 1
    assert any(printed in ran.stdout for printed in SAYS_FULL)


@needs_mount
def test_small_disk_is_reported_before_the_first_measurement(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=8m none {tmp_path} && exec {sys.executable} -m bench storm --dir {tmp_path}"
    ran = subprocess.run([*NAMESPACE, "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert f"storm: not measured: needs 50 MB in {tmp_path}, and 8 are free" in ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("0 over budget, 1 not measured or void")


# An overloaded load client ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEADY)
def test_overloaded_load_client_gives_no_figure(name: str, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.common, "CLIENT_LIMIT", 0.0)
    row = only(small.run(name, options))
    assert (row.what, row.measured) == (name, "not measured")
    assert "of its core, so the figure would be that of the load client" in row.note


def test_search_that_overloads_the_load_client_at_once_has_a_row_and_fails_the_run(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.common, "CLIENT_LIMIT", 0.0)
    monkeypatch.setattr(highest, "_FIRST", 2)
    monkeypatch.setattr(highest, "_QUICK_S", 0.2)
    monkeypatch.setattr(main, "_end_cleanly_on_signals", lambda: None)  # the signal handlers are pytest's here
    monkeypatch.setattr(sys, "argv", ["bench", "highest", "--quick", "--dir", str(options.directory)])
    assert main.main() == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("highest rate with p99 below 100 ms")]
    assert line.endswith("not measured")
    assert "of its core, so the figure would be that of the load client" in printed
    assert "in a try of 2 conversations; before it:\n      none" in printed
    assert "1 not measured or void" in printed


def test_search_that_fails_later_reports_the_earlier_tries(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = conversations.measure

    def measure_few(options: Options, count: int, **how: Any) -> conversations.Run:
        if count > 2:
            raise BenchError("the load client used 99% of its core, so the figure would be that of the load client")
        return measure(options, count, **how)

    monkeypatch.setattr(conversations, "measure", measure_few)
    monkeypatch.setattr(highest, "_STEP", 2)
    row = only(small.run("highest", options))
    _, which, *before = row.note.splitlines()
    assert which == "in a try of 4 conversations; before it:"
    assert len(before) == 2
    assert all(one.startswith("2 conversations: p50 ") for one in before)


# Observations at the time -------------------------------------------------------------------------------------------


def test_void_run_reports_lateness_and_load_of_its_clients() -> None:
    drained = {"ended": 3, "cpu_s": 1.234, "seconds": 4.0}
    with pytest.raises(Void, match="3 connections were ended") as raised:
        check({"violations": {}}, {"wrong": 0}, drained, lag_ms=[1.0, 20.04, 300.0])
    assert raised.value.__notes__ == [
        "producers were late by 20.0 ms (p99), 300.0 ms at worst; the load client used 1.23 s of its core in 4.00 s"
    ]


@pytest.mark.parametrize("name", ["fanout", "conversations", "slow", "storm", "burst"])
def test_void_row_reports_the_observations(name: str, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_other_texts(monkeypatch)
    row = only(small.run(name, options))
    assert row.measured == "VOID"
    assert "producers were late by " in row.note
    assert " ms at worst; the load client used " in row.note


def test_void_soak_reports_the_observations(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    request_longer_texts(monkeypatch)
    row = only(list(attempt("soak", lambda: soak.soak(options, seconds=3.0, live=2, lasts_s=(0.1, 0.2), old=2))))
    assert row.measured == "VOID"
    assert "the view has text that was not written" in row.note
    assert "\nlast observation: producers were late by " in row.note
    assert " ms at worst; the load client used " in row.note


def test_void_soak_reports_a_dead_server_too(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Child.request
    servers: list[Child] = []

    def see_a_loss(self: Child, do: str, /, **fields: Any) -> Any:
        if do == "soak":
            servers.append(self)
        if do != "visit":
            return request(self, do, **fields)
        servers[0].kill()
        return {"wrong": 1, "example": "a lost token", "left": 1}

    monkeypatch.setattr(Child, "request", see_a_loss)
    monkeypatch.setattr(soak.Watch, "request", lambda _: None)  # otherwise it may have replied before it dies
    row = only(small.run("soak", options))
    assert row.note.startswith("Void: 1 visits failed, e.g. a lost token\nand bench.server is gone")


def test_lateness_is_that_of_all_tokens() -> None:
    lateness = Lateness()
    for late_ms in range(1, 201):
        lateness.made("somebody", late_ms / 1000)
    assert lateness.percentiles_ms() == [101, 199, 200]


def test_producer_without_tokens_is_not_late() -> None:
    assert Lateness().percentiles_ms() == [0, 0, 0]


def test_delayed_producer_is_late_until_all_tokens_are_stored() -> None:
    lateness = Lateness()
    lateness.made("somebody", 0.001, time.monotonic() + 60)
    lateness.made("somebody else", 0.001, time.monotonic() - 5)
    assert lateness.percentiles_ms()[2] >= 5000
    lateness.ended("somebody else")
    assert lateness.percentiles_ms() == [1, 1, 1]
