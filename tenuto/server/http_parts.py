"""Parts of the protocols of `tenuto serve`: what they parse at once, flow control, and responses that end a connection.

Layer: serving, below `bounded_http` and `bounded_websocket`.

Each protocol parses in slices and sets the rest of its input aside. Connections with such a rest go on one after
another (`ParseQueue`), a few in each iteration of the event loop. They share one limit of time in an iteration, but for
sockets that are not authenticated, whose input has a limit in bytes. So a hundred floods delay the other connections no
longer than one flood. A request needs about seven iterations (measured).

`Gate` and `Inbox` take little memory while a socket is idle: `asyncio.Event` and `asyncio.Queue` hold one and four
deques of 760 bytes each. They have the same methods, as far as uvicorn calls them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from tenuto.core.errors import TenutoError, TooLarge
from tenuto.transports.codec import problem_headers

PARSE_S = 0.001  # time to parse large input, in one iteration of the loop
HTTP_S = 0.0005  # the part of it for HTTP, whose peers may be unknown
MOST_AT_ONCE = 4  # connections that go on in one iteration: to begin a request takes longer than to parse it


class ParseQueue:
    """The connections whose input was set aside, in the order in which they go on."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._end_s = 0.0  # when the time to parse ends, in the loop's time; 0 until a connection has requested it
        self._is_called = False

    def end_s(self) -> float:
        """Return until when, in the time of the running loop, input may be parsed in this iteration."""
        if not self._end_s:
            loop = asyncio.get_running_loop()
            self._end_s = loop.time() + PARSE_S
            self._call_soon(loop)
        return self._end_s

    def add(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` in one of the next iterations."""
        self._waiting.append(go_on)
        self._call_soon(asyncio.get_running_loop())

    def _call_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_called:
            self._is_called = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        """Begin an iteration: let the connections go on that have waited for longest."""
        self._is_called = False
        self._end_s = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(min(len(self._waiting), MOST_AT_ONCE)):
            self._waiting.popleft()()
            if self._end_s and loop.time() > self._end_s:
                break
        if self._waiting:
            self._call_soon(loop)


T = TypeVar("T")


class Gate:
    """An `asyncio.Event` whose waiters are kept only while it is closed."""

    __slots__ = ("_is_open", "_waiters")

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Return whether `wait` returns at once."""
        return self._is_open

    def set(self) -> None:
        """Let all waiters go on."""
        self._is_open = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Let later callers of `wait` wait for the next `set`."""
        self._is_open = False

    async def wait(self) -> bool:
        """Wait until the gate is open; return True."""
        if not self._is_open:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters += (waiter,)
            try:
                await waiter
            finally:
                self._waiters = tuple(other for other in self._waiters if other is not waiter)
        return True


class Inbox(Generic[T]):
    """An `asyncio.Queue` without a limit: its owner stops reading from the peer after each message."""

    __slots__ = ("_has_message", "_messages")

    def __init__(self) -> None:
        self._messages: list[T] = []
        self._has_message = Gate(is_open=False)

    def empty(self) -> bool:
        """Return whether `get` would wait."""
        return not self._messages

    def put_nowait(self, message: T) -> None:
        """Add `message`."""
        self._messages.append(message)
        self._has_message.set()

    async def get(self) -> T:
        """Remove and return the oldest message; wait for one if there is none."""
        while not self._messages:
            self._has_message.clear()
            await self._has_message.wait()
        return self._messages.pop(0)


MAX_HEAD_BYTES = 64 * 1024  # limit of a request line with its headers, and of a trailer
MAX_HEADERS = 100
HEAD_END = b"\r\n\r\n"


class ReadingProtocol(Protocol):
    """The protocol object of a connection."""

    def may_read(self) -> bool:
        """Return whether the connection should read more input now."""


class HeadTooLarge(Exception):
    """A head has too many headers. Raised through the parser of uvicorn."""


class Flow(FlowControl):
    """uvicorn's flow control. This one also stops reading, for example while a request waits behind the running one."""

    def __init__(self, transport: asyncio.Transport, protocol: ReadingProtocol) -> None:
        super().__init__(transport)
        self.protocol: ReadingProtocol | None = protocol  # None once the connection is lost

    def resume_reading(self) -> None:
        if self.read_paused and self.protocol is not None and self.protocol.may_read():
            super().resume_reading()


def too_large(what: str, limit: int, unit: str) -> TooLarge:
    """Return the error for input that exceeds a limit."""
    return TooLarge(f"{what} exceeds the limit of {limit} {unit}; send fewer", limit=limit)


def head_refusal(url: bytes, headers: list[tuple[bytes, bytes]]) -> tuple[TooLarge, int]:
    """Return the error and the status for a head beyond the limits, of which `url` and `headers` were parsed."""
    if len(headers) > MAX_HEADERS:
        return too_large("a request", MAX_HEADERS, "headers"), 431
    if not headers and len(url) > MAX_HEAD_BYTES // 2:
        return too_large("the head of a request, with its URL,", MAX_HEAD_BYTES, "bytes"), 414
    return too_large("the head of a request", MAX_HEAD_BYTES, "bytes"), 431


def refusal(error: TenutoError, status: int) -> bytes:
    """Return a complete HTTP response with `error`, for a connection that ends with it."""
    body = msgspec.json.encode({**error.problem(), "status": status})
    lines = "".join(f"{name}: {value}\r\n" for name, value in refusal_headers(error).items())
    return STATUS_LINE[status] + lines.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def refusal_headers(error: TenutoError) -> dict[str, str]:
    """Return the headers of a response with `error`, but for its length, on a connection that ends with it."""
    return {**problem_headers(error), "connection": "close"}


def head_without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head of a request without its offer of an upgrade, which a server may ignore."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    lines += [b"%b: %b" % header for header in headers if header[0] != b"upgrade"]
    return b"\r\n".join(lines) + HEAD_END


def handshake_problem(
    version: str, headers: Iterable[tuple[bytes, bytes]], previous: RequestResponseCycle | None
) -> str:
    """Return why the handshake of a WebSocket is refused, or an empty text. `previous` is the request before it."""
    if previous is not None and not previous.response_complete:
        return "a WebSocket handshake arrived while a request was running; open another connection for it"
    if version != "1.1":
        return "the handshake of a WebSocket needs HTTP/1.1, got 1.0; nginx needs proxy_http_version 1.1"
    if any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 ")) for name, value in headers
    ):
        return "the handshake of a WebSocket must have no body; send the request without one"
    return ""


def body_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the length that a head announces for its body; 0 without one, as for a body in chunks.

    The parser refuses a request with two lengths, or with a length and chunks.
    """
    return next((int(value) for name, value in headers if name == b"content-length"), 0)


# States of a TCP connection in Linux: closed, and closed by the peer.
_ENDED = (b"\x07", b"\x08")


def has_peer_left(transport: asyncio.Transport) -> bool:
    """Return whether the peer has closed the connection, although its input may not have been read yet.

    Always False on systems other than Linux.
    """
    connection = transport.get_extra_info("socket")
    if sys.platform != "linux" or connection is None:
        return False
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) in _ENDED


def write_last(transport: asyncio.Transport, data: bytes) -> None:
    """Write `data` and the end of the stream.

    The caller closes later: a close with unread input would reset the connection and hide the reason from the peer.
    """
    transport.write(data)
    with contextlib.suppress(OSError):  # the peer has reset the connection since the write
        transport.write_eof()


def release_transport(transport: asyncio.Transport) -> None:
    """Drop the references of a lost transport to itself, with which it would live until the next garbage collection.

    A storm would otherwise leave thousands. asyncio keeps bound methods of the transport in these attributes.
    """
    attributes = getattr(transport, "__dict__", {})
    for name in ("_read_ready_cb", "_write_ready"):
        attributes.pop(name, None)
