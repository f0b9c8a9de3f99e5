"""The heartbeats: one timer, which calls every target at least once in its period."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tenuto.transports.sender import Heartbeats


class Heart:
    def __init__(self) -> None:
        self.beats = 0

    def send_heartbeat(self) -> None:
        self.beats += 1


async def test_every_target_is_called_once_per_period() -> None:
    heartbeats = Heartbeats()
    quick, slow = [Heart() for _ in range(7)], [Heart() for _ in range(40)]
    for heart in quick:
        heartbeats.add(heart, 2)
    for heart in slow:
        heartbeats.add(heart, 15)
    for _ in range(30):
        heartbeats.tick()
    assert {heart.beats for heart in quick} == {15}
    assert {heart.beats for heart in slow} == {2}


async def test_removed_target_is_not_called_and_empty_heartbeats_have_no_timer() -> None:
    heartbeats = Heartbeats()
    heart = Heart()
    heartbeats.remove(heart, heartbeats.add(heart, 2))
    assert len(heartbeats) == 0
    for _ in range(4):
        heartbeats._run_tick()
    assert heart.beats == 0
    assert heartbeats._timer is None
    heartbeats.add(heart, 2)
    assert heartbeats._timer is not None


async def test_until_empty_returns_after_the_last_removal() -> None:
    heartbeats = Heartbeats()
    hearts = [Heart() for _ in range(3)]
    slots = [heartbeats.add(heart, 15) for heart in hearts]
    waiting = [asyncio.create_task(heartbeats.until_empty()) for _ in range(2)]
    for heart, slot in zip(hearts, slots, strict=True):
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        heartbeats.remove(heart, slot)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
        await heartbeats.until_empty()


async def test_failing_heartbeat_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Heart):
        def send_heartbeat(self) -> None:
            raise ZeroDivisionError

    heartbeats = Heartbeats()
    hearts = [Broken(), Heart(), Broken()]
    for heart in hearts:
        heartbeats.add(heart, 1)
    with caplog.at_level(logging.ERROR):
        heartbeats.tick()
    assert hearts[1].beats == 1
    assert "a heartbeat failed" in caplog.text
