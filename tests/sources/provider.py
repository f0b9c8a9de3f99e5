"""A model's provider on loopback: sends scripted responses over real sockets, and sees clients disconnect.

Layer: tests.

It speaks HTTP/1.1 only; `wires` has the bytes of each provider.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

CUT = "cut"  # break the connection in the middle of the body
HOLD = "hold"  # send no more bytes, until the client disconnects

Step = bytes | str | float | asyncio.Event  # a number is a pause, in seconds; an event is waited for


class Provider:
    """Answers each request with the next script: pieces of the body, pauses, `CUT` or `HOLD`."""

    def __init__(self) -> None:
        self.scripts: list[Sequence[Step]] = []
        self.requests: list[tuple[str, Any]] = []
        self.is_held = asyncio.Event()  # set when a client has received all bytes before a `HOLD`
        self.is_left = asyncio.Event()  # set when a client has disconnected
        self.status = 200
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    def will_say(self, *scripts: Sequence[Step]) -> None:
        self.scripts.extend(scripts)

    def script(self, path: str, body: Any) -> tuple[int, str, Iterable[Step]]:
        """Return the status, the content type and the steps of a response."""
        kind = "text/event-stream" if self.status == 200 else "application/json"
        return self.status, kind, self.scripts.pop(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._answer(reader, writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        sizes = [line.split(":")[1] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(int(sizes[0])) if sizes else b"null"
        self.requests.append((head.split(" ")[1], json.loads(body)))
        status, kind, script = self.script(*self.requests[-1])
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for step in script:
            if step == CUT:
                await writer.drain()
                writer.transport.abort()
                return
            if step == HOLD:
                await writer.drain()
                self.is_held.set()
                await reader.read()
                self.is_left.set()
                return
            if isinstance(step, asyncio.Event):
                await step.wait()
                continue
            if isinstance(step, float):
                await asyncio.sleep(step)  # the pace of a model
                continue
            assert isinstance(step, bytes)
            writer.write(f"{len(step):x}\r\n".encode() + step + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
