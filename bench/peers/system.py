"""The interface of every system under test, ours and the peers': the measurements use only this."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.proc import CLIENT_CORE, SERVER_CORE, BenchError, Child, cpu_s

__all__ = ["Published", "System", "config_folder", "foreign", "on_core", "program", "publisher"]

_START_S = 20.0


class System:
    """A running system. `pids` are the roots of all its processes; their time and memory count as its own."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """How its viewers attach, as the load client's kinds."""
    promises: ClassVar[str]
    """What it stores, and when: no figure is meaningful without it."""
    has_publisher: ClassVar[bool] = False
    """Whether another process publishes to it, whose time is not counted."""

    def __init__(self, port: int, pids: tuple[int, ...]) -> None:
        self.port = port
        self.pids = pids

    @property
    def version(self) -> str:
        """Return the version as its makers write it; empty for our own, which every run names."""
        return ""

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        """Stream one answer into each channel, each token at its time. Return `messages` by channel and `lag_ms`."""
        raise NotImplementedError

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids)

    def client_core_s(self) -> float:
        """Return the CPU time of its publisher on the load client's core; 0 if its own process produces the tokens."""
        return 0.0


class Published(System):
    """A peer without producers of its own: another process publishes to it. `request` are fields of `publish`."""

    has_publisher = True

    def __init__(self, port: int, pids: tuple[int, ...], publisher: Child, **request: Any) -> None:
        super().__init__(port, pids)
        self._publisher = publisher
        self._request = request

    def client_core_s(self) -> float:
        return cpu_s(self._publisher.pid)

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        patience_s = 60 + count / tokens_per_s
        return self._publisher.request("publish", reply_in_s=patience_s, port=self.port, **wanted, **self._request)


@contextlib.contextmanager
def publisher() -> Iterator[Child]:
    """Run the publisher on the load client's core."""
    with Child("bench.peers.publisher", core=CLIENT_CORE) as child:
        yield child


def program(name: str, package: str) -> str:
    """Return the path of a program. Raises `BenchError` with an installation hint if it is missing."""
    # Debian installs servers in sbin, which is not on every user's path.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise BenchError(f"{name} is missing (Debian: apt-get install {package})")
    return path


@contextlib.contextmanager
def foreign(what: str, command: list[str], is_ready: Callable[[int], bool]) -> Iterator[int]:
    """Run a foreign server on the server's core; yield the id of the process that keeps it.

    `is_ready(pid)` is polled until it is true, and must make sure that this very process answers. Raises `BenchError`,
    with the server's output, if it does not start.
    """
    with Child("bench.peers.run", *command, core=SERVER_CORE) as child:
        try:
            pid = child.read(timeout_s=10)["pid"]
            until_s = time.monotonic() + _START_S
            while not is_ready(pid):
                _check_alive(child, pid)
                if time.monotonic() > until_s:
                    raise BenchError(f"it did not respond within {_START_S:.0f} s")
                time.sleep(0.05)
        except BenchError as error:
            raise BenchError(f"{what} did not start: {error}") from None
        try:
            yield child.pid
        except (BenchError, OSError) as error:
            if output := child.log_end():
                error.add_note(f"{what} printed:\n{output}")
            raise


def _check_alive(child: Child, pid: int) -> None:
    """Raise `BenchError`, with the server's output, if it has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        child.read(timeout_s=5)  # the process that keeps the server ends with the server


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Pin this process to one core while it is the client; if that is not permitted, leave it as it is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def config_folder() -> Iterator[Path]:
    """Yield a folder for configuration and sockets, under a short path: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tenuto-") as folder:
        yield Path(folder)
