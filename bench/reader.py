"""The load client's reader of HTTP responses and WebSocket frames: a minimal parser that finds the payload.

Layer: bench.

The wire checker's own parsers (h11, wsproto) are too slow for a load generator. Measured on one core: to open a
WebSocket and take its first batch costs 55 µs with this reader and 316 µs with them, and one frame costs 3 µs and 18
µs. In the storm a thousand viewers dial within 0.4 s, and the load client's time is part of the result. So this reader
trusts the framing; tests and `chaos` check it. The peers' viewers use the same reader, so all systems have the same
client.
"""

import os
import struct

from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from proof.wirecheck import SseSession, WireError, WsSession, encode_frame

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class LoadResponse:
    """One HTTP/1.1 response, with the interface of `wirecheck.Response`."""

    def __init__(self, *, is_upgrade: bool = False) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False
        self._rest = b""  # the rest of a head or a chunk's size line that has not ended
        self._is_chunked = False
        self._left: int | None = None  # bytes of the chunk or body still to come; None: until the connection ends
        self._is_after_chunk = False  # the CRLF at the end of a chunk comes next

    def receive(self, data: bytes) -> bytes:
        """Return the body bytes in `data`. Raises `WireError`."""
        if not self.status:
            head, end, data = (self._rest + data).partition(b"\r\n\r\n")
            self._rest = b"" if end else head
            if not end:
                return b""
            self._take_head(head.decode("latin-1"))
        if self._is_chunked:
            return self._take_chunks(data)
        if self._left is not None:
            self._left -= len(data)
            self.is_complete = self._left <= 0
        return data

    def _take_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        if not first.startswith("HTTP/1.1 "):
            raise WireError(f"invalid status line: {first!r}")
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.status = int(first[9:12])
        if self.status == 101:
            return
        self._is_chunked = "transfer-encoding" in self.headers
        if self._is_chunked:
            self._left = 0
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])
            self.is_complete = self._left == 0

    def _take_chunks(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        pieces, position = [], 0
        while not self.is_complete:
            if self._left:
                pieces.append(data[position : position + self._left])
                position += len(pieces[-1])
                self._left -= len(pieces[-1])
                self._is_after_chunk = True
                if self._left:
                    break
            start = position + 2 if self._is_after_chunk else position
            end = data.find(b"\r\n", start)
            if end < 0:
                self._rest = data[position:]
                break
            try:
                self._left = int(data[start:end].partition(b";")[0], 16)
            except ValueError as error:
                raise WireError(f"invalid chunk size: {data[start:end]!r}") from error
            position = end + 2
            self.is_complete = not self._left
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class LoadFrames:
    """The frames of a WebSocket server, with the interface of `wirecheck.Frames`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fragments: list[bytes] = []

    def receive(self, data: bytes) -> list[Event]:
        """Return the messages and control frames that `data` completes. Raises `WireError`."""
        self._buffer += data
        events: list[Event] = []
        buffer, position = self._buffer, 0
        while len(buffer) >= position + 2:
            first, length, start = buffer[position], buffer[position + 1], position + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(buffer[position + 2 : start])
            if len(buffer) < start + length:  # also true if the length itself is incomplete
                break
            position = start + length
            if (event := self._event(first & 0x80, first & 0x0F, bytes(buffer[start:position]))) is not None:
                events.append(event)
        if position:
            del buffer[:position]
        return events

    def _event(self, is_final: int, opcode: int, payload: bytes) -> Event | None:
        match opcode:
            case 0x0 | 0x1:
                self._fragments.append(payload)
                if not is_final:
                    return None
                text = b"".join(self._fragments).decode()
                self._fragments.clear()
                return TextMessage(data=text)
            case 0x2:
                return BytesMessage(data=payload)
            case 0x8:
                code = struct.unpack_from("!H", payload)[0] if len(payload) >= 2 else 1005
                return CloseConnection(code=code, reason=payload[2:].decode())
            case 0x9:
                return Ping(payload=payload)
            case 0xA:
                return Pong(payload=payload)
            case _:
                raise WireError(f"unknown opcode {opcode}")

    def encode(self, event: TextMessage | BytesMessage | Ping | Pong | CloseConnection) -> bytes:
        """Return the masked frame that carries `event`."""
        match event:
            case TextMessage(data=text):
                opcode, payload = _TEXT, text.encode()
            case BytesMessage(data=data):
                opcode, payload = _BINARY, bytes(data)
            case CloseConnection(code=code):
                opcode, payload = _CLOSE, b"" if code == 1005 else struct.pack("!H", code)
            case Ping(payload=data):
                opcode, payload = _PING, bytes(data)
            case Pong(payload=data):
                opcode, payload = _PONG, bytes(data)
        return encode_frame(opcode, payload, mask=os.urandom(4))


class LoadSseSession(SseSession):
    """A session of the wire checker on the load client's reader."""

    new_response = LoadResponse


class LoadWsSession(WsSession):
    """A session of the wire checker on the load client's reader."""

    new_response = LoadResponse
    new_frames = LoadFrames
