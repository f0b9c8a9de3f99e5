"""The store's thread: runs calls in order, commits before reads that wait, also after errors and timeouts."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tenuto.stores.sqlite import store as worker_module
from tenuto.stores.sqlite.store import Late, StoreThread

PATIENCE_S = 60.0


@pytest.fixture
def thread() -> Iterator[StoreThread]:
    thread = StoreThread("test-thread", lambda is_idle: None)
    yield thread
    thread.stop(lambda: None, wait_s=PATIENCE_S)


async def test_call_that_timed_out_in_the_queue_never_runs(thread: StoreThread) -> None:
    held, done = threading.Event(), []
    holding = thread.run(held.wait, timeout_s=PATIENCE_S)
    with pytest.raises(Late) as late:
        await thread.run(lambda: done.append(1), timeout_s=0.01)
    assert not late.value.is_begun
    held.set()
    assert await holding
    assert await thread.run(lambda: list(done), timeout_s=PATIENCE_S) == []


@pytest.mark.parametrize("is_serving", [False, True])
async def test_call_that_is_first_passes_those_that_wait(thread: StoreThread, is_serving: bool) -> None:
    held, done = threading.Event(), list[str]()

    def hold() -> None:
        held.wait()
        if is_serving:  # as a backup does, between two parts of a file
            assert thread.serve(0)

    holding = thread.run(hold, timeout_s=None)
    calls = [("read 1", False), ("commit 1", True), ("read 2", False), ("commit 2", True)]
    results = [thread.run(partial(done.append, name), timeout_s=None, is_first=is_first) for name, is_first in calls]
    held.set()
    await asyncio.gather(holding, *results)
    assert done == ["commit 1", "commit 2", "read 1", "read 2"]


async def test_last_call_runs_without_a_waiting_caller() -> None:
    thread = StoreThread("test-thread", lambda is_idle: None)
    held, ended = threading.Event(), threading.Event()
    holding = thread.run(held.wait, timeout_s=None)
    finishing = asyncio.create_task(thread.finish(ended.set, timeout_s=PATIENCE_S))
    await asyncio.sleep(0)
    finishing.cancel()
    held.set()
    await asyncio.wait([holding, finishing])
    assert await asyncio.to_thread(ended.wait, PATIENCE_S)


async def test_failed_housekeeping_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RETRY_S", 0.01)
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
