"""What viewers of the peers read: wire formats as sessions, and one check for all of them, the text.

The sessions have the form of those in `holdfast.testing.rawviewer`, so that the same load client drives them. A
peer's message is one token and nothing else: the smallest thing that does the work, to the peer's advantage. A
viewer joins tokens as they come; one that was lost, doubled, moved or changed makes a text that is not the one sent,
and `bench.common.check` then voids the run. Tokens also say when they were sent, so latency is had from them.
"""

import base64
import json
import os
from array import array
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from bench import tokens
from holdfast.testing.rawviewer import Frames, Json, Response, SseParser, Violation, WireError, encode_frame

__all__ = ["KINDS", "NchanSse", "NchanWs", "SocketIo", "TextChecker", "TextSession", "XaddSse", "open_session"]

_TEXT, _CLOSE, _PING, _PONG = 0x1, 0x8, 0x9, 0xA
_BROKEN = (WireError, UnicodeDecodeError, msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError)


class TextChecker:
    """One channel as one viewer sees it, over as many connections as it takes.

    What `bench.load` asks of a checker: `deliveries` are called batches there, since ours deliver batches.
    """

    def __init__(self, channel: str, latencies: "array[float] | None" = None) -> None:
        self.channel = channel
        self.violations: list[Violation] = []
        self.batches = 0
        self.payload_bytes = 0  # bodies without chunking, and payloads of frames
        self.is_done = False
        self.position: str | None = None  # from where to resume, in the peer's own words
        self.pieces: list[str] = []
        self._latencies = latencies

    @property
    def whole(self) -> str:
        return "".join(self.pieces)

    def text(self, _message_id: str) -> str:
        """All that has come: a channel of a peer carries one answer."""
        return self.whole

    def differences(self, _message: Json) -> list[str]:
        return []

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))

    def take(self, text: str, position: str | None, now_s: float) -> None:
        """One message, which is one token."""
        if self.is_done:
            self.violate("after the end", repr(text))
        self.batches += 1
        self.pieces.append(text)
        if position is not None:
            self.position = position
        if self._latencies is not None:
            self._latencies.extend(tokens.latencies_ms(text, 0, 0, now_s))


class TextSession:
    """One connection without its socket: the common part. `resume` is a position to go on from."""

    def __init__(self, checker: TextChecker, request: bytes) -> None:
        self.checker = checker
        self.response = Response()
        self.body = b""  # of an answer that is not a stream
        self.is_over = False
        self.has_attached = False
        self._to_send = request

    def bytes_to_send(self) -> bytes:
        data, self._to_send = self._to_send, b""
        return data

    def receive(self, data: bytes, *, now_s: float) -> None:
        """Take bytes that were read at `now_s`."""
        if self.is_over:
            return
        try:
            self._receive(self.response.receive(data) if self.response.status != 101 else data, now_s)
        except _BROKEN as error:
            self.checker.violate("protocol", repr(error))
            self.is_over = True

    def receive_end(self) -> None:
        """The connection was closed or cut."""
        self.is_over = True

    def _receive(self, data: bytes, now_s: float) -> None:
        raise NotImplementedError

    def _refused(self, data: bytes, expected: int) -> bool:
        """Whether the answer is none of a stream; then what it says is kept for whoever asks."""
        if self.response.status and self.response.status != expected:
            self.body += data
            if not self.checker.violations:
                self.checker.violate("refused", f"{self.response.status}: {self.body[:300]!r}")
            return True
        return not self.response.status


class _Sse(TextSession):
    def __init__(self, checker: TextChecker, path: str, host: str, resume: str | None) -> None:
        headers = {"Host": host, "Accept": "text/event-stream"}
        if resume is not None:
            headers["Last-Event-ID"] = resume
        super().__init__(checker, _get(path, headers))
        self._parser = SseParser()

    def _receive(self, data: bytes, now_s: float) -> None:
        if self._refused(data, 200):
            return
        self.has_attached = True
        self.checker.payload_bytes += len(data)
        for event in self._parser.receive(data):
            if event.event == "done":
                self.checker.is_done = True
            else:
                self.checker.take(self._text(event.data), event.id, now_s)
        if self.response.is_complete and not self.checker.is_done:
            self.checker.violate("ended", "the stream ended before its answer did")

    def _text(self, data: bytes) -> str:
        return data.decode()


class NchanSse(_Sse):
    """An EventSource location of nchan: the token as it is."""

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        super().__init__(checker, f"/subscribe/{quote(checker.channel)}", host, resume)


