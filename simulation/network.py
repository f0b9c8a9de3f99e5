"""A network: connections that delay, stall, swallow and break, and an ASGI server at one end of them.

Layer: simulation.

What is sent on one connection arrives in order; a break loses the rest of it, in both
directions, and a hole swallows everything and tells nobody. So a request may be carried out and its answer lost. The
server's end speaks ASGI to the real app, with backpressure: `send` waits while too much is in flight. Everything that
arrives carries the stamp of the truth at the moment it was sent, so that it can be checked against what was stored
then, not what is stored by now.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar

from holdfast.app import Hub
from simulation.clock import NOWHERE, Process, VirtualLoop
from simulation.faults import FaultModel
from simulation.trace import Trace, Violation
from simulation.truth import Truth

T = TypeVar("T")

DEAD_S = 60.0  # after which somebody at the end of a hole gives up


class Lost(Exception):
    """The connection is gone, or was never there; what was asked may have been done all the same."""


class Head(NamedTuple):
    """The beginning of an answer; `stamp` as of `Data`, since there are answers without any."""

    status: int
    stamp: int


class Data(NamedTuple):
    """Bytes of an answer, or a frame of a socket; `stamp` is that of the truth when it was sent."""

    data: bytes
    stamp: int


class End(NamedTuple):
    """The orderly end of an answer."""


class Pipe(Generic[T]):
    """One direction of a connection."""

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, draw: Random) -> None:
        self.is_over = False  # nothing arrives any more
        self.is_hole = False
        self._loop = loop
        self._fault_model = fault_model
        self._draw = draw
        self._last_s = 0.0
        self._in_flight = 0
        self._arrived: deque[tuple[T, int]] = deque()
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        """Must the sender wait?"""
        return self._in_flight > self._fault_model.room_bytes and not self.is_over

    def put(self, item: T, size: int) -> None:
        """Send `item` on its way."""
        if self.is_over or self.is_hole:
            return
        self._in_flight += size
        self._last_s = max(self._last_s, self._loop.time() + self._draw.uniform(*self._fault_model.latency_s))
        self._loop.call_at(self._last_s, self._arrive, item, size, context=NOWHERE)

    def end(self) -> None:
        """After what was sent nothing more will come."""
        self._last_s = max(self._last_s, self._loop.time() + self._draw.uniform(*self._fault_model.latency_s))
        self._loop.call_at(self._last_s, self.cut, context=NOWHERE)

    def cut(self) -> None:
        """What has not arrived by now never will."""
        if not self.is_over:
            self.is_over = True
            _tell(self._news)
            _tell(self._room)

    async def take(self) -> T | None:
        """The next thing that arrived; None when nothing more will."""
        while not self._arrived:
            if self.is_over:
                return None
            self._news = self._loop.create_future()
            await self._news
        item, size = self._arrived.popleft()
        self._in_flight -= size
        if not self.is_full:
            _tell(self._room)
        return item

    async def until_room(self) -> None:
        """Wait until more may be sent."""
        while self.is_full:
            if self._room is None or self._room.done():
                self._room = self._loop.create_future()
            await self._room

    def _arrive(self, item: T, size: int) -> None:
        if not self.is_over:
            self._arrived.append((item, size))
            _tell(self._news)


def _tell(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Connection:
    """Both directions, and what may happen to them."""

    def __init__(self, net: Network, process: Process, draw: Random) -> None:
        self.process = process
        self.ended_s: float | None = None  # when the server was done with it
        self.sent_s = 0.0  # when its client asked for something last
        self.up: Pipe[str] = Pipe(net.loop, net.fault_model, draw)
        self.down: Pipe[Head | Data | End] = Pipe(net.loop, net.fault_model, draw)
        self._net = net
        self._draw = draw
        self._is_open = True
        if net.fault_model.cut_rate:
            net.loop.call_later(draw.expovariate(net.fault_model.cut_rate), self._fault_strikes, context=NOWHERE)

    def leave(self) -> None:
        """The client goes; the server hears of it later."""
        self.down.cut()
        if self.up.is_hole:
            return
        self.up.end()
        self._forget()

    def break_off(self) -> None:
        """The connection breaks: neither side gets what is under way."""
        self.up.cut()
        self.down.cut()
        self._forget()

    def process_died(self) -> None:
        """The other machine closes what its process had open; what it had sent may still arrive."""
        self.up.cut()
        if not self.down.is_hole:
            if self._draw.random() < 0.5:
                self.down.cut()
            else:
                self.down.end()
            self._forget()

    def swallow(self) -> None:
        """From now on everything vanishes."""
        self.up.is_hole = self.down.is_hole = True
        self._net.loop.call_later(DEAD_S, self.break_off, context=NOWHERE)

    def _fault_strikes(self) -> None:
        fault_model = self._net.fault_model
        if self._is_open and fault_model.cut_rate:
            if self._draw.random() < fault_model.hole_chance:
                self.swallow()
            else:
                self.break_off()

    def _forget(self) -> None:
        self._is_open = False
        self._net.open.pop(self, None)


class Network:
    """All connections."""

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, truth: Truth, trace: Trace) -> None:
        self.loop = loop
        self.fault_model = fault_model
        self.truth = truth
        self.trace = trace
        self.open: dict[Connection, None] = {}

    def connect(
        self, process: Process, hub: Hub, scope: MutableMapping[str, Any], body: str, draw: Random
    ) -> Connection:
        """A connection to `hub`, and the request that it carries."""
        connection = Connection(self, process, draw)
        self.open[connection] = None
        exchange = Exchange(connection, self, draw, body)
        self.loop.call_later(
            draw.uniform(*self.fault_model.latency_s), self._begin, connection, exchange, hub, scope, context=NOWHERE
        )
        return connection

    def process_died(self, process: Process) -> None:
        """Close what `process` had open."""
        for connection in [one for one in self.open if one.process is process]:
            connection.process_died()

    def break_all(self, *, holes_only: bool = False) -> None:
        """Break every connection; or only those that swallow everything."""
        for connection in list(self.open):
            if connection.up.is_hole or not holes_only:
                connection.break_off()

    def _begin(self, connection: Connection, exchange: Exchange, hub: Hub, scope: MutableMapping[str, Any]) -> None:
        process = connection.process
        if not process.is_alive:
            connection.break_off()
        elif not (connection.up.is_over or connection.up.is_hole):
            process.start(self.loop, exchange.run(hub, scope))


class Exchange:
    """The server's side of one connection: what an ASGI server does."""

    def __init__(self, connection: Connection, net: Network, draw: Random, body: str) -> None:
        self._connection = connection
        self._loop = net.loop
        self._truth = net.truth
        self._trace = net.trace
        self._fault_model = net.fault_model
        self._draw = draw
        self._body = body
        self._has_begun = False
        self._is_socket = False

    async def run(self, hub: Hub, scope: MutableMapping[str, Any]) -> None:
        """Carry one request, or one socket, to its end. What the app raises breaks the connection, as servers do."""
        self._is_socket = scope["type"] == "websocket"
        try:
            await hub(scope, self.receive, self.send)
        except OSError:
            pass  # how a server says that the peer has left; apps may let it through
        except Exception as error:
            self._trace.violate(Violation(f"the app raised {error!r} at its server"))
        finally:
            self._connection.ended_s = self._loop.time()
            self._connection.down.end()
            self._connection.up.cut()

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI's `receive`."""
        if not self._has_begun:
            self._has_begun = True
            if self._is_socket:
                return {"type": "websocket.connect"}
            return {"type": "http.request", "body": self._body.encode(), "more_body": False}
        text = await self._connection.up.take()
        if text is not None:
            return {"type": "websocket.receive", "text": text}
        return {"type": "websocket.disconnect", "code": 1006} if self._is_socket else {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI's `send`: returns when there is room for more."""
        down = self._connection.down
        if down.is_over and self._is_socket:
            raise OSError("the peer has left")
        match message["type"]:
            case "http.response.start":
                down.put(Head(message["status"], self._truth.stamp), 20)
            case "http.response.body":
                for piece in self._pieces(message.get("body", b"")):
                    down.put(Data(piece, self._truth.stamp), len(piece))
                if not message.get("more_body", False):
                    down.put(End(), 1)
            case "websocket.accept":
                down.put(Head(101, self._truth.stamp), 20)
            case "websocket.send":
                text = message["text"].encode()
                down.put(Data(text, self._truth.stamp), len(text))
            case "websocket.close":
                down.put(End(), 1)
                down.end()
        if down.is_full:
            await down.until_room()

    def _pieces(self, body: bytes) -> list[bytes]:
        """A network knows no events: bytes come in pieces of any size."""
        if len(body) < 2 or self._draw.random() >= self._fault_model.split_chance:
            return [body] if body else []
        cut = self._draw.randrange(1, len(body))
        return [body[:cut], body[cut:]]


class Response(NamedTuple):
    """What a request got."""

    status: int
    body: bytes
    stamp: int


class HttpClient:
    """Somebody who opens connections to one process after another."""

    def __init__(self, net: Network, draw: Random) -> None:
        self._net = net
        self._draw = draw

    async def request(
        self, process: Process, hub: Hub, method: str, path: str, body: str = "", *, query: str = "", patience_s: float
    ) -> Response:
        """Ask and wait for the whole answer. Raises Lost."""
        stream = await self.stream(process, hub, method, path, body, query=query, patience_s=patience_s)
        pieces: list[bytes] = []
        stamp = stream.stamp
        try:
            async with asyncio.timeout(patience_s):
                while not stream.has_ended:
                    piece = await stream.take()
                    pieces.append(piece.data)
                    stamp = max(stamp, piece.stamp)
        except TimeoutError:
            raise Lost("no answer") from None
        finally:
            stream.leave()
        return Response(stream.status, b"".join(pieces), stamp)

    async def stream(
        self,
        process: Process,
        hub: Hub,
        method: str,
        path: str,
        body: str = "",
        *,
        query: str = "",
        headers: list[tuple[bytes, bytes]] | None = None,
        patience_s: float,
    ) -> Stream:
        """Ask and wait for the head of an answer. Raises Lost."""
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *(headers or [])],
            "client": ("127.0.0.1", 1),
        }
        return await self._open(process, hub, scope, body, patience_s)

    async def socket(self, process: Process, hub: Hub, *, client: str = "", patience_s: float) -> Stream:
        """Open a WebSocket, by the name of `client`. Raises Lost."""
        scope = {
            "type": "websocket",
            "path": "/v1/ws",
            "raw_path": b"/v1/ws",
            "root_path": "",
            "query_string": f"client={client}".encode() if client else b"",
            "headers": [(b"host", b"localhost")],
            "subprotocols": ["holdfast.v1"],
            "client": ("127.0.0.1", 1),
        }
        return await self._open(process, hub, scope, "", patience_s)

    async def _open(
        self, process: Process, hub: Hub, scope: MutableMapping[str, Any], body: str, patience_s: float
    ) -> Stream:
        connection = self._net.connect(process, hub, scope, body, Random(self._draw.getrandbits(32)))
        try:
            async with asyncio.timeout(patience_s):
                head = await connection.down.take()
        except (TimeoutError, asyncio.CancelledError) as error:
            connection.leave()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise Lost("nobody answers") from None
        if not isinstance(head, Head):
            connection.leave()
            raise Lost("refused")
        return Stream(connection, head)


class Stream:
    """The client's side of an answer that goes on, or of a socket."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self.status, self.stamp = head
        self.has_ended = False  # in good order: nothing more is to come
        self.connection = connection

    async def take(self) -> Data:
        """What comes next; empty at the end. Raises Lost when the connection breaks before it."""
        item = await self.connection.down.take()
        if isinstance(item, Data):
            return item
        if isinstance(item, End):
            self.has_ended = True
            return Data(b"", 0)
        raise Lost("the connection broke")

    def send(self, text: str) -> None:
        """Send a frame."""
        self.connection.up.put(text, len(text))

    def leave(self) -> None:
        """Close the connection."""
        self.connection.leave()


async def within(seconds: float, wait: Callable[[], Awaitable[T]]) -> T:
    """What `wait()` gives within `seconds`. Raises Lost."""
    try:
        async with asyncio.timeout(seconds):
            return await wait()
    except TimeoutError:
        raise Lost("nothing came") from None
