"""The statements of the PostgreSQL store, and the entries that no document covers yet.

Layer: stores. Each query sees one state of the database: one statement, or one transaction.

A channel's row ends with its newest entries, the tail. Each commit puts one frame in front of it: four bytes of length,
then the entries in MessagePack. PostgreSQL leaves the equal ends of both versions of a row out of its WAL, so an append
costs 250 bytes of WAL; with the newest frame at the end it cost 450. When the tail exceeds `TAIL_BYTES`, the next
commit moves it to a row of its own, named by the serial of its last entry. An entry has no effect once the document of
its message has its serial, so a row goes as soon as documents cover all its entries.

`Uncovered` tracks in memory which messages have such entries. It is complete for a channel as long as only this
instance writes to it: a write that begins at another serial than the tracked one shows that another instance has
written. It may name too many entries after a commit that failed. `unsure` are the channels where it may be wrong. Rows
are removed only where it is complete, so the rows of a channel are read again before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from asyncpg import Connection, Record
from asyncpg.pool import PoolConnectionProxy

from tenuto.core.document import Document, Segment, Stored, changed_ms, used_up_head
from tenuto.core.errors import StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.core.names import COMMAND_MARK
from tenuto.core.ops import Append, Command, Create, Delete, Entry
from tenuto.stores.base import (
    NOTHING,
    OLD_MS,
    Changes,
    Committed,
    Conflict,
    Fact,
    Facts,
    Head,
    StoredPage,
    Tail,
    Write,
    next_lives,
    tail_of,
)
from tenuto.stores.postgres.schema import epoch_in

TAIL_BYTES = 400  # a longer tail moves to a row of its own; 200 and 800 cost the same CPU time and WAL
LENGTH_BYTES = 4
MAX_UNCOVERED_BYTES = 64 * 1024 * 1024
MAX_KNOWN = 10_000  # channels whose last serial is kept
TIDY_ROWS = 500  # rows that one call of `tidy` removes at most

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def frame(entries: list[Entry]) -> bytes:
    """Return `entries` as one frame of a tail; no bytes if there are none."""
    if not entries:
        return b""
    body = _encode(entries)
    return len(body).to_bytes(LENGTH_BYTES) + body


def entries_in(rows: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of `rows`, each a tail or one that was moved, in the order of serials. Raises StoreUnusable."""
    for row in rows:
        found: list[Entry] = []
        at = 0
        while at < len(row):
            end = at + LENGTH_BYTES + int.from_bytes(row[at : at + LENGTH_BYTES])
            try:
                found += _decode(row[at + LENGTH_BYTES : end])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StoreUnusable(
                    f"the log holds an entry that this Tenuto cannot read ({type(error).__name__}): it is damaged, "
                    "or a newer Tenuto wrote it; upgrade Tenuto, or restore a backup"
                ) from error
            at = end
        yield from sorted(found, key=lambda entry: entry.serial)


@dataclass(slots=True, eq=False)
class Tracked:
    """The entries of one message that its document does not contain."""

    first: int  # serial of the first of these entries
    last: int
    since_ms: int | None  # since when the message has such entries, by the clock of `tidy`
    size_bytes: int = 0
    is_deleted: bool = False  # True: one of these entries has deleted the message


