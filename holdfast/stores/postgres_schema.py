"""The tables of the PostgreSQL store, and the checks of a server before the store uses it.

Layer: stores.

All tables stand in a schema of their own. `channels` has one row per channel, which each commit updates in place: no
index contains a column that an append changes, so PostgreSQL keeps the update on its page (HOT). These columns stand
side by side, so that the WAL contains only them (`postgres_log`). The first instance makes the tables, under an
advisory lock of its transaction.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

import asyncpg

from holdfast.core.errors import StoreInUse, StoreUnusable
from holdfast.stores.postgres_holds import TABLES as HOLD_TABLES

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

logger = logging.getLogger("holdfast.store")

VERSION = 1  # version of the tables
OLDEST_SERVER = 130_000  # PostgreSQL 13, as `server_version_num` gives it
LOCK_WAIT_MS = 5_000  # how long a connection waits for a release that needs the store for itself
WEAK = ("off", "local", "remote_write")  # values of `synchronous_commit` that are weaker than "on"

_TABLES = """
CREATE TABLE {schema}.store (version int NOT NULL);
INSERT INTO {schema}.store VALUES (1);
CREATE TABLE {schema}.channels (
  name text COLLATE "C" PRIMARY KEY,
  id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  epoch text NOT NULL,
  floor bigint NOT NULL DEFAULT 0,
  has_tail boolean NOT NULL,
  serial bigint NOT NULL,
  tail bytea NOT NULL
) WITH (fillfactor = 50);
ALTER TABLE {schema}.channels ALTER COLUMN tail SET STORAGE MAIN;
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

# The first tables of this version had neither floors nor holds nor a name of notices.
_HAS_COLUMN = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1 || '.' || $2) AND attname = $3)
"""

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


async def share_lock(db: Connection | PoolConnectionProxy, schema: str, *, is_local: bool = False) -> None:
    """Keep releases that need the store in `schema` for themselves away, for the life of the connection.

    Such a release of Holdfast takes the same lock alone. Beside others it would lose their text. Raises StoreInUse.
    `is_local`: for the duration of the transaction.
    """
    scope, kind = ("LOCAL", "xact_lock_shared") if is_local else ("SESSION", "lock_shared")
    try:
        await db.execute(
            f"SET {scope} lock_timeout = {LOCK_WAIT_MS};"
            f"SELECT pg_advisory_{kind}(hashtextextended('holdfast.{schema}.hub', 0)); SET {scope} lock_timeout = 0"
        )
    except asyncpg.LockNotAvailableError:
        raise StoreInUse(
            f"the store in schema {schema!r} is in use by an earlier release of Holdfast, which allows one process; "
            "stop that process first"
        ) from None


def grant_of_tables(schema: str, role: str) -> str:
    """Return the statement that gives `role` its rights in the tables of `schema`."""
    return f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "{role}"'


async def prepare_schema(db: Connection, schema: str) -> str:
    """Create the tables in `schema` if it has none, and return the name of its notices, which is a secret.

    Raises StoreUnusable for tables of another program or version.
    """
    if await db.fetchval(_IS_RESERVED, schema):
        raise StoreUnusable(
            f"schema {schema!r} has a name that PostgreSQL reserves; name another one with ?schema= in the store URL"
        )
    notices, version = "", None
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"holdfast.{schema}")
            if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
                await db.execute(f"CREATE SCHEMA {schema}")
            tables = await db.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
            if not tables:
                await db.execute(_TABLES.format(schema=schema))
            version = await _version(db, schema)
            if version == VERSION and not await db.fetchval(_HAS_COLUMN, schema, "channels", "floor"):
                await db.execute(f"ALTER TABLE {schema}.channels ADD COLUMN floor bigint NOT NULL DEFAULT 0")
            if version == VERSION and await db.fetchval("SELECT to_regclass($1) IS NULL", f"{schema}.leases"):
                await db.execute(HOLD_TABLES.format(schema=schema))
            if version == VERSION:
                notices = await _notices(db, schema)
                if not await db.fetchval(_HAS_COLUMN, schema, "channels", "life"):
                    await db.execute(f"ALTER TABLE {schema}.channels ADD COLUMN life text NOT NULL DEFAULT ''")
                    await db.execute(
                        f"ALTER TABLE {schema}.store ADD COLUMN history text, ADD COLUMN life text NOT NULL DEFAULT ''"
                    )
    except asyncpg.DuplicateTableError:  # a view, for example
        pass
    except asyncpg.InsufficientPrivilegeError as error:
        role, database = await db.fetchval("SELECT current_user"), await db.fetchval("SELECT current_database()")
        if version == VERSION:
            owner = await db.fetchval(
                f"SELECT relowner::regrole::text FROM pg_class WHERE oid = '{schema}.store'::regclass"
            )
            raise StoreUnusable(
                f"role {role!r} may not change the tables in schema {schema!r} ({error}), which lack parts of this "
                f"release; start this release once as role {owner!r}, which owns them"
            ) from error
        owner, remedy = (
            "database",
            (f'GRANT CREATE ON DATABASE "{database}" TO "{role}"; or: CREATE SCHEMA {schema} AUTHORIZATION "{role}"'),
        )
        if await db.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = $1", schema):
            owner = "schema"
            remedy = f'GRANT USAGE, CREATE ON SCHEMA {schema} TO "{role}"; {grant_of_tables(schema, role)}'
        raise StoreUnusable(
            f"role {role!r} may not use schema {schema!r} ({error}); as the owner of the {owner} run: {remedy}"
        ) from error
    if version is None:
        raise StoreUnusable(
            f"schema {schema!r} holds tables of another program; name another one with ?schema= in the store URL"
        )
    if version != VERSION:
        raise StoreUnusable(f"schema {schema!r} has version {version}, this Holdfast knows {VERSION}; upgrade Holdfast")
    return notices


async def _notices(db: Connection, schema: str) -> str:
    """Return the name of notices: each role of the database may listen to a name that it knows."""
    if not await db.fetchval(_HAS_COLUMN, schema, "store", "notices"):
        await db.execute(f"ALTER TABLE {schema}.store ADD COLUMN notices text")
        await db.execute(f"UPDATE {schema}.store SET notices = $1", f"holdfast_{secrets.token_hex(16)}")
    return str(await db.fetchval(f"SELECT notices FROM {schema}.store"))


async def _version(db: Connection, schema: str) -> int | None:
    """Return the version of the tables in `schema`; None if they are not a store's."""
    if not await db.fetchval(_IS_STORE, schema):
        return None
    version = await db.fetchval(f"SELECT version FROM {schema}.store")
    return int(version) if version is not None else None
