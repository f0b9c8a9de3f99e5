"""The lease monitor: it ends messages whose lease expires, and commands without a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tenuto.core.errors import AlreadyAnswered, Fenced, Finished, NotWriter, TenutoError
from tenuto.core.model import Message
from tenuto.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    RenewLease,
    TakeOver,
)
from tenuto.core.turns import CANCEL_S
from tenuto.hub import HubCore
from tenuto.hub.leases import BROKEN_S
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.hub.test_recovery import Shared as SharedClock
from tests.hub.test_recovery import new_hub as node
from tests.virtual import virtual_clock, virtually

ANN = Caller(id="ann")
BOB = Caller(id="bob")


def new_hub(store: Any = "memory://") -> HubCore:
    return HubCore(store, hooks_signals=False, drain_s=0.0, clock=virtual_clock())


async def begin(hub: HubCore, lease_s: float = 15.0, caller: Caller = ANN) -> None:
    await hub.ask("c", "m", CreateMessage(role="assistant", status="streaming", lease_s=lease_s), caller)


async def message(hub: HubCore) -> Message:
    return (await hub.read("c", "m"))[0]


async def status(hub: HubCore) -> tuple[str, str | None]:
    now = await message(hub)
    return now.status, now.reason


INTERRUPTED = ("interrupted", "writer_gone")
STREAMING = ("streaming", None)


@virtually
async def test_expired_lease_interrupts_the_message() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    await hub.ask("c", "m", AppendText(text="half"), ANN)
    await asyncio.sleep(4.9)
    assert await status(hub) == STREAMING
    await asyncio.sleep(0.2)
    assert await status(hub) == INTERRUPTED
    assert (await message(hub)).text == "half"
    with pytest.raises(Finished):
        await hub.ask("c", "m", AppendText(text="late"), ANN)
    await hub.close()


@pytest.mark.parametrize(
    "request_",
    [AppendText(text="x"), AppendText(text="", at=0), RenewLease(lease_s=5.0)],
    ids=["append", "empty", "lease"],
)
@virtually
async def test_accepted_request_renews_the_lease(request_: Any) -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    for _ in range(10):
        await asyncio.sleep(4)
        await hub.ask("c", "m", request_, ANN)
    assert await status(hub) == STREAMING
    await asyncio.sleep(5.1)
    assert await status(hub) == INTERRUPTED
    await hub.close()


class Shared(MemoryStore):
    """A store in memory that several hubs may have open."""

    is_exclusive = False


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
    here, there = node(store, 1), node(store, 2)
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
    for hub in (here, there):
        await hub.close()


@virtually
async def test_message_of_a_drained_hub_is_interrupted_by_another_hub_within_two_seconds() -> None:
    store = Shared()
    here, there = new_hub(store), new_hub(store)
    there.clock.new_id()  # the clocks of the tests return the same ids, and the hubs need different names
    await there.start()
    await (await here.message("c", id="m").open()).append("half")
    await asyncio.sleep(8)
    await here.close()
    await asyncio.sleep(2)
    assert (await status(there), (await message(there)).text) == (("interrupted", None), "half")
    await there.close()


@virtually
async def test_refused_request_does_not_renew_the_lease() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    for _ in range(4):
        await asyncio.sleep(1.3)
        with pytest.raises(TenutoError):
            await hub.ask("c", "m", AppendText(text="x", at=9), ANN)
        with pytest.raises((NotWriter, Finished)):
            await hub.ask("c", "m", RenewLease(), BOB)
    assert await status(hub) == INTERRUPTED
    await hub.close()


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
    await hub.close()


@virtually
async def test_broken_socket_cuts_the_lease_to_three_seconds_and_a_reconnect_restores_it() -> None:
    hub = new_hub()
    await begin(hub)
    hub.runtime.leases.held("c", "m", "socket")
    hub.runtime.leases.broken("socket")
    await asyncio.sleep(BROKEN_S - 0.1)
    await hub.ask("c", "m", AppendText(text="back"), ANN)
    await asyncio.sleep(10)
    assert await status(hub) == STREAMING
    hub.runtime.leases.held("c", "m", "new")
    hub.runtime.leases.broken("socket")  # a late end of the old socket does not affect the new one
    await asyncio.sleep(4)
    assert await status(hub) == STREAMING
    hub.runtime.leases.broken("new")
    await asyncio.sleep(BROKEN_S + 0.1)
    assert await status(hub) == INTERRUPTED
    await hub.close()


@virtually
async def test_lease_of_a_writer_that_is_known_to_be_gone_ends_at_once() -> None:
    hub = new_hub()
    await begin(hub)
    hub.runtime.leases.end("c", "other")  # no effect, because the message has no lease
    hub.runtime.leases.end("c", "m")
    await asyncio.sleep(0.1)
    assert await status(hub) == INTERRUPTED
    await hub.close()


@virtually
async def test_takeover_fences_the_old_writer_and_has_its_own_lease() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    await hub.ask("c", "m", AppendText(text="half "), ANN)
    await asyncio.sleep(6)
    taken = await hub.ask("c", "m", TakeOver(lease_s=10.0), BOB)
    assert (taken.generation, taken.lengths) == (2, [5])
    with pytest.raises(Fenced):
        await hub.ask("c", "m", AppendText(text="zombie", at=5), ANN)
    with pytest.raises(Fenced):
        await hub.ask("c", "m", AppendText(text="no generation"), BOB)
    await hub.ask("c", "m", AppendText(text="whole", generation=2), BOB)
    await asyncio.sleep(9)
    assert await status(hub) == STREAMING
    await asyncio.sleep(2)
    assert await status(hub) == INTERRUPTED
    assert (await message(hub)).text == "half whole"
    await hub.close()


# Commands


@virtually
async def test_cancel_ends_a_message_whose_writer_does_not_react() -> None:
    hub = new_hub()
    await begin(hub, 60.0)
    await hub.ask("c", "m", AppendText(text="half"), ANN)
    command = await hub.command("c", "cancel", target="m", by="bob")
    await asyncio.sleep(CANCEL_S - 0.1)
    assert await status(hub) == STREAMING
    await asyncio.sleep(0.2)
    assert await status(hub) == ("cancelled", None)
    known = hub.channel("c").state.command(f"!{command.id}")
    assert known is not None
    assert known.reply is not None
    assert (known.reply.ok, known.reply.by) == (True, None)
    with pytest.raises(Finished):
        await hub.ask("c", "m", AppendText(text="more"), ANN)
    await hub.close()


@virtually
async def test_command_without_a_reply_expires_across_a_restart() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    command = await hub.command("c", "approve", data={"n": 1}, by="bot", expires_s=100)
    await asyncio.sleep(60)
    await hub.close()
    again = new_hub(store)
    await again.start()
    await again.members("c")
    events: list[Any] = []

    async def watch() -> None:
        async for event in again.subscribe("c"):
            events.append(event)

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(41)
    assert [one.id for one in events[0].commands] == [command.id]
    assert (events[-1].id, events[-1].ok, events[-1].error["code"]) == (command.id, False, "expired")
    with pytest.raises(AlreadyAnswered):
        await again.reply("c", command.id)
    watching.cancel()
    await asyncio.wait([watching])
    await again.close()


@virtually
async def test_broken_socket_does_not_cut_a_lease_renewed_over_http_since() -> None:
    hub = new_hub()
    await begin(hub)
    hub.runtime.leases.held("c", "m", "line")
    await hub.ask("c", "m", RenewLease(), ANN)
    hub.runtime.leases.broken("line")
    await asyncio.sleep(14.9)
    assert await status(hub) == STREAMING
    await hub.close()
