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
