"""Compaction of an SQLite store: a copy of its file without free slots, which takes the place of the file.

Layer: stores.

A file never shrinks by itself, since free slots are rows (`file`). First the file is opened and closed as by a
server, so that it is whole without its `-wal`. Then the rows that are needed go into `PATH.compact.partial`. The copy
is compared with the file row by row. Then wrong counts of channels are put right, and the copy is synced and renamed to
the file. The lock file first gets the marks of both, so epochs stay, whichever of the two a kill leaves. The next
start removes a copy that was left unfinished.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tenuto.core.errors import LocalError, StoreUnavailable, StoreUnusable
from tenuto.stores.sqlite.backup import PAGE_BYTES, give_owner_of, partial_file
from tenuto.stores.sqlite.channels import COUNTS, MISCOUNTED, Channels
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.file import (
    CLOSED,
    COPY,
    SET_ASIDE,
    SqliteFile,
    at_place,
    new_mark,
    read_mark,
    reading,
    sync,
    wal_of,
)
from tenuto.stores.sqlite.lock import FileLock
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.slots import opened, sealed, tolerant_text

logger = logging.getLogger("tenuto.stores")

_NEEDED_TEXTS = "SELECT id, body FROM old.texts WHERE id IN (SELECT slot FROM old.pieces) ORDER BY id"


def compact(path: Path) -> tuple[int, int]:
    """Replace the store's file by a copy without free slots; epochs and messages stay.

    Return the size of the file in bytes, before and after. Raises LocalError, StoreInUse while a process has the store,
    StoreUnavailable and StoreUnusable.
    """
    if not path.is_file():
        raise LocalError(f"store file {path} does not exist; name the store with --store")
    place = Path(os.path.realpath(path))
    file = SqliteFile(path, synchronous="full", busy_s=5.0, lock_wait_s=0)
    _settle(file)
    try:
        with contextlib.closing(FileLock(Path(f"{place}.lock"))) as lock:
            lock.take(path, wait_s=0)
            _check_settled(path, lock)
            before = place.stat().st_size
            with partial_file(place.with_name(f"{place.name}{COPY}")) as copy:
                try:
                    mark = _fill(copy, place)
                except sqlite3.DatabaseError as error:
                    raise file.refusal(error) from error
                give_owner_of(place, copy)
                sync(copy)
                _swap(copy, place, lock, mark)
            return before, place.stat().st_size
    except OSError as error:
        raise StoreUnavailable(
            f"store file {path} cannot be compacted ({error.strerror}); check the disk and its free space"
        ) from error


def _settle(file: SqliteFile) -> None:
    """Open and close the store, and finish its housekeeping; the file is then whole without its `-wal`."""
    engine = Engine(file)
    engine.open()
    try:
        while engine.spare(is_idle=True) == 0.0:
            pass
    finally:
        engine.close()


def _check_settled(path: Path, lock: FileLock) -> None:
    """Raise StoreUnavailable unless the file is as `_settle` leaves it, or if its disk is too full."""
    wal = wal_of(path)
    mark = read_mark(path)
    if (wal.exists() and wal.stat().st_size) or mark not in lock.marks or not mark.startswith(CLOSED):
        raise StoreUnavailable(
            f"store file {path} cannot be compacted: another process reads or has just used it; end that process, and "
            "run the command again"
        )
    free, needed = shutil.disk_usage(wal.parent).free, path.stat().st_size
    if free < needed:
        raise StoreUnavailable(
            f"store file {path} cannot be compacted: {wal.parent} needs {needed:,} free bytes, and has {free:,}; free "
            "some space"
        )


def _fill(copy: Path, place: Path) -> str:
    """Copy the needed rows of the file `place` into `copy`, and check the copy. Returns its mark."""
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None, uri=True)) as db:
        db.text_factory = tolerant_text
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")  # the caller syncs the whole file
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("ATTACH ? AS old", (f"{place.as_uri()}?mode=ro&immutable=1",))
        db.execute("BEGIN")
        made = db.execute(
            "SELECT type <> 'table', name, sql FROM old.sqlite_master WHERE sql IS NOT NULL"
            " AND name NOT GLOB 'sqlite_*' AND name NOT GLOB ? ORDER BY 1, rowid",
            (f"{SET_ASIDE}*",),
        ).fetchall()
        for is_later, name, sql in made:  # indexes are made later, when their tables have all rows
            if not is_later:
                db.execute(sql)
                if name not in ("free", "texts", "log"):
                    # the WHERE makes SQLite build each index anew; without one it copies those of the old file
                    db.execute("INSERT INTO main.{0} SELECT * FROM old.{0} WHERE 1".format(_quoted(name)))
        db.execute(f"INSERT INTO main.texts {_NEEDED_TEXTS}")
        slots = _needed_log(place)
        db.executemany("INSERT INTO main.log VALUES (?, ?)", _log_rows(db, slots))
        for is_later, _, sql in made:
            if is_later:
                db.execute(sql)
        for pragma in ("application_id", "user_version"):
            (value,) = db.execute(f"PRAGMA old.{pragma}").fetchone()
            db.execute(f"PRAGMA main.{pragma} = {value}")
        mark = new_mark(CLOSED)
        db.execute("UPDATE main.life SET mark = ?", (mark,))
        db.execute("COMMIT")
        db.text_factory = bytes  # an exact comparison, also of text that is no UTF-8
        _compare(db, [name for is_later, name, _ in made if not is_later], slots)
        db.text_factory = tolerant_text
        for number, name in db.execute(MISCOUNTED).fetchall():
            _count_anew(db, place, number, name)
        (found,) = db.execute("PRAGMA main.integrity_check(1)").fetchone()
        if found != "ok":
            raise StoreUnavailable(f"compacted copy is damaged ({found}); check the disk")
    return mark


def _count_anew(db: sqlite3.Connection, place: Path, number: int, name: str) -> None:
    """Correct the counts of a channel in the copy. If a message is damaged or lost they stay: they may include it."""
    documents = Documents(db)
    listed = "SELECT count(*) FROM old.documents INDEXED BY documents_message WHERE channel = ?"
    with contextlib.suppress(StoreUnusable, sqlite3.DatabaseError):
        rows = db.execute("SELECT id, message FROM documents WHERE channel = ?", (number,)).fetchall()
        for key, message_id in rows:
            documents.read(key, message_id, number)
        if db.execute(listed, (number,)).fetchone() == (len(rows),):
            counts = "SELECT messages, size_bytes FROM channels WHERE id = ?"
            before = db.execute(counts, (number,)).fetchone()
            db.execute(f"UPDATE channels SET (messages, size_bytes) = ({COUNTS}) WHERE id = ?", (number,))
            now = db.execute(counts, (number,)).fetchone()
            logger.warning(
                "store file %s: channel %r had the counts of %s messages and %s bytes, and has %s messages of "
                "%s bytes; the counts are right now",
                *(place, name, *before, *now),
            )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _needed_log(place: Path) -> list[int]:
    """Return the slots of the log that hold entries which no document contains."""
    with reading(place, is_immutable=True) as db:
        log = CommitLog()
        log.load(db, Channels(db).tracked)
        if log.damaged:
            raise StoreUnusable(f"store file {place} is damaged in its log; restore a backup")
        return sorted({slot for tracked in log.pinned.values() for slot in tracked.slots})


def _log_rows(db: sqlite3.Connection, slots: list[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of the log in `slots` of the old file, with new numbers: those of a log have no gap."""
    for number, slot in enumerate(slots, 1):
        (row,) = db.execute("SELECT body FROM old.log WHERE id = ?", (slot,)).fetchone()
        data = opened((slot,), row, mends=True)  # a bit that changed is put right
        assert data is not None  # `_needed_log` refuses damaged rows
        yield number, sealed((number,), data, len(row))


def _compare(db: sqlite3.Connection, tables: list[str], slots: list[int]) -> None:
    """Raise StoreUnavailable unless the copy has each needed row of the old file, and no other one."""
    for name in tables:
        new, old = (f"SELECT * FROM {one}.{_quoted(name)}" for one in ("main", "old"))
        needed: Iterable[Any] = ()
        if name == "log":
            needed = _log_rows(db, slots)
        elif name not in ("free", "life"):  # `free` is empty in the copy, and `life` has another mark
            needed = db.execute(_NEEDED_TEXTS if name == "texts" else old)
        if name != "life" and any(one != other for one, other in zip_longest(db.execute(new), needed)):
            raise StoreUnavailable(f"compacted copy has other rows in its table {name} than the file; check the disk")


def _swap(copy: Path, place: Path, lock: FileLock, mark: str) -> None:
    """Put the copy in the place of the file. At each moment the one or the other is whole, and is known to the lock."""
    placed = at_place(mark, copy.stat().st_ino)
    lock.keep(*lock.placed, placed)
    for end in ("-wal", "-shm"):
        Path(f"{place}{end}").unlink(missing_ok=True)
    sync(place.parent)
    copy.replace(place)
    sync(place.parent)
    lock.keep(placed)
