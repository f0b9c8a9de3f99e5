"""Processes of a benchmark: starting them on a core, requests to them, and their resource usage by the kernel.

A child is one of our own modules. It reads requests from standard input, one JSON object per line, and writes one reply
per line. It ends when its input ends, so an interrupted run leaves no process behind. `reply` and `serve_requests` are
the child's end.
"""

import asyncio
import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

SERVER_CORE = 0
CLIENT_CORE = 1

_CPUCLOCK_SCHED = 2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class BenchError(Exception):
    """A benchmark could not take its measurement; the message has the reason."""


class Child:
    """One of our modules in a process of its own, pinned to `core`."""

    def __init__(self, *arguments: str, core: int, path: str = "") -> None:
        """Start it; with `path` it imports modules from that folder first."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH"))))},
        )
        self._rest = b""
        self._is_behind = False  # a reply that timed out may still arrive; it is not the reply to the next request
        self.pid = self._process.pid
        if core in os.sched_getaffinity(0):
            with contextlib.suppress(ProcessLookupError):  # the process has ended already, which the first read reports
                os.sched_setaffinity(self.pid, {core})

    def request(self, do: str, /, *, reply_in_s: float = 45.0, **fields: Any) -> Any:
        """Send a request and return its reply. Raises `BenchError` if the request fails or times out."""
        self.send(do, **fields)
        return self.read(timeout_s=reply_in_s)

    def send(self, do: str, /, **fields: Any) -> None:
        """Send a request; call `read` for its reply."""
        assert self._process.stdin is not None
        if self._is_behind:
            raise BenchError(f"{self} has not replied to an earlier request in time")
        try:
            request = json.dumps({"do": do} | fields).encode() + b"\n"
            while request:
                request = request[self._process.stdin.write(request) :]
        except BrokenPipeError:
            raise BenchError(f"{self} is gone:\n{self.log_end()}") from None

    def read(self, *, timeout_s: float) -> Any:
        """Return the next reply. Raises `BenchError` if it is an error or does not arrive in time."""
        assert self._process.stdout is not None
        until_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until_s - time.monotonic()))
            if not ready:
                self._is_behind = True
                raise BenchError(f"{self} did not reply within {timeout_s} s:\n{self.log_end()}")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise BenchError(f"{self} is gone:\n{self.log_end()}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        reply = json.loads(line)
        if "error" in reply:
            raise BenchError(f"{self} failed: {reply['error']}\n{self.log_end()}".rstrip())
        return reply

    def close(self, *, timeout_s: float = 10.0) -> None:
        """End the process, first by closing its input."""
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
        """Send SIGKILL, and wait for the end of the process."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # An interrupted run does not wait for the child to finish its request.
        self.close(timeout_s=10.0 if error is None or isinstance(error, Exception) else 1.0)

    def __str__(self) -> str:
        return str(self._process.args[2]) if isinstance(self._process.args, list) else "a child"

    def log_end(self) -> str:
        """Return the end of its standard error."""
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


Handlers = Mapping[str, Callable[..., Awaitable[dict[str, Any]]]]


def reply(**fields: Any) -> None:
    """Write one reply."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def serve_requests(handlers: Handlers) -> None:
    """Carry out requests from standard input, one after the other, until it ends."""
    reader = asyncio.StreamReader(limit=1 << 26)  # a recording is one line
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        try:
            fields = await handlers[request.pop("do")](**request)
        except Exception as error:  # the outer edge: the benchmark prints it and reports the row as failed
            reply(error=_error_text(error))
        else:
            reply(**fields)


def _error_text(error: Exception) -> str:
    """Return the error's text. Of a group, return the first: errors that occur together mostly have the same cause."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process and all its living descendants.

    Raises `BenchError` if the process has ended.
    """
    used_s = 0.0
    for each in tree(pid):
        try:
            used_s += _own_cpu_s(each)
        except OSError:  # it ended a moment ago, as a worker of PostgreSQL does
            if each == pid:
                raise BenchError(f"process {pid} has ended") from None
    return used_s


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process and all its living descendants. Raises `BenchError` if it has ended."""
    pages = sum(int(_read(f"/proc/{each}/statm").split()[1]) for each in tree(pid))
    if not pages:  # an ended process that its parent has not waited for
        raise BenchError(f"process {pid} has ended")
    return pages * _PAGE_BYTES


def disk_write_bytes(pid: int) -> int:
    """Return the bytes that a process made the kernel send to the storage layer."""
    fields = dict(line.split(": ") for line in _read(f"/proc/{pid}/io").splitlines())
    return int(fields["write_bytes"])


def raise_file_limit(count: int) -> None:
    """Allow this process and its children `count` open files. Raises `BenchError` if that is not permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count and hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(f"needs {count} open files, and the limit is {hard}: see `ulimit -Hn`")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all its living descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in _read(str(task / "children")).split():
                yield from tree(int(child))


def _own_cpu_s(pid: int) -> float:
    # The clock id of clock_getcpuclockid(3) for a process: all its threads, in nanoseconds; proc(5) counts only ticks.
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def _read(path: str) -> str:
    return Path(path).read_text()
