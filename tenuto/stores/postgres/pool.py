"""A pool of connections to a PostgreSQL server. If the server gives no more, callers wait for those that the pool has.

Layer: stores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

logger = logging.getLogger("tenuto.stores")

FULL_S = 1.0  # how long no further connection is tried after the server has refused one
_REFUSALS = (asyncpg.TooManyConnectionsError, asyncpg.ProtocolViolationError)  # PgBouncer has the second one for all

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]


class PostgresPool:
    """Connections to the server `where`, each in a pool of the driver that has at most this one.

    One pool of the driver for all would take a place without a connection while another place has one that is idle.
    """

    def __init__(self, places: Sequence[Pool], where: str, timeout_s: float) -> None:
        """Make a pool whose callers wait up to `timeout_s` for a connection."""
        self._places = places
        self._free = list(places)  # those that no caller has; the last one was given back last
        self._where = where
        self._timeout_s = timeout_s
        self._full_until_s = 0.0  # by the clock of the event loop
        self._is_logged = False
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PoolConnectionProxy]:
        """Give a connection. Raises the error of the driver if the pool has none and the server gives none."""
        place, db = await self._acquire()
        try:
            yield db
        finally:
            try:
                await place.release(db)
            finally:
                self._give_back(place)

    async def close(self) -> None:
        """Close the connections when their callers have given them back."""
        for place in self._places:
            await place.close()

    def terminate(self) -> None:
        """End all connections at once."""
        for place in self._places:
            place.terminate()

    async def _acquire(self) -> tuple[Pool, PoolConnectionProxy]:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._timeout_s
        failure: Exception = TimeoutError()
        while True:
            is_full = loop.time() < self._full_until_s and self._has_any()
            place = next((one for one in reversed(self._free) if one.get_idle_size()), None)
            if place is None and self._free and not is_full:
                place = self._free[-1]  # opens a connection
            if place is None:
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(self._full_until_s, end_s) if is_full else end_s):
                        await self._freed.wait()
                if loop.time() >= end_s:
                    raise failure
                continue
            self._free.remove(place)
            try:
                return place, await place.acquire(timeout=self._timeout_s)
            except BaseException as error:
                self._give_back(place)
                if not isinstance(error, _REFUSALS) or not self._has_any():
                    raise
                self._note_full(error)
                failure = error

    def _has_any(self) -> bool:
        """Return whether the pool has a connection, or is opening one."""
        return len(self._free) < len(self._places) or any(place.get_size() for place in self._places)

    def _give_back(self, place: Pool) -> None:
        self._free.append(place)
        self._freed.set()

    def _note_full(self, error: asyncpg.PostgresError) -> None:
        self._full_until_s = asyncio.get_running_loop().time() + FULL_S
        if not self._is_logged:
            self._is_logged = True
            logger.warning(
                "PostgreSQL at %s gives this process no further connection (%s), so its reads share the open ones; "
                "each process uses up to 7: raise max_connections or the CONNECTION LIMIT (of PgBouncer "
                "max_client_conn), or use fewer processes or PgBouncer (prepare=0)",
                *(self._where, str(error).partition("\n")[0]),
            )
