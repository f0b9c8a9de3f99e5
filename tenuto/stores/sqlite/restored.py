"""The `-wal` beside a SQLite file: whether it belongs to the file, or was left by the one that a backup replaced.

Layer: stores. This code runs on the store's thread.

SQLite would apply a foreign `-wal` to the file, and destroy it. So the file is first read without its `-wal`. If the
lock file names its nonce, the `-wal` is its own. If the header of the file has no WAL, as in each backup, the `-wal` is
foreign: it gets another name; also if the lock file names other nonces, and the file is a backup or was closed cleanly
elsewhere. In all other cases the store does not guess and refuses to start, also if it cannot read the file: a crash
within a checkpoint may have torn it, which its `-wal` repairs, or it is an incomplete copy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnusable
from tenuto.stores.sqlite.lock import NO_NONCE, FileLock
from tenuto.stores.sqlite.sums import tolerant_text

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
