"""An agent in a process of its own, on this or another machine, which authenticates with a token.

The server needs no code. Install Tenuto with [serve,client], as its README shows, create a secret, and serve:

    openssl rand -base64 48 > chat.secret; chmod 600 chat.secret
    tenuto serve --jwt-secret-file chat.secret --jwt-audience chat

In a second terminal, start the agent; start it once more in a third. Each message goes to one of the two.

    export TENUTO_TOKEN=$(python examples/agent_elsewhere.py token bot chat.secret)
    python examples/agent_elsewhere.py

In a fourth, ask a question. Then ask again, and `kill -9` the answering agent: the other one continues its answer.

    export TENUTO_TOKEN=$(python examples/agent_elsewhere.py token ann chat.secret)
    python examples/agent_elsewhere.py ask "Why?"

`TENUTO_URL` is the address of the server, by default http://127.0.0.1:8000.
"""

import asyncio
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import jwt

from tenuto import TenutoError, Turn
from tenuto.client import Client

URL = os.environ.get("TENUTO_URL", "http://127.0.0.1:8000")
TOKEN = os.environ.get("TENUTO_TOKEN")
PACE_S = 0.01

PERSON = ["subscribe", "history", "publish", "command"]
AGENT = [*PERSON, "append", "agent"]

client = Client(URL, token=TOKEN)


@client.agent("chat:*", on_crash="continue")
async def answer(turn: Turn) -> None:
    print(f"{turn.message.author} asks, attempt {turn.attempt}: {turn.text}", flush=True)
    async with turn.reply() as message:
        for token in model(turn.text)[message.length :]:  # the whole answer, or the rest after a crash
            await message.append(token)
            await asyncio.sleep(PACE_S)


def model(question: str) -> str:
    """Stand in for your model."""
    return f"You asked: {question}\n" + " ".join(str(count) for count in range(1, 121))


async def ask(question: str) -> None:
    """Ask a question, and print the answer while it streams."""
    async with Client(URL, token=TOKEN) as person, person.channel("chat:1") as view:
        prompt = await person.create("chat:1", text=question)
        shown = 0
        async for _ in view:
            for message in view.messages:
                if message.reply_to == prompt.id:
                    print(message.text[shown:], end="", flush=True)
                    shown = len(message.text)
                    if message.status not in ("streaming", "interrupted"):
                        print(f"\n({message.status})")
                        return


def token(name: str, secret_file: str) -> str:
    """Return a token for one day. Your app issues tokens to the users that it has authenticated."""
    claims = {
        "sub": name,
        "aud": "chat",
        "exp": time.time() + 24 * 3600,
        "tenuto": {"chat:*": AGENT if name == "bot" else PERSON},
    }
    return jwt.encode(claims, Path(secret_file).read_bytes().rstrip(b"\r\n"), algorithm="HS256")


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case []:
                with suppress(KeyboardInterrupt):
                    asyncio.run(client.run())
            case ["ask", question]:
                asyncio.run(ask(question))
            case ["token", name, secret_file]:
                print(token(name, secret_file))
            case _:
                sys.exit(__doc__)
    except TenutoError as error:
        sys.exit(str(error))
