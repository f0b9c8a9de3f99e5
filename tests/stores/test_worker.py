"""The thread that does a store's work: in order, and whatever happens."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from holdfast.core.errors import LocalError
from holdfast.stores import worker as worker_module
from holdfast.stores.worker import Late, Worker


def nothing(is_idle: bool) -> float | None:
    return None


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test-worker", nothing)
    yield worker
    worker.stop(lambda: None)
    worker.join(5)


async def test_work_is_done_in_order_on_one_thread(worker: Worker) -> None:
    done: list[tuple[int, str]] = []

    def work(number: int) -> int:
        done.append((number, threading.current_thread().name))
        return number

    answers = await asyncio.gather(
        *(worker.ask(lambda number=number: work(number), timeout_s=5) for number in range(5))
    )
    assert answers == [0, 1, 2, 3, 4]
    assert done == [(number, "test-worker") for number in range(5)]


async def test_an_error_goes_to_its_caller_and_the_thread_goes_on(worker: Worker) -> None:
    def fail() -> None:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):
        await worker.ask(fail, timeout_s=5)
    assert await worker.ask(lambda: 7, timeout_s=5) == 7


async def test_what_begins_too_late_is_never_done(worker: Worker) -> None:
    held, done = threading.Event(), []
    holding = asyncio.create_task(worker.ask(held.wait, timeout_s=5))
    await asyncio.sleep(0)
    with pytest.raises(Late) as late:
        await worker.ask(lambda: done.append(1), timeout_s=0.01)
    assert not late.value.is_begun
    held.set()
    assert await holding
    assert await worker.ask(lambda: list(done), timeout_s=5) == []


async def test_what_has_begun_is_said_to_have_begun(worker: Worker) -> None:
    held = threading.Event()
    with pytest.raises(Late) as late:
        await worker.ask(held.wait, timeout_s=0.05)
    assert late.value.is_begun
    held.set()


async def test_nothing_is_asked_of_a_worker_that_has_stopped() -> None:
    worker = Worker("test-worker", nothing)
    await worker.finish(lambda: None, timeout_s=5)
    with pytest.raises(LocalError):
        await worker.ask(lambda: None, timeout_s=5)
    assert "test-worker" not in [thread.name for thread in threading.enumerate()]


async def test_the_last_work_is_done_though_nobody_waits() -> None:
    worker = Worker("test-worker", nothing)
    held, ended = threading.Event(), threading.Event()
    holding = asyncio.create_task(worker.ask(held.wait, timeout_s=5))
    finishing = asyncio.create_task(worker.finish(ended.set, timeout_s=5))
    await asyncio.sleep(0)
    finishing.cancel()
    held.set()
    await asyncio.wait([holding, finishing])
    assert await asyncio.to_thread(ended.wait, 5)


async def test_spare_work_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "RETRY_S", 0.01)
    calls, over = [], threading.Event()

    def spare(is_idle: bool) -> float | None:
        calls.append(is_idle)
        if len(calls) == 1:
            raise OSError("disk full")
        over.set()
        return None

    worker = Worker("test-worker", spare)
    await worker.ask(lambda: None, timeout_s=5)
    assert await asyncio.to_thread(over.wait, 5)
    assert calls == [False, True]
    await worker.finish(lambda: None, timeout_s=5)
