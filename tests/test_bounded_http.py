"""Bodies of unknown peers under `tenuto serve`, for an application of one's own: in virtual time, without sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from contextlib import closing
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tenuto.server.bounded_http import BODY_BYTES, BODY_S, SLICE_BYTES, BoundedHttpProtocol
from tenuto.server.connections import CHANCE_S, READ_BYTES, SWEEP_S, Connections
from tenuto.transports.origin import connection_of
from tests.virtual import closed_later, virtually


class Transport(asyncio.Transport):
    """The transport of a peer that reads all that is written."""

    def __init__(self, **info: Any) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("127.0.0.1", 80), **info})
        self.written = b""
        self.is_over = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    def abort(self) -> None:
        self.is_over = True

    def write_eof(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Read a form, as the endpoint of a login does."""
    size, message = 0, {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
    body = str(size).encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


class Verifying:
    """An application whose verifier takes `wait_s`, as `transports.access` runs it, before it reads the body."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        connection = connection_of(scope)
        assert connection is not None
        self.running += 1
        try:
            async with asyncio.timeout(self.wait_s + 1) as limit:
                connection.verifier_began(limit)
                try:
                    await asyncio.sleep(self.wait_s)
                finally:
                    connection.verifier_ended()
        except TimeoutError:
            return
        finally:
            self.running -= 1
        await app(scope, receive, send)


class Peers:
    """A server without sockets, and peers of one address that have sent a head and `body`."""

    def __init__(
        self,
        count: int,
        length: int,
        body: bytes,
        app: Any = app,
        kind: type[BoundedHttpProtocol] = BoundedHttpProtocol,
    ) -> None:
        self._kind = kind
        self._config = uvicorn.Config(app, log_level="error", lifespan="off")
        self._config.load()
        self.book = Connections(max_open=5_000)
        self.transports: list[Transport] = []
        self.protocols: list[BoundedHttpProtocol] = []
        closed_later(self)
        for _ in range(count):
            self.add(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)

    def add(self, data: bytes, transport: Transport | None = None) -> None:
        """Open a connection whose peer has sent `data`."""
        protocol = self._kind(self.book, config=self._config, server_state=ServerState(), app_state={})
        self.transports.append(transport or Transport())
        self.protocols.append(protocol)
        protocol.connection_made(self.transports[-1])
        protocol.data_received(data)

    def left(self) -> int:
        """Return how many connections are open."""
        return sum(not transport.is_over for transport in self.transports)

    def lose_ended(self) -> None:
        """Report the end of each aborted connection, as the event loop does."""
        for protocol, transport in zip(self.protocols, self.transports, strict=True):
            if transport.is_over and protocol._connection is not None:
                protocol.connection_lost(None)

    async def close(self) -> None:
        """End all connections, and wait for the requests."""
        for transport in self.transports:
            transport.is_over = True
        self.lose_ended()
        await asyncio.sleep(2 * SWEEP_S)


@virtually
async def test_unknown_peer_that_sends_no_more_of_its_body_is_refused() -> None:
    peers = Peers(1, 10, b"1")
    await asyncio.sleep(BODY_S - SWEEP_S)
    assert peers.left() == 1
    await asyncio.sleep(5 * SWEEP_S)
    assert peers.left() == 0
    assert peers.transports[0].written.startswith(b"HTTP/1.1 408 ")


@virtually
async def test_unknown_peers_with_more_body_to_come_are_bounded_by_address() -> None:
    peers = Peers(500, 10, b"1")
    await asyncio.sleep(CHANCE_S + 2 * SWEEP_S)
    assert peers.left() == peers.book.max_waiting_of_address


@virtually
async def test_large_body_may_take_long_while_it_grows() -> None:
    pieces = 60
    peers = Peers(1, pieces * BODY_BYTES, b"")
    for _ in range(pieces):
        await asyncio.sleep(BODY_S / 2)
        peers.protocols[0].data_received(b"x" * BODY_BYTES)
    await asyncio.sleep(SWEEP_S)
    assert peers.transports[0].written.endswith(str(pieces * BODY_BYTES).encode())
    assert peers.left() == 1


@virtually
async def test_verifier_of_an_unknown_peer_that_leaves_is_ended() -> None:
    slow = Verifying(30)
    peers = Peers(1, 0, b"", slow)
    await asyncio.sleep(1)
    assert slow.running == 1
    peers.transports[0].abort()
    peers.lose_ended()
    await asyncio.sleep(0.1)
    assert (slow.running, peers.book.waiting, peers.book.open) == (0, 0, 0)


@virtually
async def test_peer_counts_no_longer_when_its_verifier_has_ended() -> None:
    slow = Verifying(3)
    peers = Peers(1, 1, b"", slow)
    await asyncio.sleep(1)
    peers.protocols[0].data_received(b"1")  # the body is complete before the verifier has ended
    assert peers.book.waiting == 1
    await asyncio.sleep(2.5)
    assert peers.transports[0].written.endswith(b"1")
    peers.protocols[0].known()
    assert peers.book.waiting == 0


@virtually
async def test_refused_body_of_a_peer_whose_verifier_runs_ends_the_connection() -> None:
    peers = Peers(0, 0, b"", Verifying(0.5))
    peers.add(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n")
    await asyncio.sleep(5 * SWEEP_S)
    assert peers.left() == 0


@virtually
async def test_request_behind_one_that_is_verified_does_not_end_the_count() -> None:
    peers = Peers(1, 0, b"", Verifying(30))
    await asyncio.sleep(0.1)
    peers.protocols[0].data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert peers.book.waiting == 1


NEXT = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Recording(BoundedHttpProtocol):
    """The protocol, with the pieces of bodies that its parser has found."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.pieces: list[int] = []
        super().__init__(*args, **options)

    def on_body(self, body: bytes) -> None:
        self.pieces.append(len(body))
        super().on_body(body)


@virtually
@pytest.mark.parametrize("after", [0, 1, len(NEXT)], ids=["no byte", "a byte", "a request"])
async def test_body_of_an_announced_length_is_parsed_in_pieces_as_large_as_they_arrive(after: int) -> None:
    """Bytes of the next request arrive with the last piece of the body, which is as large as they allow."""
    piece = READ_BYTES - after
    peers = Peers(1, READ_BYTES + piece, b"", kind=Recording)
    protocol = peers.protocols[0]
    protocol.data_received(b"\r\n\r\n".ljust(READ_BYTES, b"x"))
    await asyncio.sleep(0.1)
    protocol.data_received(b"x" * piece + NEXT[:after])
    await asyncio.sleep(0.1)
    protocol.data_received(NEXT[after:])
    await asyncio.sleep(0.1)
    assert protocol.pieces == [READ_BYTES, piece]  # type: ignore[attr-defined]
    assert peers.transports[0].written.count(b"HTTP/1.1 200 ") == 2


@virtually
async def test_chunks_that_arrive_in_the_piece_of_a_body_before_them_are_parsed_in_slices() -> None:
    """A length that counts for one request has no effect on the chunks of the next one."""
    peers = Peers(1, 20_000, b"", kind=Recording)
    protocol = peers.protocols[0]
    protocol.data_received(b"x" * 20_000)
    await asyncio.sleep(0.1)
    parsed: list[int] = []
    parse = protocol._parse
    protocol._parse = lambda data: (parsed.append(len(data)), parse(data))[1]  # type: ignore[method-assign]
    protocol.data_received((CHUNKED + b"1\r\nx\r\n" * 2_000)[:READ_BYTES])
    assert max(parsed) == SLICE_BYTES


@virtually
@pytest.mark.parametrize(
    ("begin", "piece", "is_dropped"),
    [(CHUNKED, b"1\r\nx\r\n", True), (NEXT, b"\r\n", True), (NEXT, NEXT, False), (NEXT, b"\r\n" * 2_000 + NEXT, False)],
    ids=["rest of a refused body", "blank lines", "requests", "requests behind blank lines"],
)
async def test_flood_is_parsed_no_further_once_its_peer_has_left(begin: bytes, piece: bytes, is_dropped: bool) -> None:
    """The rest waits until the peer reads, and would be parsed although no peer waits for a result."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        closing(socket.create_connection(listening.getsockname())) as peer,
        closing(listening.accept()[0]) as accepted,
    ):
        peers = Peers(0, 0, b"", refusing)
        peers.add(begin, Transport(socket=accepted))  # which does not read from its socket
        await asyncio.sleep(0.1)
        protocol, transport = peers.protocols[0], peers.transports[0]
        for is_gone in (False, True):
            protocol.pause_writing()
            protocol.data_received((piece * 8_192)[:READ_BYTES])
            if is_gone:
                peer.close()
                accepted.settimeout(5)
                assert accepted.recv(1, socket.MSG_PEEK) == b""  # the kernel has received the end of the connection
            protocol.resume_writing()
            assert transport.is_over == (is_gone and is_dropped)


@pytest.mark.parametrize("begin", [b"", NEXT], ids=["silent", "a request"])
async def test_lost_connection_leaves_no_object_to_the_garbage_collector(begin: bytes) -> None:
    """A storm would leave thousands of them until the next collection."""
    config = uvicorn.Config(app, log_level="error", lifespan="off")
    config.load()
    book, lost = Connections(max_open=100), asyncio.Event()
    transports: list[weakref.ref[asyncio.BaseTransport]] = []

    class Lost(BoundedHttpProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transports.append(weakref.ref(transport))
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.loop.call_soon(lost.set)  # after the loop has dropped the transport

    def make() -> Lost:
        return Lost(book, config=config, server_state=ServerState(), app_state={})

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    gc.collect()
    gc.disable()
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        if begin:
            writer.write(begin)
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await asyncio.wait_for(lost.wait(), 10)
        assert [one() for one in transports] == [None]
    finally:
        gc.enable()
        server.close()
        await server.wait_closed()
