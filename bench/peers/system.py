"""What every system under test can be asked, ours and the peers': the measurements know nothing else of them."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.proc import SERVER_CORE, BenchError, Child, cpu_s, rss_bytes

__all__ = ["GROWING_TOKENS_PER_S", "System", "config_folder", "foreign", "on_core", "program"]

GROWING_TOKENS_PER_S = 2_000
"""How fast `System.grow` asks servers for tokens where nobody measures how fast they come."""
_START_S = 20.0


class System:
    """A running system. `pids` are the roots of all its processes, whose time and memory are its own."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """How its viewers attach, in the load client's words."""
    promises: ClassVar[str]
    """What it keeps of what it was given, and when: no figure means anything without it."""
    keeps_history: ClassVar[bool] = True
    """Whether a viewer that arrives late is shown what was before."""
    is_for_fan_out_only: ClassVar[bool] = False
    """Whether it is a variant of another one that differs in nothing else."""
    resuming: ClassVar[tuple[str, ...]] = ()
    """Which of its kinds can resume."""

    def __init__(self, port: int, pids: tuple[int, ...]) -> None:
        self.port = port
        self.pids = pids

    @property
    def version(self) -> str:
        """What runs, in the words of those who made it; empty for our own, which every run names."""
        return ""

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        """Stream one answer into each channel, each token at its time; returns `messages` by channel and `lag_ms`."""
        raise NotImplementedError

    def grow(self, channel: str, count: int) -> str:
        """Add `count` tokens, one by one, to the one answer of `channel`, which stays open; returns its whole text."""
        raise NotImplementedError

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids)

    def client_core_s(self) -> float:
        """CPU time of what brings it its tokens from the load client's core; nothing where its own process does."""
        return 0.0

    def rss_bytes(self) -> int:
        return sum(rss_bytes(pid) for pid in self.pids)


def program(name: str, package: str) -> str:
    """The path of a program. Raises `BenchError` when it is missing, and says how to get it."""
    # Debian's servers stand in sbin, which is not on everybody's path.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise BenchError(f"{name} is missing (Debian: apt-get install {package})")
    return path


@contextlib.contextmanager
def foreign(what: str, command: list[str], is_ready: Callable[[int], bool]) -> Iterator[int]:
    """A server that is not ours, running on the server's core; yields the id of the process that keeps it.

    `is_ready(pid)` is asked until it is true, and must make sure that it is this process that answers. Raises
    `BenchError`, with what the server said, when it does not start.
    """
    with Child("bench.peers.run", "keep", *command, core=SERVER_CORE) as child:
        try:
            pid = child.read(timeout_s=10)["pid"]
            until_s = time.monotonic() + _START_S
            while not is_ready(pid):
                _check_alive(child, pid)
                if time.monotonic() > until_s:
                    raise BenchError(f"it did not answer within {_START_S:.0f} s")
                time.sleep(0.05)
        except BenchError as error:
            raise BenchError(f"{what} did not start: {error}") from None
        try:
            yield child.pid
        except (BenchError, OSError) as error:
            if said := child.log_end():
                error.add_note(f"{what} said:\n{said}")
            raise


def _check_alive(child: Child, pid: int) -> None:
    """Raises `BenchError`, with what it said, when the server has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        child.read(timeout_s=5)  # its keeper ends with it


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process itself on one core, for as long as it is the client; where it may not, as it is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def config_folder() -> Iterator[Path]:
    """A folder for configuration and sockets, under a short path: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        yield Path(folder)
