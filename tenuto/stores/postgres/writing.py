"""The statements with which the PostgreSQL store writes.

Layer: stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import msgspec
from asyncpg import Connection, Record

from tenuto.core.document import Document
from tenuto.core.errors import StoreUnusable
from tenuto.stores.base import NOTHING, Committed, Conflict, Head, Write, next_lives
from tenuto.stores.postgres.reading import (
    TAIL_BYTES,
    PostgresReader,
    Uncovered,
    changes_older,
    frame,
    uncovered_entries,
)
from tenuto.stores.postgres.schema import epoch_in

TIDY_ROWS = 500  # rows that one call of `tidy` removes at most

_encode_segments = msgspec.msgpack.Encoder().encode

# One statement for all channels of a commit. A row that another connection has locked counts as a conflict. A channel
# that begins is locked by its name, because it has no row yet.
_COMMIT = """
WITH w AS (
  SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::int[], $5::bytea[], $6::bigint[], $8::bigint[])
    WITH ORDINALITY AS w (name, epoch, expected, added, frame, lives, floor, n)
), locked AS MATERIALIZED (
  SELECT id, name, {epoch} AS epoch, serial, floor, has_tail, tail FROM {schema}.channels WHERE name = ANY($1)
    ORDER BY name FOR NO KEY UPDATE SKIP LOCKED
), fitting AS MATERIALIZED (
  SELECT l.id, l.name, l.epoch, l.serial, l.has_tail, l.tail, w.n, w.added, w.frame, length(l.tail) > $7 AS is_long
    FROM locked l JOIN w ON w.name = l.name AND w.epoch = l.epoch AND w.expected = l.serial AND w.floor = l.floor
      AND (SELECT life FROM {schema}.store) = '{life}'
), moved AS (
  INSERT INTO {schema}.tails SELECT id, serial, tail FROM fitting WHERE is_long AND added > 0
), updated AS (
  UPDATE {schema}.channels c SET epoch = f.epoch, life = '{life}', serial = f.serial + f.added,
      has_tail = f.has_tail OR f.frame <> '', tail = CASE WHEN f.is_long THEN f.frame ELSE f.frame || f.tail END
    FROM fitting f WHERE c.name = f.name AND f.added > 0 RETURNING f.n, c.id, c.serial
), beginning AS MATERIALIZED (
  SELECT * FROM w WHERE expected = 0 AND added > 0
      AND NOT EXISTS (SELECT FROM {schema}.channels c WHERE c.name = w.name)
      AND lives = coalesce((SELECT lives FROM {schema}.lives l WHERE l.name = w.name), 0)
      AND (SELECT life FROM {schema}.store) = '{life}'
), born AS (
  INSERT INTO {schema}.channels (name, epoch, life, serial, has_tail, tail)
    SELECT name, epoch, '{life}', added, frame <> '', frame FROM beginning
      WHERE pg_try_advisory_xact_lock(hashtextextended('{schema}.' || name, 0))
    ON CONFLICT DO NOTHING RETURNING name, id, serial
)
SELECT n, id, serial FROM updated UNION ALL SELECT n, id, serial FROM fitting WHERE added = 0
  UNION ALL SELECT w.n, b.id, b.serial FROM born b JOIN w USING (name)
"""

# Undo the beginning of channels that another instance has deleted between the snapshot and the lock of `_COMMIT`.
_UNDO_BORN = """
DELETE FROM {schema}.channels c USING unnest($1::text[], $2::bigint[]) AS w (name, lives), {schema}.lives l
  WHERE c.name = w.name AND l.name = w.name AND l.lives <> w.lives RETURNING c.name
"""

_DOCUMENTS = """
INSERT INTO {schema}.documents AS d
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bool[], $6::bool[], $7::bigint[],
    $8::bytea[], $9::text[], $10::bigint[])
  ON CONFLICT (channel, message) DO UPDATE SET version = excluded.version, is_open = excluded.is_open,
    is_deleted = excluded.is_deleted, size_bytes = excluded.size_bytes, head = excluded.head,
    target = excluded.target, until_ms = excluded.until_ms
  WHERE d.version <= excluded.version
  RETURNING channel, message
