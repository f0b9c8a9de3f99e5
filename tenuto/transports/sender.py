"""Senders: each writes the messages of one connection, one at a time, without a queue.

Layer: transports.

An owner (an event stream, a socket) writes a message when the sender is not busy, and is notified when the sender is
free again. The sender keeps no messages meanwhile: when it is free, the owner takes the missed events, joined. There
are two kinds of senders, with the same interface for owners:

- `TaskSender`, inside an app of any kind: an ordinary task awaits `send`, since middleware may need a current task.
- `DirectSender`, under our own `serve`: the coroutine `send(message)` is driven by hand, and a task finishes it only
  when it blocks. That saves 2 µs a delivery and a task a viewer (measured on the prototype).

A streamed body is framed below uvicorn's own code where that is possible, and one `Heartbeats` serves all idle
streams of an app.

Safe to change: how a sender waits. Not safe: calling `send` while another call of it is blocked.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from starlette.types import Message, Receive, Send

from tenuto.hub.channel import MAX_CHUNK_BYTES, EncodedBatch

logger = logging.getLogger("tenuto.transports")

OPEN = 1  # the state of an open WebSocket in the package `websockets`


def _uvicorns(method: Any, kind: str, *expected: str) -> Any:
    """Return uvicorn's object of a `kind` of protocol, if `method` is its own and it has the `expected` attributes."""
    # `Any`, because uvicorn need not be installed, and these attributes are not part of its interface.
    one: Any = getattr(method, "__self__", None)
    is_known = type(one).__module__.startswith(f"uvicorn.protocols.{kind}")
    return one if is_known and all(hasattr(one, name) for name in expected) else None


def cycle_of(send: Send) -> Any:
    """Return uvicorn's response cycle if `send` is its method and not a middleware's; else None."""
    expected = ("transport", "flow", "disconnected", "chunked_encoding", "response_complete")
    cycle = _uvicorns(send, "http.httptools_impl", *expected)
    return cycle if cycle is not None and hasattr(cycle.flow, "write_paused") else None


def can_write(cycle: Any) -> bool:
    """Return whether `send` would pass a chunk to the transport immediately and unchanged."""
    return bool(
        cycle.chunked_encoding
        and not cycle.flow.write_paused
        and not cycle.disconnected
        and not cycle.response_complete
    )


def break_off(receive: Receive) -> None:
    """Close the connection of an incomplete response, as uvicorn does, but without its log line at level ERROR.

    Only the end of the connection shows a viewer that its stream is not complete. `receive` is used to find the
    connection, because less middleware wraps it than `send`. If a middleware wraps it, or on another server, the server
    closes the connection itself.
    """
    cycle = _uvicorns(receive, "http.", "transport", "disconnected", "response_started", "response_complete")
    if cycle is not None and cycle.response_started and not cycle.response_complete:
        cycle.disconnected = True
        cycle.transport.close()


def end_refusal(receive: Receive) -> None:
    """Note on uvicorn's WebSocket protocol that a refused handshake has its response.

    uvicorn itself does not note that, so it would log an error for each socket that is refused with a response.
    """
    protocol = _uvicorns(receive, "websockets.", "handshake_complete", "initial_response", "close_sent")
    if protocol is not None and protocol.initial_response and protocol.close_sent:
        protocol.handshake_complete = True


@lru_cache(maxsize=1)
def framed(text: bytes) -> bytes:
    """Return `text` as one unmasked WebSocket frame. The last one is kept: many viewers take the same text in a row."""
    return _opening(len(text)) + text


def _opening(size: int) -> bytes:
    """Return the head of an unmasked WebSocket frame with a text of `size` bytes."""
    if size < 126:
        return bytes((0x81, size))
    if size < 1 << 16:
        return b"\x81\x7e" + size.to_bytes(2)
    return b"\x81\x7f" + size.to_bytes(8)


def socket_of(send: Send) -> Any:
    """Return uvicorn's WebSocket protocol if `send` is its method and not a middleware's; else None."""
    module = sys.modules.get("uvicorn.protocols.websockets.websockets_sansio_impl")
    protocol: Any = getattr(send, "__self__", None)
    kind: Any = getattr(module, "WebSocketsSansIOProtocol", None)
    if kind is None or not isinstance(protocol, kind) or type(protocol).send is not kind.send:
        return None
    expected = ("transport", "writable", "disconnected", "handshake_complete", "close_sent", "initial_response", "conn")
    conn = getattr(protocol, "conn", None)
    of_conn = ("state", "extensions")
    is_known = all(hasattr(protocol, name) for name in expected) and all(hasattr(conn, name) for name in of_conn)
    return protocol if is_known and not protocol.conn.extensions else None  # an extension changes frames


