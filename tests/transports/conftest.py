"""Hubs behind real servers and without a server, for every test of this folder.

Layer: tests.

`served` is a hub behind uvicorn on this event loop, which sends as under `tenuto serve`; one of `new_hub` sends as with
another server. `plain_http` sends requests to a hub through ASGI alone, which is enough for tests without streams.

With `TENUTO_SERVERS=long` (`make test-long`) the tests also run with the other way of sending, each server and each
signal.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from tenuto.app import Hub
from tenuto.stores.base import Store
from tenuto.transports import access, origin
from tenuto.transports.codec import Refusals
from tests.conftest import rest_in_long

PATIENCE_S = 60.0
WAYS = rest_in_long(["hand", "task"])


class Served:
    """A hub, its address, and a client for plain requests."""

    def __init__(self, hub: Hub, port: int, http: httpx2.AsyncClient) -> None:
        self.hub = hub
        self.host = "127.0.0.1"
        self.port = port
        self.http = http
        self._writers: list[asyncio.StreamWriter] = []

    async def until(self, is_true: Any) -> None:
        """Wait until a condition holds that has no event, such as a closed feed."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_true():  # noqa: ASYNC110 - no event is set for these conditions
                await asyncio.sleep(0.005)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare TCP connection, closed with the server at the latest."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self._writers.append(writer)
        return reader, writer

    def close(self) -> None:
        """Close all bare connections."""
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def listening(app: Any, **options: Any) -> AsyncIterator[int]:
    """uvicorn on this event loop; gives the port. Its end must not wait for tasks that the app has not ended."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 16 * 1024)  # as `tenuto serve` sets it
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, **{"log_config": None, "access_log": False, "http": "httptools", **options})
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    try:
        yield listener.getsockname()[1]
    finally:
        # The steps of the server's own shutdown, without its sleeps. Before, a connection that was just accepted gets
        # its protocol: asyncio leaves it open if its server is closed at that moment, and a later test gets a warning.
        for one in server.servers:
            for accepting in one.sockets:
                asyncio.get_running_loop().remove_reader(accepting)
        while _is_accepting():  # noqa: ASYNC110 - no event is set for it
            await asyncio.sleep(0)
        for one in server.servers:
            one.close()
        state = server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        async with asyncio.timeout(PATIENCE_S):
            while state.connections or state.tasks:  # noqa: ASYNC110 - no event is set for it
                await asyncio.sleep(0.002)
            await server.lifespan.shutdown()


def _is_accepting() -> bool:
    """Return whether asyncio has accepted a connection of which its protocol does not know yet."""
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return any(getattr(one, "__name__", "") == "_accept_connection2" for one in coroutines)


@asynccontextmanager
async def serving(hub: Hub, app: Any = None, **options: Any) -> AsyncIterator[Served]:
    """`hub`, or `app` with it inside, behind uvicorn; at the end the hub drains first, as its signal hook does."""
    async with (
        listening(hub if app is None else app, **options) as port,
        httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=False, timeout=PATIENCE_S
        ) as http,
    ):
        served = Served(hub, port, http)
        yield served
        await hub.close()
        served.close()


def new_hub(url: str | Store = "memory://", **options: Any) -> Hub:
    """Return a hub that installs no signal handlers and shuts down fast."""
    return Hub(url, hooks_signals=False, drain_s=0.2, **options)


@pytest.fixture(autouse=True)
def fresh_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log the refusals of each test as a new process does: it logs few of them."""
    for module in (access, origin):
        monkeypatch.setattr(module, "refusals", Refusals())


@pytest.fixture(params=WAYS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A hub behind a server."""
    hub = new_hub()
    hub.drive_by_hand = request.param == "hand"
    async with serving(hub) as one:
        yield one


def asking(app: Any, *, client: str = "127.0.0.1", base_url: str = "http://localhost") -> httpx2.AsyncClient:
    """Return a client that sends requests to `app` without a network, as if from the address `client`."""
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app, client=(client, 1)), base_url=base_url, timeout=PATIENCE_S
    )


@pytest.fixture
async def plain_http() -> AsyncIterator[httpx2.AsyncClient]:
    """Plain requests to a hub without a server."""
    hub = new_hub()
    async with asking(hub) as client:
        yield client
    await hub.close()
