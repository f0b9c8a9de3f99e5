"""Backups of a serving hub at regular times, into a folder.

Layer: hub.

A backup of `chat.db` is named `chat-000042-20261122T024000Z.db`. The number rises by one, so the order stays if the
clock is set back. Only files of this form are counted and removed, and an old one is removed once the new one is whole.
A lock on the file `chat-backups.lock` in the folder excludes a second server with a store of that name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.hub.hub import HubCore
from tenuto.hub.keep.policies import time_ms
from tenuto.stores.sqlite.lock import FILE_MODE, locked
from tenuto.stores.sqlite.store import SqliteStore

logger = logging.getLogger("tenuto.hub")

RETRY_S = 60.0  # time after which a failed backup is tried again, if the next one is not due before
MB_PER_S = 50.0


class _Kept(NamedTuple):
    """A backup in the folder, or an unfinished one."""

    number: int
    name: str


class BackupSchedule:
    """Backups of the store of `hub` into the folder `folder`, one `every` time such as "1h"; the newest `keep` stay."""

    def __init__(self, hub: HubCore, folder: Path, *, every: str = "1h", keep: int = 24) -> None:
        if not isinstance(hub.store, SqliteStore):
            raise LocalError(f"a {hub.store.name} store has no backup; use a store in a file, sqlite:///chat.db")
        if not isinstance(keep, int) or keep < 1:
            raise LocalError(f"number of backups to keep must be a whole number, 1 or more, got {shown(keep)}")
        self._store = hub.store
        self._folder = folder
        self._every_s = time_ms(every, "time between backups", example="1h") / 1000
        self._keep = keep
        self._lock: int | None = None  # file descriptor of the lock file in the folder, while this holds the lock
        self._due_s: float | None = None  # on the monotonic clock; None until the folder was read
        stem, end = re.escape(self._store.path.stem), re.escape(self._store.path.suffix)
        self._form = re.compile(rf"{stem}-([0-9]{{6,18}})-[0-9]{{8}}T[0-9]{{6}}Z{end}(\.partial)?")
        hub.on_start(lambda: hub.start_background(self._run()))

    async def _run(self) -> None:
        """Make backups until this task is cancelled."""
        try:
            while True:
                try:
                    wait_s = await self._make_if_due()
                except (TenutoError, OSError) as error:
                    wait_s = min(RETRY_S, self._every_s)
                    self._store.failed_backups += 1
                    logger.error(
                        "scheduled backup of store file %s into %s failed, and is tried again in %.0f s: %s",
                        *(self._store.path, self._folder, wait_s, error),
                    )
                await self._wait(wait_s)
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    async def _wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _make_if_due(self) -> float:
        """Make a backup if one is due. Returns the seconds until the next one. Raises TenutoError and OSError."""
        now_s = time.monotonic()
        kept = await asyncio.to_thread(self._prepare)
        # the newest backup is from an earlier process, whose clock may have been ahead
        if self._due_s is None and kept:
            made_s = await asyncio.to_thread(os.path.getmtime, self._folder / kept[-1].name)
            age_s = max(0.0, time.time() - made_s)
            self._store.note_backup(age_s)
            self._due_s = now_s + max(0.0, self._every_s - age_s)
        if self._due_s is not None and now_s < self._due_s:
            return self._due_s - now_s
        number = kept[-1].number + 1 if kept else 1
        made = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = self._store.path
        await self._store.backup(self._folder / f"{path.stem}-{number:06d}-{made}{path.suffix}", mb_per_s=MB_PER_S)
        self._due_s = now_s + self._every_s
        for one in (await asyncio.to_thread(self._found, is_partial=False))[: -self._keep]:
            await asyncio.to_thread((self._folder / one.name).unlink, missing_ok=True)
        return max(0.0, self._due_s - time.monotonic())

    def _prepare(self) -> list[_Kept]:
        """Lock the folder, remove unfinished files of a killed process, and return the backups, oldest first."""
        path = self._folder / f"{self._store.path.stem}-backups.lock"
        if self._lock is not None and not (path.exists() and os.path.samestat(path.stat(), os.fstat(self._lock))):
            os.close(self._lock)  # the folder is another one now
            self._lock = None
        if self._lock is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
            if not locked(handle):
                os.close(handle)
                raise LocalError(f"another server holds {path}; give each server a folder of its own")
            self._lock = handle
        for one in self._found(is_partial=True):
            (self._folder / one.name).unlink(missing_ok=True)
        return self._found(is_partial=False)

    def _found(self, *, is_partial: bool) -> list[_Kept]:
        """Return the backups in the folder, or the unfinished ones, oldest first."""
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        found = [match for name in names if (match := self._form.fullmatch(name)) is not None]
        return sorted(_Kept(int(match[1]), match[0]) for match in found if (match[2] is not None) == is_partial)
