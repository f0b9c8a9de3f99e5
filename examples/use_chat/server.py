"""A chat whose React page is on `useChat` of the AI SDK, unmodified: only the address of its API is that of a hub.

Build the page in this folder, and run the server:

    npm install
    npm run build
    python server.py

Open http://127.0.0.1:8000. Ask a question, reload during the answer, and open the page in a second window: both show
the same answer, and each may stop it. Stop the server during an answer and start it again: a reloaded page has the
whole answer. `?chat=2` is another chat.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from tenuto import Hub, Turn
from tenuto.interop import AISDK

PAGE = Path(__file__).parent / "dist"
PACE_S = 0.15

hub = Hub("sqlite:///use-chat.db")
app = FastAPI()
hub.install(app, "/tenuto")
AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
app.mount("/", StaticFiles(directory=PAGE, html=True, check_dir=False))


@hub.agent("chat:*")
async def answer(turn: Turn) -> None:
    async with turn.reply() as message:
        async for word in model(turn.text):
            await message.append(word)


async def model(question: str) -> AsyncIterator[str]:
    """Stand in for your model."""
    text = (
        f"You asked: “{question}”\n\nThis answer is stored while it streams. Reload the page: the text so far is there "
        "at once, and the rest follows. A second window shows the same answer, and may stop it."
    )
    for word in text.replace(" ", " \0").split("\0"):
        yield word
        await asyncio.sleep(PACE_S)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
