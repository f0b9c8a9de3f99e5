"""A hub with the routes of an adapter and one agent, which real clients and plain requests reach.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from tenuto import Hub, Turn
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
