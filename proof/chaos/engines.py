"""The engines of a cluster: a PostgreSQL server with a standby, and a Redis server as the bus.

Layer: chaos.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from proof.chaos.postgres_server import MEMORY, PROGRAMS, Postgres
from proof.chaos.processes import Child, free_port
from proof.chaos.proxies import Proxy
from proof.chaos.report import Failure

__all__ = ["PostgresPair", "Redis", "check_programs"]

SETTINGS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_wal_size": "64MB"}
CAUGHT_UP_S = 30.0
START_S = 20.0


def check_programs() -> None:
    """Raise Failure unless the programs of a cluster are installed."""
    missing = [name for name in ("nginx", "redis-server") if shutil.which(name) is None]
    missing += [] if (PROGRAMS / "initdb").exists() else ["postgresql"]
    missing += [f"{name} (pip)" for name in ("asyncpg", "redis") if importlib.util.find_spec(name) is None]
    if missing:
        raise Failure(f"a cluster needs {', '.join(missing)}: apt-get install postgresql redis-server nginx")


class PostgresPair:
    """A PostgreSQL server, and a standby that gets its commits through the proxy `link`, which `open_proxy` opens."""

    def __init__(self, folder: Path, open_proxy: Callable[[int], Awaitable[Proxy]]) -> None:
        self._folder = folder  # gets the logs of the servers
        self._open_proxy = open_proxy
        self._servers: list[Postgres] = []
        self._running: list[Postgres] = []
        self.is_synchronous = False
        self.link: Proxy
        self.primary: Postgres
        self.standby: Postgres

    def _new(self) -> Postgres:
        server = Postgres(Path(tempfile.mkdtemp(prefix="tenuto-postgres-", dir=MEMORY)))
        self._servers.append(server)
        return server

    async def open(self) -> None:
        """Start both servers."""
        self.primary, self.standby = self._new(), self._new()
        await asyncio.to_thread(self.primary.create)
        await self.start()
        await asyncio.to_thread(self.primary.sql, "CREATE DATABASE app", database="postgres")
        self.link = await self._open_proxy(self.primary.port)
        await self._follow()

    async def close(self) -> None:
        """End both servers, and keep their logs."""
        for server in list(self._running):
            with contextlib.suppress(OSError, AssertionError):
                await asyncio.to_thread(server.resume)
            with contextlib.suppress(OSError, AssertionError):
                await self._stop(server)
        for server in self._servers:
            self._keep_log(server)

    def _keep_log(self, server: Postgres) -> None:
        """Keep the log of a server that has ended, and remove its files."""
        with contextlib.suppress(OSError):
            shutil.copyfile(server.folder / "log", self._folder / f"{server.folder.name}.log")
        shutil.rmtree(server.folder, ignore_errors=True)

    async def start(self) -> None:
        """Start the primary, again after `kill`."""
        self._running.append(self.primary)
        await asyncio.to_thread(self.primary.start, **SETTINGS)

    async def kill(self) -> None:
        """End the primary as a crash does."""
        await self._stop(self.primary)

    async def _stop(self, server: Postgres) -> None:
        await asyncio.to_thread(server.stop, "immediate")
        self._running.remove(server)

    async def _follow(self) -> None:
        """Start the standby, as a copy of the primary."""
        await self.link.point_to(self.primary.port)
        self._running.append(self.standby)
        await asyncio.to_thread(self.standby.follow, self.primary, self.link.port, **SETTINGS)

    async def until_caught_up(self) -> None:
        """Wait until the standby has all commits of the primary of this moment."""
        place = await asyncio.to_thread(self.primary.sql, "SELECT pg_current_wal_flush_lsn()")
        await self._until(self.standby, f"SELECT pg_last_wal_receive_lsn() >= '{place}'", "the standby has caught up")

    async def set_synchronous(self, is_synchronous: bool) -> None:
        """Let the primary wait for the standby at each commit, or no longer."""
        names = "*" if is_synchronous else ""
        await asyncio.to_thread(self.primary.sql, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        await asyncio.to_thread(self.primary.sql, "SELECT pg_reload_conf()")
        if is_synchronous:
            state = "SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"
            await self._until(self.primary, state, "the standby is synchronous")
        self.is_synchronous = is_synchronous

    async def promote(self) -> None:
        """Promote the standby of a dead primary."""
        await self.link.cut()  # swallows the bytes that have not arrived
        await self.link.resume()
        await asyncio.to_thread(self.standby.promote)
        self._keep_log(self.primary)
        self.primary, self.standby = self.standby, self._new()
        self.is_synchronous = False

    async def renew_standby(self) -> None:
        """Start a standby of the promoted server."""
        await self._follow()

    async def _until(self, server: Postgres, question: str, what: str) -> None:
        deadline_s = time.monotonic() + CAUGHT_UP_S
        while await asyncio.to_thread(server.sql, question) != "t":
            if time.monotonic() > deadline_s:
                raise Failure(f"waited {CAUGHT_UP_S:.0f} s until {what}")
            await asyncio.sleep(0.05)  # PostgreSQL gives no event for it


class Redis(Child):
    """A Redis server that keeps nothing. It has the same port after each start."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        arguments = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        super().__init__("redis", [*arguments, "--dir", str(folder)], folder / "redis.log", program="redis-server")

    async def start(self) -> None:
        """Start, and wait until it responds."""
        await self.spawn()
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                if b"PONG" in await self.request("PING"):
                    return
            await asyncio.sleep(0.02)  # before it connects again
        raise AssertionError(f"redis-server did not start:\n{self.log[-2_000:]}")

    async def request(self, command: str) -> bytes:
        """Send a command without arguments; return the reply as received."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(command.encode() + b"\r\n")
            return await reader.readline()
        finally:
            writer.transport.abort()
