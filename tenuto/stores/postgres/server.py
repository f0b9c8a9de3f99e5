"""The server of a PostgreSQL store: connections to it, their pool and settings, and its errors with the remedies.

Layer: stores.

A pooler in transaction mode, such as PgBouncer, gives each transaction any session of the server. Behind one
(`?prepare=0`) the store keeps nothing in a session: each statement is in a transaction, each transaction begins with
its settings, and no statement has a name.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError, shown, shown_url
from tenuto.stores.base import unreadable
from tenuto.stores.postgres.schema import behind_pooler, grant_of_tables

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
    Connection = asyncpg.Connection[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

logger = logging.getLogger("tenuto.stores")

FULL_S = 1.0  # how long no further connection is tried after the server has refused one
_REFUSALS = (asyncpg.TooManyConnectionsError, asyncpg.ProtocolViolationError)  # PgBouncer has the second one for all
CONNECT_TIMEOUT_S = 10.0
IDLE_MS = 3_000  # a transaction whose process is suspended for this long ends, and releases its rows

UNREAD_MS = 5_000  # a session whose process takes nothing of a response for this long ends, and releases its rows

# Limits that an administrator may have set for all sessions; 0 is none.
_LIMITS = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": str(IDLE_MS),
    "tcp_user_timeout": str(UNREAD_MS),
}
# A session whose machine has vanished ends within 45 s. By default the system notices it after two hours.
_KEEPALIVE = {"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "3"}
_NEWER_LIMITS = {14: "idle_session_timeout", 17: "transaction_timeout"}  # by the release that has them first
_FILES = ("sslrootcert", "sslcert", "sslkey")
_TLS = "check sslmode, sslrootcert, sslcert and sslkey in the store URL"


class PostgresServer:
    """The server and the database that `dsn` names, for a store in `schema`.

    `is_pooled`: a pooler in transaction mode may be in between.
    """

    timeout_s = 20.0  # of one statement; the hub waits a little longer for its store

    def __init__(self, dsn: str, schema: str, *, is_pooled: bool) -> None:
        self.is_pooled = is_pooled
        self.shown = shown_url(dsn)
        self.synchronous_commit = "on"  # of each transaction behind a pooler
        self._dsn = dsn
        self._hosts = _one_by_one(dsn)  # the URL with each of its hosts alone, in the order of attempts
        self._schema = schema
        self._settings: dict[str, str] = {}  # of each session
        if not is_pooled:
            self._settings = {**_LIMITS, **_KEEPALIVE, "default_transaction_isolation": "read committed"}

    async def connect(self) -> Connection:
        """Open a connection on which no limit of an administrator ends a statement."""
        db = await self._reach(**self._options())
        newer = [name for since, name in _NEWER_LIMITS.items() if db.get_server_version().major >= since]
        if not self.is_pooled and newer[-1:] and newer[-1] not in self._settings:  # the first connection
            await db.execute("; ".join(f"SET {name} = 0" for name in newer))
            self._settings |= dict.fromkeys(newer, "0")  # earlier releases refuse a connection that names them
        return db

    async def connect_translated(self) -> Connection:
        """Open a connection as `connect` does. Raises StoreUnavailable."""
        async with self.translated():
            return await self.connect()

    async def pool(
        self, size: int, check: Callable[[Connection | PoolConnectionProxy], Awaitable[None]]
    ) -> PostgresPool:
        """Open a pool of up to `size` connections. Each is checked when it is opened, if it has one session."""
        options = self._options() if self.is_pooled else self._options() | {"init": check}
        # with a minimum, the driver logs a traceback whenever the server is away
        one: dict[str, Any] = {"min_size": 0, "max_size": 1, "reset": _keep, **options}
        one["connect"] = lambda _, **options: self._reach(**options)
        places = [await asyncpg.create_pool(self._dsn, **one) for _ in range(size)]
        return PostgresPool(places, self.shown, self.timeout_s)

    async def set_locally(self, db: Connection | PoolConnectionProxy) -> None:
        """Set what a transaction needs, for its duration."""
        settings = _LIMITS | {"synchronous_commit": self.synchronous_commit}
        await db.execute("; ".join(f"SET LOCAL {name} = '{value}'" for name, value in settings.items()))

    async def _reach(self, **options: Any) -> Connection:
        """Open a connection to the first host that gives one. A host that does not respond takes its share of the time.

        The driver has one timeout for all hosts, and one that does not respond would use all of it.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + CONNECT_TIMEOUT_S
        hosts = list(self._hosts)
        failure: Exception | None = None
        for left, host in zip(range(len(hosts), 0, -1), hosts, strict=True):  # left: hosts to try, with this one
            try:
                db: Connection = await asyncpg.connect(host, timeout=(end_s - loop.time()) / left, **options)
            except (OSError, asyncpg.CannotConnectNowError) as error:
                failure = error
            except asyncpg.TargetServerAttributeNotMatched as error:
                failure = failure or error  # an earlier failure tells more
            else:
                target = dict(parse_qsl(urlsplit(host).query)).get("target_session_attrs")
                if target in ("read-write", "primary"):  # further connections need not wait for the hosts before it
                    self._hosts = [host, *(one for one in hosts if one != host)]
                return db
        assert failure is not None
        raise failure

    def _options(self) -> dict[str, Any]:
        self._check_files()
        name = f"tenuto on {socket.gethostname()}, process {os.getpid()}"  # a server may have forked meanwhile
        settings = {"application_name": name[:63], **self._settings}
        options: dict[str, Any] = {"command_timeout": self.timeout_s, "server_settings": settings}
        return options | ({"statement_cache_size": 0} if self.is_pooled else {})

    def _role_and_database(self) -> tuple[str, str]:
        """Return the names that the driver uses: from the URL, its query, the environment, or the system."""
        url = urlsplit(self._dsn)
        query = dict(parse_qsl(url.query))
        role = unquote(url.username or "") or query.get("user") or os.environ.get("PGUSER")
        if not role:
            with suppress(KeyError, OSError):  # the process runs as a user without a name
                role = getpass.getuser()
        named = unquote(url.path[1:]) or query.get("database") or query.get("dbname") or os.environ.get("PGDATABASE")
        return role or "ROLE", named or role or "DATABASE"

    def _check_files(self) -> None:
        """Check that the files in the URL can be read; the driver's error would not name them."""
        for name, path in parse_qsl(urlsplit(self._dsn).query):
            if name in _FILES and (reason := unreadable(path)) is not None:
                raise asyncpg.ClientConfigurationError(f"{name} names {shown(path)}, which cannot be read: {reason}")

    @asynccontextmanager
    async def translated(
        self, *, late: type[StoreUnavailable] = StoreUnavailable, is_opening: bool = False
    ) -> AsyncIterator[None]:
        """Translate the errors of the driver. Raises `late` if the statement may have been carried out.

        A mistake in the settings is StoreUnusable if `is_opening`. Later it may be mended while callers try again.
        """
        refused: type[TenutoError] = StoreUnusable if is_opening else StoreUnavailable
        try:
            yield
        except asyncpg.DiskFullError as error:
            text = f"the disk of PostgreSQL at {self.shown} is full ({_reason(error)}); free space on it"
            raise StoreUnavailable(text, reason="the disk is full") from error
        except (asyncpg.PostgresError, asyncpg.InternalClientError, asyncpg.InterfaceError, OSError) as error:
            kind, text = self._translation(error, late, refused)
            raise kind(text) from error

    def _translation(
        self, error: Exception, late: type[TenutoError], refused: type[TenutoError]
    ) -> tuple[type[TenutoError], str]:
        """Return the class and the text of the error that stands for one of the driver, as `translated` says."""
        where, reason = f"PostgreSQL at {self.shown}", _reason(error)
        match error:
            case asyncpg.InvalidAuthorizationSpecificationError():
                return refused, f"{where} refused the role ({reason}); {_remedy_of_role(reason)}"
            case asyncpg.InvalidCatalogNameError():
                return refused, f"{where} has no such database ({reason}); create it first"
            case asyncpg.TooManyConnectionsError():
                remedy = "raise max_connections or the CONNECTION LIMIT of the role or database, or stop other clients"
                return StoreUnavailable, f"{where} has no connection left ({reason}); {remedy}"
            case asyncpg.ProtocolViolationError():  # of a pooler
                if "startup parameter" in str(error):
                    return refused, f"{behind_pooler(where)} ({reason})"
                return late, f"the pooler before {where} refused the connection ({reason}); check its settings"
            case asyncpg.TargetServerAttributeNotMatched():
                remedy = "promote a standby, or name the primary in the store URL"
                return StoreUnavailable, f"{where} has no host that accepts writes; {remedy}"
            case (  # by the last of these the driver has received the error of the server, and not the end
                asyncpg.PostgresConnectionError() | asyncpg.OperatorInterventionError() | asyncpg.InternalClientError()
            ):
                return late, f"{where} ended the connection ({reason}); check that the server runs"
            case asyncpg.ReadOnlySQLTransactionError():
                remedy = "set default_transaction_read_only to off for it"
                return StoreUnavailable, f"{where} is read-only for this role ({reason}); {remedy}"
            case asyncpg.InsufficientPrivilegeError():
                role, database = self._role_and_database()
                if error.severity_en == "FATAL":  # of a connection
                    remedy = f'as the owner of the database run: GRANT CONNECT ON DATABASE "{database}" TO "{role}"'
                    return refused, f"{where} refused the role ({reason}); {remedy}"
                grants = f'GRANT USAGE ON SCHEMA {self._schema} TO "{role}"; {grant_of_tables(self._schema, role)}'
                remedy = f"as the owner of the schema run: {grants}"
                return StoreUnavailable, f"{where} refused a statement ({reason}); {remedy}"
            case asyncpg.PostgresError():
                what = f"refused a statement ({error.sqlstate}: {reason}); its log has the reason"
                return StoreUnavailable, f"{where} {what}"
            case asyncpg.ClientConfigurationError():
                return refused, f"the store URL of {where} cannot be used ({reason}); {_TLS}"
            case ssl.SSLCertVerificationError():
                what = f"{where} has a certificate that is not accepted ({error.verify_message})"
                remedy = "name the file of its authority as sslrootcert in the store URL, and the host as the "
                return refused, f"{what}; {remedy}certificate does"
            case ssl.SSLError():
                return refused, f"TLS with {where} failed ({reason}); {_TLS}"
            case TimeoutError():
                waits = f"{self.timeout_s:g} s to a statement, or {CONNECT_TIMEOUT_S:g} s to a new connection"
                return late, f"{where} did not respond within {waits}; check the server"
            case _ if "rejected SSL upgrade" in str(error):
                remedy = "check host and port, and set ssl to on there, or sslmode=prefer in the store URL"
                return refused, f"{where} offers no TLS ({reason}); {remedy}"
        return late, f"{where} cannot be reached ({reason}); check its host and port, and the server"


