"""Processes that open a store file of an earlier schema and kill themselves before one of their statements.

`python -m tests.stores.migrating FILE FOLDER EVERY`: opening FILE runs some statements. For the first of them, and for
each EVERY-th one after it, a process opens a copy of FILE in FOLDER and dies before that statement. The copy of
statement N is `N/chat.db`. The last process runs to its end, and its N is printed.
"""

import gzip
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.migration import prepare

connect = sqlite3.connect


def die_before(statement: int) -> None:
    """Let this process die before it runs that statement, counted from 1."""
    count = 0

    def traced(sql: str) -> None:
        nonlocal count
        count += 1
        if count == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect_traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db = connect(*arguments, **options)
        db.set_trace_callback(traced)
        return db

    sqlite_file.sqlite3.connect = connect_traced  # type: ignore[attr-defined]


def open_store(path: Path) -> None:
    file = SqliteFile(path, synchronous="full", busy_s=1, lock_wait_s=0)
    file.on_migration = lambda: prepare(file.db, path, has_backup=True)
    Engine(file).open()


def main(file: Path, folder: Path, every: int) -> int:
    statement = 1
    while True:
        path = folder / str(statement) / "chat.db"
        path.parent.mkdir()
        path.write_bytes(gzip.decompress(file.read_bytes()))
        child = os.fork()
        if not child:
            die_before(statement)
            open_store(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, status
            return statement
        statement += every


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
