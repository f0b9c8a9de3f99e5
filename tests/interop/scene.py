"""A hub with the routes of an adapter and one agent, which real clients and plain requests reach.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from tenuto import Hub, Identity, Turn
from tests.transports.conftest import Served, new_hub, serving


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
            if turn.text == "tools":
                call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                piped = await message.pipe(chunks({"content": "See "}, {"tool_calls": [call]}))
                await turn.run_tools(piped, {"look": lambda: 7})
            else:
                await message.append("See ")
            if turn.text == "step":
                await turn.step("look", lambda: 7, show=True)
            elif turn.text == "reasoning":
                await message.part({"type": "reasoning", "text": "Hm."})
            elif turn.text == "data":
                await message.part({"type": "data", "name": "map", "data": 1})
            elif turn.text == "source":
                await message.part({"type": "source", "url": "https://example.com/"})
            await message.flush()
            await self.gate.wait()
            await message.append("this.", part=0 if turn.text == "source" else None)

    async def writes_both(self, turn: Turn) -> None:
        """Write two answers at the same time: the second one is the first to end."""
        async with turn.reply() as one:
            await one.flush()
            async with turn.reply() as two:
                await two.append("B1 ")
                await two.flush()
                await one.append("A1 ")
                await two.append("B2 ")
            await one.flush()
            await self.gate.wait()
            await one.append("A2 ")


BEHIND = ["step", "tools", "reasoning", "data", "source"]


async def chunks(*deltas: Any, end: str = "stop") -> AsyncIterator[Any]:
    """Yield a chat completion in chunks, as dicts: the adapters are tested without OpenAI's package, too."""
    head: Any = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    for delta, reason in [*((one, None) for one in deltas), ({}, end)]:
        choice: Any = {"index": 0, "delta": delta, "finish_reason": reason}
        yield {**head, "choices": [choice]}


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


def refusing(app: Any) -> Any:
    """Return `app` behind a server that refuses the first stream, as one does that is about to end."""
    left = [Response(status_code=503, headers={"x-should-retry": "false"})]  # else the SDK waits

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        is_stream = b"stream=true" in scope.get("query_string", b"")
        await (left.pop() if left and is_stream else app)(scope, receive, send)

    return refuses


FULL = frozenset({"subscribe", "history", "publish", "command"})


def verifier(name: str | None = None, channels: str = "chat:*") -> Any:
    """Return a verifier. Each caller is `name`, or has the name of its key, which may stand in `channels`."""

    async def verify(scope: dict[str, Any]) -> Identity:
        id = name or dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        return Identity(client_id=id, grants={channels.format(id): FULL})

    return verify


def writes(*values: Any) -> Any:
    """Return a script that writes one answer of these parts and texts."""

    async def script(turn: Turn) -> None:
        async with turn.reply() as message:
            for value in values:
                await (message.append(value) if isinstance(value, str) else message.part(value))

    return script


async def fails(turn: Turn) -> None:
    async with turn.reply() as message:
        await message.append("One.")
        raise RuntimeError("secret")


async def chooses(turn: Turn) -> None:
    """Ask a question that no client knows by its name."""
    async with turn.reply() as message:
        await message.append("Which? ")
        reply = await turn.ask("choose", {"of": ["red", "blue"]})
        await message.append(f"{reply.data}!")
