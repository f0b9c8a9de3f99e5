"""A viewer receives little more than the text it has missed, measured on real sockets.

Bytes are bodies and payloads after de-chunking. "JSON text" is the text as a JSON string, without its quotes.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from proof.wirecheck import SseViewer, WsViewer
from tests.processes import Server, serving

CHANNEL = "chat:bytes"
WORDS = ["a ", "tenuto ", "keeps ", 'the "plant" ', "where ", "it ", "is, ", "naïve ", "水 ", "🌊 ", "\n\n"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving("serve", tmp_path) as server:
        yield server


class Response:
    """A streaming answer, written over HTTP with one request for each append."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.text = ""
        self._path = f"/v1/channels/{CHANNEL}/messages"
        self._post("", {"id": "q", "role": "user", "text": "Why?"})
        self._post("", {"id": "m", "role": "assistant", "status": "streaming"})

    def grow(self, size: int) -> int:
        """Append at least `size` bytes of JSON text, a word at a time, and return the number of bytes."""
        before = len(self.text)
        while json_bytes(self.text[before:]) < size:
            piece = WORDS[len(self.text) % len(WORDS)]
            self._post("/m/append", {"text": piece, "at": len(self.text)})
            self.text += piece
        return json_bytes(self.text[before:])

    def _post(self, path: str, body: object) -> None:
        status, response = self._server.post(self._path + path, body)
        assert status in (200, 201), response


def json_bytes(text: str) -> int:
    """Return the number of bytes of `text` in a JSON string."""
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


async def first_batch_bytes(viewer: SseViewer | WsViewer) -> int:
    """Return the bytes of the viewer's first batch; the viewer disconnects."""
    before = viewer.checker.payload_bytes
    await viewer.reconnect()
    await viewer.until_attached()
    await viewer.close()
    assert viewer.checker.violations == []
    return viewer.checker.payload_bytes - before


async def test_viewers_that_attach_or_resume_receive_few_bytes_beside_the_text(server: Server) -> None:
    answer = await asyncio.to_thread(Response, server)
    hydrated = await asyncio.to_thread(answer.grow, 8 * 1024)
    viewers = [kind("127.0.0.1", server.port, CHANNEL) for kind in (SseViewer, WsViewer)]
    for viewer in viewers:
        assert await first_batch_bytes(viewer) <= 1.05 * hydrated + 500

    missed = await asyncio.to_thread(answer.grow, 1_200)
    for viewer in viewers:
        assert await first_batch_bytes(viewer) <= missed + 400

    missed = await asyncio.to_thread(answer.grow, 1_200)
    await asyncio.to_thread(server.end, signal.SIGKILL)
    await asyncio.to_thread(server.start)
    for viewer in viewers:
        assert await first_batch_bytes(viewer) <= missed + 700
        assert viewer.checker.text("m") == answer.text
        assert viewer.checker.new_starts == 1
