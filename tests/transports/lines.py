"""Connections without a network: a session of the server, and both ends of its socket.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any

from tenuto.app import Hub
from tenuto.hub.access.identity import CAPABILITIES, Identity
from tenuto.transports.access import Credentials
from tenuto.transports.session import PING_S, Session
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


class LiveLine(Line):
    """A connection that takes frames at once and responds to pings, by the time of the loop."""

    def __init__(self, hub: Hub, client: str = "ann", *, capabilities: frozenset[str] = CAPABILITIES) -> None:
        super().__init__(hub, Identity(client_id=client, capabilities=capabilities))
        self.frames: list[Json] = []
        self._came = asyncio.Event()
        self._refs = 0
        self._pumping = asyncio.ensure_future(self._pump())

    @property
    def now_s(self) -> float:  # type: ignore[override]
        return asyncio.get_running_loop().time()

    async def _pump(self) -> None:
        ping_at_s = self.now_s + PING_S
        while True:
            while (frame := self.take()) is not None:
                self.frames.append(frame)
                self._came.set()
                if frame["type"] == "ping":
                    self.session.receive(json.dumps({"type": "pong", "n": frame["n"]}), now_s=self.now_s)
            self.woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(ping_at_s):
                    await self.woken.wait()
            if self.now_s >= ping_at_s:
                ping_at_s += PING_S
                self.session.keep_alive(now_s=self.now_s)

    async def ask(self, type: str, **fields: Any) -> Json:
        """Send a frame and return the response."""
        self._refs += 1
        self.request(type, self._refs, **fields)
        return await self.until(lambda frame: frame.get("ref") == self._refs)

    async def until(self, is_it: Any, *, patience_s: float = 60.0) -> Json:
        """Return the first frame for which `is_it` holds."""
        async with asyncio.timeout(patience_s):
            while True:
                for frame in self.frames:
                    if is_it(frame):
                        return frame
                self._came.clear()
                await self._came.wait()

    async def turn(self) -> Json:
        """Return the next frame `turn`."""
        turn = await self.until(lambda frame: frame["type"] == "turn")
        self.frames.remove(turn)
        return turn

    async def cut(self) -> None:
        """Close the session, as after the end of its connection."""
        self._pumping.cancel()
        self.session.close()
        await asyncio.wait([self._pumping])
