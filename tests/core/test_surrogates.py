"""A writer holds half a character back until its other half comes: `tests/vectors/surrogates.json`, as in the browser.

Layer: tests.

The writer is the hub's own, and its requests are stored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenuto.app import Hub

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "surrogates.json").read_text())


class Stored:
    """Return the text that a message gained since the last call."""

    def __init__(self, hub: Hub, at: int) -> None:
        self._hub = hub
        self._known = at

    async def new(self) -> dict[str, Any] | None:
        message, _ = await self._hub.read("c", "m1")
        at, self._known = self._known, len(message.text)
        return {"at": at, "text": message.text[at:]} if self._known > at else None


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
async def test_writer_sends_the_text_of_the_vector(vector: dict[str, Any]) -> None:
    hub = Hub("memory://", hooks_signals=False)
    stored = Stored(hub, vector["at"])
    async with hub.message("c", id="m1") as message:
        await message.append("x" * vector["at"])
        sends = []
        for piece in vector["pieces"]:
            await message.append(piece)
            await message.flush()
            sends.append(await stored.new())
    assert sends == vector["sends"]
    assert await stored.new() == vector["end"]
    await hub.close()
