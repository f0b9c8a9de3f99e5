"""The AI SDK's own client against `AISDK`: every final text of a page equals the stored one."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from tenuto import Turn
from tenuto.interop import AISDK
from tests.interop.pages import IS_STRICT, MAJOR, ROOT, Pages, pages_at, text_of
from tests.interop.scene import CALL, asks_where, chooses, lose, playing, with_question, writes
from tests.interop.test_adapter_routes import PageScene, user
from tests.transports.conftest import new_hub, serving

PAGES = ["docs/ai-sdk.md", "examples/use_chat/src/chat.tsx"]


@pytest.fixture
async def scene() -> AsyncIterator[PageScene]:
    adapter = partial(AISDK, channel="chat:{id}", version=MAJOR, strict=IS_STRICT, browser_tools=["place"])
    async with playing(PageScene, adapter, "/api/chat") as scene, pages_at(f"{scene.address}/api/chat") as scene.pages:
        yield scene


async def ask(pages: Pages, wanted: str, text: str = "you", **options: Any) -> None:
    """Ask in the page "a", and wait until it shows `wanted`, or the response is over."""
    await pages("a", "open", id="1", **options)
    await pages("a", "send", text=text)
    await pages("a", "shows", wanted=wanted)


async def join(pages: Pages, page: str, wanted: str, **options: Any) -> None:
    """Open a page that resumes, and wait until it shows the text `wanted`."""
    await pages(page, "open", id="1", load=True, resume=True, **options)
    await pages(page, "saw", wanted=wanted)


async def finished(pages: Pages, page: str) -> Any:
    state = await pages(page, "is", status="ready")
    assert (state["status"], state.get("error")) == ("ready", None)
    return state


async def test_page_sends_and_a_page_that_loads_later_has_the_whole_answer_too(scene: PageScene) -> None:
    pages = scene.pages
    await ask(pages, "Hello ")
    state = await pages("b", "open", id="1", load=True, resume=True)
    assert [one["role"] for one in state["messages"][:1]] == ["user"]
    await pages("b", "saw", wanted="Hello ")
    scene.gate.set()
    for name in "ab":
        state = await finished(pages, name)
        assert text_of(state) == "Hello to you"
        assert state["messages"] == await scene.loaded()
    assert len(scene.turns) == 1
    state = await pages("late", "open", id="1", load=True, resume=True)
    assert (state["messages"], (await finished(pages, "late"))["requests"]) == (await scene.loaded(), 1)


async def test_page_that_loads_and_resumes_at_any_two_moments_of_a_turn_has_the_whole_answer(scene: PageScene) -> None:
    words = ["Hello ", "to ", "you"]
    begin, end = 0, len(words) + 1  # before the first token; after the turn
    both = asyncio.Barrier(2)

    async def stepwise(turn: Turn) -> None:
        async with turn.reply() as message:
            for word in [*words, ""]:
                await both.wait()
                await message.append(word)
                await message.flush()
                await both.wait()

    async def step(moment: int) -> None:
        for _ in range(2):
            await both.wait()
        while moment == end and (await scene.hub.turn("chat:1", "u")).state != "over":  # noqa: ASYNC110 - at once
            await asyncio.sleep(0)

    seeded = random.Random(16)
    drawn = [sorted((seeded.randint(begin, end), seeded.randint(begin, end))) for _ in range(6)]
    moments = [(begin, begin), (begin, end), (end - 1, end), (end, end), *map(tuple, drawn)]
    scene.script = stepwise
    await scene.hub.create("chat:1", id="u", text="you")
    await scene.served.until(lambda: scene.turns)
    for moment in range(begin, end + 1):
        for number, (loads, resumes) in enumerate(moments):
            if loads == moment:
                await scene.pages(f"page{number}", "open", id="1", load=True)
            if resumes == moment:
                await scene.pages(f"page{number}", "resume")
        if moment < end:
            await step(moment + 1)
    loaded = await scene.loaded()
    for number, at in enumerate(moments):
        state = await scene.pages(f"page{number}", "resumed")
        assert (at, state["status"], state["messages"]) == (at, "ready", loaded)
    assert [part.get("text") for part in loaded[1]["parts"]] == [None, "Hello to you"]


async def test_the_stop_route_stops_all_tabs_with_the_same_text(scene: PageScene) -> None:
    pages = scene.pages
    await ask(pages, "Hello ")
    await join(pages, "b", "Hello ")
    assert (await pages("b", "stop"))["result"] == 204
    for name in "ab":
        state = await finished(pages, name)
        assert text_of(state) == "Hello "
        assert state["messages"] == await scene.loaded()
    assert [one.status for one in await scene.answers()] == ["cancelled"]
    assert (await pages("b", "stop"))["result"] == 204


@pytest.mark.parametrize("file", PAGES)
async def test_page_goes_on_after_photos_and_after_a_question_that_never_arrived(scene: PageScene, file: str) -> None:
    """Both photos are more than a request may have."""
    found = re.search(r"prepareSendMessagesRequest: (.*?\n  \}),$", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)
    photo = {"type": "file", "mediaType": "image/png", "url": f"data:image/png;base64,{'A' * 4_200_000}"}
    scene.gate.set()
    await scene.pages("a", "open", id="1", prepare=found and found[1])
    for text in ("one", "two"):
        await scene.pages("a", "send", parts=[photo, {"type": "text", "text": text}])
        await scene.pages("a", "settled")
    await scene.pages("a", "send", text="lost", options={"headers": {"not a name": ""}})
    assert (await scene.pages("a", "settled"))["status"] == "error"
    await scene.pages("a", "send", text="three", options={"body": {"temperature": 0.5}})
    await finished(scene.pages, "a")
    asked = [one["content"] for one in await scene.turns[-1].history() if one["role"] == "user"]
    assert [one.split()[-1] for one in asked] == ["one", "two", "lost", "three"]
    assert scene.turns[-1].request.temperature == 0.5


async def test_regenerate_and_edit_branch_and_the_next_turn_follows_them(scene: PageScene) -> None:
    pages = scene.pages
    scene.gate.set()
    await ask(pages, "to one", "one")
    first = (await finished(pages, "a"))["messages"]
    await pages("a", "regenerate")
    await scene.served.until(lambda: len(scene.turns) == 2)
    await pages("a", "saw", wanted="to one")
    again = (await finished(pages, "a"))["messages"]
    assert again[0] == first[0]
    assert again[1]["id"] != first[1]["id"]
    assert again == await scene.loaded()
    await pages("a", "send", text="two", messageId=first[0]["id"])
    await pages("a", "saw", wanted="to two")
    assert [one["parts"][-1]["text"] for one in (await finished(pages, "a"))["messages"]] == ["two", "Hello to two"]
    await pages("a", "send", text="three")
    await pages("a", "saw", wanted="to three")
    await finished(pages, "a")
    assert [one["content"] for one in await scene.turns[-1].history()] == ["two", "Hello to two", "three"]
    await pages("b", "open", id="1", load=True)
    texts = [one["parts"][-1]["text"] for one in (await pages("b", "state"))["messages"]]
    assert texts == ["two", "Hello to two", "three", "Hello to three"]
    assert len(scene.turns) == 4


def plain(messages: Any) -> Any:
    """Return messages without the fields of a failed call that depend on the release and the moment of a reload."""
    for message in messages:
        for part in message["parts"]:
            part.pop("rawInput", None)
            if IS_STRICT:
                part.pop("providerExecuted", None)
    return messages


@pytest.mark.parametrize("end", ["failed", "failed call", "failed at once", "silent", "two"])
async def test_failed_silent_and_double_answers_are_loaded_as_the_page_built_them(scene: PageScene, end: str) -> None:
    async def ends(turn: Turn) -> None:
        if end == "silent":
            return
        if end == "failed at once":
            raise RuntimeError("secret")
        async with turn.reply(meta={"model": "m"}) as message:
            await message.append("One.")
            if end == "failed call":
                await message.part({**CALL, "state": "called"})
            if end != "two":
                raise RuntimeError("secret")
        async with turn.reply() as message:
            await message.append("Two.")

    scene.script = ends
    pages = scene.pages
    await ask(pages, "the end")
    status = "error" if end.startswith("failed") else "ready"
    state = await pages("a", "is", status=status)
    assert (state["status"], "secret" in state.get("error", "")) == (status, False)
    assert text_of(state) == {"silent": "", "failed at once": "", "two": "One.Two."}.get(end, "One.")
    assert plain(state["messages"]) == plain(await scene.loaded())
    assert [one["role"] for one in state["messages"]] == ["user", "assistant"]
    await pages("b", "open", id="1", load=True, resume=True)
    assert plain((await pages("b", "resumed"))["messages"]) == plain(await scene.loaded())


def tool_of(state: Any) -> Any:
    """Return the part of the last call in a page's last message."""
    return [one for one in state["messages"][-1]["parts"] if one["type"].startswith("tool-")][-1]


