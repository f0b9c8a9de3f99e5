"""A TCP proxy that breaks connections as networks do: it cuts, stalls, drops and refuses them.

Layer: testing.

No module of the product imports it. The proxy does not parse HTTP or Tenuto's protocol: it moves bytes between two
sockets. Every switch works at any moment, on open connections and on later ones. The proxy holds at most one piece of
at most 16 KiB per connection and direction, and its sockets' own buffers are small. So a stall is backpressure for the
sender, not growth of a queue. Safe to change: sizes and everything private. Not safe: the meaning of a switch, since
tests throughout the suite use these switches.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Literal, Self

__all__ = ["Direction", "FaultProxy"]

Direction = Literal["up", "down", "both"]
"""`up` is from client to server, `down` from server to client."""

_PIECE_BYTES = 16 * 1024
_BUFFER_BYTES = 16 * 1024
# Segment size of an ordinary network. Loopback's segments of 64 KiB are larger than the small buffers, and a receive
# window below one segment makes TCP wait for timers of 200 ms.
_SEGMENT_BYTES = 1400
_CONNECT_TIMEOUT_S = 5.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """A proxy on a free loopback port in front of `upstream`, which may be changed at any time.

    Use it as an async context manager; its exit cuts open connections. If the server is down, the proxy cuts the
    client's connection, as the client would see without a proxy.
    """

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.host = "127.0.0.1"
        self.port = 0
        self._up = _Way()
        self._down = _Way()
        self._links: set[_Link] = set()
        self._placeholder: socket.socket | None = None
        self._listener: socket.socket | None = None

    async def __aenter__(self) -> Self:
        # This socket is bound as long as the proxy lives, but never listens. So the port stays reserved while
        # connections are refused, and the kernel refuses each with a reset.
        self._placeholder = _tcp_socket()
        self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._placeholder.bind((self.host, 0))
        self.port = self._placeholder.getsockname()[1]
        self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._placeholder is not None
        self.refuse()
        await self.cut()
        self._placeholder.close()

    # New connections

    def refuse(self) -> None:
        """Refuse new connections (`ECONNREFUSED`) until `accept()`; open ones are not affected."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._listener = None

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        if self._listener is not None:
            return
        self._listener = _tcp_socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self.host, self.port))
        self._listener.listen(1024)
        asyncio.get_running_loop().add_reader(self._listener, self._take, self._listener)

    # Open connections

    async def cut(self) -> None:
        """Reset (RST) all open connections, to both sides. They are closed when this returns."""
        links = list(self._links)
        for link in links:
            link.cut()
        await asyncio.gather(*(link.ended() for link in links))

    def cut_after(self, *counts: int) -> None:
        """Cut the connection that carries the n-th byte from the server from now on, just after that byte.

        With several counts, the next begins after the cut of the one before. Bytes are counted over all connections.
        Those before the cut have been passed to the kernel, but the reset of the cut may discard bytes that their
        reader has not read yet. A second call replaces the remaining counts; without counts it cancels them.
        """
        self.cut_after_marks(b"", *counts)

    def cut_after_marks(self, mark: bytes, *counts: int) -> None:
        """Close (FIN) the connection that carries the n-th `mark`, such as the end of an event, just after it.

        All bytes before the end reach their reader. Otherwise as `cut_after`.
        """
        assert all(count > 0 for count in counts), counts
        self._down.cuts, self._down.mark, self._down.end = deque(counts), mark, b""

    def cuts_left(self) -> int:
        """Return how many counts of the last call are left."""
        return len(self._down.cuts)

    # Passing bytes

    def stall(self, direction: Direction = "both") -> None:
        """Pass no bytes until `resume()`. Connections are still accepted, and the proxy still connects upstream."""
        for way in self._ways(direction):
            way.open.clear()

    def resume(self, direction: Direction = "both") -> None:
        """End a stall or a black hole without loss, but cut the connections that were made in a black hole."""
        for way in self._ways(direction):
            way.is_hole = False
            for link in way.swallowed:
                link.cut()
            way.open.set()

    def black_hole(self, direction: Direction = "both") -> None:
        """Simulate a vanished route in one direction or both, without a signal to the other side, until `resume()`.

        Open connections stay open and pass no bytes that way, not even their end. New ones are accepted. If the way to
        the server has vanished, it does not see them; if only the way back, it sees them and its bytes are dropped.
        """
        for way in self._ways(direction):
            way.is_hole = True
        self.stall(direction)

    # Helpers

    def _ways(self, direction: Direction) -> "list[_Way]":
        return {"up": [self._up], "down": [self._down], "both": [self._up, self._down]}[direction]

    def _take(self, listener: socket.socket) -> None:
        """Accept one connection. The loop calls this again while more are waiting."""
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        client.setblocking(False)
        link = _Link(client, self._up, self._down)
        self._links.add(link)
        for way in self._ways("both"):
            if way.is_hole:
                way.swallowed.add(link)
        link.start(self.upstream, self._forget)

    def _forget(self, link: "_Link") -> None:
        self._links.discard(link)
        for way in self._ways("both"):
            way.swallowed.discard(link)


