"""Bodies of unknown peers under `holdfast serve`, for an application of one's own: in virtual time, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from holdfast.bounded_http import BODY_BYTES, BODY_S, BoundedHttpProtocol
from holdfast.connections import CHANCE_S, SWEEP_S, Connections
from tests.virtual import virtually


class Transport(asyncio.Transport):
    """The transport of a peer that reads all that is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("127.0.0.1", 80)})
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


class Peers:
    """A server without sockets, and peers of one address that have sent a head and `body`."""

    def __init__(self, count: int, length: int, body: bytes) -> None:
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        config.load()
        self.book = Connections(max_open=5_000)
        self.transports: list[Transport] = []
        self.protocols: list[BoundedHttpProtocol] = []
        for _ in range(count):
            protocol = BoundedHttpProtocol(self.book, config=config, server_state=ServerState(), app_state={})
            self.transports.append(Transport())
            self.protocols.append(protocol)
            protocol.connection_made(self.transports[-1])
            protocol.data_received(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length + body)

    def left(self) -> int:
        """Return how many connections are open."""
        return sum(not transport.is_over for transport in self.transports)

    async def close(self) -> None:
        """End all connections, and wait for the requests."""
        for protocol in self.protocols:
            protocol.connection_lost(None)
        await asyncio.sleep(2 * SWEEP_S)


@virtually
async def test_unknown_peer_that_sends_no_more_of_its_body_is_refused() -> None:
    peers = Peers(1, 10, b"1")
    await asyncio.sleep(BODY_S - SWEEP_S)
    assert peers.left() == 1
    await asyncio.sleep(5 * SWEEP_S)
    assert peers.left() == 0
    assert peers.transports[0].written.startswith(b"HTTP/1.1 408 ")
    await peers.close()


@virtually
async def test_unknown_peers_with_more_body_to_come_are_bounded_by_address() -> None:
    peers = Peers(500, 10, b"1")
    await asyncio.sleep(CHANCE_S + 2 * SWEEP_S)
    assert peers.left() == peers.book.max_waiting_of_address
    await peers.close()


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
    await peers.close()


@virtually
async def test_known_peer_is_not_counted_while_it_sends_its_body() -> None:
    peers = Peers(200, 10, b"1")
    for protocol in peers.protocols:
        protocol.known()
    await asyncio.sleep(2 * BODY_S)
    assert (peers.left(), peers.book.waiting) == (200, 0)
    await peers.close()
