"""Shared by tests of streams: difficult texts, streams read line by line, and a message that grows meanwhile.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self

from proof.wirecheck import Response, SseEvent, SseParser
from tenuto.app import Hub
from tests.transports.conftest import PATIENCE_S, Served


class Stream:
    """A GET of an event stream, as bytes: for details that a viewer with rules would hide."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.response = Response()
        self.parser = SseParser()
        self.body = b""
        self.events: list[SseEvent] = []
        self.is_over = False  # the server has closed, or has sent the end
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, served: Served, path: str, **headers: str) -> Self:
        """Send the request, and wait for the head of the response."""
        reader, writer = await served.connect()
        lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        stream = cls(reader, writer)
        await stream.until(lambda: bool(stream.response.status))
        return stream

    async def until(self, is_true: Any) -> None:
        """Read until the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_true():
                assert not self.is_over, f"the stream ended: {self.response.status} {self.body[-500:]!r}"
                data = await self._reader.read(64 * 1024)
                if data:
                    piece = self.response.receive(data)
                    self.body += piece
                    self.events += self.parser.receive(piece)
                self.is_over = not data or self.response.is_complete

    async def until_event(self, kind: str) -> SseEvent:
        """Read until there is an event of this type; return the first one."""
        await self.until(lambda: any(event.event == kind for event in self.events))
        return next(event for event in self.events if event.event == kind)

    async def until_over(self) -> bool:
        """Read to the end; return whether the HTTP response was complete."""
        await self.until(lambda: self.is_over)
        return self.response.is_complete

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()


async def write(hub: Hub, channel: str, pieces: list[str], *, id: str = "m1") -> str:
    """Write a message piece by piece, each stored before the next; return its text."""
    async with hub.message(channel, id=id) as message:
        for piece in pieces:
            await message.append(piece)
            await message.flush()
    return "".join(pieces)
