"""A client in another process attaches to the response that a dead one has begun.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tenuto import Hub
from tenuto.client import Client
from tenuto.core.requests import SERVER, FinishMessage

EVENTS = [
    {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1", "model": "gpt-test"}},
    *(
        {"type": "response.output_text.delta", "sequence_number": number, "output_index": 0, "delta": text}
        for number, text in enumerate(("It ", "goes ", "on."), 1)
    ),
    {"type": "response.completed", "sequence_number": 4, "response": {"id": "resp_1", "status": "completed"}},
]


@pytest.mark.parametrize("supersedes", [True, False])
async def test_client_goes_on_with_the_response_of_another_one(hub: Hub, client: Client, supersedes: bool) -> None:
    asked: list[tuple[str, Any]] = []
    is_shown = asyncio.Event()

    async def stream(events: list[Any], *, ends: bool = True) -> AsyncIterator[Any]:
        for event in events:
            yield event
        if not ends:
            is_shown.set()
            await asyncio.sleep(60)

    def attach(id: str, cursor: int | None) -> Any:
        asked.append((id, cursor))
        return stream(EVENTS)

    async def die() -> None:
        async with client.message("c", id="m") as message:
            message.cancelled_as = ("interrupted", None)
            await message.pipe(lambda: stream(EVENTS[:3], ends=False), attach=attach)

    async with asyncio.timeout(60):
        dying = asyncio.create_task(die())
        await is_shown.wait()
        dying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dying
        await hub.ask("c", "m", FinishMessage(status="interrupted", generation=1), SERVER)  # as after its lease
        message = client.take_over("c", "m")
        message.begin_again({}, supersedes=supersedes)
        async with message:
            await message.pipe(lambda: stream([]), attach=attach)
    stored, _ = await hub.read("c", "m")
    assert (stored.parts, stored.status) == ([{"type": "text", "text": "It goes on.", "joins": [8]}], "complete")
    assert asked == [("resp_1", None)]
