"""The SQLite file: its lock, its schema, and the checks that its history is the one that this server left.

Layer: stores. This code runs on the store's thread.

This module decides whether a file may be opened, and whether the serials of its channels still have their old meaning
(epochs). Pragmas may be tuned; the tables may only be changed together with `SCHEMA` and a migration (`_start`), and a
file with another number is refused.

A restored backup may have the inode of the file that it replaces. So each opening and each clean close writes a new
nonce both into the database and into the lock file, which a backup of the database does not contain. A
database whose nonce the lock file does not name is not the last one used here, and its channels begin new epochs.
The lock file first gets both nonces, then the database takes the new one, then the lock file drops the old one; each
step is on the disk before the next. So after a crash at any point the lock file names the database's nonce; and no
entry is stored before the old nonce is dropped. A removed or emptied lock file names no nonce: a database with a nonce
then begins new epochs, whose only cost is that viewers start anew. A backup by `backup` carries a mark in
place of a nonce, so each start from it begins new epochs. Two cases go unnoticed: a copy of the running database that
another program made, restored after that very process was killed, and a backup restored together with its lock file.

SQLite would apply a foreign `-wal` to the file, and destroy it. So the file is first read without its `-wal`. If the
lock file names its nonce, the `-wal` is its own. If the header of the file has no WAL, as in each backup, the `-wal` is
foreign: it gets another name; also if the lock file names other nonces, and the file is a backup or was closed cleanly
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
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores.base import CommitUnknown
from tenuto.stores.sqlite.channels import begin_epochs
from tenuto.stores.sqlite.lock import FILE_MODE, NO_NONCE, FileLock
from tenuto.stores.sqlite.slots import damaged, error_code, is_damage, tolerant_text

logger = logging.getLogger("tenuto.stores")

UNREADABLE = "?"  # stands for the nonce of a file that cannot be read
BACKUP = "backup"  # stands for the inode number in a backup; a start replaces it
_WAL_MODE = b"\x02\x02"  # bytes 18 and 19 of each file that has a WAL


class FileState(NamedTuple):
    """The state in which a process left a file, read without its `-wal`."""

    inode: str
    nonce: str
    was_clean: bool


def inode_and_nonce(file: str) -> tuple[str, str]:
    """Return the inode number and the nonce in a row of `life`."""
    inode, _, nonce = file.partition(" ")
    return inode, nonce or NO_NONCE


@contextlib.contextmanager
def reading(path: Path, *, is_immutable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a connection that cannot write. With `is_immutable` it reads the file itself, without its `-wal`."""
    uri = f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' if is_immutable else ''}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.text_factory = tolerant_text
        yield db


def read_file_state(path: Path) -> FileState:
    """Return the state of the file itself, without its `-wal`; one with the nonce UNREADABLE if it cannot be read."""
    try:
        with reading(path, is_immutable=True) as db:
            db.execute("PRAGMA writable_schema = 1")  # so that SQLite reads a file that was cut, too
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'life'").fetchone() is None:
                return FileState("", NO_NONCE, False)
            row = db.execute("SELECT inode, clean FROM life").fetchone()
    except (sqlite3.Error, *DAMAGE):
        return FileState("", UNREADABLE, False)
    return FileState(*inode_and_nonce(row[0]), bool(row[1])) if row is not None else FileState("", NO_NONCE, False)


def check_wal(path: Path, lock: FileLock) -> None:
    """Set a foreign `-wal` aside. Raises StoreUnusable if it is not certain whether it is foreign."""
    wal = wal_of(path)
    if not wal.exists() or not wal.stat().st_size:
        return
    is_empty = not path.exists() or not path.stat().st_size
    state = FileState(BACKUP, "", True) if is_empty else read_file_state(path)
    if state.nonce in (*lock.nonces, *lock.former):
        return
    if _is_foreign(path, state, lock):
        aside = set_aside(path)
        logger.warning(
            "store file %s is a backup, and %s belongs to the file that it replaced; it is now %s", path, wal, aside
        )
        return
    if state.nonce == UNREADABLE:
        why = "the file itself cannot be read"
    elif lock.is_blank:
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
    lock.look()  # before the file: a start or a close names its new nonce here first
    state, wal = read_file_state(path), wal_of(path)
    return _is_foreign(path, state, lock) and wal.exists() and wal.stat().st_size > 0


