"""A hub in memory, and clients on a connection that tests can cut.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tenuto import Hub
from tenuto.client import Client
from tests.client.wire import Wire, client_of, memory_hub


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = memory_hub()
    await hub.start()
    yield hub
    await hub.close()


@pytest.fixture
async def wire(hub: Hub) -> AsyncIterator[Wire]:
    wire = Wire(hub)
    yield wire
    await wire.end()


@pytest.fixture
async def client(wire: Wire) -> AsyncIterator[Client]:
    async with client_of(wire) as client:
        yield client
