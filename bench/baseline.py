"""The bare server: the same bytes at the same times, written by plain asyncio.

Run as a child. It receives the bytes that one viewer of each channel got from our server (`Load.recording`). A new
connection gets the beginning. Each later batch goes at its time, as one chunk or frame, to all viewers of its channel
by `transport.write`. There is no framework, no log and no state: its cost is that of Python and the kernel, and our
cost is measured against it.
"""

import asyncio
import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import unquote

from bench.proc import reply, serve_requests
from tenuto.server import serving

_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_UPGRADE_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: tenuto.v1\r\n\r\n"
)
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SLEEP_S = 0.002  # batches due within this time are written now: a timer for each would cost more than the writes


class _Channel:
    """The viewers of a channel, and the first bytes for each."""

    def __init__(self, kind: str, before: bytes) -> None:
        self.transports: set[asyncio.Transport] = set()
        self.before = before if kind == "websocket" else _SSE_HEAD + _chunk(before)


class Bare:
    """The bare server's channels."""

    def __init__(self) -> None:
        self.channels: dict[str, _Channel] = {}
        self._batches: list[tuple[float, _Channel, bytes]] = []

    async def load(self, *, kind: str, channels: dict[str, Any]) -> dict[str, Any]:
        """Take a recording: for each channel the bytes `before`, and its `batches` with their times."""
        self.channels.clear()
        self._batches.clear()
        for name, recording in channels.items():
            channel = self.channels[name] = _Channel(kind, recording["before"].encode("latin-1"))
            for at_s, batch in recording["batches"]:
                data = batch.encode("latin-1")
                self._batches.append((at_s, channel, data if kind == "websocket" else _chunk(data)))
        self._batches.sort(key=lambda item: item[0])
        return {}

    async def play(self) -> dict[str, Any]:
        """Write the recording to all viewers, at its own times."""
        started_s = time.monotonic()
        for at_s, channel, data in self._batches:
            wait_s = started_s + at_s - time.monotonic()
            if wait_s > _SLEEP_S:
                await asyncio.sleep(wait_s)
            for transport in channel.transports:
                transport.write(data)
        return {"viewers": sum(len(c.transports) for c in self.channels.values()), "batches": len(self._batches)}


class _Viewer(asyncio.Protocol):
    """A connection. Reads the request for a channel, and no further input."""

    def __init__(self, bare: Bare) -> None:
        self._bare = bare
        self._data = b""
        self._is_upgraded = False
        self._channel: _Channel | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._channel is None and not self._is_upgraded:
            self._take_head()
        if self._channel is None and self._is_upgraded and self._data:
            self._follow(json.loads(_unmasked(self._data))["channel"])

    def _take_head(self) -> None:
        head, end, rest = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        first, *lines = head.split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines)
        if b"Sec-WebSocket-Key" not in fields:
            self._follow(unquote(first.split(b"/")[-3].decode()))
            return
        accept = base64.b64encode(hashlib.sha1(fields[b"Sec-WebSocket-Key"] + _WEBSOCKET_GUID).digest())
        self._transport.write(_UPGRADE_HEAD % accept)
        self._is_upgraded, self._data = True, rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._channel is not None:
            self._channel.transports.discard(self._transport)

    def _follow(self, name: str) -> None:
        self._channel = self._bare.channels[name]
        self._transport.write(self._channel.before)
        self._channel.transports.add(self._transport)


def _unmasked(frame: bytes) -> bytes:
    """Return the payload of a client's first frame, which is short and arrives whole (RFC 6455, 5.2)."""
    assert frame[0] == 0x81, "a text frame that is whole"
    length, start = frame[1] & 0x7F, 2
    if length == 126:
        length, start = int.from_bytes(frame[2:4]), 4
    mask, payload = frame[start : start + 4], frame[start + 4 : start + 4 + length]
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def _chunk(payload: bytes) -> bytes:
    assert payload, "an empty chunk ends the body"
    return b"%x\r\n%b\r\n" % (len(payload), payload)


async def _main() -> None:
    bare = Bare()
    with serving.listen("127.0.0.1", 0) as listener:  # with the socket options of `tenuto serve`
        async with await asyncio.get_running_loop().create_server(lambda: _Viewer(bare), sock=listener):
            reply(port=listener.getsockname()[1])
            await serve_requests({"load": bare.load, "play": bare.play})


if __name__ == "__main__":
    asyncio.run(_main())
