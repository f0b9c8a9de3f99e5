"""A client's socket with requests and responses, for remote writers, agents and members.

Layer: simulation.

A task reads the socket: it responds to pings, returns each response to its request, and passes all other frames to
`on_frame`. Requests without a response raise `ConnectionLost` at the end; the server may have carried them out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proof.simulation.network import Connection, ConnectionLost, Stream, within

if TYPE_CHECKING:
    from proof.simulation.actors import Actor
    from proof.simulation.node import Node

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


def _ignore(frame: Frame, stamp: int) -> None:
    pass


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
    async def open(cls, actor: Actor, node: Node, on_frame: OnFrame = _ignore, *, client: str = "") -> ClientSocket:
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
