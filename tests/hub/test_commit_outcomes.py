"""Commits that fail, conflict or leave their outcome unknown, and memory that is freed at a bad moment.

Layer: tests.

Each test scripts the outcomes of the next commits. The simulator draws the same faults at random.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from tenuto.core.errors import (
    AlreadyAnswered,
    Draining,
    Fenced,
    IdConflict,
    InvalidName,
    InvalidText,
    StoreUnavailable,
)
from tenuto.core.events import ChannelAttached, MessageUpdate, parse_cursor
from tenuto.core.limits import Limits
from tenuto.core.message_state import MessageState
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import (
    AppendText,
    Caller,
    ClaimTurn,
    CreateMessage,
    EndTurn,
    FinishMessage,
    RenewLease,
    ReplyCommand,
    Request,
    TakeOver,
)
from tenuto.hub import HubCore, MessageWriter
from tenuto.hub.batches import Behind, EncodedBatch
from tenuto.hub.committer import STORE_TIMEOUT_S
from tenuto.hub.feed import Feed
from tenuto.hub.lifecycle import TIDY_S, free_memory
from tenuto.hub.pending import Result, result_later
from tenuto.hub.writer import RETRY_S
from tenuto.hub.writers import ABANDONED_S
from tenuto.stores.base import Changes, Committed, CommitUnknown, Conflict, Head, Tail, Write
from tenuto.stores.memory import MemoryStore
from tests.hub.watching import Watcher
from tests.virtual import virtual_clock, virtually

ANN = Caller(id="ann")
SERVER = Caller(id="ann", is_server=True)


class ScriptedStore(MemoryStore):
    """A store in memory whose next commits follow `script`.

    "ok" stores, "no" refuses, "lost" and "kept" leave the outcome unknown: not stored, and stored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.script: list[str] = []
        self.gate: asyncio.Event | None = None  # if there is a gate, each commit waits until it is set
        self.is_committing = asyncio.Event()  # set once a commit waits
        self.is_readable = True

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        if not self.is_readable:
            raise StoreUnavailable("the script refuses the read")
        return await super().entries(channel, after=after, limit_bytes=limit_bytes)

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
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


@asynccontextmanager
async def scripted(**limits: int) -> AsyncIterator[tuple[HubCore, ScriptedStore]]:
    """Yield a hub on a scripted store."""
    store = ScriptedStore()
    hub = HubCore(store, hooks_signals=False, drain_s=0.1, limits=Limits(**limits))
    try:
        yield hub, store
    finally:
        await hub.close()


async def kill(hub: HubCore) -> None:
    """End the hub's task as `kill -9` would: it finishes and stores no pending work."""
    run = hub._lifecycle._run
    assert run is not None
    run.main.cancel()
    await asyncio.wait([run.main])


async def ask_in_one_batch(hub: HubCore, *asks: tuple[str, Request]) -> list[Result | BaseException]:
    """Return the results of requests that one batch decides."""
    return await asyncio.gather(*(hub.ask("c", one, request, ANN) for one, request in asks), return_exceptions=True)


async def take(feed: Feed) -> EncodedBatch:
    """Return the next batch of `feed`, which may have to read the store once or twice."""
    for _ in range(3):
        try:
            batch = feed.take()
            assert batch is not None
            return batch
        except Behind:
            await feed.catch_up()
    raise AssertionError("the feed reads the store again and again")


def messages_of_new_start(batch: EncodedBatch) -> list[str]:
    """Return the ids of the messages with which a view starts anew."""
    attached, *shown = batch.events
    assert isinstance(attached, ChannelAttached)
    assert not attached.resumed
    return [event.message.id for event in shown if isinstance(event, MessageUpdate)]


async def texts(hub: HubCore, message_id: str) -> list[str]:
    return [part["text"] for part in (await hub.read("c", message_id))[0].parts]


