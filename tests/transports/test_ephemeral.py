"""Ephemeral events do not wait for an answer: presence and signals beside text that never pauses.

Layer: tests.

Time is virtual. Each read of the channel finds more text, as when a writer elsewhere appends
faster than the flush window.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tenuto import Hub
from tenuto.core.events import Signal
from tenuto.core.requests import AppendText, Caller, CreateMessage
from tests.transports.asgi import HERE
from tests.virtual import virtual_clock, virtually

SOON_S = 0.2
EVERY_S = 0.01  # time between two appends; a window is four times as long
WRITER = Caller(id="ann")


async def written_without_a_pause(hub: Hub) -> None:
    await hub.ask("c", "m", CreateMessage(role="assistant", status="streaming", text="x"), WRITER)
    length = 1
    while True:
        await hub.ask("c", "m", AppendText(text="token ", at=length, part=0), WRITER)
        length += 6
        await asyncio.sleep(EVERY_S)


async def receive_by_sse(hub: Hub, received: asyncio.Queue[str]) -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        text = message.get("body", b"").decode()
        for line in text.splitlines():
            if line.startswith("data: ") and '"signal"' in line:
                received.put_nowait(line)

    path = "/v1/channels/c/events"
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": ""}
    await hub({**scope, "query_string": b"", "headers": HERE, "client": ("127.0.0.1", 5)}, receive, send)


async def receive_in_process(hub: Hub, received: asyncio.Queue[str]) -> None:
    async for event in hub.subscribe("c"):
        if isinstance(event, Signal):
            received.put_nowait(event.name)


@pytest.mark.parametrize("way", ["SSE by hand", "SSE by task", "in process"])
@virtually
async def test_signal_does_not_wait_for_a_long_answer(way: str) -> None:
    hub = Hub("memory://", hooks_signals=False, drain_s=0.0, clock=virtual_clock())
    hub.drive_by_hand = way == "SSE by hand"
    await hub.start()
    received: asyncio.Queue[str] = asyncio.Queue()
    receiving = receive_in_process if way == "in process" else receive_by_sse
    tasks = [asyncio.ensure_future(receiving(hub, received)), asyncio.ensure_future(written_without_a_pause(hub))]
    for number in range(10):
        await asyncio.sleep(1.0 + number / 100)  # at another moment of the window each time
        await hub.signal("c", f"n{number}")
        async with asyncio.timeout(SOON_S):
            assert f"n{number}" in await received.get()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await hub.close()
