"""Each benchmark in small, and the moment within it at which a test injects a failure.

As a program, it runs one of them in a directory whose disk fills up: `python -m tests.bench.small NAME`, in a user and
mount namespace of its own (`unshare --user --map-root-user --mount`), where it may mount that disk.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from bench import appends, conversations, fanout, resume, soak, turns
from bench.common import Options, Row, Served, attempt, load_client
from bench.peers.xadd import xadd
from bench.proc import Child

__all__ = ["APPENDS", "MOMENTS", "in_the_middle", "run"]

MOMENTS = {
    "fanout": "capture",
    "conversations": "capture",
    "resume": "append",
    "turns": "turns",
    "XADD": "append",
    "soak": "lag",
}
"""The request to a child, or by HTTP, that marks the middle of a benchmark."""
APPENDS = appends.Sizes(producers=4, rounds=1, seconds=0.2, warm_s=0.05, pages=1, page_tokens=40)
SHAPE = fanout.Shape(1, 2, 50)
_DISK_MB = 8


def run(name: str, options: Options) -> list[Row]:
    """Return the rows of a benchmark of a second or two."""
    runs: dict[str, Callable[[], Any]] = {
        "fanout": lambda: fanout.matrix(options, SHAPE, "sse", rounds=1, seconds=0.2, unders=("serve",)),
        "conversations": lambda: [conversations.measure(options, 2, seconds=0.2)],
        "resume": lambda: resume.run(options),
        "turns": lambda: turns.turns(options, conversations=20, rounds=1),
        "XADD": lambda: _appends_to_redis(options.directory),
        "soak": lambda: soak.soak(options, seconds=1.0, live=2, lasts_s=(0.1, 0.3), idle_s=0.1, old=2),
    }
    return list(attempt(name, runs[name]))


def _appends_to_redis(directory: Path) -> Iterator[Row]:
    """Run the usual design of `appends` alone."""
    with xadd(directory, "always") as system, load_client() as load:
        one = appends._round(system, load, APPENDS, at_once=1, tag="small")
        yield Row("XADD", str(one))


@contextlib.contextmanager
def in_the_middle(moment: str, act: Callable[[list[Child]], None]) -> Iterator[None]:
    """Call `act` at this moment of a benchmark, with all children in the order of their start."""
    children: list[Child] = []
    born, send, call = Child.__init__, Child.send, Served.call
    acted: list[str] = []

    def act_at(what: str) -> None:
        if what == moment and not acted:
            acted.append(what)
            act(children)

    def spy_born(self: Child, *arguments: str, **how: Any) -> None:
        born(self, *arguments, **how)
        children.append(self)

    def spy_send(self: Child, do: str, /, **fields: Any) -> None:
        send(self, do, **fields)
        act_at(do)

    def spy_call(self: Served, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = call(self, method, path, body)
        act_at(path.rpartition("/")[2])
        return response

    with (
        mock.patch.object(Child, "__init__", spy_born),
        mock.patch.object(Child, "send", spy_send),
        mock.patch.object(Served, "call", spy_call),
    ):
        yield
    assert acted, f"{moment!r} was never requested"


def _fill(directory: Path) -> None:
    """Fill the disk of `directory` completely."""
    with (directory / "all-that-was-free").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def _main(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", folder], check=True)
        with in_the_middle(MOMENTS[name], lambda _: _fill(Path(folder))):
            for row in run(name, Options(is_quick=True, directory=Path(folder))):
                print(f"{row.what}: {row.measured}: {row.note}")
        subprocess.run(["umount", "--lazy", folder], check=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
