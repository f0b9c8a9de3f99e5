"""A network: connections that delay, stall, swallow and break, with an ASGI server at one end.

Layer: simulation.

Bytes on one connection arrive in order. A break loses the bytes in flight, in both directions. A hole swallows all
later bytes, and neither side notices it. So a request can be carried out and its response lost. The server's end speaks
ASGI to the real app, with backpressure: `send` waits while too many bytes are in flight. All that arrives carries the
stamp of the log (`StoredLogs.stamp`) at which it was sent, so an oracle compares it with the log of that moment.

A task of a `ClientSocket` reads it, responds to pings, and returns each response to its request. Requests without a
response raise `ConnectionLost` at the end; the server may have carried them out.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from random import Random
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from proof.oracle import Violation
from proof.oracle.log import StoredLogs
from proof.simulation.clock import NOWHERE, Process, Trace, VirtualLoop
from proof.simulation.faults import FaultModel
from tenuto.app import Hub

if TYPE_CHECKING:
    from proof.simulation.actors import Actor
    from proof.simulation.world import Node


T = TypeVar("T")

DEAD_S = 60.0  # time after which either end of a hole closes the connection


class ConnectionLost(Exception):
    """The connection is gone, or was never opened; a request on it may have been carried out."""


class Head(NamedTuple):
    """The head of a response; `stamp` as in `Data`, because a response can have no data."""

    status: int
    stamp: int


class Data(NamedTuple):
    """Bytes of a response, or a frame of a socket; `stamp` is that of the log when it was sent."""

    data: bytes
    stamp: int


class End(NamedTuple):
    """The regular end of a response."""


class Pipe(Generic[T]):
    """One direction of a connection."""

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, draw: Random) -> None:
        self.is_over = False  # no item arrives any more
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
        """Return whether the sender must wait."""
        return self._in_flight > self._fault_model.room_bytes and not self.is_over

    def put(self, item: T, size: int) -> None:
        """Send `item`."""
        if self.is_over or self.is_hole:
            return
        self._in_flight += size
        self._last_s = max(self._last_s, self._loop.time() + self._draw.uniform(*self._fault_model.latency_s))
        self._loop.call_at(self._last_s, self._arrive, item, size, context=NOWHERE)

    def end(self) -> None:
        """Close this direction after the bytes in flight."""
        self._last_s = max(self._last_s, self._loop.time() + self._draw.uniform(*self._fault_model.latency_s))
        self._loop.call_at(self._last_s, self.cut, context=NOWHERE)

    def cut(self) -> None:
        """Drop the bytes in flight and close this direction."""
        if not self.is_over:
            self.is_over = True
            _wake(self._news)
            _wake(self._room)

    async def take(self) -> T | None:
        """Return the next item, or None after the end."""
        while not self._arrived:
            if self.is_over:
                return None
            self._news = self._loop.create_future()
            await self._news
        item, size = self._arrived.popleft()
        self._in_flight -= size
        if not self.is_full:
            _wake(self._room)
        return item

    async def until_room(self) -> None:
        """Wait until the sender may send again."""
        while self.is_full:
            if self._room is None or self._room.done():
                self._room = self._loop.create_future()
            await self._room

    def _arrive(self, item: T, size: int) -> None:
        if not self.is_over:
            self._arrived.append((item, size))
            _wake(self._news)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class Connection:
    """Both directions of a connection, and its faults."""

    def __init__(self, net: Network, process: Process, draw: Random) -> None:
        self.process = process
        self.ended_s: float | None = None  # when the server closed it
        self.sent_s = 0.0  # when its client last sent a request
        self.up: Pipe[str] = Pipe(net.loop, net.fault_model, draw)
        self.down: Pipe[Head | Data | End] = Pipe(net.loop, net.fault_model, draw)
        self._net = net
        self._draw = draw
        self._is_open = True
        if net.fault_model.cut_rate:
            net.loop.call_later(draw.expovariate(net.fault_model.cut_rate), self._fault_strikes, context=NOWHERE)

    def close(self) -> None:
        """Close the client's end; the server notices it later."""
        self.down.cut()
        if self.up.is_hole:
            return
        self.up.end()
        self._forget()

    def break_off(self) -> None:
        """Break the connection: both directions lose the bytes in flight."""
        self.up.cut()
        self.down.cut()
        self._forget()

    def process_died(self) -> None:
        """Close the server's end, as the operating system does for a dead process; sent bytes may still arrive."""
        self.up.cut()
        if not self.down.is_hole:
            if self._draw.random() < 0.5:
                self.down.cut()
            else:
                self.down.end()
            self._forget()

    def swallow(self) -> None:
        """Turn the connection into a hole."""
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

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, stored: StoredLogs, trace: Trace) -> None:
        self.loop = loop
        self.fault_model = fault_model
        self.stored = stored
        self.trace = trace
        self.open: dict[Connection, None] = {}

    def connect(
        self, process: Process, hub: Hub, scope: MutableMapping[str, Any], body: str, draw: Random
    ) -> Connection:
        """Open a connection to `hub` that carries one request."""
        connection = Connection(self, process, draw)
        self.open[connection] = None
        exchange = Exchange(connection, self, draw, body)
        self.loop.call_later(
            draw.uniform(*self.fault_model.latency_s), self._begin, connection, exchange, hub, scope, context=NOWHERE
        )
        return connection

    def process_died(self, process: Process) -> None:
        """Close the server's end of all connections of `process`."""
        for connection in [one for one in self.open if one.process is process]:
            connection.process_died()

    def break_all(self, *, holes_only: bool = False) -> None:
        """Break all connections, or only the holes."""
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
    """The server's end of one connection: the work of an ASGI server."""

    def __init__(self, connection: Connection, net: Network, draw: Random, body: str) -> None:
        self._connection = connection
        self._loop = net.loop
        self._stored = net.stored
        self._trace = net.trace
        self._fault_model = net.fault_model
        self._draw = draw
        self._body = body
        self._has_begun = False
        self._is_socket = False

    async def run(self, hub: Hub, scope: MutableMapping[str, Any]) -> None:
        """Carry one request, or one socket, to its end. An exception of the app breaks the connection."""
        self._is_socket = scope["type"] == "websocket"
        try:
            await hub(scope, self.receive, self.send)
        except OSError:
            pass  # a server reports a closed connection like this, and an app may pass the error on
        except Exception as error:
            self._trace.violate(Violation(f"the app raised {error!r}"))
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
        """ASGI's `send`; it waits while too many bytes are in flight."""
        down = self._connection.down
        if down.is_over and self._is_socket:
            raise OSError("the client has closed the connection")
        match message["type"]:
            case "http.response.start":
                down.put(Head(message["status"], self._stored.stamp), 20)
            case "http.response.body":
                for piece in self._pieces(message.get("body", b"")):
                    down.put(Data(piece, self._stored.stamp), len(piece))
                if not message.get("more_body", False):
                    down.put(End(), 1)
            case "websocket.accept":
                down.put(Head(101, self._stored.stamp), 20)
            case "websocket.send":
                text = message["text"].encode()
                down.put(Data(text, self._stored.stamp), len(text))
            case "websocket.close":
                down.put(End(), 1)
                down.end()
        if down.is_full:
            await down.until_room()

    def _pieces(self, body: bytes) -> list[bytes]:
        """Split the body at a random byte, or not: a network does not know events."""
        if len(body) < 2 or self._draw.random() >= self._fault_model.split_chance:
            return [body] if body else []
        cut = self._draw.randrange(1, len(body))
        return [body[:cut], body[cut:]]


