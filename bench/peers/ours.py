"""Tenuto itself, as one of the systems: in-process producers, served as `tenuto serve` does it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.common import served
from bench.peers.system import System, on_core
from bench.proc import SERVER_CORE, Child, disk_write_bytes, tree
from proof.chaos.postgres_server import running_postgres

__all__ = ["Ours", "ours", "ours_on_postgres"]


class Ours(System):
    name = "Tenuto, SQLite FULL"
    kinds: ClassVar[tuple[str, ...]] = ("sse", "websocket")
    promises = "a token is on disk before any viewer receives it; late joiners get joined text"

    def __init__(self, port: int, child: Child, *stores: int) -> None:
        """Represent the server `child` at `port`; `stores` are the process ids of a store of its own."""
        super().__init__(port, (child.pid, *stores))
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
    """Start it with `database` as its file."""
    with served(f"sqlite:///{database.absolute()}?synchronous={synchronous}") as server:
        yield Ours(server.port, server.child)


@contextlib.contextmanager
def ours_on_postgres(directory: Path) -> Iterator[Ours]:
    """Start it on a PostgreSQL server whose files are in `directory`, and which shares its core."""
    with contextlib.ExitStack() as stack:
        with on_core(SERVER_CORE):
            postgres = stack.enter_context(running_postgres(directory))
        server = stack.enter_context(served(postgres.url))
        yield Ours(server.port, server.child, postgres.pid)