@pytest.mark.skipif(MAJOR < 6, reason="pages of version 5 know no approvals")
@pytest.mark.parametrize(("answering", "is_approved"), [("a", True), ("b", False)], ids=["same page", "reloaded page"])
async def test_approval_ends_the_response_and_the_next_request_goes_on(
    scene: PageScene, answering: str, is_approved: bool
) -> None:
    scene.script = with_question
    pages = scene.pages
    await ask(pages, "May I?", sendsOn=True)
    state = await finished(pages, "a")
    assert tool_of(state)["state"] == "approval-requested"
    approval = tool_of(state)["approval"]["id"]
    await join(pages, "b", "May I?", sendsOn=True)
    assert tool_of(await finished(pages, "b")) == tool_of(state)
    late = "b" if answering == "a" else "a"
    outcome = "Seven." if is_approved else "No: too far."
    await pages(answering, "approve", id=approval, approved=is_approved, reason="too far")
    await pages(answering, "saw", wanted=outcome)
    state = await finished(pages, answering)
    await pages(late, "approve", id=approval, approved=not is_approved, reason="late")
    await pages(late, "saw", wanted=outcome)
    assert text_of(state) == text_of(await finished(pages, late)) == f"May I? {outcome}"
    assert [step_of(one) for one in await scene.loaded()] == [step_of(one) for one in state["messages"]]
    assert (await scene.answers())[0].parts[1]["state"] == ("done" if is_approved else "denied")
    for name in "ab":
        state = await pages(name, "state")
        assert state["requests"] == 2
        assert tool_of(state)["state"] == ("output-available" if is_approved else "output-denied")
    assert len(scene.turns) == 1


