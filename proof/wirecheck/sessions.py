"""Sessions: one connection, from bytes to a `Checker`; and viewers, which are sessions on real sockets, for asyncio.

Layer: wirecheck.

A session joins the parsers and a checker and does no I/O, so both asyncio (`SseViewer`, `WsViewer`) and an epoll loop
with thousands of connections (`bench.load`) can drive it.
"""

import asyncio
import base64
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol, Self
from urllib.parse import quote, urlencode

import msgspec
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from proof.wirecheck.checker import Checker, Json, shorten
from proof.wirecheck.parsers import Frames, Response, SseEvent, SseParser, WireError, get_request
from tests.proxy import readable

Observe = Callable[[str, Json, float], None]
"""Called with channel, event and the time at which its bytes were read, before the checker takes the event."""

_SUBPROTOCOL = "tenuto.v1"
_BROKEN = (WireError, ValueError, LookupError, TypeError)


class Checked(Protocol):
    """What a session asks of its checker; the peers of `bench` have one of their own."""

    def end(self) -> None: ...
    def violate(self, kind: str, detail: str) -> None: ...


class Session:
    """One connection without its socket. Call `bytes_to_send` first and after each `receive`, and send its result."""

    new_response: ClassVar[type[Any]] = Response  # Any: `bench` supplies a faster parser
    status: ClassVar[int] = 200  # of the response that carries the events

    def __init__(self) -> None:
        self.response = self.new_response(is_upgrade=self.status == 101)
        self.body = b""  # the body of any other response
        self.is_over = False
        self._to_send = b""

    @property
    def has_attached(self) -> bool:
        raise NotImplementedError

    def bytes_to_send(self) -> bytes:
        data, self._to_send = self._to_send, b""
        return data

    def receive(self, data: bytes, *, now_s: float) -> None:
        """Take bytes that were read at `now_s`. Bytes after `is_over` are ignored."""
        if self.is_over:
            return
        try:
            self._receive(data, now_s)
        except _BROKEN as error:
            self.violate("protocol", repr(error))
            self.receive_end()

    def receive_end(self) -> None:
        """Note that the connection was closed or cut."""
        if not self.is_over:
            self.is_over = True
            for checker in self._checkers():
                checker.end()

    def violate(self, kind: str, detail: str) -> None:
        for checker in self._checkers():
            checker.violate(kind, detail)

    def _receive(self, data: bytes, now_s: float) -> None:
        raise NotImplementedError

    def _checkers(self) -> Iterable[Checked]:
        raise NotImplementedError


def upgrade_headers(host: str, key: bytes) -> dict[str, str]:
    """Return the headers of a request that asks for a WebSocket."""
    return {
        "Host": host,
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key.decode(),
    }


class SseSession(Session):
    """One GET of a channel's event stream."""

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
        super().__init__()
        self.checker = checker
        self.parser = SseParser()
        self.bye: Any = None
        self.you: Any = None  # the description of the caller, for a client that identifies itself
        self._has_events = False
        self._observe = observe
        self._is_own_client = "tenuto-client" in {name.lower() for name in headers or {}} or "sdk" in (query or {})
        parameters = ({"since": since} if since is not None else {}) | (query or {})
        path = f"{prefix}/v1/channels/{quote(checker.channel, safe='')}/events"
        request_headers = {"Host": host, "Accept": "text/event-stream"}
        if last_event_id is not None:
            request_headers["Last-Event-ID"] = last_event_id
        target = path + ("?" + urlencode(parameters) if parameters else "")
        self._to_send = get_request(target, request_headers | (headers or {}))
        checker.begin(last_event_id if last_event_id is not None else since)

    @property
    def has_attached(self) -> bool:
        return self.checker.has_attached

    def _checkers(self) -> Iterable[Checker]:
        return (self.checker,)

    def _receive(self, data: bytes, now_s: float) -> None:
        is_first = not self.response.status
        payload = self.response.receive(data)
        if is_first and self.response.status:
            self._check_head()
        if self.response.status != 200:
            self.body += payload
        else:
            self.checker.payload_bytes += len(payload)
            for event in self.parser.receive(payload):
                self._take(event, now_s)
        if self.response.is_complete:
            if self.response.status == 200 and self.bye is None:
                self.checker.violate("ended", "the body ended with a last chunk, but without a bye")
            self.receive_end()

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
                self.checker.violate(
                    "retry", f"retry before the first event must be 1000 to 3000 ms, got {self.parser.retry_ms}"
                )
        if self.parser.without_data:
            self.checker.violate("protocol", "an event without data: browsers drop it")
            self.parser.without_data = 0
        decoded = msgspec.json.decode(event.data)
        if event.event == "bye":
            self.bye = decoded
        elif event.event == "you":
            if self.you is not None or self.has_attached or not self._is_own_client:
                self.checker.violate(
                    "protocol", "`you` comes once, before the first batch, to clients that identify themselves"
                )
            self.you = decoded
        elif event.event != "ping":
            if decoded["type"] != event.event:
                self.checker.violate("protocol", f"event {event.event!r} contains the type {decoded['type']!r}")
            if self._observe is not None:
                self._observe(self.checker.channel, decoded, now_s)
            self.checker.take([decoded], event.id)
            return
        if event.id is not None:
            self.checker.violate("cursor", f"an id on {event.event}")


