"""OpenAI's client for Node.js against `OpenAI`. `scripts/test_interop` installs it, and runs this test."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.interop.test_openai import ANSWER, Scene, scene_of

FOLDER = Path(__file__).parents[1]
LINE_BYTES = 16 * 1024 * 1024
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


@asynccontextmanager
async def program(script: str, scene: Scene) -> AsyncIterator[Process]:
    """Run a script with the npm package, for the server of `scene`."""
    package = os.environ.get("HOLDFAST_OPENAI")
    node = os.environ.get("HOLDFAST_NODE") or shutil.which("node")
    assert package, "scripts/test_interop installs the npm package openai, and runs this test"
    assert node, "no Node.js: install Debian's package nodejs"
    address = f"http://127.0.0.1:{scene.served.port}/v1"
    command = node, FOLDER / script, Path(package) / "index.mjs", address
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_client_for_node_resumes_at_each_number() -> None:
    async with scene_of() as scene:
        scene.gate.set()
        async with program("openai_client.mjs", scene) as process:
            seen = json.loads((await process.communicate())[0])
    assert (seen["whole"], seen["chat"], seen["missing"]) == (ANSWER, ANSWER, 404)
    every = units(seen["streams"][0])
    assert [number for number, _, _ in every] == list(range(len(every)))
    assert [units(one) for one in seen["streams"]] == [every[after:] for after in range(len(every))]


async def test_client_for_node_that_is_cut_while_the_answer_is_written_gets_exactly_the_rest() -> None:
    async with scene_of() as scene, program("openai_cut.mjs", scene) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"cut\n"
        assert [turn.replies[0].length for turn in scene.turns] == [len("Hello ")] * 2
        scene.gate.set()
        seen = json.loads(await process.stdout.readline())
        assert len(scene.turns) == 2
    assert (seen["content"], seen["texts"]) == ("Hello ", [ANSWER, ANSWER])
    assert len(seen["cuts"]) > 8
    whole = [units([*cut, *rest]) for cut, rest in zip(seen["cuts"], seen["rests"], strict=True)]
    assert [number for number, _, _ in whole[0]] == list(range(len(whole[0])))
    assert [one for one in whole if one != whole[0]] == []
    text = "".join(letter for _, kind, letter in whole[0] if kind == "response.output_text.delta")
    assert text == ANSWER
