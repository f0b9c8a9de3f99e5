"""The usual design: a Redis stream per conversation, one XADD per token, and a resume endpoint that replays it.

The application is `bench.peers.xadd_app`; beside it runs a redis-server of our own. Both share the server's core, as
Tenuto and its store do, and the time of both is counted.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from bench.peers.packages import REDIS_CLIENT, python_packages
from bench.peers.redis_server import Fsync, RedisServer, redis_server
from bench.peers.system import System, program
from bench.proc import SERVER_CORE, Child, disk_write_bytes

__all__ = ["Xadd", "xadd"]

_POOL = 1_000
"""Connections for commands: one for each of 500 producers was fastest, 17.7k appends/s against 15k with 50 to 200."""


class Xadd(System):
    name = "XADD per token"
    promises = "an XADD is acknowledged when Redis has written it by its AOF setting; tokens are replayed separately"
    kinds: ClassVar[tuple[str, ...]] = ("xadd-sse",)

    def __init__(self, port: int, child: Child, redis: RedisServer) -> None:
        super().__init__(port, child.pid, redis.pid)
        self.child = child
        self.redis = redis

    @property
    def version(self) -> str:
        return f"{self.redis.version}; {', '.join(package.replace('==', ' ') for package in REDIS_CLIENT)}"

    def grow(self, channel: str, count: int) -> str:
        return str(self.child.request("grow", channel=channel, count=count)["text"])

    def written_bytes(self) -> int:
        return disk_write_bytes(self.redis.pid)


@contextlib.contextmanager
def xadd(directory: Path, fsync: Fsync, *, pool: int = _POOL) -> Iterator[Xadd]:
    """Start it with its append-only file in `directory`. Raises `BenchError` if a program or package is missing."""
    program("redis-server", "redis-server")  # fail before any download if Redis is missing
    packages = python_packages(*REDIS_CLIENT)
    with (
        redis_server(directory, fsync) as redis,
        _import_path(packages),
        Child("bench.peers.xadd_app", redis.socket_path, str(pool), core=SERVER_CORE) as child,
    ):
        yield Xadd(child.read(timeout_s=30)["port"], child, redis)


@contextlib.contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Let child processes that start while the block runs import modules from `folder` first."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
