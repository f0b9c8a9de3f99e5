"""The PostgreSQL store: the tables of one schema, which several processes share.

Layer: stores.

Writes use one connection, reads and holds a few others, and notices one of their own. Commits are conditional, so an
instance needs no lock on the schema: if a connection breaks, the next call opens another one.

Notices go by LISTEN and NOTIFY. PostgreSQL holds a lock of the whole server while it commits a NOTIFY, so no
transaction that writes sends one. A payload takes less than 8,000 bytes; it carries as many notices as fit. Their
connection sends a notice to itself every few seconds. If that does not arrive, the connection is broken, or a pooler
such as PgBouncer in transaction mode is in between. Then hubs find one another's entries when they read the heads, once
in a second.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import asyncpg
import msgspec

from tenuto.core.errors import LocalError, StoreUnavailable, StoreUnusable, TenutoError, shown
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Head, Hold, Notice, Renewal, Write
from tenuto.stores.postgres.schema import StoreLife, check_room, check_server, prepare_schema, read_holds, renew
from tenuto.stores.postgres.server import PostgresPool, PostgresServer
from tenuto.stores.postgres.statements import PostgresReader, PostgresWriter, Uncovered

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Transaction = asyncpg.transaction.Transaction


logger = logging.getLogger("tenuto.stores")

PAYLOAD_BYTES = 7_900  # PostgreSQL refuses a payload of 8,000 bytes
_RAW_BYTES = PAYLOAD_BYTES // 4 * 3 - 5  # in base64, and less the length of the list
CHECK_S = 10.0  # time between two notices of the connection to itself
CHECK_TIMEOUT_S = 5.0
RETRY_S = (0.5, 30.0)  # shortest and longest wait before the connection is opened again

# The commit of a notice waits for no disk. The setting ends with the statement, so a pooler passes it on to no commit.
_NOTIFY = """
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, p) FROM unnest($2::text[]) AS p
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Notice]).decode

OnNotice = Callable[[Notice | None], None]
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TenutoError)


def payloads_of(notices: Sequence[Notice]) -> Iterator[str]:
    """Yield the payloads that carry `notices`, in order. A notice that is too large for a payload is left out."""
    batch: list[msgspec.Raw] = []
    size_bytes = 0
    for notice in notices:
        raw = msgspec.Raw(_encode(notice))
        if len(raw) > _RAW_BYTES:
            continue
        if size_bytes + len(raw) > _RAW_BYTES:
            yield base64.b64encode(_encode(batch)).decode()
            batch, size_bytes = [], 0
        batch.append(raw)
        size_bytes += len(raw)
    if batch:
        yield base64.b64encode(_encode(batch)).decode()


