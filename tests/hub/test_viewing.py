"""A hub that is cut off from a shared store disconnects its viewers after a term, and serves again by itself.

Layer: tests. The store is the one in memory, declared as shared, and time is virtual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from proof.simulation.clock import Process, VirtualLoop
from tenuto.core.errors import Draining, StoreUnavailable
from tenuto.hub import HubCore
from tenuto.hub.lifecycle import CUT_OFF_S, RESPONSE_S, STEP_S, Viewing
from tenuto.hub.nodes import TERM_MS
from tests.hub.hubs import new_hub
from tests.hub.test_recovery import Shared
from tests.hub.watching import Watcher
from tests.virtual import virtually

PAUSE_S = 10.0
REFUSAL = "has not responded to this server for 4 s; connect to another server, or try again later"
CALLS = {"commit", "heads", "changes", "entries", "messages", "page", "hold", "holds", "notes", "open_channels"}


class Remote(Shared):
    """A store behind a network that loses all bytes (`silent`), or refuses connections (`refused`)."""

    def __init__(self) -> None:
        super().__init__()
        self._how = ""
        self._is_back = asyncio.Event()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return self._reached(value) if name in CALLS else value

    def break_off(self, how: str) -> None:
        self._how = how
        self._is_back.clear()

    def respond(self) -> None:
        self._how = ""
        self._is_back.set()

    def _reached(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def reached(*arguments: Any, **fields: Any) -> Any:
            if self._how == "silent":
                await self._is_back.wait()
            if self._how:
                raise StoreUnavailable("the store is not reached")
            return await call(*arguments, **fields)

        return reached


async def watching(hub: HubCore) -> Watcher:
    """Return a viewer of a channel with one message, who has seen it."""
    await hub.create("c", id="m", text="stored")
    watcher = Watcher(hub, "c")
    await watcher.until(lambda view: [one.text for one in view.messages()] == ["stored"])
    return watcher


@pytest.mark.parametrize("how", ["silent", "refused"])
@virtually
async def test_hub_cut_off_from_its_store_disconnects_its_viewers_and_serves_again_by_itself(how: str) -> None:
    loop, store = asyncio.get_running_loop(), Remote()
    hub = new_hub(store)
    watcher = await watching(hub)
    calls: list[float] = []
    hub.viewing.on_cut_off.append(lambda: calls.append(loop.time()))
    await asyncio.sleep(PAUSE_S)
    for round_ in (1, 2):
        store.break_off(how)
        cut_s = loop.time()
        waiting = asyncio.ensure_future(hub.attach("d", None, wake=lambda: None)) if how == "silent" else None
        with pytest.raises(StoreUnavailable, match=REFUSAL):
            await watcher.take()
        # the last response may be a second older than the cut
        assert cut_s + CUT_OFF_S - 1.0 - STEP_S <= loop.time() <= cut_s + CUT_OFF_S + 2 * STEP_S
        assert len(calls) == round_
        if waiting is not None:
            with pytest.raises(StoreUnavailable, match=REFUSAL):
                await asyncio.wait_for(waiting, 1.0)
        begun_s = loop.time()
        with pytest.raises(StoreUnavailable, match=REFUSAL):
            await hub.attach("c", None, wake=lambda: None)
        assert loop.time() == begun_s
        assert hub.is_running
        assert not hub.is_draining

        store.respond()
        await asyncio.sleep(2.0)
        watcher = Watcher(hub, "c", since=watcher.cursor)
        await watcher.take()
        await hub.update("c", "m", text=f"round {round_}")
        await watcher.until(lambda view, text=f"round {round_}": [one.text for one in view.messages()] == [text])  # type: ignore[misc]
    await watcher.leave()


@virtually
async def test_viewers_stay_when_the_process_was_suspended_for_longer_than_the_lease() -> None:
    loop, store = asyncio.get_running_loop(), Remote()
    assert isinstance(loop, VirtualLoop)
    process = Process("p")

    async def watch() -> None:
        hub = new_hub(store)
        watcher = await watching(hub)
        ready.set()
        while not is_over:
            await asyncio.sleep(0.1)
            assert not hub.viewing.is_cut_off
        await watcher.leave()
        await hub.close()

    ready, is_over = asyncio.Event(), False
    watched = process.start(loop, watch())
    await ready.wait()
    for number in range(20):
        await asyncio.sleep(1.0 + 0.05 * number)
        if number % 2:
            store.break_off("silent")  # the suspension begins in the middle of a renewal
            await asyncio.sleep(1.0)
        process.is_held = True
        await asyncio.sleep(PAUSE_S)
        store.respond()
        loop.thaw(process)
    is_over = True
    await watched


@virtually
async def test_a_slow_disk_disconnects_no_viewer() -> None:
    store = Remote()
    store.is_exclusive = True
    hub = new_hub(store)
    watcher = await watching(hub)
    store.break_off("silent")
    changing = asyncio.ensure_future(hub.update("c", "m", text="late"))
    await asyncio.sleep(3 * TERM_MS / 1000)
    store.respond()
    await watcher.until(lambda view: [one.text for one in view.messages()] == ["late"])
    await changing
    await watcher.leave()


@virtually
async def test_hub_drains_again_while_a_request_of_its_last_run_is_still_being_cancelled() -> None:
    viewing = Viewing("memory")

    async def respond() -> None:
        with pytest.raises(Draining):
            async with viewing.responding():
                try:
                    await asyncio.sleep(60.0)
                finally:
                    await asyncio.sleep(5.0)  # for example a last read of a store that does not respond

    request = asyncio.create_task(respond())
    await asyncio.sleep(0.0)
    viewing.end_drain()
    await asyncio.sleep(RESPONSE_S + 1.0)
    viewing.end_drain()
    await request


@virtually
async def test_start_that_hangs_ends_two_seconds_after_the_time_of_a_drain() -> None:
    hub = new_hub(store := Remote(), drain_s=3.0)
    store.break_off("silent")
    starting = asyncio.create_task(hub.start())
    await asyncio.sleep(1)
    async with asyncio.timeout(5.5):
        await hub.close()
    with pytest.raises(Draining, match="was cancelled"):
        await starting
