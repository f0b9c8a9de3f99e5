"""The Python blocks of the pages run as written, each on a hub of its own; other tests run those of whole programs.

Layer: tests.

A block gets the names that its page takes for granted, such as `model` and `question`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tenuto import Hub, MessageWriter, allow_everyone
from tenuto.client import Client, SyncClient
from tenuto.testing import wait_for_answer
from tests.examples import programs
from tests.examples.programs import served_app

DOCS = Path(__file__).parents[2] / "docs"
# Pages of which a test names or compares each block.
ELSEWHERE = {
    "bridges.md": "tests/interop/long/test_bridges.py",
    "django.md": "tests/examples/test_django.py",
    "tutorial.md": "tests/examples/test_tutorial.py",
}
# A text of the blocks whose names are checked by the types of the real packages, and what their pages take for granted.
TYPED = {
    ("agents.md", 'turn.history("responses")'): "hub: Hub, openai: AsyncOpenAI",  # these need a model with a key
    ("agents.md", 'turn.history("anthropic")'): "hub: Hub, anthropic: AsyncAnthropic",
    ("retries.md", "responses.create"): "message: MessageWriter, client: AsyncOpenAI, turn: Turn, prompt: Any",
    ("retries.md", "X-Conversation-Id"): "message: MessageWriter, client: AsyncOpenAI, turn: Turn, prompt: Any",
    ("sources.md", "await openai.responses"): "hub: Hub, openai: AsyncOpenAI, question: str",
    ("sources.md", "json.dumps"): "turn: Turn, message: MessageWriter, openai: AsyncOpenAI, tools: Any, search: Any",
    ("openai.md", "responses.connect"): "client: AsyncOpenAI",
    ("ai-sdk.md", "AISDK("): "",  # tests/interop/long/test_react.py runs it
    ("ai-sdk.md", 'style="ai-sdk"'): "hub: Hub, chat: str, answer: Any, prompt: str, reply_id: str",
    ("ai-sdk.md", "look_up"): "run: Any",
    ("agui.md", "AGUI("): "",  # tests/interop/long/test_agui_page.py runs it
    ("sign-in.md", "jwt_verifier("): "",
}
# A text of the blocks that do not run here, and the reason.
NOT_RUN = {
    ("client.md", "https://chat.example"): "the address of a server of yours; the next block runs against a served hub",
    ("processes.md", "bus="): "PostgreSQL and Redis of yours; tests/stores opens both",
    ("python.md", "get_asgi_application"): "three apps in one block; tests/transports/test_mounting.py has each",
    ("python.md", "class Lines"): "tests/interop/test_routes.py runs it",
    ("python.md", "exception_handler"): "tests/transports/test_visitors.py has such a handler",
    ("openai.md", "OpenAI(hub)"): "tests/interop/test_openai.py runs it",
    ("openai.md", "responses.retrieve"): "tests/interop/test_openai.py runs it",
    ("openai.md", "chat.completions"): "tests/interop/test_openai.py runs it",
    ("sign-in.md", "SESSIONS"): "tests/examples/test_security_page.py runs it",
    ("sign-in.md", "/tenuto-token"): "tests/test_docs.py runs it",
}


def blocks(page: str) -> list[str]:
    return programs.blocks(f"docs/{page}")


def block(page: str, text: str) -> str:
    """Return the one block of a page with this text."""
    (found,) = [one for one in blocks(page) if text in one]
    return found


async def run(page: str, text: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the block of a page that has this text with `names`, and return the names that there are then."""
    return await run_source(block(page, text), names)


