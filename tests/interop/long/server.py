"""A server with the routes of all adapters, whose agent waits for a file. The tests of restarts kill it.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI

from tenuto import Hub, Turn
from tenuto.interop import AGUI, AISDK, OpenAI

FOLDER = Path(os.environ["TENUTO_FOLDER"])
app, hub = FastAPI(), Hub(f"sqlite:///{FOLDER}/chat.db", drain_s=0.2)
hub.install(app, "/tenuto")
MAJOR, IS_STRICT = int(os.environ.get("TENUTO_AI_MAJOR", "7")), bool(os.environ.get("TENUTO_AI_STRICT"))
AISDK(hub, channel="chat:{id}", version=MAJOR, strict=IS_STRICT).install(app, "/api/chat")
AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
OpenAI(hub).install(app, "/v1")


@hub.agent("chat:*", name="bot", on_crash="continue")
async def agent(turn: Turn) -> None:
    async with turn.reply() as message:
        if not message.length:
            await message.append("Hello ")
        while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(0.02)
        await message.append(f"to {turn.text}")


@hub.agent("again:*", name="again")
async def begins_again(turn: Turn) -> None:
    """Write the answer anew after a crash: the default of `on_crash`."""
    async with turn.reply() as message:
        await message.part({"type": "reasoning", "text": "Hm."})
        await message.part({"type": "text", "text": "Hello "})
        await message.flush()
        while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(0.02)
        await message.append(f"to {turn.text}")
