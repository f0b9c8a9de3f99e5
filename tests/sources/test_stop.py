"""A stop from a second device while a third reconnects: all show the same end, and the model's stream is closed."""

from __future__ import annotations

import asyncio
import contextlib

from openai import AsyncOpenAI

from tenuto import Turn
from tenuto.client import ChannelView
from tenuto.core.model import Message
from tests.client.wire import Wire, client_of, memory_hub
from tests.sources.provider import HOLD, Provider
from tests.sources.wires import chat_said

PATIENCE_S = 60.0
SAID = "Hello"
CLOSED_S = 1.0  # time after the stop in which the stream must be closed


async def answer_in(view: ChannelView, status: str) -> Message:
    async for _ in view:
        answers = [
            one for one in view.messages if one.role == "assistant" and one.status == status and one.text == SAID
        ]
        if answers:
            return answers[0]
    raise AssertionError("the view has ended")


async def test_stop_from_another_device_ends_the_answer_and_closes_the_stream(provider: Provider) -> None:
    hub = memory_hub()
    model = AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="sk-none", max_retries=0)
    provider.will_say([*chat_said("Hel", "lo"), HOLD])

    @hub.agent("chat:*")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            stream = await model.chat.completions.create(
                model="gpt-test", messages=[{"role": "user", "content": turn.text}], stream=True
            )
            await message.pipe(stream)

    await hub.start()
    wires = [Wire(hub) for _ in range(3)]
    async with contextlib.AsyncExitStack() as devices, asyncio.timeout(PATIENCE_S):
        clients = [await devices.enter_async_context(client_of(wire, client_id="ann")) for wire in wires]
        views = [await devices.enter_async_context(client.channel("chat:1")) for client in clients]
        asked = await clients[0].create("chat:1", text="Hi")
        for view in views:
            assert (await answer_in(view, "streaming")).reply_to == asked.id
        await provider.is_held.wait()

        wires[2].cut()  # the viewer reconnects by itself
        await clients[1].command("chat:1", "cancel", target=asked.id)
        async with asyncio.timeout(CLOSED_S):
            await provider.is_left.wait()
        ends = [await answer_in(view, "cancelled") for view in views]

    stored = (await hub.history("chat:1")).messages[0]
    assert {(one.id, one.text, one.status) for one in ends} == {(stored.id, stored.text, "cancelled")}
    for wire in wires:
        await wire.end()
    await hub.close()
