"""Raw viewers: what an independent client sees on the wire, and whether it was right.

You are in `testing`: tools for tests, which nothing in the product imports. Nothing here uses an SDK, an HTTP library
or the product's own fold: the parsers and the `Checker` were written from the protocol alone, so that a mistake
in the product cannot hide behind the same mistake here. Three layers, each usable by itself:

- parsers: `Response` (HTTP/1.1 with chunked bodies), `SseParser`, `Frames` (RFC 6455, the client's side);
- `Checker`: follows the protocol's client rules in the simplest possible way and writes down every violation;
- sessions: `SseSession` and `WsSession` join the two without any I/O, so that asyncio (`SseViewer`,
  `WsViewer` below) and an epoll loop with thousands of connections can drive them alike.

Strict on purpose: what a tolerant client would let pass is a violation here. Safe to change: everything private, and
what a violation says. Not safe: making a check milder without a reason from the protocol.
"""

import asyncio
import base64
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol, Self
from urllib.parse import quote, urlencode

import msgspec

__all__ = [
    "Checker",
    "Frames",
    "Json",
    "Received",
    "Response",
    "SeenMessage",
    "SeenPart",
    "Session",
    "SseEvent",
    "SseParser",
    "SseSession",
    "SseViewer",
    "Violation",
    "WireError",
    "WsSession",
    "WsViewer",
    "encode_frame",
]

Json = dict[str, Any]
"""A decoded JSON object. Not the product's types: the checker looks at what came, not at what a type made of it."""

Observe = Callable[[str, Json, float], None]
"""Called with channel, event and the time at which its bytes were read, before the checker sees the event."""


class WireError(Exception):
    """The server broke HTTP, SSE or RFC 6455; nothing after it on this connection can be trusted."""


# Parsers


class _ChunkState(Enum):
    SIZE = auto()
    DATA = auto()
    AFTER_DATA = auto()
    TRAILER = auto()
    COMPLETE = auto()


_LONGEST_LINE_BYTES = 8 * 1024
_HEX = frozenset(b"0123456789abcdefABCDEF")


class _Chunked:
    """A chunked body (RFC 9112, 7.1), taken apart as it comes."""

    def __init__(self) -> None:
        self._state = _ChunkState.SIZE
        self._line = b""
        self._left = 0

    @property
    def is_complete(self) -> bool:
        return self._state is _ChunkState.COMPLETE

    def receive(self, data: bytes) -> bytes:
        """The payload bytes in `data`. Raises `WireError`."""
        payload = []
        position = 0
        while position < len(data):
            if self._state is _ChunkState.DATA:
                piece = data[position : position + self._left]
                payload.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _ChunkState.AFTER_DATA
                continue
            end = data.find(b"\n", position) + 1
            self._line += data[position : end or len(data)]
            if len(self._line) > _LONGEST_LINE_BYTES:
                raise WireError("a chunk's size line has no end")
            if not end:
                break
            line, self._line, position = self._line, b"", end
            self._take_line(line)
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise WireError(f"a line of chunked framing ends without CRLF: {line!r}")
        line = line[:-2]
        if self._state is _ChunkState.SIZE:
            size = line.partition(b";")[0].rstrip(b" \t")
            if not size or not _HEX.issuperset(size):
                raise WireError(f"not the size of a chunk: {line!r}")
            self._left = int(size, 16)
            self._state = _ChunkState.DATA if self._left else _ChunkState.TRAILER
        elif self._state is _ChunkState.AFTER_DATA:
            if line:
                raise WireError(f"bytes beyond the end of a chunk: {line!r}")
            self._state = _ChunkState.SIZE
        elif self._state is _ChunkState.TRAILER:
            if not line:
                self._state = _ChunkState.COMPLETE
        else:
            raise WireError(f"bytes after the last chunk: {line!r}")


