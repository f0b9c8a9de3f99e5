"""Recovery on a shared store: nodes that join, stop and drain meanwhile, and a store that is slow or fails.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from proof.simulation.clock import START_MS
from proof.simulation.store import SharedMemoryStore
from tenuto.core.document import Stored
from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.hub import HubCore
from tenuto.hub.nodes import responsible_node
from tenuto.hub.writer import MessageWriter
from tenuto.stores.base import Hold, Renewal
from tests.hub.hubs import new_hub
from tests.virtual import virtually


class Shared(SharedMemoryStore):
    """A store in memory that several hubs may have open; its clock is that of the loop."""

    def __init__(self) -> None:
        self.ahead_ms = 0
        super().__init__(now_ms=lambda: START_MS + int(asyncio.get_running_loop().time() * 1000) + self.ahead_ms)
        self.before: Callable[[str], Awaitable[Any]] | None = None  # called before a read of open documents
        self.notes_s = 0.0  # time that a read of notes takes
        self.refused = ""  # the node whose renewals fail

    async def open_documents(self, channel: str) -> list[Stored]:
        if self.before is not None:
            await self.before(channel)
        return await super().open_documents(channel)

    async def notes(self, prefix: str) -> dict[str, bytes]:
        await asyncio.sleep(self.notes_s)
        return await super().notes(prefix)

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        if node == self.refused:
            raise StoreUnavailable("the store is down")
        return await super().hold(node, term_ms, values)


async def leave_messages(store: Shared, *channels: str) -> None:
    """Let a hub begin a message in each channel, and end without ending them."""
    gone = new_hub(store, 9)
    for channel in channels:
        await (await gone.message(channel, id="m").open()).append("half")
    await asyncio.sleep(2)  # the other hubs learn of its lease
    await gone.close()


async def watching(store: Shared, number: int = 1, **options: Any) -> HubCore:
    """Return a hub that has done the recoveries after its start, and recovers only when a node ends."""
    hub = new_hub(store, number, **options)
    await hub.start()
    await asyncio.sleep(10)
    return hub


async def status(hub: HubCore, channel: str = "c", message_id: str = "m") -> str:
    return (await hub.read(channel, message_id))[0].status


async def left(*channels: str) -> tuple[Shared, HubCore]:
    """Return a store, and a hub on it before whose eyes another one has left a message in each channel."""
    store = Shared()
    here = await watching(store)
    await leave_messages(store, *channels)
    return store, here


@pytest.mark.parametrize("error", [StoreUnavailable("the shard is down"), ValueError("a bug")])
@virtually
async def test_recovery_that_goes_on_beside_the_rest_and_fails_is_repeated_soon(error: Exception) -> None:
    store, here = await left("c")

    async def fail(channel: str) -> None:
        await asyncio.sleep(1.5)
        raise error

    store.before = fail
    await asyncio.sleep(10)
    store.before = None
    await asyncio.sleep(6)
    assert await status(here) == "interrupted"


async def left_exclusive(*channels: str) -> Shared:
    """Return a store that one hub may have open, with a message in each channel whose writer has ended."""
    store = Shared()
    await leave_messages(store, *channels)
    store.is_exclusive = True
    return store


@virtually
async def test_hub_of_an_exclusive_store_whose_reads_hang_ends_its_start() -> None:
    store = await left_exclusive(*"abcdef")
    store.before = lambda _: asyncio.get_running_loop().create_future()  # which is never done
    hub = new_hub(store, 1)
    async with asyncio.timeout(31):
        with pytest.raises(StoreUnavailable, match="did not respond to a read within 30 s"):
            await hub.start()


@virtually
async def test_damaged_channel_keeps_the_hub_of_an_exclusive_store_from_no_other_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = await left_exclusive("bad", "b")

    async def fail(channel: str) -> None:
        if channel == "bad":
            raise StoreUnusable("its row is damaged")

    store.before = fail
    hub = new_hub(store, 1)
    assert await status(hub, "b") == "interrupted"
    with pytest.raises(StoreUnusable, match="its row is damaged"):
        await hub.read("bad", "m")
    (line,) = caplog.messages
    assert line.startswith("1 channels are damaged; restore a backup, or delete them; the first: channel 'bad' was not")


@virtually
async def test_channel_that_fails_neither_stops_the_recovery_of_others_nor_is_read_each_second() -> None:
    store, here = await left("a", "b")
    reads = 0

    async def fail(channel: str) -> None:
        nonlocal reads
        if channel == "a":
            reads += 1
            raise ValueError if reads == 1 else StoreUnavailable("the shard of channel a is down")

    store.before = fail
    await asyncio.sleep(60)
    assert await status(here, "b") == "interrupted"
    assert 2 <= reads <= 30
    store.before = None
    await asyncio.sleep(60)
    assert await status(here, "a") == "interrupted"


@virtually
async def test_recovery_that_a_defect_ends_is_logged_and_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, here = await left("c")
    with monkeypatch.context() as patch:
        patch.setattr(store, "open_channels", lambda: 1 / 0)
        while "were not recovered; the hub tries again" not in caplog.text:  # noqa: ASYNC110 - virtual
            await asyncio.sleep(0.1)
    assert "ZeroDivisionError" in caplog.text
    await asyncio.sleep(10)
    assert await status(here) == "interrupted"


@virtually
async def test_draining_hub_leaves_the_messages_of_others_to_other_hubs() -> None:
    store = Shared()
    here, other = await watching(store, drain_s=20.0), await watching(store, 2)
    channel = next(name for name in map(str, range(99)) if responsible_node(name, (here.node, other.node)) == here.node)
    adopted = []

    @here.adopt("*")
    async def adopt(writer: MessageWriter) -> None:
        adopted.append(writer.id)

    writer = await here.message("long", id="m").open()  # the drain waits for it
    closing = asyncio.create_task(here.close())
    await leave_messages(store, channel)
    await asyncio.sleep(2)  # less than the term after which another node recovers the channels of this one
    assert (await status(other, channel), adopted) == ("interrupted", [])
    await writer.finish()
    await closing


@virtually
async def test_node_keeps_its_lease_while_it_starts() -> None:
    store = Shared()
    store.notes_s = 6.0
    hub = new_hub(store, 1)
    starting = asyncio.create_task(hub.start())
    await asyncio.sleep(5.5)
    assert hub.node in (await store.hold("probe", 0, {})).nodes
    await starting
