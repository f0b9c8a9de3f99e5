"""The wheel: one timer, every member at least once in its period."""

from __future__ import annotations

import asyncio
import logging

import pytest

from holdfast.transports.wheel import Wheel


class Heart:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        self.beats += 1


async def test_every_member_is_called_once_in_each_of_its_periods() -> None:
    wheel = Wheel()
    quick, slow = [Heart() for _ in range(7)], [Heart() for _ in range(40)]
    for heart in quick:
        wheel.add(heart, 2)
    for heart in slow:
        wheel.add(heart, 15)
    for _ in range(30):
        wheel.tick()
    assert {heart.beats for heart in quick} == {15}
    assert {heart.beats for heart in slow} == {2}


async def test_members_are_spread_over_the_seconds_of_their_period() -> None:
    wheel = Wheel()
    hearts = [Heart() for _ in range(1_500)]
    for heart in hearts:
        wheel.add(heart, 15)
    for second in range(1, 16):
        wheel.tick()
        assert sum(heart.beats for heart in hearts) == 100 * second


async def test_who_left_is_not_called_and_an_empty_wheel_stands_still() -> None:
    wheel = Wheel()
    heart = Heart()
    wheel.remove(heart, wheel.add(heart, 2))
    assert len(wheel) == 0
    for _ in range(4):
        wheel._turn()
    assert heart.beats == 0
    assert wheel._timer is None
    wheel.add(heart, 2)
    assert wheel._timer is not None


async def test_whoever_waits_for_the_last_to_leave_is_told() -> None:
    wheel = Wheel()
    hearts = [Heart() for _ in range(3)]
    slots = [wheel.add(heart, 15) for heart in hearts]
    waiting = [asyncio.create_task(wheel.until_empty()) for _ in range(2)]
    for heart, slot in zip(hearts, slots, strict=True):
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        wheel.remove(heart, slot)
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)
        await wheel.until_empty()


async def test_a_heartbeat_that_fails_stops_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Heart):
        def beat(self) -> None:
            raise ZeroDivisionError

    wheel = Wheel()
    hearts = [Broken(), Heart(), Broken()]
    for heart in hearts:
        wheel.add(heart, 1)
    with caplog.at_level(logging.ERROR):
        wheel.tick()
    assert hearts[1].beats == 1
    assert "a heartbeat failed" in caplog.text


def test_a_wheel_begins_anew_on_another_loop() -> None:
    wheel = Wheel()
    first, second = Heart(), Heart()

    async def add(heart: Heart) -> None:
        wheel.add(heart, 1)

    asyncio.run(add(first))
    asyncio.run(add(second))
    wheel.tick()
    assert (first.beats, second.beats) == (0, 1)
