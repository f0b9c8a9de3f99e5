"""A server whose frames a test writes, for frames that a real server sends rarely or never.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from random import Random
from typing import Any

from tenuto.client import Client
from tenuto.client.connection import Closed, Refusal
from tests.client.wire import QUICK


class Script:
    """Accepts every connection, except the next ones in `refusals`."""

    def __init__(self) -> None:
        self.refusals: deque[Refusal | OSError] = deque()
        self.urls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._dialled: asyncio.Queue[ScriptedSocket] = asyncio.Queue()

    async def __call__(self, url: str, headers: dict[str, str]) -> ScriptedSocket:
        self.urls.append(url)
        self.headers.append(headers)
        if self.refusals:
            raise self.refusals.popleft()
        socket = ScriptedSocket()
        self._dialled.put_nowait(socket)
        return socket

    async def socket(self) -> ScriptedSocket:
        """Return the next connection that a client opens."""
        async with asyncio.timeout(60):
            return await self._dialled.get()


class ScriptedSocket:
    """The server's end of a connection."""

    def __init__(self) -> None:
        self._up: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._down: asyncio.Queue[str | Closed] = asyncio.Queue()
        self.is_closed = False

    # The client's side

    async def send(self, text: str) -> None:
        self._up.put_nowait(json.loads(text))

    async def receive(self) -> str:
        frame = await self._down.get()
        if isinstance(frame, Closed):
            raise frame
        return frame

    async def close(self) -> None:
        self.is_closed = True

    # The test's side

    async def frame(self, kind: str | None = None) -> dict[str, Any]:
        """Return the client's next frame, or its next one of this type."""
        async with asyncio.timeout(60):
            while True:
                frame = await self._up.get()
                if kind is None or frame["type"] == kind:
                    return frame

    def say(self, **frame: Any) -> None:
        self._down.put_nowait(json.dumps(frame))

    def say_text(self, text: str) -> None:
        self._down.put_nowait(text)

    def bye(self, code: int | None, reason: str = "", **details: Any) -> None:
        """Close the connection, after a frame with the reason."""
        if reason:
            self.say(type="bye", reason=reason, **details)
        self._down.put_nowait(Closed(code, reason))


def message_of(id: str, **fields: Any) -> dict[str, Any]:
    """Return a message as a server sends it."""
    known = {"role": "assistant", "status": "streaming", "created": 1, "version": 1, "created_at": 0, "updated_at": 0}
    return {"id": id, **known, **fields}


def client_of(script: Script, **options: Any) -> Client:
    """Return a client that dials `script`, with short delays and a seed."""
    return Client("https://host.example/tenuto", **{"dial": script, "timing": QUICK, "random": Random(5), **options})