@pytest.mark.skipif(MAJOR < 6, reason="pages of version 5 know no approvals")
@pytest.mark.parametrize("is_approved", [True, False], ids=["yes", "no"])
async def test_loaded_messages_equal_those_of_a_page_with_any_kind_of_part(scene: PageScene, is_approved: bool) -> None:
    async def all_kinds(turn: Turn) -> None:
        async with turn.reply(meta={"model": "m"}) as message:
            await message.update(meta={"$responses": [["", 0, "resp_1", 0, {}]]})  # a later attempt could attach to it
            await message.append("First. ")
            await message.part({"type": "reasoning", "text": "Hm."})
            await message.append("Still the first.")  # in the same step: in a later one it is a text of its own there
            calls = [await message.part({**CALL, "call": f"parallel{one}", "state": "called"}) for one in range(2)]
            for one, index in enumerate(calls):
                await message.flush()
                ended = {"state": "error", "output": "no"} if one else {"state": "done", "output": 6}
                await message.part({**CALL, "call": f"parallel{one}", **ended}, index=index)
            await message.part({"type": "source", "url": "https://example.com/"})
            await message.part({"type": "text", "text": "May I?"})
            index = await message.part({**CALL, "state": "called"})
            is_ok = (await turn.ask("approve", {"call": "c1"})).ok
            await scene.gate.wait()
            if is_ok:
                await message.part({**CALL, "state": "done", "output": {"c": 7}}, index=index)
            await message.part({"type": "text", "text": "Last."})
            await message.part({"type": "data", "name": "place", "data": {"x": 1}})

    scene.script = all_kinds
    pages = scene.pages
    await pages("a", "open", id="1", sendsOn=True)
    await pages("a", "send", text="you", metadata={"from": "a"})
    await pages("a", "saw", wanted="May I?")
    approval = tool_of(await finished(pages, "a"))["approval"]["id"]
    await pages("a", "approve", id=approval, approved=is_approved, reason="why")
    await scene.served.until(lambda: scene.hub.channel("chat:1").feeds)
    await join(pages, "resumed", "May I?", sendsOn=True)
    scene.gate.set()
    for page in ("a", "resumed"):
        await pages(page, "saw", wanted="Last.")
        state = await finished(pages, page)
        if page == "a" or (MAJOR >= 7 and not IS_STRICT):
            assert plain(state["messages"]) == plain(await scene.loaded())
        assert [one["metadata"] for one in state["messages"]] == [{"from": "a"}, {"model": "m"}]
        assert state["requests"] == (2 if page == "a" else 1)


