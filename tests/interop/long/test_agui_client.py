"""The real client of AG-UI (npm `@ag-ui/client`) against `AGUI`. It checks each event and their order itself."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from tenuto import Hub, Turn
from tenuto.interop import AGUI
from tests.interop.long.restarts import served
from tests.interop.pages import ROOT, Pages, pages_at
from tests.interop.test_agui import everything
from tests.transports.conftest import new_hub, serving

PACKAGE = Path(os.environ.get("TENUTO_AGUI", "")) / "@ag-ui" / "client"
SCRIPT = Path(__file__).parents[1] / "agui_page.mjs"
DOCUMENT = ROOT / "docs" / "agui.md"


class Scene:
    """A hub with the routes and one agent, whose `script` a test sets."""

    def __init__(self, hub: Hub, pages: Pages) -> None:
        self.hub = hub
        self.pages = pages
        self.gate = asyncio.Event()
        self.turns: list[Turn] = []

    async def script(self, turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello ")
            await self.gate.wait()
            await message.append(f"to {turn.text}")

    async def stored(self) -> list[str]:
        """Return the texts of the stored answers, oldest first."""
        page = await self.hub.history("chat:1", limit=200)
        return [one.text for one in page.messages[::-1] if one.role == "assistant"]

    async def ended(self, page: str, status: str = "finished") -> Any:
        state = await self.pages(page, "ended")
        assert (state["status"], state["warnings"]) == (status, []), state.get("error")
        return state


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    hub, app = new_hub(), FastAPI()
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")

    async def agent(turn: Turn) -> None:
        scene.turns.append(turn)
        await scene.script(turn)

    hub.agent("chat:*", name="agent")(agent)
    async with (
        serving(hub, app) as served,
        pages_at(f"http://127.0.0.1:{served.port}/api/agent", SCRIPT, PACKAGE) as pages,
    ):
        scene = Scene(hub, pages)
        yield scene


def texts(state: Any) -> list[str]:
    return [one["content"] for one in state["messages"] if one["role"] == "assistant" and one.get("content")]


async def test_aborted_run_is_joined_by_the_same_agent_and_by_new_ones(scene: Scene) -> None:
    pages = scene.pages
    await pages("a", "open", thread="1")
    await pages("a", "send", text="you", id="u")
    await pages("a", "saw", wanted="Hello ")
    state = await pages("a", "abort")
    assert (state["error"], texts(state)) == ("abort", ["Hello "])
    await pages("a", "run")  # over its own partial answer
    await pages("b", "open", thread="1", messages=[{"id": "u", "role": "user", "content": "you"}])
    await pages("b", "run")
    await pages("b", "saw", wanted="Hello ")
    await pages("c", "load", thread="1")
    await pages("c", "run")
    await pages("c", "saw", wanted="Hello ")
    scene.gate.set()
    states = [await scene.ended(name) for name in "abc"]
    assert [texts(state) for state in states] == [["Hello to you"]] * 3 == [await scene.stored()] * 3
    assert states[0]["messages"] == states[1]["messages"] == states[2]["messages"]
    assert len(scene.turns) == 1
    await pages("a", "run")
    assert texts(await scene.ended("a")) == ["Hello to you"]
    await pages("a", "send", text="two")
    await pages("a", "saw", wanted="to two")
    state = await scene.ended("a")
    assert texts(state) == await scene.stored() == ["Hello to you", "Hello to two"]
    assert state["messages"] == (await pages("d", "load", thread="1"))["messages"]


async def test_client_with_more_than_8_mib_of_messages_sends_the_last_ones_alone(scene: Scene) -> None:
    (program,) = re.findall(r"```js\n(class LastMessagesAgent.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert program in SCRIPT.read_text()
    pages, messages = scene.pages, list[Any]()
    for number in range(11):
        messages += [{"id": f"u{number}", "role": "user", "content": "you"}]
        messages += [{"id": f"a{number}", "role": "assistant", "content": "x" * 800_000}]
    scene.gate.set()
    for short in (False, True):
        name = "short" if short else "whole"
        await pages(name, "open", thread="1", messages=messages, short=short)
        await pages(name, "send", text="you", id="u")
        state = await pages(name, "ended")
        if short:
            assert (state["status"], texts(state)[-1]) == ("finished", "Hello to you")
        else:
            assert (state["status"], "send the messages from the last one" in state["error"]) == ("broken", True)


async def test_parts_of_all_types_are_accepted_live_on_a_reload_and_again(scene: Scene) -> None:
    async def script(turn: Turn) -> None:
        await everything(turn)
        async with turn.reply() as message:
            await message.append(" Three.")
            await scene.gate.wait()

    scene.script = script  # type: ignore[method-assign]
    pages = scene.pages
    await pages("a", "open", thread="1")
    await pages("a", "send", text="you", id="u")
    await pages("a", "saw", wanted="Three.")
    await pages("a", "abort")
    await pages("a", "run")
    await pages("b", "open", thread="1", messages=[{"id": "u", "role": "user", "content": "you"}])
    await pages("b", "run")
    await pages("b", "saw", wanted="Three.")
    scene.gate.set()
    for name in "ab":
        state = await scene.ended(name)
        assert state["result"] == {"model": "m"}
        assert "".join(texts(state)) == "".join(await scene.stored()) == "Look: 🙂Seven.Two. Three."
        results = [one["content"] for one in state["messages"] if one["role"] == "tool"]
        assert results == ['{"c": 7}', "no", "denied", "text"]
        assert {"name": "map", "value": [1]} in state["customs"]
        loaded = (await pages("c", "load", thread="1"))["messages"]
        assert [plain(one) for one in state["messages"]] == [plain(one) for one in loaded]


def plain(message: Any) -> Any:
    """Return a message without an empty text, which the client keeps in some orders of events."""
    return {name: value for name, value in message.items() if value != ""}


async def test_result_of_a_tool_of_the_page_reaches_the_agent_at_its_call(scene: Scene) -> None:
    async def script(turn: Turn) -> None:
        last = (await turn.history("openai"))[-1]
        async with turn.reply() as message:
            if last["role"] == "tool":
                await message.append(f"It is {last['content']} there.")
            else:
                name = str(turn.request.tools[0]["name"])
                await message.part(
                    {"type": "tool", "call": "c1", "name": name, "input": '{"of": "Ulm"}', "state": "called"}
                )

    scene.script = script  # type: ignore[method-assign]
    pages, tools = scene.pages, [{"name": "clock", "description": "The time.", "parameters": {"type": "object"}}]
    await pages("a", "open", thread="1", tools=tools)
    await pages("a", "send", text="How late?", id="u")
    (call,) = (await scene.ended("a"))["messages"][-1]["toolCalls"]
    assert call["function"] == {"name": "clock", "arguments": '{"of": "Ulm"}'}
    await pages("a", "reply", call=call["id"], content="noon")
    state = await scene.ended("a")
    assert texts(state) == ["It is noon there."]
    assert state["messages"] == (await pages("b", "load", thread="1", tools=tools))["messages"]
    await pages("b", "run")
    assert (await scene.ended("b"))["messages"] == state["messages"]
    assert [one["role"] for one in await scene.turns[1].history("openai")] == ["user", "assistant", "tool"]
    assert len(scene.turns) == 2


async def test_images_of_each_form_beside_a_text_reach_the_agent(scene: Scene) -> None:
    """Releases before 1.0 send `binary` as it is, later ones as `image`."""

    async def script(turn: Turn) -> None:
        received.extend(await turn.history("openai"))
        async with turn.reply() as message:
            await message.append("A cat.")

    received: list[Any] = []
    scene.script = script  # type: ignore[method-assign]
    source = {"value": "iVBORw0KGgo=", "mimeType": "image/png"}
    content = [
        {"type": "text", "text": "What?"},
        {"type": "binary", "mimeType": "image/png", "data": source["value"], "filename": "a.png"},
        {"type": "binary", "mimeType": "image/png", "url": "https://e.x/b.png"},
        {"type": "image", "source": {"type": "data", **source}},
    ]
    await scene.pages("a", "open", thread="1", messages=[{"id": "u", "role": "user", "content": content}])
    await scene.pages("a", "run")
    assert texts(await scene.ended("a")) == ["A cat."]
    inline = f"data:image/png;base64,{source['value']}"
    urls = [one["image_url"]["url"] for one in received[0]["content"] if one["type"] == "image_url"]
    assert (received[0]["content"][0]["text"], urls) == ("What?", [inline, "https://e.x/b.png", inline])


async def test_question_stop_failure_and_a_server_that_drains(scene: Scene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            reply = await turn.ask("choose", {"of": ["red", "blue"]})
            await message.append(f"{reply.data}!")

    pages = scene.pages
    script = scene.script
    scene.script = asks  # type: ignore[method-assign]
    await pages("a", "open", thread="1")
    await pages("a", "send", text="which")
    await pages("a", "asked", count=1)
    (question,) = scene.turns[0].open_questions
    await scene.hub.reply("chat:1", question, data="red")
    state = await scene.ended("a")
    assert (texts(state), [one["value"]["open"] for one in state["customs"]]) == (["red!"], [True, False])

    scene.script = script  # type: ignore[method-assign]
    for name in "bc":
        await pages(name, "open", thread="1")
        await pages(name, "send", text="you", id="u")
        await pages(name, "saw", wanted="Hello ")
    assert (await pages("b", "stop"))["result"] == 204
    for name in "bc":
        state = await scene.ended(name, "error")
        assert (state["error"], texts(state)) == ("cancelled", ["Hello "])

    async def fails(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("One.")
            raise RuntimeError("secret")

    scene.script = fails  # type: ignore[method-assign]
    await pages("d", "open", thread="1")
    await pages("d", "send", text="fail")
    await pages("d", "saw", wanted="One.")
    assert (await scene.ended("d", "error"))["error"] == "failed"

    scene.script = script  # type: ignore[method-assign]
    await pages("e", "open", thread="1")
    await pages("e", "send", text="drain")
    await pages("e", "saw", wanted="Hello ")
    draining = asyncio.ensure_future(scene.hub.drain())
    state = await pages("e", "ended")
    assert (state["status"], texts(state)) == ("broken", ["Hello "])
    await draining


async def test_run_of_a_server_that_is_killed_breaks_and_is_joined_after_the_restart(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    async with pages_at(f"http://127.0.0.1:{unused_tcp_port}/api/agent", SCRIPT, PACKAGE) as pages:
        async with served(tmp_path, unused_tcp_port) as server:
            await pages("a", "open", thread="1")
            await pages("a", "send", text="you", id="u")
            await pages("a", "saw", wanted="Hello ")
            server.kill()
            state = await pages("a", "ended")
            assert (state["status"], texts(state)) == ("broken", ["Hello "])
            await server.wait()
        (tmp_path / "go").touch()
        async with served(tmp_path, unused_tcp_port):
            await pages("a", "run")
            state = await pages("a", "ended")
            assert (state["status"], texts(state)) == ("finished", ["Hello to you"])
