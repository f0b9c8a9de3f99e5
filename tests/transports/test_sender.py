"""Senders: one message at a time, in both ways of sending, however `send` behaves."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tenuto.transports import sse
from tenuto.transports.sender import DirectSender, Heartbeats, Sender, TaskSender, unread_bytes
from tests.certificates import make_certificate
from tests.transports.asgi import exchange, scope_of
from tests.transports.conftest import PATIENCE_S, new_hub
from tests.virtual import virtually

Make = Callable[[Callable[[Any], Awaitable[None]], Any], Sender]


class Peer:
    """An owner with a list of messages to write, and a `receive` that waits until the peer disconnects."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.sender: Sender | None = None
        self.left = asyncio.Event()
        self.transport: Any = None  # of the connection, if the server shows it

    def pump(self) -> None:
        assert self.sender is not None
        while self.texts and not self.sender.is_busy:
            self.sender.write({"text": self.texts.pop(0)})

    def freed(self) -> None:
        self.pump()

    def send_heartbeat(self) -> None:
        assert self.sender is not None
        self.has_read = self.sender.check_reader()

    async def received(self, message: Any) -> bool:
        return bool(message["type"] != "http.disconnect")

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(params=[TaskSender, DirectSender])
def make(request: pytest.FixtureRequest) -> Make:
    kind: type[Sender] = request.param
    return kind


async def carried(sender: Sender, peer: Peer) -> None:
    peer.sender = sender
    async with asyncio.timeout(PATIENCE_S):
        await sender.carry(peer.receive)


async def test_messages_are_sent_one_after_another(make: Make) -> None:
    sent, sending = list[str](), 0

    async def send(message: Any) -> None:
        nonlocal sending
        sending += 1
        assert sending == 1
        for _ in range(len(message["text"]) % 3):  # some block, some do not
            await asyncio.sleep(0)
        sent.append(message["text"])
        sending -= 1
        if len(sent) == 50:
            peer.left.set()

    texts = ["x" * number for number in range(50)]
    peer = Peer(*texts)
    sender = peer.sender = make(send, peer)
    peer.pump()
    await carried(sender, peer)
    assert sent == texts


