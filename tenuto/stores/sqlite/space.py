"""The space in an SQLite file: its size, and how much of it is free.

Layer: stores. This code runs on the store's thread; other threads may call `stats` only.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3

from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.file import FREE, SET_ASIDE, SqliteFile
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.sums import is_damage

logger = logging.getLogger("tenuto.stores")

MEASURED_BYTES = 256 * 1024  # the file is measured again after writes of so many bytes
WORTH_BYTES = 16 * 1024 * 1024  # free space below this is not reported in the log


class Space:
    """Measures the file, and logs once when more than half of it is free."""

    def __init__(self, file: SqliteFile, documents: Documents) -> None:
        self._file = file
        self._documents = documents
        self._rollbacks = -1  # the first call of `count_free` counts
        self._bytes = self._free_bytes = self._written = 0
        self._is_reported = False

    def wrote(self, size_bytes: int, log: CommitLog) -> None:
        """Note written bytes, and measure the file if they are many."""
        self._written += size_bytes
        if self._written >= MEASURED_BYTES:
            with contextlib.suppress(sqlite3.Error):  # the commit is stored; `tidy` measures again
                self.measure(log)

    def count_free(self) -> None:
        """Count the free slots again if that is needed. A damaged list of them is set aside."""
        if self._rollbacks != (rollbacks := self._file.rollbacks):
            try:
                self._documents.count_free()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._begin_free()
            self._rollbacks = rollbacks

    def measure(self, log: CommitLog) -> None:
        """Measure the file, with its WAL. Free are its unused pages, and the slots without text in them."""
        self._written = 0
        self.count_free()
        self._bytes, free_bytes = space_in(self._file.db, self._documents)
        self._free_bytes = free_bytes + log.slot_bytes - log.live_bytes
        is_mostly_free = self._free_bytes * 2 > self._bytes and self._free_bytes >= WORTH_BYTES
        if is_mostly_free and not self._is_reported:
            logger.warning(
                "store file %s has %d bytes, of which %d are free; new messages use them, and `tenuto compact` gives "
                "them back while the server is stopped",
                *(self._file.path, self._bytes, self._free_bytes),
            )
        self._is_reported = is_mostly_free

    def _begin_free(self) -> None:
        """Begin a new table of free slots. The damaged one gets another name, because SQLite cannot remove it."""
        with self._file.transaction() as db:
            (number,) = db.execute(
                "SELECT count(*) FROM sqlite_master WHERE name GLOB ?", (f"{SET_ASIDE}*",)
            ).fetchone()
            db.execute(f"ALTER TABLE free RENAME TO {SET_ASIDE}{number}")
            db.execute(FREE)
        self._documents.free_bytes = 0
        logger.error(
            "store file %s: its list of free slots is damaged, and a new one begins; no message is affected. Until "
            "`tenuto compact` has made the file anew, backups of it fail, because they are checked",
            self._file.path,
        )

    def stats(self) -> dict[str, int]:
        """Return the size of the file and its free space, both in bytes, as `measure` last found them."""
        return {"file_bytes": self._bytes, "free_bytes": self._free_bytes}


def space_in(db: sqlite3.Connection, documents: Documents) -> tuple[int, int]:
    """Return the size of a file in bytes, and how many are free apart from those in its log."""
    pages, page_bytes, unused = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size", "freelist_count")
    )
    return pages * page_bytes, unused * page_bytes + documents.free_bytes
