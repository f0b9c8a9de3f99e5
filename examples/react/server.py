"""The server of the React example: an agent that answers, and tokens for a page of another origin.

Build the client and run the server, from the top of the repository:

    make web
    python examples/react/server.py

In a second terminal run `npm install` and `npm run dev` in this folder, and open http://localhost:5173. Ask a question,
reload during the answer, and open the page in a second window; `?me=bob` is another person. Stop the server during an
answer and start it again: the page reconnects, and the agent answers again.
"""

import asyncio
import os
import time
from typing import Annotated

import jwt
from fastapi import FastAPI, Query
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse

from tenuto import Hub, Turn
from tenuto.hub.access.tokens import jwt_verifier

PAGE = os.environ.get("PAGE_ORIGIN", "http://localhost:5173")
PORT = int(os.environ.get("PORT", "8000"))
SECRET = os.environ.get("SECRET", "a secret for this example, of at least thirty-two bytes")
LASTS_S = 300  # lifetime of a token; the client requests the next token thirty seconds before its end
PACE_S = 0.15

verify = jwt_verifier(secret=SECRET, audience="chat")
hub = Hub("sqlite:///react-example.db", authenticate=verify, allowed_origins=[PAGE])
app = FastAPI()
hub.install(app, "/tenuto")
app.add_middleware(CORSMiddleware, allow_origins=[PAGE], allow_methods=["*"], allow_headers=["*"])


@app.post("/token", response_class=PlainTextResponse)
async def token(name: Annotated[str, Query(pattern="^[a-z]{1,20}$")]) -> str:
    """Return a token for `name`; your own endpoint checks a session or a password first."""
    claims = {
        "sub": name,
        "aud": "chat",
        "exp": time.time() + LASTS_S,
        "tenuto": {"chat:*": ["subscribe", "history", "publish", "command"]},
    }
    return jwt.encode(claims, SECRET)


@hub.agent("chat:*")
async def answer(turn: Turn) -> None:
    async with turn.reply() as message:
        for word in model(turn.text):
            await message.append(word)
            await asyncio.sleep(PACE_S)


def model(question: str) -> list[str]:
    """Stand in for your model."""
    text = (
        f"You asked: “{question}”\n\nThis answer is stored while it streams. Reload the page: the text so far is there "
        "at once, and the rest follows with the very next character. A second window shows the same answer, and may "
        "stop it."
    )
    return text.replace(" ", " \0").split("\0")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=PORT)
