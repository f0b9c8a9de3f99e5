"""Long answers through each adapter: the frames of a join while the answer grows, and a reader that does not read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI

from tenuto.transports.sender import cycle_of
from tests.interop.test_streams import STREAMS, install_routes
from tests.transports.conftest import new_hub, serving

PIECES, PIECE, LAST = 4_000, "the word, said   again and again with an end\n  that holds 🙂"[:50], " joined."


@pytest.mark.parametrize(
    ("method", "path", "body", "types"),
    [
        (*STREAMS[1], "start start-step text-start text-delta"),
        (*STREAMS[2], "RUN_STARTED TEXT_MESSAGE_START TEXT_MESSAGE_CONTENT"),
        (
            *STREAMS[4],
            "response.created response.in_progress response.output_item.added response.content_part.added "
            "response.output_text.delta",
        ),
    ],
    ids=["AI SDK", "AG-UI", "OpenAI"],
)
async def test_join_of_a_growing_answer_of_200_kb_has_few_frames_and_little_more_than_its_text(
    method: str, path: str, body: object, types: str
) -> None:
    hub, app, lines, text = new_hub(), FastAPI(), list[str](), PIECE * PIECES + LAST
    install_routes(hub, app)
    await hub.create("chat:1", id="u", text="you", starts_turn=False)
    async with serving(hub, app) as served, hub.message("chat:1", reply_to="u") as answer:
        for piece in (*[PIECE] * PIECES, LAST):
            await answer.append(piece)
        await answer.flush()
        async with served.http.stream(method, path, json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if LAST in line:
                    break
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [one["type"] for one in found] == types.split()
    assert found[-1]["delta"] == text
    # the budget in bytes of a join (docs/benchmarks.md); two events of OpenAI's have the response without its text
    head = 2_000 if "/v1/" in path else 500
    assert len("\n".join(lines).encode()) <= 1.05 * len(json.dumps(text, ensure_ascii=False).encode()) + head


async def test_client_that_does_not_read_fills_no_buffer_and_later_gets_the_whole_answer() -> None:
    """Each adapter has the same stream; the test above has the frames of each."""
    hub, app, connections = new_hub(flush_ms=0), FastAPI(), list[Any]()
    install_routes(hub, app)

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            connections.append(cycle_of(receive))
        await app(scope, receive, send)

    piece = "word " * 20_000
    await hub.create("chat:1", text="you", id="u", starts_turn=False)
    async with serving(hub, noted) as served, hub.message("chat:1", reply_to="u") as answer:
        await answer.append("begun ")
        await answer.flush()
        reader, writer = await served.connect()
        writer.write(f"GET {STREAMS[1][1]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert b"200 OK" in await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        (connection,) = connections
        while not connection.flow.write_paused:
            await answer.append(piece)
            await answer.flush()
        stalled_bytes = connection.transport.get_write_buffer_size()
        for _ in range(20):
            await answer.append(piece)
            await answer.flush()
        assert connection.transport.get_write_buffer_size() == stalled_bytes
        await answer.finish()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        body = re.sub("\r\n[0-9a-f]+\r\n", "", (await reader.read()).decode())  # without the sizes of its chunks
        lines = [line for line in body.split("\n") if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        deltas = [json.loads(line[6:])["delta"] for line in lines if '"delta":"' in line]
        (stored,) = [one for one in (await hub.history("chat:1")).messages if one.role == "assistant"]
        assert "".join(deltas) == stored.text
        assert max(map(len, deltas)) >= 20 * len(piece)  # the text of the stall in one frame
