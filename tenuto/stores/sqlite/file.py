"""The SQLite file: its lock, its schema, and the checks that its history is the one that this server left.

Layer: stores. This code runs on the store's thread.

This module decides whether a file may be opened, and whether the serials of its channels still have their old meaning
(epochs). Pragmas may be tuned; from the first release on the tables may only be changed together with `SCHEMA`, and a
file with another number is refused.

Each opening, each clean close and each backup writes a new **mark** into the database, a random number that begins with
OPEN, CLOSED or BACKUP. The lock file, which a backup does not contain, names the mark together with its place: the
inode of the file and, while it is open with synchronous=normal, the boot of the machine. If the lock file does not name
mark and place, the database is not the last one used here, or may have lost entries, and its channels begin new epochs.
The lock file first gets both marks, then the database takes the new one, then the lock file drops the old one; each
step is on the disk before the next. So after a crash at any point the lock file names the database's mark; and no
entry is stored before the old mark is dropped. A removed or emptied lock file names no mark: all channels then begin
new epochs, whose only cost is that viewers start anew. Two cases go unnoticed: a copy of the running database that
another program made, restored after that very process was killed, and a backup restored together with its lock file.

SQLite would apply a foreign `-wal` to the file, and destroy it. So the file is first read without its `-wal`. If the
lock file names its mark, the `-wal` is its own. If the header of the file has no WAL, as in each backup, the `-wal` is
foreign: it gets another name; also if the lock file names other marks, and the file is a backup or was closed cleanly
elsewhere. In all other cases the store does not guess and refuses to start, also if it cannot read the file: a crash
within a checkpoint may have torn it, which its `-wal` repairs, or it is an incomplete copy.

Deleted text must leave the file, and `secure_delete` alone does not ensure that. SQLite zeroes the space that it
frees, but when it redistributes rows over neighbouring pages it leaves copies in their gaps: with 3.40, one deleted
text in a thousand could still be read in the file. So the rows that hold text, those of `log` and `texts`, are
*slots*: added at the end of their table, of one size for ever, overwritten in place, never deleted one by one. SQLite
never moves such rows. All other tables hold numbers, names and ids only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores.base import CommitUnknown
from tenuto.stores.sqlite.channels import begin_epochs
from tenuto.stores.sqlite.lock import FILE_MODE, NO_MARK, FileLock
from tenuto.stores.sqlite.slots import damaged, error_code, is_damage, tolerant_text

logger = logging.getLogger("tenuto.stores")

UNREADABLE = "?"  # stands for the mark of a file that cannot be read
OPEN, CLOSED, BACKUP = "open-", "closed-", "backup-"  # the begins of marks
_WAL_MODE = b"\x02\x02"  # bytes 18 and 19 of each file that has a WAL


def new_mark(begin: str) -> str:
    return begin + secrets.token_hex(8)


def at_place(mark: str, inode: int, boot: str = "") -> str:
    """Return a mark with its place, as the lock file names it."""
    return f"{mark}:{inode}{boot}"


@contextlib.contextmanager
def reading(path: Path, *, is_immutable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a connection that cannot write. With `is_immutable`, or a foreign `-wal`, it reads the file without that."""
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if is_immutable or has_foreign_wal(path) else ''}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.text_factory = tolerant_text
        yield db


def read_mark(path: Path) -> str:
    """Return the mark of the file itself, without its `-wal`; UNREADABLE if it cannot be read."""
    try:
        with reading(path, is_immutable=True) as db:
            db.execute("PRAGMA writable_schema = 1")  # so that SQLite reads a file that was cut, too
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'life'").fetchone() is None:
                return NO_MARK
            row = db.execute("SELECT mark FROM life").fetchone()
    except (sqlite3.Error, *DAMAGE):
        return UNREADABLE
    return str(row[0]) if row is not None else NO_MARK