class Response:
    """One HTTP/1.1 response. Feed it with `receive`; `status` is 0 until the head is complete."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._head = b""
        self._chunked: _Chunked | None = None
        self._left: int | None = None  # of a body with a length; None: until the connection ends

    @property
    def is_complete(self) -> bool:
        """Whether the body has said that it is over: by its last chunk or its length."""
        if not self.status:
            return False
        return self._chunked.is_complete if self._chunked is not None else self._left == 0

    def receive(self, data: bytes) -> bytes:
        """The bytes of the body in `data`, without framing. Raises `WireError`."""
        if not self.status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if len(head) > 8 * _LONGEST_LINE_BYTES:
                raise WireError("the head of the response has no end")
            if not end:
                return b""
            self._head = b""
            self._take_head(head)
        if self._chunked is not None:
            return self._chunked.receive(data)
        if self._left is not None:
            if len(data) > self._left:
                raise WireError("bytes after the end of the body")
            self._left -= len(data)
        return data

    def _take_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if version != "HTTP/1.1" or not rest[:3].isdigit():
            raise WireError(f"not the first line of a response: {first!r}")
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise WireError(f"not a header: {line!r}")
            self.headers[name.lower()] = value.strip()
        self.status = int(rest[:3])
        if self.status in (101, 204, 304):
            self._left = None if self.status == 101 else 0
        elif "transfer-encoding" in self.headers:
            if self.headers["transfer-encoding"].lower() != "chunked":
                raise WireError(f"transfer-encoding {self.headers['transfer-encoding']!r}")
            self._chunked = _Chunked()
        elif "content-length" in self.headers:
            self._left = int(self.headers["content-length"])


class SseEvent(NamedTuple):
    event: str
    data: bytes
    id: str | None  # only when it stood in this very event


class SseParser:
    """`text/event-stream` as the HTML standard reads it: lines end in LF, CRLF or CR, and nothing else."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.comments = 0
        self.without_data = 0  # events a browser would drop, with whatever else stood in them
        self._waiting: list[bytes] = []  # the beginning of a line
        self._is_after_cr = False
        self._event = ""
        self._data: list[bytes] = []
        self._id: str | None = None
        self._has_fields = False

    @property
    def is_between_events(self) -> bool:
        return not self._waiting and not self._has_fields

    def receive(self, data: bytes) -> list[SseEvent]:
        """The events that `data` completes. Raises `WireError`."""
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
        if b"\n" not in data:  # a long line comes in many pieces: join them once
            self._waiting.append(data)
            return []
        lines = b"".join((*self._waiting, data)).split(b"\n")
        last = lines.pop()
        self._waiting = [last] if last else []
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
                raise WireError(f"not a number of milliseconds in retry: {value!r}")
            self.retry_ms = int(value)
            return
        elif not name:
            self.comments += 1
            return
        else:
            raise WireError(f"not a field of an event stream: {name!r}")
        self._has_fields = True

    def _take_event(self) -> SseEvent | None:
        if not self._has_fields:
            return None
        event = SseEvent(self._event or "message", b"\n".join(self._data), self._id) if self._data else None
        if event is None:
            self.without_data += 1
        self._event, self._data, self._id, self._has_fields = "", [], None, False
        return event


_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class Frames:
    """What a WebSocket server sends (RFC 6455, 5.2), fragments joined to whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._fragments: list[bytes] = []
        self._opcode = 0  # of the message whose fragments are being gathered

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of each message and control frame that `data` completes. Raises `WireError`."""
        self._buffer += data
        messages = []
        position = 0
        while (frame := self._frame(position)) is not None:
            first, start, position = frame
            if (message := self._take_frame(first, bytes(self._buffer[start:position]))) is not None:
                messages.append(message)
        if position:
            del self._buffer[:position]
        return messages

    def _frame(self, position: int) -> tuple[int, int, int] | None:
        """First byte, start and end of the payload of the frame at `position`, if it is all there."""
        buffer = self._buffer
        if len(buffer) < position + 2:
            return None
        first, length = buffer[position], buffer[position + 1]
        if length & 0x80:
            raise WireError("a frame from the server is masked")
        start = position + 2
        for code, layout in ((126, "!H"), (127, "!Q")):
            if length == code:
                size = struct.calcsize(layout)
                if len(buffer) < start + size:
                    return None
                (length,) = struct.unpack_from(layout, buffer, start)
                if length < (126 if code == 126 else 1 << 16):
                    raise WireError("a frame's length is not in its shortest form")
                start += size
                break
        return (first, start, start + length) if len(buffer) >= start + length else None

    def _take_frame(self, first: int, payload: bytes) -> tuple[int, bytes] | None:
        is_last, opcode = bool(first & 0x80), first & 0x0F
        if first & 0x70:
            raise WireError("a frame uses an extension that nobody asked for")
        if opcode in (_CLOSE, _PING, _PONG):
            if not is_last or len(payload) > 125:
                raise WireError("a control frame is cut up or too long")
            return opcode, payload
        if opcode not in (_CONTINUATION, _TEXT, _BINARY):
            raise WireError(f"a frame has the unknown opcode {opcode}")
        if (opcode == _CONTINUATION) is not bool(self._opcode):
            raise WireError("a continuation without a beginning, or a beginning without an end")
        self._opcode = opcode or self._opcode
        self._fragments.append(payload)
        if not is_last:
            return None
        opcode, self._opcode = self._opcode, 0
        payload = b"".join(self._fragments)
        self._fragments.clear()
        return opcode, payload