def can_frame(protocol: Any) -> bool:
    """Return whether `send` would pass a text frame to the transport immediately and unchanged."""
    return bool(
        protocol.handshake_complete
        and protocol.writable.is_set()
        and not protocol.disconnected
        and not protocol.close_sent
        and protocol.initial_response is None
        and protocol.conn.state == OPEN
    )


def transport_of(receive: Any) -> Any:
    """Return the transport of a connection, from the `receive` of the server; None if a middleware or server hides it.

    Ask `receive`, because less middleware wraps it than `send`.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    return transport if hasattr(transport, "get_write_buffer_size") else None


def unread_bytes(transport: Any) -> int:
    """Return how many bytes wait for the peer in `transport`; 0 for None. Those below asyncio's TLS count, too."""
    protocol = getattr(transport, "_ssl_protocol", transport)  # without TLS the transport, with no other below it
    if protocol is None:  # also of a transport with TLS that is closed
        return 0
    size: int = transport.get_write_buffer_size()
    return size + unread_bytes(getattr(protocol, "_transport", None))


class HeartbeatTarget(Protocol):
    """A connection that sends a heartbeat at regular intervals."""

    def send_heartbeat(self) -> None:
        """Send a heartbeat. Called on the event loop; must not wait."""


Slot = set[HeartbeatTarget]


class Heartbeats:
    """Calls each target every `period_s` seconds. Starts again when it is used on another event loop."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], Slot] = {}  # targets by period and by second within the period
        self._now_s = 0  # number of ticks so far
        self._next = 0  # number of added targets, which spreads them over the seconds of their period
        # when the next tick is due: exactly one second after the last one was due, even if that ran late
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._removed = asyncio.Event()  # set when a target was removed

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, target: HeartbeatTarget, period_s: int) -> Slot:
        """Call `target` every `period_s` seconds, until it is removed from the returned slot."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # drop the targets of a loop that is closed
            self._slots, self._timer, self._removed, self._loop = {}, None, asyncio.Event(), loop
        self._next += 1
        slot = self._slots.setdefault((period_s, self._next % period_s), set())
        slot.add(target)
        if self._timer is None:
            self._due_s = loop.time()
            self._set_timer(loop)
        return slot

    def remove(self, target: HeartbeatTarget, slot: Slot) -> None:
        slot.discard(target)
        self._removed.set()

    async def until_empty(self) -> None:
        """Wait until no target is left."""
        while len(self):
            self._removed.clear()
            await self._removed.wait()

    def tick(self) -> None:
        """Advance by one second and call the targets that are due."""
        self._now_s += 1
        for (period_s, second), slot in list(self._slots.items()):
            if not slot:
                del self._slots[period_s, second]
            elif self._now_s % period_s == second:
                for target in tuple(slot):
                    try:
                        target.send_heartbeat()
                    except Exception:
                        logger.exception("a heartbeat failed; please report this bug")

    def _run_tick(self) -> None:
        self.tick()
        if self._slots and self._loop is not None:
            self._set_timer(self._loop)
        else:
            self._timer = None  # `add` sets the next one

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = max(self._due_s + 1.0, loop.time())
        self._timer = loop.call_at(self._due_s, self._run_tick)


# If a peer reads no bytes for this long, it counts as gone. It is long, because browsers freeze hidden pages for
# minutes, and a frozen page costs no more than its socket.
SEND_TIMEOUT_S = 300.0
# Time for the last message before the end (a farewell), for which the server waits. granian sends no close while it
# waits for a frame, so on granian the end of every socket takes this long.
FAREWELL_S = 0.5
# Time in which a peer must read the rest after its stream or socket has ended. Servers would wait for it without limit.
UNREAD_S = 10.0


class SenderOwner(Protocol):
    """The object that writes to a sender."""

    def freed(self) -> None:
        """React to the end of a write that had blocked; on a `TaskSender`, of any write."""

    async def received(self, message: Message) -> bool:
        """Accept a message from the peer, and wait until the owner can accept another one.

        Return False if the peer will not send another one.
        """


