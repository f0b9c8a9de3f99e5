"""A connection in memory between a client and a real hub, which can be cut between any two frames.

Layer: tests.

No bytes, no ports, no processes: so a law can be tried hundreds of times. `proof.chaos` has agents of the client on
real sockets, and kills their server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tenuto import Hub, allow_everyone
from tenuto.client import ChannelView, Client, Timing
from tenuto.client.connection import Closed, Refusal
from tests.transports.asgi import scope_of

# Short pauses, and limits that no busy machine reaches: a test of a limit gives its own, in virtual time.
QUICK = Timing(
    open_s=60.0,
    silence_s=60.0,
    response_s=60.0,
    request_s=60.0,
    backoff_s=0.001,
    backoff_cap_s=0.004,
    retry_s=0.001,
    leave_s=60.0,
)
PATIENCE_S = 60.0


def memory_hub(**options: Any) -> Hub:
    return Hub("memory://", authenticate=allow_everyone, hooks_signals=False, **options)


class Wire:
    """An ASGI app that clients dial. Each connection ends after a given number of frames."""

    def __init__(self, app: Any, lives: Iterable[int] = ()) -> None:
        self.app = app
        self.dials = 0
        self.is_away = False  # True: no connection can be opened
        self.sent: list[dict[str, Any]] = []  # the frames of clients that have arrived
        # returns the code of the error with which a frame is refused; None: the frame is passed on
        self.refuse: Callable[[dict[str, Any]], str | None] = lambda frame: None
        self._lives: Iterator[int] = iter(lives)
        self._open: set[Line] = set()

    async def __call__(self, url: str, headers: dict[str, str]) -> Line:
        self.dials += 1
        if self.is_away:
            raise OSError("no network")
        line = Line(self, next(self._lives, None))
        self._open.add(line)
        await line.open(url, headers)
        return line

    def cut(self) -> None:
        """Cut all connections, with the frames in flight."""
        for line in tuple(self._open):
            line.cut()

    async def end(self) -> None:
        """Cut all connections, and wait until the app has ended them."""
        self.cut()
        for line in tuple(self._open):
            await line.ended()


class Line:
    """One connection. `life` counts its frames, in both directions, down to the cut."""

    def __init__(self, wire: Wire, life: int | None) -> None:
        self._wire = wire
        self._life = life
        self._up: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._down: asyncio.Queue[str | Closed] = asyncio.Queue()
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._is_cut = False
        self._refusal: dict[str, Any] = {}

    async def open(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        encoded = [(b"host", b"localhost"), *((k.lower().encode(), v.encode()) for k, v in headers.items())]
        scope = scope_of(parts.path, headers=encoded, query=parts.query.encode())
        await self._up.put({"type": "websocket.connect"})
        self._task = asyncio.ensure_future(self._wire.app(scope, self._up.get, self._send))
        self._task.add_done_callback(self._over)
        await self._accepted

    async def send(self, text: str) -> None:
        if self._is_cut:
            raise Closed
        frame = json.loads(text)
        code = self._wire.refuse(frame)
        if code is not None:
            self._deliver(json.dumps({"type": "error", "ref": frame["ref"], "code": code, "status": 503}))
        elif self._counted():
            self._wire.sent.append(frame)
            await self._up.put({"type": "websocket.receive", "text": text})

    async def receive(self) -> str:
        frame = await self._down.get()
        if isinstance(frame, Closed):
            raise frame
        return frame

    async def close(self) -> None:
        self.cut()

    def cut(self) -> None:
        if not self._is_cut:
            self._is_cut = True
            self._up.put_nowait({"type": "websocket.disconnect", "code": 1006})
            self._down.put_nowait(Closed())

    async def ended(self) -> None:
        assert self._task is not None
        await asyncio.wait([self._task])

    async def _send(self, message: Any) -> None:
        match message["type"]:
            case "websocket.accept":
                self._accepted.set_result(None)
            case "websocket.send":
                if self._counted():
                    self._deliver(message["text"])
            case "websocket.close":
                self._deliver(Closed(message["code"], message.get("reason", "")))
            case "websocket.http.response.start":
                self._refusal = message
            case "websocket.http.response.body":
                problem = json.loads(message["body"])
                self._accepted.set_exception(Refusal(self._refusal["status"], problem, 0.0))

    def _deliver(self, frame: str | Closed) -> None:
        if not self._is_cut:
            self._down.put_nowait(frame)

    def _counted(self) -> bool:
        """Return whether this frame arrives, and cut the connection at the end of its life."""
        if self._is_cut:
            return False
        if self._life is None:
            return True
        self._life -= 1
        if self._life > 0:
            return True
        self.cut()
        return False

    def _over(self, task: asyncio.Task[None]) -> None:
        self._wire._open.discard(self)
        if not self._accepted.done():
            self._accepted.set_exception(OSError("no route to host"))
        with contextlib.suppress(asyncio.CancelledError):
            task.result()


def client_of(wire: Wire, **options: Any) -> Client:
    """Return a client that dials `wire`, with short delays and a seed."""
    http = httpx2.ASGITransport(app=wire.app, client=("127.0.0.1", 6))
    return Client(
        "http://localhost", **{"dial": wire, "http_transport": http, "timing": QUICK, "random": Random(5), **options}
    )


async def until(view: ChannelView, is_true: Callable[[], bool]) -> None:
    """Follow `view` until `is_true`."""
    async with asyncio.timeout(60):
        async for _ in view:
            if is_true():
                return


async def becomes(is_true: Callable[[], bool]) -> None:
    """Wait for a condition without an event, such as the arrival of a frame."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110 - no event is set for this condition
            await asyncio.sleep(0.002)