def check_wal(path: Path, lock: FileLock) -> None:
    """Set a foreign `-wal` aside. Raises StoreUnusable if it is not certain whether it is foreign."""
    wal = wal_of(path)
    if not wal.exists() or not wal.stat().st_size:
        return
    is_empty = not path.exists() or not path.stat().st_size
    mark = BACKUP if is_empty else read_mark(path)  # an empty file has no WAL either
    if mark in lock.marks:
        return  # it belongs to the file
    if _is_foreign(path, mark, lock):
        aside = set_aside(path)
        logger.warning("store file %s is a backup; %s, of the file that it replaced, is now %s", path, wal, aside)
        return
    if mark == UNREADABLE:
        why = "the file itself cannot be read"
    elif lock.marks == (NO_MARK,):
        why = "its lock file is missing"
    else:
        why = "its lock file belongs to another file"
    raise StoreUnusable(
        f"store file {path} has a {wal.name} beside it that may belong to another file ({why}). If a backup was copied "
        f"here, run `tenuto restore BACKUP --store sqlite:///{path}`; if not, keep the -wal by "
        f"`tenuto restore --keep-wal --store sqlite:///{path}`"
    )


def set_aside(path: Path) -> Path:
    """Give the `-wal` of another file a name under which SQLite does not find it, and return that."""
    wal = wal_of(path)
    aside = wal.with_name(f"{wal.name}.foreign-{secrets.token_hex(4)}")
    wal.rename(aside)
    Path(f"{os.path.realpath(path)}-shm").unlink(missing_ok=True)
    sync(wal.parent)
    return aside


def has_foreign_wal(path: Path) -> bool:
    """Return whether a start would set the `-wal` aside (`check_wal`); a server may have the file open."""
    lock = FileLock(Path(f"{os.path.realpath(path)}.lock"))
    lock.look()  # before the file: a start or a close names its new mark here first
    mark, wal = read_mark(path), wal_of(path)
    return _is_foreign(path, mark, lock) and wal.exists() and wal.stat().st_size > 0


def _is_foreign(path: Path, mark: str, lock: FileLock) -> bool:
    if mark in (UNREADABLE, *lock.marks):
        return False
    # A start puts a WAL into the header. While a reader blocks checkpoints, the file keeps its former mark.
    return _header(path) != _WAL_MODE or (lock.marks != (NO_MARK,) and mark.startswith((BACKUP, CLOSED)))


def wal_of(path: Path) -> Path:
    """Return the path of the WAL, which SQLite puts beside the real file."""
    return Path(f"{os.path.realpath(path)}-wal")


def control_of(path: Path) -> Path:
    """Return the path of the control socket of a hub that serves the store, beside the real file."""
    return Path(f"{os.path.realpath(path)}.ctl")


