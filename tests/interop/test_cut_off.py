"""A stream that opens while the hub is cut off from its store: it ends within the documented term, not after 20 s."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest
from fastapi import FastAPI

from proof.simulation.clock import SimClock, VirtualLoop
from tenuto import Hub
from tenuto.core.requests import SERVER, CreateMessage
from tenuto.hub.lifecycle import CUT_OFF_S, STEP_S
from tenuto.interop import AGUI, AISDK, OpenAI
from tests.hub.test_viewing import Remote
from tests.interop.test_ends import STREAMS
from tests.transports.conftest import asking
from tests.virtual import virtually

OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/api/chat/1/stream", None),
    ("GET", "/tenuto/v1/channels/chat%3A1/messages/a/events", None),
]


@pytest.mark.parametrize(("method", "path", "body"), [*STREAMS, *OTHERS])
@virtually
async def test_stream_that_opens_while_the_hub_is_cut_off_ends_within_a_term(method: str, path: str, body: Any) -> None:
    loop, store, app = asyncio.get_running_loop(), Remote(), FastAPI()
    assert isinstance(loop, VirtualLoop)
    hub = Hub(store, hooks_signals=False, drain_s=0.0, clock=SimClock(loop, Random(1)))
    hub.install(app, "/tenuto")
    AISDK(hub, channel="chat:{id}").install(app, "/api/chat")
    AGUI(hub, channel="chat:{id}").install(app, "/api/agent")
    OpenAI(hub).install(app, "/v1")

    await hub.create("chat:1", id="u", text="you", starts_turn=False)
    await hub.ask(
        "chat:1", "a", CreateMessage(role="assistant", status="streaming", text="Hello", reply_to="u"), SERVER
    )
    hub.channel("chat:1").state.trim(0)  # so that the stream reads the store
    store.break_off("silent")
    cut_s = loop.time()
    async with asking(app) as client, asyncio.timeout(60):
        response = await client.request(method, path, json=body)
    assert "store_unavailable" in response.text
    assert loop.time() <= cut_s + CUT_OFF_S + 2 * STEP_S
    store.respond()
    await hub.close()
