"""Frames that a socket writes to its transport itself: exactly the bytes that the server's `send` would write.

Layer: tests.

Two sockets watch the same channels under the protocol of `tenuto serve`; one of them always goes through `send`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import uvicorn
from hypothesis import example, given
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from proof.wirecheck import encode_frame
from tenuto import Hub, allow_everyone
from tenuto.hub.channel import MAX_CHUNK_BYTES
from tenuto.server.bounded_websocket import BoundedWebSocketProtocol
from tenuto.server.connections import Connections
from tenuto.transports import sender
from tests.test_bounded_websocket import HANDSHAKE, Owner, SocketTransport
from tests.transports.conftest import new_hub
from tests.virtual import virtually

STEP_S = 0.05  # longer than the flush windows below; the steps of a plan end before the first heartbeat, at 1 s
CHANNELS = ("c:1", "c:2")


class Peer:
    """A socket of the hub without a network."""

    def __init__(self, hub: Hub, config: uvicorn.Config, book: Connections) -> None:
        connection = book.opened("127.0.0.1", Owner())
        assert connection is not None
        self.transport = SocketTransport()
        self.transport._extra = {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 80)}  # type: ignore[attr-defined]
        self.state = ServerState()
        self.protocol = BoundedWebSocketProtocol(book, connection, config=config, server_state=self.state, app_state={})
        self.protocol.connection_made(self.transport)
        self.protocol.data_received(HANDSHAKE % 1)
        self.is_paused = self.is_lost = False

    def send(self, **frame: Any) -> None:
        """Send a frame from the client."""
        if not self.transport.is_over:
            self.protocol.data_received(encode_frame(1, json.dumps(frame).encode(), mask=b"mask"))

    def pause(self) -> None:
        """Stop reading, as a peer does whose buffers are full."""
        if not self.is_paused and not self.is_lost:
            self.is_paused = True
            self.protocol.pause_writing()

    def resume(self) -> None:
        """Read again."""
        if self.is_paused and not self.is_lost:
            self.is_paused = False
            self.protocol.resume_writing()

    def end(self) -> None:
        """Send a close frame."""
        if not self.transport.is_over:
            self.protocol.data_received(encode_frame(8, b"\x03\xe8", mask=b"mask"))

    def lose(self) -> None:
        """Cut the connection."""
        if not self.is_lost:
            self.is_lost = self.transport.is_over = True
            self.protocol.connection_lost(ConnectionResetError())


class Place:
    """A hub with two sockets: the first writes to its transport where it can, the second one never."""

    def __init__(self) -> None:
        self.hub = new_hub("memory://", authenticate=allow_everyone)
        self.hub.drive_by_hand = True
        self.peers: list[Peer] = []

    async def open(self, *, flush_ms: int) -> None:
        await self.hub.start()
        config = uvicorn.Config(self.hub, log_level="error", lifespan="off", interface="asgi3", proxy_headers=False)
        config.ws_per_message_deflate = False
        config.load()
        book = Connections(max_open=100)
        self.peers = [Peer(self.hub, config, book) for _ in range(2)]
        await asyncio.sleep(0)
        for peer in self.peers:
            for ref, channel in enumerate(CHANNELS):
                peer.send(type="attach", ref=ref, channel=channel, flush_ms=flush_ms)
                await asyncio.sleep(0)
        await asyncio.sleep(STEP_S)
        for peer in self.peers:
            _, _, peer.transport.written = peer.transport.written.partition(b"\r\n\r\n")  # the handshake has a date
            assert peer.transport.written.count(b"channel.attached") == 2

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Keep the second socket from its transport."""
        can = sender.can_frame
        with patch.object(sender, "can_frame", lambda one: one is self.peers[0].protocol and can(one)):
            yield

    async def close(self) -> None:
        for peer in self.peers:
            peer.lose()
        await asyncio.gather(*(task for peer in self.peers for task in peer.state.tasks))
        await self.hub.close()


SEEN = ("text", "text", "text", "text", "both", "two", "other", "large", "signal", "signal", "ask", "rest", "ping")
PEERS = ("pause", "resume", "end", "lose")
steps = st.lists(st.sampled_from(SEEN + PEERS), min_size=4, max_size=9)


BLOCKED = ["text", "pause", "text", "text", "resume"]  # a write is blocked
PING = ["text", "ping", "text"]


@example(BLOCKED, 0)
@example(PING, 0)
@given(steps, st.sampled_from([0, 20, 40]))
def test_short_path_writes_the_bytes_of_the_long_path_whatever_happens(plan: list[str], flush_ms: int) -> None:
    check_bytes(plan, flush_ms)


@virtually
async def check_bytes(plan: list[str], flush_ms: int) -> None:
    """Carry out `plan`, and check after each step that both sockets have written the same bytes."""
    place = Place()
    with place.watched():
        await place.open(flush_ms=flush_ms)
        hub, (short, long) = place.hub, place.peers
        one = hub.message("c:1", id="one")
        other = hub.message("c:1", id="other")
        second = hub.message("c:2", id="second")
        async with one, other, second:
            for number, step in enumerate(plan):
                match step:
                    case "text":
                        await one.append(f"{number} é日\n")
                    case "both":
                        await one.append("a")
                        await second.append("b")
                    case "two":
                        await one.append("a")
                        await other.append("b")
                    case "other":
                        await second.append("c")
                    case "large":
                        await one.append("x" * (MAX_CHUNK_BYTES + 1))
                    case "signal":
                        hub.runtime.presence.signal("c:1", "s", {"n": number}, "someone")
                    case "ask":
                        for peer in place.peers:
                            peer.send(type="history", ref=number + 10, channel="c:2", limit=1)
                    case "rest":
                        continue  # the next step follows at once
                    case "ping":
                        for socket in hub._asgi._sockets._open:
                            socket.send_heartbeat()
                    case _:
                        for peer in place.peers:
                            getattr(peer, step)()
                        if step == "resume":  # a tick before the blocked write has ended
                            for feed in hub.channel("c:1").feeds:
                                feed.wake()
                await asyncio.sleep(STEP_S)
                assert short.transport.written == long.transport.written
            for peer in place.peers:
                peer.resume()
        await asyncio.sleep(STEP_S)
        assert short.transport.written == long.transport.written
        assert short.transport.is_over == long.transport.is_over
        await place.close()


@virtually
async def test_frames_to_an_idle_socket_do_not_go_through_send() -> None:
    place, sent, send = Place(), list[Any](), WebSocketsSansIOProtocol.send

    async def noting(protocol: Any, message: Any) -> None:
        if protocol is place.peers[0].protocol:
            sent.append(message)
        await send(protocol, message)

    with place.watched(), patch.object(WebSocketsSansIOProtocol, "send", noting):
        await place.open(flush_ms=0)
        sent.clear()  # the accept
        async with place.hub.message("c:1", id="one") as message:
            for text in ("0", "1", "2", "3", "4" * (MAX_CHUNK_BYTES + 1)):
                await message.append(text)
                await asyncio.sleep(STEP_S)
            assert place.peers[0].transport.written.count(b"message.append") == 4  # the first text opens a part
            assert sent == []
        await place.close()
