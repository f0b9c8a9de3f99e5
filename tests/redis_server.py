"""A real redis-server in a folder of its own, for tests.

Layer: tests.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.peers.system import request_redis
from proof.chaos.processes import free_port
from tests.processes import Process

needs_redis = pytest.mark.skipif(
    not (shutil.which("redis-server") and importlib.util.find_spec("redis")),
    reason="redis-server, or redis for Python, is not installed; CI installs both",
)

needs_valkey = pytest.mark.skipif(not shutil.which("valkey-server"), reason="valkey-server is not installed")


class RedisServer(Process):
    """A server on a port of this machine, which keeps nothing."""

    def __init__(self, folder: Path, *options: str, program: str = "redis-server") -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._socket = str(folder / "redis.sock")
        kept = ["--save", "", "--appendonly", "no", "--dir", str(folder), "--unixsocket", self._socket]
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), *kept, *options]
        if options[:1] == ("--sentinel",):  # its first argument is a file
            (folder / "sentinel.conf").write_text(f"bind 127.0.0.1\nport {self.port}\nunixsocket {self._socket}\n")
            arguments = [str(folder / "sentinel.conf"), *options]
        super().__init__(arguments, folder / "log", program=program)

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        super().start()
        self.until(lambda: bool(self.ask("PING")))

    def kill(self) -> None:
        """End the server as a crash would."""
        self.end(signal.SIGKILL)

    def ask(self, *words: str) -> str:
        """Send a short command as an administrator; returns the reply as received."""
        return request_redis(self._socket, *words)


@contextmanager
def running_redis(*options: str, program: str = "redis-server") -> Iterator[RedisServer]:
    """Run a server in a folder that is removed at the end; gives the server."""
    with (
        tempfile.TemporaryDirectory(prefix="tenuto-redis-") as name,
        RedisServer(Path(name), *options, program=program) as server,
    ):
        yield server