async def run_source(source: str, names: dict[str, Any]) -> dict[str, Any]:
    names.setdefault("__name__", "page")
    running = eval(compile(source, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(running):
        await running
    return names


async def model(*_: object, **__: object) -> AsyncIterator[str]:
    for word in ("It ", "rains."):
        yield word


async def found(*_: object) -> str:
    return "found"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.chdir(tmp_path)
    return Hub("memory://", authenticate=allow_everyone, drain_s=0.0)


def test_each_block_of_python_runs_in_a_test_or_has_a_reason() -> None:
    named = re.findall(r'"([\w-]+\.md)", (".+?"|\'.+?\')[,)]', Path(__file__).read_text())
    known = {one: {source for source in blocks(one[0]) if ast.literal_eval(one[1]) in source} for one in named}
    assert [one for one, found in known.items() if not found] == []
    for source in {one for page, text in NOT_RUN for one in blocks(page) if text in one}:
        compile(source, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    left = [
        (page.name, source)
        for page in DOCS.glob("*.md")
        for source in blocks(page.name)
        if page.name not in ELSEWHERE and source not in set().union(*known.values())
    ]
    assert left == []


HEAD = """import json
from typing import Any
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from tenuto import Hub, MessageWriter, Turn
async def block({}) -> Any:
{}"""


def typed_blocks() -> dict[str, str]:
    """Return the modules of the blocks in `TYPED`, by names; `tests/agents/test_types.py` checks their types."""
    modules = {}
    for number, ((page, text), known) in enumerate(TYPED.items()):
        for further, source in enumerate(one for one in blocks(page) if text in one):
            typed = re.sub(r"(?<=def )(\w+)\(turn\b", r"\1(turn: Turn", source)
            modules[f"{page[:-3].replace('-', '_')}_{number}_{further}"] = HEAD.format(known, indent(typed, "    "))
    return modules


async def test_agents_answer_also_by_steps_and_attempts(hub: Hub) -> None:
    names = await run("agents.md", "You said", {})
    await names["hub"].create("chat:1", text="Hi")
    assert (await wait_for_answer(names["hub"], "chat:1")).text == "You said: Hi"
    await names["hub"].close()

    await run("steps.md", "turn.step(", {"hub": hub, "model": model, "search": found, "charge": found})
    await hub.create("chat:1", text="Hi")
    assert (await wait_for_answer(hub, "chat:1")).text == "It rains."
    await hub.close()


async def test_commands_and_hooks(hub: Hub) -> None:
    charged = asyncio.Queue[str]()
    accounts = SimpleNamespace(charge=lambda author, usage: charged.put(author))

    @hub.agent("chat:*")
    async def slow(turn: Any) -> None:
        async with turn.reply() as message:
            await message.append("It rains.")
            await asyncio.Event().wait()

    await run("agents.md", "hub.on(", {"hub": hub, "accounts": accounts})
    question = await hub.create("chat:1", text="Hi")
    await until_shown(hub, "chat:1", "It rains.")
    asked = await hub.command("chat:1", "approve", data={})
    names = {"hub": hub, "message_id": question.id, "command_id": asked.id}
    cancel, steer, regenerate, reply = block("agents.md", "hub.command(").splitlines()
    for line in (reply, steer, cancel):
        await run_source(line, names)
    assert (await wait_for_answer(hub, "chat:1", question.id)).status == "cancelled"
    await run_source(regenerate, names)
    async with hub.message("chat:2", author="bot") as message:
        await message.append("x")
    assert await asyncio.wait_for(charged.get(), 30) is not None
    await hub.close()


async def test_writing_watching_and_threads(hub: Hub) -> None:
    await (await run("python.md", "hub = Hub(", {}))["hub"].close()
    await run("python.md", "model(question)", {"hub": hub, "model": model, "question": "Why?"})
    shown = asyncio.Queue[Any]()
    for watched in (
        run("python.md", "print(event)", watching(hub, shown)),
        run("python.md", "view.receive", watching(hub, shown)),
    ):
        task = asyncio.create_task(watched)
        while "It rains." not in str(await asyncio.wait_for(shown.get(), 30)):
            pass
        task.cancel()
    await asyncio.to_thread(exec, block("python.md", "hub.sync"), {"hub": hub})
    assert [one.text for one in (await hub.history("chat:1")).messages] == ["From a thread.", "It rains."]
    await hub.close()
    await run("python.md", "hub.adopt(", {"hub": Hub("memory://"), "MessageWriter": MessageWriter, "model_from": model})


async def until_shown(hub: Hub, channel: str, text: str) -> None:
    """Wait for an event of a channel with this text."""
    async with asyncio.timeout(30):
        async for event in hub.subscribe(channel):
            if text in str(event):
                break


def watching(hub: Hub, shown: asyncio.Queue[Any]) -> dict[str, Any]:
    return {"hub": hub, "print": shown.put_nowait}


async def test_endpoints_and_private_chats(hub: Hub) -> None:
    private = await run("private-chats.md", "guests = visitors()", {"model": model})
    await run("private-chats.md", "Depends(guests.of)", private)
    await run("retention.md", "Retention(", {})
    await run("sizes.md", "Limits(", {})
    await run("ids.md", "order-17", {"hub": hub})
    await run("chats.md", "archive", {"hub": hub})
    await run("keeping.md", "max_bytes", {"Hub": Hub})
    await asyncio.to_thread(check_private_chats, private["app"])


def check_private_chats(private: FastAPI) -> None:
    with TestClient(private) as client:
        assert "rains." in client.post("/ask?prompt=Why").text


async def test_the_page_about_an_existing_endpoint(hub: Hub) -> None:
    names = await run("sse-endpoint.md", "guests = visitors()", {})
    await run("sse-endpoint.md", "hub.command(", names)
    await run("sse-endpoint.md", "end_frame", names)
    async with served_app(names["app"]) as address, httpx2.AsyncClient(base_url=address, timeout=30) as page:
        assert (await page.get("/chat?question=Why")).text == "data: You asked: Why\n\ndata: [DONE]\n\n"
        assert '{"token": "' in (await page.get("/tokens?question=Why")).text

        async def unending(question: str) -> AsyncIterator[str]:
            yield question
            await asyncio.Event().wait()

        names["model"] = unending
        async with page.stream("GET", "/chat?question=How") as asked:
            assert await anext(asked.aiter_text()) == "data: How\n\n"
        async with page.stream("GET", "/chat") as reloaded:
            pieces = reloaded.aiter_text()
            assert await anext(pieces) == "data: How\n\n"
            assert (await page.post("/stop", headers={"origin": address})).status_code == 200
            assert "event: cancelled" in "".join([piece async for piece in pieces])


async def test_the_page_about_tests(hub: Hub) -> None:
    app = FastAPI()
    Hub("memory://").install(app, "/tenuto")
    await asyncio.to_thread(exec, block("testing.md", "TestClient("), {"app": app, "TestClient": TestClient})
    names: dict[str, Any] = {"hub": hub}

    @hub.agent("chat:*")
    async def assistant(turn: Any) -> None:
        async with turn.reply() as message:
            await message.pipe(names["model"](turn.text))

    await run("testing.md", "ScriptedModel(", names)
    await hub.close()


async def test_identities_and_tokens() -> None:
    await run("security.md", "expires_at_ms", {})
    source = block("security.md", "jwt_verifier(").replace("…at least 32 bytes…", "s" * 32)
    exec(source, {})


class SeenError(Exception):
    """The awaited event was printed."""


def see(event: object) -> None:
    if "From a script." in str(event):
        raise SeenError


async def test_the_python_client(hub: Hub) -> None:
    app = FastAPI()
    hub.install(app, "/tenuto")
    async with served_app(app) as address, Client(f"{address}/tenuto", client_id="ann") as client:
        shown = asyncio.Queue[Any]()
        async with client.message("chat:1") as message:
            await message.append("It rains.")
        task = asyncio.create_task(
            run("client.md", "view.state", {"client": client, "print": lambda *all: shown.put_nowait(all)})
        )
        assert (await asyncio.wait_for(shown.get(), 30))[0] == ["It rains."]
        task.cancel()
        agent = (
            block("client.md", "client.run()")
            .replace("https://example.com/tenuto", f"{address}/tenuto")
            .replace("…", "t")
        )
        names: dict[str, Any] = {"Client": Client}
        working = asyncio.create_task(run_source(agent, names))
        await until_shown(hub, "chat:2", "listening")
        question = await hub.create("chat:2", text="Hi")
        assert (await wait_for_answer(hub, "chat:2", question.id)).text == "You said: Hi"
        working.cancel()
        script = block("client.md", "SyncClient(").replace("http://127.0.0.1:8000", f"{address}/tenuto")
        with pytest.raises(SeenError):
            await asyncio.to_thread(exec, script, {"SyncClient": SyncClient, "print": see})
