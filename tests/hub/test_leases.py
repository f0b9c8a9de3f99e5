"""The lease monitor: it ends messages whose lease expires, and commands without a reply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tenuto.core.errors import AlreadyAnswered, Deleted, Fenced, Finished, NotFound, NotWriter, TenutoError
from tenuto.core.model import Message
from tenuto.core.requests import (
    AppendText,
    Caller,
    CreateMessage,
    DeleteMessage,
    FinishMessage,
    PutPart,
    RenewLease,
    ReplyCommand,
    SendCommand,
    TakeOver,
)
from tenuto.core.turns import CANCEL_S
from tenuto.hub import HubCore
from tenuto.hub.leases import BROKEN_S
from tenuto.stores.base import Committed, Conflict, Tail, Write
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


CREATE = CreateMessage(role="assistant", status="streaming", lease_s=5.0)


@pytest.mark.parametrize(
    "request_",
    [AppendText(text="x"), AppendText(text="", at=0), RenewLease(lease_s=5.0), CREATE],
    ids=["append", "empty", "lease", "create"],
)
@virtually
async def test_lease_that_is_renewed_at_one_hub_does_not_expire_at_another(request_: Any) -> None:
    store = Shared()
    here, there = new_hub(store), new_hub(store)
    there.clock.new_id()
    await begin(here, 5.0)
    assert await status(there) == STREAMING
    for _ in range(5):
        await asyncio.sleep(4)
        result = await here.ask("c", "m", request_, ANN)
    assert result.created == (request_ == AppendText(text="x"))
    assert await status(there) == STREAMING
    await here.close()
    await asyncio.sleep(11)
    assert await status(there) == INTERRUPTED
    await there.close()


@pytest.mark.parametrize(
    "request_", [AppendText(text="x"), PutPart(index=1, part={"type": "text", "text": ""}), RenewLease(lease_s=15.0)]
)
@virtually
async def test_hub_that_reads_a_lease_late_counts_its_term_from_the_last_stored_request(request_: Any) -> None:
    store = SharedClock()
    here, there = new_hub(store), new_hub(store)
    there.clock.new_id()
    await there.start()
    await asyncio.sleep(10)  # its first recoveries are over
    await begin(here)
    await here.ask("c", "m", AppendText(text="opens a part"), ANN)
    await asyncio.sleep(4)
    await here.ask("c", "m", request_, ANN)
    await asyncio.sleep(10)
    await here.close()  # so the other hub, which has not seen the channel, recovers it
    await asyncio.sleep(4.5)
    assert await status(there) == STREAMING
    await asyncio.sleep(2.5)
    assert await status(there) == INTERRUPTED
    await there.close()


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
async def test_term_after_a_slow_commit_counts_from_its_arrival_at_another_hub() -> None:
    store, here, there = await known_at_two()
    store.commit_s = 12.0
    await here.ask("c", "m", AppendText(text="slow"), ANN)
    await asyncio.sleep(5.0)
    await here.ask("c", "m", AppendText(text="y"), ANN)
    assert await status(there) == STREAMING
    for hub in (here, there):
        await hub.close()


@pytest.mark.parametrize("ends_at_s", [40, 58])
@virtually
async def test_hub_that_knows_a_lease_from_a_recovery_only_counts_it_from_the_last_stored_request(
    ends_at_s: int,
) -> None:
    store = SharedClock()
    here, there = node(store, 1), node(store, 2)
    await here.start()
    await there.start()
    await asyncio.sleep(1)
    await begin(there, 60.0)
    await asyncio.sleep(20)  # the first hub recovers all channels meanwhile
    assert "c" not in here.runtime.channels
    await there.ask("c", "m", AppendText(text="x"), ANN)
    await asyncio.sleep(ends_at_s - 20)
    await there.close()
    await asyncio.sleep(79 - ends_at_s)
    assert await store.open_documents("c")
    await asyncio.sleep(3)
    assert not await store.open_documents("c")
    await here.close()


@virtually
async def test_lease_has_a_full_term_after_a_time_without_any_hub() -> None:
    store = SharedClock()
    here, there = new_hub(store), new_hub(store)
    there.clock.new_id()
    await begin(here, 5.0)
    await here.close()
    await asyncio.sleep(60)
    await there.start()
    await asyncio.sleep(4.5)
    assert await status(there) == STREAMING
    await there.ask("c", "m", AppendText(text="back"), ANN)
    await asyncio.sleep(4.5)
    assert await status(there) == STREAMING
    await asyncio.sleep(2.5)
    assert await status(there) == INTERRUPTED
    await there.close()


@virtually
async def test_text_that_another_hub_received_gives_a_lease_one_term_and_not_two() -> None:
    store = Shared()
    here, there = new_hub(store), new_hub(store)
    there.clock.new_id()
    await begin(here, 5.0)
    await here.ask("c", "m", AppendText(text="opens a part"), ANN)
    assert await status(there) == STREAMING
    await asyncio.sleep(0.5)
    await here.ask("c", "m", AppendText(text=", and more"), ANN)
    await asyncio.sleep(2)
    await here.close()
    await asyncio.sleep(2)
    assert await status(there) == STREAMING
    await asyncio.sleep(2)
    assert await status(there) == INTERRUPTED
    await there.close()


@pytest.mark.parametrize("fault", ["no response", "unexpected error"])
@virtually
async def test_lease_expires_though_the_first_read_before_its_end_fails(fault: str) -> None:
    class Faulty(Shared):
        """Fails at the first read of entries after `fails` was set."""

        fails = False

        async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
            if self.fails:
                self.fails = False
                if fault == "unexpected error":
                    raise ValueError
                await asyncio.get_running_loop().create_future()
            return await super().entries(channel, after=after, limit_bytes=limit_bytes)

    store = Faulty()
    hub = new_hub(store)
    await hub.start()
    await asyncio.sleep(1)  # so that no housekeeping reads the store at the end of the lease
    await begin(hub, 5.0)
    await asyncio.sleep(4.9)
    store.fails = True
    await asyncio.sleep(1.5 if fault == "unexpected error" else 31.5)
    async with asyncio.timeout(60):
        assert await status(hub) == INTERRUPTED
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
async def test_changed_lease_term_holds_after_a_restart() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await begin(hub, 5.0)
    await hub.ask("c", "m", RenewLease(lease_s=60.0), ANN)
    await asyncio.sleep(50)
    assert await status(hub) == STREAMING
    await hub.close()
    again = new_hub(store)
    await again.start()
    await asyncio.sleep(59)
    assert await status(again) == STREAMING
    await asyncio.sleep(2)
    assert await status(again) == INTERRUPTED
    await again.close()


@virtually
async def test_writer_that_returns_within_its_lease_continues_after_a_restart() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await begin(hub)
    await hub.ask("c", "m", AppendText(text="half ", at=0), ANN)
    await asyncio.sleep(14)
    await hub.close()
    again = new_hub(store)
    await again.start()
    await asyncio.sleep(14)
    await again.ask("c", "m", AppendText(text="whole", at=5), ANN)
    await again.ask("c", "m", FinishMessage(), ANN)
    assert (await message(again)).text == "half whole"
    assert await status(again) == ("complete", None)
    await asyncio.sleep(60)
    assert await status(again) == ("complete", None)
    await again.close()


@virtually
async def test_lease_of_a_writer_that_does_not_return_expires_after_a_restart() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await begin(hub, 5.0)
    await hub.close()
    again = new_hub(store)
    await again.start()
    await asyncio.sleep(5.1)
    assert await status(again) == INTERRUPTED
    await again.close()


@virtually
async def test_no_lease_ends_while_a_hub_drains_whose_store_no_other_hub_serves() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await begin(hub, 5.0)
    hub.runtime.leases.held("c", "m", "socket")
    hub.runtime.leases.broken("socket")
    async with hub.message("other"):
        hub.drain_s = 30.0
        draining = asyncio.create_task(hub.drain())
        await asyncio.sleep(20.0)
        assert await status(hub) == STREAMING
    await draining
    await hub.close()
    again = new_hub(store)
    await again.ask("c", "m", AppendText(text="whole"), ANN)
    assert await status(again) == STREAMING
    await again.close()


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
async def test_socket_that_breaks_just_before_the_end_of_a_lease_does_not_prolong_it() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    hub.runtime.leases.held("c", "m", "socket")
    await asyncio.sleep(4.9)
    hub.runtime.leases.broken("socket")
    await asyncio.sleep(0.2)
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


@virtually
async def test_deleted_message_has_no_lease() -> None:
    hub = new_hub()
    await begin(hub, 5.0)
    await hub.ask("c", "m", DeleteMessage(), ANN)
    await asyncio.sleep(20)
    with pytest.raises(Deleted):
        await message(hub)
    assert len(hub.runtime.deadlines) == 0
    await hub.close()


@virtually
async def test_writers_in_this_process_have_no_lease() -> None:
    hub = new_hub()
    async with hub.message("c", id="m") as writer:
        await writer.append("slow ")
        await asyncio.sleep(3600)
        await writer.append("thought")
    assert (await message(hub)).text == "slow thought"
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
async def test_cancel_survives_a_restart() -> None:
    store = MemoryStore()
    hub = new_hub(store)
    await begin(hub, 60.0)
    await hub.command("c", "cancel", target="m", by="bob")
    await hub.close()
    again = new_hub(store)
    await again.start()
    await asyncio.sleep(CANCEL_S + 0.1)
    assert await status(again) == ("cancelled", None)
    await again.close()


@virtually
async def test_cancel_of_a_message_that_ended_by_itself_gets_the_reply_finished() -> None:
    hub = new_hub()
    await begin(hub, 60.0)
    command = await hub.command("c", "cancel", target="m", by="bob")
    await hub.ask("c", "m", FinishMessage(), ANN)
    await asyncio.sleep(3)
    known = hub.channel("c").state.command(f"!{command.id}")
    assert known is not None
    assert known.reply is not None
    assert (known.reply.ok, known.reply.error["code"]) == (False, "finished")
    assert await status(hub) == ("complete", None)
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
async def test_repeated_command_and_reply_are_stored_once() -> None:
    hub = new_hub()
    ask = SendCommand(name="pause", data={"why": "lunch"})
    first = await hub.ask("c", "!x", ask, ANN)
    again = await hub.ask("c", "!x", ask, ANN)
    assert (first.command, first.serial, again.serial, again.created) == (again.command, 1, 1, False)
    reply = ReplyCommand(ok=True, data="done", request="r1")
    accepted = await hub.ask("c", "!x", reply, BOB)
    assert (await hub.ask("c", "!x", reply, BOB)).serial == accepted.serial == 2
    with pytest.raises(AlreadyAnswered):
        await hub.ask("c", "!x", ReplyCommand(ok=False), ANN)
    with pytest.raises(NotFound):
        await hub.ask("c", "!y", reply, BOB)
    await hub.close()


@virtually
async def test_resumed_viewer_receives_missed_commands_and_replies() -> None:
    hub = new_hub()
    await hub.ask("c", "u", CreateMessage(text="hi"), ANN)
    _, cursor = await hub.read("c", "u")
    await hub.ask("c", "!x", SendCommand(name="pause"), ANN)
    await hub.ask("c", "!x", ReplyCommand(ok=True), BOB)
    await hub.ask("c", "!y", SendCommand(name="pause"), ANN)
    async for batch in hub.subscribe("c", since=cursor).batches():
        attached, *rest = batch.events
        assert [one.id for one in attached.commands] == ["y"]  # type: ignore[union-attr]
        assert [one.__struct_config__.tag for one in rest] == ["command", "command.reply", "command"]
        break
    await hub.close()


@virtually
async def test_end_of_an_old_socket_does_not_cut_a_lease_held_by_a_newer_socket() -> None:
    hub = new_hub()
    await begin(hub)
    for line in ("old", "new"):
        await hub.ask("c", "m", AppendText(text=line), ANN)
        hub.runtime.leases.held("c", "m", line)
    hub.runtime.leases.broken("old")
    await asyncio.sleep(14.9)
    assert await status(hub) == STREAMING
    await hub.ask("c", "m", AppendText(text="!"), ANN)
    hub.runtime.leases.held("c", "m", "new")
    hub.runtime.leases.broken("new")
    await asyncio.sleep(BROKEN_S + 0.1)
    assert await status(hub) == INTERRUPTED
    await hub.close()


@virtually
async def test_socket_of_a_former_writer_does_not_cut_the_lease_of_its_successor() -> None:
    hub = new_hub()
    await begin(hub)
    hub.runtime.leases.held("c", "m", "ann's")
    await hub.ask("c", "m", TakeOver(), Caller(id="bob", is_admin=True))
    hub.runtime.leases.broken("ann's")
    await asyncio.sleep(14.9)
    assert await status(hub) == STREAMING
    await asyncio.sleep(0.2)
    assert await status(hub) == INTERRUPTED
    await hub.close()


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


@virtually
async def test_request_in_flight_when_the_socket_broke_does_not_restore_the_lease() -> None:
    hub = new_hub()
    await begin(hub)
    hub.runtime.leases.held("c", "m", "line")
    hub.runtime.leases.broken("line")
    await hub.ask("c", "m", AppendText(text="late"), ANN)
    hub.runtime.leases.held("c", "m", "line")
    hub.runtime.leases.broken("line")
    await asyncio.sleep(BROKEN_S + 0.1)
    assert await status(hub) == INTERRUPTED
    await hub.close()
