"""A WebSocket under `tenuto serve`, without a network: its memory beside uvicorn's protocol, and its waits."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from tenuto.server.bounded_http import Gate
from tenuto.server.bounded_websocket import BoundedWebSocketProtocol, Inbox
from tenuto.server.connections import Connections
from tests.test_bounded_http import Transport

HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://localhost\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nUser-Agent: test\r\n"
    b"Cookie: session=%d\r\n\r\n"
)
SOCKETS = 20
# Saved by each idle socket (measured: 7.0 KB). Without the gate alone it would be 6.3 KB, without another part less.
SAVED_BYTES = 6_400
_OPTIONS: dict[str, Any] = {"interface": "asgi3", "proxy_headers": False, "ws_per_message_deflate": False}


class SocketTransport(Transport):
    """A transport of a socket, whose peer reads all."""

    has_ended = False  # whether it was half closed

    def write(self, data: Any) -> None:
        if self.has_ended:
            raise RuntimeError("Cannot call write() after write_eof()")  # as asyncio does, also for no data
        super().write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_ended = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


class Owner:
    """The owner of a connection before its handshake."""

    transport = asyncio.Transport()

    def expire(self) -> None: ...


class Server:
    """An application that accepts sockets and waits for messages, under one kind of protocol."""

    def __init__(self, *, is_bounded: bool) -> None:
        config = uvicorn.Config(self._serve, log_level="error", lifespan="off", **_OPTIONS)
        config.load()
        self.options: dict[str, Any] = {"config": config, "server_state": ServerState(), "app_state": {}}
        self.is_bounded = is_bounded
        self.book = Connections(max_open=100)
        self.sockets: list[WebSocketsSansIOProtocol] = []
        self.scopes: list[Any] = []
        self.messages: list[Any] = []

    async def open(self) -> None:
        """Open the next socket, and let the application accept it."""
        protocol: WebSocketsSansIOProtocol
        if self.is_bounded:
            connection = self.book.opened("192.0.2.1", Owner())
            assert connection is not None
            protocol = BoundedWebSocketProtocol(self.book, connection, **self.options)
        else:
            protocol = WebSocketsSansIOProtocol(**self.options)
        self.sockets.append(protocol)
        protocol.connection_made(SocketTransport())
        protocol.data_received(HANDSHAKE % len(self.sockets))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert protocol.handshake_complete

    async def close(self) -> None:
        """Report the end of all connections, and wait for the application."""
        for protocol in self.sockets:
            protocol.connection_lost(None)
        await asyncio.gather(*self.options["server_state"].tasks)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.scopes.append(scope)
        message = await receive()
        while message["type"] == "websocket.receive":
            self.messages.append(message["text"])
            message = await receive()


async def idle_bytes(*, is_bounded: bool) -> float:
    """Return what an idle socket takes by Python's own count."""
    server = Server(is_bounded=is_bounded)
    await server.open()  # the first one imports and caches
    gc.collect()
    tracemalloc.start()
    for _ in range(SOCKETS):
        await server.open()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await server.close()
    return size / SOCKETS


async def test_idle_socket_takes_less_memory_than_uvicorns() -> None:
    ours, uvicorns = await idle_bytes(is_bounded=True), await idle_bytes(is_bounded=False)
    assert ours < uvicorns - SAVED_BYTES, f"{ours:.0f} of {uvicorns:.0f} bytes"


async def test_socket_drops_the_headers_of_its_handshake_but_the_application_keeps_them() -> None:
    server = Server(is_bounded=True)
    await server.open()
    protocol = server.sockets[0]
    assert not protocol.request.headers
    assert not protocol.response.headers
    assert (b"cookie", b"session=1") in [(name.lower(), value) for name, value in server.scopes[0]["headers"]]
    assert vars(protocol) == {}  # every attribute of the installed uvicorn has a slot
    transport: Any = protocol.transport
    head = transport.written
    assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    for text in (b"a", b"b"):  # the socket still reads frames, masked with zeros
        protocol.data_received(b"\x81\x81\0\0\0\0" + text)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert server.messages == ["a", "b"]
    await server.close()


async def test_ping_behind_a_refused_frame_is_not_written_to_a_half_closed_transport() -> None:
    server = Server(is_bounded=True)
    await server.open()
    transport: Any = server.sockets[0].transport
    server.sockets[0].data_received(b"\x81\x82\0\0\0\0\xff\xfe" + b"\x89\x80\0\0\0\0")  # text that is no UTF-8, a ping
    assert transport.has_ended
    assert b"\x03\xef" in transport.written  # the code 1007
    await server.close()


# Its waits behave as those of asyncio --------------------------------------------------------------------------------


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["wait", "wait", "cancel", "give", "give", "clear", "pass"]), st.integers(0, 3))
)


async def results(queue: Any, event: Any, plan: list[Step]) -> list[object]:
    """Carry out `plan` on both, and return in order who got which message, and who passed the event."""
    log, waiting = list[object](), list[asyncio.Task[None]]()
    is_empty = (lambda: not queue.messages) if isinstance(queue, Inbox) else queue.empty

    async def take(number: int) -> None:
        log.append((number, await queue.get(), is_empty()))

    async def go_through(number: int) -> None:
        log.append((number, await event.wait(), event.is_set()))

    for number, (do, which) in enumerate([*plan, ("pass", 0), ("pass", 0)]):
        match do:
            case "wait":
                waiting += [asyncio.ensure_future(take(number)), asyncio.ensure_future(go_through(number))]
            case "cancel" if waiting:
                waiting[which % len(waiting)].cancel()
            case "give":
                queue.put_nowait(number)
                event.set()
            case "clear":
                event.clear()
            case _:
                for _ in range(3):
                    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    left = []
    while not is_empty():
        left.append(await queue.get())
    return [*log, left, event.is_set()]


@given(steps)
def test_waits_equal_those_of_asyncio(plan: list[Step]) -> None:
    async def both() -> tuple[list[object], list[object]]:
        return await results(Inbox(), Gate(is_open=False), plan), await results(asyncio.Queue(), asyncio.Event(), plan)

    ours, known = asyncio.run(both())
    assert ours == known
