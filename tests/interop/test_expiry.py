"""A token that expires during a stream of any adapter: the stream is cut, and never ends as complete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from tenuto import Hub, Identity, Turn
from tenuto.hub.clock import Clock
from tenuto.interop import AGUI, AISDK, OpenAI
from tenuto.interop.openai_items import Reference
from tests.transports.conftest import Served, new_hub, serving

RUN = {"threadId": "1", "runId": "r", "messages": [{"id": "u", "role": "user", "content": "you"}]}
PAGE = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "you"}]}
RESPONSE = {"model": "bot", "input": "you", "stream": True}
CHAT = {"model": "bot", "messages": [{"role": "user", "content": "you"}], "stream": True}
STREAMS: list[tuple[str, str, Any]] = [
    ("POST", "/api/chat", {"id": "1", "message": PAGE}),
    ("GET", "/api/chat/1/stream", None),
    ("POST", "/api/agent", RUN),
    ("POST", "/v1/responses", RESPONSE),
    ("GET", f"/v1/responses/{Reference('chat:1', 'u').id()}?stream=true", None),
    ("POST", "/v1/chat/completions", CHAT),
]
# requests whose response comes when the turn has ended
WAITING: list[tuple[str, str, Any]] = [
    ("POST", "/v1/responses", {**RESPONSE, "stream": False}),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": False}),
]
ENDS = (
    "[DONE]",
    '"finish"',
    "RUN_FINISHED",
    "RUN_ERROR",
    "response.completed",
    '"stop"',
    '{"type":"error"',
    '{"error"',
)


def install_adapters(hub: Hub, app: FastAPI) -> None:
    """Install each adapter, and an agent that says "Hello" and waits."""
    AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    OpenAI(hub).install(app, "/v1")

    @hub.agent("chat:*", name="bot")
    async def waits(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello")
            await asyncio.Event().wait()


Begun = list[tuple[list[str], AsyncIterator[str]]]  # of each stream the lines that were read, and the others


async def begun(stack: AsyncExitStack, served: Served, streams: Iterable[tuple[str, str, Any]]) -> Begun:
    """Open `streams`, and read each until the agent's text."""
    found: Begun = []
    for method, path, body in streams:
        response = await stack.enter_async_context(served.http.stream(method, path, json=body))
        lines = response.aiter_lines()
        seen = [await anext(lines)]
        while "Hello" not in seen[-1]:
            seen.append(await anext(lines))
        found.append((seen, lines))
    return found


def is_broken_off(response: httpx2.Response) -> bool:
    """Return whether the response says that the turn goes on, so that a client does not ask again."""
    is_draining = response.status_code == 503 and response.json()["error"]["code"] == "draining"
    return is_draining and response.headers["x-should-retry"] == "false"


async def check_cut(streams: Begun) -> None:
    """Check that each stream is cut, and has no line that ends an answer."""
    for seen, lines in streams:
        with pytest.raises(httpx2.RemoteProtocolError):
            async for line in lines:
                seen.append(line)
        assert not [line for line in seen if any(end in line for end in ENDS)]


async def test_streams_are_cut_when_the_identity_of_their_caller_expires() -> None:
    late_ms = 0

    class Late(Clock):
        def now_ms(self) -> int:
            return super().now_ms() + late_ms

    clock = Late()

    async def verify(scope: dict[str, Any]) -> Identity:
        grants = {"chat:*": frozenset({"subscribe", "history", "publish"})}
        return Identity(client_id="ann", grants=grants, expires_at_ms=clock.now_ms() + 600_000)

    hub, app = new_hub(authenticate=verify, clock=clock), FastAPI()
    install_adapters(hub, app)

    async with serving(hub, app) as served, AsyncExitStack() as stack:
        streams = await begun(stack, served, STREAMS)
        waiting = [asyncio.ensure_future(served.http.request(*one[:2], json=one[2])) for one in WAITING]

        def feeds() -> list[Any]:
            return [feed for channel in hub.runtime.channels.values() for feed in channel.feeds]

        await served.until(lambda: len(feeds()) == len(STREAMS) + len(WAITING))
        late_ms = 700_000
        for feed in feeds():
            feed.wake.__self__.send_heartbeat()
        await check_cut(streams)
        assert all([is_broken_off(await one) for one in waiting])
