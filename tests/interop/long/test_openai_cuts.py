"""OpenAI's client behind a proxy that cuts its connections at random bytes: no character is lost or doubled."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
import websockets

from tenuto import Turn
from tests.interop.test_openai import scene_of
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


@pytest.mark.parametrize("read", [read_stream, read_socket])
async def test_stream_that_is_cut_at_200_random_bytes_has_each_character_once(read: Any) -> None:
    async def long(turn: Turn) -> None:
        async with turn.reply() as message:
            for number in range(20):
                await message.part({"type": "text", "text": f"{number} {'😀a' * number}. "})

    async with scene_of() as scene:
        scene.script = long  # type: ignore[method-assign]
        whole = await scene.client.responses.create(model="bot", input="you")
        rng = random.Random(7)
        async with FaultProxy("127.0.0.1", scene.served.port) as proxy:
            client = scene.client.copy(base_url=f"http://127.0.0.1:{proxy.port}/v1")
            proxy.cut_after(*(rng.randint(1, 12_000) for _ in range(200)))
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
