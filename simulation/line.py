"""A client's socket with requests and answers: what writers elsewhere, agents and members hold on to.

Layer: simulation.

A reader answers pings, hands each answer to whoever asked, and everything else to `on_frame`.
Whoever waits for an answer when the connection is lost hears `Lost`; what was asked may have been done all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulation.network import Connection, Lost, Stream, within

if TYPE_CHECKING:
    from simulation.actors import Person
    from simulation.world import Node

ANSWER_S = 12.0  # how long an answer is waited for
SILENCE_S = 12.0  # of a socket that is pinged every 5 s

Frame = dict[str, Any]
OnFrame = Callable[[Frame, int], None]


def frame_of(method: str, path: str, body: object) -> Frame | None:
    """The frame that asks for the same as a request over HTTP with this JSON object; None: there is none."""
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


class Line:
    """One socket. `on_frame` gets what is no answer, with the stamp of the truth when it was sent."""

    def __init__(self, person: Person, stream: Stream, on_frame: OnFrame) -> None:
        self.connection: Connection = stream.connection
        self.is_lost = False
        self._stream = stream
        self._on_frame = on_frame
        self._loop = person.world.loop
        self._asked: dict[int, asyncio.Future[tuple[Frame, int]]] = {}
        self._count = 0
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._reading = person.world.start(self._read())

    @classmethod
    async def open(cls, person: Person, node: Node, on_frame: OnFrame = _ignore, *, client: str = "") -> Line:
        """A socket of `person`'s to `node`, by another name if there is a `client`. Raises Lost."""
        name = client or person.name
        stream = await person.http.socket(node.process, node.hub, client=name, patience_s=ANSWER_S)
        return cls(person, stream, on_frame)

    async def ask(self, frame: Frame) -> tuple[Frame, int]:
        """Send `frame`; its answer, `ok` or `error`, and its stamp. Raises Lost."""
        if self.is_lost:
            raise Lost("the connection is gone")
        self._count += 1
        answered = self._asked[self._count] = self._loop.create_future()
        self._stream.send(json.dumps({**frame, "ref": self._count}))
        self.connection.sent_s = self._loop.time()
        try:
            return await within(ANSWER_S, lambda: answered)
        except Lost:
            self.leave()
            raise

    async def rest(self, seconds: float) -> None:
        """Do nothing for so long. Raises Lost when the connection goes meanwhile."""
        await asyncio.wait([self._over], timeout=seconds)
        if self.is_lost:
            raise Lost("the connection is gone")

    def leave(self) -> None:
        """Close the socket, from now on."""
        self._reading.cancel()
        self._end()

    async def _read(self) -> None:
        try:
            while True:
                data = await within(SILENCE_S, self._stream.take)
                if not data.data:
                    return
                self._receive(json.loads(data.data), data.stamp)
        except Lost:
            pass
        finally:
            self._end()

    def _receive(self, frame: Frame, stamp: int) -> None:
        match frame:
            case {"type": "ping", "n": n}:
                self._stream.send(json.dumps({"type": "pong", "n": n}))
            case {"type": "ok" | "error", "ref": int(ref)}:
                asked = self._asked.pop(ref, None)
                if asked is not None and not asked.done():
                    asked.set_result((frame, stamp))
            case {"type": "bye"}:
                raise Lost("sent away")
            case _:
                self._on_frame(frame, stamp)

    def _end(self) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        self._stream.leave()
        self._over.set_result(None)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(Lost("the connection broke"))
                asked.exception()  # whoever waits hears it; nobody else need
