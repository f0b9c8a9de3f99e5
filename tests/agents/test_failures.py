"""Failures around a turn: answers that cannot be opened, and crashes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tenuto.agents.local import LocalBackend
from tenuto.agents.turn import Turn
from tenuto.core.errors import StoreUnavailable
from tenuto.core.limits import Limits
from tenuto.core.ops import Claim, Create
from tenuto.core.turns import ATTEMPTS, reply_id
from tenuto.hub.lifecycle import free_memory
from tenuto.portal import Writer
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tests.agents.test_endings import Slow, endings
from tests.agents.test_turns import Failing, answers_of, hub_asked, lives, new_hub, until_over
from tests.virtual import virtually


class Refusing(MemoryStore):
    """A store that fails for commits with an operation of the type `refuses`."""

    refuses: Any = ()
    times = 1

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        ops = [entry.op for write in writes for entry in write.entries]
        if self.times and self.refuses and any(self.refuses(op) for op in ops):
            self.times -= 1
            raise StoreUnavailable("not now")
        return await super().commit(writes)


@virtually
async def test_state_of_an_agent_is_a_copy_of_its_objects() -> None:
    async def bot(turn: Turn) -> None:
        tools = ["search"]
        turn.progress("using a tool", tools=tools)
        tools.append("rm")
        await asyncio.sleep(10)

    (member,) = (await (await hub_asked(bot, 1)).members("chat:1")).members
    assert member.data["tools"] == ["search"]


@pytest.mark.parametrize(
    ("times", "answer"),
    [(1, ("answer", "complete", None)), (20, ("answer", "complete", None)), (60, ("", "failed", "store_unavailable"))],
)
@virtually
async def test_answer_is_opened_once_the_store_recovers_and_is_failed_after_ten_seconds(
    times: int, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = Refusing()

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("answer")

    store.refuses, store.times = lambda op: isinstance(op, Create) and op.role == "assistant", times
    hub = await hub_asked(bot, 90, store=store)
    assert await endings(hub) == [answer]
    assert ("failed: not now" in caplog.text) == (times == 60)
    assert "Traceback" not in caplog.text  # the handler made no mistake
    assert hub.runtime.scheduler.stats()["turns_running"] == 0


@pytest.mark.parametrize("is_deleted", [False, True])
@virtually
async def test_answer_whose_id_is_taken_gets_another_id(is_deleted: bool) -> None:
    hub = new_hub()

    @hub.agent("chat:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(f"to {turn.text}")

    taken = reply_id("m1", 1)
    await hub.create("chat:1", id=taken, text="I am here", author="eve", role="system")
    if is_deleted:
        await hub.delete("chat:1", taken)
    asked = await hub.create("chat:1", id="m1", text="ann", author="ann")
    found = await until_over(hub, 1)
    assert await endings(hub) == [("to ann", "complete", None)]
    assert found[-1].reply_to == asked.id
    assert found[-1].id != taken


@virtually
async def test_answer_of_a_handler_that_ignores_its_time_limit_is_failed_with_timeout() -> None:
    release = asyncio.Event()

    async def deaf(turn: Turn) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    assert await endings(await hub_asked(deaf, 30, timeout_s=5)) == [("", "failed", "timeout")]
    release.set()
    await asyncio.sleep(1)


@virtually
async def test_with_interrupt_a_turn_that_crashed_before_its_answer_is_not_run_again() -> None:
    ran: list[int] = []

    async def pay(turn: Turn) -> None:
        ran.append(turn.attempt)
        await asyncio.sleep(1000)

    (answer,) = await answers_of(pay, "interrupt", 1, 5, 5)
    assert (ran, answer.text, answer.status, answer.reason) == ([1], "", "failed", "crashed")


@pytest.mark.parametrize("on_crash", ["interrupt", "restart", "continue"])
@pytest.mark.parametrize("is_stopped", [False, True])
@virtually
async def test_an_answer_that_had_ended_before_the_crash_is_the_answer(
    on_crash: Any, is_stopped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The process died between the end of its answer and the end of its turn."""
    store = Refusing()
    store.refuses = lambda op: isinstance(op, Claim) and op.state in ("done", "cancelled")  # the end of a turn
    store.times = 1000
    ran = list[int]()

    async def answer(turn: Turn) -> None:
        ran.append(turn.attempt)
        async with turn.reply() as message:
            await message.append(f"by attempt {turn.attempt}")
            await asyncio.sleep(1000 if is_stopped else 0)

    async for hub in lives(answer, 1, 5, store=store, on_crash=on_crash):
        if store.times and is_stopped:
            await hub.command("chat:1", "cancel", target="m1", by="ann")
            await asyncio.sleep(1)
        found = await endings(hub), hub.runtime.scheduler.stats()["turns_running"]
        await hub.close()
        store.times = 0
    assert found == ([("by attempt 1", "cancelled" if is_stopped else "complete", None)], 0)
    runs_again = on_crash != "interrupt" and not is_stopped
    assert ran == [1, 2][: 1 + runs_again]
    assert ("had its answer before the crash" in caplog.text) == (not runs_again and not is_stopped)


