"""A channel as Server-Sent Events (docs/protocol.md, 5.1 and 5.2), behind a real server."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from httpx_sse import aconnect_sse

from proof.wirecheck import SseViewer, WsViewer
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.hub.channel import Channel
from tenuto.transports import sender
from tenuto.transports.sender import socket_of
from tests.transports.conftest import PATIENCE_S, Served
from tests.transports.watching import Stream

EVENTS = "/v1/channels/c/events"


def heartbeats(served: Served) -> Any:
    return served.hub._asgi.heartbeats


async def pass_seconds(served: Served, count: int) -> None:
    """Run the heartbeats as if seconds had passed."""
    for _ in range(count):
        heartbeats(served).tick()
        for _ in range(5):  # a task has to send the batch that the tick wrote
            await asyncio.sleep(0)


# The head, and the first batch


@pytest.mark.parametrize("path", [EVENTS, "/v1/channels/c/messages/m1/events"])
async def test_no_block_is_without_an_event(served: Served, path: str) -> None:
    """`httpx-sse`, and `aiosseclient` too, yield an empty event for a block that has `retry` alone, or no line."""
    async with served.hub.message("c", id="m1") as message:
        await message.append("one")
        await message.flush()
        async with (
            httpx.AsyncClient(base_url=str(served.http.base_url), trust_env=False) as http,
            aconnect_sse(http, "GET", path, timeout=PATIENCE_S) as source,
        ):
            events = source.aiter_sse()
            found = [await anext(events)]
            while "one" not in found[-1].data:
                found.append(await anext(events))
            await pass_seconds(served, 30)
            await message.append(" two")
            while "two" not in found[-1].data:
                found.append(await anext(events))
            await events.aclose()
    assert all(one.json() for one in found)  # an empty event has no data
    assert 1000 <= (found[0].retry or 0) <= 3000


# Many, slow, silent and disconnected viewers


@pytest.mark.parametrize("transport", [SseViewer, WsViewer])
async def test_unread_bytes_of_an_ended_stream_are_freed(
    served: Served, transport: type[SseViewer | WsViewer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "UNREAD_S", 0.05)
    async with transport(served.host, served.port, "c", receive_buffer_bytes=4096) as viewer:
        await viewer.until_attached()
        viewer.stall()
        (one,) = [one for slot in heartbeats(served)._slots.values() for one in slot]
        connection = one.sender._cycle or socket_of(one.sender._send)
        while not connection.transport.get_write_buffer_size():
            await served.hub.create("c", text="x" * 1_000_000)
            await asyncio.sleep(0)
        one.sender.end()
        await served.until(lambda: not connection.transport.get_write_buffer_size())  # the peer has not read it


async def test_heartbeat_is_an_event_with_ping_s(served: Served) -> None:
    stream = await Stream.open(served, f"{EVENTS}?ping_s=2")
    await stream.until_event("channel.attached")
    await pass_seconds(served, 4)
    await stream.until(lambda: [event.event for event in stream.events[1:]] == ["ping", "ping"])
    assert (stream.events[1].data, stream.events[1].id, stream.parser.comments) == (b"{}", None, 0)


@pytest.mark.parametrize("kind", [StoreUnavailable, StoreUnusable])
async def test_a_store_that_fails_a_catch_up_breaks_the_stream_off(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: type[TenutoError]
) -> None:
    await served.hub.create("c", id="m1", text="x")
    await served.hub.close()
    await served.hub.start()
    monkeypatch.setattr(Channel, "load_history", AsyncMock(side_effect=kind("the disk is gone")))
    stream = await Stream.open(served, EVENTS)
    assert await stream.until_over() is False
    assert "the disk is gone" in caplog.text
    assert "Traceback" not in caplog.text
    monkeypatch.undo()
    stream = await Stream.open(served, EVENTS)
    await stream.until_event("message.update")
