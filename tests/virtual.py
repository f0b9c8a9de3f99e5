"""Tests in virtual time: a minute takes as long as the processing of its events.

Layer: tests.

`@virtually` runs an async test on a loop whose time jumps to the next deadline, so that tests use the real
leases, graces and time limits without waiting. It cannot run stores that need a thread or a file.
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from proof.simulation.clock import SimClock, VirtualLoop
from tenuto.hub.clock import Clock

T = TypeVar("T")
_open: list[Any] = []  # such as hubs


def virtually(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Return `test` as a plain test in virtual time; an error that asyncio reports fails it, also in `closed_later`."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        loop = VirtualLoop()
        _open.clear()
        gc.disable()  # garbage of earlier tests may start tasks here: clients of `openai` do so in `__del__`
        try:
            loop.run_until_complete(test(*args, **kwargs))
            for one in _open:
                loop.run_until_complete(one.close())
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:  # only if the test failed or did not close its hub
                loop.run_until_complete(asyncio.wait(left))
            loop.close()
            gc.enable()
        assert loop.complaints == []

    return run


def closed_later(one: T) -> T:
    """Return `one`, which `virtually` closes after the test, as far as the test has not."""
    _open.append(one)
    return one


def virtual_clock(seed: int = 1) -> SimClock | None:
    """Return a hub's clock that follows the loop; None for a real loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return SimClock(loop, Random(seed)) if isinstance(loop, VirtualLoop) else None


class Time:
    """A clock in seconds that the test sets."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


class Watch(Clock):
    """The wall clock, which the test may move."""

    def __init__(self, ahead_ms: int = 0) -> None:
        super().__init__()
        self.ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def now_s(self) -> float:
        return self.now_ms() / 1000
