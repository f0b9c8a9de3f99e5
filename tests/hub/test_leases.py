"""The lease monitor: it ends messages whose lease expires, and commands without a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tenuto.core.model import Message
from tenuto.core.requests import AppendText, Caller, CreateMessage
from tenuto.hub import HubCore
from tenuto.stores.base import Committed, Conflict, Write
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared as SharedClock
from tests.virtual import virtually

ANN = Caller(id="ann")


async def begin(hub: HubCore, lease_s: float = 15.0, caller: Caller = ANN) -> None:
    await hub.ask("c", "m", CreateMessage(role="assistant", status="streaming", lease_s=lease_s), caller)


async def message(hub: HubCore) -> Message:
    return (await hub.read("c", "m"))[0]


async def status(hub: HubCore) -> tuple[str, str | None]:
    now = await message(hub)
    return now.status, now.reason


INTERRUPTED = ("interrupted", "writer_gone")
STREAMING = ("streaming", None)


class SlowCommit(SharedClock):
    """A store whose next commit takes `commit_s`."""

    commit_s = 0.0

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        takes_s, self.commit_s = self.commit_s, 0.0
        await asyncio.sleep(takes_s)
        return await super().commit(writes)


async def known_at_two() -> tuple[SlowCommit, HubCore, HubCore]:
    """Return a store with two hubs, which both know the lease of message `m`. Its writer is at the first one."""
    store = SlowCommit()
    here, there = new_hub(store, 1), new_hub(store, 2)
    for hub in (here, there):
        await hub.start()
        await asyncio.sleep(0.5)  # so their renewals alternate
    await asyncio.sleep(30)
    await begin(here)
    await here.ask("c", "m", AppendText(text="x"), ANN)
    assert await status(there) == STREAMING
    return store, here, there


@pytest.mark.parametrize("set_back_ms", [20_000, 3_600_000])
@pytest.mark.parametrize("at_s", [0.0, 0.25, 0.5, 0.75])  # each node reads the clock once a second
@virtually
async def test_clock_of_the_store_that_is_set_back_ends_no_lease_of_a_living_writer(
    set_back_ms: int, at_s: float
) -> None:
    store, here, there = await known_at_two()
    await asyncio.sleep(at_s)
    for number in range(150):
        await asyncio.sleep(0.2)
        if number == 50:
            store.ahead_ms -= set_back_ms
        await here.ask("c", "m", AppendText(text="x"), ANN)
    assert await status(there) == STREAMING


@virtually
async def test_lease_of_a_drained_hub_ends_after_its_close_and_next_start() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    await hub.drain()
    await hub.start()  # has no effect before `close`
    await asyncio.sleep(60.0)
    assert (await status(hub), hub.is_draining) == (STREAMING, True)
    await hub.close()
    await hub.start()
    await asyncio.sleep(6.0)
    assert (await status(hub), hub.is_draining) == (INTERRUPTED, False)
