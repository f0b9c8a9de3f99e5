"""WebSocket: carries frames between an ASGI connection and its session.

You are in `transports`. What frames mean is `session`'s; here are only the handshake, the sink, and the end. As few
tasks as possible: the ASGI call receives, and writing is driven by whoever has something to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from starlette.types import Message, Receive, Send

from holdfast.core.errors import Draining, InvalidRequest
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity, Scope
from holdfast.transports.door import identify
from holdfast.transports.session import PING_S, Session
from holdfast.transports.sink import LAST_WORDS_S, HandSink, Sink, TaskSink
from holdfast.transports.wheel import Wheel

SUBPROTOCOL = "holdfast.v1"


class Sockets:
    """All sockets of a hub: lets them in, and sends them away when the hub leaves."""

    def __init__(self, hub: HubCore, wheel: Wheel) -> None:
        self._hub = hub
        self._wheel = wheel
        self._open: set[Socket] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def admit(self, scope: Scope) -> Identity:
        """Who asks for a socket. Raises Draining, Unauthenticated, Forbidden, InvalidRequest, …"""
        await self._hub.start()
        if self._hub.is_draining:
            raise Draining("the server is leaving; another one, or it when restarted, will serve")
        offered = scope.get("subprotocols", ())
        if offered and SUBPROTOCOL not in offered:
            raise InvalidRequest(f"the subprotocol is {SUBPROTOCOL}")
        return await identify(self._hub, scope)

    async def serve(self, identity: Identity, scope: Scope, receive: Receive, send: Send) -> None:
        """Accept the socket and carry it to its end."""
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if scope.get("subprotocols") else None})
        socket = Socket(self._hub, identity, send)
        self._open.add(socket)
        slot = self._wheel.add(socket, int(PING_S))
        try:
            if self._hub.is_draining:  # it began while we accepted
                socket.session.drain()
            await socket.sink.carry(receive)
        finally:
            self._open.discard(socket)
            await socket.close()
            self._wheel.remove(socket, slot)

    def drain(self) -> None:
        """Send all away: the hub leaves. (A socket without a channel has no feed that would tell it.)"""
        for socket in tuple(self._open):
            socket.session.drain()


class Socket:
    """One connection: a session and the sink its frames go to."""

    __slots__ = ("_is_closing", "_is_due", "_loop", "_room", "_tasks", "session", "sink")

    def __init__(self, hub: HubCore, identity: Identity, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] | None = None
        self._room: asyncio.Future[None] | None = None
        self._is_due = False
        self._is_closing = False
        self.sink: Sink = HandSink(send, self) if hub.drive_by_hand else TaskSink(send, self)
        self.session = Session(hub, identity, now_s=self._loop.time(), wake=self._wake, start_task=self._start_task)

    # For the sink

    def received(self, message: Message) -> bool:
        """A frame came, or the peer has left."""
        if message["type"] != "websocket.receive":
            return False
        text = message.get("text")
        if text is None:
            self.session.receive_binary()
        else:
            self.session.receive(text, now_s=self._loop.time())
        return True

    async def until_room(self) -> None:
        """Wait until enough has been answered, and the answers have been taken."""
        while self.session.is_full and not self.sink.is_over:
            self._room = self._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None

    def freed(self) -> None:
        """The sink is free again."""
        self._pump()

    # For the wheel

    def beat(self) -> None:
        """Every few seconds: a ping may be due."""
        self._pump()

    # For the session

    def _wake(self) -> None:
        """There is something to send. Answers come in bursts, so they are sent together, after the burst."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._pump)

    def _start_task(self, job: Coroutine[Any, Any, None]) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = self._loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            if not self._tasks:
                self._tasks = None  # an idle socket has nothing that it does not need

    def _pump(self) -> None:
        """Write while there is something to write and the peer takes it."""
        self._is_due = False
        sink, session = self.sink, self.session
        now_s = self._loop.time()
        while not sink.is_busy and not sink.is_over:
            frame = session.frame_to_send(now_s=now_s)
            if frame is not None:
                sink.write({"type": "websocket.send", "text": frame})
            elif session.closing is not None:
                code, reason = session.closing
                sink.end({"type": "websocket.close", "code": code, "reason": reason})
            else:
                break
        if session.closing is not None and not sink.is_over and not self._is_closing:
            self._is_closing = True  # a peer that does not read is not waited for
            self._loop.call_later(LAST_WORDS_S, partial(sink.end, patience_s=0))
        if self._room is not None and not self._room.done() and (not session.is_full or sink.is_over):
            self._room.set_result(None)

    async def close(self) -> None:
        """The connection is over: leave the channels, and wait for what still runs."""
        self.session.close()
        tasks = tuple(self._tasks or ())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
