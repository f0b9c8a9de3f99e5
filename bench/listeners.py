"""Nodes that only listen: PostgreSQL stores with their notices, without viewers and without a server.

Run as a child: `python -m bench.listeners STORE_URL [--bus URL]`. All nodes share this process. They count the notices
that arrive and apply none. One of them renews a lease, so that the server under test sends notices at all.
"""

import argparse
import asyncio
from functools import partial
from typing import Any

from bench.control import reply, serve_requests
from tenuto.hub.nodes.nodes import RENEW_S, TERM_MS
from tenuto.stores import open_url
from tenuto.stores.base import Notice, Notices
from tenuto.stores.bus import open_bus
from tenuto.stores.postgres.store import PostgresStore


class Listeners:
    """Nodes that share this process. `_received` has the number of notices of each."""

    def __init__(self, store: str, bus: str | None) -> None:
        self._store = store
        self._bus = bus
        self._received: list[int] = []
        self._lease: asyncio.Task[None] | None = None

    async def listen(self, *, count: int, channels: list[str], each: list[str]) -> dict[str, Any]:
        """Open `count` nodes.

        On a bus, one of them follows each of `channels`, as if it had the viewers, and all follow those in `each`.
        """
        for n in range(count):
            store = open_url(self._store)
            assert isinstance(store, PostgresStore)
            await store.open()
            way: Notices = store
            if self._bus is not None:
                way = bus = open_bus(self._bus)
                await bus.open(store.notices_name)
                for channel in (*channels[n::count], *each):
                    bus.follow(channel)
            self._received.append(0)
            way.listen(partial(self._receive, n))
            if self._lease is None:
                await store.hold("listener", TERM_MS, {})
                self._lease = asyncio.create_task(self._renew(store))
        return {}

    async def received(self) -> dict[str, Any]:
        """Return the number of notices that have arrived at each node."""
        if self._lease is not None and self._lease.done():
            self._lease.result()
        return {"received": self._received}

    def _receive(self, n: int, notice: Notice | None) -> None:
        self._received[n] += notice is not None and bool(notice.body)

    async def _renew(self, store: PostgresStore) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await store.hold("listener", TERM_MS, {})


async def _main(arguments: argparse.Namespace) -> None:
    listeners = Listeners(arguments.store, arguments.bus)
    reply()
    await serve_requests({one.__name__: one for one in (listeners.listen, listeners.received)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--bus")
    asyncio.run(_main(parser.parse_args()))
