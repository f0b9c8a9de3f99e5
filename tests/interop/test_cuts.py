"""Real clients read an answer while it is written, through a proxy that cuts them, and resume as their users do.

Each client has in the end what the log has: no character is missing, none is there twice, and none is of a superseded
attempt. `scripts/test_interop` installs the npm packages but `ai`, and makes the random cuts of each client.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import websockets
from fastapi import FastAPI

from tenuto import Hub, MessageWriter, Turn
from tenuto.interop import AGUI, AISDK, OpenAI, ai_sdk
from tenuto.interop.openai_stream import ATTEMPT_ROOM, reference
from tests.conftest import IS_LONG
from tests.interop import pages
from tests.interop.scene import units
from tests.proxy import FaultProxy
from tests.transports.conftest import new_hub, serving

RANDOM_CUTS = 200 if IS_LONG else 12
PATIENCE_S = 60.0
FOLDER = Path(__file__).parent
CALL = {"type": "tool", "call": "c1", "name": "weather"}
Steps = list[tuple[str, dict[str, Any] | str]]
# The steps of the answer, each with a word that a client shows after it; a text is added to the last part.
STEPS: Steps = [
    ("Hm", {"type": "reasoning", "text": "Hm 😀."}),
    ("One", {"type": "text", "text": "One "}),
    ("two", "two 🎈🎈. "),
    ("Ulm", {**CALL, "state": "input", "input": '{"city": "Ulm", "at"'}),
    ("noon", {**CALL, "state": "called", "input": '{"city": "Ulm", "at": "noon"}'}),
    ("cold", {**CALL, "state": "done", "input": '{"city": "Ulm", "at": "noon"}', "output": "cold"}),
    ("Four", {"type": "text", "text": "Four, é "}),
    ("five", "five."),
]
CUT_CALL = {**CALL, "call": "c0", "input": '{"city": "Bonn"}'}
# Attempts before it that fail, of one step of the AI SDK, and of two
LOST: list[Steps] = [
    [
        ("Ah", {"type": "reasoning", "text": "Ah 😀?"}),
        ("Gone", {"type": "text", "text": "Gone 🎈"}),
        ("away", ", away"),
    ],
    [("Oh", {"type": "reasoning", "text": "Oh"}), ("lost", {"type": "text", "text": "One lost"})],
    [
        ("Bonn", {**CUT_CALL, "state": "called"}),
        ("warm", {**CUT_CALL, "state": "done", "output": "warm"}),
        ("worse", {"type": "text", "text": "Much worse"}),
    ],
]
SCRIPTS = {"plain": [STEPS], "attempts": [*LOST, STEPS]}
END = "the end"  # in no answer
SHOWN = ("Hm 😀.", "One two 🎈🎈. Four, é five.", {"city": "Ulm", "at": "noon"}, "cold")
Shown = tuple[str, str, Any, Any]  # reasoning, text, and input and output of the call


@dataclass(frozen=True)
class Client:
    """A client: its program in Node.js, or none for the SDK of Python, and what its user does with it."""

    name: str
    script: str
    package: Path
    path: str
    again: str  # the action that resumes
    shown: Callable[[Any], Shown]
    size: int  # bytes of a whole answer, about
    mark: bytes = b"\n\n"  # of each event
    closes: tuple[int, ...] = (1,) * 200  # marks after which each connection is closed: each event is the last of one
    way: str = ""  # of OpenAI's clients


def of_ai_sdk(state: Any) -> Shown:
    parts = state["messages"][-1]["parts"]
    (call,) = (one for one in parts if one["type"] == "tool-weather")
    reasoning, text = ("".join(one["text"] for one in parts if one["type"] == kind) for kind in ("reasoning", "text"))
    return reasoning, text, call["input"], call["output"]


def of_agui(state: Any) -> Shown:
    roles = ("reasoning", "assistant", "tool")
    found = {role: [one for one in state["messages"] if one["role"] == role] for role in roles}
    (call,) = (call for one in found["assistant"] for call in one.get("toolCalls", []))
    (result,) = found["tool"]
    reasoning, text = ("".join(one.get("content") or "" for one in found[role]) for role in ("reasoning", "assistant"))
    return reasoning, text, json.loads(call["function"]["arguments"]), result["content"]


def of_tanstack(state: Any) -> Shown:
    parts = [part for one in state["messages"] if one["role"] == "assistant" for part in one["parts"]]
    reasoning, text = ("".join(one["content"] for one in parts if one["type"] == kind) for kind in ("thinking", "text"))
    (call,) = (one for one in parts if one["type"] == "tool-call")
    (result,) = (one for one in parts if one["type"] == "tool-result")
    return reasoning, text, json.loads(call["arguments"]), result["content"]


def of_openai(state: Any) -> Shown:
    """Also check that no number is missing, or there twice, and that the last event has the whole answer."""
    last = state["events"][-1]["response"]
    lives: dict[int, list[Any]] = {}  # by the number of attempts before
    for one in units(state["events"]):
        lives.setdefault(one[0] // ATTEMPT_ROOM, []).append(one)
    for life, found in lives.items():
        first = life * ATTEMPT_ROOM  # events that take items back have numbers before those of the next attempt
        numbers = [one[0] for one in found if one[0] < first + ATTEMPT_ROOM // 2]
        assert numbers == list(range(first, first + len(numbers))), life
    every = found
    deltas = ("reasoning_summary_text", "output_text", "mcp_call_arguments")
    reasoning, text, arguments = (
        "".join(letter for _, kind, letter in every if kind == f"response.{name}.delta") for name in deltas
    )
    (call,) = (one for one in last["output"] if one["type"] == "mcp_call")
    content = [part for one in last["output"] if one["type"] == "message" for part in one["content"]]
    assert text == "".join(part["text"] for part in content)
    return reasoning, text, json.loads(arguments), call["output"]


VARIABLES = {"TENUTO_AGUI": "@ag-ui/client", "TENUTO_TANSTACK": "@tanstack/ai-client", "TENUTO_OPENAI": ""}
AG_UI, TANSTACK, NODE = (Path(os.environ.get(variable, "none")) / name for variable, name in VARIABLES.items())
SDK: dict[str, Any] = {"path": "/v1", "again": "send", "shown": of_openai, "size": 4_000}
SOCKET: dict[str, Any] = {**SDK, "mark": b"\x81", "closes": (2,) * 200, "way": "socket"}  # the first byte of each frame
# Early releases add what they get to what they have, so the page is loaded again.
IN_PLACE = pages.MAJOR >= 6 and not pages.IS_STRICT
PAGE: dict[str, Any] = {"path": "/api/chat", "shown": of_ai_sdk, "size": 2_000, "closes": (*range(1, 99),)}
EVERY = [
    Client("ai_sdk-reloads", "ai_sdk_page.mjs", pages.PACKAGE, again="open", **PAGE),
    *([Client("ai_sdk-resumes", "ai_sdk_page.mjs", pages.PACKAGE, again="resume", **PAGE)] if IN_PLACE else []),
    Client("agui", "agui_page.mjs", AG_UI, "/api/agent", "run", of_agui, 1_500, closes=(*range(1, 99),)),
    Client("tanstack", "tanstack_page.mjs", TANSTACK, "/api/agent", "reload", of_tanstack, 1_000),
    Client("openai-stream", "", FOLDER, **SDK, way="stream"),
    Client("openai-socket", "", FOLDER, **SOCKET),
    Client("openai_node-stream", "openai_page.mjs", NODE, **SDK, way="stream"),
    Client("openai_node-socket", "openai_page.mjs", NODE, **SOCKET),
]
CLIENTS = [pytest.param(one, id=one.name) for one in EVERY if one.package.is_dir()]


@pytest.fixture(autouse=True)
def ended_turns_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page that was cut at the end of a turn resume however slow the machine is."""
    monkeypatch.setattr(ai_sdk, "JUST_ENDED_S", 600.0)