def encode_frame(opcode: int, payload: bytes, *, mask: bytes) -> bytes:
    """One whole frame as a client sends it, masked with the four bytes of `mask`."""
    assert len(mask) == 4
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    stream = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
    return head + mask + masked.to_bytes(length, "big")


# The checker


@dataclass(frozen=True)
class Violation:
    """Something the server may never do. `kind` is stable within a test, `detail` is for the reader."""

    kind: str
    detail: str


@dataclass
class SeenPart:
    """A part as shown: its fields as they came, and the text that has grown since."""

    fields: Json
    serial: int  # of its last change
    length: int = 0  # in code points
    pieces: list[str] = field(default_factory=list)

    @classmethod
    def opened(cls, fields: Json, serial: int) -> Self:
        text = fields.get(cls._grows(fields), "")
        return cls(fields=fields, serial=serial, length=len(text), pieces=[text])

    @staticmethod
    def _grows(fields: Json) -> str:
        return "input" if fields.get("type") == "tool" else "text"

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0]

    def append(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)

    def as_json(self) -> Json:
        key = self._grows(self.fields)
        return self.fields | {key: self.text} if self.length or key in self.fields else self.fields


@dataclass
class SeenMessage:
    """A message as shown. `fields` is everything but its parts."""

    fields: Json
    parts: list[SeenPart]
    replaced_at: int  # serial of its last create or update: that of every part not opened since
    version: int

    @classmethod
    def whole(cls, message: Json, serial: int) -> Self:
        fields = {key: value for key, value in message.items() if key != "parts"}
        parts = [SeenPart.opened(part, serial) for part in message.get("parts", [])]
        return cls(fields=fields, parts=parts, replaced_at=serial, version=serial)

    @property
    def status(self) -> str:
        return str(self.fields.get("status"))

    @property
    def text(self) -> str:
        """All its text parts, one after the other."""
        return "".join(part.text for part in self.parts if part.fields.get("type") == "text")

    def as_json(self) -> Json:
        parts = [part.as_json() for part in self.parts]
        return _without_empty(self.fields | {"version": self.version, "parts": parts})


def _without_empty(fields: Json) -> Json:
    return {key: value for key, value in fields.items() if value is not None and value != [] and value != {}}


@dataclass
class _View:
    messages: dict[str, SeenMessage] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    has_more: bool = False  # older messages exist that this view was never shown
    before: int = 0


def _parse_cursor(cursor: str) -> tuple[str, int] | None:
    epoch, *rest = cursor.split(":")
    return (epoch, int(rest[0])) if rest and rest[0].isascii() and rest[0].isdigit() else None


