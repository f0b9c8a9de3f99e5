"""The tables of the PostgreSQL store, and the checks of a server before the store uses it.

Layer: stores.

All tables stand in a schema of their own. `channels` has one row per channel, which each commit updates in place: no
index contains a column that an append changes, so PostgreSQL keeps the update on its page (HOT). These columns stand
side by side, so that the WAL contains only them (`statements`).

`store.version` is the version of the tables. A start makes them in an empty schema, in one transaction under an
advisory lock, and refuses those of another version.

The leases of nodes and their holds stand in UNLOGGED tables: a renewal costs no write-ahead log, and a crash or a
failover of the server empties them. Then a new `opening` is drawn, so the lease of each node has another name, and the
node puts its holds again. Each call locks the row of `leases`, so calls follow one another. Times are those of the
server's clock.

A promoted standby and a restored backup may lack commits that viewers have seen. The store notes to which history of
the server it belongs, and each new connection compares. The first that finds another history begins another life. In
that life each channel has another epoch, which its row stores with the next entry; no failover writes to all rows. The
notices of a life have a secret name of their own: a copy of a database and its original may share a bus.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import asyncpg

from tenuto.core.errors import StoreUnavailable, StoreUnusable
from tenuto.stores.base import OVER_MS, Hold, Renewal, StoreReplaced

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    Db = Connection | PoolConnectionProxy


_HOLD_TABLES = """
CREATE UNLOGGED TABLE {schema}.leases (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  opening text NOT NULL,
  begun bigint NOT NULL DEFAULT 0,
  ended bigint NOT NULL DEFAULT 0
);
CREATE UNLOGGED TABLE {schema}.nodes (
  node text COLLATE "C" PRIMARY KEY, until_ms bigint NOT NULL, life bigint NOT NULL, is_over boolean NOT NULL
);
CREATE UNLOGGED TABLE {schema}.holds (
  name text COLLATE "C" PRIMARY KEY, node text COLLATE "C" NOT NULL, value bytea NOT NULL, until_ms bigint
);
"""

# A renewal whose process stops in the middle ends after this time: those of all other nodes wait for it, at most for
# two seconds (`RENEW_TIMEOUT_S` in `hub/nodes.py`).
STOPPED_MS = 1_000

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_BEGIN = f"""
INSERT INTO {{schema}}.leases AS l (opening) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET opening = l.opening
  RETURNING opening, begun, ended, {_NOW_MS} AS now_ms,
    set_config('idle_in_transaction_session_timeout', '{STOPPED_MS}', true)
"""
_READ_NODES = """
WITH gone AS (DELETE FROM {schema}.nodes WHERE until_ms <= $1)
SELECT node, life, is_over, until_ms <= $1 AS is_gone FROM {schema}.nodes
"""
_DROP_ENDED = """
DELETE FROM {schema}.holds WHERE until_ms <= $1 OR (until_ms IS NULL AND node <> ALL($2::text[]))
"""
_COUNT = "UPDATE {schema}.leases SET begun = $1, ended = $2 WHERE (begun, ended) <> ($1, $2)"
# All changes are one statement: the other nodes wait for this call, and the call for a process that may be busy.
_PUT = """
WITH dropped AS (
  DELETE FROM {schema}.holds WHERE name <> ALL($8::text[]) AND (
    until_ms <= $6 OR (until_ms IS NULL AND node <> ALL($7::text[])) OR (node = $3 AND name = ANY($11::text[])))
), put AS (
  INSERT INTO {schema}.holds SELECT name, $3, value, until_ms
    FROM unnest($8::text[], $9::bytea[], $10::bigint[]) AS p (name, value, until_ms)
    ON CONFLICT (name) DO UPDATE SET node = excluded.node, value = excluded.value, until_ms = excluded.until_ms
), renewed AS (
  INSERT INTO {schema}.nodes VALUES ($3, $4, $5, $12)
    ON CONFLICT (node) DO UPDATE SET until_ms = excluded.until_ms, life = excluded.life, is_over = excluded.is_over
)
"""  # `_COUNT` follows
_READ = f"""
WITH t AS MATERIALIZED (SELECT {_NOW_MS} AS now_ms)
SELECT h.name, h.node, h.value, h.until_ms FROM t, {{schema}}.holds h LEFT JOIN {{schema}}.nodes n USING (node)
  WHERE starts_with(h.name, $1)
    AND CASE WHEN h.until_ms IS NULL THEN NOT n.is_over AND n.until_ms > t.now_ms ELSE h.until_ms > t.now_ms END
  ORDER BY h.name
