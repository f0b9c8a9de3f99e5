"""The life of a PostgreSQL store: another one begins when the server goes on from an earlier state of its data.

Layer: stores.

A promoted standby and a restored backup may lack commits that viewers have seen. The store notes to which history of
the server it belongs, and each new connection compares. The first that finds another history begins another life. In
that life each channel has another epoch, which its row stores with the next entry; no failover writes to all rows.
The notices of a life have a secret name of their own: a copy of a database and its original may share a bus.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import asyncpg

from tenuto.core.errors import StoreUnavailable
from tenuto.stores.base import StoreReplaced

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    PoolConnectionProxy = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

# Names the history of the data: the cluster; its timeline, which a promotion and a restore change; a table, which
# `pg_restore --clean` makes anew; and the database, another one in a copy by `CREATE DATABASE ... TEMPLATE`.
_CLUSTER = "(SELECT system_identifier FROM pg_control_system())"
_HIDDEN = "?"  # stands for a cluster that the role may not see
_HISTORY = """
SELECT CASE WHEN pg_is_in_recovery() THEN NULL
  ELSE concat_ws(':', {cluster}, left(pg_walfile_name(pg_current_wal_lsn()), 8),
    '{schema}.store'::regclass::oid, (SELECT oid FROM pg_database WHERE datname = current_database())) END
"""
_BEGIN = "UPDATE {schema}.store SET life = $1, history = $2, notices = $3 WHERE history IS NOT DISTINCT FROM $4"


class StoreLife:
    """The life in which an instance has opened the store in `schema` of the server `where`."""

    def __init__(self, schema: str, where: str) -> None:
        self.name = ""
        self.notices_name = ""
        self._schema = schema
        self._where = where
        self._history = ""  # the history of the server's data when the store was opened
        self._is_over = False

    async def begin(self, db: Connection) -> None:
        """Note the life that the store has now, and the name of its notices. Raises StoreUnavailable for a standby."""
        self.name, self.notices_name = await self._read(db)

    async def check(self, db: Connection | PoolConnectionProxy) -> None:
        """Check that the store still has this life. Raises StoreReplaced, and StoreUnavailable for a standby."""
        if (await self._read(db))[0] != self.name:
            self._is_over = True
        self.require()

    async def check_stored(self, db: Connection | PoolConnectionProxy) -> None:
        """Check, without a look at the server, that no instance has begun another life. Raises StoreReplaced."""
        if await db.fetchval(f"SELECT life FROM {self._schema}.store") != self.name:
            self._is_over = True
        self.require()

    async def check_transaction(self, db: Connection | PoolConnectionProxy) -> None:
        """Check, for one transaction, that its session is of a server with this life. Raises as `check`.

        Another life begins when the store is opened again, because an error would undo its beginning here.
        """
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

    async def _read(self, db: Connection | PoolConnectionProxy) -> tuple[str, str]:
        """Return the names of the store's life and of its notices; first begins another life if the history is another.

        A running instance has the former name until it finds the life over, within a second, and opens the store again.
        """
        schema = self._schema
        try:
            async with db.transaction():  # perhaps in another one, which an error would end
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
            await db.execute(_BEGIN.format(schema=schema), *names, stored["history"])

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