async def test_viewer_far_behind_starts_anew_though_the_hub_must_read_the_page_first() -> None:
    async with scripted(catch_up_messages=3) as (hub, _):
        for number in range(10):
            await hub.create("c", id=f"m{number}", text="x")
        cursor = (await hub.info("c")).cursor
        await hub.close()
        feed = await hub.attach("c", parse_cursor(cursor), history=2, wake=lambda: None)
        for number in range(4):
            await hub.delete("c", f"m{number}")
        assert messages_of_new_start(await take(feed)) == ["m8", "m9"]


async def test_new_start_holds_an_old_streaming_message_and_the_newest_page() -> None:
    async with scripted() as (hub, _):
        await hub.ask("c", "old", CreateMessage(status="streaming"), ANN)
        for number in range(5):
            await hub.create("c", id=f"m{number}", text="x")
        await hub.close()
        feed = await hub.attach("c", None, history=2, wake=lambda: None)
        assert messages_of_new_start(await take(feed)) == ["old", "m3", "m4"]


async def test_message_that_left_memory_is_read_again() -> None:
    async with scripted(channel_bytes=1) as (hub, _):
        await hub.create("c", id="m", text="x")
        free_memory(hub.runtime)
        assert hub.channel("c").state.message("m") is None
        with pytest.raises(IdConflict):
            await hub.create("c", id="m", text="other")
        free_memory(hub.runtime)
        assert (await hub.update("c", "m", text="y")).text == "y"


async def test_memory_is_freed_after_the_running_commit() -> None:
    async with scripted(channel_bytes=1) as (hub, store):
        await hub.create("c", id="m", text="x")
        store.gate = asyncio.Event()
        update = asyncio.create_task(hub.update("c", "m", text="y"))
        await store.is_committing.wait()
        free_memory(hub.runtime)
        store.gate.set()
        assert (await update).text == "y"


async def test_idle_channel_stays_in_memory_until_its_commit_is_over() -> None:
    async with scripted(channel_idle_s=0) as (hub, store):
        await hub.create("c", id="m", text="x")
        store.gate = asyncio.Event()
        update = asyncio.create_task(hub.update("c", "m", text="y"))
        await store.is_committing.wait()
        free_memory(hub.runtime)
        assert hub.stats()["channels"] == 1
        store.gate.set()
        await update
        free_memory(hub.runtime)
        assert hub.stats()["channels"] == 0