@dataclass(slots=True, eq=False)
class Sender:
    """The common part of both senders. The ASGI call waits in `carry` until either side has ended."""

    _send: Send
    _owner: SenderOwner
    _cycle: Any = field(init=False)  # uvicorn's objects of the connection; None if they are not known
    _socket: Any = field(init=False)
    _call: asyncio.Task[Any] | None = None  # task of the ASGI call, while it waits in `carry`
    _finishing: asyncio.Task[None] | None = None  # sends what is not sent at once
    _is_aborted: bool = False  # True: `carry` must return although a write is still blocked
    _since_s: float = 0.0  # when the write in progress began, or its peer was last seen to read, in the loop's time
    _transport: Any = None  # of the connection, once `carry` runs
    # at the last heartbeat: `_since_s` if a write was in progress, and the bytes that waited for the peer
    _unread: tuple[float | None, int] = (None, 0)
    is_busy: bool = False  # while True, no message may be written
    is_over: bool = False  # once True, no message will be written any more
    error: BaseException | None = None  # exception that the server or a middleware raised at a write

    def __post_init__(self) -> None:
        self._cycle, self._socket = cycle_of(self._send), socket_of(self._send)

    def write(self, message: Message) -> None:
        """Send `message`. The sender must be neither busy nor over, and may be busy afterwards."""
        raise NotImplementedError

    def write_batch(self, batch: EncodedBatch) -> None:
        """Send a batch as Server-Sent Events, as `write` would."""
        self.write({"type": "http.response.body", "body": batch.sse, "more_body": True})

    def write_frame(self, text: bytes) -> None:
        """Send a WebSocket frame, as `write` would."""
        self.write({"type": "websocket.send", "text": text.decode()})

    def end(self, last: Message | None = None, *, patience_s: float = FAREWELL_S) -> None:
        """Let `carry` return once `last`, or else the current message, is sent, or `patience_s` seconds have passed.

        With `last` the sender must not be busy. A second call has no effect.
        """
        if self.is_over:
            return
        if last is not None:
            self.write(last)
        self.is_over = True
        if not self.is_busy:
            self._abort()
        elif patience_s < SEND_TIMEOUT_S:  # else `check_reader` ends it
            asyncio.get_running_loop().call_later(patience_s, self._abort)

    def check_reader(self) -> bool:
        """Return whether the peer has read since the last heartbeat, if bytes waited for it then.

        Let `carry` return if it has read no bytes for too long. A server that hides its buffer shows ends of writes.
        """
        now_s, (since_s, size_before) = asyncio.get_running_loop().time(), self._unread
        size = unread_bytes(self._transport)
        has_ended = since_s is not None and not (self.is_busy and self._since_s == since_s)  # the write of then
        has_read = has_ended or size < size_before
        if has_read:
            self._since_s = now_s
        elif self.is_busy and now_s - self._since_s >= SEND_TIMEOUT_S:
            self._abort()
        self._unread = (self._since_s if self.is_busy else None, size)
        return has_read

    async def carry(self, receive: Receive) -> None:
        """Pass the peer's messages to the owner until the peer disconnects or `end` is called.

        Raises the exception that sending or receiving raised.
        """
        call = self._call = asyncio.current_task()
        assert call is not None
        owner, self._transport = self._owner, transport_of(receive)
        try:
            while not self._is_aborted and await owner.received(await receive()):
                pass
        except asyncio.CancelledError:
            # The cancellation is ours if `_abort` requested it and no other code did; `asyncio.timeout` decides in the
            # same way.
            if not self._is_aborted or call.uncancel():
                raise
        except Exception as error:
            self._fail(error)
        finally:
            self.is_over = True
            self._call = None
            if self._finishing is not None:
                self._finishing.cancel()
                await asyncio.wait([self._finishing])
        if self.error is not None:
            raise self.error

    def _has_lost_peer(self) -> bool:
        """Return whether uvicorn's connection has ended without a message to this ASGI call, and end if so.

        uvicorn notifies only the request that it has read last, so a stream with another request behind it would stay
        for ever.
        """
        is_lost = bool(self._cycle.transport.is_closing())
        if is_lost:
            self._abort()
        return is_lost

    async def _finish(self, sending: Awaitable[None]) -> None:
        """Await the write in progress, and let the owner write again."""
        try:
            await sending
            self.is_busy = False
            if self.is_over:
                self._abort()
            else:
                self._owner.freed()
        except Exception as error:
            self._fail(error)
            self._abort()

    def _abort(self) -> None:
        """Let `carry` return now, although a write may be blocked. A second call has no effect."""
        self.is_over = True
        if not self._is_aborted:
            self._is_aborted = True
            if self._call is not None:
                self._call.cancel()

    def _fail(self, error: Exception) -> None:
        """Record why the connection failed, so that `carry` raises it.

        An OSError is not recorded: servers raise it when the peer has disconnected. uvicorn raises RuntimeError instead
        after it has closed a socket by itself because of a protocol error.
        """
        is_closed = isinstance(error, RuntimeError) and "after sending 'websocket.close'" in str(error)
        if not (is_closed or isinstance(error, OSError | TimeoutError)):
            self.error = error


