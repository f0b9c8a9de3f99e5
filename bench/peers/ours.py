"""Holdfast itself, as one of the systems: SQLite, in-process producers, served as `holdfast serve` does it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.peers.system import System
from bench.proc import SERVER_CORE, Child, disk_write_bytes

__all__ = ["Ours", "ours"]


class Ours(System):
    name = "Holdfast, SQLite FULL"
    kinds: ClassVar[tuple[str, ...]] = ("ours-sse", "ours-ws")
    resuming: ClassVar[tuple[str, ...]] = ("ours-sse", "ours-ws")
    promises = "a token is on disk before any viewer receives it; late joiners get joined text"

    def __init__(self, port: int, child: Child) -> None:
        super().__init__(port, (child.pid,))
        self.child = child

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        return self.child.request("produce", reply_in_s=60 + count / tokens_per_s, **wanted)

    def grow(self, channel: str, count: int) -> str:
        return str(self.child.request("grow", channel=channel, count=count)["text"])

    def written_bytes(self) -> int:
        return disk_write_bytes(self.child.pid)


@contextlib.contextmanager
def ours(database: Path, *, synchronous: str = "full") -> Iterator[Ours]:
    """Start it with `database` as its file."""
    with Child("bench.peers.ours_app", str(database.absolute()), synchronous, core=SERVER_CORE) as child:
        yield Ours(child.read(timeout_s=20)["port"], child)
