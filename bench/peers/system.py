"""The interface of every system under test, and Tenuto as one of them: the measurements use only this."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.common import served
from bench.proc import SERVER_CORE, BenchError, Child, cpu_s, disk_write_bytes, tree
from proof.chaos.engines import running_postgres
from proof.chaos.processes import free_port

_START_S = 20.0
_END_S = 8.0  # time in which a server must end by itself


class System:
    """A running system. `pids` are the roots of all its processes; their time and memory count as its own."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """How its viewers attach, as the load client's kinds."""

    def __init__(self, port: int, *pids: int) -> None:
        self.port = port
        self.pids = pids

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        """Stream one answer into each channel, each token at its time. Return `messages` by channel."""
        raise NotImplementedError

    def cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.pids)


class Ours(System):
    """Tenuto itself: in-process producers, served as `tenuto serve` does it. The last pids are those of its store."""

    name = "Tenuto, SQLite FULL"
    kinds: ClassVar[tuple[str, ...]] = ("sse", "websocket")

    def __init__(self, port: int, child: Child, *stores: int) -> None:
        super().__init__(port, child.pid, *stores)
        self.child = child

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        return self.child.request("produce", reply_in_s=60 + count / tokens_per_s, **wanted)

    def grow(self, channel: str, count: int) -> str:
        return str(self.child.request("grow", channel=channel, count=count)["text"])

    def written_bytes(self) -> int:
        return sum(disk_write_bytes(pid) for root in self.pids for pid in tree(root))


@contextlib.contextmanager
def ours(database: Path, *, synchronous: str = "full") -> Iterator[Ours]:
    """Start Tenuto with `database` as its file."""
    with served(f"sqlite:///{database.absolute()}?synchronous={synchronous}") as server:
        yield Ours(server.port, server.child)


@contextlib.contextmanager
def ours_on_postgres(directory: Path) -> Iterator[Ours]:
    """Start Tenuto on a PostgreSQL server whose files are in `directory`, and which shares its core."""
    with contextlib.ExitStack() as stack:
        with on_core(SERVER_CORE):
            postgres = stack.enter_context(running_postgres(directory))
        server = stack.enter_context(served(postgres.url))
        yield Ours(server.port, server.child, postgres.pid)


def program(name: str, package: str) -> str:
    """Return the path of a program. Raises `BenchError` with an installation hint if it is missing."""
    # Debian installs servers in sbin, which is not on every user's path.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise BenchError(f"{name} is missing (Debian: apt-get install {package})")
    return path


@contextlib.contextmanager
def foreign(what: str, command: list[str], is_ready: Callable[[int], bool]) -> Iterator[int]:
    """Run a foreign server on the server's core; yield its process id. If this process is killed, the kernel ends it.

    `is_ready(pid)` is polled until it is true, and must make sure that this very process answers. Raises `BenchError`,
    with the server's output, if it does not start.
    """
    with tempfile.TemporaryFile() as log:
        # Not by `preexec_fn`: it makes Python run hooks after the fork, in which an interruption would be lost.
        command = [program("setpriv", "util-linux"), "--pdeathsig", "SIGTERM", *command]
        with on_core(SERVER_CORE):
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until_s = time.monotonic() + _START_S
            while not is_ready(server.pid):
                if server.poll() is not None or time.monotonic() > until_s:
                    raise BenchError(f"{what} did not start within {_START_S:.0f} s, or has ended")
                time.sleep(0.05)
            yield server.pid
        except (BenchError, OSError) as error:
            log.seek(0)
            if output := log.read()[-4000:].decode(errors="replace"):
                error.add_note(f"{what} printed:\n{output}")
            raise
        finally:
            server.terminate()
            try:
                server.wait(_END_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


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


Fsync = Literal["always", "everysec"]


@dataclass(frozen=True)
class RedisServer:
    pid: int
    port: int
    socket_path: str


@contextlib.contextmanager
def redis_server(directory: Path, fsync: Fsync, *, port: int | None = None) -> Iterator[RedisServer]:
    """Start a server whose append-only file is in `directory`, written to disk as `fsync` says.

    Without snapshots and rewriting of the file, so it works for the run alone. Raises `BenchError` if it does not
    start.
    """
    executable = program("redis-server", "redis-server")
    port = port if port is not None else free_port()
    with config_folder() as folder:
        path = str(folder / "redis.sock")
        options = {
            "bind": "127.0.0.1",
            "port": str(port),
            "unixsocket": path,
            "dir": str(directory.absolute()),
            "appendonly": "yes",
            "appendfsync": fsync,
            "auto-aof-rewrite-percentage": "0",
            "save": "",
            "maxclients": "4000",
            "daemonize": "no",
            "loglevel": "warning",
        }
        command = [executable, *(word for name, value in options.items() for word in (f"--{name}", value))]

        def is_ready(pid: int) -> bool:
            return Path(path).exists() and request_redis(path, "INFO", "server").find(f"process_id:{pid}\r\n") >= 0

        with foreign("redis-server", command, is_ready) as pid:
            for name, wanted in (("appendonly", "yes"), ("appendfsync", fsync)):
                if f"\r\n{wanted}\r\n" not in (reply := request_redis(path, "CONFIG", "GET", name)):
                    raise BenchError(f"redis-server runs with another {name} than {wanted}: {reply!r}")
            yield RedisServer(pid, port, path)


def request_redis(path: str, *words: str) -> str:
    """Send one short command. Return its reply as received."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect(path)
        except OSError:
            return ""
        sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w.encode()) for w in words))
        return sock.recv(1 << 16).decode(errors="replace")
