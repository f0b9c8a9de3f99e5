"""Backups of a SQLite store, and their way back.

Layer: stores.

A backup is made on the store's own connection, in small steps between which the store does its waiting work: changes
by the same connection go into the running backup and do not restart it, and no read lock stays between two steps. It is
written as `NAME.partial`, checked, synced, and renamed. A mark in it makes each start from it begin new epochs.

A restore verifies the backup, keeps the replaced file under another name, and puts the new one in its place in one
step. Killed at any point, it leaves the old file or the new one, never a mixture: a `-wal` that it did not remove is
set aside by the next start (`file.check_wal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tenuto.core.document import DAMAGE
from tenuto.core.errors import LocalError, StoreUnavailable, shown
from tenuto.stores.sqlite.file import BACKUP, check_header, new_mark, read_mark, reading, set_aside, sync, wal_of
from tenuto.stores.sqlite.lock import FILE_MODE, FileLock, locked
from tenuto.stores.sqlite.slots import damaged, tolerant_text
from tenuto.stores.sqlite.verify import check, damage_in

STEP_PAGES = 64
# Time between two syncs of a growing copy. Without them, its one large sync at the end holds up the commits. With 2,500
# appends a second, a file of 400 MB and a quiet machine, the p99 of an append is 1.4 to 1.5 times the quiet one with
# this time, 2.6 to 2.8 times with 0.1 s (each sync is larger); without syncs the longest append takes 0.2 s.
SYNC_S = 0.02
PAGE_BYTES = 4_096


class Stopped(Exception):
    """The store closes, or the caller went away: the backup ends without a result."""


def check_target(target: Path, store: Path) -> None:
    """Raise LocalError for a path at which no backup can be made, StoreUnavailable if its disk is too full."""
    of_store = [Path(f"{os.path.realpath(store)}{end}") for end in ("", "-journal", "-wal", "-shm", ".lock", ".ctl")]
    if Path(os.path.realpath(target)) in of_store:
        raise LocalError(f"backup target {target} is a file of the store itself; name another file")
    try:
        is_taken = target.exists() or target.is_symlink()
    except OSError as error:  # for example: the name is too long
        raise LocalError(
            f"backup target {shown(str(target))} is not possible: {error.strerror}; name another file"
        ) from None
    if is_taken:
        raise LocalError(f"backup target {target} exists already; name a new file, or remove it first")
    if not target.parent.is_dir():
        raise LocalError(f"backup target {target} cannot be created: there is no directory {target.parent}; create it")
    if Path(os.path.realpath(partial_of(target))) in of_store:  # it would be emptied
        raise LocalError(
            f"backup target {target} is written as {partial_of(target)} first, which is a file of the store itself; "
            "name another file"
        )
    needed = sum(one.stat().st_size for one in (store, wal_of(store)) if one.exists())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise StoreUnavailable(
            f"backup target {target} needs {needed:,} free bytes, and has {free:,}; free some space on its disk"
        )


def partial_of(target: Path) -> Path:
    """Return the file in which the backup `target` is made."""
    return target.with_name(f"{target.name}.partial")


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """Create the file in which the backup `target` is made. It is removed if the block fails."""
    partial = partial_of(target)
    try:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, FILE_MODE)
    except OSError as error:
        raise StoreUnavailable(f"backup {partial} cannot be written ({error.strerror}); check the directory") from error
    try:
        if not locked(handle):
            raise LocalError(f"another backup to {target} is running; wait for its end, or name another file")
        try:
            os.ftruncate(handle, 0)
            yield partial
        except BaseException:
            for end in ("", "-journal", "-wal", "-shm"):
                Path(f"{partial}{end}").unlink(missing_ok=True)
            raise
    finally:
        os.close(handle)


def copy(db: sqlite3.Connection, partial: Path, *, bytes_per_s: float, pause: Callable[[float], bool]) -> None:
    """Copy the database of `db` into the file `partial`, in steps.

    After each step `pause(seconds)` does other work; it returns False to end the copy. Raises Stopped and
    StoreUnavailable.
    """
    begun_s = time.monotonic()
    step_s = STEP_PAGES * PAGE_BYTES / bytes_per_s
    steps = 0

    def progress(_status: int, _remaining: int, _total: int) -> None:
        nonlocal steps
        steps += 1
        if not pause(max(0.0, begun_s + steps * step_s - time.monotonic())):
            raise Stopped

    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as new:
            new.execute("PRAGMA synchronous = OFF")  # `finish` syncs the whole file
            new.execute("PRAGMA journal_mode = OFF")
            db.backup(new, pages=STEP_PAGES, progress=progress, sleep=0.01)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"backup {partial} failed: {error}; check the disk and its free space") from error


async def keep_synced(partial: Path, is_over: threading.Event) -> None:
    """Sync the growing copy until it `is_over`. A failure sets that, too, and raises StoreUnavailable."""
    while not is_over.is_set():
        try:
            await asyncio.to_thread(sync, partial)
        except OSError as error:
            is_over.set()
            raise StoreUnavailable(
                f"backup {partial} failed: {error.strerror}; check the disk and its free space"
            ) from error
        await asyncio.sleep(SYNC_S)


def finish(partial: Path, target: Path, *, is_new: bool = True) -> None:
    """Mark, check and sync the copy, and give it its name. Raises LocalError, StoreUnavailable and StoreUnusable.

    With `is_new=False` the copy replaces a file `target`, and is not checked, because its original may be damaged.
    """
    try:
        with contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as db:
            db.text_factory = tolerant_text
            db.execute("PRAGMA journal_mode = DELETE")  # a backup has no -wal
            db.execute("UPDATE life SET mark = ?", (new_mark(BACKUP),))
            if is_new:
                check(db, f"backup {partial}", remedy="check the store with `tenuto verify`")
        sync(partial)
        if is_new and target.exists():
            raise LocalError(f"backup target {target} exists already; name a new file, or remove it first")
        partial.replace(target)
        sync(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"backup {target} failed: {error}; check the disk and its free space") from error


def receipt_of(target: Path) -> dict[str, object]:
    """Return what tells the backup `target` from all others: its size and its mark. Raises OSError."""
    return {"size_bytes": target.stat().st_size, "mark": read_mark(target)}


def restore(backup: Path, store: Path) -> tuple[Path | None, list[str]]:
    """Put a backup in the place of the store's file. A copy of it is verified before anything is replaced.

    Return the new name of the replaced file, if there was one, and a line for each damaged message. Raises StoreInUse
    while a process has the store, and StoreUnusable for a file that is not a whole backup.
    """
    if not backup.is_file():
        raise LocalError(f"backup {backup} is not a file; name the file that `tenuto backup` wrote")
    if os.path.realpath(backup) == os.path.realpath(store):
        raise LocalError(f"backup {backup} is the store's own file; name the file that `tenuto backup` wrote")
    place = Path(os.path.realpath(store))
    if place.exists() and not place.is_file():
        raise LocalError(f"store {store} is not a file; name the file of the store with --store")
    new = place.with_name(f"{place.name}.restored")
    with contextlib.closing(FileLock(Path(f"{place}.lock"))) as lock:
        lock.take(place, wait_s=0)
        with partial_file(new) as partial:
            try:
                with reading(backup) as db:
                    check_header(db, f"backup {backup}", advice="name the file that `tenuto backup` wrote")
                    copy(db, partial, bytes_per_s=float("inf"), pause=lambda _: True)
                with reading(partial, is_immutable=True) as db:
                    check(db, f"backup {backup}", remedy="use an earlier one")
                    damage = list(damage_in(db))
            except (sqlite3.DatabaseError, *DAMAGE) as error:
                raise damaged(f"backup {backup}", error, remedy="use an earlier one") from error
            new.unlink(missing_ok=True)
            finish(partial, new, is_new=False)
        give_owner_of(place, new)
        kept = _keep(place)
        # Until the replace, the lock file must name the mark of the old file: its -wal is its own. The new file has
        # the mark of a backup, so a start sets aside a -wal that is left beside it.
        new.replace(place)
        sync(place.parent)
        for end in ("-journal", "-wal", "-shm"):
            Path(f"{place}{end}").unlink(missing_ok=True)
        sync(place.parent)
        lock.keep(new_mark(BACKUP))
        return kept, damage


def give_owner_of(place: Path, new: Path) -> None:
    """Give the file `new` the mode and the owner of the store's file `place`; a first one gets the owner of its folder.

    The lock file gets that owner, too.
    """
    is_there = place.exists() and place != new
    old = (place if is_there else place.parent).stat()
    if is_there:
        new.chmod(stat.S_IMODE(old.st_mode))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            for one in (new, Path(f"{place}.lock")):
                os.chown(one, old.st_uid, old.st_gid, follow_symlinks=False)


def _keep(place: Path) -> Path | None:
    """Give the store's file and its journals a second name, under which they stay; a `-wal` alone gets another one."""
    if not place.exists():
        return set_aside(place) if wal_of(place).exists() else None
    kept = place.with_name(f"{place.name}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    for end in ("", "-journal", "-wal"):
        old, new = Path(f"{place}{end}"), Path(f"{kept}{end}")
        if old.exists():
            try:
                os.link(old, new)
            except OSError:  # a file system without hard links
                shutil.copy2(old, new)
    sync(place.parent)
    return kept


def keep_wal(store: Path) -> None:
    """Note in the lock file that the `-wal` belongs to the store's file; the next start begins new epochs."""
    place = Path(os.path.realpath(store))
    if not place.is_file() or not wal_of(place).exists():
        raise LocalError(f"store file {store} has no -wal beside it; start the server")
    with contextlib.closing(FileLock(Path(f"{place}.lock"))) as lock:
        lock.take(place, wait_s=0)
        lock.keep(read_mark(place))
