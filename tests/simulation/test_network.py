"""One direction of a simulated connection: order, latency, cuts, holes and backpressure.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from proof.simulation.clock import VirtualLoop
from proof.simulation.faults import FaultModel
from proof.simulation.network import Pipe

HOUR_S = 3600.0


def pipe(loop: VirtualLoop, **faults: object) -> Pipe[int]:
    """Return a pipe with these faults."""
    return Pipe(loop, FaultModel(**faults), Random(1))  # type: ignore[arg-type]


def test_items_arrive_later_and_in_order(loop: VirtualLoop) -> None:
    async def main() -> tuple[list[int | None], float]:
        one_way = pipe(loop, latency_s=(0.1, 2.0))
        for number in range(20):
            one_way.put(number, 1)
        return [await one_way.take() for _ in range(20)], loop.time()

    taken, now_s = loop.run_until_complete(main())
    assert taken == list(range(20))
    assert now_s >= 0.1


def test_cut_loses_items_in_flight(loop: VirtualLoop) -> None:
    async def main() -> list[int | None]:
        one_way = pipe(loop, latency_s=(1.0, 1.0))
        one_way.put(1, 1)
        await asyncio.sleep(0.5)
        one_way.put(2, 1)
        await asyncio.sleep(0.7)
        one_way.cut()
        return [await one_way.take(), await one_way.take()]

    assert loop.run_until_complete(main()) == [1, None]


def test_hole_swallows_items_and_stays_open(loop: VirtualLoop) -> None:
    async def main() -> None:
        one_way = pipe(loop)
        one_way.is_hole = True
        one_way.put(1, 1)
        async with asyncio.timeout(HOUR_S):
            await one_way.take()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(main())


def test_sender_waits_while_too_many_bytes_are_in_flight(loop: VirtualLoop) -> None:
    async def main() -> list[bool]:
        one_way = pipe(loop, latency_s=(0.1, 0.1), room_bytes=10)
        one_way.put(1, 11)
        full = [one_way.is_full]
        waiting = loop.create_task(one_way.until_room())
        await asyncio.sleep(1.0)
        full.append(waiting.done())
        await one_way.take()
        await waiting
        return full

    assert loop.run_until_complete(main()) == [True, False]
