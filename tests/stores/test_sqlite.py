"""The SQLite store keeps every promise, on any event loop, and with a failing disk."""

import asyncio
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

import pytest

from tenuto.core.errors import LocalError, StoreUnavailable
from tenuto.stores.base import Committed, CommitUnknown, Head, head_of
from tenuto.stores.sqlite import channels as sqlite_channels
from tenuto.stores.sqlite import engine as sqlite_engine
from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.store import Late, SqliteStore, StoreThread
from tests.stores.contract import Chat, StoreContract, append, create, texts
from tests.stores.files import PATIENCE_S, call_on_thread, opened, run_from_outside, store_threads, wal


class TestSqliteStore(StoreContract):
    pass


# -- event loops -------------------------------------------------------------------------------------------------


def test_store_continues_on_another_event_loop(path: Path) -> None:
    store = SqliteStore(path)
    chat = Chat(store)

    async def use(step: tuple[str, object]) -> None:
        await store.open()
        assert isinstance(await chat.do(step), Committed)  # type: ignore[arg-type]

    asyncio.run(use(create("m1", streaming=True)))
    asyncio.run(use(append("m1", "left open by a loop that is gone")))
    asyncio.run(store.close())
    asyncio.run(use(append("m1", ", and closed by another")))
    asyncio.run(store.close())
    assert store_threads() == []


FORGETFUL = """
import asyncio, sys
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, create

async def main():
    store = SqliteStore(sys.argv[1])
    await store.open()
    await Chat(store).do(create("m1", "a"))

asyncio.run(main())
"""


def test_process_that_does_not_close_ends_with_a_clean_file(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORGETFUL, path], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr, wal(path).exists()) == (0, "", False)
    assert run_from_outside(path, "SELECT mark LIKE 'closed-%' FROM life") == [(1,)]


async def test_store_that_is_not_open_raises_misuse(path: Path) -> None:
    with pytest.raises(LocalError, match="not open"):
        await head_of(SqliteStore(path), "c")


async def test_many_channels_leave_memory_and_come_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_channels, "MAX_CHANNELS", 8)
    async with opened(path) as store:
        for number in range(40):
            chat = Chat(store, f"c{number}")
            await chat.do(create("m1", "a", streaming=number % 10 == 0))
            await chat.do(append("m1", "b"))
        assert store.stats()["channels"] < 20  # 8, and those with pinned rows: 4 always, others for a moment
        heads = [await head_of(store, f"c{number}") for number in (0, 1, 20)]
        assert heads == [Head("e1", serial) for serial in (2, 1, 2)]
        assert await texts(store, "c20", "m1") == ["ab"]


# -- the thread: runs calls in order, commits before reads that wait, also after errors and timeouts ------------------


@pytest.fixture
def thread() -> Iterator[StoreThread]:
    thread = StoreThread("test-thread", lambda is_idle: None)
    yield thread
    thread.stop(lambda: None, wait_s=PATIENCE_S)


async def test_call_that_timed_out_in_the_queue_never_runs(thread: StoreThread) -> None:
    held, done = threading.Event(), []
    holding = asyncio.create_task(thread.run(held.wait, timeout_s=PATIENCE_S))
    await asyncio.sleep(0)  # it has begun
    with pytest.raises(Late) as late:
        await thread.run(lambda: done.append(1), timeout_s=0.01)
    assert not late.value.is_begun
    held.set()
    assert (await holding, await thread.run(lambda: list(done), timeout_s=PATIENCE_S)) == (True, [])


async def test_result_that_came_while_the_event_loop_stood_still_is_not_late(thread: StoreThread) -> None:
    over, time_s = threading.Event(), asyncio.get_running_loop().time
    thread._spare = lambda is_idle: over.set()  # after the thread has sent the result
    running = asyncio.create_task(thread.run(lambda: "result", timeout_s=0.001))
    await asyncio.sleep(0)
    late_s = time_s() + 0.001
    while not over.is_set() or time_s() < late_s:
        pass
    assert await running == "result"


@pytest.mark.parametrize("is_serving", [False, True])
async def test_call_that_is_first_passes_those_that_wait(thread: StoreThread, is_serving: bool) -> None:
    held, done = threading.Event(), list[str]()

    def hold() -> None:
        held.wait()
        if is_serving:  # as a backup does, between two parts of a file
            assert thread.serve(0)

    calls = [("read 1", False), ("commit 1", True), ("read 2", False), ("commit 2", True)]
    runs = [thread.run(partial(done.append, name), timeout_s=None, is_first=is_first) for name, is_first in calls]
    running = asyncio.gather(thread.run(hold, timeout_s=None), *runs)
    asyncio.get_running_loop().call_soon(held.set)  # when all have begun
    await running
    assert done == ["commit 1", "commit 2", "read 1", "read 2"]