"""
_TEXTS = """
INSERT INTO {schema}.texts SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bytea[])
  ON CONFLICT (channel, message, version) DO UPDATE SET body = excluded.body
"""
_DROP_TEXTS = """
DELETE FROM {schema}.texts t USING unnest($1::bigint[], $2::text[]) AS w (channel, message)
  WHERE t.channel = w.channel AND t.message = w.message
"""
# Data of commands with a reply whose target is deleted: of the commands in the write, and of those about its messages.
_DROP_DATA = """
DELETE FROM {schema}.texts t USING {schema}.documents d, {schema}.documents target,
    unnest($1::bigint[], $2::text[]) AS w (channel, message)
  WHERE d.channel = w.channel AND (d.message = w.message OR d.target = w.message) AND NOT d.is_open
    AND target.channel = d.channel AND target.message = d.target AND target.is_deleted
    AND t.channel = d.channel AND t.message = d.message
"""
_PRUNE = """
DELETE FROM {schema}.documents d USING unnest($2::text[], $3::bigint[]) AS w (message, version)
  WHERE d.channel = $1 AND d.message = w.message AND d.version = w.version AND NOT d.is_open AND NOT EXISTS
    (SELECT FROM {schema}.documents o WHERE o.channel = d.channel AND o.target = d.message AND o.is_open)
  RETURNING d.message, d.version
"""
_TRIM = """
WITH w AS (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS w (channel, floor)),
emptied AS (
  UPDATE {schema}.channels c SET has_tail = false, tail = '' FROM w WHERE c.id = w.channel AND w.floor IS NULL
)
DELETE FROM {schema}.tails t USING w WHERE t.channel = w.channel AND (w.floor IS NULL OR t.last < w.floor)
"""

_TIMES = """
INSERT INTO {schema}.times AS t SELECT *
  FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
  ON CONFLICT (channel) DO UPDATE SET created_ms = least(t.created_ms, excluded.created_ms),
    updated_ms = greatest(t.updated_ms, excluded.updated_ms)