def step_of(message: Any) -> Any:
    """Return the outline of a message: its parts without the details of an approval, which a reload does not know."""
    names = ("type", "text", "toolCallId", "state", "input", "output")
    return message["id"], [{name: part[name] for name in names if name in part} for part in message["parts"]]


async def test_result_for_which_the_agent_does_not_ask_ends_with_how_it_asks(scene: PageScene) -> None:
    scene.script = writes("Where? ", {**CALL, "name": "place", "state": "called"})
    await ask(scene.pages, "Where?", sendsOn=True, tool="place")
    state = await scene.pages("a", "is", status="error")
    assert (state["calls"], state["requests"], len(scene.turns)) == (["c1"], 2, 1)
    assert state["error"].startswith('the agent did not ask, with turn.ask(…, {"call": …}), or')
    assert (await scene.http.get("/api/chat/1/stream")).status_code == 204  # a replay would run the call again


@pytest.mark.parametrize("is_reloaded", [False, True], ids=["same page", "reloaded page"])
async def test_tool_in_the_page_runs_once_and_the_turn_goes_on(scene: PageScene, is_reloaded: bool) -> None:
    scene.script = asks_where
    pages = scene.pages
    await ask(pages, "Where?", sendsOn=True, tool=None if is_reloaded else "place")
    name = "b" if is_reloaded else "a"
    if is_reloaded:
        await finished(pages, "a")
        await pages("b", "open", id="1", load=True, resume=True, sendsOn=True, tool="place")
    await pages(name, "saw", wanted="Here: {'here': True}.")
    state = await finished(pages, name)
    assert text_of(state) == "Where? Here: {'here': True}."
    assert (state["calls"], state["requests"]) == (["c1"], 2)
    assert [step_of(one) for one in state["messages"]] == [step_of(one) for one in await scene.loaded()]
    await pages("c", "open", id="1", load=True, resume=True, sendsOn=True, tool="place")
    assert (await finished(pages, "c"))["calls"] == []
    assert len(scene.turns) == 1


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        *(("place", moment) for moment in ("before the request", "in its response", "after more text")),
        *([("weather", "in its response")] if MAJOR >= 6 else []),
    ],
)
async def test_attempt_in_which_a_page_was_asked_is_taken_back_from_the_page_too(
    scene: PageScene, name: str, moment: str
) -> None:
    goes, is_again = asyncio.Event(), asyncio.Event()

    async def fails_once(turn: Turn) -> None:
        async with turn.reply() as message:
            with suppress(ZeroDivisionError):
                async with message.attempt():
                    await message.part({**CALL, "name": name, "state": "called"})
                    await turn.ask("approve", {"call": "c1"})
                    await goes.wait()
                    if moment == "after more text":
                        await message.part({"type": "text", "text": "Yes"})
                        await scene.gate.wait()
                    raise ZeroDivisionError
            await message.append("Again.")
            await message.flush()
            is_again.set()
            await scene.gate.wait()

    scene.script = fails_once
    pages = scene.pages
    await ask(pages, "c1", sendsOn=True)
    tool = tool_of(await finished(pages, "a"))
    if moment == "before the request":  # another tab was faster
        (question,) = await scene.hub.pending_commands("chat:1")
        await scene.hub.reply("chat:1", question.id)
        goes.set()
        await is_again.wait()
    if name == "place":
        await pages("a", "output", tool=name, toolCallId="c1", output=7)
    else:
        await pages("a", "approve", id=tool["approval"]["id"], approved=True)
    await pages("a", "asks", requests=2)
    goes.set()
    if moment == "after more text":
        await pages("a", "saw", wanted="Yes")
        scene.gate.set()
    state = await pages("a", "is", status="error")
    assert "load the messages again" in state["error"]
    assert "Again." not in str(state["messages"])
    await pages("a", "open", id="1", load=True, resume=True)
    scene.gate.set()
    state = await pages("a", "resumed")
    assert (text_of(state), state["messages"]) == ("Again.", await scene.loaded())


