"""The rates and connection slots of a client on the routes of each adapter."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from tenuto import Identity
from tenuto.hub.access.rates import ClientLimits, Rates
from tests.interop.test_expiry import STREAMS, WAITING, install_adapters
from tests.transports.conftest import new_hub, serving

OTHERS: list[tuple[str, str, Any]] = [
    ("GET", "/api/chat/1/messages", None),
    ("POST", "/api/chat/1/stop", None),
    ("GET", "/api/agent/1/messages", None),
    ("POST", "/api/agent/1/stop", None),
    ("POST", "/v1/responses", {"model": "bot", "input": "you", "background": True}),
    ("GET", STREAMS[4][1].partition("?")[0], None),
    ("POST", STREAMS[4][1].partition("?")[0] + "/cancel", None),
    ("GET", "/v1/models", None),
]


def app_with_adapters(limits: ClientLimits) -> Any:
    """Return a hub, whose clock for rates stands still, and an app with its adapters and an agent that waits."""

    async def verify(scope: dict[str, Any]) -> Identity:
        return Identity(client_id="ann", grants={"chat:*": frozenset({"subscribe", "history", "publish", "command"})})

    hub, app = new_hub(authenticate=verify), FastAPI()
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


@pytest.mark.parametrize(("method", "path", "body"), [*STREAMS, *WAITING, *OTHERS])
async def test_route_refuses_a_client_without_requests_left(method: str, path: str, body: Any) -> None:
    hub, app = app_with_adapters(ClientLimits(client_requests=0))
    transport = httpx2.ASGITransport(app, client=("127.0.0.1", 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.request(method, path, json=body)
        assert is_refused(path, response)
        assert int(response.headers["retry-after"]) >= 1
        assert (await hub.history("chat:1")).messages == []
    await hub.close()


async def test_stream_takes_a_connection_slot_and_gives_it_back() -> None:
    hub, app = app_with_adapters(ClientLimits(client_connections=1))
    async with serving(hub, app) as served:
        for method, path, body in STREAMS:
            async with served.http.stream(method, path, json=body) as response:
                assert response.status_code == 200
                for refused in STREAMS:
                    assert is_refused(refused[1], await served.http.request(*refused[:2], json=refused[2]))
            await served.until(lambda: hub.rates._clients["ann"].connections == 0)
