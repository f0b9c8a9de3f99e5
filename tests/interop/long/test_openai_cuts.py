"""OpenAI's clients behind a proxy that cuts their connections at random bytes: no character is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
import websockets

from tenuto import Turn
from tests.interop.long.test_openai_node import program
from tests.interop.test_openai import Scene, scene_of
from tests.interop.test_openai_socket import LAST
from tests.proxy import FaultProxy


async def read_stream(client: openai.AsyncOpenAI, id: str, seen: int) -> AsyncIterator[Any]:
    after: Any = {} if seen < 0 else {"starting_after": seen}
    async for event in await client.responses.retrieve(id, stream=True, **after):
        yield event


async def read_socket(client: openai.AsyncOpenAI, id: str, seen: int) -> AsyncIterator[Any]:
    resume: Any = {"type": "response.retrieve", "response_id": id}
    async with client.responses.connect() as socket:
        resume |= {} if seen < 0 else {"starting_after": seen}
        await socket.send(resume)
        event = None
        while event is None or event.type not in LAST:
            yield (event := await socket.recv())


@asynccontextmanager
async def cut_at_200_bytes() -> AsyncIterator[tuple[Scene, FaultProxy, Any]]:
    """Serve a long response through a proxy that cuts the connection 200 times."""

    async def long(turn: Turn) -> None:
        async with turn.reply() as message:
            for number in range(20):
                await message.part({"type": "text", "text": f"{number} {'😀a' * number}. "})

    async with scene_of() as scene:
        scene.script = long  # type: ignore[method-assign]
        whole = await scene.client.responses.create(model="bot", input="you")
        rng = random.Random(7)
        async with FaultProxy("127.0.0.1", scene.served.port) as proxy:
            proxy.cut_after(*(rng.randint(1, 12_000) for _ in range(200)))
            yield scene, proxy, whole


@pytest.mark.parametrize("read", [read_stream, read_socket])
async def test_stream_that_is_cut_at_200_random_bytes_has_each_character_once(read: Any) -> None:
    async with cut_at_200_bytes() as (scene, proxy, whole):
        client = scene.client.copy(base_url=f"http://127.0.0.1:{proxy.port}/v1")
        passes = 0
        while proxy._down.cuts or not passes:
            text, numbers = "", [-1]
            while True:
                with contextlib.suppress(
                    openai.APIConnectionError, httpx2.HTTPError, websockets.WebSocketException, OSError
                ):
                    async for event in read(client, whole.id, numbers[-1]):
                        numbers.append(event.sequence_number)
                        text += event.delta if event.type == "response.output_text.delta" else ""
                    break
            assert (text, event.response.output_text) == (whole.output_text, whole.output_text)
            assert numbers == sorted(set(numbers))
            passes += 1
        assert passes > 5


@pytest.mark.parametrize("way", ["stream", "socket"])
async def test_client_for_node_that_is_cut_at_200_random_bytes_has_each_character_once(way: str) -> None:
    async with cut_at_200_bytes() as (_, proxy, whole), program("openai_bytes.mjs", proxy.port) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        passes = 0
        while proxy._down.cuts or not passes:
            process.stdin.write(f"{whole.id} {way}\n".encode())
            seen = json.loads(await process.stdout.readline())
            assert (seen["text"], seen["numbers"]) == (whole.output_text, sorted(set(seen["numbers"])))
            passes += 1
        assert passes > 5
