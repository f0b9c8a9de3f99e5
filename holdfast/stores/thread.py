"""One thread that does all of a store's blocking work, one piece after the other.

Layer: stores.

Work is asked for from any event loop and answered there; the thread knows nothing of what it
does. An error goes to whoever asked and never ends the thread. After each piece of work, and when none comes for a
while, it calls `spare(is_idle)`, which may do a little of its own and says after how many seconds it wants to be called
if nothing else comes: 0 for at once, None for never.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from holdfast.core.errors import LocalError

T = TypeVar("T")

logger = logging.getLogger("holdfast.stores")

RETRY_S = 1.0  # after `spare` failed
END_S = 1.0  # for a thread that has answered for the last time, to be gone: microseconds


class Late(Exception):
    """The answer did not come in time. If the work `is_begun` it may yet be done; otherwise it never will be."""

    def __init__(self, *, is_begun: bool) -> None:
        super().__init__()
        self.is_begun = is_begun


class StoreThread:
    """A thread and its queue. It is a daemon, so that a forgotten store does not keep a process alive."""

    def __init__(self, name: str, spare: Callable[[bool], float | None]) -> None:
        self._spare = spare
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, call: Callable[[], T], *, timeout_s: float) -> T:
        """Return what `call` returns on the thread, or raise what it raises; raises Late after `timeout_s`.

        A call that nobody waits for any more when its turn comes is left out.
        """
        if self._is_stopping:
            raise LocalError("the store was closed")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        work = _Work(call, loop, answer)
        self._queue.put(work)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            work.is_dropped = True
            raise Late(is_begun=work.is_begun) from None
        finally:
            work.is_dropped = True

    async def finish(self, last: Callable[[], object], *, timeout_s: float) -> None:
        """Let the thread do what was asked so far, then `last`, and end; raises what `last` raises, or Late.

        The thread does so also when nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        self._put_last(_Work(last, loop, answer))
        try:
            async with asyncio.timeout(timeout_s):
                await answer
        except TimeoutError:
            raise Late(is_begun=True) from None
        self._thread.join(END_S)

    def stop(self, last: Callable[[], object]) -> None:
        """As `finish`, without waiting and from any thread."""
        self._put_last(_Work(last, None, None))

    def join(self, timeout_s: float) -> None:
        """Block until the thread has ended, or `timeout_s` is over."""
        self._thread.join(timeout_s)

    def _put_last(self, work: _Work[Any]) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._queue.put(work)
            self._queue.put(None)

    def _run(self) -> None:
        wait_s: float | None = None
        while True:
            try:
                work = self._queue.get(timeout=wait_s)
            except queue.Empty:
                wait_s = self._do_spare(is_idle=bool(wait_s))
                continue
            if work is None:
                return
            work.run()
            del work  # or it would keep what was asked and answered alive until more comes
            wait_s = self._do_spare(is_idle=False)

    def _do_spare(self, *, is_idle: bool) -> float | None:
        try:
            return self._spare(is_idle)
        except Exception:
            logger.exception("housekeeping of %s failed, next try in %s s", self._thread.name, RETRY_S)
            return RETRY_S


class _Work(Generic[T]):
    """A call, and the future that its answer goes to, if anybody waits for one."""

    __slots__ = ("_answer", "_call", "_loop", "is_begun", "is_dropped")

    def __init__(
        self, call: Callable[[], T], loop: asyncio.AbstractEventLoop | None, answer: asyncio.Future[T] | None
    ) -> None:
        self._call = call
        self._loop = loop
        self._answer = answer
        self.is_begun = False
        self.is_dropped = False

    def run(self) -> None:
        # Here "begun" is said before "dropped" is read, in `ask` the other way round: so work of which the caller
        # was told that it is not begun is never done.
        self.is_begun = True
        if self.is_dropped:
            return
        result: T | None = None
        error: BaseException | None = None
        try:
            result = self._call()
        except BaseException as raised:
            error = raised
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                self._loop.call_soon_threadsafe(self._settle, result, error)
        elif error is not None:
            logger.error("the last work of a store failed", exc_info=error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        assert self._answer is not None
        if self._answer.done():
            return  # the caller went away
        if error is not None:
            self._answer.set_exception(error)
        else:
            self._answer.set_result(result)
