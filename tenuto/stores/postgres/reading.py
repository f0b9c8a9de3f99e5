"""The queries of the PostgreSQL store. Each sees one state of the database: one statement, or one transaction.

Layer: stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from asyncpg import Connection, Record
from asyncpg.pool import PoolConnectionProxy

from tenuto.core.document import DAMAGE, Segment, Stored, times_in, used_up_head
from tenuto.core.errors import StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.core.names import COMMAND_MARK
from tenuto.core.ops import Delete, Entry
from tenuto.core.retention import Fact
from tenuto.stores.base import NOTHING, Changes, Facts, Head, StoredPage, Tail, tail_of
from tenuto.stores.postgres.life import epoch_in
from tenuto.stores.postgres.log import entries_in

decode_segments = msgspec.msgpack.Decoder(list[Segment]).decode


# A channel with its head, and the rows of its entries. One statement sees one state of the database.
_CHANNEL = """
SELECT id, {epoch}, serial, floor, lives, has_tail, tail, CASE WHEN has_tail THEN ARRAY({moved}) END AS moved
  FROM (VALUES ($1)) AS w (name) LEFT JOIN {schema}.channels USING (name) LEFT JOIN {schema}.lives USING (name)
"""
_MOVED = "SELECT body FROM {schema}.tails WHERE channel = channels.id ORDER BY last"
# Rows of entries after a serial; older ones are left out once the newer ones take the limit.
_MOVED_AFTER = """
SELECT body FROM (
  SELECT body, last, sum(length(body)) OVER (ORDER BY last DESC) - length(body) AS newer FROM {schema}.tails
    WHERE channel = channels.id AND last > $2
) t WHERE newer <= $3 ORDER BY last
"""


class Log(NamedTuple):
    """A channel's head, its number in the tables, and its entries by message; documents may contain some of them."""

    id: int | None  # None: the channel is empty
    head: Head
    entries: dict[str, list[Entry]]

    def deleted(self) -> list[str]:
        """Return the messages that an entry has deleted."""
        return [key for key, entries in self.entries.items() if any(type(one.op) is Delete for one in entries)]


