"""The PostgreSQL store: the tables of one schema, for one process at a time.

Layer: stores.

All writes use one connection, which also holds the lock on the schema; reads use a few others. If the connection for
writes breaks, the next write opens another one and takes the lock again. If another process had the store in between,
this one is refused until it is started again, because the memory of its hub may be out of date.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from holdfast.core.document import Stored
from holdfast.core.errors import LocalError, StoreInUse, StoreUnavailable, StoreUnusable, shown, shown_url
from holdfast.core.model import ChannelSummary
from holdfast.stores.base import (
    Beat,
    Changes,
    Committed,
    CommitUnknown,
    Conflict,
    Facts,
    Head,
    Hold,
    Notice,
    Pruned,
    StoredPage,
    Tail,
    Write,
)
from holdfast.stores.holds import Holds, steady_ms
from holdfast.stores.postgres_log import Uncovered
from holdfast.stores.postgres_reading import PostgresReader
from holdfast.stores.postgres_schema import check_server, prepare_schema, take_lock
from holdfast.stores.postgres_writing import PostgresWriter, reload

TIMEOUT_S = 20.0  # of one statement; the hub waits a little longer for its store
CONNECT_TIMEOUT_S = 10.0
RETAKE_S = 2.0  # how long a new connection waits for the lock of the broken one
READERS = 4  # connections for reads at most

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    Pool = asyncpg.Pool[asyncpg.Record]


_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")  # needs no quotes in SQL


class PostgresStore:
    """A store in the schema `schema` of the database that `dsn` names (`postgresql://role:password@host:port/database`).

    `is_async`: commits do not wait for the disk (`synchronous_commit = off`), so a crash of the server loses the last
    ones. The store waits `lock_wait_s` seconds for another process that has it open.
    """

    name = "postgresql"
    is_exclusive = True

    def __init__(self, dsn: str, *, schema: str = "holdfast", is_async: bool = False, lock_wait_s: float = 5.0) -> None:
        if not _SCHEMA.match(schema):
            raise LocalError(
                f"schema must be 1-63 characters of a-z 0-9 _ that begin with no digit, got {shown(schema)}"
            )
        self.dsn = dsn
        self.schema = schema
        self._is_async = is_async
        self._lock_wait_s = lock_wait_s
        self._pool: Pool | None = None
        self._db: Connection | None = None  # the connection for writes
        self._session = 0  # the server's process for that connection, or for the last one
        self._writing = asyncio.Lock()
        self._opened = 0  # how often the store was opened, by any process, when this one opened it
        self._uncovered = Uncovered()
        self._holds = Holds(steady_ms())  # one process at a time has the store, so they need not be in the tables
        self._stats = {"commits": 0, "row_bytes": 0}

    async def open(self) -> None:
        """Open the store (`Store.open`)."""
        if self._pool is not None:
            return
        async with self._translated():
            self._take_over(await self._connect())
            assert self._db is not None
            try:
                await check_server(self._db, is_async=self._is_async)
                await take_lock(self._db, self.schema, wait_s=self._lock_wait_s)
                await prepare_schema(self._db, self.schema)
                self._opened = await self._db.fetchval(
                    f"UPDATE {self.schema}.store SET opened = opened + 1 RETURNING opened"
                )
                self._pool = await asyncpg.create_pool(
                    self.dsn,
                    min_size=1,
                    max_size=READERS,
                    command_timeout=TIMEOUT_S,
                    timeout=CONNECT_TIMEOUT_S,
                    server_settings=_settings(),
                )
                self._uncovered, self._holds = Uncovered(), Holds(steady_ms())
                async with self._reading() as reader:
                    self._uncovered.unsure.update(await reader.channels_with_entries())
                await self._reload_unsure()
            except BaseException:
                self._drop_connection()
                pool, self._pool = self._pool, None
                if pool is not None:
                    pool.terminate()
                raise

    async def close(self) -> None:
        """Close the store (`Store.close`)."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        async with self._writing:
            db, self._db = self._db, None
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await pool.close()
                    if db is not None:
                        await db.close()
            except Exception:
                pool.terminate()
                if db is not None:
                    db.terminate()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store the writes that do not conflict (`Store.commit`)."""
        if not writes:
            return []
        channels = [write.channel for write in writes]
        try:
            async with self._writing, self._translated(late=CommitUnknown):
                db = await self._writer()
                writer = PostgresWriter(db, self.schema, self._uncovered)
                if any(write.documents for write in writes):
                    async with db.transaction():
                        results = await writer.commit(writes)
                else:
                    results = await writer.commit(writes)
        except BaseException as error:
            self._uncovered.unsure.update(channels)
            if not isinstance(error, StoreUnavailable) or isinstance(error, CommitUnknown):
                self._drop_connection()
            raise
        stored = [write for write, result in zip(writes, results, strict=True) if isinstance(result, Committed)]
        for write in stored:
            self._uncovered.stored(write)
        self._stats["commits"] += bool(stored)
        self._stats["row_bytes"] += writer.row_bytes
        return results

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        """Return the heads of `channels` (`Store.heads`)."""
        async with self._reading() as reader:
            return await reader.heads(channels)

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        """Return the messages that changed after a serial (`Store.changes`)."""
        async with self._reading() as reader:
            return await reader.changes(channel, after, limit)

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        """Return the entries after a serial (`Store.entries`)."""
        async with self._reading() as reader:
            return await reader.entries(channel, after, limit_bytes)

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        """Return messages and commands by their ids (`Store.messages`)."""
        async with self._reading() as reader:
            return await reader.messages(channel, ids)

    async def page(
        self, channel: str, *, before: int | None, after: int | None = None, limit: int, limit_bytes: int
    ) -> StoredPage:
        """Return a page of messages (`Store.page`)."""
        async with self._reading() as reader:
            return await reader.page(channel, before, after, limit, limit_bytes)

    async def open_channels(self) -> list[str]:
        """Return the channels with open messages or commands (`Store.open_channels`)."""
        async with self._reading() as reader:
            return await reader.open_channels()

    async def open_documents(self, channel: str) -> list[Stored]:
        """Return the open documents of `channel` (`Store.open_documents`)."""
        async with self._reading() as reader:
            return await reader.open_documents(channel)

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """Empty `channel` (`Store.delete_channel`)."""
        async with self._transaction(late=CommitUnknown) as db:
            writer = PostgresWriter(db, self.schema, self._uncovered)
            result = await writer.delete_channel(channel, expected, used_up, until_ms)
        if isinstance(result, Head) and (expected.serial or used_up):
            self._uncovered.forget(channel)
        return result

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        """Return the names of channels that are not empty (`Store.channels`)."""
        async with self._reading() as reader:
            return await reader.names(after, limit)

    async def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        """Return a list of channels (`Store.summaries`)."""
        async with self._reading() as reader:
            return await reader.summaries(within, after, limit)

    async def newest_ms(self) -> int:
        """Return the time of the latest change (`Store.newest_ms`)."""
        async with self._reading() as reader:
            return await reader.newest_ms()

    async def facts(self, channel: str, *, after: int, limit: int) -> Facts:
        """Return facts for retention (`Store.facts`)."""
        async with self._reading() as reader:
            return await reader.facts(channel, after, limit)

    async def prune(self, channel: str, *, epoch: str, versions: Mapping[str, int]) -> Pruned:
        """Remove messages and commands (`Store.prune`)."""
        async with self._transaction(late=CommitUnknown) as db:
            return await PostgresWriter(db, self.schema, self._uncovered).prune(channel, epoch, versions)

    async def commands(self, channel: str, *, after: str | None, limit: int) -> list[str]:
        """Return the ids of commands (`Store.commands`)."""
        async with self._reading() as reader:
            return await reader.commands(channel, after, limit)

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the hub's notes under a prefix (`Store.notes`)."""
        async with self._reading() as reader:
            return await reader.notes(prefix)

    async def note(self, values: Mapping[str, bytes | None]) -> None:
        """Keep or delete notes of the hub (`Store.note`)."""
        async with self._transaction(late=CommitUnknown) as db:
            await PostgresWriter(db, self.schema, self._uncovered).note(list(values), list(values.values()))

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Beat:
        """Renew the lease of a node, and put or drop holds (`Store.hold`)."""
        return self._holds.hold(node, term_ms, values)

    async def holds(self, prefix: str) -> Mapping[str, tuple[str, Hold]]:
        """Return the holds under a prefix (`Store.holds`)."""
        return self._holds.holds(prefix)

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send no notice: one process has the store (`Store.notify`)."""

    def listen(self, on_notice: Callable[[Notice | None], None]) -> None:
        """Do nothing: no other process sends a notice (`Store.listen`)."""

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """Do a round of housekeeping (`Store.tidy`)."""
        async with self._transaction() as db:
            await PostgresWriter(db, self.schema, self._uncovered).tidy(now_ms)
        await self._reload_unsure()
        return self._uncovered.due(now_ms)

    async def wipe(self) -> None:
        """Return None: PostgreSQL removes deleted rows itself, and its WAL keeps them (`Store.wipe`)."""

    def stats(self) -> dict[str, int]:
        """Return counters since the store was made (`Store.stats`)."""
        return dict(self._stats)

    # -- connections ---------------------------------------------------------------------------------------------

    async def _connect(self) -> Connection:
        return await asyncpg.connect(
            self.dsn, command_timeout=TIMEOUT_S, timeout=CONNECT_TIMEOUT_S, server_settings=_settings()
        )

    async def _writer(self) -> Connection:
        """Return the connection for writes; opens another one if the last one broke. Raises StoreInUse."""
        if self._pool is None:
            raise LocalError(f"store {shown_url(self.dsn)} is not open; call open() first")
        if self._db is None or self._db.is_closed():
            db = await self._connect()
            try:
                await check_server(db, is_async=self._is_async)
                await db.execute("SELECT pg_terminate_backend($1)", self._session)  # it may still hold the lock
                await take_lock(db, self.schema, wait_s=RETAKE_S)
                opened = await db.fetchval(f"SELECT opened FROM {self.schema}.store")
                if opened != self._opened:
                    raise StoreInUse(
                        f"another process opened the store in schema {self.schema!r} while this one had no connection "
                        "to PostgreSQL; restart this process"
                    )
            except BaseException:
                db.terminate()
                raise
            self._take_over(db)
        assert self._db is not None
        return self._db

    def _take_over(self, db: Connection) -> None:
        self._db = db
        self._session = db.get_server_pid()

    def _drop_connection(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    @asynccontextmanager
    async def _transaction(self, *, late: type[StoreUnavailable] = StoreUnavailable) -> AsyncIterator[Connection]:
        try:
            async with self._writing, self._translated(late=late):
                db = await self._writer()
                async with db.transaction():
                    yield db
        except BaseException as error:
            if not isinstance(error, StoreUnavailable) or isinstance(error, CommitUnknown):
                self._drop_connection()
            raise

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[PostgresReader]:
        if self._pool is None:
            raise LocalError(f"store {shown_url(self.dsn)} is not open; call open() first")
        async with (
            self._translated(),
            self._pool.acquire(timeout=TIMEOUT_S) as db,
            db.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield PostgresReader(db, self.schema)

    async def _reload_unsure(self) -> None:
        """Read again which entries of the unsure channels no document contains."""
        for channel in sorted(self._uncovered.unsure):
            async with self._transaction() as db:
                await reload(db, self.schema, self._uncovered, channel)

    @asynccontextmanager
    async def _translated(self, *, late: type[StoreUnavailable] = StoreUnavailable) -> AsyncIterator[None]:
        """Translate the errors of the driver. Raises `late` if the statement may have been carried out."""
        where = shown_url(self.dsn)
        try:
            yield
        except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            raise StoreUnusable(
                f"PostgreSQL at {where} refused the role ({error}); check role, password and sslmode in the store URL"
            ) from error
        except asyncpg.InvalidCatalogNameError as error:
            raise StoreUnusable(f"PostgreSQL at {where} has no such database ({error}); create it first") from error
        except asyncpg.TooManyConnectionsError as error:
            raise StoreUnavailable(
                f"PostgreSQL at {where} has no connection left ({error}); raise max_connections, or stop other clients"
            ) from error
        except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError) as error:
            raise late(f"PostgreSQL at {where} ended the connection ({error}); check that the server runs") from error
        except asyncpg.DiskFullError as error:
            raise StoreUnavailable(f"the disk of PostgreSQL at {where} is full ({error}); free space on it") from error
        except asyncpg.PostgresError as error:
            raise StoreUnavailable(
                f"PostgreSQL at {where} refused a statement ({error.sqlstate}: {error}); its log has the reason"
            ) from error
        except TimeoutError as error:
            raise late(f"PostgreSQL at {where} did not respond within {TIMEOUT_S:g} s; check the server") from error
        except (asyncpg.InterfaceError, OSError) as error:
            raise late(
                f"PostgreSQL at {where} cannot be reached ({error}); check its host and port, and the server"
            ) from error


def _settings() -> dict[str, str]:
    """Return the settings of each session: a name, and no limit that an administrator sets for all sessions."""
    name = f"holdfast on {socket.gethostname()}, process {os.getpid()}"
    return {
        "application_name": name[:63],
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
    }
