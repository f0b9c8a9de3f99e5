"""The streams and routes of each adapter when a token expires, a store is silent, or a client has no requests left."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from proof.simulation.clock import SimClock, VirtualLoop
from tenuto import Hub, Identity, Turn
from tenuto.core.requests import SERVER, CreateMessage
from tenuto.hub.access.rates import ClientLimits, Rates
from tenuto.hub.clock import Clock
from tenuto.hub.lifecycle import CUT_OFF_S, STEP_S
from tenuto.interop import AGUI, AISDK, OpenAI
from tenuto.interop.openai_stream import Reference
from tests.hub.test_viewing import Remote
from tests.interop.scene import verifier
from tests.transports.conftest import asking, new_hub, serving
from tests.virtual import virtually

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


def install_routes(hub: Hub, app: FastAPI) -> None:
    hub.install(app, "/tenuto")
    AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    OpenAI(hub).install(app, "/v1")


def install_adapters(hub: Hub, app: FastAPI) -> None:
    """Install each adapter, and an agent that says "Hello" and waits."""
    install_routes(hub, app)

    @hub.agent("chat:*", name="bot")
    async def waits(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append("Hello")
            await asyncio.Event().wait()


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
        streams = []
        for method, path, body in STREAMS:
            response = await stack.enter_async_context(served.http.stream(method, path, json=body))
            lines = response.aiter_lines()
            seen = [await anext(lines)]
            while "Hello" not in seen[-1]:
                seen.append(await anext(lines))
            streams.append((seen, lines))
        waiting = [asyncio.ensure_future(served.http.request(*one[:2], json=one[2])) for one in WAITING]

        def feeds() -> list[Any]:
            return [feed for channel in hub.runtime.channels.values() for feed in channel.feeds]

        await served.until(lambda: len(feeds()) == len(STREAMS) + len(WAITING))
        late_ms = 700_000
        for feed in feeds():
            feed.wake.__self__.send_heartbeat()
        for seen, lines in streams:
            with pytest.raises(httpx2.RemoteProtocolError):
                async for line in lines:
                    seen.append(line)
            assert not [line for line in seen if any(end in line for end in ENDS)]  # no line ends the answer
        for response in await asyncio.gather(*waiting):  # the turn goes on, so a client does not ask again
            assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
            assert response.headers["x-should-retry"] == "false"


OWN = ("GET", "/tenuto/v1/channels/chat%3A1/messages/a/events", None)


@pytest.mark.parametrize(("method", "path", "body"), [*STREAMS[:3], STREAMS[4], OWN])
@virtually
async def test_stream_that_opens_while_the_hub_is_cut_off_ends_within_a_term(method: str, path: str, body: Any) -> None:
    loop, store, app = asyncio.get_running_loop(), Remote(), FastAPI()
    assert isinstance(loop, VirtualLoop)
    hub = Hub(store, hooks_signals=False, drain_s=0.0, clock=SimClock(loop, Random(1)))
    install_routes(hub, app)
    await hub.create("chat:1", id="u", text="you", starts_turn=False)
    answer = CreateMessage(role="assistant", status="streaming", text="Hello", reply_to="u")
    await hub.ask("chat:1", "a", answer, SERVER)
    hub.channel("chat:1").state.trim(0)  # so that the stream reads the store
    store.break_off("silent")
    cut_s = loop.time()
    async with asking(app) as client, asyncio.timeout(60):
        response = await client.request(method, path, json=body)
    assert "store_unavailable" in response.text
    assert loop.time() <= cut_s + CUT_OFF_S + 2 * STEP_S
    store.respond()
    await hub.close()


OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/api/chat/1/messages", None),
    ("POST", "/api/chat/1/stop", None),
    ("POST", "/v1/responses", {"model": "bot", "input": "you", "background": True}),
    ("GET", STREAMS[4][1].partition("?")[0], None),
    ("POST", STREAMS[4][1].partition("?")[0] + "/cancel", None),
    ("GET", "/v1/models", None),
]


def limited(limits: ClientLimits) -> Any:
    """Return a hub, whose clock for rates stands still, and an app with its adapters and an agent that waits."""
    hub, app = new_hub(authenticate=verifier("ann")), FastAPI()
    hub.rates = Rates(limits, now_s=lambda: 0.0)
    install_adapters(hub, app)
    return hub, app


def is_refused(path: str, response: httpx2.Response) -> bool:
    """Return whether a response is the refusal 429 in the format of its route."""
    if response.status_code != 429:
        return False
    body = response.json()
    if path.startswith("/v1"):
        return bool(body["error"]["type"] == "rate_limit_error" and body["error"]["message"])
    return response.headers["content-type"] == "application/problem+json" and body["code"] == "too_many"


async def test_route_refuses_a_client_without_requests_left() -> None:
    hub, app = limited(ClientLimits(client_requests=0))
    async with asking(app) as client:
        for method, path, body in (*STREAMS, *WAITING, *OTHERS):
            response = await client.request(method, path, json=body)
            assert is_refused(path, response), path
            assert int(response.headers["retry-after"]) >= 1
        assert (await hub.history("chat:1")).messages == []
    await hub.close()


async def test_stream_takes_a_connection_slot_and_gives_it_back() -> None:
    hub, app = limited(ClientLimits(client_connections=1))
    async with serving(hub, app) as served:
        for method, path, body in STREAMS:
            async with served.http.stream(method, path, json=body) as response:
                assert response.status_code == 200
                for refused in (*STREAMS, *WAITING):
                    answer = await served.http.request(*refused[:2], json=refused[2])
                    assert is_refused(refused[1], answer)
                    # the question is stored: a client that retries would ask twice
                    assert answer.headers.get("x-should-retry") == ("false" if refused[0] == "POST" else None)
                    if refused[0] == "POST" and refused[1].startswith("/v1"):
                        error = answer.json()["error"]
                        assert (error["code"], error["response_id"] in error["message"]) == ("too_many", True)
                        stored = await served.http.get(f"/v1/responses/{error['response_id']}")
                        assert stored.json()["id"] == error["response_id"]
            await served.until(lambda: hub.rates._clients["ann"].connections == 0)
