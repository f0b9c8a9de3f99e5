"""What applications import for their tests: the scripted model, and waiting for an answer."""

from __future__ import annotations

import asyncio
import re

import pytest

from tenuto import Hub, Turn
from tenuto.core.errors import Draining, LocalError
from tenuto.testing import ScriptedModel, wait_for_answer
from tests.virtual import closed_later, virtual_clock, virtually


def answering(model: ScriptedModel) -> Hub:
    """Return a hub whose agent answers with `model`."""
    hub = closed_later(Hub("memory://", hooks_signals=False, drain_s=0.0, clock=virtual_clock()))

    @hub.agent("chat:*")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.pipe(model(turn.text))

    return hub


@virtually
async def test_answers_of_a_script_come_one_by_one() -> None:
    model = ScriptedModel("Hello, Ann.", ["Good", "bye", "."], "Bye", ["x" * 3_000_000], ["half", RuntimeError("away")])
    hub = answering(model)
    await hub.create("chat:1", text="Hi?", role="user")
    assert (await wait_for_answer(hub, "chat:1")).text == "Hello, Ann."
    question = await hub.create("chat:1", text="Bye?", role="user")
    answer = await wait_for_answer(hub, "chat:1", question.id)
    assert (answer.text, answer.status, answer.reply_to) == ("Goodbye.", "complete", question.id)
    await hub.command("chat:1", "regenerate", target=question.id)  # the turn is over
    assert (await wait_for_answer(hub, "chat:1")).text == "Bye"
    await hub.create("chat:1", text="All?", role="user")
    assert len((await wait_for_answer(hub, "chat:1")).text) == 3_000_000  # a page of the history ends behind it
    await hub.create("chat:1", text="Well?", role="user")
    answer = await wait_for_answer(hub, "chat:1")
    assert (answer.text, answer.status) == ("half", "failed")
    assert model.asked == ["Hi?", "Bye?", "Bye?", "All?", "Well?"]
    with pytest.raises(LocalError, match="the script has no reply to call 6"):
        await anext(model())


@virtually
async def test_wait_without_an_answer_names_the_messages_of_the_channel() -> None:
    hub = closed_later(Hub("memory://", hooks_signals=False, drain_s=0.0, clock=virtual_clock()))
    with pytest.raises(TimeoutError, match=r"with an answer within 0\.5 s; its state: none; the newest messages: none"):
        await wait_for_answer(hub, "chat:1", timeout_s=0.5)
    question = await hub.create("chat:1", text="Hi?", role="user")
    with pytest.raises(TimeoutError, match=re.escape(f"none; the newest messages: user '{question.id}' complete")):
        await wait_for_answer(hub, "chat:1", question.id)
    refusal, _ = await asyncio.gather(wait_for_answer(hub, "chat:1", question.id), hub.close(), return_exceptions=True)
    assert (type(refusal), hub.is_running) == (Draining, False)  # the hub has closed meanwhile


@virtually
async def test_wait_goes_on_with_a_newer_question_and_lasts_as_long_as_the_handler() -> None:
    hub = closed_later(Hub("memory://", hooks_signals=False, drain_s=30.0, clock=virtual_clock()))

    @hub.agent("chat:*")
    async def assistant(turn: Turn) -> None:
        if turn.text:
            async with turn.reply() as message:
                await message.append("Hello")
            await asyncio.sleep(20)

    await hub.create("chat:1", text="", role="user")  # gets no answer
    waiting = asyncio.ensure_future(wait_for_answer(hub, "chat:1", timeout_s=30))
    await asyncio.sleep(1)
    question = await hub.create("chat:1", text="Hi?", role="user")
    with pytest.raises(TimeoutError, match=r"10 s; its state: running; the newest messages: assistant .* complete"):
        await wait_for_answer(hub, "chat:1", question.id)
    assert (await asyncio.gather(waiting, hub.close()))[0].text == "Hello"  # the drain waits for the handler