class PostgresNotices:
    """The connection for notices of one open store. The first `listen` opens it; it is opened again if it breaks."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], name: str) -> None:
        """Make the notices of the instances that listen to `name` (of LISTEN); `connect` opens a connection."""
        self._connect = connect
        self._name = name
        self._listeners: list[OnNotice] = []
        self._task: asyncio.Task[None] | None = None  # keeps the connection open
        self._db: Connection | None = None  # the connection while it listens
        self._busy = asyncio.Lock()  # a connection carries out one statement at a time
        self._is_delivered = asyncio.Event()  # set by the notice of the connection to itself
        self._pause_s = RETRY_S[0]  # before the connection is opened again

    def listen(self, on_notice: OnNotice) -> None:
        """Call `on_notice` with each notice of other instances (`Notices.listen`)."""
        self._listeners.append(on_notice)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._db is not None:
            on_notice(None)

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send `notices` (`Notices.notify`). They are lost while the connection is broken, or was not asked for."""
        payloads = list(payloads_of(notices))
        if payloads and self._db is not None:
            await self._send(self._db, self._name, payloads)

    async def close(self) -> None:
        """Close the connection, and call the listeners no more."""
        task, self._task = self._task, None
        self._listeners.clear()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _send(self, db: Connection, name: str, payloads: Sequence[str]) -> None:
        """Send notices. A failure ends the connection, and so does a caller that stops waiting for its own response."""
        async with self._busy:
            try:
                await db.execute(_NOTIFY, name, payloads)
            except BaseException as error:
                db.terminate()  # `_run` opens another one
                if not isinstance(error, _FAILURES):
                    raise

    async def _run(self) -> None:
        """Keep a connection that listens, until this task is cancelled."""
        while True:
            try:
                db = await self._connect()
                try:
                    await self._serve(db)
                finally:
                    self._db = None
                    db.terminate()
                logger.info("the connection to PostgreSQL for notices ended; it is opened again")
            except _FAILURES as error:
                logger.warning(
                    "notices of other nodes do not arrive, and text of other nodes is a second late; "
                    "the store tries again in %g s: %s",
                    *(self._pause_s, error or type(error).__name__),
                )
            except Exception:
                logger.exception("the connection to PostgreSQL for notices failed; it is opened again")
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    async def _serve(self, db: Connection) -> None:
        """Listen until the connection ends. Raises ConnectionError if notices do not arrive on it."""
        ended = asyncio.Event()
        db.add_termination_listener(lambda _: ended.set())
        pid = db.get_server_pid()  # kept: an ended connection does not know it any more
        own = f"{self._name}_{pid}"
        await db.add_listener(self._name, partial(self._receive, pid))
        await db.add_listener(own, lambda *_: self._is_delivered.set())
        self._db = db
        self._notify(None)  # earlier notices may have been missed
        while not ended.is_set():
            self._is_delivered.clear()
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await self._send(db, own, [""])
                    await self._is_delivered.wait()
            except TimeoutError:
                if db.is_closed():
                    return
                raise ConnectionError(
                    "PostgreSQL does not deliver a notice on this connection; if a pooler in transaction mode is in "
                    "between, name the server itself in the store URL"
                ) from None
            self._pause_s = RETRY_S[0]
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await ended.wait()

    def _receive(self, own_pid: int, db: object, pid: int, name: str, payload: object) -> None:
        if pid == own_pid:
            return  # this instance has sent it
        try:
            notices = _decode(base64.b64decode(str(payload)))
        except ValueError:  # of another version of Tenuto
            self._notify(None)
            return
        for notice in notices:
            self._notify(notice)

    def _notify(self, notice: Notice | None) -> None:
        for on_notice in list(self._listeners):
            on_notice(notice)


READERS = 4  # connections for reads at most; the pool has one more, so that renewals of the lease do not wait for them
LOCKED_S = (0.002, 0.05)  # shortest and longest pause after a commit that met a locked row
CONNECTIONS = READERS + 3  # of a process at most: also one for writes, and one for notices
RELOADED = 500  # channels that one call of `tidy` reads again at most


P = ParamSpec("P")
T = TypeVar("T")


def _read(
    method: Callable[Concatenate[PostgresReader, P], Coroutine[Any, Any, T]], *, is_one_statement: bool = False
) -> Callable[Concatenate[PostgresStore, P], Coroutine[Any, Any, T]]:
    """Return the same method of a store: it reads in a transaction of its own, which one statement need not have."""

    @wraps(method)
    async def call(self: PostgresStore, /, *args: P.args, **fields: P.kwargs) -> T:
        async with self._reading(is_one_statement=is_one_statement) as reader:
            return await method(reader, *args, **fields)

    return call


_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")  # needs no quotes in SQL


