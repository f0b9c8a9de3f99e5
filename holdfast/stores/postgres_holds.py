"""The leases of nodes and their holds in a PostgreSQL store.

Layer: stores.

Both stand in UNLOGGED tables: a renewal costs no write-ahead log, and a crash or a failover of the server empties
them. Then a new `opening` is drawn, so the lease of each node has another name, and the node puts its holds again. Each
call locks the row of `leases`, so calls follow one another. Times are those of the server's clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from holdfast.stores.base import Hold, Renewal
from holdfast.stores.holds import OVER_MS

if TYPE_CHECKING:
    from asyncpg import Connection, Record
    from asyncpg.pool import PoolConnectionProxy

    Db = Connection[Record] | PoolConnectionProxy[Record]

TABLES = """
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

_NOW_MS = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_BEGIN = f"""
INSERT INTO {{schema}}.leases AS l (opening) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET opening = l.opening
  RETURNING opening, begun, ended, {_NOW_MS} AS now_ms
"""
_DROP_ENDED = """
DELETE FROM {schema}.holds WHERE until_ms <= $1 OR (until_ms IS NULL AND node <> ALL($2::text[]))
"""
_PUT = """
INSERT INTO {schema}.holds SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[])
  ON CONFLICT (name) DO UPDATE SET node = excluded.node, value = excluded.value, until_ms = excluded.until_ms
"""
_RENEW = """
INSERT INTO {schema}.nodes VALUES ($1, $2, $3, $4)
  ON CONFLICT (node) DO UPDATE SET until_ms = excluded.until_ms, life = excluded.life, is_over = excluded.is_over
"""
_READ = f"""
WITH t AS MATERIALIZED (SELECT {_NOW_MS} AS now_ms)
SELECT h.name, h.node, h.value, h.until_ms FROM t, {{schema}}.holds h LEFT JOIN {{schema}}.nodes n USING (node)
  WHERE starts_with(h.name, $1)
    AND CASE WHEN h.until_ms IS NULL THEN NOT n.is_over AND n.until_ms > t.now_ms ELSE h.until_ms > t.now_ms END
  ORDER BY h.name
"""


async def renew(db: Db, schema: str, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
    """Renew the lease of `node`, and put or drop holds (`Store.hold`), inside the transaction of the caller."""
    counts = await db.fetchrow(_BEGIN.format(schema=schema), secrets.token_hex(4))
    assert counts is not None
    now_ms, begun, ended = counts["now_ms"], counts["begun"], counts["ended"]
    gone = await db.fetch(f"DELETE FROM {schema}.nodes WHERE until_ms <= $1 RETURNING is_over", now_ms)
    ended += sum(not row["is_over"] for row in gone)
    leases = {row["node"]: row for row in await db.fetch(f"SELECT node, life, is_over FROM {schema}.nodes")}
    living = {name for name, row in leases.items() if not row["is_over"]}
    await db.execute(_DROP_ENDED.format(schema=schema), now_ms, list(living))
    lease = ""
    if node in living or node not in leases:  # a node that has ended its lease does not get it back
        begun += node not in living
        number = leases[node]["life"] if node in living else begun
        lease = f"{counts['opening']}:{number}"
        living.add(node)
        await _put(db, schema, node, values)
        until_ms = now_ms + (term_ms or OVER_MS)
        await db.execute(_RENEW.format(schema=schema), node, until_ms, number, not term_ms)
        if not term_ms:
            ended += 1
            living.discard(node)
            await db.execute(_DROP_ENDED.format(schema=schema), now_ms, list(living))
    if (begun, ended) != (counts["begun"], counts["ended"]):
        await db.execute(f"UPDATE {schema}.leases SET begun = $1, ended = $2", begun, ended)
    return Renewal(now_ms, frozenset(living), lease, ended)


async def _put(db: Db, schema: str, node: str, values: Mapping[str, Hold | None]) -> None:
    put = {name: hold for name, hold in values.items() if hold is not None}
    if put:
        rows = [(name, node, hold.value, hold.until_ms) for name, hold in put.items()]
        await db.execute(_PUT.format(schema=schema), *map(list, zip(*rows, strict=True)))
    dropped = [name for name in values if name not in put]
    if dropped:
        await db.execute(f"DELETE FROM {schema}.holds WHERE name = ANY($1) AND node = $2", dropped, node)


async def read_holds(db: Db, schema: str, prefix: str) -> dict[str, tuple[str, Hold]]:
    """Return the holds that have not ended, with their nodes (`Store.holds`)."""
    rows = await db.fetch(_READ.format(schema=schema), prefix)
    return {row["name"]: (row["node"], Hold(row["value"], row["until_ms"])) for row in rows}
