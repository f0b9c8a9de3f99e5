"""Streams and answers that had ended when a process died: no model is asked again, and later steps run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tenuto.agents.running import Running
from tenuto.agents.turn import Turn
from tenuto.core.limits import Limits
from tenuto.core.model import Message
from tenuto.core.requests import SERVER, FinishMessage, TakeOver
from tenuto.sources import Piped, SoFar, UpstreamEnded, UpstreamError
from tenuto.stores.memory import MemoryStore
from tests.agents.test_turns import answers_of, hub_asked, lives, messages, new_hub
from tests.sources.test_tries import LONG, Model, ask_chat
from tests.sources.wires import CHAT_USAGE, chat_called, chat_end, chat_said
from tests.virtual import virtually

CALLED = [*chat_said("Let me look. "), *chat_called(), *chat_end("tool_calls")]


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("on_crash", ["restart", "continue"])
@virtually
async def test_what_follows_a_complete_answer_runs_and_nothing_is_asked_or_written_again(
    on_crash: Any, is_remote: bool
) -> None:
    model, piped, ran = Model(CALLED, [*chat_said("Sunny."), *chat_end()]), list[Piped](), list[str]()
    client = model.openai()

    def weather(city: str) -> str:
        ran.append(city)
        return "sunny"

    async def bill(turn: Turn) -> str:
        ran.append(f"bill {turn.attempt}")
        await asyncio.sleep(1e6 if turn.attempt == 1 else 0)
        return "billed"

    async def respond(turn: Turn) -> None:
        async with turn.reply(meta={"attempt": turn.attempt}) as message:
            piped.append(await message.pipe(ask_chat(client)))
            await turn.run_tools(piped[-1], {"weather": weather})
            async with message.attempt():
                await message.append("Here: ")
                part = await message.part({"type": "source", "url": "https://example.com"})
                await message.part({"type": "source", "url": "https://example.com/1"}, index=part)
            piped.append(await message.pipe(ask_chat(client)() if turn.attempt > 1 else ask_chat(client)))
            await message.update(meta={"attempt": turn.attempt})
            await message.flush()
            await message.check()
        ran.append(await turn.step("bill", bill, turn))
        async with turn.reply() as message:
            await message.append("Billed.")

    first, second = await answers_of(respond, on_crash, 30, 60, is_remote=is_remote)
    assert (first.text, first.status, first.meta["attempt"]) == ("Let me look. Here: Sunny.", "complete", 1)
    assert [part["type"] for part in first.parts] == ["text", "tool", "text", "source", "text"]
    assert (second.text, second.status, second.parent) == ("Billed.", "complete", first.id)
    assert ran == ["Oslo", "bill 1", "bill 2", "billed"]
    assert (len(model.asked), piped[2:]) == (2, piped[:2])
    assert (piped[0].tool_calls[0].arguments, piped[0].finish_reason) == ({"city": "Oslo"}, "tool_calls")
    assert first.meta["usage"]["output_tokens"] == 2 * CHAT_USAGE["output_tokens"]


@virtually
async def test_a_complete_answer_stays_if_the_handler_fails_or_goes_on_otherwise() -> None:
    asked = list[int]()

    async def stream(number: int) -> AsyncIterator[str]:
        asked.append(number)
        yield f"Text {number}."

    async def respond(turn: Turn) -> None:
        if turn.attempt == 3:
            raise RuntimeError("before the reply")
        async with turn.reply() as message:
            for number in range(turn.attempt):
                await message.pipe(stream(number))
        await asyncio.sleep(1e6)

    (answer,) = await answers_of(respond, "restart", 10, 10, 10)
    assert (answer.text, answer.status, asked) == ("Text 0.", "complete", [0])


@virtually
async def test_streams_at_once_and_those_that_were_changed_are_not_taken_for_others() -> None:
    asked = list[str]()

    async def stream(name: str) -> AsyncIterator[str]:
        asked.append(name)
        await asyncio.sleep(1)
        yield f"{name}. "

    async def respond(turn: Turn) -> None:
        names = ["a", "b"][:: 1 if turn.attempt == 1 else -1]
        async with turn.reply() as message:
            piped = await asyncio.gather(*[message.pipe(stream(name)) for name in names])
            assert [one.text for one in piped] == [f"{name}. " for name in names]
            assert (await message.pipe(stream("c"))).text == "c. "
            await message.part({"type": "text", "text": "C. "}, index=len(names))
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    await answers_of(respond, "continue", 10, 10)
    assert asked == ["a", "b", "c", "b", "a", "c"]


PIECES = (LONG, "It goes ", "on.")


@example(["pipe", "text"], [4])
@example(["pipe", "text", "source"], [4])
@example(["pipe", "show", "pipe", "text"], [4, 4])
@example(["pipe", "text", "pipe", "step", "text"], [8, 3])
@given(
    st.lists(st.sampled_from(["pipe", "pipe", "text", "source", "show", "step"]), min_size=1, max_size=6),
    st.lists(st.integers(1, 12), max_size=3),
)
def test_each_content_of_a_continued_answer_stands_once_wherever_its_processes_die(
    script: list[str], lives_s: list[int]
) -> None:
    script = ["pipe", *script]
    ended, asked = set[int](), list[int]()

    async def model(number: int, so_far: SoFar) -> AsyncIterator[str]:
        asked.append(number)
        assert number not in ended
        for piece in [f"({number}) ", *PIECES] if not so_far.text else ["".join(PIECES)[len(so_far.text) - 4 :]]:
            if piece:
                await asyncio.sleep(1)
                yield piece

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for number, kind in enumerate(script):
                if kind == "pipe":
                    piped = await message.pipe(
                        lambda so_far, number=number: model(number, so_far), source="text", on_break="continue"
                    )
                    assert piped.text == f"({number}) " + "".join(PIECES)
                    await message.flush()
                    if "text" not in script[:number] and "source" not in script[:number]:
                        ended.add(number)
                elif kind == "text":
                    await message.append(f"Text {number}. ")
                elif kind == "source":
                    await message.part({"type": "source", "url": f"https://example.com/{number}"})
                else:
                    await turn.step(f"step {number}", asyncio.sleep, 1, show=kind == "show")
                await message.flush()
                await asyncio.sleep(0.5)

    @virtually
    async def run() -> None:
        asked.clear()
        ended.clear()
        (answer,) = await answers_of(respond, "continue", *lives_s, 100)
        counted = [part for part in answer.parts if part["type"] != "attempt"]
        texts = {"pipe": "({}) " + "".join(PIECES), "text": "Text {}. "}
        assert answer.status == "complete", answer
        assert answer.text == "".join(texts[kind].format(n) for n, kind in enumerate(script) if kind in texts)
        assert [one["state"] for one in counted if one["type"] == "tool"] == ["done"] * script.count("show")
        assert sum(one["type"] == "source" for one in counted) == script.count("source")

    run()


async def said(*texts: str) -> AsyncIterator[str]:
    for text in texts:
        yield text


@pytest.mark.parametrize("is_asked_first", [False, True])
@virtually
async def test_a_message_behind_a_complete_answer_is_not_lost_in_it(is_asked_first: bool) -> None:
    """Such an answer takes no more text, so the message that waits for its turn gets one."""

    async def respond(turn: Turn) -> None:
        if is_asked_first and turn.attempt > 1:
            assert await turn.steered() == []
        async with turn.reply() as message:
            await message.pipe(said(f"To {turn.text}."))
            for steer in await turn.steered():
                await message.append(f" To {steer.text}.")
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt == 1 else 0)

    async for hub in lives(respond, 5, 30, hub={"drain_s": 0.01}):
        _, answer, *others = await messages(hub)
        if not others:
            await hub.create("chat:1", id="q2", text="two", parent=answer.id)
            await asyncio.sleep(5)
    assert [answer.text, *(one.text for one in others)] == ["To ?.", "two", "To two."]


@pytest.mark.parametrize("is_remote", [False, True])
@virtually
async def test_the_text_of_a_step_before_a_stream_that_has_ended_stays(is_remote: bool) -> None:
    asked = list[str]()

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:

            async def write(text: str) -> None:
                async def model(so_far: SoFar) -> AsyncIterator[str]:
                    asked.append(text)
                    yield text

                await message.pipe(model, on_break="continue", source="text")

            await turn.step("draft", write, "A draft.")
            await write(" An answer.")
            await message.append(" Signed.")
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    (answer,) = await answers_of(respond, "continue", 30, 60, is_remote=is_remote)
    assert (answer.text, answer.status) == ("A draft. An answer. Signed.", "complete")
    assert asked == ["A draft.", " An answer."]


@virtually
async def test_a_failed_attempt_before_the_good_one_does_not_keep_the_rest_of_the_turn() -> None:
    asked = list[int]()

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for number in range(2):
                with suppress(ValueError):
                    async with message.attempt():
                        asked.append(number)
                        await message.pipe(said(f"Try {number}."))
                        if not number:
                            raise ValueError("not good enough")
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt == 1 else 0)
        async with turn.reply() as message:
            await message.append("Billed.")

    first, second = await answers_of(respond, "restart", 30, 60)
    assert (first.text, second.text, second.status) == ("Try 1.", "Billed.", "complete")


@virtually
async def test_a_stream_that_ended_without_content_is_asked_for_again() -> None:
    asked = list[int]()

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            asked.append(turn.attempt)
            await message.pipe(said(*["Text."][: turn.attempt - 1]), source="text")
            await message.flush()
            await asyncio.sleep(1e6 if turn.attempt == 1 else 0)

    (answer,) = await answers_of(respond, "restart", 30, 60)
    assert (answer.text, answer.status, asked) == ("Text.", "complete", [1, 2])


@virtually
async def test_records_of_streams_leave_room_in_the_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.portal.STREAMED_BYTES", 1024)

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for _ in range(20):
                await message.pipe(said("Text. "))
            await message.update(meta={"own": "x" * 600})

    hub = await hub_asked(respond, 5, hub={"limits": Limits(meta_bytes=1024)})
    (answer,) = (await hub.history("chat:1", limit=1)).messages
    assert (answer.text, answer.status) == ("Text. " * 20, "complete")
    assert 600 < len(json.dumps(answer.meta["$piped"])) <= 768


@virtually
async def test_a_stream_behind_text_that_was_left_does_not_keep_that_text() -> None:
    """The third process knows that the rejected answer had ended, and must not show what stood before it."""

    async def model(text: str) -> AsyncIterator[str]:
        for piece in (f"({text}) ", "It ", "goes ", "on.", " End."):
            await asyncio.sleep(0.7)
            yield piece

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await turn.step("wait", asyncio.sleep, 1)
            with suppress(ValueError):
                async with message.attempt():
                    await message.pipe(model("bad"), source="text")
                    raise ValueError("not good enough")
            async with message.attempt():
                await message.pipe(lambda so_far: model("good"), source="text")

    (answer,) = await answers_of(respond, "continue", 6.1, 3.55, 3.72, 60)
    assert (answer.text, answer.status) == ("(good) It goes on. End.", "complete")


@virtually
async def test_a_stream_behind_an_attempt_that_was_replaced_does_not_keep_what_was_left() -> None:
    async def model() -> AsyncIterator[str]:
        for piece in ("Half ", "and half."):
            yield piece
            await asyncio.sleep(1)

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for number in range(2):
                with suppress(ValueError):
                    async with message.attempt():
                        await message.part({"type": "data", "name": "draft", "data": number})
                        if number == 0:
                            raise ValueError("not good enough")
            await message.pipe(model(), source="text")

    (answer,) = await answers_of(respond, "continue", 0.5, 60)
    assert (answer.text, answer.status) == ("Half and half.", "complete")


@virtually
async def test_an_answer_that_was_left_and_whose_next_meta_is_refused_ends_as_failed() -> None:
    async def respond(turn: Turn) -> None:
        async with turn.reply(meta={"note": "x" * (1 if turn.attempt == 1 else 100_000)}) as message:
            await message.append("left")
            await asyncio.sleep(60)

    (answer,) = await answers_of(respond, "continue", 0.5, 60)
    assert (answer.text, answer.status, answer.reason) == ("left", "failed", "too_large")


@pytest.mark.parametrize("end", ["before", "behind"])
@virtually
async def test_a_stream_whose_try_has_failed_does_not_get_what_the_next_one_wrote(end: str) -> None:
    async def preface(turn: Turn) -> AsyncIterator[str]:
        if turn.attempt == 1:
            raise ValueError("not now")
        yield "Preface. "

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            with suppress(ValueError):
                async with message.attempt():
                    await message.pipe(preface(turn), source="text")
            await message.pipe(lambda so_far: said("Answer."), source="text")
            await message.flush()
            if end == "before":
                await asyncio.sleep(1e6 if turn.attempt == 1 else 0)
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt == 1 else 0)
        async with turn.reply() as message:
            await message.append("Billed.")

    first, second = await answers_of(respond, "continue", 30, 60)
    assert first.text == ("Preface. Answer." if end == "before" else "Answer.")
    assert (second.text, second.status) == ("Billed.", "complete")


@pytest.mark.parametrize("caught", [UpstreamEnded, UpstreamError])
@virtually
async def test_a_stream_that_a_complete_answer_does_not_know_is_one_that_broke_off(caught: type[Exception]) -> None:
    found = list[str]()

    async def broken() -> AsyncIterator[str]:
        yield "Half. "
        raise caught("no more")

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            for _ in range(3):
                with suppress(caught):
                    await message.pipe(broken())
            await message.append("Sorry.")
        found.append(await turn.step("note", lambda: f"noted {turn.attempt}"))
        await turn.step("bill", asyncio.sleep, 1e6 if turn.attempt == 1 else 0)
        found.append("billed")

    (answer,) = await answers_of(respond, "restart", 30, 60)
    assert (answer.text, answer.status) == ("Half. " * 3 + "Sorry.", "complete")
    assert found == ["noted 1", "noted 1", "billed"]


@pytest.mark.parametrize("is_in_attempt", [False, True])
@virtually
async def test_a_handler_that_tries_for_ever_behind_a_complete_answer_ends_its_turn(is_in_attempt: bool) -> None:
    """Of two streams at once no later attempt can tell which one had ended."""
    calls = list[int]()

    async def slow() -> AsyncIterator[str]:
        await asyncio.sleep(1)
        yield "Text. "

    async def stubborn(turn: Turn, message: Any) -> None:
        while True:
            calls.append(turn.attempt)
            with suppress(Exception):
                async with message.attempt() if is_in_attempt else nullcontext():
                    await message.pipe(slow())
                    return

    async def respond(turn: Turn) -> None:
        if turn.text == "?":
            async with turn.reply() as message:
                await asyncio.gather(stubborn(turn, message), stubborn(turn, message))
            await turn.step("bill", asyncio.sleep, 1e6)
        async with turn.reply() as message:
            await message.append("Two.")

    async for hub in lives(respond, 0, 5, hub={"drain_s": 0.01}):
        await hub.create("chat:1", id="q2", text="two")
        await asyncio.sleep(5)
        texts, turn = [one.text for one in await messages(hub)], await hub.turn("chat:1", "m1")
    assert (texts, turn.state) == (["?", "two", "Text. Text. ", "Two."], "over")
    assert 2 < calls.count(2) < 1_100


@virtually
async def test_an_answer_that_was_taken_over_ends_as_the_one_that_a_person_stopped_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()

    async def respond(turn: Turn) -> None:
        async def write(message: Any) -> None:
            async with message:
                await message.append(f"Text {turn.attempt}.")
                await message.flush()
                await asyncio.sleep(1e6)

        await asyncio.gather(write(turn.reply()), write(turn.reply()))

    class Stopped(Running):
        """Another answer is stopped when the first one has been taken over."""

        async def _take_over(self, watch: Any, number: int, previous: Message) -> bool:
            if number == 1:
                await hub.ask("chat:1", previous.id, TakeOver(), SERVER)
                await hub.ask("chat:1", previous.id, FinishMessage(status="cancelled", generation=2), SERVER)
            return await super()._take_over(watch, number, previous)

    await (await hub_asked(respond, 5, store=store, hub={"drain_s": 0.01})).close()
    monkeypatch.setattr("tenuto.agents.local.Running", Stopped)
    hub = new_hub(store, drain_s=0.01)
    hub.agent("chat:*", name="bot")(respond)
    await hub.start()
    await asyncio.sleep(5)
    answers = [one for one in (await hub.history("chat:1")).messages if one.role == "assistant"]
    assert [one.status for one in answers] == ["cancelled", "cancelled"]
    assert (await hub.turn("chat:1", "m1")).is_cancelled


@virtually
async def test_the_usage_of_an_answer_that_the_server_has_ended_is_kept() -> None:
    """The handler takes longer to stop than the server waits for it."""

    async def respond(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Text.")
            try:
                await asyncio.sleep(1e6)
            finally:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(5)
                await message.update(meta={"usage": {"output_tokens": 7}})

    hub = await hub_asked(respond, 5)
    await hub.command("chat:1", "cancel", target="m1")
    await asyncio.sleep(20)
    (answer,) = (await hub.history("chat:1", limit=1)).messages
    assert (answer.status, answer.meta) == ("cancelled", {"usage": {"output_tokens": 7}})