class XaddSse(_Sse):
    """The usual SSE endpoint: the token as a JSON string, since a token may hold a line's end."""

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        super().__init__(checker, f"/channels/{quote(checker.channel)}/events", host, resume)

    def _text(self, data: bytes) -> str:
        return msgspec.json.decode(data, type=str)


class _Ws(TextSession):
    def __init__(self, checker: TextChecker, path: str, host: str, protocol: str | None = None) -> None:
        headers = {
            "Host": host,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        }
        if protocol is not None:
            headers["Sec-WebSocket-Protocol"] = protocol
        super().__init__(checker, _get(path, headers))
        self._frames = Frames()

    def _receive(self, data: bytes, now_s: float) -> None:
        if self._refused(data, 101):
            return
        self._opened()
        for opcode, payload in self._frames.receive(data):
            if opcode == _PING:
                self._send(_PONG, payload)
            elif opcode == _CLOSE:
                self.checker.violate("ended", f"closed by the server: {payload!r}")
                self.is_over = True
            elif opcode == _TEXT:
                self.checker.payload_bytes += len(payload)
                self._take(payload, now_s)

    def _opened(self) -> None:
        """The handshake is over."""
        self.has_attached = True

    def _take(self, payload: bytes, now_s: float) -> None:
        raise NotImplementedError

    def _send(self, opcode: int, payload: bytes) -> None:
        self._to_send += encode_frame(opcode, payload, mask=os.urandom(4))


class NchanWs(_Ws):
    """A WebSocket location of nchan: a frame is a token; it has no position, so it cannot resume."""

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        assert resume is None
        super().__init__(checker, f"/subscribe/{quote(checker.channel)}", host)

    def _take(self, payload: bytes, now_s: float) -> None:
        self.checker.take(payload.decode(), None, now_s)


class NchanWsMeta(_Ws):
    """nchan's own subprotocol: each frame begins with headers, the message's id among them, so that it can resume."""

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        query = f"?last_event_id={quote(resume)}" if resume is not None else ""
        super().__init__(checker, f"/subscribe/{quote(checker.channel)}{query}", host, "ws+meta.nchan")

    def _take(self, payload: bytes, now_s: float) -> None:
        head, _, text = payload.partition(b"\n\n")
        (position,) = [line[4:].decode() for line in head.split(b"\n") if line.startswith(b"id: ")]
        self.checker.take(text.decode(), position, now_s)


class SocketIo(_Ws):
    """Socket.IO 5 over Engine.IO 4 by WebSocket alone; the channel is said in the CONNECT packet's auth.

    A position is the private id of the session and the offset that recovery appends to each event.
    """

    def __init__(self, checker: TextChecker, *, host: str, resume: str | None = None) -> None:
        super().__init__(checker, "/socket.io/?EIO=4&transport=websocket", host)
        self._auth: Json = {"channel": checker.channel}
        self._pid = ""
        if resume is not None:
            self._pid, _, offset = resume.partition(" ")
            self._auth |= {"pid": self._pid, "offset": offset}
        self._wanted_pid = self._pid

    def _opened(self) -> None:
        """Attached is who has been answered, not who has been let in."""

    def _take(self, payload: bytes, now_s: float) -> None:
        kind, rest = payload[:1], payload[1:]
        if kind == b"0":  # Engine.IO: open
            self._send(_TEXT, b"40" + json.dumps(self._auth).encode())
        elif kind == b"2":  # Engine.IO: ping
            self._send(_TEXT, b"3")
        elif kind == b"4" and rest[:1] == b"0":  # Socket.IO: connected
            self._pid = msgspec.json.decode(rest[1:])["pid"]
            self.has_attached = True
            if self._wanted_pid and self._pid != self._wanted_pid:
                self.checker.violate("not recovered", "the session was given up, and what was missed is lost")
        elif kind == b"4" and rest[:1] == b"2":  # Socket.IO: event
            _, text, offset = msgspec.json.decode(rest[1:], type=list[str])
            self.checker.take(text, f"{self._pid} {offset}", now_s)
        else:
            raise WireError(f"a packet that was not expected: {payload[:80]!r}")


KINDS: dict[str, Callable[..., TextSession]] = {
    "nchan-sse": NchanSse,
    "nchan-ws": NchanWs,
    "nchan-ws-meta": NchanWsMeta,
    "socketio": SocketIo,
    "xadd-sse": XaddSse,
}


def open_session(kind: str, checker: TextChecker, *, host: str, resume: str | None = None) -> TextSession:
    """The session of a viewer of this kind."""
    return KINDS[kind](checker, host=host, resume=resume)


def _get(path: str, headers: dict[str, Any]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
