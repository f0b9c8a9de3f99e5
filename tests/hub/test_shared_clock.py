"""Hubs on one store whose machines have different clocks: all of them use the clock of the store.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio

import pytest

from proof.simulation.clock import SimClock
from tenuto.hub.clock import Clock, StoreClock
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.virtual import virtually

DAY_MS = 24 * 3600 * 1000


def test_ids_sort_by_time_and_keep_rising_if_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = Clock(), [*range(31, 2000, 3), *range(1000, 1010), 2001, 2001]
    monkeypatch.setattr(clock, "now_ms", iter(times).__next__)
    ids = [clock.new_id() for _ in times]
    assert ids == sorted(set(ids))


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
