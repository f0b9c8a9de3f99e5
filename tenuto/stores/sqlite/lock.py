"""The lock file beside a SQLite file: one process at a time, and the nonces of the database (`sqlite_file`).

Layer: stores.
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
from tenuto.stores.sqlite.lock_holder import holder_of, note_held, note_released

FILE_MODE = 0o600  # mode of new files: only the user who runs the server may read conversations
LOCK_POLL_S = 0.05
LOCK_BYTES = 64 * 1024  # limit when reading a lock file, which is always shorter
NO_NONCE = "-"  # stands for a missing nonce in a database or lock file


class FileLock:
    """An exclusive lock for the life of a process, in a file that is never deleted.

    The file's first line names the process that holds or last held the lock; the second lists the nonces that the
    database may have. A third one lists further nonces that its file may have as long as the last ones are only in
    the `-wal`, because a checkpoint was blocked.
    """

    def __init__(self, path: Path) -> None:
        self.nonces: tuple[str, ...] = (NO_NONCE,)
        self.former: tuple[str, ...] = ()
        self._path = path
        self._handle: int | None = None
        self.give_up = threading.Event()

    @property
    def is_known(self) -> bool:
        """Return whether the lock file exists, which means that a store was opened here before."""
        return self._path.exists()

    @property
    def is_blank(self) -> bool:
        """Return whether the lock file names no nonce: it was missing."""
        return self.nonces == (NO_NONCE,) and not self.former

    def take(self, what: Path, *, wait_s: float) -> None:
        """Wait up to `wait_s` seconds for the lock on `what`. Raises StoreInUse or StoreUnavailable."""
        deadline_s = time.monotonic() + wait_s
        handle = self._open(what)
        try:
            while not locked(handle):
                holder = holder_of(self._path)
                if holder.is_sibling or time.monotonic() >= deadline_s or self.give_up.wait(LOCK_POLL_S):
                    detail = f"store file {what} is in use by {holder.name}: {holder.remedy()}"
                    raise StoreInUse(detail, holder=holder.name, remedy=holder.remedy())
            self._read(handle)
            self._write(handle)
        except OSError as error:
            os.close(handle)
            raise self._unwritable(error) from error
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        note_held(self._path)

    def keep_nonces(self, *nonces: str, former: tuple[str, ...] = ()) -> None:
        """Replace the nonces in the file; they are synced to disk when this returns. Raises StoreUnavailable."""
        assert self._handle is not None
        self.nonces, self.former = nonces, former
        try:
            self._write(self._handle)
            os.fsync(self._handle)
        except OSError as error:
            raise self._unwritable(error) from error

    def look(self) -> None:
        """Read the nonces without the lock, which another process may hold; none if the file cannot be read."""
        self.nonces, self.former = (NO_NONCE,), ()
        with contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_RDONLY)
            try:
                self._read(handle)
            finally:
                os.close(handle)

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        if self._handle is not None:
            note_released(self._path)
            os.close(self._handle)
            self._handle = None

    def _read(self, handle: int) -> None:
        self.nonces = _read_line(handle, _NONCES) or (NO_NONCE,)
        self.former = _read_line(handle, _FORMER)

    def _open(self, what: Path) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"store file {what} cannot be created: there is no directory {self._path.parent}; create it"
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StoreUnavailable:
        is_of_disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        advice = "check the disk" if is_of_disk else "the directory and the files in it must be writable for this user"
        return StoreUnavailable(f"lock file {self._path} cannot be written ({error.strerror}); {advice}")

    def _write(self, handle: int) -> None:
        # Overwrite first and truncate afterwards, so that the file contains nonces at every moment.
        lines = (
            f"process {os.getpid()} ({_command()})",
            _NONCES + " ".join(self.nonces),
            _FORMER + " ".join(self.former),
        )
        content = "\n".join([*lines, ""]).encode()
        os.pwrite(handle, content, 0)
        os.ftruncate(handle, len(content))


_NONCES = "nonces "
_FORMER = "former "


def _read_line(handle: int, begin: str) -> tuple[str, ...]:
    for line in os.pread(handle, LOCK_BYTES, 0).decode(errors="replace").splitlines():
        # Use the first such line: a killed process may have left the rest of an older file behind it.
        if line.startswith(begin):
            return tuple(line.removeprefix(begin).split())
    return ()


def locked(handle: int) -> bool:
    """Take the lock on an open file for this process, without waiting; return whether it succeeded."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command() -> str:
    # Only the program's name: its arguments may hold secrets.
    return Path(sys.argv[0] if sys.argv and sys.argv[0] else sys.executable).name[:80]
