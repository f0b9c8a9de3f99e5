"""Another program that has the store's database open, and does what it should not.

    python -m chaos.locker FILE write|read

Layer: chaos.

Takes SQLite's write lock, or begins to read and does not end; says so on its output, and
lets go when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys


def hold(path: str, kind: str) -> None:
    """Hold the database until told to let go."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as db:
        db.execute("BEGIN IMMEDIATE" if kind == "write" else "BEGIN")
        db.execute("SELECT count(*) FROM log").fetchone()
        print(json.dumps({"say": "locked"}), flush=True)
        sys.stdin.read()
        db.execute("ROLLBACK")


if __name__ == "__main__":
    hold(*sys.argv[1:])
