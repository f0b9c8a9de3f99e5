"""The backup of an SQLite file before its migration, and the space that both need.

Layer: stores. This code runs on the store's thread.

A migration is one transaction, so a process that is killed in it leaves the old file. The backup is for another case: a
person who wants the old version of Tenuto back. It carries the mark of a backup, so each start from it begins new
epochs.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from tenuto.core.errors import StoreUnavailable
from tenuto.stores.sqlite.backup import copy, finish, partial_file
from tenuto.stores.sqlite.file import SCHEMA

# Needed space in sizes of the file. A migration writes changed pages to the `-wal`, and copies the log (measured: 0.9).
SIZES_OF_MIGRATION = 2
SIZES_OF_BACKUP = 1


def prepare(db: sqlite3.Connection, path: Path, *, has_backup: bool) -> None:
    """Check the free space for a migration of the file `path` and, with `has_backup`, write `PATH.before-N`.

    N is the number of the new schema. A file of that name is replaced, because it is an earlier state of this file.
    Raises StoreUnavailable.
    """
    place = Path(os.path.realpath(path))
    (pages,), (page_bytes,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
    needed = pages * page_bytes * (SIZES_OF_MIGRATION + SIZES_OF_BACKUP * has_backup)
    free = shutil.disk_usage(place.parent).free
    if free < needed:
        raise StoreUnavailable(
            f"store file {path} cannot be migrated to schema {SCHEMA}: {place.parent} needs {needed:,} free bytes, and "
            f"has {free:,}; free some space" + (", or leave out the backup by --no-migration-backup" * has_backup)
        )
    if not has_backup:
        return
    target = place.with_name(f"{place.name}.before-{SCHEMA}")
    with partial_file(target) as partial:
        copy(db, partial, bytes_per_s=float("inf"), pause=lambda _: True)
        finish(partial, target, is_new=False)
