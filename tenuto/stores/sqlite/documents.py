"""Documents: how the SQLite file keeps messages.

Layer: stores. This code runs on the store's thread.

A row in `documents` holds the indexed fields; a document's bytes are blobs, cut into chunks that lie in slots (`file`).
Blob 0 is the head, which each write replaces; each later blob holds the segments of one write, and a fresh document
begins again with blob 1. A blob is replaced in the same slot if it fits. Freed slots are filled with zeros at once.

Each read checks the checksums (`slots`): that of each slot, and that in `documents`. The latter covers the row's other
fields, the head, and the number of the last blob, so that a missing blob is noticed. A row without a checksum is
damaged: entries of its message were lost (`CommitLog`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from tenuto.core.document import DAMAGE, Document, Segment, changed_ms
from tenuto.core.errors import StoreUnusable
from tenuto.stores.base import Fact
from tenuto.stores.sqlite.slots import (
    MAX_DATA,
    MAX_ROOM,
    SLOT_BYTES,
    check_above,
    head_sum,
    larger_rooms,
    opened,
    room_for,
    sealed,
    sealed_chunks,
)

HEAD = 0  # number of the blob that holds a document's head
LARGE_BLOB_BYTES = 64 * 1024  # size from which the chunks of a blob are written together
INTEGER_BYTES = 8  # bytes that an integer in a row counts for in `row_bytes`

_encode_segments = msgspec.msgpack.Encoder().encode
_decode_segments = msgspec.msgpack.Decoder(list[Segment]).decode


class WrongChecksum(ValueError):
    """A checksum differs from that of the data."""


class Found(NamedTuple):
    """The indexed fields of one document."""

    key: int
    id: str
    version: int
    size_bytes: int
    channel: int


# The fields of a row that the checksum of the head covers, and the checksum.
_ROW = "SELECT channel, message, created, version, open, deleted, size_bytes, target, crc FROM documents WHERE id = ?"
_FACT = (
    "SELECT id, message, version, created > 0 AND NOT deleted, size_bytes, open OR EXISTS"
    " (SELECT 1 FROM documents AS one WHERE one.channel = documents.channel AND one.target = documents.message"
    " AND one.open = 1) FROM documents "
)
_BEFORE = (  # counts of the channel, whether `open` and `deleted` have these values, and the last blob
    "SELECT created > 0 AND NOT deleted, (created > 0 AND NOT deleted) * size_bytes, (open, deleted) = (?, ?),"
    " (SELECT coalesce(max(blob), 0) FROM pieces WHERE document = documents.id) FROM documents WHERE id = ?"
)
_MOST = 2**62  # above every serial, and an integer of SQLite
_FOUND = "SELECT id, message, version, size_bytes, channel FROM documents "


class Documents:
    """The documents in the file. Methods run inside the transaction of their caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # bytes of all rows handed to the database; those outside the log also of transactions that were rolled back
        self.row_bytes = 0
        (highest,) = db.execute("SELECT max(id) FROM documents").fetchone()
        self._next_key = (highest or 0) + 1
        (highest,) = db.execute("SELECT max(id) FROM texts").fetchone()
        self._next_slot = (highest or 0) + 1
        self.free_bytes = 0  # size of all free slots; after a rollback it is wrong until `count_free`

    def count_free(self) -> None:
        """Add up the size of all free slots. The time depends on their number."""
        # The plus makes SQLite read the whole table, and so find damage anywhere in it.
        total = "SELECT coalesce(sum(room), 0) FROM free WHERE +room BETWEEN 1 AND ?"
        (self.free_bytes,) = self._db.execute(total, (MAX_ROOM,)).fetchone()

    def skip_keys(self, highest: int) -> None:
        """Assign only keys above `highest`, because old rows of the log may name documents that no longer exist."""
        self._next_key = max(self._next_key, highest + 1)

    def new_key(self) -> int:
        """Return a new key for a document that will be written. No key is returned twice."""
        self._next_key += 1
        return self._next_key - 1

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, channel: int, key: int, document: Document, *, is_new: bool) -> tuple[int, int]:
        """Write a document of a message, the first one if it `is_new`.

        Return what it adds to the counts of its channel: a number of messages, and their bytes.
        """
        messages = size_bytes = last_before = 0
        is_marked_so = False
        if not is_new:
            messages, size_bytes, is_marked_so, last_before = self._db.execute(
                _BEFORE, (document.is_open, document.is_deleted, key)
            ).fetchone()
        put = self._put if is_new else self._replace
        put(document, key, HEAD, document.head)
        has_segments = bool(document.segments) and self._may_keep_data(channel, document)
        last = (HEAD if document.fresh else last_before) + has_segments  # number of the last blob
        if last < last_before:
            self._free(key, from_blob=last + 1)
        if has_segments:
            put = self._replace if last <= last_before else self._put
            put(document, key, last, _encode_segments(document.segments))
        marks = (int(document.is_open), int(document.is_deleted))  # as SQLite returns them when the sum is checked
        indexed = (channel, document.id, document.created, document.version, *marks)
        fields = (*indexed, document.size_bytes, document.target)
        checksum = head_sum((*fields, last), document.head)
        if is_new:
            row = (key, *fields, document.until_ms, checksum)
            self._db.execute("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self.row_bytes += 8 * INTEGER_BYTES + len(document.id) + len(document.target or "")
        else:
            # SQLite writes the indexes of all columns that are set, also those of equal values
            columns = "version = ?, size_bytes = ?, crc = ?" + ("" if is_marked_so else ", open = ?, deleted = ?")
            values = (document.version, document.size_bytes, checksum, *(() if is_marked_so else marks), key)
            self._db.execute(f"UPDATE documents SET {columns} WHERE id = ?", values)
            self.row_bytes += 6 * INTEGER_BYTES
        if document.is_deleted:
            about = "SELECT id FROM documents WHERE channel = ? AND target = ? AND open = 0"
            for (other,) in self._db.execute(about, (channel, document.id)).fetchall():
                self._free_segments(other)
        is_counted = bool(document.created) and not document.is_deleted
        return is_counted - messages, is_counted * document.size_bytes - size_bytes

    def remove_keys(self, keys: Collection[int]) -> int:
        """Remove the documents `keys`, and return how many of them were found.

        The text of a slot that a damaged one shares with another document stays.
        """
        damaged = []
        for key in keys:
            try:
                self.read(key, *self._db.execute("SELECT message FROM documents WHERE id = ?", (key,)).fetchone())
            except (StoreUnusable, TypeError):  # TypeError: no row has the key
                damaged.append(key)
        if damaged:  # one scan of the table for all of them
            theirs = f"document IN ({', '.join('?' * len(damaged))})"
            others = f"SELECT slot FROM pieces WHERE NOT {theirs} AND slot IN (SELECT slot FROM pieces WHERE {theirs})"
            self._db.execute(f"DELETE FROM pieces WHERE {theirs} AND slot IN ({others})", 3 * damaged)
        for key in keys:
            self._free(key, from_blob=HEAD)
        return self._db.executemany("DELETE FROM documents WHERE id = ?", [(key,) for key in keys]).rowcount

    def _may_keep_data(self, channel: int, document: Document) -> bool:
        """Return whether the store may keep the segments of `document`.

        It may not if the document is no longer open and its target is deleted.
        """
        if document.target is None or document.is_open:
            return True
        row = self._db.execute(
            "SELECT deleted FROM documents WHERE channel = ? AND message = ?", (channel, document.target)
        ).fetchone()
        return row is None or not row[0]

    def outdated(self, now_ms: int, limit: int) -> list[int]:
        """Return the keys of up to `limit` documents that are no longer open and whose `until_ms` has passed."""
        rows = self._db.execute("SELECT id FROM documents WHERE until_ms <= ? AND open = 0 LIMIT ?", (now_ms, limit))
        return [key for (key,) in rows]

    def drop_data(self, keys: list[int]) -> None:
        """Remove the segments of the documents `keys`, because their `until_ms` has passed."""
        for key in keys:
            self._free_segments(key)
        self._db.executemany("UPDATE documents SET until_ms = NULL WHERE id = ?", [(key,) for key in keys])

    def mark_damaged(self, keys: Iterable[int]) -> None:
        """Mark all open documents and those with `keys` as damaged: entries of their messages were lost."""
        self._db.execute("UPDATE documents SET crc = NULL WHERE open = 1")
        self._db.executemany("UPDATE documents SET crc = NULL WHERE id = ?", [(key,) for key in keys])

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, channel: int, message_id: str, created: int = 0) -> Found | None:
        """Return the document of a message, or None; with `created` also if a damaged index does not list its id."""
        row = self._db.execute(_FOUND + "WHERE channel = ? AND message = ?", (channel, message_id)).fetchone()
        if row is None and created:
            by_creation = _FOUND + "WHERE channel = ? AND deleted IN (0, 1) AND created = ? AND +message = ?"
            row = self._db.execute(by_creation, (channel, created, message_id)).fetchone()
        return Found(*row) if row else None

    def by_key(self, key: int) -> Found | None:
        """Return the document with this key, or None."""
        row = self._db.execute(_FOUND + "WHERE id = ?", (key,)).fetchone()
        return Found(*row) if row else None

    def place(self, key: int) -> tuple[int, int]:
        """Return at which serial a document's message was created, and the document's version; 1 and 1 if unknown."""
        try:
            row = self._db.execute("SELECT created, version FROM documents WHERE id = ?", (key,)).fetchone()
            return int(row[0]), int(row[1])
        except (sqlite3.DatabaseError, *DAMAGE):
            return 1, 1

    def changed(self, channel: int, after: int, limit: int) -> dict[int, str]:
        """Return the keys and ids of up to `limit` documents whose version is above `after`."""
        changed = "SELECT id, message FROM documents WHERE channel = ? AND version > ? LIMIT ?"
        return dict(self._db.execute(changed, (channel, after, limit)).fetchall())

    def by_creation(self, channel: int, before: int | None, after: int | None) -> sqlite3.Cursor:
        """Return the rows (`Found`) of the documents that are not deleted, in the order of `Store.page`."""
        order = "DESC" if after is None else "ASC"
        first = 1 if after is None else min(max(after, 0), _MOST) + 1  # a command has 0 as `created`
        last = _MOST if before is None else min(before, _MOST) - 1
        return self._db.execute(
            f"{_FOUND}WHERE channel = ? AND deleted = 0 AND created BETWEEN ? AND ? ORDER BY created {order}",
            (channel, first, last),
        )

    def is_used_up(self, channel: str, message_id: str) -> bool:
        """Return whether the id belonged to a message of the deleted channel of this name."""
        found = "SELECT 1 FROM graves WHERE channel = ? AND message = ?"
        return self._db.execute(found, (channel, message_id)).fetchone() is not None

    def newest(self, channel: int) -> str | None:
        """Return the id of the message that was created last, even if it is deleted."""
        newest = "SELECT max(created), message FROM documents WHERE channel = ? AND deleted = ? AND created > 0"
        # two searches, as the index has `deleted` before `created`
        found = [self._db.execute(newest, (channel, deleted)).fetchone() for deleted in (0, 1)]
        latest: tuple[int | None, str | None] = max(found, key=lambda row: row[0] or 0)
        return latest[1]

    def facts(self, channel: int, after: int, limit: int) -> list[Fact]:
        """Return facts about up to `limit` documents whose version is above `after`, in its order."""
        rows = self._db.execute(
            _FACT + "WHERE channel = ? AND version > ? ORDER BY version LIMIT ?", (channel, after, limit)
        )
        facts = [self._fact(*row)[1] for row in rows.fetchall()]
        check_above([one.version for one in facts], after)
        return facts

    def fact(self, channel: int, message_id: str) -> tuple[int, Fact] | None:
        """Return the facts about one document, with its key, or None."""
        row = self._db.execute(_FACT + "WHERE channel = ? AND message = ?", (channel, message_id)).fetchone()
        return self._fact(*row) if row is not None else None

    def _fact(
        self, key: int, message_id: str, version: int, is_counted: int, size: int, is_busy: int
    ) -> tuple[int, Fact]:
        at_ms = None
        with contextlib.suppress(*DAMAGE, sqlite3.DatabaseError):
            at_ms = changed_ms(message_id, self._head(key, self._blobs(key, upto=HEAD))[1])
        return key, Fact(message_id, version, bool(is_counted), size, at_ms, bool(is_busy))

    def top(self, channel: int) -> int:
        """Return the highest version of the channel's documents."""
        (version,) = self._db.execute("SELECT max(version) FROM documents WHERE channel = ?", (channel,)).fetchone()
        return version or 0

    def open_channels(self) -> list[str]:
        """Return the names of the channels with open documents."""
        rows = self._db.execute(
            "SELECT DISTINCT channels.name FROM documents JOIN channels ON channels.id = documents.channel"
            " WHERE open = 1 AND channels.name IS NOT NULL ORDER BY channels.name"
        )
        return [name for (name,) in rows]

    def open(self, channel: int) -> dict[int, str]:
        """Return the keys and ids of a channel's open documents."""
        rows = self._db.execute(
            "SELECT id, message FROM documents WHERE open = 1 AND channel = ? ORDER BY id", (channel,)
        )
        return dict(rows.fetchall())

    def read(self, key: int, message_id: str, channel: int | None = None) -> tuple[bytes, list[Segment]]:
        """Return the head and the segments of the document of a message. Raises StoreUnusable if it is damaged.

        With `channel` it is also damaged if it belongs to another channel: a damaged index may list it for this one.
        """
        try:
            blobs = self._blobs(key)
            row, head = self._head(key, blobs)
            if row[1] != message_id:
                raise WrongChecksum("its head has a wrong checksum")
            if channel not in (None, row[0]):
                raise WrongChecksum("an index of its channel has a wrong checksum")
            return head, [segment for blob, data in blobs.items() if blob for segment in _decode_segments(data)]
        except DAMAGE as error:
            reason = str(error) if isinstance(error, WrongChecksum) else type(error).__name__
            raise StoreUnusable(f"message {message_id!r} is damaged ({reason}); restore a backup") from error

    def _head(self, key: int, blobs: dict[int, bytes]) -> tuple[tuple[Any, ...], bytes]:
        """Return the fields of a document's row (`_ROW`), and its head. Raises WrongChecksum."""
        row = self._db.execute(_ROW, (key,)).fetchone()
        head = blobs.get(HEAD)
        if row is None or not head or row[-1] != head_sum((*row[:-1], max(blobs)), head):
            raise WrongChecksum("its head has a wrong checksum")
        return row, head

    def _blobs(self, key: int, upto: int = _MOST) -> dict[int, bytes]:
        """Return the blobs of a document, by their numbers, those above `upto` without bytes. Raises WrongChecksum."""
        rows = self._db.execute(
            # LEFT JOIN, so that a missing slot is found as damage instead of shortening the document. CASE, so that no
            # page of a further blob is read: SQLite tests a plain condition after it has.
            "SELECT blob, chunk, body FROM pieces LEFT JOIN texts ON texts.id = CASE WHEN blob <= ? THEN slot END"
            " WHERE document = ? ORDER BY blob, chunk",
            (upto, key),
        )
        chunks: dict[int, list[bytes]] = {}
        for blob, chunk, body in rows.fetchall():
            data = opened((key, blob, chunk), body) if blob <= upto else b""
            if data is None:
                raise WrongChecksum(f"piece {chunk} of text {blob} has a wrong checksum")
            chunks.setdefault(blob, []).append(data)
        return {blob: b"".join(pieces) for blob, pieces in chunks.items()}

    # -- slots ---------------------------------------------------------------------------------------------------

    def _replace(self, document: Document, key: int, blob: int, data: bytes) -> None:
        """Write `data` in place of a blob, in the same slot if it fits."""
        slots = self._db.execute(
            "SELECT slot, length(body) FROM pieces CROSS JOIN texts ON texts.id = slot WHERE document = ? AND blob = ?",
            (key, blob),
        ).fetchall()
        needed = len(data) + SLOT_BYTES
        if len(slots) == 1 and needed <= slots[0][1] <= 2 * needed + 64:  # it fits, and is not far too large
            slot, room = slots[0]
            self._db.execute("UPDATE texts SET body = ? WHERE id = ?", (sealed((key, blob, 0), data, room), slot))
            self.row_bytes += room + INTEGER_BYTES
            return
        self._free(key, from_blob=blob, to_blob=blob)
        self._put(document, key, blob, data)

    def _put(self, document: Document, key: int, blob: int, data: bytes) -> None:
        """Write `data` as a blob.

        Its last chunk has room to grow if it is the head of an open message, which gets a reason, a request id or
        another part, or belongs to a command, which gets a reply.
        """
        may_grow = document.target is not None or (document.is_open and blob == HEAD)
        room_bytes = len(data) + len(data) // 4 + 32 if may_grow else 0
        first = self._put_new(key, blob, data) if len(data) >= LARGE_BLOB_BYTES else 0
        for chunk, start in enumerate(range(first * MAX_DATA, len(data), MAX_DATA), first):
            piece = data[start : start + MAX_DATA]
            slot = self._write((key, blob, chunk), piece, room_for(SLOT_BYTES + max(len(piece), room_bytes - start)))
            self._db.execute("INSERT INTO pieces VALUES (?, ?, ?, ?)", (key, blob, chunk, slot))
            self.row_bytes += 4 * INTEGER_BYTES

    def _put_new(self, key: int, blob: int, data: bytes) -> int:
        """Write the full chunks of `data` into new slots, and return their number; 0 if slots of this size are free.

        It takes two statements: between statements this thread and the event loop wait for each other.
        """
        if self._db.execute("SELECT 1 FROM free WHERE room = ?", (MAX_ROOM,)).fetchone() is not None:
            return 0
        slot, count = self._next_slot, len(data) // MAX_DATA
        bodies = sealed_chunks((key, blob), data, count)
        chunks = json.dumps([*range(count)])
        self._db.execute(
            "INSERT INTO texts SELECT ? + key, substr(?, key * ? + 1, ?) FROM json_each(?)",
            (slot, bodies, MAX_ROOM, MAX_ROOM, chunks),
        )
        self._db.execute("INSERT INTO pieces SELECT ?, ?, key, ? + key FROM json_each(?)", (key, blob, slot, chunks))
        self._next_slot += count
        self.row_bytes += count * (MAX_ROOM + 5 * INTEGER_BYTES)
        return count

    def _write(self, place: tuple[int, int, int], data: bytes, wanted: int) -> int:
        """Write `data` into a free slot of `wanted` bytes or little more, or into a new one; returns its number."""
        rooms = (wanted, larger_rooms(wanted)[-1])
        search = "SELECT room, slot FROM free WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1"
        free = self._db.execute(search, rooms).fetchone() if self.free_bytes else None
        if free is not None:
            room, slot = free
            self._db.execute("DELETE FROM free WHERE room = ? AND slot = ?", free)
            self.free_bytes -= room
            # a damaged row of `free` may name a slot in use, whose text must stay
            is_free = "UPDATE texts SET body = ? WHERE id = ? AND body = zeroblob(?)"
            if not self._db.execute(is_free, (sealed(place, data, room), slot, room)).rowcount:
                free = None
        if free is None:
            room, slot = wanted, self._next_slot
            self._next_slot += 1
            self._db.execute("INSERT INTO texts VALUES (?, ?)", (slot, sealed(place, data, room)))
        self.row_bytes += room + INTEGER_BYTES
        return int(slot)

    def _free_segments(self, key: int) -> None:
        """Free the segments of a document, and note in its checksum that it has none."""
        checksum = None  # of a damaged document, which stays damaged
        with contextlib.suppress(*DAMAGE):
            row, head = self._head(key, self._blobs(key))
            checksum = head_sum((*row[:-1], HEAD), head)
        self._free(key, from_blob=HEAD + 1)
        if checksum is not None:
            self._db.execute("UPDATE documents SET crc = ? WHERE id = ?", (checksum, key))

    def _free(self, key: int, *, from_blob: int, to_blob: int = 2**62) -> None:
        """Fill the slots of some blobs with zeros, and free them."""
        which = (key, from_blob, to_blob)
        slots = "(SELECT slot FROM pieces WHERE document = ? AND blob BETWEEN ? AND ?)"
        freed = self._db.execute(f"SELECT length(body), id FROM texts WHERE id IN {slots}", which).fetchall()
        self._db.executemany("INSERT OR IGNORE INTO free VALUES (?, ?)", freed)
        self.free_bytes += sum(room for room, _ in freed)
        self._db.execute(f"UPDATE texts SET body = zeroblob(length(body)) WHERE id IN {slots}", which)
        self._db.execute("DELETE FROM pieces WHERE document = ? AND blob BETWEEN ? AND ?", which)