class TaskSender(Sender):
    """Sends from one ordinary task, which has the context of the ASGI call."""

    __slots__ = ("_changed", "_message")

    def __init__(self, send: Send, owner: SenderOwner) -> None:
        super().__init__(send, owner)
        self._message: Message | None = None  # the one to send next
        self._changed: asyncio.Future[None] | None = None  # while the task waits for a message

    def write(self, message: Message) -> None:
        assert not self.is_busy
        if self._cycle is not None and self._has_lost_peer():
            return
        self.is_busy, self._since_s = True, asyncio.get_running_loop().time()
        self._message = message
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None

    def carry(self, receive: Receive) -> Coroutine[Any, Any, None]:
        self._finishing = asyncio.get_running_loop().create_task(self._send_all())
        return super().carry(receive)

    async def _send_all(self) -> None:
        while not self._is_aborted:
            if self._message is None:
                self._changed = asyncio.get_running_loop().create_future()
                await self._changed
            else:
                message, self._message = self._message, None
                await self._finish(self._send(message))


class DirectSender(Sender):
    """Drives `send` by hand, and lets a task finish it only when it blocks."""

    __slots__ = ()

    def write(self, message: Message) -> None:
        assert not self.is_busy
        if self._cycle is not None and self._has_lost_peer():
            return
        sending: Any = self._send(message)  # a coroutine, as uvicorn's is
        try:
            blocked = sending.send(None)
        except StopIteration:  # it has not blocked
            return
        except Exception as error:
            self._fail(error)
            self._abort()
            return
        self.is_busy, self._since_s = True, asyncio.get_running_loop().time()
        self._finishing = asyncio.get_running_loop().create_task(self._finish(_drive(sending, blocked)))

    def write_batch(self, batch: EncodedBatch) -> None:
        cycle = self._cycle
        if cycle is None or not can_write(cycle):
            super().write_batch(batch)
        elif (chunk := batch.chunk) is not None:
            cycle.transport.write(chunk)
        else:  # a large batch is written without copies
            cycle.transport.write(b"%x\r\n" % len(batch.sse))
            cycle.transport.write(memoryview(batch.sse))
            cycle.transport.write(b"\r\n")

    def write_frame(self, text: bytes) -> None:
        socket = self._socket
        if socket is None or not can_frame(socket):
            super().write_frame(text)
        elif len(text) <= MAX_CHUNK_BYTES:
            socket.transport.write(framed(text))
        else:  # without copies, which take milliseconds for each viewer of a photo
            socket.transport.write(_opening(len(text)))
            socket.transport.write(memoryview(text))


def abort_if_unread(receive: Any, is_draining: Callable[[], bool]) -> None:
    """Abort the connection of an ended stream or socket if its peer does not read the rest.

    The server must show the connection, as `tenuto serve` does. Servers close a connection when all bytes are sent. A
    reader that has stalled would hold its connection, and a server that shuts down, for ever.
    """
    transport, loop = transport_of(receive), asyncio.get_running_loop()
    size = unread_bytes(transport)
    # a complete response is left alone: reading it may take any time
    if size and not getattr(receive.__self__, "response_complete", False):
        timeout_s = FAREWELL_S if is_draining() else UNREAD_S
        loop.call_later(timeout_s, _abort_unread, transport, size, loop.time() + SEND_TIMEOUT_S, is_draining)


def _abort_unread(
    transport: asyncio.WriteTransport, before: int, end_s: float, is_draining: Callable[[], bool]
) -> None:
    """Abort `transport` if bytes wait, and its peer has not read on since `before` bytes waited, or is late."""
    size, loop = unread_bytes(transport), asyncio.get_running_loop()
    if size and (size >= before or loop.time() >= end_s or is_draining()):
        transport.abort()
    elif size:
        loop.call_later(UNREAD_S, _abort_unread, transport, size, end_s, is_draining)


@types.coroutine
def _drive(sending: Coroutine[Any, None, None], blocked: Any) -> Generator[Any, Any, None]:
    """Await the rest of a coroutine that was driven by hand until it yielded `blocked`.

    `yield from` would resume the coroutine first, but the future that it waits for has to reach the task before.
    """
    with suppress(StopIteration):  # the coroutine has ended
        while True:
            try:
                value = yield blocked
            except BaseException as error:
                blocked = sending.throw(error)
            else:
                blocked = sending.send(value)
