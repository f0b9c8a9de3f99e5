"""Virtual time jumps to the next deadline, and processes can be held after any step.

Layer: tests.
"""

from __future__ import annotations

import asyncio

import pytest

from proof.simulation.clock import Process, Stuck, VirtualLoop


def test_timers_of_one_deadline_run_in_the_order_in_which_they_were_made(loop: VirtualLoop) -> None:
    ran: list[int] = []

    async def main() -> None:
        for number in range(5):
            loop.call_at(1.0, ran.append, number)
        await asyncio.sleep(2.0)

    loop.run_until_complete(main())
    assert ran == [0, 1, 2, 3, 4]


def test_wait_for_an_event_that_never_comes_is_reported(loop: VirtualLoop) -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        loop.run_until_complete(main())


def test_tasks_and_timers_belong_to_the_process_that_made_them(loop: VirtualLoop) -> None:
    process = Process("p")
    ran: list[str] = []

    async def child() -> None:
        await asyncio.sleep(1.0)
        ran.append("child")

    async def parent() -> None:
        loop.call_later(1.0, ran.append, "timer")
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    async def main() -> None:
        process.start(loop, parent())
        await asyncio.sleep(0.5)
        process.is_held = True
        await asyncio.sleep(1.0)
        assert ran == []
        loop.thaw(process)
        await asyncio.sleep(0.1)

    loop.run_until_complete(main())
    assert sorted(ran) == ["child", "timer"]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_process_can_be_stopped_after_any_step(loop: VirtualLoop, steps: int) -> None:
    process = Process("p")
    ran: list[int] = []

    async def job() -> None:
        for number in range(100):
            ran.append(number)
            await asyncio.sleep(0)

    def stop() -> None:
        process.is_held = True

    async def main() -> None:
        process.start(loop, job())
        process.after_steps(steps, stop)
        await asyncio.sleep(1.0)

    loop.run_until_complete(main())
    assert len(ran) == steps
