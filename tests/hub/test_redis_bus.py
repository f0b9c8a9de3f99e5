"""Two hubs on one PostgreSQL whose notices go by a bus, while the bus runs and while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

import pytest

from tenuto import Hub
from tenuto.core.errors import StoreUnavailable
from tenuto.core.events import Signal
from tenuto.hub.writer import MessageWriter
from tenuto.stores.base import Head
from tenuto.stores.postgres.store import PostgresStore
from tests.hub.watching import PATIENCE_S, Watcher
from tests.postgres import Postgres, needs_postgres
from tests.redis_server import RedisServer, needs_redis, running_redis

pytestmark = [needs_postgres, needs_redis]

CHANNEL = "chat:1"

_numbers = count(1)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


class Blind(PostgresStore):
    """A store that returns no heads once it is blind."""

    is_blind = False

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        if self.is_blind:
            raise StoreUnavailable("the store is blind")
        return await super().heads(channels)


@asynccontextmanager
async def two_hubs(postgres: Postgres, redis: RedisServer) -> AsyncIterator[tuple[Hub, Hub]]:
    """Give two hubs that know each other."""
    schema = f"bus_{next(_numbers)}"
    first, second = (
        Hub(Blind(postgres.url, schema=schema), bus=redis.url, drain_s=0, hooks_signals=False) for _ in range(2)
    )
    try:
        await first.start()
        await second.start()
        await first.runtime.nodes.renew()  # a node without another one sends no notice
        yield first, second
    finally:
        await second.close()
        await first.close()


async def crosses(message: MessageWriter, hub: Hub, watcher: Watcher) -> None:
    """Append to `message` until a notice of its channel reaches `hub`, whose viewer is `watcher`."""
    received = hub.stats()["bus_received"]
    for _ in range(20):  # until the channel is followed
        if hub.stats()["bus_received"] > received:
            break
        await message.append(".")
        await watcher.until(lambda view: bool(view.messages()) and len(view.messages()[-1].text) == message.length)
    assert hub.stats()["bus_received"] > received


async def test_text_and_signals_cross_by_the_bus(postgres: Postgres, redis: RedisServer) -> None:
    async with two_hubs(postgres, redis) as (first, second):
        watcher = Watcher(second, CHANNEL)
        await watcher.take()
        async with first.message(CHANNEL, id="m1") as message:
            await crosses(message, second, watcher)
            assert isinstance(second.store, Blind)
            second.store.is_blind = True
            for _ in range(20):
                await message.append(".")
                await watcher.until(lambda view: len(view.messages()[-1].text) == message.length)
        await first.signal(CHANNEL, "typing", {"on": True})
        while not any(isinstance(event, Signal) for event in watcher.events):
            await watcher.take()
        second.store.is_blind = False
        assert second.stats()["bus_channels"] == 1
        await watcher.leave()


async def test_running_hubs_learn_the_name_that_the_notices_of_a_restored_store_have(
    postgres: Postgres, redis: RedisServer
) -> None:
    async with two_hubs(postgres, redis) as (first, second):
        assert isinstance(first.store, Blind)
        former = first.store.notices_name
        runs = [hub._run for hub in (first, second)]
        postgres.sql(f"UPDATE {first.store.schema}.store SET history = 'restored'")
        postgres.disconnect("datname = 'app'")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([run.main for run in runs if run is not None])
        await first.start()
        await second.start()
        await first.runtime.nodes.renew()
        assert first.store.notices_name != former
        watcher = Watcher(second, CHANNEL)
        await watcher.take()
        async with first.message(CHANNEL, id="m1") as message:
            await crosses(message, second, watcher)
        await watcher.leave()
