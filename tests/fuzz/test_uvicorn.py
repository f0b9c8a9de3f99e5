"""Behaviour of uvicorn beyond ASGI, and its cost for Tenuto."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from tests.transports.conftest import PATIENCE_S, new_hub

SCOPE: dict[str, Any] = {
    "type": "websocket",
    "path": "/v1/ws",
    "raw_path": b"/v1/ws",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 5),
    "subprotocols": [],
    "extensions": {},
}


@pytest.mark.parametrize("by_hand", [False, True], ids=["task", "hand"])
async def test_socket_closed_by_uvicorn_ends_without_an_error(by_hand: bool) -> None:
    hub = new_hub()
    hub.drive_by_hand = by_hand
    frames = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": '{"type":"detach","ref":1}'}]

    async def receive() -> MutableMapping[str, Any]:
        if not frames:
            await asyncio.Event().wait()
        return frames.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] != "websocket.accept":
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}', after sending 'websocket.close'.")

    async with asyncio.timeout(PATIENCE_S):
        await hub(SCOPE, receive, send)
    await hub.close()
