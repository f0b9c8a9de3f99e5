"""The short path of an event to a WebSocket: it writes exactly the bytes of the long path, or declines.

Layer: tests.

Two sockets watch the same channels under the protocol of `tenuto serve`; one of them never takes the short path.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from proof.wirecheck import encode_frame
from tenuto import Hub, allow_everyone
from tenuto.core.events import MessageAppend
from tenuto.hub.batches import EncodedBatch
from tenuto.server.bounded_websocket import BoundedWebSocketProtocol
from tenuto.server.connections import Connections
from tenuto.transports.sender import MAX_BYTES, DirectSender, Frames, Heartbeats, Sender, TaskSender, can_frame
from tenuto.transports.session import FIRST_PING_S, PING_EARLY_S, Session
from tests.test_bounded_websocket import HANDSHAKE, Owner, SocketTransport
from tests.transports.conftest import new_hub
from tests.transports.test_chunks import batch
from tests.virtual import virtually

STEP_S = 0.05  # longer than the flush windows below; the steps of a plan end before the first heartbeat, at 1 s
PING_DUE_S = FIRST_PING_S - PING_EARLY_S
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
    """A hub with two sockets: the first takes the short path where it can, the second one never."""

    def __init__(self) -> None:
        self.hub = new_hub("memory://", authenticate=allow_everyone)
        self.hub.drive_by_hand = True
        self.direct: list[EncodedBatch] = []
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
        assert all(peer.transport.written.count(b"channel.attached") == 2 for peer in self.peers)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the batches of the short path, and keep the second socket from it."""
        write, can_write = DirectSender.write_directly, DirectSender.can_write_directly

        def noting(sender: DirectSender, batch: EncodedBatch, frames: Frames) -> None:
            self.direct.append(batch)
            write(sender, batch, frames)

        def of_first(sender: DirectSender) -> bool:
            return sender._socket is self.peers[0].protocol and can_write(sender)

        with (
            patch.object(DirectSender, "write_directly", noting),
            patch.object(DirectSender, "can_write_directly", of_first),
        ):
            yield

    async def close(self) -> None:
        for peer in self.peers:
            peer.lose()
        await asyncio.gather(*(task for peer in self.peers for task in peer.state.tasks))
        await self.hub.close()


SEEN = ("text", "text", "text", "text", "both", "two", "other", "large", "signal", "signal", "ask", "rest", "later")
PEERS = ("pause", "resume", "end", "lose")
steps = st.lists(st.sampled_from(SEEN + PEERS), min_size=4, max_size=9)


BLOCKED = ["text", "pause", "text", "text", "resume"]  # a write is blocked
PING = ["text", "later", "text"]  # a ping is due


@settings(max_examples=60, deadline=None)
@example(BLOCKED, 0)
@example(PING, 0)
@given(steps, st.sampled_from([0, 20, 40]))
def test_short_path_writes_the_bytes_of_the_long_path_whatever_happens(plan: list[str], flush_ms: int) -> None:
    check_bytes(plan, flush_ms)


def write_while_a_write_is_blocked(patch: pytest.MonkeyPatch) -> None:
    """The transport has a buffer."""
    patch.setattr(DirectSender, "can_write_directly", lambda self: self._socket is not None and can_frame(self._socket))


def write_before_a_ping(patch: pytest.MonkeyPatch) -> None:
    """Text shows that the connection lives."""
    batch_to_send = Session.batch_to_send
    patch.setattr(Session, "batch_to_send", lambda self, *, now_s: batch_to_send(self, now_s=0.0))


def keep_the_frame(patch: pytest.MonkeyPatch) -> None:
    """The frame was made for all sockets."""
    of_sole, kept = Frames.of_sole, dict[int, bytes | None]()
    patch.setattr(Frames, "of_sole", lambda self, batch: kept.setdefault(id(self), of_sole(self, batch)))


@pytest.mark.parametrize(
    ("mutant", "plan"),
    [
        (write_while_a_write_is_blocked, BLOCKED),
        (write_before_a_ping, PING),
        (keep_the_frame, ["text", "text", "text"]),
    ],
)
def test_mutant_of_the_short_path_is_found(
    mutant: Callable[[pytest.MonkeyPatch], None], plan: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_bytes(plan, 0)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_bytes(plan, 0)


@virtually
async def check_bytes(plan: list[str], flush_ms: int) -> None:
    """Carry out `plan`, and check after each step that both sockets have written the same bytes."""
    place = Place()
    with place.watched():
        await place.open(flush_ms=flush_ms)
        opened_s = asyncio.get_running_loop().time()
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
                        await one.append("x" * (MAX_BYTES + 1))
                    case "signal":
                        hub.runtime.presence.signal("c:1", "s", {"n": number}, "someone")
                    case "ask":
                        for peer in place.peers:
                            peer.send(type="history", ref=number + 10, channel="c:2", limit=1)
                    case "rest":
                        continue  # the next step follows at once
                    case "later":  # a ping becomes due
                        await asyncio.sleep(opened_s + PING_DUE_S - asyncio.get_running_loop().time())
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
async def test_each_append_to_an_idle_socket_takes_the_short_path() -> None:
    place = Place()
    sent: list[Any] = []
    send = WebSocketsSansIOProtocol.send

    async def noting(protocol: Any, message: Any) -> None:
        sent.append(message)
        await send(protocol, message)

    with place.watched():
        await place.open(flush_ms=0)
        async with place.hub.message("c:1", id="one") as message:
            await message.append("first")  # opens a part
            await asyncio.sleep(STEP_S)
            place.direct.clear()
            with patch.object(WebSocketsSansIOProtocol, "send", noting):
                for n in range(5):
                    await message.append(f"{n}")
                    await asyncio.sleep(STEP_S)
            texts = [event.text for each in place.direct for event in each.events if isinstance(event, MessageAppend)]
            assert texts == ["0", "1", "2", "3", "4"]
            assert sent == []  # the long path writes to this transport, too
        await place.close()


@pytest.mark.parametrize("kind", [DirectSender, TaskSender])
async def test_short_path_declines_without_a_transport_at_hand(kind: type[Sender]) -> None:
    """Under another server, and behind a middleware that wraps `send`."""
    owner: Any = Owner()

    async def send(message: Any) -> None: ...

    assert not kind(send, owner, Heartbeats()).can_write_directly()


@pytest.mark.parametrize("text", ["", "a", "é" * 62, "日" * 300, '\0"\\\n', "x" * (MAX_BYTES - 200), "é" * 30_000])
def test_frame_of_a_sole_event_equals_that_of_its_text(text: str) -> None:
    one = batch(text)
    assert Frames().of_sole(one) == Frames().of(one.frames[0])


def test_frame_of_a_large_event_is_not_kept() -> None:
    frames, small = Frames(), batch("small")
    kept = frames.of_sole(small)
    assert frames.of_sole(batch("x" * MAX_BYTES)) is None
    assert frames.of_sole(small) is kept
