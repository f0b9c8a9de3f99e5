"""The worker processes of `tenuto serve --workers N`, on a store that processes share.

Layer: server.

The parent holds the listening socket and starts each worker as a process of its own, with the same command line. A
worker that ends is replaced. If its replacements fail, for example because the database is away, the parent pauses
before each further start, and the other workers go on. A signal ends the parent and all workers; each drains.

A socket pair connects the parent with the standard input of each worker. The event loop of a worker sends a byte every
`BEAT_S` from the moment it serves. The parent kills a worker that becomes silent, because no other component would:
its sockets stay open. Workers also end if the parent is killed, because they wait for the end of the socket pair.
"""

from __future__ import annotations

import asyncio
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from tenuto.core.errors import LocalError, shown_url
from tenuto.hub import HubCore
from tenuto.server.serving import FORCE_S, adopt

SOCKET = "TENUTO_WORKER_SOCKET"  # variable that gives a worker the file descriptor of the listening socket
COMMAND = ("-P", "-m", "tenuto")  # as the installed command: modules in the current folder replace no others
BEAT_S = 3.0  # time between two bytes of a worker that serves
HUNG_S = 30.0  # a worker that served, and was silent for so long, is replaced
END_S = FORCE_S + 2.0  # time beyond `drain_s` after which the parent kills the workers that a signal did not end
FAILED_S = 5.0  # a worker that ends sooner than this, or before it serves, has failed to start
MOST_FAILED_STARTS = 3  # limit of failed starts in a row, as long as no worker has served
FIRST_PAUSE_S = 1.0  # pause before the start that follows a failed one; it doubles with each failure
LAST_PAUSE_S = 30.0


def inherited_socket(drain_s: float) -> socket.socket | None:
    """Return the listening socket if this process is a worker; it then ends with its parent, as after a signal."""
    descriptor = os.environ.pop(SOCKET, None)
    if descriptor is None:
        return None
    threading.Thread(target=_end_with_parent, args=[drain_s + END_S], daemon=True).start()
    return adopt(int(descriptor))


def beat(link: socket.socket | None = None) -> None:
    """Show the parent that this worker serves and that its event loop runs, now and every `BEAT_S`."""
    link = link or socket.socket(fileno=os.dup(0))  # the standard input
    with suppress(OSError):  # the parent is suspended and the buffer full, or it has ended
        link.send(b".", socket.MSG_DONTWAIT)
    asyncio.get_running_loop().call_later(BEAT_S, beat, link)


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


def run_workers(count: int, listening: socket.socket, drain_s: float) -> int:
    """Keep `count` workers running on `listening` until a signal; return that signal. Raises LocalError.

    After the signal a worker may take `drain_s` plus `END_S` seconds.
    """
    command = [sys.executable, *COMMAND, *sys.argv[1:]]
    return Supervisor(count, listening.fileno(), command, end_s=drain_s + END_S).run()


@dataclass(eq=False)
class _Worker:
    """A worker that runs, and its signs of life."""

    process: subprocess.Popen[bytes]
    link: socket.socket  # the parent's end of the socket pair
    started_s: float
    is_serving: bool = False
    silent_s: float = 0.0  # since its last byte; time in which the parent itself was suspended does not count


