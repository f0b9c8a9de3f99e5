"""A hub follows the channels that other hubs write: by their notices, and by the heads in the store.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from unittest.mock import AsyncMock

import pytest

from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import StoreUnavailable
from tenuto.core.requests import SERVER, AppendText, Caller, CreateMessage
from tenuto.hub import HubCore
from tenuto.hub.channel import Feed
from tenuto.hub.nodes import WINDOW_S
from tenuto.stores.base import Changes, Head, Notice, Tail
from tests.hub.hubs import new_hub
from tests.hub.watching import Watcher
from tests.virtual import virtually

ANN = Caller(id="ann")


class Shared(SharedMemoryStore):
    """A shared store that notes the reads of channels and the calls of `notify`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.notified: list[tuple[float, Sequence[Notice]]] = []  # each call with its time

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        self.reads.append("entries")
        return await super().entries(channel, after=after, limit_bytes=limit_bytes)

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        self.reads.append("changes")
        return await super().changes(channel, after=after, limit=limit)

    async def notify(self, notices: Sequence[Notice]) -> None:
        self.notified.append((asyncio.get_running_loop().time(), notices))
        await super().notify(notices)


@virtually
async def test_notices_of_many_commits_are_sent_at_most_once_in_a_window() -> None:
    store = Shared()
    here, there = new_hub(store, 1), new_hub(store, 2)
    await here.ask("c", "m", CreateMessage(status="streaming", lease_s=60.0), ANN)
    viewer = Watcher(there, "c")
    await viewer.take()
    await asyncio.sleep(2.5)  # the hubs know each other
    store.reads.clear()
    store.notified.clear()
    for number in range(40):
        await here.ask("c", "m", AppendText(text="x", at=number), ANN)
        await asyncio.sleep(0.001)
    await asyncio.sleep(2 * WINDOW_S)
    times = [at_s for at_s, _ in store.notified]
    assert len(times) > 5
    assert min(later - at_s for at_s, later in pairwise(times)) > 0.99 * WINDOW_S
    assert there.channel("c").state.serial == here.channel("c").state.serial
    assert store.reads == []
    await viewer.leave()


class Counting(Shared):
    """A shared store that takes some milliseconds for a read, and notes how many channels each read of heads has."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.is_down = False

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        self.asked.append(len(channels))
        heads = await super().heads(channels)
        await asyncio.sleep(0.005)
        if self.is_down:
            raise StoreUnavailable("the store is down")
        return heads

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        await asyncio.sleep(0.005)
        return await super().entries(channel, after=after, limit_bytes=limit_bytes)


@virtually
async def test_own_commits_during_a_read_of_the_heads_cause_no_read_of_their_channels() -> None:
    hub = new_hub(store := Counting())
    await hub.ask("c", "m", CreateMessage(status="streaming"), SERVER)
    store.reads.clear()
    for at in range(1_000):
        await hub.ask("c", "m", AppendText(text="x", at=at), SERVER)
        await asyncio.sleep(0.002)
    assert len(store.asked) > 1
    assert store.reads == []


async def attached(hub: HubCore, channels: Iterable[str]) -> list[Feed | BaseException]:
    """Attach a viewer to each of `channels` at the same moment; return the feeds, or the errors."""
    attaches = [hub.attach(channel, None, history=1, wake=lambda: None) for channel in channels]
    return await asyncio.gather(*attaches, return_exceptions=True)


@virtually
async def test_viewers_that_attach_at_the_same_moment_share_a_read_of_all_heads() -> None:
    store = Counting()
    here, there = new_hub(store, 1), new_hub(store, 2)
    channels = [f"c{number}" for number in range(20)]
    for channel in channels:
        await here.create(channel, id="m1", text="known there")
    await attached(there, channels)
    await there.create("c7", id="m2", text="its own")
    await here.create("c8", id="m2", text="new")
    store.asked.clear()
    store.reads.clear()
    feeds = await attached(there, channels * 10)
    assert store.asked[0] == 20  # all viewers ask together
    assert len(store.asked) <= 2  # with the read of each second
    assert store.reads == ["entries", "changes"]  # of the channel that has moved, for one of its viewers
    moved = ["c7", "c8"]
    assert [there.channel(name).state.serial for name in moved] == [one.serial for one in await store.heads(moved)]
    assert all(isinstance(feed, Feed) for feed in feeds)
    store.is_down = True
    assert all(isinstance(one, StoreUnavailable) for one in await attached(there, channels))
    store.is_down = False
    waiting = [asyncio.create_task(attached(there, ["c1"])) for _ in range(3)]
    await asyncio.sleep(0.001)
    waiting[0].cancel()  # the others still get the result
    assert [len(await task) for task in waiting[1:]] == [1, 1]


@virtually
async def test_new_viewer_is_served_while_another_hub_writes_between_any_two_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Shared()
    here, there = new_hub(store, 1), new_hub(store, 2)
    monkeypatch.setattr(store, "notify", AsyncMock())  # no notice arrives
    for number in range(5):
        await here.create("c", id=f"old{number}", text=f"{number}")
    await here.ask("c", "m", CreateMessage(status="streaming", lease_s=60.0), ANN)
    await there.create("elsewhere", id="m", text="starts the hub")

    async def write() -> None:
        for at in range(10_000):
            await here.ask("c", "m", AppendText(text="x", at=at), ANN)
            await asyncio.sleep(0.03)

    def slow(read: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def late(*arguments: object, **fields: object) -> object:
            found = await read(*arguments, **fields)
            await asyncio.sleep(0.1)
            return found

        return late

    for name in ("entries", "changes", "messages", "page"):
        monkeypatch.setattr(store, name, slow(getattr(store, name)))
    writing = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    viewer = Watcher(there, "c")
    length = len(here.channel("c").state.messages["m"].message().text)
    async with asyncio.timeout(3.0):
        messages = await viewer.until(lambda view: len(view.text("m")) >= length)
    assert [one.id for one in messages] == [*(f"old{number}" for number in range(5)), "m"]
    await viewer.leave()
    writing.cancel()
    monkeypatch.undo()
