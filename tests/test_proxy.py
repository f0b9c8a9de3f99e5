"""The proxy against real sockets: each switch has the effect of its name, and a stall loses no bytes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.proxy import FaultProxy

PATIENCE_S = 60.0
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connecting() -> AsyncIterator[tuple[FaultProxy, Callable[[], asyncio.Future[Peer]], asyncio.Queue[Peer]]]:
    """Give a proxy, a function that connects to it, and the connections that arrive at the server."""
    arrivals: asyncio.Queue[Peer] = asyncio.Queue()
    peers: list[Peer] = []

    def take(*peer: Any) -> None:
        peers.append(peer)
        arrivals.put_nowait(peer)

    async def connect() -> Peer:
        peers.append(await asyncio.open_connection(proxy.host, proxy.port))
        return peers[-1]

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server, FaultProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield proxy, lambda: asyncio.ensure_future(connect()), arrivals
        finally:
            for _, writer in peers:
                writer.transport.abort()


async def at_rest(look: Callable[[], int], timeout_s: float = PATIENCE_S) -> int:
    """Return the value of `look` once it has left zero and no longer changes."""
    async with asyncio.timeout(timeout_s):
        before, now = 0, look()
        while now == 0 or now != before:
            await asyncio.sleep(0.05)  # longer than TCP delays an acknowledgement
            before, now = now, look()
    return now


async def is_silent(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
            return False
    return True


async def test_cut_after_resets_the_connection_just_after_a_byte() -> None:
    async with connecting() as (proxy, connect, arrivals):
        reader, _ = await connect()
        _, writer = await arrivals.get()
        proxy.cut_after(7)
        writer.write(b"0123456789")
        assert await reader.readexactly(7) == b"0123456"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert (proxy.bytes_down, proxy.open_connections) == (7, 0)


async def test_connections_are_closed_just_after_a_mark_also_one_that_comes_in_two_pieces() -> None:
    async with connecting() as (proxy, connect, arrivals):
        proxy.cut_after_marks(b"\n\n", 1, 2)
        passed = []
        for _ in range(2):
            reader, _ = await connect()
            _, writer = await arrivals.get()
            writer.write(b"one\n")
            assert await reader.readexactly(4) == b"one\n"
            writer.write(b"\ntwo\n\nthree\n\n")
            passed.append(await reader.read())
        assert (passed, proxy.cuts_left()) == ([b"\n", b"\ntwo\n\n"], 0)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_black_hole_passes_the_bytes_of_the_other_way_and_resume_loses_none(way: str) -> None:
    async with connecting() as (proxy, connect, arrivals):
        client, server = await connect(), await arrivals.get()
        near, far = (client, server) if way == "up" else (server, client)
        proxy.black_hole(way)  # type: ignore[arg-type]
        near[1].write(b"later")
        new, asking = await connect()
        asking.write(b"question")
        assert await is_silent(new)
        assert arrivals.empty() == (way == "up")
        far[1].write(b"heard")
        assert await near[0].readexactly(5) == b"heard"
        assert await is_silent(far[0])
        proxy.resume()
        assert await far[0].readexactly(5) == b"later"
        with contextlib.suppress(ConnectionResetError):
            assert await new.read() == b""  # it was made in the black hole