class Checker:
    """One channel as one client sees it, over as many connections as it takes.

    Follows the client rules of the protocol; whatever no correct server could have sent is added to `violations`
    and otherwise treated as the rules say. What a violation means for the run is for the caller to decide.
    Tell it of each connection with `begin` and `end`, and hand it all that comes with `take`.
    """

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.violations: list[Violation] = []
        self.events = 0
        self.batches = 0
        self.payload_bytes = 0  # counted by the sessions: bodies and frames without their framing
        self.new_starts = 0
        self.resumes = 0
        self.cursor: str | None = None  # of the last complete batch; None after a hole, until a new start
        self.epoch = "-"
        self._view = _View()
        self._aside: _View | None = None  # being put together by a new start
        self._since: tuple[str, int] | None = None
        self.has_attached = False  # whether this connection's first batch is complete
        self._has_begun = False  # whether this connection has brought a channel.attached
        self._is_behind = False  # something was lost: only a new start helps
        self._last_serial = 0
        self._attach_serial = 0  # the next cursor may not be below it
        self._is_batch_open = False

    # What is shown

    @property
    def messages(self) -> dict[str, SeenMessage]:
        return self._view.messages

    def text(self, message_id: str) -> str:
        """The text shown of a message; empty when it is not in view."""
        message = self._view.messages.get(message_id)
        return message.text if message else ""

    def status(self, message_id: str) -> str | None:
        message = self._view.messages.get(message_id)
        return message.status if message else None

    def differences(self, message: Json) -> list[str]:
        """How the view of `message` differs from what the server says it is; empty when it does not."""
        seen = self._view.messages.get(message["id"])
        if seen is None:
            return ["not in view"]
        shown, truth = seen.as_json(), _without_empty(message)
        return [
            f"{key}: shown {_short(shown.get(key))}, stored {_short(truth.get(key))}"
            for key in sorted(shown.keys() | truth.keys())
            if shown.get(key) != truth.get(key)
        ]

    # What happens

    def begin(self, since: str | None) -> None:
        """A connection begins that asks for what came after `since`."""
        self._since = _parse_cursor(since) if since is not None else None
        if self.cursor is None and self._since is not None and self._since[1] > 0:
            self._view.has_more = True  # what came before was shown to somebody else
        self._has_begun = self.has_attached = False
        self._last_serial = self._since[1] if self._since else 0
        self._attach_serial = 0
        self._is_batch_open = False
        self._aside = None

    def end(self) -> None:
        """The connection is over, wherever it was; what it had not completed is asked for again."""
        self._aside = None
        self._is_batch_open = False

    def take(self, events: list[Json], cursor: str | None = None) -> None:
        """Take what came together; `cursor` if it stood at its end."""
        for event in events:
            self.events += 1
            try:
                self._take_event(event)
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                self.violate("malformed", f"{error!r} in {_short(event)}")
        if cursor is not None:
            if events and not self._is_batch_open:
                self.violate("cursor", f"{cursor} at the end of what is not a batch")
            self._complete(cursor)

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(Violation(kind, detail))

    def _take_event(self, event: Json) -> None:
        kind = event["type"]
        if kind == "channel.attached":
            self._attached(event)
            return
        if not self._has_begun:
            self.violate("unattached", f"{kind} before channel.attached")
        serial = event.get("serial")
        if serial is not None:  # what has none (presence, signals) is not of the log and in no batch
            if serial <= self._last_serial:
                # Either the batch is out of order, or a cursor came too early: what it said was seen still came.
                self.violate("serial", f"{kind} with serial {serial} after {self._last_serial}")
            self._last_serial = max(self._last_serial, serial)
            self._is_batch_open = True
        handler = self._HANDLERS.get(kind)
        if handler is not None:
            handler(self, event, event["serial"])

    def _attached(self, event: Json) -> None:
        epoch, serial, resumed = event["epoch"], event["serial"], event["resumed"]
        if event["channel"] != self.channel:
            self.violate("channel", f"attached to {event['channel']!r}")
        if self._is_batch_open:
            self.violate("batch", "channel.attached in the middle of a batch")
        if resumed:
            self.resumes += 1
            self._check_resumed(epoch, serial)
        else:
            self.new_starts += 1
            self._aside = _View(has_more=event.get("more", False), before=event.get("before", 0))
            self._last_serial = 0
        self.epoch = epoch
        self._attach_serial = serial
        self._has_begun = True
        self._is_batch_open = True

    def _check_resumed(self, epoch: str, serial: int) -> None:
        # In mid-stream what counts is where this connection has come to, not where it began.
        known = _parse_cursor(self.cursor) if self._has_begun and self.cursor else self._since
        if known is None:
            self.violate("resumed", "resumed: true without a cursor to resume from")
        elif epoch != known[0] and known[0] != "-":
            self.violate("resumed", f"resumed: true from epoch {known[0]} in epoch {epoch}")
        elif serial < known[1]:
            self.violate("resumed", f"resumed: true from serial {known[1]} at serial {serial}")

    def _complete(self, cursor: str) -> None:
        parsed = _parse_cursor(cursor)
        if parsed is None:
            return self.violate("cursor", f"not a cursor of ours: {cursor!r}")
        epoch, serial = parsed
        if not self._has_begun:
            self.violate("cursor", "a cursor before channel.attached")
        if epoch != self.epoch:
            self.violate("cursor", f"of epoch {epoch} in epoch {self.epoch}")
        if serial < self._last_serial:
            self.violate("cursor", f"{cursor} at the end of a batch with serial {self._last_serial}")
        if serial < self._attach_serial:
            self.violate("cursor", f"{cursor} before the end of a catch-up to {self._attach_serial}")
        self.batches += 1
        self.has_attached = self._has_begun
        self._is_batch_open = False
        self._last_serial = serial
        self._attach_serial = 0
        if self._aside is not None:
            self._view, self._aside, self._is_behind = self._aside, None, False
        self.cursor = None if self._is_behind else cursor
        return None

    # Messages: each handler gets the event and its serial

    def _whole(self, event: Json, serial: int) -> None:
        view = self._current()
        message = event["message"]
        id = message["id"]
        if message["version"] != serial:
            self.violate("version", f"{event['type']} {serial} holds version {message['version']} of {id}")
        if serial <= view.deleted.get(id, 0):
            return
        if id in view.deleted:
            self.violate("deleted", f"{event['type']} {serial} of {id}, deleted at {view.deleted[id]}")
        seen = view.messages.get(id)
        if seen is None:
            is_older = view.before and message["created"] < view.before
            if is_older and self._aside is None and message["status"] != "streaming":
                return
        elif serial <= seen.version:
            return
        view.messages[id] = SeenMessage.whole(message, serial)

    def _append(self, event: Json, serial: int) -> None:
        id, index, at, text = event["id"], event["part"], event["at"], event["text"]
        message = self._message(event, serial)
        if message is None:
            return
        if index >= len(message.parts):
            if serial > message.replaced_at:
                self._lost(f"append {serial} to part {index} of {id}, which has {len(message.parts)} parts")
            return
        part = message.parts[index]
        if serial <= part.serial:
            return
        overlap = part.length - at
        if overlap < 0:
            self._lost(f"append {serial} at {at} of part {index} of {id}, which has {part.length} characters")
            return
        if overlap:
            known = part.text[at : at + len(text)]
            if not text.startswith(known):
                self.violate("text", f"append {serial} at {at} of {id}: {_short(text)}, shown {_short(known)}")
            text = text[overlap:]
        part.append(text)
        part.serial = serial
        message.version = max(message.version, serial)

    def _part(self, event: Json, serial: int) -> None:
        id, index = event["id"], event["index"]
        message = self._message(event, serial)
        if message is None:
            return
        if index > len(message.parts):
            if serial > message.replaced_at:
                self._lost(f"part {index} of {id}, which has {len(message.parts)} parts")
            return
        known = message.parts[index].serial if index < len(message.parts) else message.replaced_at
        if serial <= known:
            return
        message.parts[index : index + 1] = [SeenPart.opened(event["part"], serial)]
        message.fields["updated_at"] = event["updated_at"]
        message.version = max(message.version, serial)

    def _finish(self, event: Json, serial: int) -> None:
        message = self._message(event, serial)
        if message is None or serial <= message.version:
            return
        if event["status"] not in ("complete", "cancelled", "interrupted", "failed"):
            self.violate("malformed", f"finish {serial} with status {event['status']!r}")
        for key in ("status", "reason", "meta", "updated_at"):
            message.fields[key] = event.get(key)
        message.version = serial

    def _takeover(self, event: Json, serial: int) -> None:
        message = self._message(event, serial)
        if message is None or serial <= message.version:
            return
        message.fields["status"] = "streaming"
        message.fields["reason"] = None
        message.version = serial

    def _delete(self, event: Json, serial: int) -> None:
        view = self._current()
        view.messages.pop(event["id"], None)
        view.deleted[event["id"]] = max(serial, view.deleted.get(event["id"], 0))

    # Inside

    def _current(self) -> _View:
        return self._view if self._aside is None else self._aside

    def _message(self, event: Json, serial: int) -> SeenMessage | None:
        """The message an event is about; none, and a violation unless it may be missing, when it is not in view."""
        view, id = self._current(), event["id"]
        message = view.messages.get(id)
        if message is None and serial > view.deleted.get(id, 0):
            if id in view.deleted:
                self.violate("deleted", f"{event['type']} {serial} of {id}, deleted at {view.deleted[id]}")
            elif not view.has_more:
                self._lost(f"{event['type']} {serial} of {id}, which was never shown")
        return message

    def _lost(self, detail: str) -> None:
        """A hole: the cursor would not heal it, so it is forgotten, and the view waits for a new start."""
        self.violate("hole", detail)
        self._is_behind = True
        self.cursor = None

    _HANDLERS: ClassVar[dict[str, Callable[["Checker", Json, int], None]]] = {
        "message.create": _whole,
        "message.update": _whole,
        "message.append": _append,
        "message.part": _part,
        "message.finish": _finish,
        "message.takeover": _takeover,
        "message.delete": _delete,
    }


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:80]}…{shown[-30:]} ({len(shown)} characters)"


