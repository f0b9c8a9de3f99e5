"""A server with the routes of the AI SDK, whose agent waits for a file. `test_restart` serves and kills it.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI

from holdfast import Hub, Turn
from holdfast.interop import AISDK

FOLDER = Path(os.environ["HOLDFAST_FOLDER"])
app, hub = FastAPI(), Hub(f"sqlite:///{FOLDER}/chat.db", drain_s=0.2)
hub.install(app, "/holdfast")
AISDK(hub, channel="chat:{id}", version=int(os.environ["HOLDFAST_AI_MAJOR"])).install(app, "/api/chat")


@hub.agent("chat:*", on_crash="continue")
async def agent(turn: Turn) -> None:
    async with turn.reply() as message:
        if not message.length:
            await message.append("Hello ")
        while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(0.02)
        await message.append(f"to {turn.text}")
