"""Processes that remove a person from a store file, and kill themselves before one of their statements.

`python -m tests.stores.forgetting FILE FOLDER KILLS`: a first process counts the statements of a removal of ann from a
copy of FILE. For each of KILLS statements, evenly spread, a process works on a copy `N/chat.db` in FOLDER and dies
before statement N. The numbers N are printed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.hub import HubCore, forgetting
from holdfast.hub.clock import Clock
from holdfast.hub.forgetting import Forgetting, direct
from holdfast.stores import sqlite_file
from holdfast.stores.base import Store
from holdfast.stores.sqlite import SqliteStore

CHANNELS = 2  # of each kind

connect = sqlite3.connect


async def fill(store: Store) -> None:
    """Write channels of ann and an agent, and channels of ann and bob, each with messages and a command."""
    hub = HubCore(store, hooks_signals=False)
    for number in range(CHANNELS):
        for channel, other, role in ((f"own:{number}", "agent", "assistant"), (f"shared:{number}", "bob", "user")):
            await hub.create(channel, id="m0", text="words of ann", author="ann")
            await hub.create(channel, id="m1", text=f"words of {other}", author=other, role=role)
        await hub.command(f"shared:{number}", "note", id="c", data="words of ann", by="ann")
    await hub.close()
    await store.open()


def trace(seen: Callable[[], None]) -> None:
    """Call `seen` before each statement of the stores that this process opens from now on."""

    def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.set_trace_callback(lambda _: seen())
        return db

    sqlite_file.sqlite3.connect = connect_traced  # type: ignore[attr-defined]


def forget(path: Path, die_at: int | None) -> int:
    """Remove ann in a child process; return the number of statements, if it was not killed."""
    parent, child = os.pipe()
    process = os.fork()
    if not process:
        count = 0

        def seen() -> None:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        async def run() -> None:
            store = SqliteStore(path, lock_wait_s=0)
            await store.open()
            nonlocal count
            count = 0
            await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=True)
            os.write(child, str(count).encode())
            await store.close()

        trace(seen)
        forgetting.WIPE_PAUSE_S = 0.01
        asyncio.run(run())
        os._exit(0)
    os.close(child)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) == (die_at is not None), status
    with os.fdopen(parent) as result:
        return int(result.read() or 0)


def main(file: Path, folder: Path, kills: int) -> None:
    def copy(name: str) -> Path:
        path = folder / name / "chat.db"
        path.parent.mkdir()
        shutil.copy2(file, path)
        return path

    total = forget(copy("whole"), None)
    for number in range(kills):
        statement = 1 + number * (total - 1) // kills
        forget(copy(str(statement)), statement)
        print(statement)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
