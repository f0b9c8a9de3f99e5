"""A failure within a benchmark leaves no figure: its row has the error, and the observations at that time.

Layer: tests.

Each benchmark is run small (`tests/bench/small.py`) on the real processes, and the failures are real too: a process is
killed, a port is taken, a limit is set, a disk is full.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import bench.common
from bench import soak
from bench.common import Options, Row, Void, check
from bench.proc import Child
from bench.tokens import Lateness
from tests.bench import small
from tests.bench.test_peers import needs_redis_client

ROOT = Path(__file__).parents[2]

# In an own user namespace, an unprivileged user can mount a disk; some systems forbid it.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
TRY_MOUNT = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
can_mount = shutil.which("unshare") is not None and not subprocess.run(TRY_MOUNT, capture_output=True).returncode
needs_mount = pytest.mark.skipif(not can_mount, reason="no file system can be mounted here")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(is_quick=True, directory=tmp_path)


def only(rows: list[Row]) -> Row:
    """Return the only row, which has no figure."""
    (row,) = rows
    assert row.has_failed
    assert row.measured in ("not measured", "VOID")
    assert row.is_met is None
    return row


# Processes that die -------------------------------------------------------------------------------------------------


def test_dead_load_client_gives_no_figure(options: Options) -> None:
    def kill(children: list[Child]) -> None:
        next(child for child in children if str(child) == "bench.load").kill()

    with small.in_the_middle(small.MOMENTS["fanout"], kill):
        row = only(small.run("fanout", options))
    assert (row.what, row.measured) == ("fanout", "not measured")
    assert "bench.load is gone" in row.note


@pytest.mark.parametrize("name", ["fanout", "soak", "resume"])  # steady load, a load of its own, no load client
def test_dead_server_gives_no_figure(name: str, options: Options) -> None:
    def kill(children: list[Child]) -> None:
        [child for child in children if str(child) != "bench.load"][-1].kill()

    with small.in_the_middle(small.MOMENTS[name], kill):
        row = only(small.run(name, options))
    assert row.what == name


# Missing resources --------------------------------------------------------------------------------------------------


# words of a full disk: of Tenuto, the kernel and Redis
SAYS_FULL = ("the disk is full", "No space left on device", "AOF write error")


@needs_mount
@pytest.mark.parametrize("name", ["conversations", "turns", pytest.param("XADD", marks=needs_redis_client)])
def test_full_disk_gives_no_figure(name: str) -> None:
    ran = subprocess.run(
        [*NAMESPACE, sys.executable, "-m", "tests.bench.small", name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    verdict = ran.stdout.partition("\n")[0].removeprefix(f"{name}: ").partition(": ")[0]
    assert verdict in ("not measured", "VOID")
    assert ran.stdout.count(f"{name}: ") == 1
    assert any(printed in ran.stdout for printed in SAYS_FULL)


# An overloaded load client ------------------------------------------------------------------------------------------


def test_overloaded_load_client_gives_no_figure(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.common, "CLIENT_LIMIT", 0.0)
    row = only(small.run("fanout", options))
    assert (row.what, row.measured) == ("fanout", "not measured")
    assert "of its core, so the figure would be that of the load client" in row.note


# Observations at the time -------------------------------------------------------------------------------------------


def test_void_run_reports_lateness_and_load_of_its_clients() -> None:
    drained = {"ended": 3, "cpu_s": 1.234, "seconds": 4.0}
    with pytest.raises(Void, match="3 connections were ended") as raised:
        check({"violations": {}}, {"wrong": 0}, drained, lag_ms=[1.0, 20.04, 300.0])
    assert raised.value.__notes__ == [
        "producers were late by 20.0 ms (p99), 300.0 ms at worst; the load client used 1.23 s of its core in 4.00 s"
    ]


def test_void_soak_reports_a_dead_server_too(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[Child] = []
    send = Child.send

    def note(self: Child, do: str, /, **fields: Any) -> None:
        servers.append(self)
        send(self, do, **fields)

    async def see_a_loss(*_: object) -> int:
        servers[0].kill()
        raise Void("a lost token")

    monkeypatch.setattr(Child, "send", note)
    monkeypatch.setattr(soak, "_visit", see_a_loss)
    row = only(small.run("soak", options))
    assert row.note.startswith("Void: a lost token\nand bench.server is gone")


def test_delayed_producer_is_late_until_all_tokens_are_stored() -> None:
    lateness = Lateness()
    lateness.made("somebody", 0.001, time.monotonic() + 60)
    lateness.made("somebody else", 0.001, time.monotonic() - 5)
    assert lateness.percentiles_ms()[2] >= 5000
    lateness.ended("somebody else")
    assert lateness.percentiles_ms() == [1, 1, 1]