"""


async def renew(db: Db, schema: str, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
    """Renew the lease of `node`, and put or drop holds (`SharedStore.hold`), inside the transaction of the caller."""
    counts = await db.fetchrow(_BEGIN.format(schema=schema), secrets.token_hex(4))
    assert counts is not None
    now_ms, begun, ended = counts["now_ms"], counts["begun"], counts["ended"]
    rows = await db.fetch(_READ_NODES.format(schema=schema), now_ms)
    ended += sum(row["is_gone"] and not row["is_over"] for row in rows)
    leases = {row["node"]: row for row in rows if not row["is_gone"]}
    living = {name for name, row in leases.items() if not row["is_over"]}
    if node in leases and node not in living:  # a node that has ended its lease does not get it back
        await db.execute(_DROP_ENDED.format(schema=schema), now_ms, list(living))
        await db.execute(_COUNT.format(schema=schema), begun, ended)
        return Renewal(now_ms, frozenset(living), "", ended)
    begun += node not in living  # its lease begins now
    ended += not term_ms  # a term of 0 ends it
    number = leases[node]["life"] if node in living else begun  # names the lease
    put = {name: hold for name, hold in values.items() if hold is not None}
    await db.execute(
        (_PUT + _COUNT).format(schema=schema),
        begun,
        ended,
        node,
        now_ms + (term_ms or OVER_MS),
        number,
        now_ms,
        list(living),  # without a node whose lease begins: it does not get the holds of an earlier one back
        list(put),
        [hold.value for hold in put.values()],
        [hold.until_ms for hold in put.values()],
        [name for name in values if name not in put],
        not term_ms,
    )
    if term_ms:
        living.add(node)
    else:
        living.discard(node)
        await db.execute(_DROP_ENDED.format(schema=schema), now_ms, list(living))
    return Renewal(now_ms, frozenset(living), f"{counts['opening']}:{number}", ended)


async def read_holds(db: Db, schema: str, prefix: str) -> dict[str, tuple[str, Hold]]:
    """Return the holds that have not ended, with their nodes (`SharedStore.holds`)."""
    rows = await db.fetch(_READ.format(schema=schema), prefix)
    return {row["name"]: (row["node"], Hold(row["value"], row["until_ms"])) for row in rows}


logger = logging.getLogger("tenuto.stores")

OLDEST_SERVER = 130_000  # PostgreSQL 13, as `server_version_num` gives it
VERSION = 1  # of the tables
WEAK = ("off", "local", "remote_write")  # values of `synchronous_commit` that are weaker than "on"

_TABLES = (
    """
CREATE TABLE {schema}.store (version int NOT NULL, notices text, history text, life text NOT NULL DEFAULT '');
INSERT INTO {schema}.store VALUES ({version}, 'tenuto_' || replace(gen_random_uuid()::text, '-', ''));
CREATE TABLE {schema}.channels (
  name text COLLATE "C" PRIMARY KEY,
  id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  epoch text NOT NULL,
  floor bigint NOT NULL DEFAULT 0,
  has_tail boolean NOT NULL,
  serial bigint NOT NULL,
  tail bytea NOT NULL,
  life text NOT NULL DEFAULT ''
) WITH (fillfactor = 50);
CREATE INDEX channels_with_tail ON {schema}.channels (id) WHERE has_tail;
CREATE TABLE {schema}.times (channel bigint PRIMARY KEY, created_ms bigint NOT NULL, updated_ms bigint NOT NULL);
CREATE TABLE {schema}.tails (channel bigint, last bigint, body bytea NOT NULL, PRIMARY KEY (channel, last));
CREATE TABLE {schema}.documents (
  channel bigint,
  message text COLLATE "C",
  created bigint NOT NULL,
  version bigint NOT NULL,
  is_open boolean NOT NULL,
  is_deleted boolean NOT NULL,
  size_bytes bigint NOT NULL,
  head bytea NOT NULL,
  target text COLLATE "C",
  until_ms bigint,
  PRIMARY KEY (channel, message)
);
CREATE INDEX documents_created ON {schema}.documents (channel, created) WHERE created > 0;
CREATE INDEX documents_version ON {schema}.documents (channel, version);
CREATE INDEX documents_open ON {schema}.documents (channel) WHERE is_open;
CREATE INDEX documents_target ON {schema}.documents (channel, target) WHERE target IS NOT NULL;
CREATE INDEX documents_until ON {schema}.documents (until_ms) WHERE until_ms IS NOT NULL AND NOT is_open;
CREATE TABLE {schema}.texts (
  channel bigint, message text COLLATE "C", version bigint, body bytea NOT NULL, PRIMARY KEY (channel, message, version)
);
CREATE TABLE {schema}.used_up (
  channel text COLLATE "C", message text COLLATE "C", until_ms bigint NOT NULL, PRIMARY KEY (channel, message)
);
CREATE INDEX used_up_until ON {schema}.used_up (until_ms);
CREATE TABLE {schema}.lives (name text COLLATE "C" PRIMARY KEY, lives bigint NOT NULL);
CREATE TABLE {schema}.notes (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL);
"""
    + _HOLD_TABLES
    # the planner's statistics would keep samples of the values, also of deleted ones
    + """
