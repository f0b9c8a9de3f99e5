"""The tables of the PostgreSQL store, and the checks of a server before the store uses it.

Layer: stores.

All tables stand in a schema of their own. `channels` has one row per channel, which each commit updates in place: no
index contains a column that an append changes, so PostgreSQL keeps the update on its page (HOT).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import asyncpg

from holdfast.core.errors import StoreInUse, StoreUnusable

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

logger = logging.getLogger("holdfast.store")

VERSION = 1  # version of the tables
OLDEST_SERVER = 130_000  # PostgreSQL 13, as `server_version_num` gives it
WEAK = ("off", "local", "remote_write")  # values of `synchronous_commit` that are weaker than "on"

_TABLES = """
CREATE TABLE {schema}.store (version int NOT NULL, opened bigint NOT NULL);
INSERT INTO {schema}.store VALUES (1, 0);
CREATE TABLE {schema}.channels (
  name text COLLATE "C" PRIMARY KEY,
  id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  epoch text NOT NULL,
  serial bigint NOT NULL,
  has_tail boolean NOT NULL,
  tail bytea NOT NULL,
  floor bigint NOT NULL DEFAULT 0
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

# The first tables of this version had no floors.
_HAS_FLOOR = """
SELECT EXISTS (SELECT FROM information_schema.columns
  WHERE table_schema = $1 AND table_name = 'channels' AND column_name = 'floor')
"""

_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS release,
  pg_is_in_recovery() AS is_standby, current_setting('transaction_read_only') = 'on' AS is_read_only,
  current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
  current_setting('synchronous_commit') AS synchronous_commit,
  current_setting('synchronous_standby_names') AS standbys, current_user AS role, current_database() AS database
"""


async def check_server(db: Connection, *, is_async: bool) -> None:
    """Check that the server can keep the promises, and log which guarantees it gives. Raises StoreUnusable."""
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
    if is_async:
        await db.execute("SET synchronous_commit = off")
    elif server["synchronous_commit"] in WEAK:
        await db.execute("SET synchronous_commit = on")
    commit = await db.fetchval("SHOW synchronous_commit")
    logger.info(
        "%s: fsync %s, full_page_writes %s, synchronous_commit %s, synchronous standbys %s",
        *(where, server["fsync"], server["full_page_writes"], commit, server["standbys"] or "none"),
    )
    if server["fsync"] != "on":
        logger.warning("%s runs with fsync off: a power cut can destroy the whole database; set fsync to on", where)


async def prepare_schema(db: Connection, schema: str) -> None:
    """Create the tables in `schema` if it has none. Raises StoreUnusable for tables of another program or version."""
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"holdfast.{schema}")
            if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
                await db.execute(f"CREATE SCHEMA {schema}")
            tables = await db.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = $1", schema)
            if not tables:
                await db.execute(_TABLES.format(schema=schema))
            version = await _version(db, schema)
            if version == VERSION and not await db.fetchval(_HAS_FLOOR, schema):
                await db.execute(f"ALTER TABLE {schema}.channels ADD COLUMN floor bigint NOT NULL DEFAULT 0")
    except asyncpg.InsufficientPrivilegeError as error:
        role, database = await db.fetchval("SELECT current_user"), await db.fetchval("SELECT current_database()")
        raise StoreUnusable(
            f"role {role!r} may not use schema {schema!r} ({error}); as the owner of the database run: "
            f'GRANT CREATE ON DATABASE "{database}" TO "{role}"; or: CREATE SCHEMA {schema} AUTHORIZATION "{role}"'
        ) from error
    if version is None:
        raise StoreUnusable(
            f"schema {schema!r} holds tables of another program; name another one with ?schema= in the store URL"
        )
    if version != VERSION:
        raise StoreUnusable(f"schema {schema!r} has version {version}, this Holdfast knows {VERSION}; upgrade Holdfast")


async def _version(db: Connection, schema: str) -> int | None:
    """Return the version of the tables in `schema`; None if they are not a store's."""
    if await db.fetchval("SELECT to_regclass($1) IS NULL OR to_regclass($2) IS NULL", *_named(schema)):
        return None
    version = await db.fetchval(f"SELECT version FROM {schema}.store")
    return int(version) if version is not None else None


def _named(schema: str) -> tuple[str, str]:
    return f"{schema}.store", f"{schema}.channels"


async def take_lock(db: Connection, schema: str, *, wait_s: float) -> None:
    """Take the lock on the store in `schema` for the life of the connection, waiting up to `wait_s` seconds.

    Raises StoreInUse.
    """
    key = await db.fetchval("SELECT hashtextextended($1, 0)", f"holdfast.{schema}.hub")
    if await db.fetchval("SELECT pg_try_advisory_lock($1)", key):
        return
    if wait_s:
        try:
            await db.execute(f"SET lock_timeout = {round(wait_s * 1_000)}")
            await db.execute("SELECT pg_advisory_lock($1)", key)
            return
        except asyncpg.LockNotAvailableError:
            pass
        finally:
            await db.execute("RESET lock_timeout")
    holder = await db.fetchval(
        "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory'"
        " AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND ((l.classid::bigint << 32) | l.objid::bigint) = $1",
        key,
    )
    raise StoreInUse(
        f"the store in schema {schema!r} is in use by {holder or 'another process'}: one process at a time can use it. "
        "Stop that process, or give this one another schema with ?schema= in the store URL"
    )
