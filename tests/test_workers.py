"""`tenuto serve --workers N`: which workers its parent starts, when it replaces one, and how all of them end.

Layer: tests.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount

from proof.chaos.processes import free_port
from tenuto import Hub
from tenuto.core.errors import LocalError
from tenuto.server import workers
from tenuto.server.serving import hubs_in
from tenuto.server.workers import BEAT_S, FAILED_S, HUNG_S, Supervisor
from tests.processes import PATIENCE_S, Process, request

SERVES = ["sh", "-c", "echo >&0; exec cat"]  # a worker that serves, and runs until it gets a signal
FAILS = ["false"]
ABSENT = ["/absent/bin/python"]
APP = """
import os
import time


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/blocks":
        time.sleep(100)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""
# The command with shorter times, for the parent and its workers.
COMMAND = """
from tenuto.cli import main as cli
from tenuto.server import serving
from tenuto.server import workers

workers.COMMAND = (__file__,)
workers.BEAT_S, workers.HUNG_S, workers.END_S, workers.FAILED_S = 0.1, 2.0, 1.0 - serving.DRAIN_S, 0.01
cli.main()
"""


@contextlib.contextmanager
def parent(folder: Path, *arguments: str, app: str = "app:app") -> Iterator[tuple[Process, int]]:
    """Run Python with `arguments`, which run the command, with two workers; gives the process and its port."""
    (folder / "app.py").write_text(APP)
    (folder / "command.py").write_text(COMMAND)
    port = free_port()
    options = ["serve", "--workers", "2", "--port", str(port), "--app", app]
    with Process([*arguments, *options], folder / "log", folder=folder) as process:
        yield process, port


def pid_at(process: Process, port: int) -> int:
    """Return the process id of a worker that serves, once one responds."""
    found: list[str] = []

    def has_answered() -> bool:
        found.append(request(port, "GET", "/")[1])
        return True

    process.until(has_answered)
    return int(found[-1])


def test_a_worker_that_hangs_is_replaced_and_does_not_delay_the_end(tmp_path: Path) -> None:
    with parent(tmp_path, str(tmp_path / "command.py")) as (process, port):
        pid_at(process, port)
        with socket.create_connection(("127.0.0.1", port)) as blocked:
            blocked.sendall(b"GET /blocks HTTP/1.1\r\nhost: localhost\r\n\r\n")
            process.until(lambda: "hangs, and is killed: its event loop has not run for 2 s" in process.output)
            process.until(lambda: "ended with -9; another one starts\n" in process.output)
        stopped = pid_at(process, port)
        os.kill(stopped, signal.SIGSTOP)
        process.until(lambda: f"worker {stopped} ended with -9; another one starts\n" in process.output)
        stopped = pid_at(process, port)
        os.kill(stopped, signal.SIGSTOP)
        assert process.end() == -signal.SIGTERM
        assert f"worker {stopped} did not end, and is killed" in process.output


def test_workers_import_as_the_installed_command_does_and_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "email.py").write_text("raise RuntimeError('this is not the library')")
    with parent(tmp_path, "-P", "-m", "tenuto") as (process, port):
        pid_at(process, port)
        process.running.kill()
        process.wait()
        with contextlib.suppress(ConnectionError):
            while True:
                request(port, "GET", "/")