class _Way:
    """One direction of all connections, with the state of its switches."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.is_hole = False
        self.swallowed: set[_Link] = set()  # connections made while it was a black hole
        self.cuts: deque[int] = deque()
        self.mark = b""  # what the cuts count; empty: bytes
        self.end = b""  # of the bytes that passed, which may begin a mark

    def limit(self, data: memoryview) -> int:
        """Return how many bytes of `data` may pass before the next cut, or up to a mark."""
        if not self.cuts:
            return len(data)
        if not self.mark:
            return min(len(data), self.cuts[0])
        at = (self.end + data).find(self.mark)
        return len(data) if at < 0 else at + len(self.mark) - len(self.end)

    def passed(self, data: memoryview) -> bool:
        """Count bytes that have passed. Return whether the connection that carried them must be cut."""
        if not self.cuts:
            return False
        end = self.end + data
        self.cuts[0] -= end.endswith(self.mark) if self.mark else len(data)
        self.end = end[max(0, len(end) + 1 - len(self.mark)) :] if self.mark else b""
        if self.cuts[0] > 0:
            return False
        self.cuts.popleft()
        self.end = b""
        return True


class _Cut(Exception):
    """Raised to end a link with a reset."""


class _Close(Exception):
    """Raised to end a link in the orderly way."""


class _Link:
    """One connection from a client, and the proxy's connection upstream for it."""

    def __init__(self, client: socket.socket, up: _Way, down: _Way) -> None:
        self._client = client
        self._server: socket.socket | None = None
        self._up = up
        self._down = down
        self._is_orderly = False
        self._task: asyncio.Task[None] | None = None

    def start(self, upstream: tuple[str, int], when_ended: "Callable[[_Link], None]") -> None:
        """Begin to carry bytes, or to drop those that enter a black hole. Call this before any other method."""
        self._task = asyncio.get_running_loop().create_task(self._run(upstream))
        # Not in a `finally` of the task, because a task that is cancelled before its first step does not run it.
        self._task.add_done_callback(lambda _: self._release())
        self._task.add_done_callback(lambda _: when_ended(self))

    def cut(self) -> None:
        assert self._task is not None
        self._task.cancel()

    async def ended(self) -> None:
        assert self._task is not None
        await asyncio.wait([self._task])

    async def _run(self, upstream: tuple[str, int]) -> None:
        try:
            if self in self._up.swallowed:
                await _swallow(self._client)
            else:
                await self._carry(upstream)
            self._is_orderly = True
        except* _Close:
            self._is_orderly = True
        except* (OSError, TimeoutError, _Cut):
            pass  # one side or the proxy has ended the connection: a reset informs both sides

    async def _carry(self, upstream: tuple[str, int]) -> None:
        self._server = _tcp_socket()
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(self._server, upstream)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(self._client, self._server, self._up, self._down))
            if self in self._down.swallowed:
                group.create_task(_swallow(self._server))
            else:
                group.create_task(_pump(self._server, self._client, self._down, self._up))

    def _release(self) -> None:
        for sock in (self._client, self._server):
            if sock is not None:
                _end(sock, is_orderly=self._is_orderly)


async def _pump(source: socket.socket, target: socket.socket, way: _Way, back: _Way) -> None:
    """Carry bytes from `source` to `target` until the end, then end that direction too. `back` is the other one."""
    while True:
        # Check the switch again after each wait, because it may have changed meanwhile.
        await readable(source)
        if not way.open.is_set():
            await way.open.wait()
            continue
        data = source.recv(_PIECE_BYTES)
        if not data:
            break
        await _send(target, data, way, back)
    target.shutdown(socket.SHUT_WR)


async def _send(target: socket.socket, data: bytes, way: _Way, back: _Way) -> None:
    rest = memoryview(data)
    while rest:
        if not way.open.is_set():
            await way.open.wait()
            continue
        try:
            sent = target.send(rest[: way.limit(rest)])
        except BlockingIOError:
            await _writable(target)
            continue
        except OSError:  # a reset by `target`, which goes the other way
            if back.is_hole:
                await back.open.wait()
            raise
        passed, rest = rest[:sent], rest[sent:]
        if way.passed(passed):
            raise _Close if way.mark else _Cut


async def _swallow(source: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while await loop.sock_recv(source, _PIECE_BYTES):
            pass


async def readable(sock: socket.socket) -> None:
    """Wait until the socket is readable, without reading."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def _end(sock: socket.socket, *, is_orderly: bool) -> None:
    if is_orderly:
        # Closing with unread bytes sends a reset; a FIN that was sent before still reaches the peer first.
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def _tcp_socket() -> socket.socket:
    """Return a non-blocking socket with small buffers; accepted connections inherit them."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
