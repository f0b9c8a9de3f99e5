"""A redis-server of our own: Debian's, on loopback or a socket file, with the requested append-only file."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.peers.system import config_folder, foreign, program
from bench.proc import BenchError
from proof.chaos.processes import free_port

__all__ = ["Fsync", "RedisServer", "redis_server", "request_redis"]

Fsync = Literal["always", "everysec"]


@dataclass(frozen=True)
class RedisServer:
    pid: int
    port: int
    socket_path: str

    @property
    def version(self) -> str:
        reply = request_redis(self.socket_path, "INFO", "server")
        return "redis-server " + reply.partition("redis_version:")[2].partition("\r\n")[0]


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
