"""Two hubs on one PostgreSQL whose notices go by a bus."""

from __future__ import annotations

import asyncio

from tenuto import Hub
from tenuto.stores.postgres.store import PostgresStore
from tests.hub.watching import PATIENCE_S, Watcher
from tests.postgres import Postgres, needs_postgres
from tests.redis_server import needs_redis, running_redis


async def crosses(first: Hub, second: Hub, channel: str) -> None:
    """Append to a message at the first hub until a notice of its channel reaches the second one, which has a viewer."""
    await first.runtime.nodes.renew()  # a node without another one sends no notice
    watcher, received = Watcher(second, channel), second.stats()["bus_received"]
    await watcher.take()
    async with first.message(channel) as message:
        for _ in range(20):  # until the channel is followed
            if second.stats()["bus_received"] > received:
                break
            await message.append(".")
            await watcher.until(lambda view: bool(view.messages()) and len(view.messages()[-1].text) == message.length)
        assert second.stats()["bus_received"] > received
    await watcher.leave()


@needs_postgres
@needs_redis
async def test_text_crosses_by_the_bus_also_after_the_store_of_running_hubs_was_restored(postgres: Postgres) -> None:
    """A restored store has another name on the bus."""
    with running_redis() as redis:
        stores = [PostgresStore(postgres.url) for _ in range(2)]
        first, second = (Hub(store, bus=redis.url, drain_s=0, hooks_signals=False) for store in stores)
        await first.start()
        await second.start()
        await crosses(first, second, "chat:1")
        former = stores[0].notices_name
        runs = [hub._run for hub in (first, second)]
        postgres.sql(f"UPDATE {stores[0].schema}.store SET history = 'restored'")
        postgres.disconnect("datname = 'app'")
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait([run.main for run in runs if run is not None])
        await first.start()
        await second.start()
        assert stores[0].notices_name != former
        await crosses(first, second, "chat:2")
        await second.close()
        await first.close()
