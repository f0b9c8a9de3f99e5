"""One chunk for all viewers: with the installed uvicorn, and with one that `transports.sender` does not know."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from websockets.frames import Frame, Opcode

from proof.wirecheck import SseViewer
from tenuto.hub.channel import MAX_CHUNK_BYTES
from tenuto.transports.sender import framed
from tests.transports.conftest import Served, new_hub, serving
from tests.transports.watching import write


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return a list that collects the bodies that go through uvicorn's `send`."""
    bodies: list[bytes] = []
    send = RequestResponseCycle.send

    async def noting(self: Any, message: Any) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])
        await send(self, message)

    monkeypatch.setattr(RequestResponseCycle, "send", noting)
    return bodies


@pytest.fixture
async def by_hand() -> AsyncIterator[Served]:
    hub = new_hub()
    hub.drive_by_hand = True
    async with serving(hub) as served:
        yield served


async def watched(served: Served, prefix: str = "") -> None:
    """Watch an answer, with a strict viewer of every byte."""
    async with SseViewer(served.host, served.port, "c", prefix=prefix, query={"flush_ms": "0"}) as viewer:
        await viewer.until_attached()
        text = await write(served.hub, "c", ["x" * (MAX_CHUNK_BYTES + 1), *(f"{number} " for number in range(100))])
        await viewer.until(lambda: viewer.checker.status("m1") == "complete")
        assert viewer.checker.text("m1") == text
        assert viewer.checker.violations == []


async def test_batches_do_not_go_through_the_servers_send(by_hand: Served, sent: list[bytes]) -> None:
    await watched(by_hand)
    assert not [body for body in sent if b"event: " in body]


async def test_batches_go_through_send_if_uvicorn_differs(
    by_hand: Served, sent: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.transports.sender.cycle_of", lambda send: None)
    await watched(by_hand)
    assert [body for body in sent if b"event: message.append" in body]


async def test_middleware_that_wraps_send_is_not_bypassed(sent: list[bytes]) -> None:
    hub = new_hub()
    hub.drive_by_hand = True
    middleware = [Middleware(GZipMiddleware, minimum_size=1)]
    async with serving(hub, Starlette(routes=[Mount("/x", hub)], middleware=middleware)) as served:
        await watched(served, prefix="/x")
    assert [body for body in sent if b"event: message.append" in body]


# The same tests for WebSocket


@pytest.mark.parametrize("length", [0, 1, 125, 126, 1_000, MAX_CHUNK_BYTES])
@pytest.mark.parametrize("letter", ["a", "é", "日"])
def test_frame_equals_the_servers_own_frame(letter: str, length: int) -> None:
    text = (letter * length).encode()[:MAX_CHUNK_BYTES]
    assert framed(text) == Frame(Opcode.TEXT, text).serialize(mask=False)
