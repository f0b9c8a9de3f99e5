"""Blocking calls of threads on an event loop, with real threads.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from tenuto import Hub
from tenuto.core.errors import LocalError
from tenuto.hub import hub as hub_module
from tenuto.portal import NoResponse, Portal, run_on
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Write
from tenuto.stores.memory import MemoryStore

REMEDY = "await it"
PATIENCE_S = 60.0


async def no_op() -> None:
    """Close an object that holds no resources."""


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal("test-portal")
    yield portal
    portal.stop(no_op, PATIENCE_S)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "test-portal"]


def test_portal_runs_one_loop_and_starts_again_after_its_end(portal: Portal) -> None:
    async def loop_of_call() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = portal.start()
    assert portal.start() is first
    assert run_on(first, loop_of_call(), remedy=REMEDY) is first
    assert threads() == ["test-portal"]
    portal.stop(no_op, PATIENCE_S)
    portal.stop(no_op, PATIENCE_S)
    assert (threads(), first.is_closed()) == ([], True)
    assert portal.start() is not first


def test_end_of_a_portal_does_not_wait_for_the_thread_of_a_start_meanwhile(portal: Portal) -> None:
    first = portal.start()

    async def close() -> None:
        await asyncio.to_thread(portal.start)  # a blocking call in another thread

    began_s = time.monotonic()
    portal.stop(close, PATIENCE_S / 4)
    assert time.monotonic() - began_s < PATIENCE_S / 8
    assert (first.is_closed(), threads()) == (True, ["test-portal"])


def test_thread_of_the_loop_may_not_block_on_it(portal: Portal) -> None:
    loop = portal.start()

    async def block() -> None:
        with pytest.raises(LocalError, match=REMEDY):
            run_on(loop, no_op(), remedy=REMEDY)

    run_on(loop, block(), remedy=REMEDY)


def test_late_call_is_cancelled_and_its_own_timeout_is_not_late(portal: Portal) -> None:
    loop = portal.start()
    was_cancelled = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async def time_out() -> None:
        raise TimeoutError("the call's own")

    with pytest.raises(NoResponse):
        run_on(loop, hang(), remedy=REMEDY, timeout_s=0.01)
    assert was_cancelled.wait(PATIENCE_S)
    with pytest.raises(TimeoutError, match="the call's own"):
        run_on(loop, time_out(), remedy=REMEDY, timeout_s=PATIENCE_S)


def test_interrupted_call_is_cancelled(portal: Portal) -> None:
    was_cancelled = threading.Event()

    def is_waiting() -> bool:
        """Return whether the main thread waits for the call; before that it could not cancel it."""
        return sys._current_frames()[threading.main_thread().ident or 0].f_code.co_name == "wait"

    async def hang() -> None:
        while not is_waiting():  # noqa: ASYNC110 - a thread sets no event before it blocks
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    with pytest.raises(KeyboardInterrupt):
        run_on(portal.start(), hang(), remedy=REMEDY)
    assert was_cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "cancelled"), (ZeroDivisionError, "failed")])
def test_interrupted_block_cancels_its_message_unlike_a_failed_one(error: type[BaseException], status: str) -> None:
    hub = Hub("memory://")
    with pytest.raises(error), hub.sync.message("c", id="m") as message:
        message.append("so far")
        message.update(meta={"a": 1})
        assert (message.length, message.meta) == (6, {"a": 1})
        raise error
    with hub.sync.message("c", id="n") as message:
        assert hub.sync.command("c", "cancel", target="n").target == "n"
        message.finish("failed", reason="why", meta={"b": 2})
    newest, (first, _) = hub.sync.history("c", limit=1).messages[0], hub.sync.read("c", "m")
    assert (first.status, first.text, first.meta) == (status, "so far", {"a": 1})
    assert (newest.status, newest.reason, newest.meta) == ("failed", "why", {"b": 2})
    hub.sync.close()


class _Slow(MemoryStore):
    """A store whose commits wait."""

    def __init__(self) -> None:
        super().__init__()
        self.may_commit = threading.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        await asyncio.to_thread(self.may_commit.wait, PATIENCE_S)
        return await super().commit(writes)


def test_call_without_a_response_in_time_may_be_stored_later(monkeypatch: pytest.MonkeyPatch) -> None:
    store = _Slow()
    hub = Hub(store)
    assert hub.sync.history("c").messages == []
    with monkeypatch.context() as short:
        short.setattr(hub_module, "TIMEOUT_S", 0.05)
        with pytest.raises(CommitUnknown, match="may still do it"), hub.sync.message("c", id="m"):
            pass
    store.may_commit.set()
    hub.sync.close()
    assert store._commits > 0