# Sessions

_BROKEN = (WireError, UnicodeDecodeError, msgspec.DecodeError, KeyError, TypeError, struct.error)


class Session(Protocol):
    """One connection without its socket. Send what `bytes_to_send` returns, first and after every `receive`."""

    def bytes_to_send(self) -> bytes: ...
    def receive(self, data: bytes, *, now_s: float) -> None: ...
    def receive_end(self) -> None: ...
    @property
    def has_attached(self) -> bool: ...
    @property
    def is_over(self) -> bool: ...


class SseSession:
    """One GET of a channel's events."""

    def __init__(
        self,
        checker: Checker,
        *,
        since: str | None = None,
        last_event_id: str | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        host: str = "127.0.0.1",
        prefix: str = "",
        observe: Observe | None = None,
    ) -> None:
        self.checker = checker
        self.response = Response()
        self.parser = SseParser()
        self.pings = 0
        self.bye: Any = None
        self.body = b""  # of an answer that is not a stream
        self.is_over = False
        self._has_events = False
        self._observe = observe
        asked = ({"since": since} if since is not None else {}) | (query or {})
        path = f"{prefix}/v1/channels/{quote(checker.channel, safe='')}/events"
        sent = {"Host": host, "Accept": "text/event-stream"}
        if last_event_id is not None:
            sent["Last-Event-ID"] = last_event_id
        self._to_send = _request(path + ("?" + urlencode(asked) if asked else ""), sent | (headers or {}))
        checker.begin(last_event_id if last_event_id is not None else since)

    @property
    def has_attached(self) -> bool:
        return self.checker.has_attached

    def bytes_to_send(self) -> bytes:
        data, self._to_send = self._to_send, b""
        return data

    def receive(self, data: bytes, *, now_s: float) -> None:
        """Take bytes that were read at `now_s`. After `is_over` there is nothing more to expect."""
        if self.is_over:
            return
        is_first = not self.response.status
        try:
            payload = self.response.receive(data)
            if is_first and self.response.status:
                self._check_head()
            if self.response.status != 200:
                self.body += payload
            else:
                self.checker.payload_bytes += len(payload)
                for event in self.parser.receive(payload):
                    self._take(event, now_s)
        except _BROKEN as error:
            self.checker.violate("protocol", repr(error))
            self._end()
            return
        if self.response.is_complete:
            if self.response.status == 200 and self.bye is None:
                self.checker.violate("ended", "the stream ended as if it were complete")
            self._end()

    def receive_end(self) -> None:
        """The connection was closed or cut."""
        if not self.is_over:
            self._end()

    def _end(self) -> None:
        self.is_over = True
        self.checker.end()

    def _check_head(self) -> None:
        headers = self.response.headers
        if self.response.status != 200:
            return
        expected = {
            "content-type": ("text/event-stream", "text/event-stream; charset=utf-8"),
            "cache-control": ("no-cache, no-transform",),
            "x-accel-buffering": ("no",),
            "content-encoding": ("",),
        }
        for name, allowed in expected.items():
            if headers.get(name, "").lower() not in allowed:
                self.checker.violate("header", f"{name}: {headers.get(name)!r}")

    def _take(self, event: SseEvent, now_s: float) -> None:
        if not self._has_events and event.event != "bye":
            self._has_events = True
            if self.parser.retry_ms is None or not 1000 <= self.parser.retry_ms <= 3000:
                self.checker.violate("retry", f"the first event came with retry {self.parser.retry_ms}")
        if self.parser.without_data:
            self.checker.violate("protocol", "an event without data, which browsers drop")
            self.parser.without_data = 0
        decoded = msgspec.json.decode(event.data)
        if event.event == "ping":
            self.pings += 1
        elif event.event == "bye":
            self.bye = decoded
        else:
            if decoded["type"] != event.event:
                self.checker.violate("protocol", f"event {event.event!r} holds {decoded['type']!r}")
            if self._observe is not None:
                self._observe(self.checker.channel, decoded, now_s)
            self.checker.take([decoded], event.id)
            return
        if event.id is not None:
            self.checker.violate("cursor", f"an id on {event.event}")