def sync(path: Path) -> None:
    """Make the bytes of a file durable, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _header(path: Path) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(20)[18:]


APPLICATION_ID = 0x54656E75  # the letters "Tenu" as a number, by which SQLite files show their application
SCHEMA = 1
COPY = ".compact"  # end of the name of the copy that a compaction makes (`compact`)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

FREE = "CREATE TABLE free (room INTEGER NOT NULL, slot INTEGER NOT NULL, PRIMARY KEY (room, slot)) WITHOUT ROWID"
SET_ASIDE = "damaged_free_"  # a table of free slots that was damaged gets this name and a number

_TABLES = (
    # One row with the mark. It is here and not in a note: no other data is on this page, so a `-wal` that was left
    # beside a restored backup does not give it the mark of the file that it replaced.
    "CREATE TABLE life (one INTEGER PRIMARY KEY, mark TEXT NOT NULL)",
    # A deleted channel has no name. Its row stays until its documents are removed.
    """CREATE TABLE channels (
        id INTEGER PRIMARY KEY, name TEXT UNIQUE, epoch TEXT NOT NULL, floor INTEGER NOT NULL, crc INTEGER,
        created_ms INTEGER NOT NULL DEFAULT 0, updated_ms INTEGER NOT NULL DEFAULT 0,
        messages INTEGER NOT NULL DEFAULT 0, size_bytes INTEGER NOT NULL DEFAULT 0)""",
    """CREATE TABLE documents (
        id INTEGER PRIMARY KEY, channel INTEGER NOT NULL, message TEXT NOT NULL, created INTEGER NOT NULL,
        version INTEGER NOT NULL, open INTEGER NOT NULL, deleted INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, target TEXT, until_ms INTEGER, crc INTEGER)""",
    "CREATE UNIQUE INDEX documents_message ON documents (channel, message)",
    "CREATE INDEX documents_version ON documents (channel, version)",
    "CREATE INDEX documents_created ON documents (channel, deleted, created)",
    "CREATE INDEX documents_open ON documents (channel) WHERE open = 1",
    # Documents whose data will be removed with their target or after a time; only commands have such data.
    "CREATE INDEX documents_target ON documents (channel, target) WHERE target IS NOT NULL",
    "CREATE INDEX documents_until ON documents (until_ms) WHERE until_ms IS NOT NULL",
    # The slots of a document: blob 0 is its head, each later blob holds the segments of one write.
    """CREATE TABLE pieces (
        document INTEGER NOT NULL, blob INTEGER NOT NULL, chunk INTEGER NOT NULL, slot INTEGER NOT NULL,
        PRIMARY KEY (document, blob, chunk)) WITHOUT ROWID""",
    "CREATE TABLE texts (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    FREE,
    "CREATE TABLE log (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    # Ids that cannot be used again, of messages in deleted channels.
    """CREATE TABLE graves (
        channel TEXT NOT NULL, message TEXT NOT NULL, until_ms INTEGER NOT NULL,
        PRIMARY KEY (channel, message)) WITHOUT ROWID""",
    "CREATE INDEX graves_until ON graves (until_ms)",
    # Notes: small values that the hub keeps under names that it chooses.
    "CREATE TABLE notes (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA}",
)


class SqliteFile:
    """The file, while it is open: its one connection, which one thread uses for all work, and the lock on it.

    There is one connection so that no write can overlap a checkpoint: before 3.51.3 SQLite may corrupt a WAL file when
    a write and a checkpoint of two connections overlap (sqlite.org/wal.html, "the WAL-reset bug").
    """

    db: sqlite3.Connection

    def __init__(self, path: Path, *, synchronous: str, busy_s: float, lock_wait_s: float) -> None:
        self.path = path
        self.rollbacks = 0  # number of transactions that were undone
        self._synchronous = synchronous
        self._busy_ms = int(busy_s * 1000)
        self._lock_wait_s = lock_wait_s
        self._place = os.path.realpath(path)  # the process may change its directory meanwhile
        self._lock = FileLock(Path(f"{self._place}.lock"))
        self.give_up = self._lock.give_up.set  # ends the wait for the lock; may be called from any thread

    def open(self, load: Callable[[], None]) -> None:
        """Take the lock, open the file and call `load`. Raises StoreInUse, StoreUnusable or StoreUnavailable."""
        try:
            self._open(load)
        except BaseException:
            self.abandon()
            raise

    def _open(self, load: Callable[[], None]) -> None:
        try:
            if self.path.exists() and not self.path.is_file():
                raise StoreUnavailable(f"store file {self.path} is a directory or a device; name a file")
            if not self._lock.path.exists():  # no store was opened here before
                self._check_before_lock()
            self._lock.take(self.path, wait_s=self._lock_wait_s)
            with contextlib.suppress(OSError):  # an unfinished copy holds text that may be deleted later
                Path(f"{self._place}{COPY}.partial").unlink(missing_ok=True)
            check_wal(self.path, self._lock)
            self._connect()
            load()
        except sqlite3.Error as error:
            raise self.refusal(error) from error
        except DAMAGE as error:  # also an error of SQLite that names a damaged table or index
            raise damaged(f"store file {self.path}", error) from error
        except PermissionError as error:
            raise StoreUnavailable(
                f"store file {self.path} cannot be used ({error.strerror}); run as its owner"
            ) from None

    def close(self) -> None:
        """Close the file cleanly, and record in it that it was closed."""
        try:
            self._record_end()
            self._keep_after_checkpoint()
        except (sqlite3.Error, StoreUnavailable) as error:
            logger.warning("store file %s was not closed cleanly; the next start repairs it: %s", self.path, error)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Release connection and lock, whatever their state."""
        try:
            if hasattr(self, "db"):
                with contextlib.suppress(sqlite3.Error):
                    self.db.close()
                del self.db
        finally:
            self._lock.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction, all or nothing. Raises sqlite3.Error, StoreUnavailable or CommitUnknown."""
        self._check_place()
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
        except BaseException:
            self._roll_back()
            raise
        try:
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if error_code(error) == sqlite3.SQLITE_IOERR and error.sqlite_errorcode != sqlite3.SQLITE_IOERR_WRITE:
                # The WAL may hold the whole transaction although its sync failed: after a crash it might count.
                raise CommitUnknown(f"commit to store file {self.path} is in doubt: {_explain(error)}") from error
            raise

    def _check_place(self) -> None:
        """Raise StoreUnavailable if the file is not at its path any more: the next start would not find new content."""
        try:
            is_here = os.stat(self._place).st_ino == self._inode
        except OSError as error:
            is_here = not isinstance(error, FileNotFoundError)
        if not is_here:
            reason = "the file was removed or replaced while it is open; put it back, or restart the server"
            raise StoreUnavailable(f"store file {self.path} is not available: {reason}", reason=reason)

    def checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> bool:
        """Move the content of the WAL into the file and, with TRUNCATE, empty the WAL.

        Then the file has the last mark, and the lock file drops the former ones. Returns False if a reader blocks it.
        """
        self.db.execute("PRAGMA busy_timeout = 0")  # a reader in another process must not make writers wait
        try:
            busy, frames, moved = self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        finally:
            self.db.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
        is_done = not busy and bool(frames == moved)
        if is_done and len(self._lock.marks) > 1:
            self._lock.keep(self._lock.placed[-1])
        return is_done

    def refusal(self, error: sqlite3.Error) -> StoreUnusable | StoreUnavailable:
        """Return the Tenuto error for a file that could not be opened."""
        if is_damage(error):
            return StoreUnusable(f"store file {self.path} cannot be used: {_explain(error)}")
        return self.unavailable(error)

    def unavailable(self, error: sqlite3.Error) -> StoreUnavailable:
        """Return the Tenuto error for an operation that failed and was undone."""
        advice = _ADVICE.get(error_code(error))
        details = {"reason": advice} if advice else {}
        return StoreUnavailable(f"store file {self.path} is not available: {_explain(error)}", **details)

    def _connect(self) -> None:
        """Connect to the file, create its tables if it is new, and record the start."""
        with contextlib.suppress(OSError):  # if this fails, SQLite reports the reason
            # SQLite gives `-wal` and `-shm` the mode of the database, so only that is set. An existing file keeps its.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, FILE_MODE))
        self.db = db = sqlite3.connect(self.path, isolation_level=None, timeout=self._busy_ms / 1000)
        db.text_factory = tolerant_text
        is_new = self._is_empty(db)
        if is_new and self._lock.placed:
            logger.warning("new store file %s, although its lock file exists: was a former one removed?", self.path)
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA auto_vacuum = NONE")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreUnusable(f"store file {self.path} is on a file system without support of a WAL; use a local one")
        with contextlib.suppress(OSError):  # as above; and a file system may have no such locks
            self._lock.take_file(self.path)
        # automatic checkpoints are switched off: inside COMMIT one would cost up to 20 ms (see `checkpoint`)
        db.execute("PRAGMA wal_autocheckpoint = 0")
        # writes of this method are always synced; the configured value is set afterwards
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # on macOS a sync otherwise leaves data in the cache of the disk
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA cache_size = -16000")
        self._inode = os.stat(self._place).st_ino
        with self.transaction():
            for statement in _TABLES if is_new else ():
                db.execute(statement)
            check_tables(db, f"store file {self.path}")
            self._record_start()
        self._keep_after_checkpoint()
        db.execute(f"PRAGMA synchronous = {self._synchronous}")

    def _keep_after_checkpoint(self) -> None:
        """Move the WAL with the new mark into the file; from then on the lock file names only that mark.

        While a reader blocks this move, the file itself still has an earlier mark. The lock file then keeps the
        earlier marks, so that `check_wal` recognises the WAL as the file's own.
        """
        if not self.checkpoint("TRUNCATE"):
            self._lock.keep(*self._lock.marks[:-1], self._lock.placed[-1])

    def _check_before_lock(self) -> None:
        """Raise StoreUnusable for a file that Tenuto cannot use, before a lock file is made beside it.

        An existing lock file is the sign of a store. This reads the file itself, without its WAL, and creates no file.
        `_is_empty` is called again when the lock is held.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            return
        try:
            with reading(self.path, is_immutable=True) as db:
                self._is_empty(db)
        except sqlite3.Error as error:
            if is_damage(error):  # other problems are reported once the lock is held
                if not has_foreign_wal(self.path):
                    check_wal(self.path, self._lock)  # raises if its own -wal may make the file whole again
                raise self.refusal(error) from error

    def _is_empty(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is empty. Raises StoreUnusable for one of another program or of another schema."""
        queries = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        is_empty = not any(db.execute(query).fetchone()[0] for query in queries)
        if not is_empty:
            check_header(db, f"store file {self.path}", advice="give Tenuto a file of its own")
        return is_empty

    def _record_start(self) -> None:
        """Begin new epochs if the history behind a serial may have changed, and write a new mark.

        The caller is in a transaction; once that is committed, it makes the lock file keep this mark alone.
        """
        boot, lock, mark = _boot(), self._lock, new_mark(OPEN)
        row = self.db.execute("SELECT mark FROM life").fetchone()
        before = str(row[0]) if row is not None else NO_MARK
        known = {at_place(before, self._inode), at_place(before, self._inode, boot)}.intersection(lock.placed)
        if row is not None and not known:
            logger.warning(
                "store file %s begins new epochs for all channels: the file is a restored backup or a copy, its lock "
                "file was removed, or the machine went down while the file was open with synchronous=normal",
                self.path,
            )
            begin_epochs(self.db)
        if self._synchronous == "normal":
            logger.warning("store file %s has synchronous=normal: a power cut may lose the last moments", self.path)
        placed = at_place(mark, self._inode, boot if self._synchronous == "normal" else "")
        # Marks after that of the database were never committed. An unknown mark is not named with its place: a crash
        # before the commit must not leave the old history valid.
        former = lock.marks[: lock.marks.index(before)] if before in lock.marks else lock.marks
        lock.keep(*former, *(known or [before]), placed)
        self.db.execute("REPLACE INTO life VALUES (1, ?)", (mark,))

    def _record_end(self) -> None:
        """Record a clean close, under a new mark, so that a backup of the open file has an outdated one."""
        lock, mark = self._lock, new_mark(CLOSED)
        self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            lock.keep(*lock.placed, at_place(mark, self._inode))
            db.execute("UPDATE life SET mark = ?", (mark,))

    def _roll_back(self) -> None:
        self.rollbacks += 1
        if self.db.in_transaction:  # after some errors SQLite has already rolled back
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")


def check_header(db: sqlite3.Connection, what: str, *, advice: str) -> None:
    """Raise StoreUnusable for a database of another program, with the `advice`, or of another schema."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StoreUnusable(f"{what} is a database of another program (application id {application}); {advice}")
    if schema != SCHEMA:
        raise StoreUnusable(
            f"{what} was written by another version of Tenuto: it has schema {schema}, and this one knows {SCHEMA}; "
            "use that version, or name another file"
        )


def check_tables(db: sqlite3.Connection, what: str, *, remedy: str = "restore a backup") -> None:
    """Raise StoreUnusable unless the file has the tables and indexes of the current schema.

    SQLite keeps their descriptions as text. After a changed byte in it, SQLite may read rows as something else.
    Further tables and indexes are ignored.
    """
    found = _described(db)
    wrong = [name for name, described in _expected().items() if found.get(name) != described]
    for statement in _TABLES:
        for name in wrong:
            if name not in found and f" INDEX {name} " in statement:
                raise StoreUnusable(
                    f"{what} cannot be read: it has no index {name!r} (if another program dropped it, run the SQL "
                    f"{statement}); {remedy}"
                )
    if wrong:
        raise StoreUnusable(f"{what} cannot be read: its description of {wrong[0]!r} is damaged; {remedy}")


@cache
def _expected() -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        for statement in _TABLES:
            new.execute(statement)
        return _described(new)


def _described(db: sqlite3.Connection) -> dict[str, str]:
    """Return the type and the statement of each table and index, by their names, without white space."""
    rows = db.execute("SELECT name, type || sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: "".join(described.split()) for name, described in rows}


def _boot() -> str:
    """Return a text that changes when the machine reboots; a new one if the system does not provide it."""
    try:
        return f":{BOOT_ID.read_text().strip() or secrets.token_hex(8)}"
    except OSError:
        return f":{secrets.token_hex(8)}"


_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_READONLY: "it cannot be written; file and directory must be writable for this user",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; is it a file, and file and directory writable for this user?",
    sqlite3.SQLITE_IOERR: "reading or writing failed; check the disk and the limits on file sizes",
    sqlite3.SQLITE_BUSY: "another process writes to this database; stop it, Tenuto's file is for Tenuto alone",
    sqlite3.SQLITE_NOTADB: "the file is not a database, or its start is damaged; name another one, or restore a backup",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; run `tenuto verify`, which says what helps, or restore a backup",
}


def _explain(error: sqlite3.Error) -> str:
    advice = _ADVICE.get(error_code(error))
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{advice} ({name}: {error})" if advice else f"{name}: {error}"
