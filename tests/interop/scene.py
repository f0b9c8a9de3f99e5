"""A hub with the routes of an adapter and one agent, which real clients and plain requests reach.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
from fastapi import FastAPI
from starlette.responses import Response

from tenuto import Hub, Identity, Turn
from tenuto.interop import AGUI, AISDK, OpenAI
from tests.transports.conftest import Served, asking, new_hub, serving

CALL: dict[str, Any] = {"type": "tool", "call": "c1", "name": "weather", "input": '{"city": "Ulm"}'}
ASKED_PLACE = {**CALL, "name": "place", "state": "called"}


class Scene:
    """The hub and its server. A test sets the agent's `script`."""

    def __init__(self, hub: Hub, served: Served) -> None:
        self.hub = hub
        self.served = served
        self.http = served.http
        self.address = f"http://127.0.0.1:{served.port}"
        self.gate = asyncio.Event()
        self.turns: list[Turn] = []
        self.pages: Any = None

    async def script(self, turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello ")
            await self.gate.wait()
            await message.append(f"to {turn.text}")

    async def replaces(self, turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello ")
            await self.gate.wait()
            await message.part({"type": "text", "text": "Another text"}, index=0)
            await message.append(" words")

    async def writes_behind(self, turn: Turn) -> None:
        """Write a text, a part of a kind in `BEHIND`, and when the gate opens a text behind it, or around a source."""
        async with turn.reply() as message:
            await message.append("See ")
            await message.part(BEHIND[turn.text])
            await message.flush()
            await self.gate.wait()
            await message.append("this.", part=0 if turn.text == "source" else None)


BEHIND: dict[str, Any] = {
    "call": {**CALL, "state": "done", "output": 7},
    "reasoning": {"type": "reasoning", "text": "Hm."},
    "data": {"type": "data", "name": "map", "data": 1},
    "source": {"type": "source", "url": "https://example.com/"},
}


@asynccontextmanager
async def playing(
    kind: type[Any], adapter: Callable[[Hub], Any], path: str, hub: Hub | None = None, **options: Any
) -> AsyncIterator[Any]:
    """Serve an adapter at `path` with an agent, which has `options`, until the block ends."""
    hub, app = hub or new_hub(), FastAPI()
    hub.install(app, "/tenuto")
    adapter(hub).install(app, path)

    async def agent(turn: Turn) -> None:
        scene.turns.append(turn)
        await scene.script(turn)

    hub.agent(**{"pattern": "chat:*", "name": "agent", **options})(agent)
    async with serving(hub, app) as served:
        scene = kind(hub, served)
        yield scene


@asynccontextmanager
async def routes_only(**options: Any) -> AsyncIterator[tuple[Hub, httpx2.AsyncClient]]:
    """The routes of all adapters without an agent and without a server."""
    hub, app = new_hub(**options), FastAPI()
    AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    OpenAI(hub).install(app, "/v1")
    async with asking(app) as client:
        yield hub, client
    await hub.close()


def refusing(app: Any) -> Any:
    """Return `app` behind a server that refuses the first stream, as one does that is about to end."""
    left = [Response(status_code=503, headers={"x-should-retry": "false"})]  # else the SDK waits

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        is_stream = b"stream=true" in scope.get("query_string", b"")
        await (left.pop() if left and is_stream else app)(scope, receive, send)

    return refuses


def names_of(program: str, hub: Hub) -> dict[str, Any]:
    """Return what a program of the docs defines, with `hub` in place of its own."""
    names: dict[str, Any] = {"hub": hub}
    exec(program.replace('app, hub = FastAPI(), Hub("sqlite:///chat.db")', "app = FastAPI()"), names)
    return names


FULL = frozenset({"subscribe", "history", "publish", "command"})


def verifier(name: str | None = None, channels: str = "chat:*") -> Any:
    """Return a verifier. Each caller is `name`, or has the name of its key, which may stand in `channels`."""

    async def verify(scope: dict[str, Any]) -> Identity:
        id = name or dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        return Identity(client_id=id, grants={channels.format(id): FULL})

    return verify


def units(events: list[Any]) -> list[tuple[int, str, str]]:
    """Return the events of a response with their numbers: its structure, and one unit for each code point of a delta.

    An event of the structure is with all its fields.
    """
    found: list[tuple[int, str, str]] = []
    for event in events:
        fields = dict(event) if isinstance(event, dict) else event.model_dump()
        number = fields.pop("sequence_number")
        letters = fields.get("delta") or [json.dumps(fields, sort_keys=True, default=str)]
        found += [(number - len(letters) + 1 + at, fields["type"], letter) for at, letter in enumerate(letters)]
    return found


def writes(*values: Any) -> Any:
    """Return a script that writes one answer of these parts and texts."""

    async def script(turn: Turn) -> None:
        async with turn.reply() as message:
            for value in values:
                await (message.append(value) if isinstance(value, str) else message.part(value))

    return script


async def lose(message: Any, gate: asyncio.Event, *parts: Any) -> None:
    """Write an attempt of these parts, which fails when the gate opens."""
    with suppress(ZeroDivisionError):
        async with message.attempt():
            for part in parts:
                await message.part(part)
            await gate.wait()
            raise ZeroDivisionError


async def answers_twice(turn: Turn) -> None:
    for text in ("One.", "Two."):
        async with turn.reply() as message:
            await message.append(text)


async def fails(turn: Turn) -> None:
    async with turn.reply() as message:
        await message.append("One.")
        raise RuntimeError("secret")


async def with_question(turn: Turn) -> None:
    """Ask before a call, and write the outcome."""
    async with turn.reply() as message:
        await message.append("May I? ")
        index = await message.part({**CALL, "state": "called"})
        reply = await turn.ask("approve", {"call": "c1"})
        if reply.ok:
            await message.part({**CALL, "state": "done", "output": {"c": 7}}, index=index)
        await message.part({"type": "text", "text": "Seven." if reply.ok else f"No: {reply.data['reason']}."})


async def asks_where(turn: Turn) -> None:
    """Ask the tool `place` of the client, and write what it returns."""
    async with turn.reply() as message:
        await message.append("Where? ")
        index = await message.part(ASKED_PLACE)
        reply = await turn.ask("where", {"call": "c1"})
        await message.part({**ASKED_PLACE, "state": "done", "output": reply.data}, index=index)
        await message.part({"type": "text", "text": f"Here: {reply.data}."})


async def chooses(turn: Turn) -> None:
    """Ask a question that no client knows by its name."""
    async with turn.reply() as message:
        await message.append("Which? ")
        await message.append(f"{(await turn.ask('choose', {'of': ['red', 'blue']})).data}!")
