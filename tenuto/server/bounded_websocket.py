"""The WebSocket protocol of `tenuto serve`: uvicorn's, with bounds on its peer.

Layer: server, beside `bounded_http`, which hands connections over.

Until its peer is known, a socket accepts messages of at most `INTRODUCTION_BYTES` and is counted (`connections`). Input
is parsed in slices. Reading stops while the application has a message to take, while the peer does not read the
server's output, pongs included, and after a burst of control frames.

`Gate` and `Inbox` take little memory while a socket is idle: `asyncio.Event` and `asyncio.Queue` hold one and four
deques of 760 bytes each. They have the same methods, as far as uvicorn calls them.

Safe to change: the constants, which `docs/security.md` names. Not safe: one more `await` or copy for each frame.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import msgspec
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.typing import StatusLike

from tenuto.core.errors import InvalidRequest
from tenuto.server.bounded_http import LINGER_S, Gate, refusal, refusal_headers, release_transport, write_last
from tenuto.server.connections import LARGE_BYTES, PARSE_S, Connection, Connections
from tenuto.transports.origin import EXTENSION

INTRODUCTION_BYTES = 8 * 1024  # limit of a message from a peer that has not authenticated yet
MAX_FRAGMENTS = 256  # limit of fragments in a message; browsers send one or a few
MAX_CONTROL_FRAMES = 64  # limit of control frames per second; libraries send one every 20 s
CONTROL_PAUSE_S = 1.0  # pause in reading after more control frames than that
WHOLE_BYTES = 2 * 1024  # input that is parsed at once
SLICE_BYTES = 1024  # bytes of larger input to parse at once: up to 170 empty frames, which take 1 ms
BURST = 16  # messages that the application may take before the loop serves other connections
FAREWELL_S = 0.5  # time in which an unknown peer can read the last frame
# Limit of pongs and refusals that an unknown peer has not read. A known peer has the limit of asyncio, 64 KiB.
UNKNOWN_WRITE_BYTES = 4 * 1024

_UVICORNS = (  # the attributes of uvicorn's protocol
    "app",
    "app_state",
    "asgi_version",
    "client",
    "close_sent",
    "close_timeout",
    "close_timer",
    "config",
    "conn",
    "connections",
    "curr_msg_data_type",
    "default_headers",
    "disconnected",
    "frames",
    "handshake_complete",
    "handshake_initiated",
    "initial_response",
    "last_ping_rtt",
    "logger",
    "loop",
    "pending_ping_payload",
    "ping_interval",
    "ping_sent_at",
    "ping_timeout",
    "ping_timer",
    "pong_timer",
    "queue",
    "read_paused",
    "request",
    "response",
    "root_path",
    "scheme",
    "scope",
    "server",
    "tasks",
    "transport",
    "writable",
)

T = TypeVar("T")


class Inbox(Gate, Generic[T]):
    """An `asyncio.Queue` without a limit: its owner stops reading from the peer after each message."""

    __slots__ = ("messages",)

    def __init__(self) -> None:
        super().__init__(is_open=False)
        self.messages: list[T] = []

    def put_nowait(self, message: T) -> None:
        """Add `message`."""
        self.messages.append(message)
        self.set()

    async def get(self) -> T:
        """Remove and return the oldest message; wait for one if there is none."""
        while not self.messages:
            self._is_open = False
            await self.wait()
        return self.messages.pop(0)


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol, asyncio.BufferedProtocol):
    """One WebSocket connection, from the complete head of its handshake."""

    # Beside uvicorn's own attributes, as in `BoundedHttpProtocol`. Those of uvicorn are here, too: with slots the
    # object takes 1.2 KB less. A version of uvicorn with other attributes keeps them in a `__dict__`.
    __slots__ = (
        *_UVICORNS,
        "_book",
        "_burst",
        "_connection",
        "_control_frames",
        "_control_since_s",
        "_extensions",
        "_is_head_large",
        "_is_known",
        "_is_throttled",
        "_must_introduce",
        "_unread",
    )

    def __init__(self, book: Connections, connection: Connection, **options: Any) -> None:
        super().__init__(**options)
        self._book = book
        self._connection = connection
        connection.owner = self
        # The extensions of the ASGI scope; empty before the handshake.
        self._extensions: dict[str, dict[object, object]] = {}
        self._unread = b""  # input that was read but not parsed yet
        self._is_known = False
        self._is_head_large = False  # so the connection counts as large while it waits
        self._must_introduce = False  # True: the peer must authenticate in its first frame
        self._is_throttled = False  # True: reading pauses after a burst of control frames
        self._control_frames = 0  # since `_control_since_s`
        self._control_since_s = 0.0
        self._burst = 0  # messages taken since the loop could serve other connections
        self.queue: Inbox[ASGIReceiveEvent] = Inbox()  # type: ignore[assignment]  # has the methods that uvicorn calls
        self.writable: Gate = Gate(is_open=True)  # type: ignore[assignment]  # as above
        self.conn.max_message_size = INTRODUCTION_BYTES
        self.conn.reject = partial(_rejection, book)  # type: ignore[method-assign]  # no cycle with this object

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(UNKNOWN_WRITE_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.close()
        self._unread = b""
        super().connection_lost(exc)
        # Drop these references: the object would otherwise live until the next garbage collection.
        self.conn.parser.close()
        self._extensions.clear()
        release_transport(self.transport)

    def expire(self) -> None:
        """End the connection, because its peer has not authenticated in time."""
        self.transport.abort()

    def known(self) -> None:
        """Lift the bounds for this connection, because its peer is authenticated (`transports.origin`)."""
        if not self._is_known:
            self._is_known = True
            self._connection.proceed()
            self.conn.max_message_size = self.config.ws_max_size
            self.transport.set_write_buffer_limits()

    def verifier_began(self, limit: asyncio.Timeout) -> None:
        """Count the connection while a verifier runs, if its peer is unknown (`transports.origin`)."""
        if self._is_known:
            return
        self._connection.verification = limit
        self._connection.wait_for_verifier()
        if self._is_head_large:
            self._connection.count_as_large()

    def verifier_ended(self) -> None:
        """Stop counting the connection for its verifier. A socket that must yet introduce itself still counts."""
        self._connection.verification = None
        if not (self._is_known or self._must_introduce):
            self._connection.proceed()

    def expect_introduction(self, timeout_s: float) -> None:
        """Keep the bounds for unknown peers until the peer authenticates, at most `timeout_s` seconds."""
        self._must_introduce = True
        # a WebSocket's buffers take more memory than a head, so it may not exceed the limits as part of a burst
        self._connection.wait(timeout_s, may_burst=False)
        if self._is_head_large:
            self._connection.count_as_large()

    # The handshake

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:  # else uvicorn has refused the handshake
            self._extensions = self.scope["extensions"]
            self._extensions[EXTENSION] = {"connection": self}
            if self._connection.is_from_proxy:
                self._book.proxies.forward(self.scope)
            # No frame can arrive before the application has accepted the socket, because a client waits for that.
            self.transport.pause_reading()

    def start_keepalive(self) -> None:
        """Begin to read frames: uvicorn calls this when the application has accepted the socket."""
        super().start_keepalive()
        # The handshake is over. Its headers would stay for the life of the socket (3.5 KB); the scope has its own copy.
        self.request.headers.clear()
        self.response.headers.clear()
        if not self._must_introduce:
            self.known()
        self._go_on()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        if not self._is_known:  # do not wait for the peer's close frame
            self.loop.call_later(FAREWELL_S, self.transport.abort)

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._book.input_view

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._book.input_view[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._unread:
            self._unread += data
            self.transport.pause_reading()
            self._book.parsing.add(self._go_on)
        elif not self.handshake_initiated:
            self._is_head_large = len(data) > LARGE_BYTES
            self._parse(data)
            if not self.handshake_initiated:  # the package `websockets` refuses here without informing its caller
                self._book.note("a handshake was invalid")
                detail = "the WebSocket handshake is invalid, has more than 128 headers, or a header of more than 8 KiB"
                self._write_last(refusal(InvalidRequest(detail), 400))
        elif len(data) > WHOLE_BYTES or self.is_held():
            self._parse_in_slices(data)
        else:
            self._parse(data)

    def is_held(self) -> bool:
        """Return whether parsing must pause now."""
        return self.read_paused or self._is_throttled or not (self.writable.is_set() and self.handshake_complete)

    def _parse_in_slices(self, data: bytes) -> None:
        """Parse `data` until the connection must pause or the time to parse ends; set the rest aside."""
        # An unknown peer shares its time with no other: set aside, the input of thousands would fill the memory.
        at, until_s = 0, (self._book.parsing.began_s() if self._is_known else self.loop.time()) + PARSE_S
        while at < len(data) and not self.transport.is_closing():
            is_held = self.is_held()
            if is_held or self.loop.time() > until_s:
                self._unread = data[at:]
                self.transport.pause_reading()
                if not is_held:
                    self._book.parsing.add(self._go_on)
                return
            self._parse(data[at : at + SLICE_BYTES])
            at += SLICE_BYTES

    def _parse(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except InvalidState:
            # Invalid UTF-8 followed by a close frame: uvicorn would handle both, `websockets` only one of them.
            self._write_last(b"".join(self.conn.data_to_send()))

    def _go_on(self) -> None:
        """Parse the input that was set aside; then read more, unless the connection must pause."""
        if self.is_held():
            return
        if self._unread:
            data, self._unread = self._unread, b""
            self._parse_in_slices(data)
            if self._unread or self.is_held():
                return
        self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        self._burst += 1
        if self._burst >= BURST:
            self._burst = 0
            await asyncio.sleep(0)  # with a full queue, this method would not let the loop serve other connections
        message = await self.queue.get()
        if self.read_paused and not self.queue.messages:  # uvicorn pauses after each message
            self.read_paused = False
            if self._unread:
                self._book.parsing.add(self._go_on)  # in turn with other connections
            else:
                self._go_on()
        return message

    # Writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    # Frames

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:
            self._book.note(f"a message had more than {MAX_FRAGMENTS} fragments")
            self.frames = []
            self.conn.fail(1009, f"the message has more than {MAX_FRAGMENTS} fragments, which is the limit")
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        if not self.close_sent:  # otherwise the transport may be half closed, and takes no pong
            super().handle_ping()
        self._count_control_frame()

    def handle_pong(self, event: Frame) -> None:
        super().handle_pong(event)
        self._count_control_frame()

    def _count_control_frame(self) -> None:
        """Stop reading for a while after a burst of frames that cost time but carry no message."""
        self._control_frames += 1
        if self._control_frames < MAX_CONTROL_FRAMES or self._is_throttled:
            return
        now_s = self.loop.time()
        if now_s - self._control_since_s < CONTROL_PAUSE_S:
            self._is_throttled = True
            self.transport.pause_reading()
            self.loop.call_later(CONTROL_PAUSE_S, self._end_throttle)
        self._control_frames = 0
        self._control_since_s = now_s

    def _end_throttle(self) -> None:
        self._is_throttled = False
        self._go_on()

    # Refusals

    def handle_parser_exception(self) -> None:
        """Close the connection of a peer that broke a rule, with a close frame that names the rule."""
        if self.close_sent:
            return
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._write_last(b"".join(self.conn.data_to_send()))

    def _write_last(self, data: bytes) -> None:
        """Write `data`, and end the connection a little later: a reset at once could hide the reason from the peer."""
        self.close_sent = True
        self._unread = b""
        self.transport.pause_reading()
        write_last(self.transport, data)
        if not self._is_known:
            self._connection.wait(LINGER_S, may_burst=False)
        # If this timer is set, uvicorn leaves the closing to it.
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)


def _rejection(book: Connections, status: StatusLike, text: str) -> Response:
    """Return the response to a handshake that websockets refuses, with the body and headers of other refusals."""
    book.note("a handshake was invalid")
    error = InvalidRequest(text.partition("\n")[0])
    body = msgspec.json.encode({**error.problem(), "status": int(status)})
    # a client that asked for another version learns the one that this server speaks (RFC 6455, 4.2.2)
    headers = {**refusal_headers(error), "content-length": str(len(body)), "sec-websocket-version": "13"}
    return Response(int(status), HTTPStatus(status).phrase, Headers(headers), body)