ALTER TABLE {schema}.channels ALTER COLUMN tail SET STATISTICS 0, ALTER COLUMN tail SET STORAGE MAIN;
ALTER TABLE {schema}.tails ALTER COLUMN body SET STATISTICS 0;
ALTER TABLE {schema}.documents ALTER COLUMN head SET STATISTICS 0;
ALTER TABLE {schema}.texts ALTER COLUMN body SET STATISTICS 0;
ALTER TABLE {schema}.notes ALTER COLUMN value SET STATISTICS 0;
ALTER TABLE {schema}.holds ALTER COLUMN value SET STATISTICS 0;
"""
)

# Columns that the tables of each version have. A role sees them in this catalog without rights in the tables.
_IS_STORE = """
SELECT count(*) = 3 FROM pg_attribute WHERE (attrelid, attname) IN (
  (to_regclass($1 || '.store'), 'version'), (to_regclass($1 || '.channels'), 'epoch'),
  (to_regclass($1 || '.documents'), 'message'))
"""
_IS_RESERVED = """
SELECT starts_with($1, 'pg_') OR EXISTS (SELECT FROM pg_get_keywords() WHERE word = $1 AND catcode IN ('R', 'T'))
"""

_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS release,
  pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only') = 'on' AS is_read_only,
  current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
  current_setting('synchronous_commit') AS synchronous_commit,
  current_setting('synchronous_standby_names') AS standbys, current_user AS role, current_database() AS database,
  pg_backend_pid() AS pid
"""
# The connections that the server gives to this role, and the nodes of the store whose leases have not ended.
_ROOM = """
SELECT least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0),
  nullif(rolconnlimit, -1), nullif(datconnlimit, -1)) AS given,
  (SELECT count(*) FROM {schema}.nodes
    WHERE NOT is_over AND until_ms > extract(epoch FROM clock_timestamp()) * 1000) AS others
FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()
"""


def behind_pooler(where: str) -> str:
    """Return what to do about a pooler between this process and the server `where`."""
    return f"a pooler is between this process and {where}; write prepare=0 in the store URL, or name the server itself"


async def check_server(db: Connection, *, is_async: bool, is_pooled: bool = False) -> str:
    """Check that the server can keep the promises, and log which guarantees it gives. Raises StoreUnusable.

    Returns the `synchronous_commit` of this session, or of each transaction if `is_pooled`.
    """
    server = await db.fetchrow(_SERVER)
    assert server is not None
    where = f"PostgreSQL {server['release']}"
    if server["version"] < OLDEST_SERVER:
        raise StoreUnusable(f"{where} is too old; use PostgreSQL 13 or newer")
    if server["is_standby"]:
        raise StoreUnusable(f"{where} is a standby, which accepts no writes; name the primary in the store URL")
    if server["is_read_only"]:
        raise StoreUnusable(
            f"database {server['database']!r} is read-only for role {server['role']!r}; "
            "set default_transaction_read_only to off for it"
        )
    if db.get_server_pid() != server["pid"] and not is_pooled:
        # statements and locks of a session would meet those of other clients
        raise StoreUnusable(behind_pooler(where))
    commit = str(server["synchronous_commit"])
    if is_async or commit in WEAK:
        commit = "off" if is_async else "on"
    if not is_pooled:  # in any case: a setting of the server that is reloaded later must not weaken this session
        await db.execute(f"SET synchronous_commit = {commit}")
    logger.info(
        "%s: fsync %s, full_page_writes %s, synchronous_commit %s, synchronous standbys %s",
        *(where, server["fsync"], server["full_page_writes"], commit, server["standbys"] or "none"),
    )
    if server["fsync"] != "on":
        logger.warning("%s runs with fsync off: a power cut can destroy the whole database; set fsync to on", where)
    return commit