def _is_foreign(path: Path, state: FileState, lock: FileLock) -> bool:
    if state.nonce in (UNREADABLE, *lock.nonces, *lock.former):
        return False
    # A start puts a WAL into the header. While a reader blocks checkpoints, the file keeps its mark or clean end.
    return _header(path) != _WAL_MODE or (not lock.is_blank and (state.inode == BACKUP or state.was_clean))


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


Synchronous = Literal["normal", "full", "extra"]

APPLICATION_ID = 0x54656E75  # the letters "Tenu" as a number, by which SQLite files show their application
SCHEMA = 1
COPY = ".compact"  # end of the name of the copy that a compaction makes (`compact`)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Indexes of documents whose data will be removed with their target or after a time; only commands have such data.
_INDEXES_OF_DATA = (
    "CREATE INDEX documents_target ON documents (channel, target) WHERE target IS NOT NULL",
    "CREATE INDEX documents_until ON documents (until_ms) WHERE until_ms IS NOT NULL",
)

FREE = "CREATE TABLE free (room INTEGER NOT NULL, slot INTEGER NOT NULL, PRIMARY KEY (room, slot)) WITHOUT ROWID"
SET_ASIDE = "damaged_free_"  # a table of free slots that was damaged gets this name and a number
_LOG = "CREATE TABLE log (id INTEGER PRIMARY KEY, body BLOB NOT NULL)"