class Uncovered:
    """The messages of all channels that have entries after their documents."""

    def __init__(self) -> None:
        self.unsure: set[str] = set()  # channels for which this may be wrong
        self._channels: dict[str, dict[str, Tracked]] = {}  # by channel and message id
        self._known: dict[str, tuple[str, int]] = {}  # epoch and serial up to which a channel is tracked, newest last
        self._now_ms: int | None = None  # time of the last call of `due`
        self._size_bytes = 0  # of all these entries

    def add(self, channel: str, entries: Iterable[Entry]) -> None:
        """Track `entries` of `channel`, which no document contains."""
        messages = self._channels.setdefault(channel, {})
        for entry in entries:
            op = entry.op
            tracked = messages.get(op.id)
            if tracked is None:
                tracked = messages[op.id] = Tracked(entry.serial, entry.serial, self._now_ms)
            tracked.last = max(tracked.last, entry.serial)
            size = len(op.text) if type(op) is Append else 0
            tracked.size_bytes += size
            self._size_bytes += size
            tracked.is_deleted |= type(op) is Delete

    def is_complete(self, write: Write) -> bool:
        """Return whether all entries of the channel before `write`, which is stored, are tracked."""
        at = (write.epoch, write.expected)
        return not write.expected or (write.channel not in self.unsure and self._known.get(write.channel) == at)

    def note_heads(self, heads: Mapping[str, Head]) -> None:
        """Be unsure of those channels that are not tracked up to their `heads`."""
        self.unsure.update(name for name, head in heads.items() if self._known.get(name) != (head.epoch, head.serial))

    def note_channels(self, channels: Iterable[str]) -> None:
        """Be unsure of those of `channels`, all of which have entries, of which no entry is tracked."""
        self.unsure.update(name for name in channels if name not in self._channels)

    def reload(self, channel: str, head: Head, entries: Iterable[Entry], versions: Mapping[str, int]) -> None:
        """Track what the store holds: `entries` of `channel` up to `head`, and the versions of its documents."""
        before = self._channels.get(channel, {})
        self.forget(channel)
        self.unsure.discard(channel)
        self.add(channel, (entry for entry in entries if entry.serial > versions.get(entry.op.id, 0)))
        for message_id, tracked in self._channels.get(channel, {}).items():
            if message_id in before and before[message_id].first == tracked.first:  # it keeps its age
                tracked.since_ms = before[message_id].since_ms
        if not self._channels.get(channel):
            self._channels.pop(channel, None)
        self._know(channel, head.epoch, head.serial)

    def forget(self, channel: str) -> None:
        """Track no entry of `channel`."""
        messages = self._channels.pop(channel, {})
        self._known.pop(channel, None)
        self._size_bytes -= sum(tracked.size_bytes for tracked in messages.values())

    def _know(self, channel: str, epoch: str, serial: int) -> None:
        self._known.pop(channel, None)  # so that it comes last
        self._known[channel] = (epoch, serial)
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def covers(self, write: Write) -> bool:
        """Return whether a document of `write` contains entries that were stored before it."""
        messages = self._channels.get(write.channel, {})
        return any(document.id in messages for document in write.documents)

    def floor(self, write: Write) -> int | None:
        """Return the serial of the first entry that is needed once `write` is stored; None: no entry is needed."""
        versions = {document.id: document.version for document in write.documents}
        needed = [
            tracked.first
            for message_id, tracked in self._channels.get(write.channel, {}).items()
            if tracked.last > versions.get(message_id, 0)
        ]
        return min(needed, default=None)

    def stored(self, write: Write) -> None:
        """Stop tracking the messages that the stored documents of `write` contain whole."""
        after = write.expected + len(write.entries)
        # the second condition: `reload` has read the channel within the transaction of the write
        if self.is_complete(write) or self._known.get(write.channel) == (write.epoch, after):
            self._know(write.channel, write.epoch, after)
        else:
            self._known.pop(write.channel, None)
        messages = self._channels.get(write.channel)
        if messages is None:
            return
        for document in write.documents:
            tracked = messages.get(document.id)
            if tracked is not None and tracked.last <= document.version:
                del messages[document.id]
                self._size_bytes -= tracked.size_bytes
        if not messages:
            del self._channels[write.channel]

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """Return (channel, message id) of the messages that should get a document (`Store.tidy`)."""
        set_back_ms = 0 if self._now_ms is None else max(0, self._now_ms - now_ms)
        self._now_ms = now_ms
        is_heavy = self._size_bytes > MAX_UNCOVERED_BYTES
        found = []
        for channel, messages in self._channels.items():
            for message_id, tracked in messages.items():
                # keep the age although the clock was set back
                tracked.since_ms = now_ms if tracked.since_ms is None else tracked.since_ms - set_back_ms
                if is_heavy or tracked.is_deleted or now_ms - tracked.since_ms >= OLD_MS:
                    found.append((channel, message_id))
        return found


def changes_older(write: Write) -> bool:
    """Return whether a document of `write` is about a message or command that does not begin in it."""
    begun = {entry.op.id for entry in write.entries if type(entry.op) is Create or type(entry.op) is Command}
    return any(document.id not in begun for document in write.documents)


def uncovered_entries(write: Write) -> list[Entry]:
    """Return the entries of `write` that its documents do not contain."""
    if not write.documents:
        return list(write.entries)
    versions = {document.id: document.version for document in write.documents}
    return [entry for entry in write.entries if entry.serial > versions.get(entry.op.id, 0)]


decode_segments = msgspec.msgpack.Decoder(list[Segment]).decode