async def check_room(db: Connection, schema: str, each: int) -> None:
    """Log a warning if the server gives fewer connections than the nodes of the store may open, `each` of them."""
    room = await db.fetchrow(_ROOM.format(schema=schema))
    assert room is not None
    wanted = each * (room["others"] + 1)
    if wanted > room["given"]:
        logger.warning(
            "PostgreSQL gives this role %d connections, and the processes of this store, %d with this one, may open "
            "%d, %d each: raise max_connections or the CONNECTION LIMIT, or use fewer processes or "
            "PgBouncer (prepare=0)",
            *(room["given"], room["others"] + 1, wanted, each),
        )


def grant_of_tables(schema: str, role: str) -> str:
    """Return the statement that gives `role` its rights in the tables of `schema`."""
    return f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "{role}"'


async def prepare_schema(db: Connection, schema: str) -> None:
    """Make the tables in `schema` if it is empty. Raises StoreUnusable for those of another program or version."""
    if await db.fetchval(_IS_RESERVED, schema):
        raise StoreUnusable(
            f"schema {schema!r} has a name that PostgreSQL reserves; name another one with ?schema= in the store URL"
        )
    try:
        async with db.transaction():
            await _prepare(db, schema)
    except asyncpg.DuplicateTableError:  # a view, for example
        raise _foreign(schema) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise await _without_rights(db, schema, error) from error


async def _prepare(db: Connection, schema: str) -> None:
    """Make or check the tables inside the transaction of the caller."""
    await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"tenuto.{schema}")
    if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
        await db.execute(f"CREATE SCHEMA {schema}")
    if not await db.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema):
        await db.execute(_TABLES.format(schema=schema, version=VERSION))
        return
    if not await db.fetchval(_IS_STORE, schema):
        raise _foreign(schema)
    version = await db.fetchval(f"SELECT version FROM {schema}.store")
    # a migration from an earlier VERSION goes here, in the same transaction
    if version != VERSION:
        raise StoreUnusable(
            f"schema {schema!r} has tables of another version of Tenuto: they have version {version}, and this one "
            f"knows {VERSION}; use that version, or name another schema with ?schema= in the store URL"
        )


def _foreign(schema: str) -> StoreUnusable:
    return StoreUnusable(
        f"schema {schema!r} holds tables of another program; name another one with ?schema= in the store URL"
    )


async def _without_rights(db: Connection, schema: str, error: asyncpg.InsufficientPrivilegeError) -> StoreUnusable:
    """Return the error for a role that lacks a right, with the remedy."""
    role, database = await db.fetchval("SELECT current_user"), await db.fetchval("SELECT current_database()")
    of, remedy = (
        "database",
        f'GRANT CREATE ON DATABASE "{database}" TO "{role}"; or: CREATE SCHEMA {schema} AUTHORIZATION "{role}"',
    )
    if await db.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", schema):
        of = "schema"
        remedy = f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "{role}"; {grant_of_tables(schema, role)}'
    return StoreUnusable(
        f"role {role!r} may not use schema {schema!r} ({error}); as the owner of the {of} run: {remedy}"
    )


# Names the history of the data: the cluster; its timeline, which a promotion and a restore change; a table, which
# `pg_restore --clean` makes anew; and the database, another one in a copy by `CREATE DATABASE ... TEMPLATE`.
_CLUSTER = "(SELECT system_identifier FROM pg_control_system())"
_HIDDEN = "?"  # stands for a cluster that the role may not see
_HISTORY = """
SELECT CASE WHEN pg_is_in_recovery() THEN NULL
  ELSE concat_ws(':', {cluster}, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    '{schema}.store'::regclass::oid, (SELECT oid FROM pg_database WHERE datname = current_database())) END
"""
_BEGIN_LIFE = "UPDATE {schema}.store SET life = $1, history = $2, notices = $3 WHERE history IS NOT DISTINCT FROM $4"


