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


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
async def test_writer_sends_the_text_of_the_vector(vector: dict[str, Any]) -> None:
    hub = Hub("memory://", hooks_signals=False)
    at, gained = vector["at"], list[Any]()

    async def note_new_text() -> None:
        nonlocal at
        text = (await hub.read("c", "m1"))[0].text
        gained.append({"at": at, "text": text[at:]} if len(text) > at else None)
        at = len(text)

    async with hub.message("c", id="m1") as message:
        await message.append("x" * at)
        for piece in vector["pieces"]:
            await message.append(piece)
            await message.flush()
            await note_new_text()
    await note_new_text()
    assert gained == [*vector["sends"], vector["end"]]
    await hub.close()