class WsSession(Session):
    """One WebSocket with any number of channels, each with its own checker."""

    status = 101
    new_frames: ClassVar[type[Any]] = Frames

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        prefix: str = "",
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        observe: Observe | None = None,
    ) -> None:
        super().__init__()
        self.checkers: dict[str, Checker] = {}
        self.replies: list[Json] = []  # `ok` and `error`, in the order of arrival
        self.bye: Json | None = None
        self.close_code: int | None = None
        self._frames = self.new_frames()
        self._observe = observe
        self._key = base64.b64encode(os.urandom(16))
        self._refs = 0
        self._queued: list[Json] = []  # frames to send after the handshake
        upgrade = upgrade_headers(host, self._key) | {"Sec-WebSocket-Protocol": _SUBPROTOCOL}
        path = f"{prefix}/v1/ws" + ("?" + urlencode(query) if query else "")
        self._to_send = get_request(path, upgrade | (headers or {}))

    @property
    def has_attached(self) -> bool:
        return bool(self.checkers) and all(checker.has_attached for checker in self.checkers.values())

    def attach(self, checker: Checker, *, since: str | None = None, **fields: Any) -> int:
        """Request a channel; `fields` go into the frame. The next `bytes_to_send` returns its bytes."""
        self.checkers[checker.channel] = checker
        checker.begin(since)
        if since is not None:
            fields["since"] = since
        return self.request("attach", channel=checker.channel, **fields)

    def request(self, type: str, /, **fields: Any) -> int:
        """Queue a frame of this type with a new `ref`. Return the `ref`."""
        self._refs += 1
        frame = {"type": type, "ref": self._refs} | fields
        if self.response.status == 101:
            self._send(frame)
        else:
            self._queued.append(frame)
        return self._refs

    def _checkers(self) -> Iterable[Checker]:
        return self.checkers.values()

    def _receive(self, data: bytes, now_s: float) -> None:
        if self.response.status != 101:
            data = self.response.receive(data)
            if not self.response.status:
                return
            if self.response.status != 101:
                self.body += data
                if self.response.is_complete:
                    self.receive_end()
                return
            self._check_handshake()
            for frame in self._queued:
                self._send(frame)
            self._queued.clear()
        for event in self._frames.receive(data):
            if not self.is_over:  # ignore frames after a close
                self._take(event, now_s)

    def _check_handshake(self) -> None:
        headers = self.response.headers
        if headers.get("sec-websocket-accept", "").encode() != generate_accept_token(self._key):
            raise WireError("sec-websocket-accept does not match the key of the request")
        if headers.get("sec-websocket-protocol") != _SUBPROTOCOL:
            raise WireError(f"subprotocol must be {_SUBPROTOCOL!r}, got {headers.get('sec-websocket-protocol')!r}")
        if "sec-websocket-extensions" in headers:
            raise WireError(f"an extension that the client did not request: {headers['sec-websocket-extensions']!r}")

    def _take(self, event: Event, now_s: float) -> None:
        if isinstance(event, Ping):
            self._to_send += self._frames.encode(event.response())
        elif isinstance(event, CloseConnection):
            self.close_code = int(event.code)
            self._to_send += self._frames.encode(event.response())
            self.receive_end()
        elif isinstance(event, TextMessage):
            frame = msgspec.json.decode(event.data)
            if frame["type"] == "events":
                size = len(event.data) if event.data.isascii() else len(event.data.encode())
                self._take_batch(frame, size, now_s)
            elif frame["type"] in ("ok", "error"):
                self.replies.append(frame)
            elif frame["type"] == "ping":
                self._send({"type": "pong", "n": frame["n"]})
            elif frame["type"] == "bye":
                self.bye = frame
        elif isinstance(event, BytesMessage):
            raise WireError("a binary frame")

    def _take_batch(self, frame: Json, size: int, now_s: float) -> None:
        checker = self.checkers.get(frame["channel"])
        if checker is None:
            return self.violate("channel", f"events of {frame['channel']!r}, to which this connection is not attached")
        checker.payload_bytes += size
        if self._observe is not None:
            for event in frame["events"]:
                self._observe(checker.channel, event, now_s)
        checker.take(frame["events"], frame.get("cursor"))
        return None

    def _send(self, frame: Json) -> None:
        self._to_send += self._frames.encode(TextMessage(data=msgspec.json.encode(frame).decode()))


