"""The lease monitor: it ends messages whose lease expires, and commands without a reply."""

from __future__ import annotations

import asyncio

import pytest

from tenuto.core.requests import AppendText, Caller, CreateMessage, RenewLease
from tenuto.hub import HubCore
from tests.hub.hubs import new_hub
from tests.hub.test_commit_outcomes import ScriptedStore
from tests.hub.test_recovery import Shared as SharedClock
from tests.virtual import virtually

ANN = Caller(id="ann")


async def begin(hub: HubCore, lease_s: float = 15.0) -> None:
    await hub.ask("c", "m", CreateMessage(role="assistant", status="streaming", lease_s=lease_s), ANN)


async def status(hub: HubCore) -> tuple[str, str | None]:
    now, _ = await hub.read("c", "m")
    return now.status, now.reason


INTERRUPTED = ("interrupted", "writer_gone")
STREAMING = ("streaming", None)


@pytest.mark.parametrize("set_back_ms", [20_000, 3_600_000])
@pytest.mark.parametrize("at_s", [0.0, 0.25, 0.5, 0.75])  # each node reads the clock once a second
@virtually
async def test_clock_of_a_store_set_back_ends_no_lease_of_a_living_writer(set_back_ms: int, at_s: float) -> None:
    store = SharedClock()
    here, there = new_hub(store, 1), new_hub(store, 2)
    for hub in (here, there):
        await hub.start()
        await asyncio.sleep(0.5)  # so their renewals alternate
    await asyncio.sleep(30)
    await begin(here)
    await here.ask("c", "m", AppendText(text="x"), ANN)
    assert await status(there) == STREAMING
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


@virtually
async def test_lease_lasts_while_a_renewal_of_its_writer_waits_for_a_slow_store() -> None:
    store = ScriptedStore()
    hub = new_hub(store)
    await begin(hub, 5.0)
    await asyncio.sleep(4.0)
    store.gate = asyncio.Event()
    slow = asyncio.ensure_future(hub.create("d", text="its commit is before that of the renewal"))
    await store.is_committing.wait()
    renewing = asyncio.ensure_future(hub.ask("c", "m", RenewLease(lease_s=5.0), ANN))
    await asyncio.sleep(3.0)
    store.gate.set()
    await asyncio.gather(slow, renewing)
    await asyncio.sleep(4.0)
    assert await status(hub) == STREAMING
    await asyncio.sleep(2.0)
    assert await status(hub) == INTERRUPTED