# A channel with its head, and the rows of its entries. One statement sees one state of the database.
_CHANNEL = """
SELECT id, {epoch}, serial, floor, lives, has_tail, tail, CASE WHEN has_tail THEN ARRAY({moved}) END AS moved
  FROM (VALUES ($1)) AS w (name) LEFT JOIN {schema}.channels USING (name) LEFT JOIN {schema}.lives USING (name)
"""
_MOVED = "SELECT body FROM {schema}.tails WHERE channel = channels.id ORDER BY last"
# Rows of entries after a serial; older ones are left out once the newer ones exceed the limit, which is that of the
# operations: in a row, the smallest ones take less than twice as much.
_MOVED_AFTER = """
SELECT body FROM (
  SELECT body, last, sum(length(body)) OVER (ORDER BY last DESC) - length(body) AS newer FROM {schema}.tails
    WHERE channel = channels.id AND last > $2
) t WHERE newer <= 2 * $3::bigint ORDER BY last
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
        """Return the heads of `channels` (`Store.heads`)."""
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
        return await self._column(f"SELECT name FROM {self._schema}.channels WHERE has_tail ORDER BY name")

    async def _column(self, query: str, *values: object) -> list[str]:
        """Return the only column of a query."""
        return [row[0] for row in await self._db.fetch(query, *values)]

    async def changes(self, channel: str, *, after: int, limit: int) -> Changes:
        """Return the messages that changed after a serial (`Store.changes`)."""
        log = await self.log(channel)
        if log.id is None:
            return Changes(log.head, None, [])
        newest = await self._db.fetchval(
            f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND created > 0"
            " ORDER BY created DESC LIMIT 1",
            log.id,
        )
        later = [key for key, entries in log.entries.items() if entries[-1].serial > after]
        ids = await self._column(
            f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND version > $2"
            f" UNION SELECT message FROM {self._schema}.documents WHERE channel = $1 AND message = ANY($3) LIMIT $4",
            *(log.id, after, later, limit + 1),
        )
        stored = await self._stored(log, ids) if len(ids) <= limit else {}
        return Changes(log.head, newest, [stored[key] for key in ids] if len(ids) <= limit else None)

    async def entries(self, channel: str, *, after: int, limit_bytes: int) -> Tail:
        """Return the entries after a serial (`Store.entries`)."""
        row, bodies = await self._channel(_MOVED_AFTER, channel, after, limit_bytes)
        return tail_of(_head(row), entries_in(bodies), after=after, limit_bytes=limit_bytes)

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        """Return messages and commands by their ids (`Store.messages`)."""
        log = await self.log(channel)
        found = await self._stored(log, ids)
        missing = [key for key in ids if key not in found]
        if missing:
            used_up = f"SELECT message FROM {self._schema}.used_up WHERE channel = $1 AND message = ANY($2)"
            for key in await self._column(used_up, channel, missing):
                found[key] = Stored(id=key, head=used_up_head(key), segments=[], entries=[])
        return log.head, found

    async def page(
        self, channel: str, *, before: int | None, after: int | None = None, limit: int, limit_bytes: int
    ) -> StoredPage:
        """Return a page of messages (`Store.page`)."""
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
        """Return the channels with open messages or commands (`Store.open_channels`)."""
        return await self._column(
            f"SELECT name FROM {self._schema}.channels WHERE id IN"
            f" (SELECT channel FROM {self._schema}.documents WHERE is_open) ORDER BY name"
        )

    async def open_documents(self, channel: str) -> list[Stored]:
        """Return the open documents of `channel` (`Store.open_documents`)."""
        log = await self.log(channel)
        opened = f"SELECT message FROM {self._schema}.documents WHERE channel = $1 AND is_open"
        return list((await self._stored(log, await self._column(opened, log.id))).values())

    async def channels(self, *, after: str | None, limit: int) -> list[str]:
        """Return the names of channels that are not empty (`Store.channels`)."""
        return await self._column(
            f"SELECT name FROM {self._schema}.channels WHERE name > $1 ORDER BY name LIMIT $2", after or "", limit
        )

    async def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        """Return a list of channels (`Store.summaries`)."""
        rows = await self._db.fetch(
            f"SELECT name AS channel, coalesce(created_ms, 0) AS created_ms, coalesce(updated_ms, 0) AS updated_ms,"
            f" messages, size_bytes FROM {self._schema}.channels c"
            f" LEFT JOIN {self._schema}.times t ON t.channel = c.id,"
            f" LATERAL (SELECT count(*) AS messages, coalesce(sum(size_bytes), 0)::bigint AS size_bytes"
            f" FROM {self._schema}.documents d WHERE d.channel = c.id AND created > 0 AND NOT is_deleted) s"
            " WHERE name > $1 AND (name = ANY($2) OR EXISTS"
            " (SELECT FROM unnest($3::text[]) AS p (prefix) WHERE starts_with(name, prefix))) ORDER BY name LIMIT $4",
            after or "",
            [one for one in within if not one.endswith("*")],
            [one.removesuffix("*") for one in within if one.endswith("*")],
            limit,
        )
        return [ChannelSummary(**row) for row in rows]

    async def newest_ms(self) -> int:
        """Return the time of the latest change (`Store.newest_ms`)."""
        newest_ms: int = await self._db.fetchval(f"SELECT coalesce(max(updated_ms), 0) FROM {self._schema}.times")
        return newest_ms

    async def facts(self, channel: str, *, after: int, limit: int) -> Facts:
        """Return facts for retention (`Store.facts`). `created` is 0 in documents of commands and options."""
        log = await self.log(channel)
        rows = await self._db.fetch(
            "SELECT message, version, created > 0 AND NOT is_deleted AS is_counted, size_bytes, head, is_open OR EXISTS"
            f" (SELECT FROM {self._schema}.documents o"
            " WHERE o.channel = d.channel AND o.target = d.message AND o.is_open) AS is_busy"
            f" FROM {self._schema}.documents d WHERE channel = $1 AND version > $2 ORDER BY version LIMIT $3",
            *(log.id, after, limit),
        )
        return Facts(log.head, [_fact(row, log) for row in rows])

    async def commands(self, channel: str, *, after: str | None, limit: int) -> list[str]:
        """Return the ids of commands (`Store.commands`)."""
        return await self._column(
            f"SELECT message FROM {self._schema}.documents"
            f" WHERE channel = (SELECT id FROM {self._schema}.channels WHERE name = $1)"
            " AND message > $2 AND message < $3 ORDER BY message LIMIT $4",
            *(channel, after or COMMAND_MARK, chr(ord(COMMAND_MARK) + 1), limit),
        )

    async def notes(self, prefix: str) -> dict[str, bytes]:
        """Return the hub's notes under a prefix (`Store.notes`)."""
        rows = await self._db.fetch(f"SELECT name, value FROM {self._schema}.notes WHERE starts_with(name, $1)", prefix)
        return {row["name"]: row["value"] for row in rows}

    async def _stored(self, log: Log, ids: Iterable[str]) -> dict[str, Stored]:
        """Return the messages and commands `ids` that have documents, with their entries in `log`."""
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
    return Fact(
        id=row["message"],
        version=row["version"],
        is_counted=row["is_counted"],
        size_bytes=row["size_bytes"],
        at_ms=changed_ms(row["message"], row["head"]),
        is_busy=row["is_busy"] or row["message"] in log.entries,
    )


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


