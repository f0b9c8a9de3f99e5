"""The SQLite store: one file, one thread, one connection.

Layer: stores.

This is the part that event loops see; it hands everything to a thread (`thread`) that alone
touches the file (`sqlite_engine`, and below it `sqlite_file`, `sqlite_documents` and `sqlite_log`). So commits,
questions, checkpoints and housekeeping never meet, and a question sees all that was committed before it was asked.
Questions are rare: the hub keeps live channels in memory.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from holdfast.core.document import Stored
from holdfast.core.errors import LocalError, StoreUnavailable
from holdfast.stores.base import (
    Changes,
    Committed,
    CommitUnknown,
    Conflict,
    Head,
    Moved,
    StoredPage,
    Write,
)
from holdfast.stores.sqlite_engine import Engine
from holdfast.stores.sqlite_file import SqliteFile, Synchronous
from holdfast.stores.thread import Late, StoreThread

T = TypeVar("T")

OPEN_TIMEOUT_S = 60.0  # a large log is read whole
TIMEOUT_S = 30.0  # far beyond `busy_s`; a disk that answers later is as good as gone
JOIN_S = 5.0

_SYNCHRONOUS: dict[str, Synchronous] = {"normal": "normal", "full": "full", "extra": "extra"}


class SqliteStore:
    """Keeps logs in the SQLite file at `path`, made if need be, and beside it `-wal`, `-shm` and `.lock`.

    `synchronous`: "full" survives a power cut; "normal" may lose its last moments to one (then new epochs begin).
    A foreign lock on the database is waited for `busy_s` seconds, another process with the store `lock_wait_s`.
    """

    name = "sqlite"
    is_exclusive = True

    def __init__(
        self, path: str | os.PathLike[str], *, synchronous: str = "full", busy_s: float = 5.0, lock_wait_s: float = 5.0
    ) -> None:
        if synchronous not in _SYNCHRONOUS:
            raise LocalError(f"synchronous is one of {', '.join(_SYNCHRONOUS)}; not {synchronous!r}")
        if os.fspath(path) in ("", ":memory:"):
            raise LocalError("the SQLite store needs a file; for a store in memory use memory://")
        self.path = Path(path)
        self._synchronous = _SYNCHRONOUS[synchronous]
        self._busy_s = busy_s
        self._lock_wait_s = lock_wait_s
        self._open: _Open | None = None
        self._stats = {"commits": 0, "row_bytes": 0}

    async def open(self) -> None:
        """`Store.open`. A store that is open stays so: another event loop may go on with it."""
        if self._open is not None:
            return
        file = SqliteFile(self.path, synchronous=self._synchronous, busy_s=self._busy_s, lock_wait_s=self._lock_wait_s)
        engine = Engine(file)
        thread = StoreThread(f"holdfast-sqlite-{self.path.name}", engine.spare)
        try:
            await thread.ask(engine.open, timeout_s=OPEN_TIMEOUT_S)
        except BaseException as error:
            file.give_up()
            thread.stop(file.abandon)
            if isinstance(error, Late):
                raise StoreUnavailable(f"{self.path} could not be opened in {OPEN_TIMEOUT_S:.0f} s") from None
            raise
        self._open = _Open(engine, file, thread)
        atexit.register(self._at_exit)

    async def close(self) -> None:
        """`Store.close`."""
        opened = self._take_open()
        if opened is None:
            return
        try:
            await opened.thread.finish(opened.engine.close, timeout_s=TIMEOUT_S)
        except Late:
            raise StoreUnavailable(f"{self.path} could not be closed in {TIMEOUT_S:.0f} s") from None

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """`Store.commit`."""
        return await self._ask(lambda engine: engine.commit(writes), late=CommitUnknown)

    async def head(self, channel: str) -> Head:
        """`Store.head`."""
        return await self._ask(lambda engine: engine.head(channel))

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        """`Store.changes`."""
        return await self._ask(lambda engine: engine.changes(channel, after, limit))

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        """`Store.messages`."""
        return await self._ask(lambda engine: engine.messages(channel, ids))

    async def page(self, channel: str, *, before: int | None, limit: int, limit_bytes: int) -> StoredPage:
        """`Store.page`."""
        return await self._ask(lambda engine: engine.page(channel, before, limit, limit_bytes))

    async def open_channels(self) -> list[str]:
        """`Store.open_channels`."""
        return await self._ask(lambda engine: engine.open_channels())

    async def open_documents(self, channel: str) -> list[Stored]:
        """`Store.open_documents`."""
        return await self._ask(lambda engine: engine.open_documents(channel))

    async def moved(self, token: str | None) -> Moved:
        """`Store.moved`."""
        return await self._ask(lambda engine: engine.moved(token))

    async def delete_channel(self, channel: str, *, used_up: Sequence[str], until_ms: int) -> Head:
        """`Store.delete_channel`."""
        return await self._ask(lambda engine: engine.delete_channel(channel, used_up, until_ms), late=CommitUnknown)

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        """`Store.channels`."""
        return await self._ask(lambda engine: engine.channel_names(after, limit))

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """`Store.notes`."""
        return await self._ask(lambda engine: engine.notes(prefix))

    async def note(self, values: Mapping[str, bytes | None]) -> None:
        """`Store.note`."""
        kept = dict(values)
        await self._ask(lambda engine: engine.note(kept), late=CommitUnknown)

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """`Store.tidy`."""
        return await self._ask(lambda engine: engine.tidy(now_ms))

    def stats(self) -> dict[str, int]:
        """`Store.stats`; since it was opened."""
        if self._open is not None:
            self._stats = self._open.engine.stats()
        return dict(self._stats)

    async def _ask(self, call: Callable[[Engine], T], *, late: type[StoreUnavailable] = StoreUnavailable) -> T:
        """Let the thread do `call`. Raises `late` if it began and was not done in time."""
        opened = self._open
        if opened is None:
            raise LocalError("the store is not open")

        def translated() -> T:
            try:
                return call(opened.engine)
            except sqlite3.Error as error:
                raise opened.file.unavailable(error) from error

        try:
            return await opened.thread.ask(translated, timeout_s=TIMEOUT_S)
        except Late as error:
            kind = late if error.is_begun else StoreUnavailable
            raise kind(f"{self.path} did not answer within {TIMEOUT_S:.0f} s; look at the disk") from None

    def _take_open(self) -> _Open | None:
        self.stats()
        opened, self._open = self._open, None
        atexit.unregister(self._at_exit)
        return opened

    def _at_exit(self) -> None:
        """Leave the file whole though nobody closed the store."""
        opened = self._take_open()
        if opened is not None:
            opened.thread.stop(opened.engine.close)
            opened.thread.join(JOIN_S)


class _Open(NamedTuple):
    engine: Engine
    file: SqliteFile
    thread: StoreThread
