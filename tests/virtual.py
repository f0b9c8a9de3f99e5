"""Tests in virtual time: a minute costs what happens in it.

Layer: tests.

`@virtually` runs an async test on a loop whose time jumps, so that leases, graces and time limits
are tested as they are, without waiting. Stores that need a thread or a file cannot be used in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from simulation.clock import SimClock, VirtualLoop


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """`test` as a plain test in virtual time; what asyncio complains of fails it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        loop = VirtualLoop()
        try:
            loop.run_until_complete(test(*args, **kwargs))
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:  # only where the test failed, or closes nothing
                loop.run_until_complete(asyncio.wait(left))
            loop.close()
        assert loop.complaints == []

    return run


def virtual_clock() -> SimClock | None:
    """A hub's clock that goes with the loop; None where the loop is a real one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return SimClock(loop, Random(1)) if isinstance(loop, VirtualLoop) else None
