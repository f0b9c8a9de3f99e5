"""The tasks of one run of the hub.

Layer: hub.

A TaskGroup owns them; connections and stores have tasks of their own. A hub that drains waits for the jobs of the app,
and cancels them if they take too long; it cancels background tasks at its end without waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tenuto.core.errors import TenutoError

logger = logging.getLogger("tenuto.hub")


@contextmanager
def logs_errors(message: str, *, level: int = logging.WARNING) -> Iterator[None]:
    """Log an error of the block after `message`, and go on: also one of a third-party store must not end the hub.

    The `level` is that of an error of Tenuto; any other one is logged with its traceback.
    """
    try:
        yield
    except (TenutoError, TimeoutError) as error:
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
        logger.warning("a task of the hub ended: %s (%s)", error, error.code)
    except Exception:
        logger.exception("a task of the hub failed")