async def test_other_questions_are_data_and_the_response_stays_open(scene: PageScene) -> None:
    scene.script = chooses
    pages = scene.pages
    await pages("a", "open", id="1")
    await pages("a", "send", text="you")
    await scene.served.until(lambda: scene.turns and scene.turns[0]._watch.commands())
    (question,) = [one.id for one in scene.turns[0]._watch.commands()]
    await scene.hub.reply("chat:1", question, data="red")
    await pages("a", "saw", wanted="red!")
    state = await finished(pages, "a")
    (part,) = (one for one in state["messages"][-1]["parts"] if one["type"] == "data-question")
    assert (part["id"], part["data"]["open"], part["data"]["reply"]) == (question, False, "red")
    assert text_of(state) == "Which? red!"


@pytest.mark.skipif(MAJOR < 6, reason="pages of version 5 know no approvals")
async def test_page_with_the_approval_of_another_question_sends_it_once_and_may_still_approve(scene: PageScene) -> None:
    scene.script = with_question
    pages = scene.pages
    await ask(pages, "May I?", sendsOn=True)
    own = tool_of(await finished(pages, "a"))["approval"]["id"]
    other = await scene.hub.command("chat:1", "approve", data={"call": "c1"})
    for requests, id in enumerate([other.id, "unknown"], start=2):
        await pages("a", "forge", id=id)
        await pages("a", "approve", id=id, approved=True)
        await pages("a", "asks", requests=requests)
        state = await finished(pages, "a")
        assert (tool_of(state)["state"], state["requests"]) == ("approval-requested", requests)
    assert {one.id for one in await scene.hub.pending_commands("chat:1")} == {own, other.id}
    await pages("a", "approve", id=own, approved=True)
    await pages("a", "saw", wanted="Seven.")
    assert (await finished(pages, "a"))["requests"] == 4


async def test_page_runs_two_calls_with_the_same_id_one_after_the_other(scene: PageScene) -> None:
    outputs: list[Any] = []

    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            for _ in range(2):
                call = {**CALL, "call": "call_0", "name": "place"}
                index = await message.part({**call, "state": "called"})
                outputs.append((await turn.ask("place", {"call": "call_0"})).data)
                await message.part({**call, "state": "done", "output": outputs[-1]}, index=index)

    scene.script = asks
    parts: list[Any] = []
    last: Any = user()
    for number in range(3):
        text = (await scene.served.http.post("/api/chat", json={"id": "1", "message": last})).text
        assert text.count('"tool-input-available"') == (number < 2)
        finish, done, _ = text.split("\n\n")[-3:]
        assert (json.loads(finish.removeprefix("data: "))["type"], done) == ("finish", "data: [DONE]")
        parts.append({"type": "tool-place", "toolCallId": "call_0", "state": "output-available", "output": number})
        last = {"id": (await scene.hub.turn("chat:1", "u")).answers[0].id, "role": "assistant", "parts": parts}
    assert outputs == [0, 1]


