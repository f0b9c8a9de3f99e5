"""Processes of a benchmark: starting them on a core, talking to them, and what the kernel says they have used.

A child is one of our own modules that reads requests from its standard input, one JSON object a line, and writes one
answer a line; it ends when its input does, so that nothing is left behind when a run is broken off.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "CLIENT_CORE",
    "SERVER_CORE",
    "BenchError",
    "Child",
    "check_file_limit",
    "cpu_s",
    "disk_write_bytes",
    "raise_file_limit",
    "rss_bytes",
    "tree",
]

SERVER_CORE = 0
CLIENT_CORE = 1

_CPUCLOCK_SCHED = 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class BenchError(Exception):
    """A benchmark could not measure what it should, and why."""


class Child:
    """A module of ours running in a process of its own, pinned to `core`."""

    def __init__(self, *arguments: str, core: int) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
        )
        self._rest = b""
        self._is_behind = False  # an answer that was waited for in vain may still come, and is not that to the next
        self.pid = self._process.pid
        if core in os.sched_getaffinity(0):
            with contextlib.suppress(ProcessLookupError):  # it has ended already: the first read says so
                os.sched_setaffinity(self.pid, {core})

    def ask(self, do: str, /, *, answer_in_s: float = 45.0, **fields: Any) -> Any:
        """Send a request and return its answer. Raises `BenchError` when it fails, or does not come in time."""
        self.send(do, **fields)
        return self.read(timeout_s=answer_in_s)

    def send(self, do: str, /, **fields: Any) -> None:
        """Send a request whose answer is to be `read` later."""
        assert self._process.stdin is not None
        if self._is_behind:
            raise BenchError(f"{self} still owes an answer that did not come in time")
        try:
            request = json.dumps({"do": do} | fields).encode() + b"\n"
            while request:
                request = request[self._process.stdin.write(request) :]
        except BrokenPipeError:
            raise BenchError(f"{self} is gone:\n{self.log_end()}") from None

    def read(self, *, timeout_s: float) -> Any:
        """The next answer. Raises `BenchError` when it is an error, or does not come in time."""
        assert self._process.stdout is not None
        until_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until_s - time.monotonic()))
            if not ready:
                self._is_behind = True
                raise BenchError(f"{self} did not answer within {timeout_s} s:\n{self.log_end()}")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise BenchError(f"{self} is gone:\n{self.log_end()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self} failed: {answer['error']}\n{self.log_end()}".rstrip())
        return answer

    def close(self, *, timeout_s: float = 10.0) -> None:
        """End it, first by the end of its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process.stdout.close()
        self._log.close()

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # Who breaks a run off does not wait for each of us to finish what it was asked.
        self.close(timeout_s=10.0 if error is None or isinstance(error, Exception) else 1.0)

    def __str__(self) -> str:
        return str(self._process.args[2]) if isinstance(self._process.args, list) else "a child"

    def log_end(self) -> str:
        """The last it wrote to its standard error."""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


def cpu_s(pid: int) -> float:
    """User and system time of a process and all its living descendants."""
    return sum(_own_cpu_s(each) for each in tree(pid))


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and all its living descendants. Raises `BenchError` when it has ended."""
    pages = sum(int(_read(f"/proc/{each}/statm").split()[1]) for each in tree(pid))
    if not pages:  # what is left of one that nobody has waited for
        raise BenchError(f"process {pid} has ended")
    return pages * _PAGE_BYTES


def disk_write_bytes(pid: int) -> int:
    """Bytes that a process made the kernel send to the storage layer."""
    fields = dict(line.split(": ") for line in _read(f"/proc/{pid}/io").splitlines())
    return int(fields["write_bytes"])


def check_file_limit(count: int) -> None:
    """Raise `BenchError` when this process may not have `count` open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count and hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(f"needs {count} open files, and the limit is {hard}: see `ulimit -Hn`")


def raise_file_limit(count: int) -> None:
    """Allow this process and its children `count` open files. Raises `BenchError` when that may not be."""
    check_file_limit(count)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def tree(pid: int) -> Iterator[int]:
    """A process and all its living descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in _read(str(task / "children")).split():
                yield from tree(int(child))


def _own_cpu_s(pid: int) -> float:
    # What clock_getcpuclockid(3) makes of a process: all its threads, in nanoseconds, where proc(5) has but ticks.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def _read(path: str) -> str:
    return Path(path).read_text()
