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