@pytest.mark.skipif(IS_STRICT, reason="such a page loads the messages")
@pytest.mark.parametrize("file", PAGES)
async def test_page_resumes_after_a_superseded_attempt_and_no_other_error(scene: PageScene, file: str) -> None:
    async def fails_twice(turn: Turn) -> None:
        async with turn.reply() as message:
            done = {**CALL, "state": "done", "output": 7}  # pages of version 7 take back one step alone
            await lose(message, scene.gate, done, {"type": "text", "text": "Lost"})
            await message.append("Again.")
            raise RuntimeError

    scene.script = fails_twice
    on_error = re.search(r"onError: (.*),$", (ROOT / file).read_text(), re.MULTILINE)
    await ask(scene.pages, "Lost", onError=on_error and on_error[1])
    scene.gate.set()
    await scene.pages("a", "saw", wanted="Again.")
    state = await scene.pages("a", "is", status="error")
    assert (text_of(state), state["error"][:12], state["requests"]) == ("Again.", "RuntimeError", 2)


async def test_text_that_is_replaced_ends_the_stream_as_an_error_and_shows_after_a_reload(scene: PageScene) -> None:
    scene.script = scene.replaces
    pages = scene.pages
    await ask(pages, "Hello ")
    scene.gate.set()
    assert text_of(await pages("a", "is", status="error")) == "Hello "  # no mixture of the two texts
    await scene.served.until(lambda: not scene.hub.runtime.scheduler.stats()["turns_running"])
    await pages("b", "open", id="1", load=True)
    assert text_of(await pages("b", "state")) == "Another text words"


@pytest.mark.skipif(IS_STRICT, reason="the style has all optional fields")
async def test_endpoint_that_calls_its_model_itself_serves_a_page_also_an_error_of_the_model() -> None:
    hub, app, gate, calls = new_hub(), FastAPI(), asyncio.Event(), list[str]()
    hub.install(app, "/tenuto")

    async def words() -> AsyncIterator[str]:
        calls.append("model")
        yield "Hello "
        await gate.wait()
        if len(calls) > 1:
            raise RuntimeError("secret")
        yield "to you"

    @app.post("/api/own")
    async def own(request: Request) -> Response:
        message = (await request.json())["messages"][-1]
        text = message["parts"][0]["text"]
        return hub.stream_response("chat:1", words, prompt=text, reply_id=f"{message['id']}-r", style="ai-sdk")

    async with serving(hub, app) as served, pages_at(f"http://127.0.0.1:{served.port}/api/own") as pages:
        await ask(pages, "Hello ")
        body = {"messages": (await pages("a", "state"))["messages"][:1]}
        async with served.http.stream("POST", "/api/own", json=body) as repeated:
            gate.set()
            lines = [line async for line in repeated.aiter_lines()]
        state = await finished(pages, "a")
        assert text_of(state) == "Hello to you"
        deltas = [json.loads(line[6:])["delta"] for line in lines if '"text-delta"' in line]
        assert ("".join(deltas), lines[-2], calls) == ("Hello to you", "data: [DONE]", ["model"])
        (answer,) = [one for one in (await hub.history("chat:1")).messages if one.role == "assistant"]
        assert (answer.id, answer.text) == (state["messages"][-1]["id"], "Hello to you")
        await pages("a", "send", text="again")
        state = await pages("a", "is", status="error")
        assert (text_of(state), "secret" in state["error"]) == ("Hello ", False)
