"""A server that speaks Chat Completions and writes slowly, as a model does.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

THINKING_S = 1.5
TOKEN_S = 0.02
TEXT = (
    "A model writes this answer, token by token, and each pane shows it as it comes. "
    + "The words go on for a while, so that a person can break them. " * 3
    + "\n\n```python\n"
    + "".join(f"print({n}, 'a line of code')\n" for n in range(24))
    + "```\n\nThat was the code, and this is the end of the answer."
)


class SlowModel:
    """The server: `calls` counts the answers that it has begun."""

    def __init__(self) -> None:
        self.calls = 0
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; a client that disconnects ends the answer."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            self.calls += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            await asyncio.sleep(THINKING_S)  # a model thinks
            for at in range(0, len(TEXT), 4):
                writer.write(_event({"role": "assistant", "content": TEXT[at : at + 4]}, None))
                await writer.drain()
                await asyncio.sleep(TOKEN_S)
            writer.write(_event({}, "stop") + b"data: [DONE]\n\n")
            await writer.drain()
        writer.close()


def _event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@asynccontextmanager
async def slow_model() -> AsyncIterator[SlowModel]:
    """Run the server on a free port of loopback until the block ends."""
    model = SlowModel()
    server = await asyncio.start_server(model.answer, "127.0.0.1", 0)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield model
    finally:
        server.close()
