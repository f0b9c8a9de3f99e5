"""Parsers of the wire: HTTP/1.1, server-sent events and WebSocket frames.

Layer: wirecheck.

h11 parses HTTP and wsproto parses WebSocket frames. The product serves with httptools and websockets and reads with
httpx2 and websockets, so a mistake of theirs cannot hide here. No independent library parses an event stream strictly,
so `SseParser` is written from the HTML standard. `encode_frame` builds frames by hand, because a test also needs frames
that wsproto refuses to send.

The parsers do no I/O: call `receive` with the bytes that were read. Do not make a check milder without a reason from
the protocol.
"""

import struct
from typing import NamedTuple

import h11
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage


class WireError(Exception):
    """The server broke HTTP, SSE or RFC 6455; later bytes on this connection cannot be trusted."""


# h11 accepts a response only after a request. The real request is built elsewhere, so these are never sent. They are
# shared, because h11 validates a request when it is made, which costs more than to parse a response.
_GET = h11.Request(method="GET", target="/", headers=[("Host", "unused")])
_UPGRADE = h11.Request(
    method="GET", target="/", headers=[("Host", "unused"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]
)
_END = h11.EndOfMessage()

_MAX_HEAD_BYTES = 8 * 1024  # limit of a response head, and of a line with a chunk's size


def get_request(target: str, headers: dict[str, str]) -> bytes:
    """Return the bytes of a GET request. Headers are not validated: a test may send wrong ones."""
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Response:
    """One HTTP/1.1 response to a GET request, parsed by h11. `status` is 0 until the head is complete.

    Only with `is_upgrade` may the server switch to WebSocket. After status 101, `receive` returns bytes unchanged.
    """

    def __init__(self, *, is_upgrade: bool = False) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = False  # the server has marked the end of the body: by a last chunk or a length
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._http.send(_UPGRADE if is_upgrade else _GET)
        self._http.send(_END)

    def receive(self, data: bytes) -> bytes:
        """Return the body bytes in `data`, without HTTP framing. Raises `WireError`."""
        if self.status == 101 or not data:
            return data
        try:
            self._http.receive_data(data)
            return self._take_events()
        except h11.RemoteProtocolError as error:
            raise WireError(f"invalid HTTP: {error}") from error

    def _take_events(self) -> bytes:
        pieces: list[bytes] = []
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if type(event) is h11.Data:
                pieces.append(event.data)
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                self._take_head(event)
            elif event is h11.PAUSED:
                break
            elif type(event) is h11.EndOfMessage:
                self.is_complete = True
        if self.status == 101 or self.is_complete:
            rest, _ = self._http.trailing_data
            if self.status == 101:
                return rest
            if rest:
                raise WireError(f"bytes after the end of the response: {rest[:80]!r}")
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _take_head(self, head: h11.Response | h11.InformationalResponse) -> None:
        if head.http_version != b"1.1":
            raise WireError(f"the response has HTTP version {head.http_version.decode()}, expected 1.1")
        if isinstance(head, h11.InformationalResponse) and head.status_code != 101:
            return  # an interim response such as 100; the final response follows
        self.status = head.status_code
        self.headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}


class SseEvent(NamedTuple):
    event: str
    data: bytes
    id: str | None  # only if this event carried the field itself


class SseParser:
    """A `text/event-stream` as the HTML standard reads it: a line ends in LF, CRLF or CR, and in no other character."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.comments = 0
        self.without_data = 0  # events without data: a browser drops them with all their other fields
        self._unfinished: list[bytes] = []  # the pieces of a line that has not ended
        self._is_after_cr = False
        self._event = ""
        self._data: list[bytes] = []
        self._id: str | None = None
        self._has_fields = False

    def receive(self, data: bytes) -> list[SseEvent]:
        """Return the events that `data` completes. Raises `WireError`."""
        if self._is_after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._is_after_cr = False
        if not data:
            return []
        if b"\r" in data:
            self._is_after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        else:
            self._is_after_cr = False
        if b"\n" not in data:  # a long line arrives in many pieces: join them once
            self._unfinished.append(data)
            return []
        lines = b"".join((*self._unfinished, data)).split(b"\n")
        last = lines.pop()
        self._unfinished = [last] if last else []
        events = []
        for line in lines:
            if line:
                self._take_line(line)
            elif (event := self._take_event()) is not None:
                events.append(event)
        return events

    def _take_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode()
        elif name == b"id":
            self._id = value.decode()
        elif name == b"retry":
            if not value.isdigit():
                raise WireError(f"the retry field must be a number of milliseconds, got {value!r}")
            self.retry_ms = int(value)
            return
        elif not name:
            self.comments += 1
            return
        else:
            raise WireError(f"unknown field {name!r} in an event stream")
        self._has_fields = True

    def _take_event(self) -> SseEvent | None:
        if not self._has_fields:
            return None
        event = SseEvent(self._event or "message", b"\n".join(self._data), self._id) if self._data else None
        if event is None:
            self.without_data += 1
        self._event, self._data, self._id, self._has_fields = "", [], None, False
        return event


class Frames:
    """The client's side of an open WebSocket (RFC 6455), without its handshake: wsproto with whole messages."""

    def __init__(self) -> None:
        self._connection = Connection(ConnectionType.CLIENT)
        self._pieces: list[str] = []  # the pieces of a text message that has not ended

    def receive(self, data: bytes) -> list[Event]:
        """Return the messages and control frames that `data` completes; text fragments are joined. Raises `WireError`.

        A fragment of a binary message is returned as it is: the protocol has no binary messages.
        """
        self._connection.receive_data(data)
        received: list[Event] = []
        for event in self._connection.events():
            if isinstance(event, TextMessage) and (self._pieces or not event.message_finished):
                self._pieces.append(event.data)
                if event.message_finished:
                    received.append(TextMessage(data="".join(self._pieces)))
                    self._pieces.clear()
                continue
            if isinstance(event, CloseConnection) and self._connection.state is ConnectionState.OPEN:
                # wsproto reports a broken frame as a close, but changes its state only for a close frame.
                raise WireError(f"invalid WebSocket frame: {event.reason}")
            received.append(event)
        return received

    def encode(self, event: TextMessage | BytesMessage | Ping | Pong | CloseConnection) -> bytes:
        """Return the masked frame that carries `event`; no bytes of a message once the server has begun to close."""
        state = self._connection.state
        is_late = state is ConnectionState.REMOTE_CLOSING and not isinstance(event, CloseConnection)
        return b"" if is_late or state is ConnectionState.CLOSED else self._connection.send(event)


def encode_frame(
    opcode: int,
    payload: bytes,
    *,
    mask: bytes,
    is_final: bool = True,
    reserved_bits: int = 0,
    length: int | None = None,
    is_64_bit: bool = False,
) -> bytes:
    """Return one frame, whether RFC 6455 allows it or not. `mask` has four bytes, or none for an unmasked frame.

    `length` replaces the true length; `is_64_bit` writes it in eight bytes even if a shorter form exists.
    """
    first = (0x80 if is_final else 0) | reserved_bits << 4 | opcode
    length = len(payload) if length is None else length
    mask_bit = 0x80 if mask else 0
    if length < 126 and not is_64_bit:
        head = struct.pack("!BB", first, mask_bit | length)
    elif length < 1 << 16 and not is_64_bit:
        head = struct.pack("!BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, length)
    if mask:
        stream = (mask * (len(payload) // 4 + 1))[: len(payload)]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
        payload = masked.to_bytes(len(payload), "big")
    return head + mask + payload
