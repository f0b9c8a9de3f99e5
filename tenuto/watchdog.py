"""A watchdog: limits how long operations may take, with one timer for all of them; and `timed`, for code of the app.

Layer: watchdog, directly above `core`. The commits of a hub use a watchdog. Handlers and hooks run in `timed`.

`asyncio.timeout` makes and cancels a timer for each operation, which costs more than most operations that succeed. The
limit of a watchdog is the same for all its operations, so they become due in the order in which they began. The one
timer is set for the oldest operation; when it fires, it is set for the oldest one of that time. So an operation is
cancelled exactly at its limit, and a watchdog without operations soon has no timer.

`timed` reads the clock before and after each step of a coroutine, the code between two waits. So it names the code that
blocked the event loop, and no other code that waited meanwhile. A thread that looked at a loop that stands still could
not tell one long step from many short ones.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Awaitable, Coroutine, Generator
from dataclasses import dataclass, field
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
            value = None  # an error that was thrown refers to this frame
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
    """Cancels operations on one event loop that take longer than `limit_s`. Each runs in `with Watch(watchdog):`."""

    __slots__ = ("has_timer", "limit_s", "loop", "watches")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.loop = asyncio.get_running_loop()
        self.watches: dict[Watch, None] = {}  # the running operations, oldest first
        self.has_timer = False

    def expire(self) -> None:
        """End the operations whose limit has passed; the timer calls this."""
        now_s = self.loop.time()
        for watch in tuple(self.watches):
            if watch.due_s > now_s:
                self.loop.call_at(watch.due_s, self.expire)
                return
            del self.watches[watch]
            watch.is_late = True
            watch.task.cancel()
        self.has_timer = False


@dataclass(eq=False, slots=True)
class Watch:
    """One operation of the current task. At the limit the task is cancelled, and the block raises TimeoutError."""

    watchdog: Watchdog
    task: asyncio.Task[Any] = field(init=False)
    cancelling: int = field(init=False)  # number of cancellations of the task that other code has requested before
    due_s: float = field(init=False)
    is_late: bool = field(default=False, init=False)

    def __enter__(self) -> Watch:
        watchdog, task = self.watchdog, asyncio.current_task()
        assert task is not None
        self.task, self.cancelling = task, task.cancelling()
        self.due_s = watchdog.loop.time() + watchdog.limit_s
        watchdog.watches[self] = None
        if not watchdog.has_timer:
            watchdog.has_timer = True
            watchdog.loop.call_at(self.due_s, watchdog.expire)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.watchdog.watches.pop(self, None)
        # If other code has cancelled the task as well, that cancellation goes on; `asyncio.timeout` does the same.
        if self.is_late and self.task.uncancel() <= self.cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
