"""Flush windows: text that only viewers wait for is stored in time for the end of their window, and no sooner.

Layer: tests.

Time is virtual, so that delays are exact numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tenuto.core.events import MessageAppend, MessagePart
from tenuto.hub import HubCore
from tenuto.hub.committer import PATIENCE_S
from tenuto.hub.feed import Feed
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.hub.hubs import new_hub
from tests.virtual import virtually

WINDOW_S = 0.04
TOKEN_S = 0.002


class Timed(MemoryStore):
    """A store in memory whose commits take `takes_s`. It notes when each one began."""

    def __init__(self, takes_s: float = 0.0) -> None:
        super().__init__()
        self.takes_s = takes_s
        self.begun_s: list[float] = []

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self.begun_s.append(now_s())
        await asyncio.sleep(self.takes_s)
        return await super().commit(writes)


class Shown:
    """A viewer that takes its batch when it is woken, and notes when each character arrived."""

    def __init__(self) -> None:
        self.feed: Feed
        self.text = ""
        self.at_s: list[float] = []  # for each character of the text the time of its arrival

    @classmethod
    async def of(cls, hub: HubCore, flush_ms: int = 40, channel: str = "c") -> Shown:
        viewer = cls()
        viewer.feed = await hub.attach(channel, None, history=0, flush_ms=flush_ms, wake=viewer.take)
        viewer.feed.take()
        return viewer

    def take(self) -> None:
        batch = self.feed.take()
        for event in batch.events if batch is not None else ():
            if isinstance(event, MessageAppend):
                self.text += event.text
            elif isinstance(event, MessagePart):
                self.text += event.part["text"]
        self.at_s += [now_s()] * (len(self.text) - len(self.at_s))


def now_s() -> float:
    return asyncio.get_running_loop().time()


@virtually
async def test_first_token_after_a_pause_is_stored_at_once() -> None:
    store = Timed()
    hub = new_hub(store)
    async with hub.message("c") as message:
        viewer = await Shown.of(hub)
        await asyncio.sleep(1)
        begun_s = now_s()
        await message.append("x")
        await asyncio.sleep(WINDOW_S)
        assert viewer.at_s == [begun_s]
    await hub.close()


@virtually
async def test_token_in_a_channel_without_viewers_is_stored_at_once() -> None:
    store = Timed()
    hub = new_hub(store)
    async with hub.message("c") as message:
        store.begun_s.clear()
        appended_s = []
        for _ in range(10):
            appended_s.append(now_s())
            await message.append("x")
            await asyncio.sleep(TOKEN_S)
        assert store.begun_s == appended_s
    await hub.close()


@virtually
async def test_text_in_a_long_window_is_stored_within_the_longest_delay() -> None:
    store = Timed()
    hub = new_hub(store)
    async with hub.message("c") as message:
        await Shown.of(hub, flush_ms=1000)
        await message.append("x")
        await message.flush()
        await asyncio.sleep(0.1)
        requested_s = now_s()
        await message.append("y")
        await asyncio.sleep(0.5)
        assert store.begun_s[-1] - requested_s <= PATIENCE_S
    await hub.close()
