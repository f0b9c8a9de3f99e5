"""The holder of a store file's lock: another process, a worker of the same server, or this process.

Layer: stores.

The lock file's first line names a process, but process ids are not enough: containers that share a file may have the
same ones. Therefore a set of the paths that this process holds decides whether the holder is "this process".
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

_SHOWN_CHARACTERS = 200
_here: set[str] = set()  # the paths of the locks that this process holds
_guard = threading.Lock()


class Holder(NamedTuple):
    """The holder of a lock, in the words of an error message."""

    name: str  # for example `process 4711 (uvicorn)` or `this process`
    is_here: bool
    is_sibling: bool  # True: another worker of the same server, which does not end while this one runs

    def remedy(self) -> str:
        """Return advice for a process that wants the lock."""
        if self.is_here:
            return (
                "another Hub of this process has it open: use that Hub, or close it first (`await hub.close()`, or "
                "`hub.sync.close()`); in a notebook, restart the kernel, or keep the Hub in a cell of its own"
            )
        if self.is_sibling:
            return (
                "it is another worker of this server: run one worker (--workers 1), or use a postgresql:// store, "
                "which several processes may share"
            )
        return (
            "stop it, or give each process its own file; with several workers or an overlapping reload, use a "
            "postgresql:// store, which several processes may share"
        )


def holder_of(path: Path) -> Holder:
    """Return the holder of the lock file at `path`; another open file has it locked."""
    with _guard:
        if str(path) in _here:
            return Holder("this process", is_here=True, is_sibling=False)
    try:
        line = path.read_text(errors="replace").partition("\n")[0].strip()[:_SHOWN_CHARACTERS]
    except OSError:
        line = ""
    words = line.split()
    pid = int(words[1]) if len(words) > 1 and words[0] == "process" and words[1].isdecimal() else None
    return Holder(line or "another process", is_here=False, is_sibling=pid is not None and _is_sibling_worker(pid))


def note_held(path: Path) -> None:
    """Record that this process has locked `path`."""
    with _guard:
        _here.add(str(path))


def note_released(path: Path) -> None:
    """Record that this process no longer holds the lock on `path`."""
    with _guard:
        _here.discard(str(path))


def _is_sibling_worker(pid: int) -> bool:
    """Return whether `pid` is another worker of the server that started this process, if that can be known."""
    return _is_worker() and _parent_of(pid) == os.getppid()


def _is_worker() -> bool:
    """Return whether a server started this process as a worker: by `multiprocessing`, or by a fork of gunicorn."""
    processes = sys.modules.get("multiprocessing.process")
    return getattr(processes, "parent_process", lambda: None)() is not None or "gunicorn.workers.base" in sys.modules


def _parent_of(pid: int) -> int | None:
    """Return the parent of a process; None if the system does not provide it."""
    try:
        # The name of the program stands in brackets, and may itself contain spaces and brackets.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None
