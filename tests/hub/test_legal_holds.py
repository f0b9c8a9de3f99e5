"""Legal holds: no message and no channel is deleted before the release."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from tenuto.core.errors import Deleted, Held, InvalidRequest, NotFound, StoreUnavailable
from tenuto.hub import HubCore
from tenuto.hub.keep.legal_holds import MAX_REASON, NOTE, LegalHolds
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore


async def test_a_held_channel_keeps_its_messages_until_the_release(hub: HubCore) -> None:
    kept = await hub.create("chat:1", text="evidence")
    gone = await hub.create("chat:1", text="deleted before")
    other = await hub.create("chat:2", text="not held")
    await hub.delete("chat:1", gone.id)
    held = await hub.archive.hold("chat:1", "case 17")
    await hub.close()  # the next call starts the hub again

    for _ in range(2):
        with pytest.raises(Held, match=r"channel 'chat:1' is held.*release it first"):
            await hub.delete("chat:1", kept.id)
        with pytest.raises(Held):
            await hub.delete_channel("chat:1")
    await hub.delete("chat:1", gone.id)  # a repeat changes nothing
    with pytest.raises(NotFound):
        await hub.delete("chat:1", "never")
    await hub.delete("chat:2", other.id)
    await hub.delete_channel("chat:2")
    await hub.create("chat:1", text="goes on")
    assert await hub.archive.holds() == [held]
    assert (await hub.archive.is_held("chat:1"), await hub.archive.is_held("chat:2")) == (True, False)
    assert [(one.channel, one.held) for one in (await hub.archive.channels()).channels] == [("chat:1", True)]
    assert (await hub.read("chat:1", kept.id))[0].text == "evidence"

    again = await hub.archive.hold("chat:1", "case 18")
    assert (again.reason, again.since_ms) == ("case 18", held.since_ms)
    assert await hub.archive.release("chat:1") == again
    await hub.delete("chat:1", kept.id)
    with pytest.raises(Deleted):
        await hub.read("chat:1", kept.id)
    await hub.delete_channel("chat:1")
    assert await hub.archive.holds() == []
    with pytest.raises(NotFound, match="'chat:1' is not held"):
        await hub.archive.release("chat:1")


async def test_a_hold_needs_a_reason(hub: HubCore) -> None:
    for reason in ("", "x" * (MAX_REASON + 1)):
        with pytest.raises(InvalidRequest, match="reason of a hold must be 1-1000 characters"):
            await hub.archive.hold("chat:1", reason)
    assert await hub.archive.holds() == []


class _Slow(MemoryStore):
    """A store whose reads of notes end when `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def notes(self, prefix: str) -> dict[str, bytes]:
        found = await super().notes(prefix)
        await self.gate.wait()
        return found


async def test_a_hold_that_is_made_while_the_holds_are_read_stays() -> None:
    store = _Slow()
    holds = LegalHolds(store)

    async def let_go() -> None:
        store.gate.set()

    await asyncio.gather(holds.load(), holds.hold("chat:1", "case 17", 1), let_go())
    assert holds.is_held("chat:1")


class _Waiting(MemoryStore):
    """A store whose commits wait for `gate`, once there is one."""

    gate: asyncio.Event | None = None

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        if self.gate is not None:
            self.reached.set()
            await self.gate.wait()
        return await super().commit(writes)


async def test_a_hold_returns_after_the_end_of_a_deletion_that_was_running() -> None:
    store = _Waiting()
    hub = HubCore(store, hooks_signals=False)
    message = await hub.create("chat:1", text="evidence")
    store.gate = asyncio.Event()
    deleting = asyncio.create_task(hub.delete("chat:1", message.id))
    await store.reached.wait()
    holding = asyncio.create_task(hub.archive.hold("chat:1", "case 17"))
    for _ in range(50):  # more turns of the event loop than a hold takes
        await asyncio.sleep(0)
    assert (await hub.archive.is_held("chat:1"), holding.done()) == (True, False)
    store.gate.set()
    await asyncio.gather(holding, deleting)
    await hub.close()


async def test_a_release_while_a_damaged_name_is_mended_stays_released() -> None:
    store = _Slow()
    store.gate.set()
    reading, other = LegalHolds(store), LegalHolds(store)
    for channel in ("chat:1", "chat:2", "chat:3"):
        await other.hold(channel, "case 17", 1)
    for before, after in (("chat:1", "chat:7"), ("chat:2", "chat:8")):  # notes whose names have changed
        notes = await store.notes(NOTE)
        await store.note({NOTE + before: None, NOTE + after: notes[NOTE + before]})
    store.gate.clear()

    async def release() -> None:
        for channel in ("chat:3", "chat:8"):
            await MemoryStore.note(store, {NOTE + channel: None})
        store.gate.set()

    await asyncio.gather(reading.load(), release())
    assert sorted(await store.notes(NOTE)) == [f"{NOTE}chat:{number}" for number in (1, 7)]
    await reading.load()
    assert [one.channel for one in reading.all()] == ["chat:1", "chat:7"]


class _Full(MemoryStore):
    """A store that keeps no notes while it is full."""

    is_full = False

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        if self.is_full:
            raise StoreUnavailable("the disk is full")
        return await super().note(values, expected=expected)


async def test_a_second_hold_that_cannot_be_stored_leaves_the_first() -> None:
    store = _Full()
    holds = LegalHolds(store)
    first = await holds.hold("chat:1", "case 17", 1)
    store.is_full = True
    for channel in ("chat:1", "chat:2"):
        with pytest.raises(StoreUnavailable):
            await holds.hold(channel, "case 18", 2)
    assert holds.all() == [first]


class _Shared(MemoryStore):
    is_exclusive = False


async def test_another_hub_of_the_store_learns_of_a_hold() -> None:
    store = _Shared()
    first, second = (HubCore(store, hooks_signals=False) for _ in range(2))
    message = await first.create("chat:1", text="evidence")
    await second.start()
    hold = await first.archive.hold("chat:1", "case 17")
    assert (await second.archive.hold("chat:1", "case 18")).since_ms == hold.since_ms
    await first.archive.release("chat:1")
    with pytest.raises(NotFound):
        await second.archive.release("chat:1")
    assert not await second.archive.is_held("chat:1")
    await first.archive.hold("chat:1", "case 19")
    assert (await second.archive.release("chat:1")).reason == "case 19"
    await first.archive.hold("chat:1", "case 20")
    await second.runtime.legal_holds.load()  # housekeeping does it every few seconds
    with pytest.raises(Held):
        await second.delete("chat:1", message.id)
    await first.close()
    await second.close()
