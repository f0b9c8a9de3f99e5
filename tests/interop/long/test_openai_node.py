"""OpenAI's client for Node.js against `OpenAI`. `scripts/test_interop` installs it, and runs this test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.interop.test_openai import ANSWER, scene_of

SCRIPT = Path(__file__).parents[1] / "openai_client.mjs"
PATIENCE_S = 60.0


def units(events: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """Return one unit for each event of the structure, and one for each code point of a delta, with their numbers."""
    found: list[tuple[int, str, str]] = []
    for event in events:
        number, delta = event["sequence_number"], event.get("delta", "")
        first = number - len(delta) + 1
        found += [(first + at, event["type"], letter) for at, letter in enumerate(delta)] or [
            (number, event["type"], "")
        ]
    return found


async def test_client_for_node_resumes_at_each_number() -> None:
    package = os.environ.get("HOLDFAST_OPENAI")
    node = os.environ.get("HOLDFAST_NODE") or shutil.which("node")
    assert package, "scripts/test_interop installs the npm package openai, and runs this test"
    assert node, "no Node.js: install Debian's package nodejs"
    async with scene_of() as scene:
        scene.gate.set()
        address = f"http://127.0.0.1:{scene.served.port}/v1"
        process = await asyncio.create_subprocess_exec(
            node, SCRIPT, Path(package) / "index.mjs", address, stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        seen = json.loads(output)
    assert (seen["whole"], seen["chat"], seen["missing"]) == (ANSWER, ANSWER, 404)
    every = units(seen["streams"][0])
    assert [number for number, _, _ in every] == list(range(len(every)))
    assert [units(one) for one in seen["streams"]] == [every[after:] for after in range(len(every))]