class PostgresWriter(PostgresReader):
    """Statements that also write, on one connection, inside the transaction of their caller."""

    def __init__(self, db: Connection[Record], schema: str, life: str, uncovered: Uncovered) -> None:
        """Write to `db` in the store's `life` (`StoreLife.name`)."""
        super().__init__(db, schema, life)
        self._life = life
        self._uncovered = uncovered
        self.row_bytes = 0  # size of what this has written

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        """Store the writes that do not conflict, and the documents of those (`Store.commit`)."""
        kept = [uncovered_entries(write) for write in writes]
        for write, entries in zip(writes, kept, strict=True):
            if not write.expected:
                self._uncovered.forget(write.channel)  # a channel that begins has no earlier entries
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
        stored = {row["n"] - 1: (row["id"], row["serial"]) for row in rows}  # n counts from 1
        await self._undo_born(writes, stored)  # of channels that have other lives by now
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
        heads = dict(zip(refused, await self.heads(refused), strict=True)) if refused else {}
        self._uncovered.unsure.update(refused)
        for n, write in enumerate(writes):
            if n in stored:
                results.append(Committed(stored[n][1]))
            elif not write.entries and heads[write.channel] == NOTHING._replace(lives=write.lives):
                results.append(Committed(0))  # documents of an empty channel are left out
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
            (channel, document.id, document.version, _encode(document.segments))
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
        (head,) = await self.heads([channel])
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
        return (await self.heads([channel]))[0]

    async def prune(self, channel: str, epoch: str, versions: Mapping[str, int]) -> list[str]:
        """Remove messages and commands (`Store.prune`)."""
        await self._db.execute(f"SELECT FROM {self._schema}.channels WHERE name = $1 FOR UPDATE", channel)
        log = await self.log(channel)
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
        log = await self.log(channel)
        entries = sorted((entry for of in log.entries.values() for entry in of), key=lambda entry: entry.serial)
        rows = await self._db.fetch(
            f"SELECT message, version FROM {self._schema}.documents WHERE channel = $1 AND message = ANY($2)",
            *(log.id, list(log.entries)),
        )
        self._uncovered.reload(channel, log.head, entries, {row["message"]: row["version"] for row in rows})

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
        """Remove used-up ids, `Head.lives` of deleted channels, and data of commands, whose time is over."""
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