class Reader:
    """OpenAI's client for Python, with the calls of `openai_page.mjs`."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, page: str, action: str, **options: Any) -> Any:
        match action:
            case "open":
                self._events: list[Any] = []
                self._key, self._way, self._shown = options["thread"], options["way"], ""
            case "send":
                self._task = asyncio.create_task(self._read())
            case "shows":
                assert self._task is not None
                async with asyncio.timeout(PATIENCE_S):
                    while not self._task.done() and options["wanted"] not in self._shown:
                        self._changed.clear()
                        await self._changed.wait()
        is_over = self._task is None or self._task.done()
        status = "ready" if self._events and self._events[-1]["type"] == "response.completed" else "broken"
        return {"isOver": is_over, "status": status, "events": self._events, "shown": self._shown}

    async def _read(self) -> None:
        with contextlib.suppress(openai.APIConnectionError, httpx2.HTTPError, websockets.WebSocketException, OSError):
            async for event in self._socket() if self._way == "socket" else self._stream():
                value = event.to_dict()
                self._events.append(value)
                self._shown += value.get("delta") or (value.get("item") or {}).get("output") or ""
                self._changed.set()
        asyncio.get_running_loop().call_soon(self._changed.set)  # when the task is done

    async def _stream(self) -> AsyncIterator[Any]:
        ask: Any = {"model": "bot", "input": "you", "extra_headers": {"Idempotency-Key": self._key}}
        responses, resume = self._client.responses, self._resume()
        async for event in await (
            responses.retrieve(**resume, stream=True) if resume else responses.create(**ask, stream=True)
        ):
            yield event

    async def _socket(self) -> AsyncIterator[Any]:
        async with self._client.responses.connect() as socket:
            if resume := self._resume():
                await socket.send({"type": "response.retrieve", **resume})  # type: ignore[arg-type]
            else:
                await socket.response.create(model="bot", input="you")
            event: Any = None
            while event is None or event.type != "response.completed":
                yield (event := await socket.recv())

    def _resume(self) -> Any:
        seen = self._events
        return seen and {"response_id": seen[0]["response"]["id"], "starting_after": seen[-1]["sequence_number"]}


def shows(state: Any, wanted: str) -> bool:
    """Return whether a client shows a word, or the end."""
    if wanted == END:
        return state["status"] in ("ready", "finished")
    return wanted in json.dumps(state.get("messages") or state["shown"], ensure_ascii=False)


class Lost(Exception):
    """Fails an attempt."""


class Scene:
    """A hub with the routes of all adapters behind a proxy, an agent whose answers wait at each step, and a client."""

    def __init__(self, hub: Hub, proxy: FaultProxy, client: Client, reader: Any) -> None:
        self.proxy, self._hub, self._client, self._reader = proxy, hub, client, reader
        self._script = [STEPS]
        self._gates: list[asyncio.Event] = []
        self._left = 1_000  # cuts that the proxy had left when the client resumed: it resumes after a cut alone

    async def agent(self, turn: Turn) -> None:
        gates = iter(self._gates)
        async with turn.reply() as message:
            for steps in self._script:
                with contextlib.suppress(Lost):
                    async with message.attempt():
                        await self._write(message, steps, gates)
            await next(gates).wait()

    async def _write(self, message: MessageWriter, steps: Steps, gates: Iterator[asyncio.Event]) -> None:
        calls: dict[str, int] = {}  # indexes of parts
        for _, value in steps:
            await next(gates).wait()
            if isinstance(value, str):
                await message.append(value)
            else:
                call = value.get("call", "")
                index = await message.part(value, index=calls.get(call))
                calls |= {call: index} if call else {}
            await message.flush()
        if steps is not self._script[-1]:
            raise Lost

    async def follow(self, thread: str, script: list[Steps]) -> None:
        """Ask, let the agent write each step when the client shows the one before, and compare the end with the log."""
        self._script = script
        client, reader = self._client, self._reader
        words = [word for steps in script for word, _ in steps] + [END]
        self._gates = [asyncio.Event() for _ in words]
        await reader("p", "open", thread=thread, id=thread, way=client.way)
        await reader("p", "send", text="you")
        for gate, wanted in zip(self._gates, words, strict=True):
            gate.set()
            while not shows(state := await reader("p", "shows", wanted=wanted), wanted):
                # only pages of the AI SDK have to resume then
                begins_anew = "begins anew" in (state.get("error") or "")
                is_cut = self.proxy.cuts_left() < self._left or (begins_anew and client.path == "/api/chat")
                assert (state["isOver"], is_cut) == (True, True), state
                self._left = self.proxy.cuts_left()
                await reader("p", client.again, id=thread, load=True, resume=True)
        channel = reference(state["events"][0]["response"]["id"]).channel if "events" in state else f"chat:{thread}"
        answers = [one for one in (await self._hub.history(channel)).messages if one.role == "assistant"]
        reasoning, call, text = (
            [part for part in answers[0].parts if part["type"] == kind] for kind in ("reasoning", "tool", "text")
        )
        stored = "".join(one["text"] for one in reasoning), "".join(one["text"] for one in text)
        assert (len(answers), *stored, json.loads(call[0]["input"]), call[0]["output"]) == (1, *SHOWN)
        assert client.shown(state) == SHOWN


@asynccontextmanager
async def scene_of(client: Client) -> AsyncIterator[Scene]:
    hub, app = new_hub(), FastAPI()
    AISDK(hub, channel="chat:{id}", version=pages.MAJOR, strict=pages.IS_STRICT).install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    OpenAI(hub).install(app, "/v1")

    @hub.agent("chat:*", name="bot")
    async def agent(turn: Turn) -> None:
        await scene.agent(turn)

    async with contextlib.AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(hub, app, ws_per_message_deflate=False))
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", served.port))
        url = f"http://127.0.0.1:{proxy.port}{client.path}"
        if client.script:
            running = pages.pages_at(url, FOLDER / client.script, client.package)
            scene = Scene(hub, proxy, client, await stack.enter_async_context(running))
        else:
            sdk = openai.AsyncOpenAI(base_url=url, api_key="key", max_retries=0)
            scene = Scene(hub, proxy, client, Reader(await stack.enter_async_context(sdk)))
        yield scene


@pytest.mark.parametrize("script", [*SCRIPTS.values()], ids=[*SCRIPTS])
@pytest.mark.parametrize("client", CLIENTS)
async def test_answer_that_is_cut_after_each_event_while_it_is_written_has_each_character_once(
    client: Client, script: list[Steps]
) -> None:
    async with scene_of(client) as scene:
        scene.proxy.cut_after_marks(client.mark, *client.closes)
        await scene.follow("t", script)
        assert 12 < len(client.closes) - scene.proxy.cuts_left() < len(client.closes)


@pytest.mark.parametrize("client", CLIENTS)
async def test_answers_that_are_cut_at_random_bytes_while_they_grow_have_each_character_once(client: Client) -> None:
    rng = random.Random(7)
    async with scene_of(client) as scene:
        scene.proxy.cut_after(*(rng.randint(1, client.size) for _ in range(RANDOM_CUTS)))
        scripts = enumerate(itertools.cycle(SCRIPTS.values()))
        while scene.proxy.cuts_left():
            await scene.follow(f"t{(script := next(scripts))[0]}", script[1])
