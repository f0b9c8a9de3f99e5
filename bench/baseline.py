"""The bare server: the same bytes at the same times, written by asyncio and nothing else.

Run as a child. It is given what one viewer of our server got (`Load.recording`): the beginning goes to whoever
connects, each batch then, as one chunk and when its time has come, to everybody by `transport.write`. No framework,
no log, no state: what it spends is what Python and the kernel cost anybody, and what we spend is measured against it.
"""

import asyncio
import socket
import time
from typing import Any

from bench.control import answer, serve_requests

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Bare:
    """Its viewers, and what they are to get."""

    def __init__(self) -> None:
        self.transports: set[asyncio.Transport] = set()
        self.before = b""
        self._batches: list[tuple[float, bytes]] = []

    async def load(self, *, before: str, batches: list[tuple[float, str]]) -> dict[str, Any]:
        """Take a recording."""
        self.before = _HEAD + _chunk(before.encode())
        self._batches = [(at_s, _chunk(batch.encode())) for at_s, batch in batches]
        return {}

    async def play(self) -> dict[str, Any]:
        """Write it to all viewers, in its own time."""
        started_s = time.monotonic()
        for at_s, chunk in self._batches:
            wait_s = started_s + at_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            for transport in self.transports:
                transport.write(chunk)
        return {"viewers": len(self.transports), "batches": len(self._batches)}


class _Viewer(asyncio.Protocol):
    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            self._transport.write(self._bare.before)
            self._bare.transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._bare.transports.discard(self._transport)


def _chunk(payload: bytes) -> bytes:
    assert payload, "an empty chunk ends the body"
    return b"%x\r\n%b\r\n" % (len(payload), payload)


async def _main() -> None:
    bare = Bare()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        async with await asyncio.get_running_loop().create_server(lambda: _Viewer(bare), sock=listener):
            answer(port=listener.getsockname()[1])
            await serve_requests({"load": bare.load, "play": bare.play})


if __name__ == "__main__":
    asyncio.run(_main())
