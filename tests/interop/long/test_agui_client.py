"""The real client of AG-UI (npm `@ag-ui/client`) against `AGUI`. It checks each event and their order itself."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tenuto import Turn
from tests.interop.pages import ROOT, pages_at
from tests.interop.scene import Scene, playing
from tests.interop.test_agui import adapter, everything

PACKAGE = Path(os.environ.get("TENUTO_AGUI", "")) / "@ag-ui" / "client"
SCRIPT = Path(__file__).parents[1] / "agui_page.mjs"
DOCUMENT = ROOT / "docs" / "agui.md"


class ClientScene(Scene):
    async def stored(self) -> list[str]:
        """Return the texts of the stored answers, oldest first."""
        page = await self.hub.history("chat:1", limit=200)
        return [one.text for one in page.messages[::-1] if one.role == "assistant"]

    async def ended(self, page: str, status: str = "finished") -> Any:
        state = await self.pages(page, "ended")
        assert (state["status"], state["warnings"]) == (status, []), state.get("error")
        return state


@pytest.fixture
async def scene() -> AsyncIterator[ClientScene]:
    async with (
        playing(ClientScene, adapter, "/api/agent") as scene,
        pages_at(f"{scene.address}/api/agent", SCRIPT, PACKAGE) as scene.pages,
    ):
        yield scene


def texts(state: Any) -> list[str]:
    return [one["content"] for one in state["messages"] if one["role"] == "assistant" and one.get("content")]


async def test_aborted_run_is_joined_by_the_same_agent_and_by_new_ones(scene: ClientScene) -> None:
    pages = scene.pages
    await pages("a", "open", thread="1")
    await pages("a", "send", text="you", id="u")
    await pages("a", "saw", wanted="Hello ")
    state = await pages("a", "abort")
    assert (state["error"], texts(state)) == ("abort", ["Hello "])
    await pages("a", "run")  # over its own partial answer
    (program,) = re.findall(r"```js\n(class LastMessagesAgent.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert program in SCRIPT.read_text()
    await pages("b", "open", thread="1", messages=[{"id": "u", "role": "user", "content": "you"}], short=True)
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


async def test_parts_of_all_types_are_accepted_live_on_a_reload_and_again(scene: ClientScene) -> None:
    async def script(turn: Turn) -> None:
        await everything(turn)
        async with turn.reply() as message:
            await message.append(" Three.")
            await scene.gate.wait()

    scene.script = script
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
        assert state["result"] == {"model": "m", "$theme": "dark"}
        assert "".join(texts(state)) == "".join(await scene.stored()) == "Look: 🙂Seven.Two. Three."
        results = [one["content"] for one in state["messages"] if one["role"] == "tool"]
        assert results == ['{"c": 7}', "no", "denied", "text"]
        assert {"name": "map", "value": [1]} in state["customs"]
        loaded = (await pages("c", "load", thread="1"))["messages"]
        assert [plain(one) for one in state["messages"]] == [plain(one) for one in loaded]


async def test_approval_is_an_event_and_the_run_goes_on_after_the_reply_at_the_hub(scene: ClientScene) -> None:
    async def asks(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.part({"type": "tool", "call": "c1", "name": "buy", "input": "{}", "state": "called"})
            await message.append("May I? ")
            await message.append("Bought." if (await turn.ask("approve", {"call": "c1"})).ok else "Left.")

    scene.script = asks
    await scene.pages("a", "open", thread="1")
    await scene.pages("a", "send", text="you", id="u")
    ((name, asked),) = [one.values() for one in (await scene.pages("a", "asked"))["customs"]]
    assert (name, asked["name"], asked["data"], asked["open"]) == ("tenuto.question", "approve", {"call": "c1"}, True)
    await scene.http.post(f"/tenuto/v1/channels/chat:1/commands/{asked['id']}/reply", json={"ok": True})
    state = await scene.ended("a")
    assert (texts(state), state["customs"][-1]["value"]["ok"]) == (["May I? Bought."], True)


def plain(message: Any) -> Any:
    """Return a message without an empty text, which the client keeps in some orders of events."""
    return {name: value for name, value in message.items() if value != ""}


async def test_binary_content_beside_text_is_a_file_and_a_page_that_loads_it_joins_the_turn(scene: ClientScene) -> None:
    png = {"type": "binary", "mimeType": "image/png", "data": "iVBORw0KGgo=", "filename": "a.png"}
    pdf = {"type": "binary", "mimeType": "application/pdf", "url": "https://e.x/b.pdf"}
    pages = scene.pages
    scene.gate.set()
    await pages("a", "open", thread="1")
    await pages("a", "send", content=[{"type": "text", "text": "What?"}, png, pdf], id="u")
    built = await scene.ended("a")
    assert scene.turns[0].message.parts == [
        {"type": "text", "text": "What?"},
        {"type": "file", "url": "data:image/png;base64,iVBORw0KGgo=", "mediaType": "image/png", "filename": "a.png"},
        {"type": "file", "url": "https://e.x/b.pdf", "mediaType": "application/pdf"},
    ]
    await pages("b", "load", thread="1")
    await pages("b", "run")
    assert texts(await scene.ended("b")) == texts(built) == ["Hello to What?"]
    assert len(scene.turns) == 1


async def test_result_of_a_tool_of_the_page_reaches_the_agent_at_its_call(scene: ClientScene) -> None:
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

    scene.script = script
    pages, tools = scene.pages, [{"name": "clock", "description": "The time.", "parameters": {"type": "object"}}]
    asked: Any = {"context": [{"description": "place", "value": "Ulm"}], "forwardedProps": {"temperature": 0.5}}
    await pages("a", "open", thread="1", tools=tools, **asked)
    await pages("a", "send", text="How late?", id="u")
    (call,) = (await scene.ended("a"))["messages"][-1]["toolCalls"]
    request = scene.turns[0].request
    assert (request.temperature, request.context) == (0.5, asked["context"])
    assert request.tools == [{"type": "function", **tools[0]}]
    assert call["function"] == {"name": "clock", "arguments": '{"of": "Ulm"}'}
    await pages("a", "reply", call=call["id"], content="noon")
    state = await scene.ended("a")
    assert texts(state) == ["It is noon there."]
    assert state["messages"] == (await pages("b", "load", thread="1", tools=tools))["messages"]
    await pages("b", "run")
    assert (await scene.ended("b"))["messages"] == state["messages"]
    assert [one["role"] for one in await scene.turns[1].history("openai")] == ["user", "assistant", "tool"]
    assert len(scene.turns) == 2