class Supervisor:
    """The workers of one parent. Signal handlers only leave a mark; `run` does all work, so none happens twice."""

    def __init__(self, count: int, descriptor: int, command: list[str], *, end_s: float = END_S) -> None:
        """Run `command` in each worker, with the file descriptor of the listening socket.

        Workers that run `end_s` seconds after the signal that ends them are killed.
        """
        self.command = command
        self._descriptor = descriptor
        self._end_s = end_s
        self._workers: list[_Worker] = []  # those that run
        self._looked_s = 0.0  # when `_look_after` ran last
        self._kill_s = math.inf  # when workers that still run are killed
        self._missing = count  # number of workers to start
        self._start_s = 0.0  # when they start
        self._pause_s = 0.0  # last pause before a start
        self._failed = 0  # failed starts in a row
        self._has_served = False  # a worker of this run has served
        self._signal = 0
        self._is_ending = False  # no worker is started any more
        self._is_end_due = False  # the workers should get a signal

    def run(self) -> int:
        """Keep the workers running. See `run_workers`."""
        with self._wakes():
            while self._workers or self._missing:
                self._look_after()
                now_s = self.now_s()
                if self._is_end_due:
                    self._is_end_due, self._missing = False, 0
                    if not self._is_ending:  # a second signal does not extend the time
                        self._is_ending, self._kill_s = True, now_s + self._end_s
                    for worker in self._workers:
                        worker.process.send_signal(signal.SIGTERM)
                if now_s >= self._kill_s:
                    self._kill_s = math.inf
                    for worker in self._workers:
                        print(f"worker {worker.process.pid} did not end, and is killed", file=sys.stderr, flush=True)
                        worker.process.kill()
                if self._missing and self._start_s <= now_s:
                    self._start()
                elif self._workers or self._missing:
                    due_s = self._start_s if self._missing else self._kill_s
                    self.wait(min(due_s - now_s, BEAT_S))
        if not self._signal:
            raise LocalError(
                f"workers cannot start: {MOST_FAILED_STARTS} starts failed; correct the error that is printed above"
            )
        return self._signal

    def now_s(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()

    def wait(self, timeout_s: float) -> None:
        """Wait for a signal or the end of a worker, for `timeout_s` at most."""
        if select.select([self._woken], [], [], timeout_s)[0]:
            os.read(self._woken, 4096)

    @contextmanager
    def _wakes(self) -> Iterator[None]:
        """Let the signals that `run` needs end a `wait`."""
        self._woken, wakes = os.pipe()
        os.set_blocking(wakes, False)
        earlier_fd = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        # an empty handler: a signal without a handler would end no wait
        handlers = {signal.SIGCHLD: lambda number, frame: None, signal.SIGINT: self._end, signal.SIGTERM: self._end}
        earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier_fd)
            os.close(self._woken)
            os.close(wakes)

    def _look_after(self) -> None:
        """Take the workers that have ended off the list, and kill those that hang."""
        now_s = self.now_s()
        passed_s, self._looked_s = min(now_s - self._looked_s, 2 * BEAT_S), now_s  # the parent may have stood still
        for worker in list(self._workers):
            code = worker.process.poll()  # before the link is read, which then has all that an ended worker sent
            worker.silent_s += passed_s
            with suppress(OSError):  # nothing to read
                if worker.link.recv(4096, socket.MSG_DONTWAIT):
                    worker.is_serving, worker.silent_s = True, 0.0
                    self._has_served = True
            if code is None:
                if worker.is_serving and worker.silent_s >= HUNG_S and not self._is_ending:
                    worker.silent_s = 0.0  # kill it once
                    print(
                        f"worker {worker.process.pid} hangs, and is killed: its event loop has not run for "
                        f"{HUNG_S:.0f} s. Probably a call blocks it: run that call with asyncio.to_thread",
                        file=sys.stderr,
                        flush=True,
                    )
                    worker.process.kill()
                continue
            self._workers.remove(worker)
            worker.link.close()
            if not self._is_ending:
                has_failed = not worker.is_serving or now_s - worker.started_s < FAILED_S
                self._replace(f"worker {worker.process.pid} ended with {code}", has_failed=has_failed)

    def _replace(self, reason: str, *, has_failed: bool) -> None:
        """Decide when another worker starts, and print it with the reason."""
        now_s = self.now_s()
        self._missing += 1
        self._failed = self._failed + 1 if has_failed else 0
        if not self._failed:
            self._start_s, self._pause_s = now_s, 0.0
        elif not self._has_served:
            if self._failed >= MOST_FAILED_STARTS:
                self._is_end_due = True
        elif self._start_s <= now_s:  # otherwise a pause runs
            self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LAST_PAUSE_S)
            self._start_s = now_s + self._pause_s
        when = f" in {self._start_s - now_s:.0f} s" if self._start_s > now_s else ""
        next_step = "" if self._is_end_due else f"; another one starts{when}"
        print(f"{reason}{next_step}", file=sys.stderr, flush=True)

    def _start(self) -> None:
        """Start a worker, whose standard input is the other end of its link."""
        self._missing -= 1
        try:
            link, theirs = socket.socketpair()
            with theirs, ExitStack() as stack:
                stack.enter_context(link)
                worker = subprocess.Popen(
                    self.command,
                    env={**os.environ, SOCKET: str(self._descriptor)},
                    pass_fds=[self._descriptor],
                    stdin=theirs.fileno(),
                    start_new_session=True,  # the Ctrl-C of a terminal goes to the parent alone
                )
                stack.pop_all()  # the link stays open
        except OSError as error:  # for example, Python was moved, or the system has no more processes
            self._replace(f"worker cannot be started: {error}", has_failed=True)
        else:
            self._workers.append(_Worker(worker, link, self.now_s()))

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._signal = self._signal or number
        self._is_end_due = True


def _end_with_parent(end_s: float) -> None:
    """Wait for the end of the parent's socket, then end this process as a signal does, `end_s` later by force."""
    with suppress(OSError):  # the system reports a reset if the parent had not read all bytes
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(end_s)
    os.kill(os.getpid(), signal.SIGKILL)
