"""Turns that end early: cancelled while an answer is opened, ignoring a cancellation, cancelled by their own code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from tenuto import Hub
from tenuto.agents.turn import Turn
from tenuto.core.errors import Fenced, Finished
from tenuto.core.requests import SERVER, FinishMessage
from tenuto.portal import Writer
from tenuto.stores.base import Committed, Conflict, Write
from tests.agents.test_turns import Failing, hub_asked, lives, messages, new_hub, until_over
from tests.virtual import virtually


class Slow(Failing):
    """A store whose commits take a while, and fail while it is down."""

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        await asyncio.sleep(0.1)
        return await super().commit(writes)


async def endings(hub: Hub) -> list[tuple[str, str, str | None]]:
    """Return the text, the status and the reason of each answer."""
    return [(one.text, one.status, one.reason) for one in await messages(hub) if one.role == "assistant"]


@virtually
async def test_an_answer_that_is_stopped_while_it_is_opened_ends_cancelled() -> None:
    is_entered, begun = False, asyncio.Event()

    async def bot(turn: Turn) -> None:
        nonlocal is_entered
        begun.set()
        await asyncio.sleep(0.05)  # the command is being stored
        async with turn.reply():  # this create waits for the same commit
            is_entered = True

    hub = await hub_asked(bot, store=Slow())
    await begun.wait()
    await hub.command("chat:1", "cancel", target="m1")
    await asyncio.sleep(1.5)  # before the server carries out the cancel
    assert (await endings(hub), is_entered) == ([("", "cancelled", None)], False)
    assert hub.runtime.scheduler.stats()["turns_running"] == 0


@virtually
async def test_a_question_of_a_turn_that_is_stopped_while_it_is_being_stored_is_withdrawn() -> None:
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.flush()
            is_answering.set()
            await asyncio.sleep(0.05)  # the command is being stored
            await turn.ask("approve", timeout_s=3600)  # the question waits for the same commit

    is_answering = asyncio.Event()
    hub = await hub_asked(bot, store=Slow())
    await is_answering.wait()
    await hub.command("chat:1", "cancel", target="m1")
    await asyncio.sleep(10)
    turn = await hub.turn("chat:1", "m1")
    assert (turn.state, turn.is_cancelled, turn.questions) == ("over", True, [])


@pytest.mark.parametrize("has_begun", [False, True])
@virtually
async def test_a_handler_whose_question_is_asked_again_begins_no_further_answer(has_begun: bool) -> None:
    """The later round has begun, or waits for the end of the handler, which ignores its cancellation."""
    refusals, is_asked_again, late = list[str](), asyncio.Event(), list[asyncio.Task[None]]()

    async def go_on(turn: Turn) -> None:
        await is_asked_again.wait()
        try:
            async with turn.reply() as message:
                await message.append("further")
        except Fenced as error:
            refusals.append(str(error))

    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("answer")
        if turn.message.id != "m1" or late:
            return
        late.append(asyncio.create_task(go_on(turn)))
        while not (has_begun or late[0].done()):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(late)

    hub = await hub_asked(bot, 1)
    if not has_begun:
        await hub.command("chat:1", "cancel", target="m1")
        await asyncio.sleep(3)
    await hub.command("chat:1", "regenerate", target="m1")
    await asyncio.sleep(1)
    is_asked_again.set()
    await asyncio.sleep(1)
    later = "attempt 129 has followed" if has_begun else "it waits for a new answer (regenerate)"
    assert refusals == [f"attempt 1 cannot begin a further answer to message 'm1': {later}; end this handler"]
    assert await endings(hub) == [("answer", "complete", None)] * 2
    assert hub.runtime.scheduler.stats()["turns_running"] == 0


@pytest.mark.parametrize("is_down", [False, True])
@virtually
async def test_message_whose_opening_is_cancelled_is_ended_at_once_or_when_the_store_recovers(is_down: bool) -> None:
    """The store may fail for its end, and its writer has ended since."""
    store = Slow()
    hub = new_hub(store)
    opening = asyncio.ensure_future(hub.message("chat:1").open())
    await asyncio.sleep(0.05)
    opening.cancel()
    await asyncio.sleep(0.1)  # its creation is stored, and its end is being stored
    store.is_down = is_down
    await asyncio.wait([opening])
    assert opening.cancelled()
    await asyncio.sleep(30 if is_down else 0)
    assert await endings(hub) == [("", "streaming", None) if is_down else ("", "cancelled", None)]
    store.is_down = False
    await asyncio.sleep(5)
    assert await endings(hub) == [("", "interrupted", "writer_gone") if is_down else ("", "cancelled", None)]


@virtually
async def test_handler_that_ignores_its_cancellation_writes_no_more_and_keeps_its_slot_for_ten_seconds() -> None:
    """After two seconds the server ends the answer."""
    begun, refused = list[tuple[str, float]](), list[Finished]()
    is_over, release = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait_for(event: asyncio.Event) -> None:
        while not event.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await event.wait()

    async def bot(turn: Turn) -> None:
        begun.append((turn.text, loop.time()))
        async with turn.reply() as message:
            await message.append(turn.text)
            if turn.text == "?":
                await wait_for(is_over)
                await message.append("more")
                try:
                    await message.flush()
                except Finished as error:
                    refused.append(error)
                await wait_for(release)

    hub = await hub_asked(bot, slots=1)
    await hub.create("chat:1", text="next")
    await asyncio.sleep(1)
    stopped_s = loop.time()
    await hub.command("chat:1", "cancel", target="m1")
    await until_over(hub, 1)
    assert loop.time() - stopped_s <= 2.5
    is_over.set()
    found = await until_over(hub, 2)
    assert [(one.text, one.status) for one in found[2:]] == [("?", "cancelled"), ("next", "complete")]
    assert [text for text, _ in begun] == ["?", "next"]
    assert 9.0 < begun[1][1] - stopped_s < 11.0  # SHUTDOWN_S
    assert (hub.runtime.scheduler.stats()["turns_running"], len(refused)) == (0, 1)
    release.set()
    await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("how", "ends_as", "attempts"),
    [
        ("stop", ("cancelled", None), [1]),
        ("limit", ("failed", "timeout"), [1]),
        ("stop, caught", ("cancelled", None), [1]),
        ("limit, caught", ("failed", "timeout"), [1]),
        ("shutdown", ("complete", None), [1, 2]),
        ("lost", ("complete", None), [1, 2]),
        ("interrupted", ("complete", None), [1, 2]),
    ],
)
@virtually
async def test_a_handler_ends_with_its_group_of_tasks(
    how: str, ends_as: Any, attempts: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A handler may have caught its cancellation."""
    turns, ended, ends = list[Turn](), list[int](), iter([how, "none"])

    async def write(message: Writer) -> None:
        while True:
            await message.append("text ")
            await asyncio.sleep(0.5)

    async def clean_up() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            if how == "interrupted":
                raise ConnectionError("closed already")

    async def respond(turn: Turn) -> None:
        turns.append(turn)
        try:
            catching = contextlib.suppress(*[asyncio.CancelledError] * ("caught" in how))
            async with turn.reply() as message:
                with catching:
                    async with asyncio.TaskGroup() as tasks:
                        if turn.attempt == 1:
                            tasks.create_task(clean_up())
                            await write(message)
        finally:
            ended.append(turn.attempt)
        if how == "stop, caught":
            async with turn.reply() as farewell:
                await farewell.append("bye")

    async for hub in lives(respond, 2, 2, timeout_s=5 if "limit" in how else 3600):
        if "stop" in (end := next(ends)):
            await hub.command("chat:1", "cancel", target="m1")
        elif end == "lost":
            turns[0]._rests.__self__.stop(is_lost=True)  # type: ignore[attr-defined]
        elif end == "interrupted":
            await hub.ask("chat:1", turns[0].replies[0].id, FinishMessage(status="interrupted", generation=1), SERVER)
        await asyncio.sleep(0 if end == "shutdown" else 20)
        assert end == "shutdown" or len(ended) == len(turns)
    assert [one[1:] for one in await endings(hub)] == [ends_as, *[("complete", None)] * (how == "stop, caught")]
    assert [one.attempt for one in turns] == ended == attempts
    assert ("took more than 5 s" in caplog.text) == ("limit" in how)
