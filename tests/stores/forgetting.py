"""Processes that remove a person from a store file, and kill themselves before one of their statements.

`python -m tests.stores.forgetting FILE FOLDER`: a first process counts the statements of each call of the store, in a
removal of ann from a copy of FILE, with her channels and without. Then processes work on copies `N/chat.db` in FOLDER,
and each dies before another statement: the first, the middle and the last one of each kind of call. A line of JSON for
each has N, whether it removed channels, and the call.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tenuto.hub import HubCore
from tenuto.hub.clock import Clock
from tenuto.hub.keep import forgetting, retention
from tenuto.hub.keep.forgetting import Forgetting
from tenuto.stores.base import Store
from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.store import SqliteStore

CHANNELS = 2  # of each kind
CALLS = (
    *("channels", "facts", "messages", "open_documents", "commit", "prune", "tidy", "wipe"),
    *("heads", "delete_channel"),  # with channels
)

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


class Watched(SqliteStore):
    """A store that counts the statements of each of its calls, and kills its process before one of them."""

    die_at: tuple[str, int] | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(path, lock_wait_s=0)
        self.statements: Counter[str] = Counter()
        self._call = ""

    def begin(self) -> None:
        """Count from now on."""
        for name in CALLS:
            setattr(self, name, partial(self._watch, name, getattr(self, name)))

    async def _watch(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._call = name
        self.seen("")  # a call may have no statement
        try:
            return await call(*arguments, **options)
        finally:
            self._call = ""

    def seen(self, _: str) -> None:
        """Note that a call or one of its statements begins."""
        if self._call:
            self.statements[self._call] += 1
            if (self._call, self.statements[self._call]) == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)


def forget(path: Path, *, channels: bool, die_at: tuple[str, int] | None) -> dict[str, int]:
    """Remove ann in a child process; return the number of statements in each call, none if it was killed."""
    parent, child = os.pipe()
    process = os.fork()
    if not process:
        store = Watched(path)
        store.die_at = die_at

        def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
            db = connect(*arguments, **options)
            db.set_trace_callback(store.seen)
            return db

        async def run() -> None:
            await store.open()
            store.begin()
            await Forgetting(store, "ann", Clock()).run(channels=channels)
            os.write(child, json.dumps(store.statements).encode())
            await store.close()

        sqlite_file.sqlite3.connect = connect_traced  # type: ignore[attr-defined]
        forgetting.WIPE_PAUSE_S = 0.01
        retention.STEP_MESSAGES = 1
        asyncio.run(run())
        os._exit(0)
    os.close(child)
    _, status = os.waitpid(process, 0)
    assert status == 0 or (os.WIFSIGNALED(status) and die_at is not None), (status, die_at)
    with os.fdopen(parent) as result:
        return dict(json.loads(result.read() or "{}"))


def main(file: Path, folder: Path) -> None:
    def copy(name: str) -> Path:
        path = folder / name / "chat.db"
        path.parent.mkdir()
        shutil.copy2(file, path)
        return path

    number = 0
    for channels in (False, True):
        statements = forget(copy(f"whole-{channels}"), channels=channels, die_at=None)
        for call, count in statements.items():
            for statement in sorted({1, count // 2 + 1, count}):
                number += 1
                # the number of statements varies, so a process may not reach its last ones
                if not forget(copy(str(number)), channels=channels, die_at=(call, statement)):
                    print(json.dumps({"number": number, "channels": channels, "call": call}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