async def test_requests_keep_their_order_if_the_outcome_of_their_commit_is_unknown() -> None:
    """The second request needs a message that must be read first, so it holds up the third."""
    async with scripted() as (hub, store):
        await hub.ask("c", "m", CreateMessage(text="", status="streaming"), ANN)
        store.script = ["lost"]
        create = CreateMessage(text="x")
        results = await ask_in_one_batch(hub, ("m", AppendText(text="1")), ("n", create), ("m", AppendText(text="2")))
        assert [isinstance(result, Result) for result in results] == [True, True, True]
        assert await texts(hub, "m") == ["12"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_text_without_a_part_number_keeps_the_part_of_its_first_decision(act: str) -> None:
    async with scripted() as (hub, store), hub.message("c", id="m") as message:
        store.script = [act]
        await message.append("x")
        await message.part({"type": "text", "text": ""})
        await message.append("y")
        await message.flush()
        assert await texts(hub, "m") == ["x", "y"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_update_with_a_version_is_stored_once_if_its_outcome_is_unknown(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.create("c", id="m", text="a")
        store.script = [act]
        assert (await hub.update("c", "m", text="b", if_version=1)).version == 2


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_takeover_is_stored_once_if_its_outcome_is_unknown(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.ask("c", "m", CreateMessage(status="streaming"), ANN)
        await hub.ask("c", "m", FinishMessage(status="interrupted"), SERVER)
        store.script = [act]
        assert (await hub.ask("c", "m", TakeOver(generation=1), ANN)).generation == 2


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_parts_before_an_end_are_stored_if_the_outcome_of_the_end_is_unknown(act: str) -> None:
    async with scripted() as (hub, store):
        async with hub.message("c", id="m") as message:
            store.script = [act]
            await message.append("text")
            await message.part({"type": "text", "text": "part"})
        assert await texts(hub, "m") == ["text", "part"]


@pytest.mark.parametrize("act", ["lost", "kept"])
async def test_started_hub_adopts_a_message_if_the_outcome_of_its_takeover_is_unknown(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.message("c", id="m").__aenter__()
        await kill(hub)
        successor = HubCore(store, hooks_signals=False, drain_s=0.1)
        ended = asyncio.Event()

        @successor.adopt("*")
        async def continue_message(writer: MessageWriter) -> None:
            await writer.append("more")
            ended.set()

        store.script = [act]
        await successor.start()
        await ended.wait()
        await successor.close()
        assert await texts(successor, "m") == ["more"]
        await successor.close()


@pytest.mark.parametrize("act", ["ok", "lost", "kept"])
async def test_command_and_its_reply_are_stored_once_for_each_outcome_of_their_commits(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.create("c", id="m", text="x")
        store.script = [act]
        command = await hub.command("c", "approve", id="a", target="m", data={"x": 1}, by="ann")
        assert (command.id, command.data, command.from_) == ("a", {"x": 1}, "ann")
        store.script = [act]
        reply = ReplyCommand(data="yes", request="r")
        first = await hub.ask("c", "!a", reply, ANN)
        assert (await hub.ask("c", "!a", reply, ANN)).serial == first.serial
        with pytest.raises(AlreadyAnswered):
            await hub.reply("c", "a")
        assert (await hub.info("c")).serial == first.serial == 3


@pytest.mark.parametrize("act", ["ok", "lost", "kept"])
async def test_turn_is_claimed_once_and_by_this_hub_for_each_outcome_of_the_commit(act: str) -> None:
    async with scripted() as (hub, store):
        await hub.start()
        hub.runtime.scheduler.workers._patterns["c"] = 0  # agents serve this channel, and none is connected
        await hub.create("c", id="q", text="question")
        agent = Caller(id="agent", writer=WriterIdentity(by="agent", node=hub.node), is_server=True)
        store.script = [act]
        assert (await hub.ask("c", "q", ClaimTurn(generation=0), agent)).generation == 1
        with pytest.raises(Fenced):
            await hub.ask("c", "q", ClaimTurn(generation=0), SERVER)
        store.script = [act]
        await hub.ask("c", "q", EndTurn(generation=1), agent)
        assert (await hub.info("c")).serial == 3


async def test_error_for_a_cancelled_caller_is_not_reported_by_asyncio() -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
    result, done = result_later()
    shielded = asyncio.shield(result)  # shielded, as the request that opens a message is
    shielded.cancel()
    await asyncio.sleep(0)
    done(Draining("the hub has stopped"))
    del result, done, shielded
    gc.collect()
    assert complaints == []


async def test_failed_start_whose_caller_was_cancelled_is_not_reported_by_asyncio(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context["message"]))
    store, opened = MemoryStore(), asyncio.Event()

    async def fail(prefix: str) -> dict[str, str]:
        await opened.wait()
        raise StoreUnavailable("the store is down")

    monkeypatch.setattr(store, "notes", fail)
    hub = HubCore(store, hooks_signals=False, drain_s=0.1)
    starting = asyncio.create_task(hub.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    run = hub._lifecycle._run
    assert run is not None
    opened.set()
    await asyncio.wait([run.main])
    assert run.ready.done()
    del run, hub, starting
    gc.collect()
    assert complaints == []


async def test_claims_and_leases_send_no_event_to_viewers() -> None:
    async with scripted() as (hub, _):
        await hub.start()
        hub.runtime.scheduler.workers._patterns["c"] = 0
        await hub.create("c", id="q", text="question")
        await hub.ask("c", "m", CreateMessage(status="streaming", text=""), ANN)
        feeds = [await hub.attach("c", None, history=50, wake=lambda: None) for _ in range(2)]
        for feed in feeds:
            await take(feed)
        await hub.ask("c", "q", ClaimTurn(generation=0, lease_s=15), SERVER)
        await hub.ask("c", "m", RenewLease(lease_s=60), ANN)
        for feed in feeds:
            assert feed.is_behind
            assert feed.take() is None
            assert (feed.is_behind, feed.cursor.serial) == (False, 4)
        await hub.ask("c", "m", AppendText(text="a"), ANN)
        batch = await take(feeds[0])
        assert ([event.serial for event in batch.events], batch.cursor[-2:]) == ([5], ":5")
        resumed = await hub.attach("c", parse_cursor(batch.cursor[:-2] + ":2"), wake=lambda: None)
        attached, append = (await take(resumed)).events
        assert isinstance(attached, ChannelAttached)
        assert (attached.resumed, attached.serial, append.serial) == (True, 5, 5)


@pytest.mark.parametrize("target", ["\ud83d", "a b", "!a", ""])
async def test_command_with_an_invalid_target_is_refused_and_delays_no_other_request(target: str) -> None:
    async with scripted() as (hub, _):
        with pytest.raises((InvalidName, InvalidText)):
            await hub.command("c", "steer", target=target)
        assert (await hub.create("c", id="m", text="x")).text == "x"


async def test_reply_that_left_memory_is_read_again() -> None:
    async with scripted(channel_bytes=1) as (hub, _):
        await hub.command("c", "approve", id="a")
        await hub.reply("c", "a", data="yes")
        free_memory(hub.runtime)
        assert hub.channel("c").state.command("!a") is None
        with pytest.raises(AlreadyAnswered):
            await hub.reply("c", "a", data="no")
        free_memory(hub.runtime)
        assert (await hub.command("c", "approve", id="a")).id == "a"
        with pytest.raises(IdConflict):
            await hub.command("c", "steer", id="a")


async def test_start_after_a_failed_start_recovers_the_remaining_messages() -> None:
    async with scripted() as (hub, store):
        for number in range(2):
            await hub.message("c", id=f"m{number}").__aenter__()
        await kill(hub)
        successor = HubCore(store, hooks_signals=False, drain_s=0.1)
        store.script = ["ok", "no"]
        with pytest.raises(StoreUnavailable):
            await successor.start()
        await successor.start()
        messages = (await successor.history("c")).messages
        assert [one.status for one in messages] == ["interrupted", "interrupted"]
        await successor.close()


@pytest.mark.parametrize("has_viewer", [False, True])
@virtually
async def test_appends_wait_for_the_back_off_while_the_store_fails(has_viewer: bool) -> None:
    store = ScriptedStore()
    tried_s: list[float] = []
    commit = store.commit

    async def counted(writes: Sequence[Write]) -> list[Committed | Conflict]:
        tried_s.append(asyncio.get_running_loop().time())
        return await commit(writes)

    hub = HubCore(store, hooks_signals=False, drain_s=0.1, clock=virtual_clock())
    async with hub.message("c", id="m") as message:
        feeds = [await hub.attach("c", None, wake=lambda: None)] if has_viewer else []
        await message.append("x")
        await message.flush()
        store.commit = counted  # type: ignore[method-assign]
        store.script = ["no"] * 1_000
        for _ in range(1_000):
            await message.append("y")
            await asyncio.sleep(0.001)
        assert 3 <= len(tried_s) <= 1 / RETRY_S + 2
        assert min(later - earlier for earlier, later in pairwise(tried_s)) >= RETRY_S - 0.001
        store.script.clear()
        await message.flush()
    assert await texts(hub, "m") == ["x" + "y" * 1_000]
    for feed in feeds:
        feed.close()
    await hub.close()


@virtually
async def test_store_that_hangs_is_noticed_after_thirty_seconds_and_the_text_is_kept() -> None:
    store = ScriptedStore()
    hub = HubCore(store, hooks_signals=False, drain_s=0.1, clock=virtual_clock())
    loop = asyncio.get_running_loop()
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
    await hub.close()


@pytest.mark.parametrize("act", ["lost", "kept"])
@virtually
async def test_hub_that_cannot_read_a_channel_after_an_unknown_outcome_reads_it_later(act: str) -> None:
    """No later request needs the channel, but the writer of its message may have died."""
    store = ScriptedStore()
    hub = HubCore(store, hooks_signals=False, clock=virtual_clock(), limits=Limits(memory_bytes=1))
    await hub.create("c", id="a", text="the channel is loaded")
    await hub.create("d", id="a", text="so is this one")
    store.script, store.is_readable = [act], False
    with pytest.raises(StoreUnavailable):
        await hub.ask("c", "m", CreateMessage(role="assistant", status="streaming", lease_s=15.0), ANN)
    await asyncio.sleep(1)
    await hub.create("d", id="b", text="it was used later")
    await asyncio.sleep(3 * TIDY_S)  # the hub may keep one byte of idle channels
    assert [one.id for one in await store.open_documents("c")] == ["m"] * (act == "kept")
    store.is_readable = True
    await asyncio.sleep(15 + 2 * TIDY_S)
    assert list(await store.open_documents("c")) == []
    assert hub.channel("c").is_idle
    await hub.close()


@pytest.mark.parametrize("act", ["lost", "kept"])
@virtually
async def test_message_is_opened_once_if_the_outcome_of_its_beginning_is_unknown_for_a_while(act: str) -> None:
    store = ScriptedStore()
    hub = HubCore(store, hooks_signals=False, clock=virtual_clock())
    await hub.create("c", id="a", text="the channel is loaded")
    store.script, store.is_readable = [act], False
    asyncio.get_running_loop().call_later(4 * RETRY_S, setattr, store, "is_readable", True)
    async with hub.message("c", id="m") as message:
        await message.append("once")
    await asyncio.sleep(3 * ABANDONED_S)
    assert [(one.text, one.status) for one in (await hub.history("c")).messages[:-1]] == [("once", "complete")]
    await hub.close()


@virtually
async def test_abandoned_message_is_interrupted_although_a_read_of_it_fails_in_an_unexpected_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ScriptedStore()
    hub = HubCore(store, hooks_signals=False, clock=virtual_clock())
    writer = hub.message("c", id="m")
    await writer.__aenter__()
    message, errors = hub.runtime.message, [OSError("the disk is away")]

    async def fails_once(channel: str, message_id: str) -> MessageState:
        if errors:
            raise errors.pop()
        return await message(channel, message_id)

    monkeypatch.setattr(hub.runtime, "message", fails_once)
    hub.runtime.writers.pop(("c", "m"))
    hub._writers.left("c", "m", 1)
    await asyncio.sleep(3 * ABANDONED_S)
    assert (await hub.read("c", "m"))[0].status == "interrupted"
    await hub.close()


class SilentStore(ScriptedStore):
    """A store whose next deletion of a channel is carried out, and fails."""

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        result = await super().delete_channel(channel, expected=expected, used_up=used_up, until_ms=until_ms)
        if self.script.pop(0) == "kept":
            raise CommitUnknown("the script loses the outcome")
        self.is_readable = False
        return result

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        if not self.is_readable:
            self.is_readable = True
            raise StoreUnavailable("the script refuses the read")
        return await super().changes(channel, after=after, limit=limit)


@pytest.mark.parametrize("act", ["kept", "ok"], ids=["the outcome is unknown", "the read after it fails"])
async def test_no_viewer_sees_a_channel_whose_deletion_was_stored_and_failed(
    monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr("tenuto.hub.nodes.following.STALE_S", 0.05)
    store = SilentStore()
    hub = HubCore(store, hooks_signals=False, drain_s=0.1)
    await hub.create("c", id="m1", text="deleted")
    viewer, other = Watcher(hub, "c"), Watcher(hub, "c")
    await viewer.take()
    store.script = [act]
    with pytest.raises(StoreUnavailable):
        await hub.delete_channel("c")
    await other.take()
    assert other.view.messages() == []
    assert await viewer.until(lambda view: not view.messages()) == []
    for one in (viewer, other):
        await one.leave()
    await hub.close()
