"""The cost of a refresh and of a resume in bytes, within an answer of 8 KB made of hundreds of appends.

Bytes are counted after de-chunking, up to the end of the first batch. Each append is a request of its own, so the
server cannot have joined them earlier.
"""

import asyncio
import json
import random
from pathlib import Path

from bench.common import Options, Row, Served, Void, kept, served
from proof.wirecheck import SseViewer

_CHANNEL = "bench:resume"
_QUESTION = 'What is a tenuto, and why does "it" hold?'
_ANSWER_BYTES = 8 * 1024
_MISSED_BYTES = 1_200
_WORDS = ["a", "tenuto", "keeps", "the", "plant", "where", "it", "is,", "—", '"so"', "naïve", "水", "🌊", "\n\n"]


def run(options: Options) -> list[Row]:
    with kept(options) as database:
        return asyncio.run(_measure(database))


async def _measure(database: Path) -> list[Row]:
    # The viewer is never connected during a blocking request, because this loop has no other work.
    with served(database) as server:
        server.call("POST", f"{_CHANNEL}/messages", {"id": "question", "role": "user", "text": _QUESTION})
        server.call("POST", f"{_CHANNEL}/messages", {"id": "answer", "role": "assistant", "status": "streaming"})
        answer = _Answer()
        answer.grow(server, _ANSWER_BYTES)
        viewer = SseViewer("127.0.0.1", server.port, _CHANNEL)
        size = await _first_batch(viewer)
        shown = _json_bytes(_QUESTION) + _json_bytes(answer.text)
        rows = [_row("hydrate an answer of 8 KB in mid-stream", size, shown, int(shown * 1.05) + 500)]

        missed = answer.grow(server, _MISSED_BYTES)
        size = await _first_batch(viewer)
        rows.append(_row("resume in mid-stream", size, missed, missed + 400))

        missed = answer.grow(server, _MISSED_BYTES)
        server.child.kill()
    with served(database) as server:
        viewer.port = server.port
        size = await _first_batch(viewer)
        rows.append(_row("resume after the server was killed and restarted", size, missed, missed + 700))
        answer.grow(server, 100)
        server.call("POST", f"{_CHANNEL}/messages/answer/finish", {"status": "complete"})
        await _first_batch(viewer)
        stored = server.call("GET", f"{_CHANNEL}/messages/answer")["message"]
    checker = viewer.checker
    if checker.violations or checker.text("answer") != answer.text or checker.differences(stored):
        raise Void(f"the view is wrong: {checker.violations or checker.differences(stored)}")
    if checker.new_starts != 1:
        raise Void(f"{checker.new_starts - 1} resumes were new starts")
    return rows


class _Answer:
    """The text so far, which only grows."""

    def __init__(self) -> None:
        self.text = ""
        self._random = random.Random(1)

    def grow(self, server: Served, count: int) -> int:
        """Append about `count` bytes, some words at a time. Return the size of their JSON text."""
        added = ""
        while len(added.encode()) < count:
            piece = " ".join(self._random.choices(_WORDS, k=4)) + " "
            body = {"text": piece, "at": len(self.text) + len(added)}
            server.call("POST", f"{_CHANNEL}/messages/answer/append", body)
            added += piece
        self.text += added
        return _json_bytes(added)


async def _first_batch(viewer: SseViewer) -> int:
    """Attach, from the viewer's cursor if it has one, and detach. Return the bytes of the first batch."""
    before = viewer.checker.payload_bytes
    async with viewer:
        await viewer.until_attached()
        return viewer.checker.payload_bytes - before


def _json_bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


def _row(what: str, size: int, text_bytes: int, limit: int) -> Row:
    return Row(
        what, f"{size:,} B", f"{limit:,} B", size <= limit, f"{text_bytes:,} B of JSON text + {size - text_bytes}"
    )