@pytest.mark.parametrize("on_crash", ["interrupt", "restart", "continue"])
@virtually
async def test_answer_that_had_failed_before_the_crash_is_the_answer_until_it_is_regenerated(on_crash: Any) -> None:
    """The process died while the handler, whose block had raised, cleaned up."""
    store = MemoryStore()

    async def failing(turn: Turn) -> None:
        try:
            async with turn.reply() as message:
                await message.append(f"by attempt {turn.generation}")
                raise RuntimeError("quota")
        finally:
            await asyncio.sleep(1000 if turn.generation == 1 else 0)

    async for hub in lives(failing, 5, 5, store=store, on_crash=on_crash):
        assert [one[:2] for one in await endings(hub)] == [("by attempt 1", "failed")]
    hub = await hub_asked(failing, store=store, on_crash=on_crash)
    assert hub.runtime.scheduler.stats()["turns_running"] == 0
    await hub.command("chat:1", "regenerate", target="m1")
    await asyncio.sleep(5)
    assert [one[0] for one in await endings(hub)] == ["by attempt 1", "by attempt 129"]


async def long_at_first(turn: Turn) -> None:
    """Answer, which takes long in the first attempt."""
    async with turn.reply() as message:
        await message.append(f"by attempt {turn.attempt}")
        await asyncio.sleep(1000 if turn.attempt == 1 else 0)


async def one_after_the_other(turn: Turn) -> None:
    """Try another model in a second answer."""
    with contextlib.suppress(RuntimeError):
        async with turn.reply():
            raise RuntimeError("quota")
    await long_at_first(turn)


async def both_at_once(turn: Turn) -> None:
    """Ask two models at once."""

    async def second() -> None:
        await asyncio.sleep(1)
        async with turn.reply():
            raise RuntimeError("quota")

    await asyncio.gather(long_at_first(turn), second(), return_exceptions=True)


@pytest.mark.parametrize("handler", [one_after_the_other, both_at_once])
@virtually
async def test_answer_that_had_not_ended_is_taken_up_beside_one_that_had_failed(
    handler: Callable[[Turn], Awaitable[None]],
) -> None:
    """The process died five seconds after the question, and the next one completes the answer that was left."""
    async for hub in lives(handler, 5, 5):
        answers = await endings(hub)
    assert ("by attempt 2", "complete", None) in answers


@virtually
async def test_answer_that_its_first_writer_completes_while_the_next_attempt_waits_stays_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    await (await hub_asked(long_at_first, 0.5, store=store)).close()

    async def late(self: LocalBackend, channel: str, message_id: str) -> Writer:
        async with await self._hub.take_over(channel, message_id, author="bot") as writer:
            await writer.append(", and its end")
        return await self._hub.take_over(channel, message_id, author="bot")

    monkeypatch.setattr(LocalBackend, "take_over", late)
    hub = await hub_asked(long_at_first, 20, store=store)
    assert await endings(hub) == [("by attempt 1, and its end", "complete", None)]


@virtually
async def test_reply_that_has_left_memory_reaches_the_agent() -> None:
    hub, replies = new_hub(Slow(), limits=Limits(channel_bytes=2_000)), list[bool]()

    @hub.agent("c")
    async def bot(turn: Turn) -> None:
        replies.append((await turn.ask("approve", timeout_s=30.0)).ok)

    await hub.create("c", id="old", text="x" * 5_000)  # more than is kept in memory
    await asyncio.sleep(1)
    (pending,) = hub.channel("c").state.pending_commands()
    replying = asyncio.ensure_future(hub.reply("c", pending.command().id, ok=True))
    await asyncio.sleep(0.005)  # the reply is being stored
    free_memory(hub.runtime)
    await asyncio.gather(replying, hub.create("c", text="somebody else writes"))
    await asyncio.sleep(5)
    assert replies[:1] == [True]


@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@pytest.mark.parametrize("max_tries", [2, ATTEMPTS])
@pytest.mark.parametrize("numbers", [0, 1, 6])
@virtually
async def test_answers_of_a_turn_whose_processes_died_too_often_are_failed(
    on_crash: Any, max_tries: int, numbers: int
) -> None:
    """The last process finds an answer that the one before it has ended as interrupted."""
    store, seen = Failing(), list[int]()

    async def bot(turn: Turn) -> None:
        seen.append(turn.attempt)
        for _ in range(numbers):
            await (await turn.reply().open()).append("half ")
        await asyncio.sleep(10_000)

    async for hub in lives(bot, *[1] * ATTEMPTS, store=store, on_crash=on_crash, max_tries=max_tries):
        store.is_down = True  # this process dies
        await hub.close()
        store.is_down = False
    hub = new_hub(store)  # has no agent
    await hub.start()
    await asyncio.sleep(1)
    await hub.close()
    hub = await hub_asked(bot, 1, store=store, on_crash=on_crash, max_tries=max_tries)
    assert seen == list(range(1, max_tries + 1))
    text = "half " * (max_tries if on_crash == "continue" else 1)
    assert await endings(hub) == [(text if numbers else "", "failed", "crashed")] * max(1, numbers)
