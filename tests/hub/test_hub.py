"""The Python API in process: create, append, watch and resume."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

from tenuto.core.errors import Busy, Deleted, Draining, IdConflict, LocalError
from tenuto.core.limits import Limits
from tenuto.core.model import Message
from tenuto.hub import HubCore, MessageWriter
from tenuto.hub.lifecycle import free_memory
from tests.hub.watching import PATIENCE_S, Watcher, has_ended


async def test_adopter_continues_at_the_stored_length_after_a_restart(tmp_path: Path) -> None:
    url, text = f"sqlite:///{tmp_path}/hub.db", type("Text", (str,), {})  # SDKs give texts of such classes
    dying = HubCore(url, hooks_signals=False, drain_s=0)
    writer = await dying.message("chat:1", id=text("m"), author=text("bot"), meta={"question": "why"}).open()
    await writer.append(text("so far"))

    async def write() -> None:
        async with writer:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            raise ConnectionError  # as a library that is cancelled

    dying.start_task(write())
    await dying.close()

    hub = HubCore(url, hooks_signals=False)

    @hub.adopt("chat:*")
    async def continue_message(message: MessageWriter) -> None:
        assert message.meta == {"question": "why"}
        await message.append(f" and on from {message.length}")
        await message.finish(text("complete"))

    (shown,) = await Watcher(hub, "chat:1").until(has_ended("m"))
    assert (shown.author, shown.status, shown.text) == ("bot", "complete", "so far and on from 6")
    await hub.close()


async def test_attempt_in_a_thread(hub: HubCore) -> None:
    await hub.start()

    def work() -> None:
        with hub.sync.message("chat:1", id="m") as message:
            for text in ("first", "second"):
                with contextlib.suppress(ValueError), message.attempt():
                    message.append(text)
                    if text == "first":
                        raise ValueError

    await asyncio.to_thread(work)
    stored, _ = await hub.read("chat:1", "m")
    assert [one["type"] for one in stored.parts] == ["attempt", "text"]
    assert stored.text == "second"


async def leave_open(hub: HubCore, id: str, start: Callable[[Coroutine[Any, Any, None]], object]) -> None:
    """Let a task that never ends write a message; `start` starts it. Return once its text is stored."""
    began = asyncio.Event()

    async def answer() -> None:
        async with hub.message("chat:1", id=id) as message:
            await message.append("so far")
            await message.flush()
            began.set()
            await asyncio.Event().wait()

    start(answer())
    await began.wait()


def test_event_loop_that_ends_with_an_open_message_does_not_wait_for_its_hub(tmp_path: Path) -> None:
    hub = HubCore(f"sqlite:///{tmp_path}/hub.db", hooks_signals=False)

    async def main() -> None:
        await leave_open(hub, "m", asyncio.get_running_loop().create_task)

    start_s = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start_s < PATIENCE_S / 2


async def test_hub_started_by_a_thread_moves_to_the_event_loop_of_its_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubCore(f"sqlite:///{tmp_path}/hub.db", hooks_signals=False)
    closing = AsyncMock(side_effect=hub.store.close)
    monkeypatch.setattr(hub.store, "close", closing)
    await asyncio.to_thread(hub.sync.create, "chat:1", id="u", text="hi")
    found = await asyncio.gather(*(hub.read("chat:1", "u") for _ in range(3)))
    assert [message.text for message, _ in found] == ["hi"] * 3
    assert closing.await_count == 2  # at the end of the first run, and by one of the callers before the second run
    await asyncio.to_thread(hub.sync.create, "chat:1", id="v", text="ho")
    assert (await hub.read("chat:1", "v"))[0].text == "ho"
    assert (await asyncio.to_thread(hub.sync.history, "chat:1")).messages[0].text == "ho"
    with pytest.raises(LocalError):
        hub.sync.history("chat:1")
    await hub.close()


def test_hub_used_in_turn_on_two_event_loops_has_the_tasks_of_one_run(tmp_path: Path) -> None:
    hub = HubCore(f"sqlite:///{tmp_path}/hub.db", hooks_signals=False)
    loops = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def begin(id: str) -> None:
        await hub.start()
        await leave_open(hub, id, hub.start_task)

    for number in range(4):
        loops[number % 2].run_until_complete(begin(f"m{number}"))
    first, last = loops
    done, running = first.run_until_complete(asyncio.wait(asyncio.all_tasks(first), timeout=PATIENCE_S))
    assert (len(done) > 2, running) == (True, set())
    page = last.run_until_complete(hub.history("chat:1"))
    assert [one.text for one in page.messages] == ["so far"] * 4
    assert [one.status for one in page.messages] == ["streaming", *["interrupted"] * 3]
    last.run_until_complete(hub.close())
    assert asyncio.all_tasks(last) == set()
    first.close()
    last.close()


def test_start_on_an_event_loop_that_has_lost_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubCore("memory://", hooks_signals=False)
    open_store = hub.store.open

    async def hang() -> None:
        monkeypatch.setattr(hub.store, "open", open_store)
        await asyncio.Event().wait()

    monkeypatch.setattr(hub.store, "open", hang)
    first, last = asyncio.new_event_loop(), asyncio.new_event_loop()
    start = first.create_task(hub.start())
    first.run_until_complete(asyncio.sleep(0.0))
    last.run_until_complete(hub.create("chat:1", text="hi"))
    with pytest.raises(Draining):
        first.run_until_complete(start)
    last.run_until_complete(hub.close())
    first.close()
    last.close()


async def test_blocking_call_after_the_close_of_a_hub_starts_it_again(hub: HubCore) -> None:
    await hub.create("chat:1", text="hi")
    await hub.close()
    await asyncio.to_thread(hub.sync.create, "chat:1", text="ho")
    assert [message.text for message in (await hub.history("chat:1")).messages] == ["ho", "hi"]


async def test_writer_far_ahead_of_its_store_waits(hub: HubCore) -> None:
    async with hub.message("chat:1") as message:
        for number in range(40):
            await message.part({"type": "data", "name": "bar", "data": "x" * 100_000 + str(number)})
            assert message._outgoing.unstored_bytes < 2 * hub.limits.writer_bytes


async def test_batches_for_many_different_cursors_use_bounded_memory(hub: HubCore) -> None:
    async with hub.message("chat:1", id="m") as message:
        await message.append("x" * 500_000)
        for number in range(100):
            await message.append(f"{number} ")
            await message.flush()
        live = hub.channel("chat:1")
        for since in range(1, live.state.serial):
            live.batch_since(since, attach=True)
        assert live.batches.text_bytes <= 2 * 1024 * 1024
        free_memory(hub.runtime)
        assert live.batches.text_bytes == 0


async def test_writer_whose_text_finds_a_full_queue_submits_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubCore("memory://", hooks_signals=False, drain_s=0)
    await hub.start()
    async with hub.message("chat:1", id="m") as message:
        submit, refused = hub.runtime.committer.submit, list[object]()

        def full(waiting: Any, **how: Any) -> None:
            monkeypatch.setattr(hub.runtime.committer, "submit", submit)
            refused.append(waiting)
            raise Busy("the queue is full")

        monkeypatch.setattr(hub.runtime.committer, "submit", full)
        await message.append("all of it")
    assert refused == [message]
    assert (await hub.read("chat:1", "m"))[0].text == "all of it"
    await hub.close()


async def test_waiting_requests_are_limited_by_the_bytes_of_all_their_fields() -> None:
    hub = HubCore("memory://", limits=Limits(waiting_bytes=1_000_000), hooks_signals=False)
    await hub.start()
    parts = [{"type": "data", "name": "d", "data": "x" * 600_000}]
    results = await asyncio.gather(*(hub.create("chat:1", parts=parts) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [Message, Busy]
    await hub.close()


async def test_messages_given_to_the_app_are_copies(hub: HubCore) -> None:
    created = await hub.create("chat:1", id="u", text="hi", meta={"tags": ["a"]})
    created.meta["tags"].append("b")
    message, _ = await hub.read("chat:1", "u")
    message.meta["tags"].append("c")
    message.parts[0]["text"] = "changed"
    again, _ = await hub.read("chat:1", "u")
    assert (again.meta, again.text) == ({"tags": ["a"]}, "hi")


async def test_message_that_streamed_in_a_deleted_channel_can_be_deleted_again(hub: HubCore) -> None:
    with contextlib.suppress(Deleted):
        async with hub.message("chat:1", id="m") as message:
            await message.append("text")
            await hub.delete_channel("chat:1")
            for _ in range(2):
                await hub.delete("chat:1", "m")
    assert (await hub.create("chat:1", text="next")).text == "next"


async def test_message_that_could_not_be_opened_can_be_opened_later(hub: HubCore) -> None:
    async with hub.message("c", id="m"):
        message = hub.message("c", id="m")
        with pytest.raises(IdConflict):
            await message.open()
        with pytest.raises(LocalError, match="async with"):
            await message.append("lost")
    with pytest.raises(IdConflict):
        await message.open()


@pytest.mark.parametrize("is_started_again", [True, False])
async def test_signal_reaches_the_apps_handler_once_behind_a_hub_that_was_closed(is_started_again: bool) -> None:
    first, second, received = HubCore("memory://"), HubCore("memory://"), asyncio.Queue[int]()

    def hit(number: int, frame: object) -> None:
        received.put_nowait(number)

    before = signal.signal(signal.SIGTERM, hit)
    try:
        await first.start()
        await second.start()
        await first.close()
        if is_started_again:
            await first.start()
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await received.get() == signal.SIGTERM
        assert first.viewing.is_draining
        assert second.viewing.is_draining
        await first.close()
        await second.close()
        assert received.empty()
        assert signal.getsignal(signal.SIGTERM) is hit  # in whatever order the hubs close, none stays in the chain
    finally:
        signal.signal(signal.SIGTERM, before)
