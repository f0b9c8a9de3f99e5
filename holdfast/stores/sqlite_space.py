"""The space in an SQLite file: its size, and how much of it is free.

Layer: stores. This code runs on the store's thread; other threads may call `stats` only.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3

from holdfast.stores.sqlite_documents import Documents
from holdfast.stores.sqlite_file import SqliteFile
from holdfast.stores.sqlite_log import CommitLog

logger = logging.getLogger("holdfast.stores")

MEASURED_BYTES = 256 * 1024  # the file is measured again after writes of so many bytes
WORTH_BYTES = 16 * 1024 * 1024  # free space below this is not reported in the log


class Space:
    """Measures the file, and logs once when more than half of it is free."""

    def __init__(self, file: SqliteFile, documents: Documents) -> None:
        self._file = file
        self._documents = documents
        self._rollbacks = -1  # the first call of `measure` counts the free slots
        self._bytes = self._free_bytes = self._written = 0
        self._is_reported = False

    def wrote(self, size_bytes: int, log: CommitLog) -> None:
        """Note written bytes, and measure the file if they are many."""
        self._written += size_bytes
        if self._written >= MEASURED_BYTES:
            with contextlib.suppress(sqlite3.Error):  # the commit is stored; `tidy` measures again
                self.measure(log)

    def measure(self, log: CommitLog) -> None:
        """Measure the file, with its WAL. Free are its unused pages, and the slots without text in them."""
        self._written = 0
        if self._rollbacks != (rollbacks := self._file.rollbacks):
            self._documents.count_free()
            self._rollbacks = rollbacks
        self._bytes, free_bytes = space_in(self._file.db, self._documents)
        self._free_bytes = free_bytes + log.slot_bytes - log.live_bytes
        is_mostly_free = self._free_bytes * 2 > self._bytes and self._free_bytes >= WORTH_BYTES
        if is_mostly_free and not self._is_reported:
            logger.warning(
                "store file %s has %d bytes, of which %d are free; new messages use them, and `holdfast compact` gives "
                "them back while the server is stopped",
                *(self._file.path, self._bytes, self._free_bytes),
            )
        self._is_reported = is_mostly_free

    def stats(self) -> dict[str, int]:
        """Return the size of the file and its free space, both in bytes, as `measure` last found them."""
        return {"file_bytes": self._bytes, "free_bytes": self._free_bytes}


def space_in(db: sqlite3.Connection, documents: Documents) -> tuple[int, int]:
    """Return the size of a file in bytes, and how many are free apart from those in its log."""
    pages, page_bytes, unused = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size", "freelist_count")
    )
    return pages * page_bytes, unused * page_bytes + documents.free_bytes
