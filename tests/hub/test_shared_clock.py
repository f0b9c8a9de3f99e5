"""Hubs on one store whose machines have different clocks: all of them use the clock of the store.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from proof.simulation.clock import START_MS, SimClock, VirtualLoop
from tenuto.app import Hub
from tenuto.hub.clock import StoreClock
from tests.hub.test_recovery import Shared
from tests.hub.watching import Watcher
from tests.virtual import virtually

DAY_MS = 24 * 3600 * 1000


def new_hub(store: Shared, number: int, *, skew_ms: int = 0) -> Hub:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    clock = SimClock(loop, Random(number))
    clock.skew_ms = skew_ms
    return Hub(store, hooks_signals=False, drain_s=0.0, clock=clock)


@pytest.mark.parametrize("is_sender_off", [False, True])
@pytest.mark.parametrize("skew_ms", [DAY_MS, -DAY_MS])
def test_command_is_open_for_its_time_at_another_node(skew_ms: int, *, is_sender_off: bool) -> None:
    @virtually
    async def check() -> None:
        store = Shared()
        plain, off = new_hub(store, 0), new_hub(store, 1, skew_ms=skew_ms)
        sender, other = (off, plain) if is_sender_off else (plain, off)
        await plain.start()
        await off.start()
        watcher = Watcher(other, "c")
        await watcher.take()
        begun_s = asyncio.get_running_loop().time()
        sent = await sender.command("c", "ping", expires_s=6.0)
        assert abs(sent.expires_at - START_MS - (begun_s + 6.0) * 1000) < 1_000
        await watcher.until(lambda view: bool(view.commands()))
        await sender.close()  # the other node expires the command
        await watcher.until(lambda view: not view.commands())
        assert 5.9 < asyncio.get_running_loop().time() - begun_s < 9.0
        await watcher.leave()
        await other.close()

    check()


@virtually
async def test_large_difference_of_the_clocks_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    for skew_ms, expected in ((DAY_MS, "is 86400 s ahead of"), (-DAY_MS, "is 86400 s behind")):
        caplog.clear()
        store = Shared()
        hub = new_hub(store, 1)
        await hub.start()
        assert isinstance(hub.clock, StoreClock)
        own = hub.clock._own
        assert isinstance(own, SimClock)
        for _ in range(2):
            assert "clock of this machine" not in caplog.text
            own.skew_ms = skew_ms
            await asyncio.sleep(5.0)
            assert [line.getMessage().partition(" that of the store;")[0] for line in caplog.records] == [
                f"the clock of this machine {expected}"
            ]
            own.skew_ms = 0
            await asyncio.sleep(5.0)
            caplog.clear()
        await hub.close()
