"""Count the calls and modules of the package on three ways through a real server: uvicorn, SQLite, a WebSocket.

Layer: tests.

The ways are an append to a WebSocket, an attach with catch-up, and a turn with one token. Periodic work (heartbeats,
leases of nodes, housekeeping, the ten times a second that uvicorn's server wakes) is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tenuto import Hub, Turn
from tenuto.server import serving

PACKAGE = str(Path(serving.__file__).parents[1]) + os.sep
PERIODIC = ("Heartbeats.", "Connections.", "NodeLease.", "keep_house", "free_memory", "server.<locals>.Server.serve")
PATIENCE_S = 60.0


class Walk:
    """The calls of the package's functions while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.calls: list[tuple[str, str]] = []
        self.entries = 0  # number of entries that the channel has behind it

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call; for `sys.setprofile`."""
        if self.is_on and event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            name = frame.f_code.co_qualname
            if not frame.f_code.co_name.startswith("<") and not name.startswith(PERIODIC):
                self.calls.append((frame.f_code.co_filename.removeprefix(PACKAGE), name))

    def figures(self) -> tuple[int, int]:
        """Return the calls, and the modules in which they are."""
        return len(self.calls), len({path for path, _ in self.calls})


async def _until(viewer: ClientConnection, is_met: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Read frames until one meets the condition, and return it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            frame: dict[str, Any] = json.loads(await viewer.recv())
            if is_met(frame):
                return frame


async def _settle() -> None:
    """Let the loop finish what the last frame has left to do."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def _taken(walk: Walk) -> AsyncIterator[None]:
    """Note the calls of the block, with what its last frame leaves to do."""
    await _settle()
    walk.is_on = True
    yield
    await _settle()
    walk.is_on = False


def _attach(channel: str, **fields: object) -> str:
    return json.dumps({"type": "attach", "ref": 1, "channel": channel, "flush_ms": 0, **fields})


async def take(folder: Path) -> dict[str, Walk]:
    """Take each of the walks once, with a store in `folder`, and return them."""
    walks = {name: Walk() for name in ("append", "attach", "turn")}

    def profile(frame: FrameType, event: str, argument: object) -> None:
        for walk in walks.values():
            walk.profile(frame, event, argument)

    hub = Hub(f"sqlite:///{folder / 'walks.db'}", hooks_signals=False)

    @hub.agent("turn:*")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("hi ")

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/ws"
        await hub.start()
        server = serving.server(hub)
        served = await serving.start(server, listener)
        threading.setprofile(profile)
        sys.setprofile(profile)
        try:
            async with connect(url) as viewer, hub.message("chat:1") as message:
                await viewer.send(_attach("chat:1"))
                await _until(viewer, lambda frame: frame["type"] == "ok")
                for text in ("a", "b", "c"):
                    await message.append(text)
                    await _until(viewer, lambda frame, text=text: text in json.dumps(frame.get("events", frame)))
                async with _taken(walks["append"]):
                    await message.append("X")
                    await _until(viewer, lambda frame: "X" in json.dumps(frame))
                cursor = hub.channel("chat:1").state.cursor
                await message.append(" more")
            async with connect(url) as viewer, _taken(walks["attach"]):
                await viewer.send(_attach("chat:1", since=cursor))
                await _until(viewer, lambda frame: "more" in json.dumps(frame))
            async with connect(url) as viewer:
                await viewer.send(_attach("turn:1"))
                await _until(viewer, lambda frame: frame["type"] == "ok")
                async with _taken(walks["turn"]):
                    await viewer.send(json.dumps({"type": "create", "ref": 2, "channel": "turn:1", "text": "q"}))
                    await _until(viewer, lambda frame: "message.finish" in json.dumps(frame))
                walks["turn"].entries = hub.channel("turn:1").state.serial
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            server.should_exit = True
            await served
            await hub.close()
    return walks