@pytest.mark.parametrize("last", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_a_parent_that_has_not_read_all_bytes(last: signal.Signals) -> None:
    before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if last == signal.SIGKILL else ""
    program = f"""
import os, signal
from tenuto.server import workers
{before}
os.write(0, b".")
workers._end_with_parent({0.0 if last == signal.SIGKILL else PATIENCE_S})
"""
    ours, theirs = socket.socketpair()
    with theirs:
        worker = subprocess.Popen([sys.executable, "-c", program], stdin=theirs)
    with ours:
        assert select.select([ours], [], [], PATIENCE_S)[0]
    assert worker.wait(PATIENCE_S) == -last


def test_workers_on_a_file_behind_middleware_are_refused_before_the_server_listens(tmp_path: Path) -> None:
    (tmp_path / "wrapped.py").write_text(
        "from starlette.applications import Starlette\n"
        "from starlette.middleware.cors import CORSMiddleware\n"
        "from tenuto import Hub\n"
        "inner = Starlette()\n"
        "Hub('sqlite:///chat.db').install(inner, '/tenuto')\n"
        "app = CORSMiddleware(inner, allow_origins=['*'])\n"
    )
    with parent(tmp_path, "-m", "tenuto", app="wrapped:app") as (process, _):
        assert process.wait() == 1
        assert "--workers 2 needs a store that processes share" in process.output
        assert "serves http" not in process.output


def test_hubs_are_found_once_behind_middleware_and_a_wrapper_of_itself_ends_the_search() -> None:
    hub = Hub("memory://")
    inner = CORSMiddleware(Starlette(routes=[Mount("/a", hub), Mount("/b", hub)]), allow_origins=["*"])
    assert hubs_in(CORSMiddleware(inner)) == [hub]
    inner.app = inner
    assert hubs_in(inner) == []


class Scripted(Supervisor):
    """A parent whose time passes in its pauses only. Its workers fail after the first one has died."""

    def __init__(self, command: list[str], failing: list[str]) -> None:
        super().__init__(2, 0, command)
        self.failing = failing
        self.time_s = 1.0
        self.pauses: list[float] = []
        self.kept: subprocess.Popen[bytes] | None = None
        self.has_ended_one = False

    def now_s(self) -> float:
        return self.time_s

    def wait(self, timeout_s: float) -> None:
        if self._missing:
            self.pauses.append(self._start_s - self.time_s)
            self.time_s = self._start_s
            if len(self.pauses) == 7:
                self.command = SERVES
            return
        if self.command == SERVES:
            self._next_step()
        super().wait(PATIENCE_S)

    def _next_step(self) -> None:
        running = [worker.process for worker in self._workers]
        if self.kept is None:  # all workers have served for some time, then one dies
            for worker in self._workers:
                assert worker.is_serving or select.select([worker.link], [], [], PATIENCE_S)[0]
            self.time_s += FAILED_S
            self.command, self.kept = self.failing, running[-1]
            running[0].kill()
        elif not self.has_ended_one:  # a worker has ended and was taken from the system when the signal arrives
            self.has_ended_one = True
            assert self.kept.poll() is None
            assert len(running) == 2
            running[-1].kill()
            running[-1].wait()
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("failing", "reason"), [(FAILS, "ended with 1"), (ABSENT, "cannot be started: [Errno 2]")], ids=["ends", "absent"]
)
def test_failed_replacements_leave_the_other_workers_running_and_are_tried_again_with_growing_pauses(
    failing: list[str], reason: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HUNG_S", math.inf)
    handler = signal.getsignal(signal.SIGTERM)
    parent = Scripted(SERVES, failing)
    assert parent.run() == signal.SIGTERM
    assert parent.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert parent.kept is not None
    assert parent.kept.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    printed = capfd.readouterr().err
    assert reason in printed
    assert "another one starts in 16 s" in printed


@pytest.mark.parametrize("failing", [FAILS, ABSENT], ids=["ends", "absent"])
def test_parent_gives_up_if_its_first_workers_fail(failing: list[str]) -> None:
    parent = Scripted(failing, failing)
    with pytest.raises(LocalError, match="3 starts failed"):
        parent.run()
    assert parent.pauses == []


class Suspended(Supervisor):
    """A parent that is suspended for 1000 s once its worker serves; then the worker is silent."""

    def __init__(self) -> None:
        super().__init__(1, 0, SERVES)
        self.time_s = 1.0
        self.waits = 0

    def now_s(self) -> float:
        return self.time_s

    def wait(self, timeout_s: float) -> None:
        (worker,) = self._workers
        if self._is_ending:
            super().wait(timeout_s)
        elif worker.silent_s >= HUNG_S - BEAT_S:
            signal.raise_signal(signal.SIGTERM)
        else:
            assert worker.is_serving or select.select([worker.link], [], [], PATIENCE_S)[0]
            self.waits += 1
            self.time_s += 1000.0 if self.waits == 2 else BEAT_S


def test_a_suspended_parent_does_not_take_its_workers_for_silent() -> None:
    parent = Suspended()
    assert parent.run() == signal.SIGTERM
    assert parent.waits >= 8  # of BEAT_S each, but for the one of 1000 s