def _one_by_one(dsn: str) -> list[str]:
    url = urlsplit(dsn)
    before, at, hosts = url.netloc.rpartition("@")
    if "," not in hosts:
        return [dsn]
    return [url._replace(netloc=f"{before}{at}{host}").geturl() for host in hosts.split(",")]


def _remedy_of_role(reason: str) -> str:
    if "no pg_hba.conf entry" not in reason:
        return "check role, password and sslmode in the store URL"
    if reason.endswith(("no encryption", "SSL off")):
        return "the server may require TLS: write sslmode=require in the store URL, or add a line to its pg_hba.conf"
    return "add a line for it to pg_hba.conf of the server"


async def _keep(db: Connection) -> None:
    """Keep the state of a session for the next use of the connection: no use changes it."""


def _reason(error: BaseException) -> str:
    """Return the first line of an error: the next ones are hints of the server, and details, which may hold data."""
    return str(error).partition("\n")[0]


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
        self._full_until_s = 0.0  # until then no further connection is opened, by the clock of the event loop
        self._has_warned = False  # True: the log has the warning of `_note_full`
        self._freed = asyncio.Event()  # set when a place is given back

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
        """Return a connection, open or new, with its place. Raises as `connection`, and TimeoutError."""
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
                return place, await place.acquire(timeout=end_s - loop.time())
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
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "PostgreSQL at %s gives this process no further connection (%s), so its reads share the open ones; "
                "each process uses up to 7: raise max_connections or the CONNECTION LIMIT (of PgBouncer "
                "max_client_conn), or use fewer processes or PgBouncer (prepare=0)",
                *(self._where, str(error).partition("\n")[0]),
            )