_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SUBPROTOCOL = "holdfast.v1"


class WsSession:
    """One WebSocket with any number of channels, each with its own checker."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        prefix: str = "",
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self.checkers: dict[str, Checker] = {}
        self.response = Response()
        self.replies: list[Json] = []  # `ok` and `error`, in the order they came
        self.bye: Json | None = None
        self.close_code: int | None = None
        self.body = b""  # of an answer that is not an upgrade
        self.is_over = False
        self._frames = Frames()
        self._observe = observe
        self._key = base64.b64encode(os.urandom(16))
        self._refs = 0
        self._waiting: list[Json] = []  # until the handshake is over
        upgrade = {
            "Host": host,
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self._key.decode(),
            "Sec-WebSocket-Protocol": _SUBPROTOCOL,
        }
        path = f"{prefix}/v1/ws" + ("?" + urlencode(query) if query else "")
        self._to_send = _request(path, upgrade | (headers or {}))

    @property
    def has_attached(self) -> bool:
        return bool(self.checkers) and all(checker.has_attached for checker in self.checkers.values())

    def attach(self, checker: Checker, *, since: str | None = None, **fields: Any) -> int:
        """Ask for a channel; `fields` go into the frame. The bytes are there at the next `bytes_to_send`."""
        self.checkers[checker.channel] = checker
        checker.begin(since)
        if since is not None:
            fields["since"] = since
        return self.request("attach", channel=checker.channel, **fields)

    def request(self, type: str, /, **fields: Any) -> int:
        """Queue a frame of this type with a new `ref`, which is returned."""
        self._refs += 1
        frame = {"type": type, "ref": self._refs} | fields
        if self.response.status == 101:
            self._send(_TEXT, msgspec.json.encode(frame))
        else:
            self._waiting.append(frame)
        return self._refs

    def bytes_to_send(self) -> bytes:
        data, self._to_send = self._to_send, b""
        return data

    def receive(self, data: bytes, *, now_s: float) -> None:
        """Take bytes that were read at `now_s`. After `is_over` there is nothing more to expect."""
        if self.is_over:
            return
        try:
            self._receive(data, now_s)
        except _BROKEN as error:
            self._violate("protocol", repr(error))
            self.receive_end()

    def receive_end(self) -> None:
        """The connection was closed or cut."""
        self.is_over = True
        for checker in self.checkers.values():
            checker.end()

    def _receive(self, data: bytes, now_s: float) -> None:
        if self.response.status != 101:
            data = self.response.receive(data)
            if not self.response.status:
                return
            if self.response.status != 101:
                self.body += data
                self.is_over = self.response.is_complete
                return
            self._check_handshake()
            for frame in self._waiting:
                self._send(_TEXT, msgspec.json.encode(frame))
            self._waiting.clear()
        for opcode, payload in self._frames.receive(data):
            if not self.is_over:  # nothing counts after a close
                self._take(opcode, payload, now_s)

    def _check_handshake(self) -> None:
        headers = self.response.headers
        accept = base64.b64encode(hashlib.sha1(self._key + _WEBSOCKET_GUID).digest()).decode()
        if headers.get("sec-websocket-accept") != accept:
            raise WireError("the handshake was answered with another key")
        if headers.get("sec-websocket-protocol") != _SUBPROTOCOL:
            raise WireError(f"subprotocol {headers.get('sec-websocket-protocol')!r}")
        if "sec-websocket-extensions" in headers:
            raise WireError(f"an extension nobody asked for: {headers['sec-websocket-extensions']!r}")

    def _take(self, opcode: int, payload: bytes, now_s: float) -> None:
        if opcode == _PING:
            self._send(_PONG, payload)
        elif opcode == _CLOSE:
            self.close_code = struct.unpack_from("!H", payload)[0] if len(payload) >= 2 else 1005
            self._send(_CLOSE, payload[:2])
            self.receive_end()
        elif opcode == _TEXT:
            frame = msgspec.json.decode(payload)
            if frame["type"] == "events":
                self._take_events(frame, len(payload), now_s)
            elif frame["type"] in ("ok", "error"):
                self.replies.append(frame)
            elif frame["type"] == "ping":
                self._send(_TEXT, msgspec.json.encode({"type": "pong", "n": frame["n"]}))
            elif frame["type"] == "bye":
                self.bye = frame
        elif opcode == _BINARY:
            raise WireError("a binary frame")

    def _take_events(self, frame: Json, size: int, now_s: float) -> None:
        checker = self.checkers.get(frame["channel"])
        if checker is None:
            return self._violate("channel", f"events of {frame['channel']!r}, which nobody attached to")
        checker.payload_bytes += size
        if self._observe is not None:
            for event in frame["events"]:
                self._observe(checker.channel, event, now_s)
        checker.take(frame["events"], frame.get("cursor"))
        return None

    def _send(self, opcode: int, payload: bytes) -> None:
        self._to_send += encode_frame(opcode, payload, mask=os.urandom(4))

    def _violate(self, kind: str, detail: str) -> None:
        for checker in self.checkers.values():
            checker.violate(kind, detail)


def _request(path: str, headers: dict[str, str]) -> bytes:
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# Viewers for asyncio


class Received(NamedTuple):
    """One event as a viewer got it."""

    event: Json
    at_s: float  # CLOCK_MONOTONIC, when its bytes were read


class _Viewer:
    """A session on a real socket, read by a task that lives as long as the context.

    The socket is read only as fast as it is told to: nothing is buffered here, so a stalled viewer is a stalled
    reader down to the kernel. The kernel's own buffer is as small as `receive_buffer_bytes` says.
    """

    def __init__(
        self,
        host: str,
        port: int,
        channel: str,
        since: str | None,
        checker: Checker | None,
        receive_buffer_bytes: int | None,
    ) -> None:
        self.host = host
        self.port = port
        self._since = since
        self.checker = checker if checker is not None else Checker(channel)
        self.events: list[Received] = []  # over all its connections
        self.connections = 0
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None
        self._session: Session | None = None
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()

    def _new_session(self) -> Session:
        raise NotImplementedError

    def _cursor(self) -> str | None:
        """Where to go on: `since` is for the first connection, after a hole there is no way but a new start."""
        return self._since if self.connections == 0 and self.checker.cursor is None else self.checker.cursor

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended, by whichever side."""
        return self._reader is None or self._reader.done()

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def until(self, predicate: Callable[[], bool], timeout_s: float = 2.0) -> None:
        """Wait until `predicate()` holds; asked again whenever something came. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    self._check_reader()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            seen = {id: (len(message.text), message.status) for id, message in self.checker.messages.items()}
            raise TimeoutError(
                f"after {timeout_s} s: {self.checker.events} events, cursor {self.checker.cursor}, "
                f"is_over {self.is_over}, shown {_short(seen)}, violations {self.checker.violations}"
            ) from error

    async def until_attached(self, timeout_s: float = 2.0) -> None:
        await self.until(lambda: self.checker.has_attached, timeout_s)

    def stall(self) -> None:
        """Stop reading until `resume`."""
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    async def flush(self) -> None:
        """Send what the session wants sent; needed only after asking it for something."""
        async with self._sending:
            if self._socket is not None and self._session is not None:
                data = self._session.bytes_to_send()
                await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def close(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset` break it off. What is in view stays."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        if self._socket is not None:
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()
            self._socket = None
            self.checker.end()
        self._check_reader()

    async def reconnect(self, *, reset: bool = False) -> None:
        """Close, then attach again from the view's cursor, as a client does after a cut."""
        await self.close(reset=reset)
        await self._connect()

    async def _connect(self) -> None:
        self._session = self._new_session()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setblocking(False)
        if self._receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(self._socket, (self.host, self.port))
        except BaseException:
            await self.close()
            raise
        self.connections += 1
        self._reader = asyncio.get_running_loop().create_task(self._read(self._socket, self._session))

    async def _read(self, sock: socket.socket, session: Session) -> None:
        try:
            while not session.is_over:
                await self.flush()
                await _readable(sock)
                if not self._may_read.is_set():
                    await self._may_read.wait()
                    continue
                data = sock.recv(64 * 1024)
                if not data:
                    break
                session.receive(data, now_s=time.monotonic())
                self._news.set()
            await self.flush()  # the answer to a close
        except OSError:
            pass  # a cut is an end like any other
        finally:
            session.receive_end()
            self._news.set()

    def _check_reader(self) -> None:
        """Raise what the reading task failed with, if it did: a mistake of ours, not of the server."""
        if self._reader is not None and self._reader.done() and not self._reader.cancelled():
            self._reader.result()

    def _note(self, channel: str, event: Json, at_s: float) -> None:
        self.events.append(Received(event, at_s))


