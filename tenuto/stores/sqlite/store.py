"""The SQLite store: one file, one thread, one connection.

Layer: stores.

Event loops use this module. It passes each call to a thread (`StoreThread`), which alone touches the file (`engine`,
and below it `file`, `documents` and `log`). So commits, reads, checkpoints and housekeeping never overlap, and a read
sees all commits that preceded it. Reads are rare: the hub keeps live channels in memory.

Any event loop may submit a call to the thread and receives its result there; the thread is independent of the calls'
meaning. Commits pass the calls that wait, so live text waits for one long read at most. An error goes to the caller and
never ends the thread. After each call, and when no call comes for a while, the thread calls `spare(is_idle)`, which may
do a little housekeeping. It returns the seconds after which to call it again if no other call comes: 0 for at once,
None for never.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from msgspec import Struct

from tenuto.core.document import DAMAGE
from tenuto.core.errors import LocalError, StoreInUse, StoreUnavailable, shown
from tenuto.stores.base import CommitUnknown
from tenuto.stores.sqlite.backup import Stopped, check_target, copy, finish, keep_synced, partial_file
from tenuto.stores.sqlite.channels import Channels
from tenuto.stores.sqlite.engine import Engine
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.slots import damaged

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("tenuto.stores")

RETRY_S = 1.0  # wait before the next call after `spare` failed
END_S = 1.0  # time that the thread has to end after the last result; it takes microseconds


class Late(Exception):
    """The result did not come in time. If `is_begun`, the call may still finish; otherwise it will never run."""

    def __init__(self, *, is_begun: bool) -> None:
        super().__init__(is_begun)
        self.is_begun = is_begun


class StoreThread:
    """A thread and its queue of calls. The thread is a daemon, so a store left open does not keep a process alive."""

    def __init__(self, name: str, spare: Callable[[bool], float | None]) -> None:
        self._spare = spare  # does housekeeping; returns the seconds until the next call, None for no call
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._first: deque[_Work[Any]] = deque()  # calls of the queue that pass the others
        self._last: _Work[Any] | None = None  # what the thread does before it ends; once it is set, no call is accepted
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T], *, timeout_s: float | None, is_first: bool = False) -> T:
        """Run `call` on the thread, and return its result. Raises its error, or Late after `timeout_s`, if given.

        A call that `is_first` passes all others that wait. The thread skips a call whose caller has stopped waiting.
        """
        if self._last is not None:
            raise LocalError(f"store thread {self._thread.name!r} is closed; open the store again to use it")
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        work = _Work(call, result)
        if is_first:
            self._first.append(work)
        self._queue.put(work)
        try:
            async with asyncio.timeout(timeout_s):
                return await result
        except TimeoutError:
            if not result.cancelled():  # it came while the event loop stood still; or the call raised this error
                return result.result()
            raise Late(is_begun=work.is_begun) from None

    async def finish(self, last: Callable[[], object], *, timeout_s: float) -> None:
        """Run the queued calls, then `last`, and end the thread. Raises the error of `last`, or TimeoutError.

        The thread does so even if the caller stops waiting.
        """
        result: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        result.add_done_callback(lambda one: one.cancelled() or one.exception())  # read, also if it comes too late
        self._put_last(_Work(last, result))
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(result)
        self._thread.join(END_S)

    def serve(self, seconds: float) -> bool:
        """Run queued calls from within a call, for up to `seconds`, and all that wait. Returns False when it must end.

        It must end when the thread is to stop: the calls that are left run after the current one.
        """
        end_s = time.monotonic() + seconds
        while self._last is None:
            try:
                left_s = end_s - time.monotonic()
                work = self._queue.get(block=left_s > 0, timeout=max(0.0, left_s))
            except queue.Empty:
                return True
            if work is None:
                self._queue.put(None)  # for `_main`; behind it comes no call
                return False
            self._run(work)
            del work
            self._do_spare(is_idle=False)
        return False

    def stop(self, last: Callable[[], object], *, wait_s: float = 0.0) -> None:
        """Finish as `finish` does, but from any thread. Block until the thread has ended, or for `wait_s`."""
        self._put_last(_Work(last))
        self._thread.join(wait_s)

    def _put_last(self, work: _Work[Any]) -> None:
        if self._last is None:
            self._last = work
            self._queue.put(None)  # ends the thread

    def _main(self) -> None:
        wait_s: float | None = None
        while True:
            try:
                work = self._queue.get(timeout=wait_s)
            except queue.Empty:
                wait_s = self._do_spare(is_idle=bool(wait_s))  # after 0 s the thread was not idle
                continue
            if work is None:
                break
            self._run(work)
            del work  # otherwise the variable would keep the call and its result in memory until the next call
            wait_s = self._do_spare(is_idle=False)
        assert self._last is not None
        self._run(self._last)

    def _run(self, work: _Work[Any]) -> None:
        """Run `work`, after the calls that pass it now. These come from the queue once more, without effect."""
        for _ in range(len(self._first)):  # not those that come meanwhile, which would put off `spare`
            self._first.popleft().run()
        work.run()

    def _do_spare(self, *, is_idle: bool) -> float | None:
        try:
            return self._spare(is_idle)
        except Exception:
            logger.exception("housekeeping of %s failed, next try in %s s", self._thread.name, RETRY_S)
            return RETRY_S


class _Work(Struct, Generic[T], eq=False):
    """A queued call, and the future for its result if a caller waits for it."""

    _call: Callable[[], T]
    _result: asyncio.Future[T] | None = None
    is_begun: bool = False  # set when the thread takes the call

    def run(self) -> None:
        # This method writes `is_begun` before it reads whether the caller has stopped waiting, which cancels the
        # future; `StoreThread.run` does it the other way round. So a call that was reported as not begun never runs.
        if self.is_begun:
            return  # it passed others
        self.is_begun = True
        caller, result, error = self._result, None, None
        if caller is None or not caller.cancelled():
            try:
                result = self._call()
            except BaseException as raised:
                error = raised
        if caller is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                caller.get_loop().call_soon_threadsafe(_settle, caller, result, error)
        elif error is not None:
            logger.error("the last work of a store failed; its next start repairs it", exc_info=error)


def _settle(caller: asyncio.Future[T], result: Any, error: BaseException | None) -> None:
    if caller.done():
        return  # it has stopped waiting
    if error is not None:
        caller.set_exception(error)
    else:
        caller.set_result(result)


OPEN_TIMEOUT_S = 60.0  # opening may take long, since it reads the whole log
TIMEOUT_S = 30.0  # far above `busy_s`; a disk that is slower than this counts as failed
JOIN_S = 5.0


def _carried_out(
    method: Callable[Concatenate[Any, P], T],  # a method of the engine, or of the part of it that `of` returns
    of: Callable[[Engine], object] = lambda engine: engine,
    *,
    late: type[StoreUnavailable] = StoreUnavailable,
    is_first: bool = False,
) -> Callable[Concatenate[SqliteStore, P], Coroutine[Any, Any, T]]:
    """Return the same method of a store: the engine carries it out on the store's thread.

    It raises `late` if the call began and did not end in time, and StoreUnusable for rows of an impossible form.
    """
    # In a call that writes, only this error of SQLite, about a damaged table, is damage: the caller made other ones.
    damage = (UnicodeDecodeError,) if late is CommitUnknown else DAMAGE

    @wraps(method)
    async def call(self: SqliteStore, /, *args: P.args, **fields: P.kwargs) -> T:
        opened = self._opened()

        def translated() -> T:
            try:
                return method(of(opened.engine), *args, **fields)
            except sqlite3.Error as error:
                raise opened.file.unavailable(error) from error
            except damage as error:
                raise damaged(f"store file {self.path}", error) from error

        try:
            return await opened.thread.run(translated, timeout_s=TIMEOUT_S, is_first=is_first)
        except Late as error:
            kind = late if error.is_begun else StoreUnavailable
            raise kind(f"store file {self.path} did not respond within {TIMEOUT_S:.0f} s; check the disk") from None

    return call


_channels = attrgetter("channels")


class SqliteStore:
    """A store in the SQLite file at `path`, created if it is missing, with `-wal`, `-shm` and `.lock` files beside it.

    `synchronous`: "full" survives a power cut; "normal" may lose the last commits in one (then new epochs begin). The
    store waits `busy_s` seconds for another program's lock on the database, and `lock_wait_s` seconds for another
    process that has the store open. It waits once: after a refusal, later calls of `open` only check whether the other
    process has ended.
    """

    name = "sqlite"
    is_exclusive = True

    commit = _carried_out(Engine.commit, late=CommitUnknown, is_first=True)
    heads = _carried_out(Engine.heads)
    changes = _carried_out(Engine.changes)
    entries = _carried_out(Engine.entries)
    messages = _carried_out(Engine.messages)
    page = _carried_out(Engine.page)
    open_channels = _carried_out(Engine.open_channels)
    open_documents = _carried_out(Engine.open_documents)
    delete_channel = _carried_out(Engine.delete_channel, late=CommitUnknown)
    channels = _carried_out(Channels.names, _channels)
    summaries = _carried_out(Channels.summaries, _channels)
    newest_ms = _carried_out(Channels.newest_ms, _channels)
    commands = _carried_out(Channels.commands, _channels)
    facts = _carried_out(Engine.facts)
    prune = _carried_out(Engine.prune, late=CommitUnknown)
    notes = _carried_out(Engine.notes)
    note = _carried_out(Engine.note, late=CommitUnknown)
    tidy = _carried_out(Engine.tidy)
    wipe = _carried_out(Engine.wipe)

    def __init__(
        self, path: str | os.PathLike[str], *, synchronous: str = "full", busy_s: float = 5.0, lock_wait_s: float = 5.0
    ) -> None:
        if synchronous not in ("normal", "full", "extra"):
            raise LocalError(f"synchronous must be 'normal', 'full' or 'extra', got {shown(synchronous)}")
        if os.fspath(path) in ("", ":memory:"):
            raise LocalError(f"path must name a file, got {shown(os.fspath(path))}; for one in memory use memory://")
        self.path = Path(path)
        self._synchronous = synchronous
        self._busy_s = busy_s
        self._lock_wait_s = lock_wait_s
        self._was_in_use = False  # True: the last `open` was refused, because another process had the store
        self._open: _Open | None = None
        self._stats = {"commits": 0, "row_bytes": 0}  # the last counters of the engine
        self.failed_backups = 0  # number of scheduled backups that failed
        self._backup_s: float | None = None  # when the last good backup was made, on the monotonic clock

    async def open(self) -> None:
        """Open the store (`Store.open`). An open store stays open, and another event loop may take it over."""
        if self._open is not None:
            return
        wait_s = 0.0 if self._was_in_use else self._lock_wait_s
        file = SqliteFile(self.path, synchronous=self._synchronous, busy_s=self._busy_s, lock_wait_s=wait_s)
        engine = Engine(file)
        thread = StoreThread(f"tenuto-sqlite-{self.path.name}", engine.spare)
        try:
            await thread.run(engine.open, timeout_s=OPEN_TIMEOUT_S)
        except BaseException as error:
            file.give_up()
            thread.stop(file.abandon)
            self._was_in_use = isinstance(error, StoreInUse)
            if isinstance(error, Late):
                raise StoreUnavailable(
                    f"store file {self.path} could not be opened in {OPEN_TIMEOUT_S:.0f} s; check the disk"
                ) from None
            raise
        self._was_in_use = False
        self._open = _Open(engine, file, thread)
        atexit.register(self._at_exit)

    async def close(self) -> None:
        """Close the store (`Store.close`)."""
        opened = self._take_open()
        if opened is None:
            return
        try:
            await opened.thread.finish(opened.engine.close, timeout_s=TIMEOUT_S)
        except TimeoutError:
            raise StoreUnavailable(
                f"store file {self.path} could not be closed in {TIMEOUT_S:.0f} s; check the disk"
            ) from None

    async def backup(self, target: Path, *, mb_per_s: float) -> None:
        """Write a backup of the open store into the new file `target`, at most `mb_per_s` MB in a second.

        Commits and reads go on meanwhile. Raises LocalError, StoreUnavailable or StoreUnusable.
        """
        if not isinstance(mb_per_s, int | float) or not 0 < mb_per_s <= 100_000:
            raise LocalError(f"mb_per_s must be a number above 0, at most 100000, got {shown(mb_per_s)}")
        opened = self._opened()
        check_target(target, self.path)
        is_over = threading.Event()

        def pause(seconds: float) -> bool:
            return opened.thread.serve(seconds) and not is_over.is_set()

        with partial_file(target) as partial:
            syncing = asyncio.create_task(keep_synced(partial, is_over))
            try:
                await opened.thread.run(
                    lambda: copy(opened.file.db, partial, bytes_per_s=mb_per_s * 1e6, pause=pause), timeout_s=None
                )
            except Stopped:
                if not syncing.done():  # otherwise a sync has failed, and stopped the copy
                    raise StoreUnavailable(f"backup {target} was stopped: the store closes") from None
            finally:
                is_over.set()
                await asyncio.wait([syncing])
                syncing.exception()  # asyncio logs an error that is not read, as when the copy has failed too
            syncing.result()  # raises the error of a sync, which the next one would not report again
            await asyncio.to_thread(finish, partial, target)
        self.note_backup(0.0)

    def note_backup(self, age_s: float) -> None:
        """Note that the last good backup was made `age_s` seconds ago."""
        self._backup_s = time.monotonic() - age_s

    def stats(self) -> dict[str, int]:
        """Return counters since the store was opened (`Store.stats`).

        With the free space of its disk, and the age of the last good backup, if they are known.
        """
        if self._open is not None:
            self._stats = self._open.engine.stats()
        backups = {"failed_backups": self.failed_backups}
        if self._backup_s is not None:
            backups["backup_age_s"] = int(time.monotonic() - self._backup_s)
        with contextlib.suppress(OSError):
            backups["disk_free_bytes"] = shutil.disk_usage(self.path.parent).free
        return self._stats | backups

    def _opened(self) -> _Open:
        if self._open is None:
            raise LocalError(f"store file {self.path} is not open; call open() first")
        return self._open

    def _take_open(self) -> _Open | None:
        self.stats()  # keeps the last counters
        opened, self._open = self._open, None
        atexit.unregister(self._at_exit)
        return opened

    def _at_exit(self) -> None:
        """Close the file cleanly at the end of a process that has not closed the store."""
        opened = self._take_open()
        if opened is not None:
            opened.thread.stop(opened.engine.close, wait_s=JOIN_S)


class _Open(NamedTuple):
    engine: Engine
    file: SqliteFile
    thread: StoreThread
