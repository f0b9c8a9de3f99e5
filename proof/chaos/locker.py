"""Another program that locks the store's database.

    python -m proof.chaos.locker FILE write|read

Layer: chaos.

It takes SQLite's write lock, or begins a read transaction and does not end it. It prints a line once it holds the lock,
and ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys


def hold(path: str, kind: str) -> None:
    """Hold the lock until the input ends."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as db:
        db.execute("BEGIN IMMEDIATE" if kind == "write" else "BEGIN")
        db.execute("SELECT count(*) FROM log").fetchone()
        print(json.dumps({"say": "locked"}), flush=True)
        sys.stdin.read()
        db.execute("ROLLBACK")


if __name__ == "__main__":
    hold(*sys.argv[1:])