class StoreLife:
    """The life in which an instance has opened the store in `schema` of the server `where`."""

    def __init__(self, schema: str, where: str) -> None:
        self.name = ""  # name of the life; empty before `begin`
        self.notices_name = ""
        self._schema = schema
        self._where = where
        self._history = ""  # the history of the server's data when the store was opened
        self._is_over = False  # True: a connection has found another life

    async def begin(self, db: Connection) -> None:
        """Note the life that the store has now, and the name of its notices. Raises StoreUnavailable for a standby."""
        self.name, self.notices_name = await self._read_or_begin(db)

    async def check(self, db: Connection | PoolConnectionProxy) -> None:
        """Check that the store still has this life. Raises StoreReplaced, and StoreUnavailable for a standby."""
        if (await self._read_or_begin(db))[0] != self.name:
            self._is_over = True
        self.require()

    async def check_stored(self, db: Connection | PoolConnectionProxy) -> None:
        """Check, without a look at the server, that no instance has begun another life. Raises StoreReplaced."""
        if await db.fetchval(f"SELECT life FROM {self._schema}.store") != self.name:
            self._is_over = True
        self.require()

    async def check_transaction(self, db: Connection | PoolConnectionProxy) -> None:
        """Check, for one transaction, that its session is of a server with this life. Raises as `check`.

        Another life begins when the store is opened again, not here, where the error would undo it.
        """
        # a role that could not see the cluster at the opening still cannot, and a refusal would end the transaction
        cluster = f"'{_HIDDEN}'" if self._history.startswith(_HIDDEN) else _CLUSTER
        history = await db.fetchval(_HISTORY.format(schema=self._schema, cluster=cluster))
        if history is None:
            raise self._standby()
        if not _is_same(self._history, history):
            self._is_over = True
        await self.check_stored(db)

    def require(self) -> None:
        """Check that no connection has found another life. Raises StoreReplaced."""
        if self._is_over:
            raise StoreReplaced(
                f"the store of PostgreSQL at {self._where} has changed since it was opened: the server was promoted or "
                "restored, so the last writes may be lost; the hub opens it again by itself"
            )

    async def _read_or_begin(self, db: Connection | PoolConnectionProxy) -> tuple[str, str]:
        """Return the names of the store's life and of its notices; first begins another life if the history is another.

        A running instance has the former name until it finds the life over, within a second, and opens the store again.
        """
        schema = self._schema
        try:
            async with db.transaction():  # a savepoint, as an error would end the caller's transaction
                history = await db.fetchval(_HISTORY.format(schema=schema, cluster=_CLUSTER))
        except asyncpg.InsufficientPrivilegeError:
            history = await db.fetchval(_HISTORY.format(schema=schema, cluster=f"'{_HIDDEN}'"))
        if history is None:
            raise self._standby()
        while True:
            stored = await db.fetchrow(f"SELECT life, history, notices FROM {schema}.store")
            assert stored is not None
            if stored["history"] is not None and _is_same(stored["history"], history):
                self._history = history
                return stored["life"], stored["notices"]
            names = secrets.token_hex(4), history, f"tenuto_{secrets.token_hex(16)}"
            await db.execute(_BEGIN_LIFE.format(schema=schema), *names, stored["history"])  # unless another one did

    def _standby(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"PostgreSQL at {self._where} is a standby, which accepts no writes; promote it, or name the primary"
        )


def _is_same(stored: str, found: str) -> bool:
    """Return whether two names are of one history. A role that may not see the cluster compares the rest."""
    (cluster, _, rest), (other, _, other_rest) = stored.partition(":"), found.partition(":")
    return rest == other_rest and (cluster == other or _HIDDEN in (cluster, other))


def epoch_in(life: str) -> str:
    """Return the SQL for the epoch of a row of `channels` in the store's `life`.

    A channel whose row is of an earlier life has the epoch that follows its own (`core.events.kept_serial`).
    """
    name = f"left(encode(sha256(convert_to(epoch || '{life}', 'UTF8')), 'hex'), 8)"
    follows = f"{name} || '_' || split_part(epoch, '_', 1) || '_' || serial"
    return f"(CASE WHEN life = '{life}' THEN epoch ELSE {follows} END)"