async def _readable(sock: socket.socket) -> None:
    """Wait until there is something to read, without reading it: a viewer may be stalled meanwhile."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


class SseViewer(_Viewer):
    """A viewer on `GET /v1/channels/{channel}/events`; `session` is that of the present connection.

    `since` begins in mid-history without a view; to go on with a view hand over its `checker`, whose cursor is then
    used. `query` and `headers` are added to the request as they are.
    """

    session: SseSession

    def __init__(
        self,
        host: str,
        port: int,
        channel: str,
        *,
        since: str | None = None,
        checker: Checker | None = None,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        prefix: str = "",
        uses_last_event_id: bool = False,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        super().__init__(host, port, channel, since, checker, receive_buffer_bytes)
        self._query = query
        self._headers = headers
        self._prefix = prefix
        self._uses_last_event_id = uses_last_event_id

    def _new_session(self) -> SseSession:
        cursor = self._cursor()
        # An EventSource comes back to its old URL and says where it was in a header.
        is_header = self._uses_last_event_id and self.connections > 0
        self.session = SseSession(
            self.checker,
            since=self._since if is_header else cursor,
            last_event_id=cursor if is_header else None,
            query=self._query,
            headers=self._headers,
            host=f"{self.host}:{self.port}",
            prefix=self._prefix,
            observe=self._note,
        )
        return self.session


class WsViewer(_Viewer):
    """A viewer on `GET /v1/ws`, attached to one channel; `session` is that of the present connection.

    `since` and `checker` as for `SseViewer`; `attach_fields` go into the `attach` frame.
    """

    session: WsSession

    def __init__(
        self,
        host: str,
        port: int,
        channel: str,
        *,
        since: str | None = None,
        checker: Checker | None = None,
        attach_fields: Json | None = None,
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        prefix: str = "",
        receive_buffer_bytes: int | None = None,
    ) -> None:
        super().__init__(host, port, channel, since, checker, receive_buffer_bytes)
        self._attach_fields = attach_fields or {}
        self._headers = headers
        self._query = query
        self._prefix = prefix

    def _new_session(self) -> WsSession:
        self.session = WsSession(
            host=f"{self.host}:{self.port}",
            prefix=self._prefix,
            query=self._query,
            headers=self._headers,
            observe=self._note,
        )
        self.session.attach(self.checker, since=self._cursor(), **self._attach_fields)
        return self.session
