"""The watchdog: each operation ends at its limit, with one timer for all, and none once there are no operations.

`timed` names the code of the app that blocks the event loop.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from proof.simulation.clock import VirtualLoop
from tenuto import HookEvent, Hub, Turn, watchdog
from tenuto.watchdog import Watchdog, timed
from tests.virtual import closed_later, virtual_clock, virtually

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
    for _ in range(200):
        await asyncio.sleep(draw.choice((0.0, 1.0, 29.0, 31.0, 100.0)))
        begun_s, takes_s = now_s(), draw.choice((0.001, 29.0, 31.0, 300.0))
        is_late = False
        try:
            with watchdog:
                await asyncio.sleep(takes_s)
        except TimeoutError:
            is_late = True
        assert is_late == (takes_s > LIMIT_S)
        assert abs(now_s() - begun_s - min(takes_s, LIMIT_S)) < 1e-6


@virtually
async def test_thousand_operations_share_one_timer_and_leave_none() -> None:
    watchdog = Watchdog(LIMIT_S)
    before = timers()
    for _ in range(1_000):
        with watchdog:
            await asyncio.sleep(0)
        assert timers() <= before + 1
    await asyncio.sleep(LIMIT_S)
    assert timers() == before


# Code of the app that blocks the event loop ----------------------------------------------------------------------


class Blocking:
    """The clock of `timed`: it moves only where a test's code blocks."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def block(self, takes_s: float) -> None:
        """Stand for code that blocks the event loop, such as `time.sleep`."""
        self.now_s += takes_s


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> Blocking:
    clock = Blocking()
    monkeypatch.setattr(watchdog, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(watchdog, "_reported_s", {})
    return clock


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "blocked" in one.getMessage()]


def test_only_the_code_that_blocked_is_named_and_once_a_minute(
    blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    async def blocks(takes_s: float) -> None:
        await asyncio.sleep(0)
        blocking.block(takes_s)
        await asyncio.sleep(0)

    async def waits() -> str:
        for _ in range(10):
            await asyncio.sleep(0)
            blocking.block(0.1)  # a second in all, but no step of it is long
        return "its result"

    async def main() -> None:
        for rest_s in (31.0, 31.0, 31.0):
            log = logging.getLogger("test")
            long, other = timed("handler A", blocks(8.0), log), timed("handler B", waits(), log)
            assert (await asyncio.gather(long, other))[1] == "its result"
            blocking.block(rest_s - 9.0)

    asyncio.run(main())
    assert reports(caplog) == ["handler A blocked the event loop for 8.0 s: use asyncio.to_thread"] * 2


def test_cancellations_and_errors_pass_through(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    log, steps = logging.getLogger("test"), []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("cancelled")
            blocking.block(1.0)
            await asyncio.sleep(0)
            raise ValueError("cleanup") from None

    async def main() -> None:
        task = asyncio.ensure_future(timed("handler A", work(), log))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(ValueError, match="cleanup"):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await timed("handler B", asyncio.get_running_loop().create_future(), log)

    asyncio.run(main())
    assert steps == ["cancelled"]
    assert reports(caplog) == ["handler A blocked the event loop for 1.0 s: use asyncio.to_thread"]


@virtually
async def test_handlers_hooks_and_sources_that_block_are_named(
    blocking: Blocking, caplog: pytest.LogCaptureFixture
) -> None:
    hub = closed_later(Hub("memory://", hooks_signals=False, drain_s=0, clock=virtual_clock()))
    billed = asyncio.Event()

    @hub.agent("chat:*", name="bot")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("answer")
            blocking.block(8.0)

    @hub.on("message.finish", "chat:*", name="billing")
    async def bill(event: HookEvent) -> None:
        blocking.block(0.3)
        billed.set()

    async def never() -> dict[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def ignore(message: Any) -> None: ...

    def model() -> Iterator[str]:
        blocking.block(2.0)
        yield "word"

    await hub.create("chat:1", text="question")
    await billed.wait()
    response = hub.stream_response("other:1", model)
    await response({"type": "http", "headers": []}, never, ignore)
    assert [one.split(":")[0] for one in reports(caplog)] == [
        'handler "bot" blocked the event loop for 8.0 s',
        'hook "billing" blocked the event loop for 0.3 s',
        'source "model" of stream_response blocked the event loop for 2.0 s',
    ]
