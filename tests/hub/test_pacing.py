"""The gap between commits: text that only viewers wait for shares commits on the grid of the ticks.

Layer: tests.

Time is virtual. Many channels have one viewer each, and tokens far enough apart that each is shown as soon as it is
stored; so without a gap each token would get a commit of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from random import Random

import pytest

from proof.simulation.clock import VirtualLoop
from tenuto.core.events import MessageAppend, MessagePart
from tenuto.hub import HubCore, MessageWriter
from tenuto.hub.channel import Feed, Ticks
from tenuto.hub.committer import STORE_TIMEOUT_S
from tenuto.hub.lifecycle import TIDY_S
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.hub.hubs import new_hub
from tests.virtual import virtually

GRID_S = Ticks.GRID_S
TAKES_S = 0.0005
TOKEN_S = 0.1  # time between two tokens of a channel: longer than the flush window
STEPS_OF_A_ROUND = 4  # limit of the event loop's steps for each round of housekeeping
ALMOST_S = 1e-6  # tolerance for products of floats


class Stage:
    """Conversations with one viewer each, which stream a number of tokens."""

    def __init__(self, hub: HubCore) -> None:
        self.hub = hub
        self.stack = AsyncExitStack()
        self.writers: list[MessageWriter] = []
        self.viewers: list[Shown] = []
        self.appended_s: list[list[float]] = []

    async def open(self, count: int, *, flush_ms: int = 40) -> None:
        for number in range(count):
            name = f"c{number}"
            self.writers.append(await self.stack.enter_async_context(self.hub.message(name, id="m")))
            self.viewers.append(await Shown.of(self.hub, flush_ms=flush_ms, channel=name))
            self.appended_s.append([])
            await self.writers[-1].append("-")  # opens the text part
            self.appended_s[-1].append(now_s())
            await self.writers[-1].flush()
        await asyncio.sleep(1)

    async def stream(self, tokens: int, token_s: float = TOKEN_S, *, draw: Random | None = None) -> None:
        """Write `tokens` tokens of one character to each channel, spread over the time of a token."""

        async def one(number: int) -> None:
            await asyncio.sleep(token_s * number / len(self.writers))
            for _ in range(tokens):
                await self.writers[number].append("x")
                self.appended_s[number].append(now_s())
                await asyncio.sleep(token_s if draw is None else draw.uniform(0, 2 * token_s))

        await asyncio.gather(*(one(number) for number in range(len(self.writers))))

    async def close(self) -> None:
        """End all messages, and check that each viewer has been shown exactly the text that is stored."""
        await self.stack.aclose()
        await asyncio.sleep(1)
        for number, viewer in enumerate(self.viewers):
            assert viewer.text == "-" + "x" * (len(self.appended_s[number]) - 1)
            assert (await self.hub.read(f"c{number}", "m"))[0].text == viewer.text
        await self.hub.close()

    def delays_s(self) -> list[float]:
        """Return, for each token, the time from its append until its viewer was shown it."""
        pairs = zip(self.viewers, self.appended_s, strict=True)
        return [
            shown_s - made_s
            for viewer, appended in pairs
            for shown_s, made_s in zip(viewer.at_s, appended, strict=True)
        ]


async def staged(store: Timed, count: int, **options: int) -> Stage:
    stage = Stage(new_hub(store))
    await stage.open(count, **options)
    store.begun_s.clear()
    return stage


@virtually
async def test_tokens_of_many_channels_share_commits_on_the_grid() -> None:
    store = Timed(TAKES_S)
    stage = await staged(store, 200)
    await stage.stream(10)
    begun_s = list(store.begun_s)
    await stage.close()
    assert len(begun_s) <= 1 + 11 * TOKEN_S / GRID_S  # instead of one commit for each of 2,000 tokens
    assert min(later - earlier for earlier, later in pairwise(begun_s[1:])) >= GRID_S - ALMOST_S
    assert max(stage.delays_s()) <= GRID_S + 2 * TAKES_S


async def append_beyond_the_limit(writer: MessageWriter) -> None:
    writer._max_bytes = 0
    await writer.append("x")


ENDS: dict[str, Callable[[MessageWriter], Awaitable[object]]] = {
    "flush": lambda writer: writer.flush(),
    "append beyond the limit": append_beyond_the_limit,
    "update": lambda writer: writer.update(meta={"a": 1}),
    "part": lambda writer: writer.part({"type": "text", "text": ""}),
    "finish": lambda writer: writer.finish(),
}


@pytest.mark.parametrize("call", ENDS)
@virtually
async def test_each_call_but_a_plain_append_ends_the_gap_of_queued_text(call: str) -> None:
    store = Timed(TAKES_S)
    stage = await staged(store, 2)
    await asyncio.sleep(GRID_S * 0.1)
    for writer in stage.writers:  # a text queued during the commit of the first one waits for the gap
        await writer.append("x")
        await asyncio.sleep(TAKES_S / 2)
    await asyncio.sleep(TAKES_S)  # the commit of the first text is over, and the gap is not
    called_s, commits = now_s(), len(store.begun_s)
    await ENDS[call](stage.writers[1])
    await asyncio.sleep(0)
    assert store.begun_s[commits:][:1] == [called_s]
    await stage.stack.aclose()
    assert (await stage.hub.read("c1", "m"))[0].text == "-" + "x" * (2 if call == "append beyond the limit" else 1)
    await stage.hub.close()


@pytest.mark.parametrize("takes_s", [0.0, 0.0005, 0.003, 0.008])
@virtually
async def test_windows_are_kept_at_every_rate(takes_s: float) -> None:
    store = Timed(takes_s)
    stage = await staged(store, 20)
    for token_s in (0.011, 0.03, 0.045, 0.09):
        await stage.stream(30, token_s, draw=Random(takes_s))
        await asyncio.sleep(1)
    await stage.close()
    # The first text after a window waits for the gap instead; a commit may just have begun, and text at the end of
    # a window that misses its flush is in the next one.
    assert max(stage.delays_s()) <= WINDOW_S + GRID_S + 2 * takes_s + ALMOST_S


@virtually
async def test_idle_conversations_cost_no_step_and_an_idle_hub_only_its_housekeeping() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    hub = new_hub(Timed())
    await hub.start()
    await asyncio.sleep(STORE_TIMEOUT_S)
    empty = await steps_of_a_minute(loop)
    await hub.close()
    stage = await staged(Timed(TAKES_S), 100)
    await stage.stream(3)
    await asyncio.sleep(STORE_TIMEOUT_S)
    # a minute has twelve rounds of housekeeping, or thirteen
    assert await steps_of_a_minute(loop) <= empty + STEPS_OF_A_ROUND
    assert empty <= STEPS_OF_A_ROUND * (60 / TIDY_S + 1)
    await stage.close()


async def steps_of_a_minute(loop: VirtualLoop) -> int:
    before = loop.steps
    await asyncio.sleep(60)
    return loop.steps - before


# Flush windows: text that only viewers wait for is stored in time for the end of their window, and no sooner.


WINDOW_S = 0.04


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
async def test_token_in_a_channel_without_viewers_is_stored_at_once() -> None:
    store = Timed()
    hub = new_hub(store)
    async with hub.message("c") as message:
        store.begun_s.clear()
        appended_s = []
        for _ in range(10):
            appended_s.append(now_s())
            await message.append("x")
            await asyncio.sleep(0.002)
        assert store.begun_s == appended_s