async def test_last_call_runs_without_a_waiting_caller() -> None:
    thread = StoreThread("test-thread", lambda is_idle: None)
    held, ended = threading.Event(), threading.Event()
    holding = asyncio.create_task(thread.run(held.wait, timeout_s=None))
    finishing = asyncio.create_task(thread.finish(ended.set, timeout_s=PATIENCE_S))
    await asyncio.sleep(0)
    finishing.cancel()
    held.set()
    await asyncio.wait([holding, finishing])
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)


async def test_failed_housekeeping_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "RETRY_S", 0.01)
    calls, over = [], threading.Event()

    def spare(is_idle: bool) -> float | None:
        calls.append(is_idle)
        if len(calls) == 1:
            raise OSError("disk full")
        over.set()
        return None

    thread = StoreThread("test-thread", spare)
    await thread.run(lambda: None, timeout_s=PATIENCE_S)
    assert await asyncio.to_thread(over.wait, PATIENCE_S)
    assert calls == [False, True]
    await thread.finish(lambda: None, timeout_s=PATIENCE_S)


# -- trouble -----------------------------------------------------------------------------------------------------


async def test_a_write_that_fails_in_the_system_is_undone_and_works_later(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do(create("m1", streaming=True))
        stored = 1
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal(path).stat().st_size + 100_000, hard))
        try:
            with pytest.raises(StoreUnavailable, match=r"(reading or writing failed|the disk is full)"):
                for _ in range(100):
                    stored = (await chat.do(append("m1", "x" * 9_000))).serial  # type: ignore[union-attr]
            assert stored > 1
            assert await head_of(store, "c") == Head("e1", stored)
            assert await texts(store, "c", "m1") == ["x" * 9_000 * (stored - 1)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert await chat.do(append("m1", "!")) == Committed(stored + 1)
    async with opened(path) as store:
        assert await head_of(store, "c") == Head("e1", stored + 1)
        assert await texts(store, "c", "m1") == ["x" * 9_000 * (stored - 1) + "!"]


async def test_commit_waits_for_a_foreign_writer_and_then_reports_it(path: Path) -> None:
    async with opened(path, busy_s=0.05) as store:
        chat = Chat(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="another process writes to this database"):
                await chat.do(create("m1", "a"))
            other.execute("ROLLBACK")
        assert await chat.do(create("m1", "a")) == Committed(1)


async def test_a_commit_that_takes_too_long_is_unknown_and_may_still_happen(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, transaction = threading.Event(), SqliteFile.transaction

    def noted(file: SqliteFile) -> AbstractContextManager[sqlite3.Connection]:
        begun.set()
        return transaction(file)

    async with opened(path, busy_s=PATIENCE_S) as store:
        chat = Chat(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with monkeypatch.context() as patched:
                patched.setattr(sqlite, "TIMEOUT_S", 0.01)
                patched.setattr(SqliteFile, "transaction", noted)
                committing = asyncio.create_task(chat.do(create("m1", "a")))
                await asyncio.sleep(0)
                assert begun.wait(PATIENCE_S)  # the event loop stands still, so the limit is noticed only now
                with pytest.raises(CommitUnknown, match="did not respond"):
                    await committing
                with pytest.raises(StoreUnavailable, match="did not respond"):
                    await head_of(store, "c")
            other.execute("ROLLBACK")
        assert await head_of(store, "c") == Head("e1", 1)


async def test_an_idle_store_empties_its_wal(path: Path, store: SqliteStore) -> None:
    await Chat(store).do(create("m1", "a"))
    assert await call_on_thread(store, lambda engine: (engine.spare(False), engine.spare(True))) == (1.0, None)
    assert wal(path).stat().st_size == 0


async def test_wal_that_is_full_is_moved_into_the_file_after_one_more_call(store: SqliteStore) -> None:
    def checkpoints(engine: sqlite_engine.Engine) -> list[int]:
        engine._count_pages(sqlite_engine.CHECKPOINT_PAGES)
        return [engine.stats()["checkpoints"] for _ in range(3) if engine.spare(is_idle=False)]

    before, *after = await call_on_thread(store, checkpoints)
    assert after == [before + 1, before + 1]
