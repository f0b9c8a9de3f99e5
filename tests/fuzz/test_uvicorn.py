"""Behaviour of uvicorn beyond ASGI: it reports a disconnect to the last request of a connection only, for example."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from tests.transports.asgi import scope_of
from tests.transports.conftest import PATIENCE_S, new_hub, serving


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
        await hub(scope_of("/v1/ws"), receive, send)
    await hub.close()


STREAM = b"GET /v1/channels/c/events?ping_s=2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
PIPELINED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("by_hand", [False, True], ids=["task", "hand"])
async def test_stream_with_a_pipelined_request_detaches_when_its_peer_leaves(by_hand: bool) -> None:
    hub = new_hub()
    hub.drive_by_hand = by_hand
    async with serving(hub) as served:
        reader, writer = await served.connect()
        writer.write(STREAM + PIPELINED)
        await asyncio.wait_for(reader.readuntil(b"channel.attached"), PATIENCE_S)
        assert hub.stats()["feeds"] == 1
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            while hub.stats()["feeds"]:
                hub._asgi.heartbeats.tick()  # type: ignore[attr-defined]  # a second of heartbeats
                await asyncio.sleep(0.005)  # poll, because the network gives no signal