_TABLES = (
    # One row about the state in which a process left the file, for the checks of the next process. `inode` is the
    # file's inode number and, after a space, the nonce. The nonce is here and not in a note: no other data is on this
    # page, so a `-wal` that was left beside a restored backup does not give it the nonce of the file that it replaced.
    """CREATE TABLE life (
        one INTEGER PRIMARY KEY, boot TEXT NOT NULL, inode TEXT NOT NULL, synchronous TEXT NOT NULL,
        clean INTEGER NOT NULL)""",
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
    *_INDEXES_OF_DATA,
    # The slots of a document: blob 0 is its head, each later blob holds the segments of one write.
    """CREATE TABLE pieces (
        document INTEGER NOT NULL, blob INTEGER NOT NULL, chunk INTEGER NOT NULL, slot INTEGER NOT NULL, crc INTEGER,
        PRIMARY KEY (document, blob, chunk)) WITHOUT ROWID""",
    "CREATE TABLE texts (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    FREE,
    _LOG,
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

    def __init__(self, path: Path, *, synchronous: Synchronous, busy_s: float, lock_wait_s: float) -> None:
        self.path = path
        self.rollbacks = 0  # number of transactions that were undone
        self._synchronous = synchronous
        self._busy_ms = int(busy_s * 1000)
        self._lock_wait_s = lock_wait_s
        self._lock = FileLock(Path(f"{os.path.realpath(path)}.lock"))

    def open(self) -> None:
        """Take the lock and open the file. Raises StoreInUse, StoreUnusable or StoreUnavailable."""
        try:
            if self.path.exists() and not self.path.is_file():
                raise StoreUnavailable(f"store file {self.path} is a directory or a device; name a file")
            if not self._lock.path.exists():  # no store was opened here before
                self._check_before_lock()
            self._lock.take(self.path, wait_s=self._lock_wait_s)
            with contextlib.suppress(OSError):  # an unfinished copy holds text that may be deleted later
                Path(f"{os.path.realpath(self.path)}{COPY}.partial").unlink(missing_ok=True)
            check_wal(self.path, self._lock)
            self._connect()
        except sqlite3.Error as error:
            self.abandon()
            raise self.refusal(error) from error
        except DAMAGE as error:  # also an error of SQLite that names a damaged table or index
            self.abandon()
            raise damaged(self.path, error) from error
        except PermissionError as error:
            self.abandon()
            raise StoreUnavailable(
                f"store file {self.path} cannot be used ({error.strerror}); run as its owner"
            ) from None
        except BaseException:
            self.abandon()
            raise

    def give_up(self) -> None:
        """Stop waiting for the lock. May be called from any thread."""
        self._lock.give_up.set()

    def close(self) -> None:
        """Close the file cleanly, and record in it that it was closed."""
        try:
            if hasattr(self, "db"):
                before, nonce = self._record_end()
                self._keep_after_checkpoint(before, nonce)
        except (sqlite3.Error, StoreUnavailable) as error:
            logger.warning(
                "store file %s could not be closed cleanly; the next start will repair it: %s", self.path, error
            )
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
            self._lock.release()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction, all or nothing. Raises sqlite3.Error, or CommitUnknown."""
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
                # The WAL may hold the whole transaction although its sync failed: after a crash, the transaction might
                # count.
                raise CommitUnknown(f"commit to store file {self.path} is in doubt: {_explain(error)}") from error
            raise

    def checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> bool:
        """Move the content of the WAL into the file and, with TRUNCATE, empty the WAL.

        Returns False if a reader blocks it.
        """
        self.db.execute("PRAGMA busy_timeout = 0")  # a reader in another process must not make writers wait
        try:
            busy, frames, moved = self.db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        finally:
            self.db.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
        return not busy and bool(frames == moved)

    def drop_former_nonces(self) -> None:
        """Drop former nonces from the lock file, once a checkpoint has moved the last one into the file."""
        if self._lock.former:
            self._lock.keep_nonces(*self._lock.nonces)

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
        with contextlib.suppress(OSError):  # if this fails, SQLite reports the reason
            # SQLite creates `-wal` and `-shm` with the mode of the database, so only that is set. An existing file
            # keeps its mode.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, FILE_MODE))
        self.db = db = sqlite3.connect(self.path, isolation_level=None, timeout=self._busy_ms / 1000)
        db.text_factory = tolerant_text
        is_new = self._is_empty(db)
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA auto_vacuum = NONE")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreUnusable(
                f"store file {self.path} is on a file system that does not support a WAL database; use a local disk"
            )
        # automatic checkpoints are switched off: inside COMMIT one would cost up to 20 ms (see `checkpoint`)
        db.execute("PRAGMA wal_autocheckpoint = 0")
        # writes of this method are always synced; the configured value is set afterwards
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")  # on macOS a sync otherwise leaves data in the cache of the disk
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA cache_size = -16000")
        before, nonce = self._start(is_new=is_new)
        self._keep_after_checkpoint(before, nonce)
        db.execute(f"PRAGMA synchronous = {self._synchronous}")

    def _start(self, *, is_new: bool) -> tuple[str, str]:
        """Make the tables of a new file, and record the start. Returns the old nonce and the new one."""
        with self.transaction() as db:
            # a migration from an earlier SCHEMA goes here, in the same transaction
            for statement in _TABLES if is_new else ():
                db.execute(statement)
            check_tables(db, f"store file {self.path}")
            return self._record_start()

    def _keep_after_checkpoint(self, before: str, nonce: str) -> None:
        """Move the WAL with the new nonce into the file; from then on the lock file names only that nonce.

        While a reader blocks this move, the file itself still has an earlier nonce. The lock file then keeps the
        earlier nonces, so that `check_wal` recognises the WAL as the file's own.
        """
        former = () if self.checkpoint("TRUNCATE") else tuple(dict.fromkeys((*self._lock.former, before)))
        self._lock.keep_nonces(nonce, former=former)

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
            if is_damage(error) and not has_foreign_wal(self.path):
                check_wal(self.path, self._lock)  # its own -wal may make the file whole again
            refusal = self.refusal(error)
            if isinstance(refusal, StoreUnusable):  # other problems are reported once the lock is held
                raise refusal from error

    def _is_empty(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is empty. Raises StoreUnusable for one of another program or of another schema."""
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (schema,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == APPLICATION_ID and schema != SCHEMA:
            raise StoreUnusable(wrong_schema(f"store file {self.path}", schema))
        if application != APPLICATION_ID and (application or schema or tables):
            raise StoreUnusable(
                f"store file {self.path} is a database of another program (application id {application}); "
                "give Tenuto a file of its own"
            )
        return bool(application != APPLICATION_ID)

    def _record_start(self) -> tuple[str, str]:
        """Begin new epochs if the history behind a serial may have changed. Returns the old nonce and the new one.

        The caller is in a transaction; once that is committed, it makes the lock file keep this nonce alone.
        """
        boot, inode, nonce = _boot_id(), str(os.stat(self.path).st_ino), new_nonce()
        nonce_before = NO_NONCE
        known = [nonce]
        before = self.db.execute("SELECT boot, inode, synchronous, clean FROM life").fetchone()
        if before is not None:
            boot_before, file_before, synchronous_before, was_clean = before
            inode_before, nonce_before = inode_and_nonce(file_before)
            reason = None
            if inode_before != inode:
                reason = "the file is a copy"
            elif nonce_before not in self._lock.nonces:
                reason = "the file is a restored backup, or its lock file was removed"
            elif synchronous_before == "normal" and not was_clean and (boot_before != boot or not boot):
                reason = "the machine went down while the file was open with synchronous=normal"
            if reason is not None:
                logger.warning("store file %s begins new epochs for all channels: %s", self.path, reason)
                begin_epochs(self.db)
            # without this, a crash before the commit would leave a nonce of the old history valid
            if nonce_before in self._lock.nonces:
                known = [nonce_before, nonce]
        if self._synchronous == "normal":
            logger.warning(
                "store file %s is open with synchronous=normal: a power cut may lose the last moments", self.path
            )
        self._lock.keep_nonces(*known, former=(*self._lock.former, nonce_before))
        self.db.execute("REPLACE INTO life VALUES (1, ?, ?, ?, 0)", (boot, f"{inode} {nonce}", self._synchronous))
        return nonce_before, nonce

    def _record_end(self) -> tuple[str, str]:
        """Record a clean close, under a new nonce, so that a backup of the open file has an outdated one.

        Returns the old nonce and the new one.
        """
        nonce = new_nonce()
        self.db.execute("PRAGMA synchronous = FULL")
        with self.transaction() as db:
            (file,) = db.execute("SELECT inode FROM life").fetchone()
            inode, nonce_before = inode_and_nonce(file)
            self._lock.keep_nonces(nonce_before, nonce, former=self._lock.former)
            db.execute("UPDATE life SET inode = ?, clean = 1", (f"{inode} {nonce}",))
        return nonce_before, nonce

    def _roll_back(self) -> None:
        self.rollbacks += 1
        if self.db.in_transaction:  # after some errors SQLite has already rolled back
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")


def wrong_schema(what: str, schema: int) -> str:
    """Return the error for the file `what`, whose schema this version does not know."""
    return (
        f"{what} was written by another version of Tenuto: it has schema {schema}, and this one knows {SCHEMA}; use "
        "that version, or name another file"
    )


def check_tables(db: sqlite3.Connection, what: str, *, remedy: str = "restore a backup") -> None:
    """Raise StoreUnusable unless the file has the tables and indexes of the current schema.

    SQLite keeps their descriptions as text. After a changed byte in it, SQLite may read rows as something else.
    Further tables and indexes are ignored.
    """
    found = _described(db, _expected())
    wrong = [name for name, facts in _expected().items() if found.get(name) != facts]
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
def _expected() -> dict[str, list[object]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as new:
        for statement in _TABLES:
            new.execute(statement)
        names = [name for (name,) in new.execute("SELECT name FROM sqlite_master")]
        return _described(new, names)


def _described(db: sqlite3.Connection, names: Collection[str]) -> dict[str, list[object]]:
    """Return the columns of each table, and the statement of each index, by their names, if they are in `names`."""
    found: dict[str, list[object]] = {}
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall():
        plain = "".join(sql.split())
        if name not in names:
            continue
        if kind == "index":
            found[name] = [plain]
        else:
            columns = db.execute(f'PRAGMA table_info("{name}")').fetchall()
            listed = [row[1:] for row in db.execute(f'PRAGMA index_list("{name}")')]
            indexes = sorted(row for row in listed if row[0] in names or row[2] != "c")  # c: by CREATE INDEX
            found[name] = [kind, plain.endswith("WITHOUTROWID"), columns, indexes]
    return found


def new_nonce() -> str:
    return secrets.token_hex(8)


def _boot_id() -> str:
    """Return an id that changes when the machine reboots; "" if the system does not provide one."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


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
