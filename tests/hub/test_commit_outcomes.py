"""Commits that fail, conflict or leave their outcome unknown, and memory that is freed at a bad moment.

Layer: tests.

Each test scripts the outcomes of the next commits. The simulator draws the same faults at random.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from itertools import pairwise
from unittest.mock import AsyncMock

import pytest

from proof.simulation.store import SharedMemoryStore
from tenuto.core.errors import Busy, Deleted, Draining, Finished, StoreUnavailable, StoreUnusable, TenutoError
from tenuto.core.requests import SERVER, CreateMessage, DeleteMessage, FinishMessage
from tenuto.core.state import MessageState
from tenuto.hub import HubCore, committer
from tenuto.hub.committer import STORE_TIMEOUT_S, Pace
from tenuto.hub.hooks import HookEvent
from tenuto.hub.lifecycle import SHUTDOWN_S
from tenuto.hub.tasks import LineLimit
from tenuto.hub.writer import ABANDONED_S, DAMAGED_S, RETRY_S, continue_after
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Tail, Write
from tests.hub.hubs import new_hub
from tests.hub.watching import Watcher
from tests.virtual import virtually


class ScriptedStore(SharedMemoryStore):
    """A store in memory whose next commits follow `script`.

    "ok" stores, "no" refuses, "lost" and "kept" leave the outcome unknown: not stored, and stored.
    """

    is_exclusive = True

    def __init__(self) -> None:
        super().__init__()
        self.script: list[str] = []
        self.gate: asyncio.Event | None = None  # if there is a gate, each commit waits until it is set
        self.is_committing = asyncio.Event()  # set once a commit waits
        self.is_readable = True
        self.tried_s: list[float] = []  # when each commit was called

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        if not self.is_readable:
            raise StoreUnavailable("the script refuses the read")
        return await super().entries(channel, after=after, limit_bytes=limit_bytes)

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self.tried_s.append(asyncio.get_running_loop().time())
        if self.gate is not None:
            self.is_committing.set()
            await self.gate.wait()
        act = self.script.pop(0) if self.script else "ok"
        if act == "no":
            raise StoreUnavailable("the script refuses the commit")
        if act == "lost":
            raise CommitUnknown("the script loses the commit")
        results = await super().commit(writes)
        if act == "kept":
            raise CommitUnknown("the script loses the outcome")
        return results


async def texts(hub: HubCore, message_id: str) -> list[str]:
    return [part["text"] for part in (await hub.read("c", message_id))[0].parts]


@virtually
async def test_start_after_a_failed_start_recovers_the_remaining_messages() -> None:
    store = ScriptedStore()
    hub, successor = new_hub(store, 1), new_hub(store, 2)
    for number in range(2):
        await hub.message("c", id=f"m{number}").__aenter__()
    await hub.close()
    store.script = ["ok", "no"]
    with pytest.raises(StoreUnavailable):
        await successor.start()
    await successor.start()
    assert [one.status for one in (await successor.history("c")).messages] == ["interrupted", "interrupted"]


@pytest.mark.parametrize("has_viewer", [False, True])
@virtually
async def test_appends_and_log_wait_while_the_store_fails(
    has_viewer: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "store_failures", LineLimit())
    hub = new_hub(store := ScriptedStore())
    async with hub.message("c", id="m") as message:
        if has_viewer:
            await hub.attach("c", None, wake=lambda: None)
        await message.append("x")
        await message.flush()
        store.tried_s.clear()
        store.script = ["no"] * 1_000
        for _ in range(1_000):
            await message.append("y")
            await asyncio.sleep(0.001)
        assert 3 <= len(store.tried_s) <= 1 / RETRY_S + 2
        assert min(later - earlier for earlier, later in pairwise(store.tried_s)) >= RETRY_S - 0.001
        store.script.clear()
        await message.flush()
    assert await texts(hub, "m") == ["x" + "y" * 1_000]
    assert caplog.text.count("a commit failed, nothing of it is stored: the script refuses") == 1


@virtually
async def test_store_that_hangs_is_noticed_after_thirty_seconds_and_the_text_is_kept() -> None:
    store = ScriptedStore()
    hub, loop = new_hub(store), asyncio.get_running_loop()
    async with hub.message("c", id="m") as message:
        await message.append("a")
        await message.flush()
        store.gate = asyncio.Event()
        begun_s = loop.time()
        await message.append("b")
        await store.is_committing.wait()
        gate, store.gate = store.gate, None
        await message.flush()
        assert loop.time() - begun_s == STORE_TIMEOUT_S
        gate.set()
    assert await texts(hub, "m") == ["ab"]


@virtually
async def test_drain_waits_for_the_texts_of_all_writers_at_the_same_time() -> None:
    store, loop = ScriptedStore(), asyncio.get_running_loop()
    hub = new_hub(store)
    writers = [await hub.message("c", id=f"m{number}").open() for number in range(9)]
    store.gate = asyncio.Event()
    for writer in writers:
        await writer.append("x")
    begun_s = loop.time()
    await hub.drain()
    assert loop.time() - begun_s == pytest.approx(SHUTDOWN_S)
    store.gate.set()


@virtually
async def test_drain_ends_soon_on_a_shared_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    store, loop = SharedMemoryStore(), asyncio.get_running_loop()
    hub, called, responds = new_hub(store, drain_s=1.0), asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2 * SHUTDOWN_S)

    async def hang(*args: object, **conditions: object) -> None:
        await responds.wait()
        raise StoreUnavailable("it is away")

    @hub.on("message.create", "c", name="slow")
    async def call(event: HookEvent) -> None:
        called.set()
        await slow_to_end()

    writer = await hub.message("c", id="m").open()
    await called.wait()
    hub.start_task(slow_to_end())
    for name in ("commit", "note", "hold"):
        monkeypatch.setattr(store, name, hang)
    await writer.append("x")
    begun_s = loop.time()
    await hub.drain()
    assert loop.time() - begun_s <= 1.0 + 3 * SHUTDOWN_S
    responds.set()


@pytest.mark.parametrize("is_continued", [False, True])
@virtually
async def test_message_whose_writer_was_cancelled_before_it_was_stored_is_interrupted_although_a_read_fails(
    is_continued: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ScriptedStore()
    hub = new_hub(store)
    await hub.start()
    if is_continued:
        await hub.ask("c", "m", CreateMessage(status="streaming"), SERVER)
        await hub.ask("c", "m", FinishMessage(status="interrupted"), SERVER)
    message, errors = hub.runtime.message, [OSError("the disk is away")]

    async def fails_once(channel: str, message_id: str) -> MessageState:
        if errors:
            raise errors.pop()
        return await message(channel, message_id)

    store.gate = asyncio.Event()
    opening = asyncio.ensure_future(hub.take_over("c", "m") if is_continued else hub.message("c", id="m").open())
    await store.is_committing.wait()
    for _ in range(2):  # the first cancellation waits for the end of the creation
        opening.cancel()
        await asyncio.sleep(0)
    monkeypatch.setattr(hub.runtime, "message", fails_once)
    await asyncio.sleep(3 * ABANDONED_S)
    store.gate.set()
    await asyncio.sleep(3 * ABANDONED_S)
    assert (await hub.read("c", "m"))[0].status == "interrupted"


@virtually
async def test_takeover_that_failed_does_not_interrupt_the_message_that_a_repeat_took_over_and_flushes() -> None:
    store = ScriptedStore()
    hub = new_hub(store)
    await hub.ask("c", "m", CreateMessage(status="streaming"), SERVER)
    await hub.ask("c", "m", FinishMessage(status="interrupted"), SERVER)
    store.script = ["no"]
    with pytest.raises(StoreUnavailable):
        await hub.take_over("c", "m")
    writer = await hub.take_over("c", "m")
    writer.begin_again({"model": "m"}, supersedes=False)
    await asyncio.wait_for(writer.flush(), 1)  # it is not open yet
    await asyncio.sleep(3 * ABANDONED_S)
    async with writer as message:
        await asyncio.wait_for(message.flush(), 1)
        assert (await hub.read("c", "m"))[0].meta == {"model": "m"}
        await message.append("more")
    assert await texts(hub, "m") == ["more"]


@virtually
async def test_message_that_was_taken_over_is_interrupted_once_its_damaged_channel_is_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = new_hub(ScriptedStore())
    await hub.start()
    await hub.ask("c", "m", CreateMessage(status="streaming"), SERVER)
    await hub.ask("c", "m", FinishMessage(status="interrupted"), SERVER)
    known = await hub.runtime.message("c", "m")
    with monkeypatch.context() as damage:
        damage.setattr(hub.runtime, "message", AsyncMock(side_effect=StoreUnusable("its row is damaged")))
        with pytest.raises(StoreUnusable):
            await continue_after(hub, "c", known, hub.caller(None))
        await asyncio.sleep(3 * ABANDONED_S)
    await asyncio.sleep(DAMAGED_S)
    assert (await hub.read("c", "m"))[0].status == "interrupted"


@virtually
async def test_channel_that_is_damaged_after_a_removal_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub()
    await hub.create("c", text="hi", author="ann")
    monkeypatch.setattr(hub.store, "changes", AsyncMock(side_effect=StoreUnusable("its row is damaged")))
    assert (await hub.archive.forget("ann")).messages == 1
    await asyncio.sleep(100.0)
    assert hub.runtime.channels == {}
    monkeypatch.undo()
    assert (await hub.history("c")).messages == []


@pytest.mark.parametrize(("error", "lines"), [(StoreUnavailable("the disk"), 1), (ZeroDivisionError("a bug"), 2)])
@virtually
async def test_each_channel_that_a_bug_makes_unreadable_is_logged(
    error: Exception, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "store_failures", LineLimit())
    monkeypatch.setattr((hub := new_hub()).store, "changes", AsyncMock(side_effect=error))
    for name in ("one", "two"):
        with pytest.raises(StoreUnavailable):
            await hub.delete(name, "m")
    assert caplog.text.count("could not be read: ") == lines


# Races that the simulator found


@virtually
async def test_starting_hub_refuses_requests_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, may_open = new_hub(), asyncio.Event()
    monkeypatch.setattr(hub.store, "open", may_open.wait)
    starting = asyncio.create_task(hub.start())
    await asyncio.sleep(0.1)
    with pytest.raises(Busy):
        hub.runtime.submit("c", "m", CreateMessage(), hub.caller("ann"), lambda result: None)
    may_open.set()
    await starting


@pytest.mark.parametrize("is_exclusive", [True, False], ids=["alone", "with others"])
@pytest.mark.parametrize(("ask", "error"), [(FinishMessage(status="cancelled"), Finished), (DeleteMessage(), Deleted)])
@virtually
async def test_writer_of_a_message_ended_during_its_creation_gets_the_error_of_the_end(
    ask: FinishMessage | DeleteMessage, error: type[Exception], is_exclusive: bool
) -> None:
    store = ScriptedStore()
    store.is_exclusive = is_exclusive
    hub = new_hub(store)
    await hub.start()
    store.script = ["kept"]
    opening = asyncio.create_task(hub.message("c", id="m").open())
    # This request waits behind the creation of the message.
    ending = asyncio.create_task(hub.ask("c", "m", ask, hub.caller("ann")))
    with pytest.raises(error):
        async with await opening as message:
            await message.append("more")
            await message.flush()
    await asyncio.gather(ending, return_exceptions=True)


@virtually
async def test_failing_housekeeping_ends_no_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub()
    monkeypatch.setattr(hub.store, "tidy", AsyncMock(side_effect=OSError("the connection was reset")))
    watcher = Watcher(hub, "c")
    await watcher.take()
    await asyncio.sleep(60)
    await hub.create("c", text="hello")
    await watcher.until(lambda view: bool(view.messages()))
    await watcher.leave()


@virtually
async def test_defect_that_stops_the_hub_drains_its_viewers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = new_hub()
    watcher = Watcher(hub, "c")
    await watcher.take()
    sent_away = asyncio.Event()
    hub.on_drain(lambda: 1 / 0)
    hub.on_drain(sent_away.set)
    await hub.create("c", text="hello")
    monkeypatch.setattr(Pace, "took", lambda *_: 1 / 0)
    with pytest.raises((Draining, TenutoError)):
        await hub.create("c", text="unlucky")
    monkeypatch.undo()
    async with asyncio.timeout(60):
        await sent_away.wait()
        with pytest.raises(Draining):
            await watcher.until(lambda view: False)
    await hub.create("c", text="in the next life")  # the next request starts the hub again
    await hub.close()
    assert "ZeroDivisionError" in caplog.text
    gc.collect()  # asyncio reports unretrieved exceptions only then
