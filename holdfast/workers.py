"""The worker processes of `holdfast serve --workers N`, on a store that processes share.

Layer: cli.

The parent holds the listening socket and starts each worker as a process of its own, with the same command line. A
worker that ends is replaced. If its replacements fail, for example because the database is away, the parent pauses
before each further start, and the other workers go on. A signal ends the parent and all workers; each drains. Workers
also end if the parent is killed, because they wait for the end of its pipe.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from holdfast.core.errors import LocalError, shown_url
from holdfast.hub import HubCore
from holdfast.serving import adopt

SOCKET = "HOLDFAST_WORKER_SOCKET"  # variable that gives a worker the file descriptor of the listening socket
FAILED_S = 5.0  # a worker that ends sooner than this has failed to start
MOST_FAILED_STARTS = 3  # limit of failed starts in a row, as long as no worker has started
FIRST_PAUSE_S = 1.0  # pause before the start that follows a failed one; it doubles with each failure
LAST_PAUSE_S = 30.0


def inherited_socket() -> socket.socket | None:
    """Return the listening socket if this process is a worker; it then ends with its parent."""
    descriptor = os.environ.pop(SOCKET, None)
    if descriptor is None:
        return None
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return adopt(int(descriptor))


def check_shared(hubs: Iterable[HubCore], count: int) -> None:
    """Check that `count` processes can share the stores of `hubs`. Raises LocalError."""
    for hub in hubs:
        if hub.store.is_exclusive:
            where = getattr(hub.store, "path", None)
            named = f"sqlite:///{where}" if where is not None else f"{hub.store.name}://"
            raise LocalError(
                f"--workers {count} needs a store that processes share, and {shown_url(named)} serves one process: "
                'change it to --store postgresql://role@host/database, in an app to Hub("postgresql://…"), or leave '
                "--workers out"
            )


def run_workers(count: int, listening: socket.socket) -> int:
    """Keep `count` workers running on `listening` until a signal; return that signal. Raises LocalError."""
    return Supervisor(count, listening.fileno(), [sys.executable, "-m", "holdfast", *sys.argv[1:]]).run()


class Supervisor:
    """The workers of one parent. Signal handlers only leave a mark; `run` does all work, so none happens twice."""

    def __init__(self, count: int, descriptor: int, command: list[str]) -> None:
        """Run `command` in each worker, with the file descriptor of the listening socket."""
        self.command = command
        self._count = count
        self._descriptor = descriptor
        self._workers: list[tuple[subprocess.Popen[bytes], float]] = []  # those that run, with their start times
        self._missing = count  # number of workers to start
        self._start_s = 0.0  # when they start
        self._pause_s = 0.0  # last pause before a start
        self._failed = 0  # failed starts in a row
        self._has_served = False  # a worker of this run has lived for FAILED_S
        self._signal = 0
        self._is_ending = False  # no worker is started any more
        self._is_end_due = False  # the workers should get a signal

    def run(self) -> int:
        """Keep the workers running. See `run_workers`."""
        with self._wakes():
            while self._workers or self._missing:
                self._take_ended()
                if self._is_end_due:
                    self._is_end_due, self._is_ending, self._missing = False, True, 0
                    for worker, _ in self._workers:
                        worker.send_signal(signal.SIGTERM)
                due_s = self._start_s - self.now_s()
                if self._missing and due_s <= 0.0:
                    self._start()
                elif self._missing:
                    self.wait(due_s)
                elif self._workers:
                    self.wait(None)
        if not self._signal:
            raise LocalError(
                "workers cannot start: three of them ended within seconds; correct the error that they printed above"
            )
        return self._signal

    def now_s(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def wait(self, timeout_s: float | None) -> None:
        """Wait for a signal or the end of a worker, for `timeout_s` at most."""
        if select.select([self._woken], [], [], timeout_s)[0]:
            os.read(self._woken, 4096)

    @contextmanager
    def _wakes(self) -> Iterator[None]:
        """Let the signals that `run` needs end a `wait`."""
        self._woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        earlier_fd = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        handlers = {signal.SIGCHLD: _ignore, signal.SIGINT: self._end, signal.SIGTERM: self._end}
        earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier_fd)
            os.close(self._woken)
            os.close(wakes)

    def _take_ended(self) -> None:
        """Take the workers that have ended off the list, and decide when others replace them."""
        now_s = self.now_s()
        self._has_served = self._has_served or any(now_s - started_s >= FAILED_S for _, started_s in self._workers)
        for worker, started_s in list(self._workers):
            if worker.poll() is None:
                continue
            self._workers.remove((worker, started_s))
            if worker.stdin is not None:
                worker.stdin.close()
            if self._is_ending:
                continue
            self._missing += 1
            self._failed = self._failed + 1 if now_s - started_s < FAILED_S else 0
            if not self._failed:
                self._start_s, self._pause_s = now_s, 0.0
            elif not self._has_served:
                if self._failed >= MOST_FAILED_STARTS:
                    self._is_end_due = True
            elif self._start_s <= now_s:  # otherwise a pause runs
                self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LAST_PAUSE_S)
                self._start_s = now_s + self._pause_s
            when = f" in {self._start_s - now_s:.0f} s" if self._start_s > now_s else ""
            if not self._is_end_due:
                ended = f"worker {worker.pid} ended with {worker.returncode}"
                print(f"{ended}; another one starts{when}", file=sys.stderr, flush=True)

    def _start(self) -> None:
        worker = subprocess.Popen(
            self.command,
            env={**os.environ, SOCKET: str(self._descriptor)},
            pass_fds=[self._descriptor],
            stdin=subprocess.PIPE,
            start_new_session=True,  # the Ctrl-C of a terminal goes to the parent alone
        )
        self._workers.append((worker, self.now_s()))
        self._missing -= 1

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number
        self._is_end_due = True


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal ends a wait."""


def _end_with_parent() -> None:
    """Wait for the end of the parent's pipe, then end this process as a signal does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
