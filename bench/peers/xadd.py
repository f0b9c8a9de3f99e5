"""The usual design: a Redis stream per conversation, one XADD per token, and a resume endpoint that replays it.

The application is `bench.peers.xadd_app`; beside it runs a redis-server of our own. Both share the server's core, as
Tenuto and its store do, and the time of both is counted.

Its packages are of exact versions, and kept apart from Tenuto's own environment in a cache of the benchmarks. They are
not dependencies of Tenuto, not even for development. The cache is `$TENUTO_BENCH_CACHE`, else `tenuto-bench` in the
user's cache folder. A download is put in place by one rename, so an interrupted or concurrent run finds all of it or
none.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from bench.peers.system import Fsync, RedisServer, System, program, redis_server
from bench.proc import SERVER_CORE, BenchError, Child, disk_write_bytes

REDIS_CLIENT = ("redis==8.1.0", "hiredis==3.5.0", "uvloop==0.23.0")

_FETCH_S = 180.0


def python_packages(*wanted: str) -> Path:
    """Return a folder for `PYTHONPATH` that holds `wanted`. Raises `BenchError` if they cannot be fetched."""
    name = f"{sys.implementation.cache_tag} {' '.join(wanted)}".replace(" ", "_").replace("/", "_")
    path = cache() / name
    if path.is_dir():
        return path
    options = ["--quiet", "--disable-pip-version-check", "--no-warn-script-location"]
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".fetching-") as scratch:
        folder = Path(scratch) / "whole"
        folder.mkdir()
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), *wanted]
        try:
            result = subprocess.run(command, capture_output=True, timeout=_FETCH_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"could not fetch {name}: {error}") from error
        if result.returncode:
            output = (result.stderr + result.stdout)[-1500:].decode(errors="replace")
            raise BenchError(f"could not fetch {name}: {output}")
        with contextlib.suppress(OSError):  # another run was faster: its download is as good
            folder.rename(path)
    if not path.is_dir():
        raise BenchError(f"could not put {name} into {path}")
    return path


def cache() -> Path:
    """Return the cache folder."""
    if own := os.environ.get("TENUTO_BENCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tenuto-bench"


_POOL = 1_000
"""Connections for commands: one for each of 500 producers was fastest, 17.7k appends/s against 15k with 50 to 200."""


class Xadd(System):
    name = "XADD per token"
    kinds: ClassVar[tuple[str, ...]] = ("xadd-sse",)

    def __init__(self, port: int, child: Child, redis: RedisServer) -> None:
        super().__init__(port, child.pid, redis.pid)
        self.child = child
        self.redis = redis

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
        Child("bench.peers.xadd_app", redis.socket_path, str(pool), core=SERVER_CORE, path=str(packages)) as child,
    ):
        yield Xadd(child.read(timeout_s=30)["port"], child, redis)