class PostgresReader:
    """Queries on one connection, inside the transaction of their caller.

    `heads` and `entries` are one statement each, which needs none.
    """

    def __init__(self, db: Connection[Record] | PoolConnectionProxy[Record], schema: str, life: str) -> None:
        """Query `db` in the store's `life` (`StoreLife.name`)."""
        self._db = db
        self._schema = schema
        self._epoch = f"{epoch_in(life)} AS epoch"

    async def heads(self, channels: Sequence[str]) -> list[Head]:
        """Return the heads of `channels`, in order."""
        rows = await self._db.fetch(
            f"SELECT name, {self._epoch}, serial, floor, lives FROM unnest($1::text[]) AS w (name)"
            f" LEFT JOIN {self._schema}.channels USING (name) LEFT JOIN {self._schema}.lives USING (name)",
            channels,
        )
        heads = {row["name"]: _head(row) for row in rows}
        return [heads[channel] for channel in channels]

    async def log(self, channel: str) -> Log:
        """Return the log of `channel`. Raises StoreUnusable."""
        row, bodies = await self._channel(_MOVED, channel)
        entries: dict[str, list[Entry]] = {}
        for entry in entries_in(bodies):
            entries.setdefault(entry.op.id, []).append(entry)
        return Log(row["id"], _head(row), entries)

    async def _channel(self, moved: str, channel: str, *limits: int) -> tuple[Record, list[bytes]]:
        """Return the row of `channel` and its encoded entries: those that `moved` reads with `limits`, and the tail."""
        moved = moved.format(schema=self._schema)
        query = _CHANNEL.format(schema=self._schema, epoch=self._epoch, moved=moved)
        row = await self._db.fetchrow(query, channel, *limits)
        assert row is not None
        return row, [*row["moved"], row["tail"]] if row["has_tail"] else []

    async def channels_with_entries(self) -> list[str]:
        """Return the channels that may have entries that no document contains."""
        rows = await self._db.fetch(f"SELECT name FROM {self._schema}.channels WHERE has_tail ORDER BY name")
        return [row["name"] for row in rows]

    async def versions(self, log: Log) -> dict[str, int]:
        """Return the versions of the documents of all messages that have entries in `log`."""
        rows = await self._db.fetch(
            f"SELECT message, version FROM {self._schema}.documents WHERE channel = $1 AND message = ANY($2)",
            *(log.id, list(log.entries)),
        )
        return {row["message"]: row["version"] for row in rows}

    async def changes(self, channel: str, after: int, limit: int) -> Changes:
        log = await self.log(channel)
        if log.id is None:
            return Changes(log.head, None, [])
        newest = await self._db.fetchval(
            f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND created > 0"
            " ORDER BY created DESC LIMIT 1",
            log.id,
        )
        later = [key for key, entries in log.entries.items() if entries[-1].serial > after]
        rows = await self._db.fetch(
            f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND version > $2"
            f" UNION SELECT message FROM {self._schema}.documents WHERE channel = $1 AND message = ANY($3) LIMIT $4",
            *(log.id, after, later, limit + 1),
        )
        ids = [row["message"] for row in rows]
        stored = await self._stored(log, ids) if len(ids) <= limit else {}
        return Changes(log.head, newest, [stored[key] for key in ids] if len(ids) <= limit else None)

    async def entries(self, channel: str, after: int, limit_bytes: int) -> Tail:
        row, bodies = await self._channel(_MOVED_AFTER, channel, after, limit_bytes)
        return tail_of(_head(row), entries_in(bodies), after=after, limit_bytes=limit_bytes)

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        log = await self.log(channel)
        found = await self._stored(log, ids)
        missing = [key for key in ids if key not in found]
        if missing:
            rows = await self._db.fetch(
                f"SELECT message FROM {self._schema}.used_up WHERE channel = $1 AND message = ANY($2)",
                *(channel, missing),
            )
            for row in rows:
                key = row["message"]
                found[key] = Stored(id=key, head=used_up_head(key), segments=[], entries=[])
        return log.head, found

    async def page(
        self, channel: str, before: int | None, after: int | None, limit: int, limit_bytes: int
    ) -> StoredPage:
        log = await self.log(channel)
        if log.id is None:
            return StoredPage(log.head, [], more=False)
        order = "DESC" if after is None else "ASC"
        first, last = min(max(after or 0, 0), 2**62), 2**62 if before is None else min(before, 2**62)
        rows = await self._db.fetch(
            f"SELECT message, size_bytes FROM {self._schema}.documents WHERE channel = $1 AND created > $2"
            f" AND created < $3 AND NOT is_deleted AND message <> ALL($4) ORDER BY created {order} LIMIT $5",
            *(log.id, first, last, log.deleted(), limit + 1),
        )
        ids: list[str] = []
        size_bytes = 0
        for row in rows[:limit]:
            size_bytes += row["size_bytes"]
            if size_bytes > limit_bytes and ids:
                break
            ids.append(row["message"])
        stored = await self._stored(log, ids)
        return StoredPage(log.head, [stored[key] for key in ids], more=len(ids) < len(rows))

    async def open_channels(self) -> list[str]:
        rows = await self._db.fetch(
            f"SELECT name FROM {self._schema}.channels WHERE id IN"
            f" (SELECT channel FROM {self._schema}.documents WHERE is_open) ORDER BY name"
        )
        return [row["name"] for row in rows]

    async def open_documents(self, channel: str) -> list[Stored]:
        log = await self.log(channel)
        rows = await self._db.fetch(
            f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND is_open", log.id
        )
        return list((await self._stored(log, [row["message"] for row in rows])).values())

    async def names(self, after: str | None, limit: int) -> list[str]:
        rows = await self._db.fetch(
            f"SELECT name FROM {self._schema}.channels WHERE name > $1 ORDER BY name LIMIT $2", after or "", limit
        )
        return [row["name"] for row in rows]

    async def summaries(self, within: Sequence[str], after: str | None, limit: int) -> list[ChannelSummary]:
        rows = await self._db.fetch(
            f"SELECT name, coalesce(created_ms, 0) AS created_ms, coalesce(updated_ms, 0) AS updated_ms, messages,"
            f" size_bytes FROM {self._schema}.channels c LEFT JOIN {self._schema}.times t ON t.channel = c.id,"
            f" LATERAL (SELECT count(*) AS messages, coalesce(sum(size_bytes), 0)::bigint AS size_bytes"
            f" FROM {self._schema}.documents d WHERE d.channel = c.id AND created > 0 AND NOT is_deleted) s"
            " WHERE name > $1 AND (name = ANY($2) OR EXISTS"
            " (SELECT FROM unnest($3::text[]) AS p (prefix) WHERE starts_with(name, prefix))) ORDER BY name LIMIT $4",
            after or "",
            [one for one in within if not one.endswith("*")],
            [one.removesuffix("*") for one in within if one.endswith("*")],
            limit,
        )
        return [
            ChannelSummary(
                channel=row["name"],
                created_ms=row["created_ms"],
                updated_ms=row["updated_ms"],
                messages=row["messages"],
                size_bytes=row["size_bytes"],
            )
            for row in rows
        ]

    async def newest_ms(self) -> int:
        newest_ms: int = await self._db.fetchval(f"SELECT coalesce(max(updated_ms), 0) FROM {self._schema}.times")
        return newest_ms

    async def facts(self, channel: str, after: int, limit: int) -> Facts:
        log = await self.log(channel)
        rows = await self._db.fetch(
            "SELECT message, version, created > 0 AND NOT is_deleted AS is_counted, size_bytes, head, is_open OR EXISTS"
            f" (SELECT FROM {self._schema}.documents o"
            " WHERE o.channel = d.channel AND o.target = d.message AND o.is_open) AS is_busy"
            f" FROM {self._schema}.documents d WHERE channel = $1 AND version > $2 ORDER BY version LIMIT $3",
            *(log.id, after, limit),
        )
        return Facts(log.head, [_fact(row, log) for row in rows])

    async def commands(self, channel: str, after: str | None, limit: int) -> list[str]:
        rows = await self._db.fetch(
            f"SELECT message FROM {self._schema}.documents"
            f" WHERE channel = (SELECT id FROM {self._schema}.channels WHERE name = $1)"
            " AND message > $2 AND message < $3 ORDER BY message LIMIT $4",
            *(channel, after or COMMAND_MARK, chr(ord(COMMAND_MARK) + 1), limit),
        )
        return [row["message"] for row in rows]

    async def notes(self, prefix: str) -> dict[str, bytes]:
        rows = await self._db.fetch(f"SELECT name, value FROM {self._schema}.notes WHERE starts_with(name, $1)", prefix)
        return {row["name"]: row["value"] for row in rows}

    async def _stored(self, log: Log, ids: Iterable[str]) -> dict[str, Stored]:
        if log.id is None:
            return {}
        wanted = list(ids)
        heads = await self._db.fetch(
            f"SELECT message, version, head FROM {self._schema}.documents WHERE channel = $1 AND message = ANY($2)",
            *(log.id, wanted),
        )
        texts = await self._db.fetch(
            f"SELECT message, body FROM {self._schema}.texts WHERE channel = $1 AND message = ANY($2)"
            " ORDER BY message, version",
            *(log.id, wanted),
        )
        segments: dict[str, list[Segment]] = {}
        for row in texts:
            try:
                segments.setdefault(row["message"], []).extend(decode_segments(row["body"]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StoreUnusable(
                    f"message {row['message']!r} is damaged ({type(error).__name__}); restore a backup"
                ) from error
        return {
            row["message"]: Stored(
                id=row["message"],
                head=row["head"],
                segments=segments.get(row["message"], []),
                entries=[one for one in log.entries.get(row["message"], ()) if one.serial > row["version"]],
            )
            for row in heads
        }


def _head(row: Record) -> Head:
    return (
        Head(row["epoch"], row["serial"], row["floor"]) if row["epoch"] else NOTHING._replace(lives=row["lives"] or 0)
    )


def _fact(row: Record, log: Log) -> Fact:
    try:
        at_ms = times_in(row["message"], row["head"])[1]
    except DAMAGE:
        at_ms = None
    return Fact(
        id=row["message"],
        version=row["version"],
        is_counted=row["is_counted"],
        size_bytes=row["size_bytes"],
        at_ms=at_ms,
        is_busy=row["is_busy"] or row["message"] in log.entries,
    )
