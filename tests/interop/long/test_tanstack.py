"""The real client of TanStack AI (npm `@tanstack/ai-client`) against `AGUI`, and behind a proxy that cuts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tenuto import Turn
from tests.interop.pages import Pages, pages_at
from tests.interop.scene import Scene, playing
from tests.interop.test_agui import adapter, everything
from tests.proxy import FaultProxy

PACKAGE = Path(os.environ.get("TENUTO_TANSTACK", "")) / "@tanstack" / "ai-client"
SCRIPT = Path(__file__).parents[1] / "tanstack_page.mjs"


@asynccontextmanager
async def scene_of() -> AsyncIterator[tuple[Scene, FaultProxy, Pages]]:
    async with (
        playing(Scene, adapter, "/api/agent") as scene,
        FaultProxy("127.0.0.1", scene.served.port) as proxy,
        pages_at(f"http://127.0.0.1:{proxy.port}/api/agent", SCRIPT, PACKAGE) as pages,
    ):
        yield scene, proxy, pages


async def test_page_that_loads_at_any_step_of_an_answer_that_begins_with_thoughts_shows_it_as_the_others_do() -> None:
    """The client drops a reasoning that stands before the first text or call of a run that it joins."""
    call: Any = {"type": "tool", "call": "c1", "name": "weather", "state": "called", "input": "{}"}
    steps: dict[str, Any] = {  # by what a page has after it, each with the index of a known part
        "Hm 😀": ({"type": "reasoning", "text": "Hm 😀, "}, None),
        "more.": ({"type": "reasoning", "text": "Hm 😀, more."}, 0),
        "input-complete": (call, None),
        '"content":"cold"': ({**call, "state": "done", "output": "cold"}, 1),
        "Seven.": ({"type": "text", "text": "Seven."}, None),
    }
    gates = [asyncio.Event() for _ in steps]

    async def thinks(turn: Turn) -> None:
        async with turn.reply() as message:
            for gate, (part, index) in zip(gates, steps.values(), strict=True):
                await message.part(part, index=index)
                await message.flush()
                await gate.wait()

    async with scene_of() as (scene, proxy, pages):
        scene.script = calls_first
        await pages("a", "open", thread="1")
        await pages("a", "send", text="before")
        await pages("a", "saw", wanted="Hu.")
        await pages("a", "ended")
        scene.script = thinks
        await pages("a", "send", text="you")
        for gate, word in zip(gates, steps, strict=True):
            state = await pages("a", "shows", wanted=word)
            await pages(word, "open", thread="1", persistence=True, history={"pageSize": 50})
            await pages(word, "saw", wanted="Hm 😀")
            assert outline(await pages(word, "shows", wanted=word)) == outline(state)
            await proxy.cut()
            gate.set()
        built = outline(await pages("a", "ended"))
        for word in steps:
            assert outline(await pages(word, "ended")) == built
        scene.script = Scene.script.__get__(scene)
        scene.gate.set()
        await pages(word, "send", text="two")
        await pages(word, "saw", wanted="to two")
        messages = (await pages(word, "ended"))["messages"]
        texts = [part["content"] for one in messages for part in one["parts"] if part["type"] == "text"]
        assert texts[-3:] == ["Seven.", "two", "Hello to two"]
    assert "Hm 😀, more." in str(built)


async def calls_first(turn: Turn) -> None:
    """Answer with thoughts and calls before, between and after the texts."""
    async with turn.reply() as message:
        for number, text in enumerate(("Hm.", "", "One.", "", "Ho.", "", "Two.", "Hu.")):
            call = {"type": "tool", "call": f"c{number}", "name": "f", "input": "{}", "state": "done", "output": "7"}
            await message.part({"type": "reasoning" if text[:1] == "H" else "text", "text": text} if text else call)
            await message.flush()


def outline(state: Any) -> Any:
    names = ("type", "content", "name", "arguments", "state", "toolCallId")
    return [[{name: part.get(name) for name in names} for part in one["parts"]] for one in state["messages"]]


@asynccontextmanager
async def built_by(script: Any) -> AsyncIterator[tuple[Any, Pages]]:
    """A page that has built the answer of a script, and pages for the same thread."""
    async with scene_of() as (scene, _, pages):
        scene.script = script
        await pages("a", "open", thread="1")
        await pages("a", "send", text="you")
        await pages("a", "saw", wanted="Two.")
        yield await pages("a", "ended"), pages


@pytest.mark.parametrize("script", [everything, calls_first])
async def test_loaded_thread_equals_the_one_that_a_page_built(script: Any) -> None:
    async with built_by(script) as (built, pages):
        await pages("b", "open", thread="1", persistence=True)
        assert outline(await pages("b", "saw", wanted="Two.")) == outline(built)


@pytest.mark.parametrize(("script", "size"), [(everything, 2), (calls_first, 1)])
async def test_thread_in_pages_equals_the_whole_one(script: Any, size: int) -> None:
    async with built_by(script) as (built, pages):
        await pages("c", "open", thread="1", persistence=True, history={"pageSize": size})
        assert len((await pages("c", "saw", wanted="Two."))["messages"]) < len(built["messages"])
        assert outline(await pages("c", "older")) == outline(built)
