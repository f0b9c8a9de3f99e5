"""The watchdog: each operation ends at its limit, with one timer for all, and none once there are no operations.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from simulation.clock import VirtualLoop
from tenuto.watchdog import Watchdog, WatchedOperation
from tests.virtual import virtually

LIMIT_S = 30.0


def now_s() -> float:
    return asyncio.get_running_loop().time()


def timers() -> int:
    """Return how many timers the loop holds that are not cancelled."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return sum(not timer.cancelled() for _, _, timer in loop._timers)


@virtually
async def test_each_operation_ends_exactly_at_its_limit_or_before() -> None:
    watchdog, draw = Watchdog(LIMIT_S), Random(1)
    ended: list[tuple[float, bool]] = []  # how long each operation took, and whether it was late

    async def operate(starts_s: float, takes_s: float) -> None:
        await asyncio.sleep(starts_s)
        begun_s = now_s()
        try:
            with watchdog.watch():
                await asyncio.sleep(takes_s)
            ended.append((now_s() - begun_s - takes_s, False))
        except TimeoutError:
            ended.append((now_s() - begun_s - LIMIT_S, True))

    plan = [(draw.uniform(0, 100), draw.choice((0.001, 29.0, 31.0, 300.0))) for _ in range(200)]
    await asyncio.gather(*(operate(*one) for one in plan))
    assert sorted(late for _, late in ended) == sorted(takes_s > LIMIT_S for _, takes_s in plan)
    assert max(abs(error_s) for error_s, _ in ended) < 1e-6


@virtually
async def test_thousand_operations_share_one_timer_and_leave_none() -> None:
    watchdog = Watchdog(LIMIT_S)
    before = timers()
    for _ in range(1_000):
        with watchdog.watch():
            await asyncio.sleep(0)
        assert timers() <= before + 1
    await asyncio.sleep(LIMIT_S)
    assert timers() == before


@virtually
async def test_cancellation_by_other_code_goes_on() -> None:
    watchdog = Watchdog(LIMIT_S)
    watches: list[WatchedOperation] = []

    async def operate() -> None:
        with watchdog.watch() as watch:
            watches.append(watch)
            await asyncio.sleep(100)

    task = asyncio.create_task(operate())
    await asyncio.sleep(1)
    task.cancel()
    watches[0].expire()  # the limit passes at the moment of the cancellation
    with pytest.raises(asyncio.CancelledError):
        await task
    watches[0].expire()  # the operation has ended: no effect
    await asyncio.sleep(0)


@virtually
async def test_late_operation_leaves_its_task_usable() -> None:
    watchdog = Watchdog(LIMIT_S)
    for _ in range(3):
        with pytest.raises(TimeoutError), watchdog.watch():
            await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@virtually
async def test_error_of_an_operation_is_not_replaced() -> None:
    watchdog = Watchdog(LIMIT_S)
    with pytest.raises(ZeroDivisionError), watchdog.watch():
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