class Response(NamedTuple):
    """The whole response to a request."""

    status: int
    body: bytes
    stamp: int


class HttpClient:
    """A client that opens connections to one process after another."""

    def __init__(self, net: Network, draw: Random) -> None:
        self._net = net
        self._draw = draw

    async def request(
        self, process: Process, hub: Hub, method: str, path: str, body: str = "", *, query: str = "", patience_s: float
    ) -> Response:
        """Send a request and wait for the whole response. Raises ConnectionLost."""
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
            raise ConnectionLost("no response") from None
        finally:
            stream.close()
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
        """Send a request and wait for the head of the response. Raises ConnectionLost."""
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
        """Open a WebSocket with the client id `client`. Raises ConnectionLost."""
        scope = {
            "type": "websocket",
            "path": "/v1/ws",
            "raw_path": b"/v1/ws",
            "root_path": "",
            "query_string": f"client={client}".encode() if client else b"",
            "headers": [(b"host", b"localhost")],
            "subprotocols": ["tenuto.v1"],
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
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise ConnectionLost("no response") from None
        if not isinstance(head, Head):
            connection.close()
            raise ConnectionLost("refused")
        return Stream(connection, head)


class Stream:
    """The client's end of a streamed response or a socket."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self.status, self.stamp = head
        self.has_ended = False  # the response has ended regularly
        self.connection = connection

    async def take(self) -> Data:
        """Return the next data; empty at the regular end. Raises ConnectionLost if the connection breaks first."""
        item = await self.connection.down.take()
        if isinstance(item, Data):
            return item
        if isinstance(item, End):
            self.has_ended = True
            return Data(b"", 0)
        raise ConnectionLost("the connection broke")

    def send(self, text: str) -> None:
        """Send a frame."""
        self.connection.up.put(text, len(text))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


async def within(seconds: float, wait: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `wait()`. Raises ConnectionLost after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await wait()
    except TimeoutError:
        raise ConnectionLost("no data") from None


RESPONSE_S = 12.0  # how long a client waits for a response
SILENCE_S = 12.0  # silence after which a socket with a ping every 5 s is gone

Frame = dict[str, Any]
OnFrame = Callable[[Frame, int], None]


def request_frame(method: str, path: str, body: object) -> Frame | None:
    """Return the frame that equals an HTTP request with this JSON object, or None if no frame does."""
    channel, *about = path.removeprefix("/v1/channels/").split("/")
    fields = body if isinstance(body, dict) else {}
    match method, about:
        case "POST", ["messages"]:
            return {"type": "create", "channel": channel, **fields}
        case "PATCH", ["messages", message_id]:
            return {"type": "update", "channel": channel, "id": message_id, **fields}
        case "DELETE", ["messages", message_id]:
            return {"type": "delete", "channel": channel, "id": message_id}
        case "POST", ["commands"]:
            return {"type": "command", "channel": channel, **fields}
        case "POST", ["commands", command_id, "reply"]:
            return {"type": "reply", "channel": channel, "id": command_id, **fields}
    return None


class ClientSocket:
    """One socket. `on_frame` receives all frames but responses, with the stamp of the log when it was sent."""

    def __init__(self, actor: Actor, stream: Stream, on_frame: OnFrame) -> None:
        self.connection: Connection = stream.connection
        self.is_lost = False
        self._stream = stream
        self._on_frame = on_frame
        self._loop = actor.world.loop
        self._waiting: dict[int, asyncio.Future[tuple[Frame, int]]] = {}
        self._count = 0
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._reading = actor.world.start(self._read())

    @classmethod
    async def open(
        cls, actor: Actor, node: Node, on_frame: OnFrame = lambda frame, stamp: None, *, client: str = ""
    ) -> ClientSocket:
        """Open a socket of `actor` to `node`, with the client id `client` if given. Raises ConnectionLost."""
        name = client or actor.name
        stream = await actor.http.socket(node.process, node.hub, client=name, patience_s=RESPONSE_S)
        return cls(actor, stream, on_frame)

    async def ask(self, frame: Frame) -> tuple[Frame, int]:
        """Send `frame`; return its response, `ok` or `error`, and its stamp. Raises ConnectionLost."""
        if self.is_lost:
            raise ConnectionLost("the connection is gone")
        self._count += 1
        response = self._waiting[self._count] = self._loop.create_future()
        self._stream.send(json.dumps({**frame, "ref": self._count}))
        self.connection.sent_s = self._loop.time()
        try:
            return await within(RESPONSE_S, lambda: response)
        except ConnectionLost:
            self.close()
            raise

    async def rest(self, seconds: float) -> None:
        """Wait for `seconds`. Raises ConnectionLost if the connection ends first."""
        await asyncio.wait([self._over], timeout=seconds)
        if self.is_lost:
            raise ConnectionLost("the connection is gone")

    def close(self) -> None:
        """Close the socket."""
        self._reading.cancel()
        self._end()

    async def _read(self) -> None:
        try:
            while True:
                data = await within(SILENCE_S, self._stream.take)
                if not data.data:
                    return
                self._receive(json.loads(data.data), data.stamp)
        except ConnectionLost:
            pass
        finally:
            self._end()

    def _receive(self, frame: Frame, stamp: int) -> None:
        match frame:
            case {"type": "ping", "n": n}:
                self._stream.send(json.dumps({"type": "pong", "n": n}))
            case {"type": "ok" | "error", "ref": int(ref)}:
                waiting = self._waiting.pop(ref, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result((frame, stamp))
            case {"type": "bye"}:
                raise ConnectionLost("the server sent bye")
            case _:
                self._on_frame(frame, stamp)

    def _end(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._stream.close()
        self._over.set_result(None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost("the connection broke"))
                waiting.exception()  # a future without a waiter would complain