PATIENCE_S = 60.0  # a machine with other work may delay a process by many seconds


class Received(NamedTuple):
    """One event as a viewer received it."""

    event: Json
    at_s: float  # CLOCK_MONOTONIC, when its bytes were read


class _Viewer:
    """A session on a real socket. A task reads the socket until the context ends.

    `since` begins in mid-history without a view. To continue with an existing view, pass its `checker`, whose cursor is
    then used. `query` and `headers` are added to the request unchanged. The viewer buffers no bytes: if it is stalled,
    the kernel's receive buffer fills, and the server's writes block. `receive_buffer_bytes` sets the size of that
    buffer.
    """

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
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._since = since
        self.checker = checker if checker is not None else Checker(channel)
        self._query = query
        self._headers = headers
        self._prefix = prefix
        self.events: list[Received] = []  # the events of all its connections
        self.connections = 0
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None
        self._session: Session | None = None
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._received = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()

    def _new_session(self) -> Session:
        raise NotImplementedError

    def _cursor(self) -> str | None:
        """Return the cursor to resume from: `since` for the first connection; None after a hole, for a new start."""
        return self._since if self.connections == 0 and self.checker.cursor is None else self.checker.cursor

    @property
    def is_over(self) -> bool:
        """Return whether the client or the server has ended the connection."""
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

    async def until(self, predicate: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        """Wait until `predicate()` holds; evaluate it after each read. Raises `TimeoutError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate():
                    self._check_reader()
                    self._received.clear()
                    await self._received.wait()
        except TimeoutError as error:
            seen = {id: (len(message.text), message.status) for id, message in self.checker.messages.items()}
            raise TimeoutError(
                f"after {timeout_s} s: {self.checker.events} events, cursor {self.checker.cursor}, "
                f"is_over {self.is_over}, shown {shorten(seen)}, violations {self.checker.violations}"
            ) from error

    async def until_attached(self, timeout_s: float = PATIENCE_S) -> None:
        await self.until(lambda: self.checker.has_attached, timeout_s)

    def stall(self) -> None:
        """Stop reading until `resume`."""
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    async def flush(self) -> None:
        """Send the bytes that the session has queued; needed only after a request to the session."""
        async with self._sending:
            if self._socket is not None and self._session is not None:
                data = self._session.bytes_to_send()
                await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def close(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset` reset it. The view stays."""
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
        """Close, then attach again from the view's cursor, as a client does after a lost connection."""
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
                await readable(sock)  # without reading: the viewer may be stalled meanwhile
                if not self._may_read.is_set():
                    await self._may_read.wait()
                    continue
                data = sock.recv(64 * 1024)
                if not data:
                    break
                session.receive(data, now_s=time.monotonic())
                self._received.set()
            await self.flush()  # the close frame in response to the server's
        except OSError:
            pass  # a lost connection ends the session like a close
        finally:
            session.receive_end()
            self._received.set()

    def _check_reader(self) -> None:
        """Raise the exception of the reading task, if it failed: a bug in this module, not in the server."""
        if self._reader is not None and self._reader.done() and not self._reader.cancelled():
            self._reader.result()

    def _note(self, channel: str, event: Json, at_s: float) -> None:
        self.events.append(Received(event, at_s))


class SseViewer(_Viewer):
    """A viewer on `GET /v1/channels/{channel}/events`; `session` belongs to the current connection."""

    session: SseSession

    def __init__(self, host: str, port: int, channel: str, *, uses_last_event_id: bool = False, **more: Any) -> None:
        super().__init__(host, port, channel, **more)
        self._uses_last_event_id = uses_last_event_id

    def _new_session(self) -> SseSession:
        cursor = self._cursor()
        # An EventSource reconnects to its first URL and sends its cursor in a header.
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
    """A viewer on `GET /v1/ws`, attached to one channel; `attach_fields` go into the `attach` frame."""

    session: WsSession

    def __init__(self, host: str, port: int, channel: str, *, attach_fields: Json | None = None, **more: Any) -> None:
        super().__init__(host, port, channel, **more)
        self._attach_fields = attach_fields or {}

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
