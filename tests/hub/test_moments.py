"""Races that the simulator found: a hub that is closed while it starts, commits with unknown outcomes, and others.

Layer: tests.

Each test repeats the steps of one seed, without the other clients of that simulation.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence

import pytest

from tenuto.core.errors import Busy, Deleted, Draining, Finished, TenutoError
from tenuto.core.requests import Caller, CreateMessage, DeleteMessage, FinishMessage
from tenuto.hub import HubCore
from tenuto.hub.committer import Pace
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.virtual import virtual_clock, virtually

ANN = Caller(id="ann")


class Trying(MemoryStore):
    """A store in memory that opens slowly, and reports a commit never."""

    def __init__(self) -> None:
        super().__init__()
        self.opening = asyncio.Event()
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.is_silent = False  # the next commit is stored, and its outcome is reported as unknown

    async def open(self) -> None:
        self.opening.set()
        await self.may_open.wait()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        results = await super().commit(writes)
        if self.is_silent:
            self.is_silent = False
            raise CommitUnknown("stored, but the outcome is lost")
        return results


async def test_starting_hub_refuses_requests_as_busy() -> None:
    store = Trying()
    store.may_open.clear()
    hub = HubCore(store, hooks_signals=False, drain_s=0)
    starting = asyncio.create_task(hub.start())
    await store.opening.wait()
    with pytest.raises(Busy):
        hub.submit("c", "m", CreateMessage(), ANN, lambda result: None)
    store.may_open.set()
    await starting
    await hub.close()


@pytest.mark.parametrize("is_exclusive", [True, False], ids=["alone", "with others"])
@pytest.mark.parametrize(
    ("request_", "error"), [(FinishMessage(status="cancelled"), Finished), (DeleteMessage(), Deleted)]
)
async def test_writer_of_a_message_ended_during_its_creation_gets_the_error_of_the_end(
    request_: FinishMessage | DeleteMessage, error: type[Exception], is_exclusive: bool
) -> None:
    store = Trying()
    store.is_exclusive = is_exclusive
    hub = HubCore(store, hooks_signals=False, drain_s=0)
    await hub.start()
    store.is_silent = True
    opening = asyncio.create_task(hub.message("c", id="m").open())
    # This request waits behind the creation of the message.
    ending = asyncio.create_task(hub.ask("c", "m", request_, hub.caller("ann")))

    async def write() -> None:
        async with await opening as message:
            await message.append("more")
            await message.flush()

    with pytest.raises(error):
        await write()
    await asyncio.gather(ending, return_exceptions=True)
    await hub.close()


class Broken(MemoryStore):
    """A store whose housekeeping raises an error outside the contract."""

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        raise OSError("the connection was reset")


@virtually
async def test_failing_housekeeping_ends_no_subscription() -> None:
    hub = HubCore(Broken(), hooks_signals=False, drain_s=0, clock=virtual_clock())
    await hub.start()
    shown: list[str] = []

    async def watch() -> None:
        async for event in hub.subscribe("c"):
            shown.append(event.__struct_config__.tag or "")

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(60)
    await hub.create("c", id="m", text="hello")
    await asyncio.sleep(1)
    assert shown[-1] == "message.create"
    watching.cancel()
    await hub.close()


@virtually
async def test_defect_that_stops_the_hub_drains_its_viewers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = HubCore("memory://", hooks_signals=False, drain_s=0, clock=virtual_clock())
    await hub.start()
    sent_away = asyncio.Event()
    hub.on_drain(sent_away.set)

    async def watch() -> None:
        async for _ in hub.subscribe("c"):
            pass

    watching = asyncio.ensure_future(watch())
    await hub.create("c", text="hello")
    monkeypatch.setattr(Pace, "took", lambda *_: 1 / 0)
    with pytest.raises((Draining, TenutoError)):
        await hub.create("c", text="unlucky")
    monkeypatch.undo()
    async with asyncio.timeout(60):
        await sent_away.wait()
        with pytest.raises(Draining):
            await watching
    await hub.create("c", text="in the next life")  # the next request starts the hub again
    await hub.close()
    assert "ZeroDivisionError" in caplog.text
    gc.collect()  # asyncio reports unretrieved exceptions only then
