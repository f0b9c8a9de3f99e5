"""Connections without a network: a session of the server with both ends of its socket, and sockets of an app.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

from tenuto.app import Hub
from tenuto.hub.access.identity import Identity
from tenuto.transports.access import Credentials
from tenuto.transports.session import Session
from tests.transports.asgi import scope_of
from tests.transports.conftest import PATIENCE_S

Json = dict[str, Any]


class Line:
    """Both ends of a connection without a network: a frame leaves the session only when the test takes it."""

    now_s = 0.0

    def __init__(self, hub: Hub, identity: Identity | None = None) -> None:
        self.woken = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.session = Session(
            hub,
            Credentials(hub, {"headers": []}, identity or Identity(client_id="ada")),
            last_received_s=self.now_s,
            wake=self.woken.set,
            released=self.woken.set,
            start_task=self._start,
        )

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def request(self, type: str, ref: object = 1, **fields: object) -> None:
        self.session.receive(json.dumps({"type": type, "ref": ref, **fields}), now_s=self.now_s)

    def take(self) -> dict[str, Any] | None:
        frame = self.session.frame_to_send()
        return None if frame is None else json.loads(frame)

    async def frame(self) -> dict[str, Any]:
        """Return the next frame, or None."""
        async with asyncio.timeout(PATIENCE_S):
            while (frame := self.take()) is None:
                self.woken.clear()
                await self.woken.wait()
        return frame

    async def rest(self) -> None:
        """Wait until no task runs any more."""
        while self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.sleep(0)


class LiveLine:
    """The client's end of a socket of an app, without a network. It takes frames at once and responds to pings."""

    def __init__(self, app: Any, name: str = "ann", **scope: Any) -> None:
        """Open a socket as the client `name`; `scope` replaces fields of its ASGI scope."""
        self.frames: list[Json] = []
        self.refused: Json | None = None  # the response of a socket that was not accepted
        self.code: int | None = None  # the close code of the socket
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self._came = asyncio.Event()
        self._refs = 0
        about = scope_of("/v1/ws", **{"query": f"client={name}".encode(), **scope})
        self.serving = asyncio.ensure_future(app(about, self._inbox.get, self.send))

    async def send(self, message: Any) -> None:
        """Take a message of the app."""
        if message["type"] == "websocket.send":
            frame = json.loads(message["text"])
            self.frames.append(frame)
            if frame["type"] == "ping":
                self.request("pong", n=frame["n"])
        elif message["type"] == "websocket.http.response.body":
            self.refused = json.loads(message["body"])
        elif message["type"] == "websocket.close":
            self.code = message["code"]
        self._came.set()

    def request(self, type: str, **fields: Any) -> None:
        """Send a frame."""
        self._inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({"type": type, **fields})})

    async def ask(self, type: str, **fields: Any) -> Json:
        """Send a frame and return the response."""
        self._refs += 1
        ref = f"r{self._refs}"
        self.request(type, ref=ref, **fields)
        return await self.frame(lambda frame: frame.get("ref") == ref)

    async def until(self, is_true: Any) -> Any:
        """Wait until `is_true()` is true. Return its value."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := is_true()):
                self._came.clear()
                await self._came.wait()
        return found

    async def frame(self, is_it: Any) -> Json:
        """Return the first matching frame."""
        found: Json = await self.until(lambda: next((frame for frame in self.frames if is_it(frame)), None))
        return found

    async def turn(self) -> Json:
        """Return the next frame `turn`."""
        turn = await self.frame(lambda frame: frame["type"] == "turn")
        self.frames.remove(turn)
        return turn

    async def cut(self, code: int = 1006) -> None:
        """End the connection with this code, as its server tells it, and wait until the app has ended it, too."""
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": code})
        async with asyncio.timeout(PATIENCE_S):
            await self.serving