"""

Done = tuple[int, Write]  # a stored write, with the number of its channel in the tables


class PostgresWriter:
    """Statements on one connection, inside the transaction of their caller."""

    def __init__(self, db: Connection[Record], schema: str, life: str, uncovered: Uncovered) -> None:
        """Write to `db` in the store's `life` (`StoreLife.name`)."""
        self._db = db
        self._schema = schema
        self._life = life
        self._uncovered = uncovered
        self.row_bytes = 0
        self._reader = PostgresReader(db, schema, life)

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store the writes that do not conflict, and the documents of those (`Store.commit`)."""
        kept = [uncovered_entries(write) for write in writes]
        for write, entries in zip(writes, kept, strict=True):
            if not write.expected:
                self._uncovered.forget(write.channel)
            if entries:
                self._uncovered.add(write.channel, entries)
        frames = [frame(entries) for entries in kept]
        self.row_bytes += sum(map(len, frames))
        rows = await self._db.fetch(
            _COMMIT.format(schema=self._schema, life=self._life, epoch=epoch_in(self._life)),
            [write.channel for write in writes],
            [write.epoch for write in writes],
            [write.expected for write in writes],
            [len(write.entries) for write in writes],
            frames,
            [write.lives for write in writes],
            TAIL_BYTES,
            [write.floor for write in writes],
        )
        stored = {row["n"] - 1: (row["id"], row["serial"]) for row in rows}
        await self._undo_born(writes, stored)
        done = [(stored[n][0], write) for n, write in enumerate(writes) if n in stored]
        complete = {write.channel for _, write in done if self._uncovered.is_complete(write)}
        for _, write in done:
            if write.channel not in complete and changes_older(write):
                try:
                    await self.reload(write.channel)
                    complete.add(write.channel)
                except StoreUnusable:  # its entries stay, and the other channels of the commit are stored
                    self._uncovered.unsure.add(write.channel)
        if any(write.documents for write in writes):
            await self._documents(done, complete)
        results: list[Committed | Conflict] = []
        refused = [write.channel for n, write in enumerate(writes) if n not in stored]
        heads = dict(zip(refused, await self._reader.heads(refused), strict=True)) if refused else {}
        self._uncovered.unsure.update(refused)
        for n, write in enumerate(writes):
            if n in stored:
                results.append(Committed(stored[n][1]))
            elif not write.entries and heads[write.channel] == NOTHING._replace(lives=write.lives):
                results.append(Committed(0))
            else:
                results.append(Conflict(heads[write.channel]))
        return results

    async def _undo_born(self, writes: Sequence[Write], stored: dict[int, tuple[int, int]]) -> None:
        """Undo the beginning of channels that have other lives by now, and remove them from `stored`."""
        born = {write.channel: n for n, write in enumerate(writes) if n in stored and not write.expected}
        if born:
            lives = [writes[n].lives for n in born.values()]
            for row in await self._db.fetch(_UNDO_BORN.format(schema=self._schema), list(born), lives):
                del stored[born[row["name"]]]

    async def _documents(self, done: list[Done], complete: Set[str]) -> None:
        """Store the documents of `done`. Entries that they contain leave the channels `complete`."""
        found = [(channel, document) for channel, write in done for document in write.documents]
        if not found:
            return
        rows = await self._db.fetch(
            _DOCUMENTS.format(schema=self._schema),
            *(list(column) for column in zip(*(_row(channel, document) for channel, document in found), strict=True)),
        )
        newest = {(row["channel"], row["message"]) for row in rows}  # another instance may have stored a newer one
        accepted = [(channel, document) for channel, document in found if (channel, document.id) in newest]
        fresh = [(channel, document.id) for channel, document in accepted if document.fresh and document.version]
        await self._each(_DROP_TEXTS, fresh)
        texts = [
            (channel, document.id, document.version, _encode_segments(document.segments))
            for channel, document in accepted
            if document.segments
        ]
        await self._each(_TEXTS, texts)
        times: dict[int, list[int]] = {}
        for channel, document in accepted:
            times.setdefault(channel, []).append(document.at_ms)
        await self._each(_TIMES, [(channel, min(of), max(of)) for channel, of in times.items()])
        self.row_bytes += sum(len(document.head) for _, document in accepted) + sum(len(row[3]) for row in texts)
        await self._each(
            _DROP_DATA,
            [
                (channel, document.id)
                for channel, document in accepted
                if document.is_deleted or (document.target is not None and not document.is_open)
            ],
        )
        covered = [
            (channel, self._uncovered.floor(write))
            for channel, write in done
            if write.channel in complete and self._uncovered.covers(write)
        ]
        await self._each(_TRIM, covered)

    async def _each(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Run `statement` once, with the columns of `rows` as arrays. Without rows, do nothing."""
        if rows:
            columns = [list(column) for column in zip(*rows, strict=True)]
            await self._db.execute(statement.format(schema=self._schema), *columns)

    async def delete_channel(
        self, channel: str, expected: Head, used_up: Sequence[str], until_ms: int
    ) -> Head | Conflict:
        """Empty `channel`, and keep the ids `used_up` until `until_ms` (`Store.delete_channel`)."""
        await self._db.execute(  # an empty channel has no row to lock
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"{self._schema}.{channel}"
        )
        await self._db.execute(f"SELECT FROM {self._schema}.channels WHERE name = $1 FOR UPDATE", channel)
        reader = self._reader
        (head,) = await reader.heads([channel])
        if head != expected:
            return Conflict(head)
        if not head.serial and not used_up:
            return head
        lives = await self._db.fetchval(f"SELECT lives FROM {self._schema}.lives WHERE name = $1", channel)
        await self._db.execute(
            f"INSERT INTO {self._schema}.lives VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET lives = excluded.lives",
            *(channel, next_lives(lives or 0, until_ms)),
        )
        await self._each(
            "INSERT INTO {schema}.used_up SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])"
            " ON CONFLICT (channel, message) DO UPDATE SET until_ms = excluded.until_ms",
            [(channel, message_id, until_ms) for message_id in used_up],
        )
        number = await self._db.fetchval(f"DELETE FROM {self._schema}.channels WHERE name = $1 RETURNING id", channel)
        if number is not None:
            for table in ("tails", "documents", "texts", "times"):  # `tidy` locks them in this order, too
                await self._db.execute(f"DELETE FROM {self._schema}.{table} WHERE channel = $1", number)
        return (await reader.heads([channel]))[0]

    async def prune(self, channel: str, epoch: str, versions: Mapping[str, int]) -> list[str]:
        """Remove messages and commands (`Store.prune`)."""
        await self._db.execute(f"SELECT FROM {self._schema}.channels WHERE name = $1 FOR UPDATE", channel)
        log = await self._reader.log(channel)
        # entries stay in the tail after their document; without a document they would count as lost ones
        wanted = [(one, version) for one, version in versions.items() if one not in log.entries]
        if log.id is None or log.head.epoch != epoch or not wanted:
            return []
        rows = await self._db.fetch(_PRUNE.format(schema=self._schema), log.id, *map(list, zip(*wanted, strict=True)))
        if not rows:
            return []
        await self._each(_DROP_TEXTS, [(log.id, row["message"]) for row in rows])
        floor = max(log.head.floor, *(row["version"] for row in rows))
        await self._db.execute(f"UPDATE {self._schema}.channels SET floor = $2 WHERE id = $1", log.id, floor)
        return [row["message"] for row in rows]

    async def reload(self, channel: str) -> None:
        """Track the entries of `channel` that no document contains, as the database has them."""
        reader = self._reader
        log = await reader.log(channel)
        entries = sorted((entry for of in log.entries.values() for entry in of), key=lambda entry: entry.serial)
        self._uncovered.reload(channel, log.head, entries, await reader.versions(log))

    async def note(self, values: Mapping[str, bytes | None], expected: Mapping[str, bytes | None]) -> bool:
        """Keep notes of the hub, if those named in `expected` have these values; None: it does not exist, delete it."""
        if expected:
            await self._db.execute(f"LOCK TABLE {self._schema}.notes IN SHARE ROW EXCLUSIVE MODE")
            rows = await self._db.fetch(
                f"SELECT name, value FROM {self._schema}.notes WHERE name = ANY($1)", list(expected)
            )
            if {row["name"]: row["value"] for row in rows} != {k: v for k, v in expected.items() if v is not None}:
                return False
        names = sorted(values)  # all instances lock the rows in the same order
        await self._db.execute(
            f"DELETE FROM {self._schema}.notes n USING unnest($1::text[], $2::bytea[]) AS w (name, value)"
            " WHERE n.name = w.name AND w.value IS NULL",
            *(names, [values[name] for name in names]),
        )
        await self._db.execute(
            f"INSERT INTO {self._schema}.notes SELECT * FROM unnest($1::text[], $2::bytea[]) AS w (name, value)"
            " WHERE value IS NOT NULL ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            *(names, [values[name] for name in names]),
        )
        return True

    async def tidy(self, now_ms: int) -> None:
        """Remove used-up ids and data of commands whose time is over."""
        await self._db.execute(
            f"DELETE FROM {self._schema}.used_up WHERE (channel, message) IN (SELECT channel, message"
            f" FROM {self._schema}.used_up WHERE until_ms <= $1 FOR UPDATE SKIP LOCKED)",
            now_ms,
        )
        await self._db.execute(
            f"DELETE FROM {self._schema}.lives WHERE name IN"
            f" (SELECT name FROM {self._schema}.lives WHERE lives <= $1 FOR UPDATE SKIP LOCKED)",
            now_ms,
        )
        rows = await self._db.fetch(
            f"UPDATE {self._schema}.documents SET until_ms = NULL WHERE (channel, message) IN"
            f" (SELECT channel, message FROM {self._schema}.documents WHERE until_ms <= $1 AND NOT is_open LIMIT $2"
            " FOR UPDATE SKIP LOCKED)"
            " RETURNING channel, message",
            *(now_ms, TIDY_ROWS),
        )
        await self._each(_DROP_TEXTS, [tuple(row) for row in rows])


def _row(channel: int, document: Document) -> tuple[object, ...]:
    return (
        *(channel, document.id, document.created, document.version, document.is_open, document.is_deleted),
        *(document.size_bytes, document.head, document.target, document.until_ms),
    )
