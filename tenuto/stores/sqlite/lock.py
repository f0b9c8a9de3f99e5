"""The lock file beside a SQLite file: one process at a time, its holder, and the marks of the database (`file`).

Layer: stores.

The first line names a process, but process ids are not enough: containers that share a file may have the same ones.
Therefore a set of the paths that this process holds decides whether the holder is "this process".
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import threading
import time
from pathlib import Path

from tenuto.core.errors import StoreInUse, StoreUnavailable

FILE_MODE = 0o600  # mode of new files: only the user who runs the server may read conversations
LOCK_POLL_S = 0.05
LOCK_BYTES = 64 * 1024  # limit when reading a lock file, which is always shorter
NO_MARK = "-"  # stands for a missing mark in a database or lock file


class FileLock:
    """An exclusive lock for the life of a process, in a file that is never deleted.

    The file's first line names the process that holds or last held the lock. The second lists all marks that the
    database may have without its `-wal`: the last ones are in the `-wal` alone while a checkpoint is blocked. Epochs go
    on under those that have their place with them (`file.at_place`).
    """

    def __init__(self, path: Path) -> None:
        self.placed: tuple[str, ...] = ()  # the marks, some with their places; none: the lock file was missing
        self.path = path
        self._handle: int | None = None  # file descriptor of the lock file, while this holds the lock
        self._held = contextlib.ExitStack()  # releases what this holds
        self.give_up = threading.Event()  # ends the wait in `take`

    def take(self, what: Path, *, wait_s: float) -> None:
        """Wait up to `wait_s` seconds for the lock on `what`. Raises StoreInUse or StoreUnavailable."""
        deadline_s = time.monotonic() + wait_s
        while (null := os.open(os.devnull, os.O_RDWR)) < 3:
            pass  # stays open: a stray write to a closed stderr must not reach a file of the store
        os.close(null)
        try:
            with contextlib.ExitStack() as held:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, FILE_MODE)
                held.callback(os.close, handle)
                while not locked(handle):
                    name, remedy = holder_of(self.path)
                    if time.monotonic() >= deadline_s or self.give_up.wait(LOCK_POLL_S):
                        detail = f"store file {what} is in use by {name}: {remedy}"
                        raise StoreInUse(detail, holder=name, remedy=remedy)
                self._read(os.pread(handle, LOCK_BYTES, 0))
                self._write(handle)
                held.callback(_here.discard, str(self.path))
                self._held, self._handle = held.pop_all(), handle
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"store file {what} cannot be created: there is no directory {self.path.parent}; create it"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        _here.add(str(self.path))

    def take_file(self, what: Path) -> None:
        """Lock the file itself, while SQLite has it open with a WAL. Raises StoreInUse and OSError.

        Under another name, such as a hard link, another process could have it open with another lock file and `-wal`.
        """
        handle = os.open(what, os.O_RDWR)
        self._held.callback(os.close, handle)  # when SQLite has closed it, because this ends all locks of the process
        try:
            # One byte far beyond those that SQLite locks. Without a WAL each of its unlocks would be for all bytes.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 << 62)
        except BlockingIOError:
            name, remedy = "another process", "it has a second name, such as a hard link or a mount of it; use one name"
            raise StoreInUse(f"store file {what} is in use by {name}: {remedy}", holder=name, remedy=remedy) from None

    @property
    def marks(self) -> tuple[str, ...]:
        """Return the marks without their places; NO_MARK alone: the lock file was missing."""
        return tuple(one.partition(":")[0] for one in self.placed) or (NO_MARK,)

    def keep(self, *placed: str) -> None:
        """Write the marks `placed` to the file, in place of all others, and sync it. Raises StoreUnavailable."""
        assert self._handle is not None
        self.placed = placed
        try:
            self._write(self._handle)
            os.fsync(self._handle)
        except OSError as error:
            raise self._unwritable(error) from error

    def look(self) -> None:
        """Read the marks without the lock, which another process may hold; none if the file cannot be read."""
        self.placed = ()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            self._read(file.read(LOCK_BYTES))

    def close(self) -> None:
        """Release the lock. A second call does nothing."""
        self._held.close()
        self._handle = None

    def _read(self, content: bytes) -> None:
        # Use the first such line: a killed process may have left the rest of an older file behind it.
        lines = (line for line in content.decode(errors="replace").splitlines() if line.startswith(_MARKS))
        self.placed = tuple(next(lines, "").removeprefix(_MARKS).split())

    def _unwritable(self, error: OSError) -> StoreUnavailable:
        is_of_disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        advice = "check the disk" if is_of_disk else "the directory and the files in it must be writable for this user"
        return StoreUnavailable(f"lock file {self.path} cannot be written ({error.strerror}); {advice}")

    def _write(self, handle: int) -> None:
        # Overwrite first and truncate afterwards, so that the file contains marks at every moment.
        command = Path("".join(sys.argv[:1]) or sys.executable).name[:80]  # its arguments may hold secrets
        content = f"process {os.getpid()} ({command})\n{_MARKS}{' '.join(self.placed)}\n".encode()
        os.pwrite(handle, content, 0)
        os.ftruncate(handle, len(content))


_MARKS = "marks "


def locked(handle: int) -> bool:
    """Take the lock on an open file for this process, without waiting; return whether it succeeded."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- the holder ----------------------------------------------------------------------------------------------------

_SHOWN_CHARACTERS = 200
_here: set[str] = set()  # the paths of the locks that this process holds


def holder_of(path: Path) -> tuple[str, str]:
    """Return the holder of the lock file at `path`, which another open file has locked, and advice for this process."""
    if str(path) in _here:
        return (
            "this process",
            "another Hub of this process has it open: use that Hub, or close it first (`await hub.close()`, or "
            "`hub.sync.close()`); in a notebook, restart the kernel, or keep the Hub in a cell of its own",
        )
    line = ""
    with contextlib.suppress(OSError):
        line = path.read_text(errors="replace").partition("\n")[0].strip()[:_SHOWN_CHARACTERS]
    return (
        line or "another process",
        "stop it, or give each process its own file; with several workers or an overlapping reload, run one worker "
        "(--workers 1), or use a postgresql:// store, which several processes may share",
    )
