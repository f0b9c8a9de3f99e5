"""A server with the routes of all adapters, whose agent waits for a file. The tests of restarts kill it.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.responses import Response

from tenuto import Hub, Turn
from tenuto.interop import AGUI, AISDK, OpenAI

FOLDER = Path(os.environ["TENUTO_FOLDER"])
ON_CRASH = os.environ["TENUTO_ON_CRASH"]
app, hub = FastAPI(), Hub(f"sqlite:///{FOLDER}/chat.db", drain_s=0.2)
hub.install(app, "/tenuto")
MAJOR, IS_STRICT = int(os.environ.get("TENUTO_AI_MAJOR", "7")), bool(os.environ.get("TENUTO_AI_STRICT"))
AISDK(hub, channel="chat:{id}", version=MAJOR, strict=IS_STRICT).install(app, "/api/chat")
AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
OpenAI(hub).install(app, "/v1")


async def words(text: str, *, begins: bool = True) -> AsyncIterator[str]:
    if begins:
        yield "Hello "
    while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(0.02)
    yield f"to {text}"


@hub.agent("chat:*", name="bot", on_crash=ON_CRASH)
async def agent(turn: Turn) -> None:
    while ON_CRASH == "restart" and turn.attempt > 1 and not (FOLDER / "again").exists():  # noqa: ASYNC110 - as below
        await asyncio.sleep(0.02)
    async with turn.reply() as message:
        async for word in words(turn.text, begins=not message.length):
            await message.append(word)


@app.post("/api/own")
async def own(request: Request) -> Response:
    """An endpoint that calls its model itself."""
    message = (await request.json())["messages"][-1]
    text, reply_id = message["parts"][0]["text"], f"{message['id']}-r"
    return hub.stream_response("own:1", lambda: words(text), prompt=text, reply_id=reply_id, style="ai-sdk")
