"""The tasks of one run of the hub.

Layer: hub.

A TaskGroup owns them; connections and stores have tasks of their own. A hub that drains waits for the jobs of the app,
and cancels them if they take too long; it cancels background tasks at its end without waiting.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tenuto.core.errors import StoreUnavailable, TenutoError

logger = logging.getLogger("tenuto.hub")

LINES, PERIOD_S = 10, 60.0  # limit of lines in a period
MAX_REASONS = 100  # limit of reasons that are remembered at the same time


class LineLimit:
    """Allows at most 10 lines of the log a minute. An instance counts its own lines."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._logged_at_s: dict[str, float] = {}  # when a reason was logged, the oldest first
        self._period_at_s = 0.0  # when the period began
        self._lines = 0  # lines in this period
        self._left_out = 0  # lines left out since the last logged one

    def more(self, reasons: dict[str, float]) -> str | None:
        """Return the end of a log line about `reasons`, and count it as logged; None if it must not be logged now.

        Each reason has the least seconds between two lines with it.
        """
        now_s = self._now_s()
        if now_s - self._period_at_s >= PERIOD_S:
            self._period_at_s, self._lines = now_s, 0
        is_recent = any(now_s - self._logged_at_s.get(one, -math.inf) < least_s for one, least_s in reasons.items())
        if is_recent or self._lines >= LINES:
            self._left_out += 1
            return None
        self._lines += 1
        logged = self._logged_at_s | dict.fromkeys(reasons, now_s)
        self._logged_at_s = dict(sorted(logged.items(), key=lambda one: one[1])[-MAX_REASONS:])
        left_out, self._left_out = self._left_out, 0
        return f" ({left_out} more since the last such line)" if left_out else ""

    def log_failed(self, what: str, error: object, *, reason: str = "", to: logging.Logger = logger) -> None:
        """Log once a minute that `what` has failed; `reason` stands for a text that names, for example, a channel."""
        more = self.more({reason or f"{what}: {error}": PERIOD_S})
        if more is not None:
            to.warning("%s: %s%s", what, error, more)


store_failures = LineLimit()  # each commit, and each round of each service, meets a store that fails


@contextmanager
def logs_errors(message: str, *, level: int = logging.WARNING, is_limited: bool = True) -> Iterator[None]:
    """Log an error of the block after `message`, and go on: also one of a third-party store must not end the hub.

    The `level` is that of an error of Tenuto; any other one is logged with its traceback. If `is_limited`, the failures
    of a store are logged once a minute.
    """
    try:
        yield
    except (TenutoError, TimeoutError) as error:
        if isinstance(error, StoreUnavailable) and is_limited and level == logging.WARNING:
            store_failures.log_failed(message, error)
        else:
            logger.log(level, "%s: %s", message, str(error) or "timed out")
    except Exception:
        logger.exception("%s", message)


class Tasks:
    """Starts tasks in a TaskGroup. If a task raises, the exception is logged and the other tasks go on."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        self.jobs: set[asyncio.Task[Any]] = set()  # running tasks of the app
        self._background: set[asyncio.Task[Any]] = set()  # other tasks, which a drain does not wait for
        self.quieter = asyncio.Event()  # set when a job or a writer ends, so that a drain checks again for running work
        self.drained = asyncio.Event()  # set at the end of a drain: the process may end from then on

    def spawn(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `job`, which is expected to end by itself."""
        guarded = _guarded(job)
        try:
            task = self._group.create_task(guarded)
        except BaseException:  # the hub has ended or is ending: close the coroutine, which will never be awaited
            guarded.close()
            job.close()
            raise
        # close the coroutine also if the task is cancelled before its first step
        task.add_done_callback(lambda _: job.close())
        return task

    def start_job(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `job` of the app; a drain gives it time to finish."""
        task = self.spawn(job)
        self.jobs.add(task)
        task.add_done_callback(self._job_ended)
        return task

    def start_background(self, job: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `job` until the hub ends, which cancels it without waiting for its end."""
        task = self.spawn(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def cancel(self) -> None:
        """Cancel all jobs and background tasks, because the hub ends."""
        for task in (*self.jobs, *self._background):
            task.cancel()

    def _job_ended(self, job: asyncio.Task[Any]) -> None:
        self.jobs.discard(job)
        self.quieter.set()


async def _guarded(job: Coroutine[Any, Any, Any]) -> Any:
    """Run `job` and log its exceptions, since no other code awaits the task."""
    try:
        return await job
    except TenutoError as error:
        logger.warning("task %s of the hub ended: %s (%s)", getattr(job, "__qualname__", job), error, error.code)
    except Exception:
        logger.exception("task %s of the hub failed", getattr(job, "__qualname__", job))
