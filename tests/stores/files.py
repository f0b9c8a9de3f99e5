"""SQLite stores in files, and helpers that read those files from outside, or run the command on them."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from click.testing import CliRunner, Result

from tenuto.cli.main import main
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.store import SqliteStore

PATIENCE_S = 60.0

T = TypeVar("T")


@contextlib.asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[SqliteStore]:
    """Open the store in `path`."""
    store = SqliteStore(path, **settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def call_on_thread(store: SqliteStore, call: Callable[[Engine], T]) -> T:
    """Return what `call` returns on the store's own thread."""
    running = store._opened()
    return await running.thread.run(lambda: call(running.engine), timeout_s=PATIENCE_S)


async def run_on_thread(store: SqliteStore, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement on the store's own connection."""
    return await call_on_thread(store, lambda engine: engine._file.db.execute(sql).fetchall())


def run_from_outside(path: Path, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Run a statement on the file as another program would."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        return db.execute(sql, arguments).fetchall()


def cli(*words: object, store: Path | None = None, **environ: str) -> Result:
    """Run the command `tenuto` in this process, on the file `store` if it is given."""
    place = ("--store", f"sqlite:///{store}") if store is not None else ()
    return CliRunner(env=environ).invoke(main, [*map(str, words), *place])


def modes(path: Path) -> dict[str, int]:
    """Return the modes of the files in the folder of a store."""
    return {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}


def on_disk(path: Path) -> bytes:
    """Return the content of all files of a store."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()) if file.is_file())


def store_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tenuto-sqlite")]


async def no_thread_left() -> None:
    """Return when the threads of all stores have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("tenuto-sqlite"):
            await asyncio.to_thread(thread.join, PATIENCE_S)
    assert store_threads() == []


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def wal(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def lock(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")
