"""A thread that does all blocking work of one store, one call after the other.

Layer: stores.

Any event loop may submit a call and receives its result there; the thread is independent of the calls' meaning. An
error goes to the caller and never ends the thread. After each call, and when no call comes for a
while, the thread calls `spare(is_idle)`, which may do a little housekeeping. It returns the seconds after which to call
it again if no other call comes: 0 for at once, None for never.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from tenuto.core.errors import LocalError
from tenuto.watchdog import Watch, Watchdog

T = TypeVar("T")

logger = logging.getLogger("tenuto.stores")

RETRY_S = 1.0  # wait before the next call after `spare` failed
END_S = 1.0  # time that the thread has to end after the last result; it takes microseconds


class Late(Exception):
    """The result did not come in time. If `is_begun`, the call may still finish; otherwise it will never run."""

    def __str__(self) -> str:
        return f"the call did not end in time and was {'running' if self.is_begun else 'not begun'}"

    def __init__(self, *, is_begun: bool) -> None:
        super().__init__()
        self.is_begun = is_begun


class StoreThread:
    """A thread and its queue of calls. The thread is a daemon, so a store left open does not keep a process alive."""

    def __init__(self, name: str, spare: Callable[[bool], float | None]) -> None:
        self._spare = spare
        self._queue: queue.SimpleQueue[_Work[Any] | None] = queue.SimpleQueue()
        self._left: deque[_Work[Any] | None] = deque()  # taken from the queue by `serve`, and not run
        self._is_stopping = False
        self._watchdog: Watchdog | None = None  # of the calls of `run` that have a time limit, which is mostly the same
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T], *, timeout_s: float | None) -> T:
        """Run `call` on the thread and return its result, or raise its error; raises Late after `timeout_s`, if given.

        The thread skips a call whose caller has stopped waiting.
        """
        if self._is_stopping:
            raise LocalError(f"store thread {self._thread.name!r} is closed; open the store again to use it")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        work = _Work(call, loop, result)
        self._queue.put(work)
        try:
            if timeout_s is None:
                return await result
            self._watchdog = Watchdog.kept(self._watchdog, timeout_s)
            with Watch(self._watchdog):
                return await result
        except TimeoutError:
            work.is_dropped = True
            raise Late(is_begun=work.is_begun) from None
        finally:
            work.is_dropped = True

    async def finish(self, last: Callable[[], object], *, timeout_s: float) -> None:
        """Run the queued calls, then `last`, and end the thread. Raises the error of `last`, or Late.

        The thread does so even if the caller stops waiting.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[object] = loop.create_future()
        self._put_last(_Work(last, loop, result))
        try:
            async with asyncio.timeout(timeout_s):
                await result
        except TimeoutError:
            raise Late(is_begun=True) from None
        self._thread.join(END_S)

    def serve(self, seconds: float) -> bool:
        """Run queued calls from within a call, for up to `seconds`, and all that wait. Returns False when it must end.

        It must end when the thread is to stop: the calls that are left run after the current one.
        """
        end_s = time.monotonic() + seconds
        while not self._is_stopping:
            try:
                left_s = end_s - time.monotonic()
                work = self._queue.get(block=left_s > 0, timeout=max(0.0, left_s))
            except queue.Empty:
                return True
            if self._is_stopping or work is None:
                self._left.append(work)
                return False
            work.run()
            del work
            self._do_spare(is_idle=False)
        return False

    def stop(self, last: Callable[[], object]) -> None:
        """Finish as `finish` does, but without waiting and from any thread."""
        self._put_last(_Work(last, None, None))

    def join(self, timeout_s: float) -> None:
        """Block until the thread has ended, or for `timeout_s`."""
        self._thread.join(timeout_s)

    def _put_last(self, work: _Work[Any]) -> None:
        if not self._is_stopping:
            self._is_stopping = True
            self._queue.put(work)
            self._queue.put(None)

    def _main(self) -> None:
        wait_s: float | None = None
        while True:
            try:
                work = self._left.popleft() if self._left else self._queue.get(timeout=wait_s)
            except queue.Empty:
                wait_s = self._do_spare(is_idle=bool(wait_s))
                continue
            if work is None:
                return
            work.run()
            del work  # otherwise the variable would keep the call and its result in memory until the next call
            wait_s = self._do_spare(is_idle=False)

    def _do_spare(self, *, is_idle: bool) -> float | None:
        try:
            return self._spare(is_idle)
        except Exception:
            logger.exception("housekeeping of %s failed, next try in %s s", self._thread.name, RETRY_S)
            return RETRY_S


class _Work(Generic[T]):
    """A queued call, and the future for its result if a caller waits for it."""

    __slots__ = ("_call", "_loop", "_result", "is_begun", "is_dropped")

    def __init__(
        self, call: Callable[[], T], loop: asyncio.AbstractEventLoop | None, result: asyncio.Future[T] | None
    ) -> None:
        self._call = call
        self._loop = loop
        self._result = result
        self.is_begun = False
        self.is_dropped = False

    def run(self) -> None:
        # This method writes `is_begun` before it reads `is_dropped`; `StoreThread.run` does it the other way round.
        # So a call that was reported as not begun never runs.
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
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits
                self._loop.call_soon_threadsafe(self._settle, result, error)
        elif error is not None:
            logger.error("the last work of a store failed", exc_info=error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        assert self._result is not None
        if self._result.done():
            return  # the caller has stopped waiting
        if error is not None:
            self._result.set_exception(error)
        else:
            self._result.set_result(result)
