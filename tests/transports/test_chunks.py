"""One chunk, and one frame, for all viewers: past the `send` of the installed uvicorn, with the same bytes."""

from __future__ import annotations

from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from websockets.frames import Frame, Opcode

from proof.wirecheck import SseViewer
from tenuto.hub.channel import MAX_CHUNK_BYTES
from tenuto.transports.sender import framed
from tests.transports.conftest import Served, new_hub, serving
from tests.transports.watching import write


@pytest.mark.parametrize("served", ["hand"], indirect=True)
async def test_batches_do_not_go_through_the_servers_send(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = list[bytes](), RequestResponseCycle.send

    async def noting(self: Any, message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])
        await send(self, message)

    monkeypatch.setattr(RequestResponseCycle, "send", noting)
    async with SseViewer(served.host, served.port, "c", query={"flush_ms": "0"}) as viewer:
        await viewer.until_attached()
        text = await write(served.hub, "c", ["x" * (MAX_CHUNK_BYTES + 1), *(f"{number} " for number in range(100))])
        await viewer.until(lambda: viewer.checker.status("m1") == "complete")
        assert (viewer.checker.text("m1"), viewer.checker.violations) == (text, [])
    assert not [body for body in sent if b"event: " in body]


async def test_middleware_that_wraps_send_is_not_bypassed() -> None:
    hub, sent = new_hub(), list[bytes]()
    hub.drive_by_hand = True

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            sent.append(message.get("body", b""))
            await send(message)

        await hub(scope, receive, noting)

    query = {"flush_ms": "0"}
    async with serving(hub, middleware) as served, SseViewer(served.host, served.port, "c", query=query) as viewer:
        await viewer.until_attached()
        await write(hub, "c", ["one ", "two ", "three"])
        await viewer.until(lambda: viewer.checker.status("m1") == "complete")
    assert [body for body in sent if b"event: message.append" in body]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 1_000, MAX_CHUNK_BYTES])
@pytest.mark.parametrize("letter", ["a", "é", "日"])
def test_frame_equals_the_servers_own_frame(letter: str, length: int) -> None:
    text = (letter * length).encode()[:MAX_CHUNK_BYTES]
    assert framed(text) == Frame(Opcode.TEXT, text).serialize(mask=False)
