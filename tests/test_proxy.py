"""The proxy against real sockets: each switch has the effect of its name, and a stall loses no bytes."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.proxy import FaultProxy

PATIENCE_S = 60.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Upstream:
    """A server that keeps the bytes of its clients, and through which a test can send to each of them."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[Streams] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def arrived(self) -> Streams:
        async with asyncio.timeout(PATIENCE_S):
            return await self.arrivals.get()

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self.arrivals.put_nowait((reader, writer))

    def release(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Upstream, int]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.take, "127.0.0.1", 0)
    async with server:
        yield upstream, server.sockets[0].getsockname()[1]
        upstream.release()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, int]]:
    async with serving() as pair:
        yield pair


@pytest.fixture
async def proxy(upstream: tuple[Upstream, int]) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", upstream[1]) as running:
        yield running


class Client:
    """A connection through the proxy; closed with the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self, count: int, timeout_s: float = PATIENCE_S) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await self.reader.readexactly(count)

    async def ending(self) -> str:
        """Return how the connection ended: `reset` or `end`."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.reader.read()
        except ConnectionResetError:
            return "reset"
        return "end"

    async def gets_nothing(self, for_s: float = 0.1) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_s):
                await self.reader.read(1)
                return False
        return True


@pytest.fixture
async def clients(proxy: FaultProxy) -> AsyncIterator["Clients"]:
    made = Clients(proxy)
    yield made
    for client in made.clients:
        client.writer.transport.abort()


class Clients:
    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection(self._proxy.host, self._proxy.port))
        self.clients.append(client)
        return client


async def until(predicate: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not predicate():  # noqa: ASYNC110 - the proxy counts without a signal
            await asyncio.sleep(0.002)


async def at_rest(look: Callable[[], int], timeout_s: float = PATIENCE_S) -> int:
    """Return the value of `look` once it has left zero and no longer changes."""
    async with asyncio.timeout(timeout_s):
        before, now = 0, look()
        while now == 0 or now != before:
            await asyncio.sleep(0.05)  # longer than TCP delays an acknowledgement
            before, now = now, look()
    return now


async def test_bytes_pass_unchanged_both_ways_and_are_counted(upstream, proxy, clients) -> None:
    client = await clients.connect()
    client.writer.write(b"question")
    reader, writer = await upstream[0].arrived()
    assert await reader.readexactly(8) == b"question"
    writer.write(b"a longer answer")
    assert await client.read(15) == b"a longer answer"
    assert (proxy.bytes_up, proxy.bytes_down, proxy.connections) == (8, 15, 1)


async def test_cut_resets_all_connections_on_both_sides(upstream, proxy, clients) -> None:
    first, second = await clients.connect(), await clients.connect()
    server_reader, _ = await upstream[0].arrived()
    await upstream[0].arrived()
    await proxy.cut()
    assert [await first.ending(), await second.ending()] == ["reset", "reset"]
    with pytest.raises(ConnectionResetError):
        await server_reader.read()
    assert proxy.open_connections == 0


async def test_close_ends_connections_without_a_reset(upstream, proxy, clients) -> None:
    client = await clients.connect()
    reader, writer = await upstream[0].arrived()
    writer.write(b"half a fra")
    assert await client.read(10) == b"half a fra"
    await proxy.close()
    assert await client.ending() == "end"
    assert await reader.read() == b""


async def test_cut_after_counts_the_bytes_of_one_direction_exactly(upstream, proxy, clients) -> None:
    client = await clients.connect()
    _, writer = await upstream[0].arrived()
    writer.write(b"seen")
    assert await client.read(4) == b"seen"
    proxy.cut_after(7)
    writer.write(b"0123456789")
    assert await client.read(7) == b"0123456"
    assert await client.ending() == "reset"
    assert proxy.bytes_down == 11


async def test_connections_are_closed_just_after_a_mark_also_one_that_comes_in_two_pieces(
    upstream, proxy, clients
) -> None:
    proxy.cut_after_marks(b"\n\n", 1, 2)
    passed = []
    for _ in range(2):
        client = await clients.connect()
        _, writer = await upstream[0].arrived()
        writer.write(b"one\n")
        assert await client.read(4) == b"one\n"
        writer.write(b"\ntwo\n\nthree\n\n")
        passed.append(await client.reader.read())
    assert (passed, proxy.cuts_left()) == ([b"\n", b"\ntwo\n\n"], 0)


async def test_stall_passes_no_bytes_and_loses_none(upstream, proxy, clients) -> None:
    client = await clients.connect()
    _, writer = await upstream[0].arrived()
    proxy.stall()
    writer.write(b"late")
    assert await client.gets_nothing()
    proxy.resume()
    assert await client.read(4) == b"late"


async def test_a_stall_pushes_back_on_the_sender(upstream, proxy, clients) -> None:
    await clients.connect()
    _, writer = await upstream[0].arrived()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    proxy.stall()
    writer.write(bytes(1 << 20))
    in_kernels = await at_rest(lambda: (1 << 20) - writer.transport.get_write_buffer_size())
    assert in_kernels < 160 * 1024


async def test_a_throttle_holds_its_rate_when_very_slow(upstream, proxy, clients) -> None:
    client = await clients.connect()
    _, writer = await upstream[0].arrived()
    proxy.throttle(10)
    started_s = time.monotonic()
    writer.write(b"slow" + bytes(100))
    assert await client.read(4) == b"slow"
    assert time.monotonic() - started_s > 0.3


async def test_refused_connections_are_refused_and_open_ones_stay(upstream, proxy, clients) -> None:
    client = await clients.connect()
    _, writer = await upstream[0].arrived()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await clients.connect()
    writer.write(b"still here")
    assert await client.read(10) == b"still here"


async def test_black_hole_on_the_way_up_passes_only_bytes_of_the_server(upstream, proxy, clients) -> None:
    client = await clients.connect()
    reader, writer = await upstream[0].arrived()
    proxy.black_hole("up")
    client.writer.write(b"later")
    writer.write(b"down")
    assert await client.read(4) == b"down"
    new = await clients.connect()
    new.writer.write(b"lost")
    assert await new.gets_nothing()
    assert upstream[0].arrivals.empty()
    assert proxy.bytes_up == 0
    proxy.resume("down")  # the other way
    assert await new.gets_nothing(0.02)
    proxy.resume("up")
    assert await new.ending() == "reset"
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(5) == b"later"


async def test_black_hole_on_the_way_down_passes_only_bytes_of_the_clients(upstream, proxy, clients) -> None:
    client = await clients.connect()
    reader, writer = await upstream[0].arrived()
    proxy.black_hole("down")
    writer.write(b"later")
    client.writer.write(b"up")
    new = await clients.connect()
    new.writer.write(b"question")
    its_reader, its_writer = await upstream[0].arrived()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(2) == b"up"
        assert await its_reader.readexactly(8) == b"question"
    its_writer.write(bytes(1 << 20))
    async with asyncio.timeout(PATIENCE_S):
        await its_writer.drain()
    its_writer.close()
    assert await new.gets_nothing()
    assert await client.gets_nothing(0.02)
    proxy.resume()
    assert await new.ending() == "reset"
    assert await client.read(5) == b"later"
