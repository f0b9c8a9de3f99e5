"""A watchdog: limits how long each commit may take, with one timer for all of them; and `timed`, for code of the app.

Layer: watchdog, directly above `core`. The committer of a hub has one watchdog, and so has each stream of a model, for
its events. Handlers and hooks run in `timed`.

`asyncio.timeout` makes and cancels a timer for each operation, which costs more than many a commit. The timer of a
watchdog stays: when it fires, it is set for the operation of that time. So an operation is cancelled exactly at its
limit, and a watchdog without operations soon has no timer.

`timed` reads the clock before and after each step of a coroutine, the code between two waits. So it names the code that
blocked the event loop, and no other code that waited meanwhile. A thread that looked at a loop that stands still could
not tell one long step from many short ones.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Awaitable, Coroutine, Generator
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

BLOCKED_S = 0.25  # a step that takes longer is reported
QUIET_S = 60.0  # least time between two reports of the same code
_reported_s: dict[str, float] = {}  # time of the last report, by the name of the code


@types.coroutine
def timed(name: str, work: Awaitable[T], logger: logging.Logger) -> Generator[Any, Any, T]:
    """Return the result of `work`. Warn if one of its steps blocks the event loop, at most once a minute for `name`.

    Steps of other tasks, also of those that `work` starts, do not count.
    """
    coroutine = work if isinstance(work, Coroutine) else _awaited(work)
    step: Any = coroutine.send
    value: Any = None
    while True:
        begun_s = monotonic()
        try:
            waits_for = step(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            value = None  # keep no thrown error, which refers to this frame
            if (now_s := monotonic()) - begun_s > BLOCKED_S:
                _report(name, now_s - begun_s, now_s, logger)
        try:
            value = yield waits_for
            step = coroutine.send
        except BaseException as error:  # raised inside `work`, where the task waits
            step, value = coroutine.throw, error


async def _awaited(work: Awaitable[T]) -> T:
    return await work


def _report(name: str, blocked_s: float, now_s: float, logger: logging.Logger) -> None:
    last_s = _reported_s.get(name)
    if last_s is None or now_s - last_s >= QUIET_S:
        _reported_s[name] = now_s
        logger.warning("%s blocked the event loop for %.1f s: use asyncio.to_thread", name, blocked_s)


class Watchdog:
    """Cancels the operation in `with watchdog:` at its limit, and raises TimeoutError. Only one runs at a time."""

    __slots__ = ("_cancelling", "_due_s", "_limit_s", "_loop", "_task", "_timer", "is_late")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None  # that of the operation; None between two
        self._cancelling = 0  # number of cancellations of the task that other code had requested before
        self._due_s = 0.0
        self.is_late = False  # True: the last operation was ended at its limit
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert self._task is None
        self._task, self._cancelling, self.is_late = task, task.cancelling(), False
        self._due_s = self._loop.time() + self._limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(self.due_s(), self._expire)  # `due_s()` of a subclass may be another

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        # If other code has cancelled the task as well, that cancellation goes on; `asyncio.timeout` does the same.
        if self.is_late and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        """End the operation if its limit has passed, else wait for the limit of the present one."""
        self._timer = None
        if self._task is None:
            return
        if (due_s := self.due_s()) > self._loop.time():
            self._timer = self._loop.call_at(due_s, self._expire)
        else:
            self.is_late = True
            self._task.cancel()

    def due_s(self) -> float:
        """Return when the present operation must have ended, in the loop's time. A subclass may move this."""
        return self._due_s

    def close(self) -> None:
        """Drop the timer at once, and with it the reference to this watchdog."""
        if self._timer is not None:
            self._timer.cancel()
