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

from tenuto.stores.base import Hold, Renewal
from tenuto.stores.memory import OVER_MS

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

# A renewal whose process stops in the middle ends after this time: those of all other nodes wait for it, at most for
# two seconds (`RENEW_TIMEOUT_S` in `hub/nodes/nodes.py`).
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
    """Renew the lease of `node`, and put or drop holds (`Store.hold`), inside the transaction of the caller."""
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
    begun += node not in living
    ended += not term_ms
    number = leases[node]["life"] if node in living else begun
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
    """Return the holds that have not ended, with their nodes (`Store.holds`)."""
    rows = await db.fetch(_READ.format(schema=schema), prefix)
    return {row["name"]: (row["node"], Hold(row["value"], row["until_ms"])) for row in rows}