async def test_aborted_blocked_write_runs_its_cleanup(make: Make) -> None:
    trace: list[str] = []

    async def send(message: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise
        finally:
            trace.append("finally")

    peer = Peer("never")
    sender = peer.sender = make(send, peer)
    carrying = asyncio.create_task(carried(sender, peer))
    await asyncio.sleep(0)
    peer.pump()
    for _ in range(3):
        await asyncio.sleep(0)
    sender.end(patience_s=0)
    await carrying
    assert trace == ["cancelled", "finally"]


async def test_errors_of_receiving_are_raised_by_the_asgi_call(make: Make) -> None:
    async def send(message: Any) -> None: ...

    async def receive() -> Any:
        raise ZeroDivisionError

    peer = Peer()
    sender = peer.sender = make(send, peer)
    with pytest.raises(ZeroDivisionError):
        await sender.carry(receive)


async def until_ended(make: Make, *, ends_s: float | None, transport: Any = None) -> float:
    """Write a message whose write never ends, and end the sender after `ends_s`. Return the seconds until then."""

    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    peer = Peer("x")
    peer.transport = transport
    sender = peer.sender = make(send, peer)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    if ends_s is not None:
        loop.call_later(ends_s, sender.end)
    heartbeats = Heartbeats()
    slot = heartbeats.add(peer, 15)
    peer.pump()
    await sender.carry(peer.receive)
    heartbeats.remove(peer, slot)
    return loop.time() - begun_s


class Transport:
    """The transport of a peer that reads a byte a second, of a thousand that wait."""

    def get_write_buffer_size(self) -> int:
        return max(0, 1_000 - int(asyncio.get_running_loop().time()))


@virtually
async def test_peer_that_reads_no_bytes_is_gone_after_five_minutes() -> None:
    assert 1_300.0 <= await until_ended(TaskSender, ends_s=None, transport=Transport()) <= 1_330.0
    assert 300.0 <= await until_ended(TaskSender, ends_s=None) <= 315.0
    assert 300.0 <= await until_ended(DirectSender, ends_s=None) <= 315.0


@virtually
async def test_peer_reads_also_if_no_write_waits_for_it() -> None:
    peer = Peer()
    peer.transport = Transport()
    peer.sender = TaskSender(lambda message: asyncio.sleep(0), peer)
    carrying = asyncio.create_task(peer.sender.carry(peer.receive))
    seen = []
    for seconds in (1, 5, 1_000, 5):
        await asyncio.sleep(seconds)
        peer.send_heartbeat()
        seen.append(peer.has_read)
    assert seen == [False, True, True, False]
    peer.left.set()
    await carrying


async def test_bytes_below_tls_wait_for_the_peer(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    theirs = ssl.create_default_context(cafile=str(certificate))
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(certificate, tmp_path / "key.pem")
    opened: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    async with asyncio.timeout(PATIENCE_S):
        server = await asyncio.start_server(lambda _, writer: opened.put_nowait(writer), "127.0.0.1", ssl=ours)
        port = server.sockets[0].getsockname()[1]
        _, client = await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="localhost")
        served = await opened.get()  # kept, because the end of a writer closes its connection from Python 3.13 on
        transport = served.transport
        assert unread_bytes(transport) == 0
        transport.write(bytes(32_000_000))
        assert unread_bytes(transport) > 16_000_000
        transport.abort()
        client.transport.abort()
        transport.close()
        transport.close()
        assert unread_bytes(transport) == unread_bytes(None) == 0
        server.close()


@virtually
async def test_write_in_progress_gets_half_a_second_when_its_sender_ends() -> None:
    assert await until_ended(TaskSender, ends_s=10.0) == 10.5


# The heartbeats: one timer, which calls every target at least once in its period.


class Heart:
    def __init__(self) -> None:
        self.beats = 0

    def send_heartbeat(self) -> None:
        self.beats += 1


async def test_every_target_is_called_once_per_period() -> None:
    heartbeats = Heartbeats()
    quick, slow = [Heart() for _ in range(7)], [Heart() for _ in range(40)]
    for heart in quick:
        heartbeats.add(heart, 2)
    for heart in slow:
        heartbeats.add(heart, 15)
    for _ in range(30):
        heartbeats.tick()
    assert ({heart.beats for heart in quick}, {heart.beats for heart in slow}) == ({15}, {2})


async def test_until_empty_returns_after_the_last_removal() -> None:
    heartbeats = Heartbeats()
    hearts = [Heart() for _ in range(3)]
    slots = [heartbeats.add(heart, 15) for heart in hearts]
    waiting = [asyncio.create_task(heartbeats.until_empty()) for _ in range(2)]
    for heart, slot in zip(hearts, slots, strict=True):
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        heartbeats.remove(heart, slot)
    slot = heartbeats.add(hearts[0], 15)  # before the tasks run
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    heartbeats.remove(hearts[0], slot)
    async with asyncio.timeout(60):
        await asyncio.gather(*waiting)
        await heartbeats.until_empty()


async def test_failing_heartbeat_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Heart):
        def send_heartbeat(self) -> None:
            raise ZeroDivisionError

    heartbeats = Heartbeats()
    hearts = [Broken(), Heart(), Broken()]
    for heart in hearts:
        heartbeats.add(heart, 1)
    with caplog.at_level(logging.ERROR):
        heartbeats.tick()
    assert hearts[1].beats == 1
    assert "a heartbeat failed" in caplog.text


@virtually
async def test_stream_whose_peer_reads_nothing_is_left_after_five_minutes() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if not message.get("body", b"retry").startswith(b"retry"):
            await asyncio.Event().wait()

    begun_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(1_000):
        await new_hub()(scope_of("/v1/channels/c/events", type="http", method="GET"), receive, send)
    assert 300 <= asyncio.get_running_loop().time() - begun_s <= 315


async def test_event_that_comes_before_the_head_of_a_stream_is_sent_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, send_head = new_hub(), sse.send_head
    hub.drive_by_hand = True

    async def late(*about: Any) -> None:
        await hub.create("c", id="m1", text="x")
        await send_head(*about)

    monkeypatch.setattr(sse, "send_head", late)
    sent = await exchange(hub, "/v1/channels/c/events", query=b"flush_ms=0", leaves=True)
    assert [one["type"] for one in sent] == ["http.response.start", *["http.response.body"] * (len(sent) - 1)]
    assert b'"m1"' in sent[2]["body"]
    await hub.close()
