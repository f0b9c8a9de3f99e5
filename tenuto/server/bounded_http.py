"""The HTTP protocol of `tenuto serve`: uvicorn's, with bounds on its peer.

Layer: server, between `connections` and `serving`, which imports it on first use because uvicorn is optional.

uvicorn parses all input as fast as it arrives. This subclass bounds heads, parses in slices, and reads no further while
a request waits behind the running one or while the peer does not read. Knowledge of uvicorn's internals is here, in
`bounded_websocket` and `transports.sender`; `tests/attacks` shows whether the installed uvicorn is as expected.

Safe to change: the constants, which `docs/security.md` names. Not safe: one more `await` or copy for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tenuto.core.errors import InvalidRequest, TenutoError, TooLarge
from tenuto.server.connections import LARGE_BYTES, Connection, Connections
from tenuto.transports.codec import problem_headers
from tenuto.transports.origin import EXTENSION

HTTP_S = 0.0005  # the part of `PARSE_S` for HTTP, whose peers may be unknown
MAX_HEAD_BYTES = 64 * 1024  # limit of a request line with its headers, and of a trailer
MAX_HEADERS = 100
HEAD_END = b"\r\n\r\n"


class HeadTooLarge(Exception):
    """A head has too many headers. Raised through the parser of uvicorn."""


class Gate:
    """An `asyncio.Event` whose waiters are kept only while it is closed: an empty deque of them takes 760 bytes."""

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


class Flow(FlowControl):
    """uvicorn's flow control. This one also stops reading, for example while a request waits behind the running one."""

    def __init__(self, transport: asyncio.Transport, protocol: BoundedHttpProtocol) -> None:
        super().__init__(transport)
        self._is_writable_event = Gate(is_open=True)  # type: ignore[assignment]  # has the methods that uvicorn calls
        self.protocol: BoundedHttpProtocol | None = protocol  # None once the connection is lost

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
    if not headers and len(url) > MAX_HEAD_BYTES // 2:  # most of the head is its URL
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


HEAD_S = 10.0  # time for a head that has begun, counted from the opening of the connection or from the last response
BODY_S = 10.0  # time in which an unknown peer must send `BODY_BYTES` of a body, or the rest of the body
BODY_BYTES = 5_000
UNREAD_S = 60.0  # time in which a peer must read at least a byte of a response that waits for it
LINGER_S = 1.0  # time in which a refused peer can read the reason, while the server reads no more from it
UNREAD_BYTES = 8 * 1024  # bytes that are still read while a request waits
WHOLE_BYTES = 4 * 1024  # input that is parsed at once, if it holds one request
SLICE_BYTES = 1024  # bytes of larger input to parse at once: up to 200 chunks of a byte


class BoundedHttpProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """One HTTP connection.

    It reads into a buffer that all connections share, and parses no more requests than it can begin.
    """

    # Beside uvicorn's own attributes: with more than 30, Python stores the names anew for each connection (2.3 KB).
    __slots__ = (
        "_begun_scope",
        "_body_bytes",
        "_body_left",
        "_book",
        "_connection",
        "_extensions",
        "_ignores_input",
        "_is_in_body",
        "_is_known",
        "_is_last",
        "_stalled_bytes",
        "_unread",
        "_unsent_bytes",
    )

    def __init__(self, book: Connections, **options: Any) -> None:
        super().__init__(**options)
        self._book = book
        # the entry in the book of connections; None if it was refused, lost or upgraded
        self._connection: Connection | None = None
        self._unread = b""  # input that was read but not parsed yet
        self._begun_scope: Any = None  # the ASGI scope of the last request whose head is complete
        self._extensions: dict[str, dict[object, object]] = {EXTENSION: {"connection": self}}
        self._is_known = False
        self._ignores_input = False  # True: input was refused, or a WebSocket protocol reads it
        self._is_last = False  # the running request is the last one, because the input behind it was refused
        self._stalled_bytes = 0  # size of an incomplete head, or of later input that contained no body
        self._is_in_body = False  # True while an unknown peer's request runs and more of its body is expected
        self._body_left = 0  # bytes of the body that are still to come, if its head announced the length
        self._body_bytes = 0  # bytes of bodies received, since the last deadline for one was set
        self._unsent_bytes = 0  # bytes that the peer had not read when the deadline for reading was set

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: Flow = Flow(transport, self)
        connection = self._connection = self._book.opened(self.client[0] if self.client else "", self)
        if connection is None:  # no descriptor is left
            transport.abort()
        elif not connection.is_from_proxy:  # a proxy's connection counts once its first head names a client
            connection.wait(HEAD_S, may_burst=True)

    def connection_lost(self, exc: Exception | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._release()
        super().connection_lost(exc)
        release_transport(self.transport)

    def _release(self) -> None:
        """Drop the references to this object, which would otherwise live until the next garbage collection."""
        self._unread = b""
        self._extensions.clear()
        self.flow.protocol = None

    def expire(self) -> None:
        """End the connection of a peer that has missed the deadline. A peer that reads its response gets more time."""
        unsent = self.transport.get_write_buffer_size()
        if self._ignores_input:  # it was refused, and had `LINGER_S` to read why
            self.transport.abort()
        elif unsent and unsent < self._unsent_bytes:
            self._wait_for_reader()
        elif self._is_in_body and not unsent and self._connection is not None:
            self._expire_body(self._connection)
        elif unsent or not self.is_in_head():  # it does not read, or begins no request
            self.transport.abort()
        else:
            detail = f"the head of the request was not complete within {HEAD_S:.0f} s; send it without pauses"
            self._refuse(InvalidRequest(detail), 408)

    def _expire_body(self, connection: Connection) -> None:
        """Refuse a body that comes too slowly, unless the application does not read it now."""
        # True: the application does not read the body now
        is_held_here = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if is_held_here or self._body_bytes >= BODY_BYTES:
            self._wait_for_body(connection)
        else:
            detail = f"the body of a request must be complete, or grow by {BODY_BYTES} bytes, within {BODY_S:.0f} s"
            self._refuse(InvalidRequest(detail), 408)

    def known(self) -> None:
        """Stop counting the connection as waiting: its peer is known (`transports.origin`), maybe before its body."""
        self._is_known = True
        self._is_in_body = False
        connection = self._connection
        if connection is not None:
            connection.proceed()
            if self.cycle.more_body and not connection.is_from_proxy:  # its body is yet to come
                connection.count_as_idle()

    def verifier_began(self, limit: asyncio.Timeout) -> None:
        """Count the connection while a verifier runs, until `limit`, if its peer is unknown (`transports.origin`)."""
        connection = self._connection
        if connection is not None and not self._is_known:
            connection.verification = limit
            if not self._ignores_input:
                self._wait_for_verifier(connection)

    def verifier_ended(self) -> None:
        """Stop counting the connection for its verifier."""
        connection = self._connection
        if connection is None or connection.verification is None:
            return
        connection.verification = None
        is_unread = self.flow.write_paused and not connection.is_from_proxy
        if not (self._ignores_input or self._is_in_body or is_unread):  # else it goes on to wait for its peer
            connection.proceed()

    def _wait_for_verifier(self, connection: Connection) -> None:
        connection.wait_for_verifier()
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head_bytes + len(self.cycle.body) > LARGE_BYTES:
            connection.count_as_large()

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._book.input_view

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._book.input_view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        if self.timeout_keep_alive_task is not None:  # uvicorn's timer of a connection between requests
            self._unset_keepalive_if_required()
        if self._unread or self.pipeline or self._is_last:  # it waits, or is behind the last request
            self._unread += data
            if not self.may_read():
                self.flow.pause_reading()
        # The parser takes the body of an announced length as one piece. If other data contains one end of a head, at
        # most one request can begin, behind the running one.
        elif len(data) <= self._body_left or (len(data) <= WHOLE_BYTES and data.count(HEAD_END) <= 1):
            self._parse(data)
        else:
            self._parse_in_slices(data)
        if self.is_in_head() and self._connection is not None:
            self._wait_for_head(self._connection)

    def is_in_head(self) -> bool:
        """Return whether a head has begun and is not complete; uvicorn makes a scope when a head begins."""
        return self.scope is not self._begun_scope

    def may_read(self) -> bool:
        """Return whether the connection should read more input now.

        While a request waits, and after the last request, it reads a little more, because it notices the end of the
        connection only after all input.
        """
        cycle = self.cycle
        return not (
            len(self._unread) >= (UNREAD_BYTES if self.pipeline or self._is_last else 1)
            or self._ignores_input
            or self.flow.write_paused
            or (cycle is not None and not cycle.response_complete and len(cycle.body) > HIGH_WATER_LIMIT)
        )

    def _parse_in_slices(self, data: bytes) -> None:
        """Parse `data` until a request waits or the time ends. No part of a head is set aside: many fill the memory."""
        at, until_s = 0, self._book.parsing.began_s() + HTTP_S
        while at < len(data) and not (self._ignores_input or self._is_last):
            is_held = self.pipeline or self.flow.write_paused
            if is_held or (at and not self.is_in_head() and self.loop.time() > until_s):
                self._unread = data[at:]
                self.flow.pause_reading()
                if not is_held:  # else the end of a response, or the peer that reads, lets it go on
                    self._book.parsing.add(self._go_on)
                return
            most = at + SLICE_BYTES  # end of the slice at most, but for a body of known length
            if self.is_in_head():
                most = min(most, at + MAX_HEAD_BYTES - self._stalled_bytes)
            end = data.find(HEAD_END, at, most)  # a slice ends with a head, so that at most one request begins in it
            end = max(at + self._body_left, most if end < 0 else end + len(HEAD_END))
            self._parse(data[at:end])
            at = end

    def _go_on(self) -> None:
        """Parse the input that was set aside; when it is used up, read more."""
        if self._unread and self._is_void() and has_peer_left(self.transport):
            self.transport.abort()  # by reading, its end would be noticed only behind all that input
            return
        if self._unread and not (self.pipeline or self._is_last or self.transport.is_closing()):
            data, self._unread = self._unread, b""
            self.data_received(data)
        self.flow.resume_reading()

    def _is_void(self) -> bool:
        """Return whether the input that was set aside is of no use: blank lines, or a body after its response."""
        cycle = self.cycle
        if self.is_in_head() or (cycle is not None and not cycle.response_complete):
            return False
        return (cycle is not None and cycle.more_body) or not self._unread.strip(b"\r\n")

    def _parse(self, data: bytes) -> None:
        """Give `data` to uvicorn's parser, refuse invalid input, and bound incomplete heads, bodies and trailers."""
        cycle = self.cycle
        was_in_head = self.is_in_head()
        was_in_body = cycle is not None and cycle.more_body
        body_bytes = self._body_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, HeadTooLarge):
                self._refuse(*head_refusal(self.url, self.headers))
            else:
                self._refuse(InvalidRequest(f"the request does not follow HTTP/1.1: {error}"), 400)
        else:
            if self.is_in_head():
                # A head that begins behind a body is counted from here, because most of the data may have been the
                # body.
                self._stalled_bytes = 0 if was_in_body and not was_in_head else self._stalled_bytes + len(data)
                if self._stalled_bytes >= MAX_HEAD_BYTES:
                    self._refuse(*head_refusal(self.url, self.headers))
            elif was_in_body and cycle is self.cycle and cycle.more_body and self._body_bytes == body_bytes:
                self._stalled_bytes += len(data)
                self._bound_trailer(cycle)
            else:
                self._stalled_bytes = 0
            if not self._is_known and self.cycle is not None and (self._is_in_body or self.cycle.more_body):
                self._follow_body()

    def _bound_trailer(self, cycle: RequestResponseCycle) -> None:
        """Bound the input behind a body: a trailer, or an extension of a chunk. The parser keeps its last line."""
        if self._stalled_bytes > LARGE_BYTES and self._connection is not None:
            self._connection.count_as_large()
        if self._stalled_bytes <= MAX_HEAD_BYTES:
            return
        error = too_large("the trailer of a request", MAX_HEAD_BYTES, "bytes")
        if cycle.response_complete:  # the peer would take a refusal for its next response
            self._ignores_input = True
            self._book.note(error.detail)
            self.transport.abort()
        else:
            self._refuse(error, 431)

    # Callbacks of the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_in_head():
            return  # a line of a trailer is thrown away
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise HeadTooLarge

    def on_body(self, body: bytes) -> None:
        self._body_left -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._should_upgrade():
            return  # `_upgrade` parses this head again
        connection = self._connection
        if connection is not None:
            if connection.is_from_proxy:
                connection.move(self._book.proxies.forward(self.scope))
                self._is_known = False  # each request on it may be of another client
            elif connection.verification is None:  # else the request waits behind the one that is verified
                connection.proceed()
        self.scope["extensions"] = self._extensions
        self._begun_scope = self.scope
        # 0 for a body in chunks; the parser refuses a request with two lengths, or with a length and chunks
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.message_event = Gate(is_open=cycle.message_event.is_set())  # type: ignore[assignment]  # as in `Flow`
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        if self.is_in_head():
            return  # a head that requests an upgrade is not yet a request
        super().on_message_complete()
        connection = self._connection
        if connection is not None and connection.is_idle:  # `known` counts it as idle until its body has ended
            connection.proceed()

    # Requests

    def _upgrade(self, rest: bytes) -> None:
        """Begin a WebSocket, or serve the request without the upgrade. `rest` is the input after its head.

        The parser takes the message for complete, although a body may follow; that body is not another request.
        """
        if self.parser.get_method() == b"CONNECT":
            detail = "method CONNECT is not supported: this server is not a proxy; request a path of the server"
            self._refuse(InvalidRequest(detail), 400)
        elif not self._should_upgrade():
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            # without the offer, which a server may ignore
            lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self._parse(b"\r\n".join([b"%b %b HTTP/%b" % (method, self.url, version), *lines]) + HEAD_END)
            if rest and not self._ignores_input:
                self._parse(rest)
        elif detail := handshake_problem(self.parser.get_http_version(), self.headers, self.cycle):
            self._refuse(InvalidRequest(detail), 400)
        else:
            self.handle_websocket_upgrade()

    def handle_websocket_upgrade(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:  # it was closed meanwhile, or refused
            self.transport.abort()
            return
        protocol: Any = self.ws_protocol_class  # uvicorn makes one, and gives it its own arguments
        self.ws_protocol_class = partial(protocol, self._book, connection)  # type: ignore[assignment]
        super().handle_websocket_upgrade()
        self._ignores_input = True  # from here on the WebSocket protocol owns the transport
        self._release()
        self.parser = None  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        """Begin the next request that waits; else wait for the peer to read, or to send one, or count it as idle."""
        super().on_response_complete()
        if self._unread:
            self._unset_keepalive_if_required()
            self._book.parsing.add(self._go_on)
        connection = self._connection
        if self.cycle.response_complete:
            self._is_in_body = False
        if connection is None or not self.cycle.response_complete:
            return  # another request has begun
        if self.transport.get_write_buffer_size():
            self._wait_for_reader()
        elif not (self._is_known or connection.is_from_proxy) or self.cycle.more_body:
            connection.wait(HEAD_S, may_burst=self._is_known)  # also for a body that no application takes any more
        elif not connection.is_from_proxy:
            connection.count_as_idle()
        if not (self.pipeline or self.is_in_head() or self.cycle.more_body):
            self._forget_head()  # it may be large, and the connection may now be idle
            self.cycle.scope = None  # type: ignore[assignment]

    def _forget_head(self) -> None:
        self.url, self.headers = b"", []
        self.scope = self._begun_scope = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()
        if not self._is_known:
            self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        connection = self._connection
        if connection is not None and not self.cycle.response_complete:
            connection.proceed()  # it waited for the peer to read
            if self._is_in_body:
                self._wait_for_body(connection)
            elif connection.verification is not None:
                self._wait_for_verifier(connection)
        self._go_on()

    def _follow_body(self) -> None:
        """Count the connection as waiting while more of its body is expected."""
        cycle, connection = self.cycle, self._connection
        if connection is None or self._ignores_input:
            return
        if not cycle.more_body:
            self._is_in_body = False
            connection.proceed()
        elif not (self._is_in_body or cycle.response_complete):
            self._is_in_body = True
            self._wait_for_body(connection)
        if connection.verification is not None:
            self._wait_for_verifier(connection)  # `proceed` and `wait` have ended its count

    def _wait_for_body(self, connection: Connection) -> None:
        self._body_bytes = 0
        # while its first request arrives, the connection may be part of a burst, as for the head
        connection.wait(BODY_S, may_burst=connection.may_burst)

    def _wait_for_head(self, connection: Connection) -> None:
        """Give the peer time to complete the head that has begun, unless it has a deadline already."""
        if not (connection.is_waiting or connection.is_from_proxy):
            connection.wait(HEAD_S, may_burst=self._is_known or self.cycle is None)  # None: no request came before
        if self._stalled_bytes > LARGE_BYTES:
            connection.count_as_large()

    def _wait_for_reader(self) -> None:
        connection = self._connection
        if connection is None or connection.is_from_proxy:
            return
        self._unsent_bytes = self.transport.get_write_buffer_size()
        connection.wait(UNREAD_S, may_burst=self._is_known)
        if self._unsent_bytes > LARGE_BYTES:
            connection.count_as_large()

    # Refusals

    def _refuse(self, error: TenutoError, status: int) -> None:
        """Respond with `error`, and read no more. A running request gets its response first, and is the last one."""
        if self._ignores_input or self._is_last:
            return
        self._unread = b""
        self._book.note(error.detail)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self.is_in_head() or not cycle.more_body:  # the refused input follows the running request
                cycle.keep_alive = False
                self._is_last = True
                return
            self._ignores_input = True
            if cycle.response_started or self.pipeline:  # no other response can be sent now
                self.transport.abort()
                return
            cycle.disconnected = True  # the application gets no more of the body
            cycle.message_event.set()
        self._ignores_input = True
        self.flow.pause_reading()
        write_last(self.transport, refusal(error, status))
        self._forget_head()
        self.parser = None  # type: ignore[assignment]  # it keeps the last line of the head
        if self._connection is None or self._connection.is_from_proxy:
            self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self._connection.wait(LINGER_S, may_burst=False)
