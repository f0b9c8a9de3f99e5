"""Parts of the protocols of `tenuto serve`: flow control, responses with which a connection ends, and its transport.

Layer: serving, below `bounded_http` and `bounded_websocket`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterable
from typing import Protocol

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from tenuto.core.errors import TenutoError, TooLarge
from tenuto.transports.codec import problem_headers

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