class PostgresStore:
    """A store in the schema `schema` of the database that `dsn` names (`postgresql://role:password@host:port/database`).

    `is_async`: commits do not wait for the disk (`synchronous_commit = off`), so a crash of the server loses the last
    ones. `is_pooled`: a pooler in transaction mode may be in between, so the store sends and receives no notices.
    """

    name = "postgresql"
    is_exclusive = False

    heads = _read(PostgresReader.heads, is_one_statement=True)
    entries = _read(PostgresReader.entries, is_one_statement=True)
    changes = _read(PostgresReader.changes)
    messages = _read(PostgresReader.messages)
    page = _read(PostgresReader.page)
    open_channels = _read(PostgresReader.open_channels)
    open_documents = _read(PostgresReader.open_documents)
    channels = _read(PostgresReader.channels)
    summaries = _read(PostgresReader.summaries)
    newest_ms = _read(PostgresReader.newest_ms)
    facts = _read(PostgresReader.facts)
    commands = _read(PostgresReader.commands)
    notes = _read(PostgresReader.notes)

    def __init__(self, dsn: str, *, schema: str = "tenuto", is_async: bool = False, is_pooled: bool = False) -> None:
        if not _SCHEMA.match(schema):
            raise LocalError(
                f"schema must be 1-63 characters of a-z 0-9 _ that begin with no digit, got {shown(schema)}"
            )
        self.dsn = dsn
        self.schema = schema
        self._is_async = is_async
        self._server = PostgresServer(dsn, schema, is_pooled=is_pooled)
        self._pool: PostgresPool | None = None  # connections for reads and renewals
        self._db: Connection | None = None  # the connection for writes
        # the server's process for that connection, or for the last one, with its start
        self._session: tuple[int, object] = (0, None)
        self._writing = asyncio.Lock()  # held by the caller that has `_db`
        self._reads = asyncio.Semaphore(READERS)  # a place for each read that runs
        self._notices: PostgresNotices | None = None
        self._life = StoreLife(schema, self._server.shown)
        self._uncovered = Uncovered()  # messages with entries after their documents, as far as this store knows
        self._ended = ("", 0)  # at the last renewal: the lease, and the number of leases that had ended
        self._is_scan_due = True  # a node may have left entries that no instance tracks
        self._left_out: dict[str, int] = {}  # channels whose entries could not be read, with the number of attempts
        self._locked = 0  # commits in a row that met a locked row
        self._stats = {"commits": 0, "row_bytes": 0}
        self.notices_name = ""  # the secret name of its notices, once the store was opened; a bus uses it, too

    async def open(self) -> None:
        """Open the store (`Store.open`)."""
        if self._pool is not None:
            return
        server = self._server
        async with server.translated(is_opening=True):
            db = await server.connect()
            try:
                async with AsyncExitStack() as stack:
                    if server.is_pooled:
                        await stack.enter_async_context(_in_one_session(db))
                    server.synchronous_commit = await check_server(
                        db, is_async=self._is_async, is_pooled=server.is_pooled
                    )
                    await self._take_over(db)
                    await prepare_schema(db, self.schema)
                    self._life = StoreLife(self.schema, server.shown)
                    await self._life.begin(db)
                    self.notices_name = self._life.notices_name
                    if not server.is_pooled:
                        await check_room(db, self.schema, CONNECTIONS)
                self._pool = await server.pool(READERS + 1, self._life.check)
                self._uncovered, self._is_scan_due = Uncovered(), True
                if not server.is_pooled:
                    self._notices = PostgresNotices(server.connect_translated, self.notices_name)
            except BaseException:
                db.terminate()
                self._db = None
                pool, self._pool = self._pool, None
                if pool is not None:
                    pool.terminate()
                raise

    async def close(self) -> None:
        """Close the store (`Store.close`)."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            if self._notices is not None:
                await self._notices.close()
            with suppress(Exception):
                async with asyncio.timeout(self._server.timeout_s), self._writing:
                    await pool.close()
                    if self._db is not None:
                        await self._db.close()
        finally:  # also if the time is over, or the caller stops waiting
            pool.terminate()
            self._drop_connection()

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store the writes that do not conflict (`Store.commit`)."""
        if not writes:
            return []
        try:
            async with self._connection(late=CommitUnknown) as db:
                writer = PostgresWriter(db, self.schema, self._life.name, self._uncovered)
                if self._server.is_pooled or any(write.documents or not write.expected for write in writes):
                    async with _in_one_session(db):  # these writes may take several statements
                        await self._begin(db)
                        results = await writer.commit(writes)
                else:
                    results = await writer.commit(writes)
        except BaseException:
            self._uncovered.unsure.update(write.channel for write in writes)
            raise
        stored = [write for write, result in zip(writes, results, strict=True) if isinstance(result, Committed)]
        for write in stored:
            self._uncovered.stored(write)
        self._stats["commits"] += bool(stored)
        self._stats["row_bytes"] += writer.row_bytes
        await self._pause_if_locked(writes, results)
        return results

    async def delete_channel(
        self, channel: str, *, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """Empty `channel` (`Store.delete_channel`)."""
        async with self._transaction(late=CommitUnknown) as writer:
            result = await writer.delete_channel(channel, expected, used_up, until_ms)
        if isinstance(result, Head) and (expected.serial or used_up):  # else it was empty, or is unchanged
            self._uncovered.forget(channel)
        return result

    async def prune(self, channel: str, *, epoch: str, versions: Mapping[str, int]) -> list[str]:
        """Remove messages and commands (`Store.prune`)."""
        async with self._transaction(late=CommitUnknown) as writer:
            return await writer.prune(channel, epoch, versions)

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        """Keep or delete notes of the hub (`Store.note`)."""
        async with self._transaction(late=CommitUnknown) as writer:
            return await writer.note(values, expected or {})

    async def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """Renew the lease of a node, and put or drop holds (`SharedStore.hold`)."""
        async with self._pooled_transaction(is_renewal=True) as db:
            if not self._server.is_pooled:  # else `_begin` has checked
                await self._life.check_stored(db)
            renewal = await renew(db, self.schema, node, term_ms, values)
        ended = (renewal.lease, renewal.ended)  # a crash of the server ends all leases, and the number begins anew
        self._is_scan_due |= ended != self._ended  # a node that ended may have left entries that no instance tracks
        self._ended = ended
        return renewal

    async def holds(self, prefix: str) -> Mapping[str, tuple[str, Hold]]:
        """Return the holds under a prefix (`SharedStore.holds`)."""
        async with self._pooled_transaction(readonly=True) as db:
            return await read_holds(db, self.schema, prefix)

    async def notify(self, notices: Sequence[Notice]) -> None:
        """Send notices to the other instances (`Notices.notify`)."""
        if self._notices is not None:
            await self._notices.notify(notices)

    def listen(self, on_notice: Callable[[Notice | None], None]) -> None:
        """Call `on_notice` with each notice of the other instances (`Notices.listen`)."""
        self._open_pool()
        if self._notices is not None:
            self._notices.listen(on_notice)
        else:
            logger.warning(
                "the store URL has prepare=0, so notices of other nodes do not arrive: their text is up to a second "
                "late, and their signals are lost; a bus carries both (bus= of the hub)"
            )

    async def tidy(self, now_ms: int) -> list[tuple[str, str]]:
        """Do a round of housekeeping (`Store.tidy`)."""
        async with self._transaction() as writer:
            await writer.tidy(now_ms)
        if self._is_scan_due:
            ended = self._ended
            async with self._reading() as reader:
                self._uncovered.note_channels(await reader.channels_with_entries())
            self._is_scan_due = ended != self._ended  # True: a node has ended meanwhile
        await self._reload_unsure()
        due = self._uncovered.due(now_ms)
        if due:  # another instance may have stored their documents
            channels = sorted({channel for channel, _ in due})
            self._uncovered.note_heads(dict(zip(channels, await self.heads(channels), strict=True)))
            await self._reload_unsure()
            due = [one for one in self._uncovered.due(now_ms) if one[0] not in self._uncovered.unsure]
        return due

    async def wipe(self, *, goes_on: bool = False) -> None:
        """Return None: PostgreSQL removes deleted rows itself, and its WAL keeps them (`Store.wipe`)."""

    def stats(self) -> dict[str, int]:
        """Return counters since the store was made (`Store.stats`)."""
        return dict(self._stats)

    # -- connections ---------------------------------------------------------------------------------------------

    def _open_pool(self) -> PostgresPool:
        if self._pool is None:
            raise LocalError(f"store {self._server.shown} is not open; call open() first")
        self._life.require()
        return self._pool

    async def _writer(self) -> Connection:
        """Return the connection for writes; opens another one if the last one broke."""
        self._open_pool()
        if self._db is None or self._db.is_closed():
            async with self._server.translated():  # of a commit that waits for it, nothing is stored
                await self._open_writer()
            self._open_pool()  # raises if the store was closed meanwhile
        assert self._db is not None
        return self._db

    async def _open_writer(self) -> None:
        """Open the connection for writes, and end the session of the last one."""
        db = await self._server.connect()
        if self._server.is_pooled:  # each transaction is checked
            self._db = db
            return
        try:
            await check_server(db, is_async=self._is_async)
            await self._life.check(db)
            # the last one may still carry out a statement whose result is unknown
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2",
                *self._session,
            )
            await self._take_over(db)
        except BaseException as error:
            db.terminate()
            if isinstance(error, StoreUnusable):  # such as a standby that is about to be promoted
                raise StoreUnavailable(str(error)) from error
            raise

    async def _take_over(self, db: Connection) -> None:
        """Make `db` the connection for writes, and note its session, which the next one ends (`_open_writer`)."""
        if self._server.is_pooled:
            await self._server.set_locally(db)
        started = await db.fetchval("SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        self._db, self._session = db, (db.get_server_pid(), started)

    def _drop_connection(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    @asynccontextmanager
    async def _connection(self, *, late: type[StoreUnavailable]) -> AsyncIterator[Connection]:
        """Give the connection for writes to one caller at a time. It is dropped if a call on it breaks off.

        A caller that stops waiting for it has not used it: it must not break off the call of another one.
        """
        async with self._writing:
            try:
                async with self._server.translated(late=late):
                    yield await self._writer()
            except BaseException as error:
                if not isinstance(error, StoreUnavailable) or isinstance(error, CommitUnknown):
                    self._drop_connection()
                raise

    @asynccontextmanager
    async def _transaction(self, *, late: type[StoreUnavailable] = StoreUnavailable) -> AsyncIterator[PostgresWriter]:
        """Give a writer in a transaction. Raises StoreReplaced, and `late` if the transaction may be stored."""
        async with self._connection(late=late) as db, _in_one_session(db):
            await self._begin(db)
            if not self._server.is_pooled:  # else `_begin` has checked
                await self._life.check_stored(db)
            yield PostgresWriter(db, self.schema, self._life.name, self._uncovered)

    @asynccontextmanager
    async def _pooled(self, *, is_renewal: bool = False) -> AsyncIterator[PoolConnectionProxy]:
        """Give a connection of the pool. It is dropped after an error, because a lost one is silent.

        At most `READERS` callers have one, beside a renewal: viewers that attach at once must not delay renewals.
        """
        async with self._server.translated(), AsyncExitStack() as slot:
            if not is_renewal:
                async with asyncio.timeout(self._server.timeout_s):
                    await slot.enter_async_context(self._reads)
            async with self._open_pool().connection() as db:
                try:
                    yield db
                except BaseException:
                    with suppress(asyncpg.InterfaceError):  # the connection is lost, so the pool has taken it back
                        db.terminate()
                    raise

    @asynccontextmanager
    async def _pooled_transaction(
        self, *, is_renewal: bool = False, **options: Any
    ) -> AsyncIterator[PoolConnectionProxy]:
        """Give a connection of the pool in a transaction, which ends with the connection if there is an error.

        With ROLLBACK a caller whose time is over would wait for a response.
        """
        async with self._pooled(is_renewal=is_renewal) as db:
            transaction = db.transaction(**{"isolation": "read_committed", **options})
            await transaction.start()
            await self._begin(db)
            yield db
            await transaction.commit()

    async def _begin(self, db: Connection | PoolConnectionProxy) -> None:
        """Begin a transaction behind a pooler, which may have led it to any session, or to another server."""
        if self._server.is_pooled:
            await self._server.set_locally(db)
            await self._life.check_transaction(db)

    @asynccontextmanager
    async def _reading(self, *, is_one_statement: bool = False) -> AsyncIterator[PostgresReader]:
        """Give a reader in a transaction, which one statement needs behind a pooler only."""
        needs_transaction = self._server.is_pooled or not is_one_statement
        options: dict[str, Any] = {"isolation": "repeatable_read", "readonly": True}
        async with self._pooled_transaction(**options) if needs_transaction else self._pooled() as db:
            yield PostgresReader(db, self.schema, self._life.name)

    async def _reload_unsure(self) -> None:
        """Read again which entries of unsure channels no document contains, first of those with the fewest attempts."""
        unsure = self._uncovered.unsure
        attempts = self._left_out = {one: count for one, count in self._left_out.items() if one in unsure}
        for channel in sorted(unsure, key=lambda one: (attempts.get(one, 0), one))[:RELOADED]:
            async with self._transaction() as writer:
                try:
                    await writer.reload(channel)
                except StoreUnusable as error:  # it stays unsure, and keeps its entries
                    if channel not in attempts:
                        logger.warning("channel %r is left out of the housekeeping: %s", channel, error)
                    attempts[channel] = attempts.get(channel, 0) + 1

    async def _pause_if_locked(self, writes: Sequence[Write], results: Sequence[Committed | Conflict]) -> None:
        """Wait a moment if another instance had a channel locked: the caller finds nothing new, and tries again."""
        pairs = zip(writes, results, strict=True)
        if any(isinstance(result, Conflict) and write.fits(result.head) for write, result in pairs):
            shortest_s, longest_s = LOCKED_S
            await asyncio.sleep(min(shortest_s * 2 ** min(self._locked, 10), longest_s))
            self._locked += 1
        else:
            self._locked = 0


def _in_one_session(db: Connection) -> Transaction:
    """Return a transaction of a writer: behind a pooler, its statements reach one session."""
    return db.transaction(isolation="read_committed")
