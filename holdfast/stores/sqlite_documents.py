"""Documents: how the SQLite file keeps messages.

Layer: stores. This code runs on the store's thread.

A row in `documents` holds the indexed fields; a document's bytes are
blobs, cut into chunks that lie in slots (`sqlite_file`). Blob 0 is the head, which each write replaces, in the same
slot if it fits; each later blob holds the segments of one write. Freed slots are filled with zeros at once.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from typing import NamedTuple

import msgspec

from holdfast.core.document import DAMAGE, Document, Segment, Stored, document, restore_command
from holdfast.core.errors import StoreUnusable
from holdfast.stores.sqlite_slots import LENGTH_BYTES, MAX_DATA, larger_rooms, pack, room_for, unpack

HEAD = 0  # number of the blob that holds a document's head
INTEGER_BYTES = 8  # bytes that an integer in a row counts for in `row_bytes`

_encode_segments = msgspec.msgpack.Encoder().encode
_decode_segments = msgspec.msgpack.Decoder(list[Segment]).decode


class Found(NamedTuple):
    """The indexed fields of one document."""

    key: int
    id: str
    version: int
    size_bytes: int


_FOUND = "SELECT id, message, version, size_bytes FROM documents "


class Documents:
    """The documents in the file. Methods run inside the transaction of their caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # bytes of all rows handed to the database since the start, also of transactions that were rolled back
        self.row_bytes = 0
        (highest,) = db.execute("SELECT max(id) FROM documents").fetchone()
        self._next_key = (highest or 0) + 1
        (highest,) = db.execute("SELECT max(id) FROM texts").fetchone()
        self._next_slot = (highest or 0) + 1

    def skip_keys(self, highest: int) -> None:
        """Assign only keys above `highest`, because old rows of the log may name documents that no longer exist."""
        self._next_key = max(self._next_key, highest + 1)

    def new_key(self) -> int:
        """Return a new key for a document that will be written. No key is returned twice."""
        self._next_key += 1
        return self._next_key - 1

    # -- writing -------------------------------------------------------------------------------------------------

    def add(self, channel: int, key: int, document: Document) -> None:
        """Write the first document of a message."""
        self._db.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (key, channel, document.id, document.created, *_changing(document), document.target, document.until_ms),
        )
        self.row_bytes += 7 * INTEGER_BYTES + len(document.id) + len(document.target or "")
        self._put(key, HEAD, document.head, self._head_room(document))
        if document.segments and self._may_keep_data(channel, document):
            self._put(key, HEAD + 1, _encode_segments(document.segments))
        if document.is_deleted:
            self._drop_data_about(channel, document.id)

    def update(self, channel: int, key: int, document: Document) -> None:
        """Write a further document of a message."""
        self._db.execute(
            "UPDATE documents SET version = ?, open = ?, deleted = ?, size_bytes = ? WHERE id = ?",
            (*_changing(document), key),
        )
        self.row_bytes += 5 * INTEGER_BYTES
        if document.fresh:
            self._free(key, from_blob=HEAD + 1)
        self._replace_head(key, document)
        if document.is_deleted:
            self._drop_data_about(channel, document.id)
        if document.segments and self._may_keep_data(channel, document):
            (last,) = self._db.execute("SELECT max(blob) FROM pieces WHERE document = ?", (key,)).fetchone()
            self._put(key, last + 1, _encode_segments(document.segments))

    def remove(self, channel: int, limit: int) -> bool:
        """Remove up to `limit` documents of `channel`; returns False if it had none."""
        keys = self._db.execute("SELECT id FROM documents WHERE channel = ? LIMIT ?", (channel, limit)).fetchall()
        for (key,) in keys:
            self._free(key, from_blob=HEAD)
        self._db.executemany("DELETE FROM documents WHERE id = ?", keys)
        return bool(keys)

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

    def _drop_data_about(self, channel: int, target: str) -> None:
        """Remove the segments of all documents with this target that are no longer open."""
        keys = self._db.execute(
            "SELECT id FROM documents WHERE channel = ? AND target = ? AND open = 0", (channel, target)
        ).fetchall()
        for (key,) in keys:
            self._free(key, from_blob=HEAD + 1)

    def outdated(self, now_ms: int, limit: int) -> list[int]:
        """Return the keys of up to `limit` documents that are no longer open and whose `until_ms` has passed."""
        rows = self._db.execute("SELECT id FROM documents WHERE until_ms <= ? AND open = 0 LIMIT ?", (now_ms, limit))
        return [key for (key,) in rows]

    def drop_data(self, keys: list[int]) -> None:
        """Remove the segments of the documents `keys`, because their `until_ms` has passed."""
        for key in keys:
            self._free(key, from_blob=HEAD + 1)
        self._db.executemany("UPDATE documents SET until_ms = NULL WHERE id = ?", [(key,) for key in keys])

    def upgrade_commands(self) -> None:
        """Rewrite all commands: before schema 3 their data was in their heads and had no target."""
        rows = self._db.execute("SELECT id, channel, message FROM documents WHERE message >= '!' AND message < '\"'")
        for key, channel, message_id in rows.fetchall():
            head, segments = self.read(key)
            command = restore_command(Stored(id=message_id, head=head, segments=segments, entries=[]))
            current = document(command)
            self._db.execute(
                "UPDATE documents SET target = ?, until_ms = ? WHERE id = ?", (current.target, current.until_ms, key)
            )
            self.update(channel, key, current)

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, channel: int, message_id: str) -> Found | None:
        """Return the document of a message, or None."""
        row = self._db.execute(_FOUND + "WHERE channel = ? AND message = ?", (channel, message_id)).fetchone()
        return Found(*row) if row else None

    def by_key(self, key: int) -> tuple[Found, int] | None:
        """Return the document with this key and the number of its channel, or None."""
        row = self._db.execute(_FOUND + "WHERE id = ?", (key,)).fetchone()
        if row is None:
            return None
        (channel,) = self._db.execute("SELECT channel FROM documents WHERE id = ?", (key,)).fetchone()
        return Found(*row), channel

    def changed(self, channel: int, after: int, limit: int) -> list[Found]:
        """Return up to `limit` documents whose version is above `after`."""
        rows = self._db.execute(_FOUND + "WHERE channel = ? AND version > ? LIMIT ?", (channel, after, limit))
        return [Found(*row) for row in rows]

    def newest_first(self, channel: int, before: int) -> Generator[Found]:
        """Yield the documents created before `before` and not deleted; rows are read on demand."""
        rows = self._db.execute(
            _FOUND + "WHERE channel = ? AND deleted = 0 AND created BETWEEN 1 AND ? ORDER BY created DESC",
            (channel, before - 1),
        )
        with contextlib.closing(rows):  # a statement that is left open would keep the WAL from being emptied
            for row in rows:
                yield Found(*row)

    def newest(self, channel: int) -> str | None:
        """Return the id of the message that was created last, even if it is deleted."""
        latest = [
            self._db.execute(
                "SELECT created, message FROM documents WHERE channel = ? AND deleted = ? AND created > 0"
                " ORDER BY created DESC LIMIT 1",
                (channel, deleted),
            ).fetchone()
            for deleted in (0, 1)
        ]
        return max((row for row in latest if row), default=(0, None))[1]

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

    def read(self, key: int) -> tuple[bytes, list[Segment]]:
        """Return the head and the segments of a document. Raises StoreUnusable if it is damaged."""
        rows = self._db.execute(
            # LEFT JOIN, so that a missing slot is found as damage instead of shortening the document.
            "SELECT blob, body FROM pieces LEFT JOIN texts ON texts.id = slot WHERE document = ? ORDER BY blob, chunk",
            (key,),
        )
        blobs: dict[int, list[bytes]] = {}
        try:
            for blob, body in rows:
                blobs.setdefault(blob, []).append(unpack(body))
            head = b"".join(blobs.pop(HEAD, ()))
            segments = [segment for chunks in blobs.values() for segment in _decode_segments(b"".join(chunks))]
        except DAMAGE as error:
            raise StoreUnusable(f"document {key} is damaged ({type(error).__name__}); restore a backup") from error
        if not head:
            raise StoreUnusable(f"document {key} is damaged: it has no head; restore a backup")
        return head, segments

    # -- slots ---------------------------------------------------------------------------------------------------

    def _head_room(self, document: Document) -> int:
        """Return the size of the slot for a head.

        The head of an open message will grow by a reason, a request id or another part.
        """
        size = len(document.head)
        return size + size // 4 + 32 if document.is_open else size

    def _replace_head(self, key: int, document: Document) -> None:
        slots = self._db.execute(
            "SELECT slot, length(body) FROM pieces CROSS JOIN texts ON texts.id = slot WHERE document = ? AND blob = ?",
            (key, HEAD),
        ).fetchall()
        size = len(document.head)
        needed = size + LENGTH_BYTES
        if len(slots) == 1 and needed <= slots[0][1] <= 2 * needed + 64:
            slot, room = slots[0]
            self._db.execute("UPDATE texts SET body = ? WHERE id = ?", (pack(document.head, room), slot))
            self.row_bytes += room + INTEGER_BYTES
            return
        self._free(key, from_blob=HEAD, to_blob=HEAD)
        self._put(key, HEAD, document.head, self._head_room(document))

    def _put(self, key: int, blob: int, data: bytes, room_bytes: int = 0) -> None:
        """Write `data` as a blob; its last chunk gets a slot for up to `room_bytes`."""
        for chunk, start in enumerate(range(0, len(data), MAX_DATA)):
            piece = data[start : start + MAX_DATA]
            slot = self._write(piece, room_for(LENGTH_BYTES + max(len(piece), room_bytes - start)))
            self._db.execute("INSERT INTO pieces VALUES (?, ?, ?, ?)", (key, blob, chunk, slot))
            self.row_bytes += 4 * INTEGER_BYTES

    def _write(self, data: bytes, wanted: int) -> int:
        free = self._db.execute(
            "SELECT room, slot FROM free WHERE room BETWEEN ? AND ? ORDER BY room LIMIT 1",
            (wanted, larger_rooms(wanted)[-1]),
        ).fetchone()
        if free is not None:
            room, slot = free
            self._db.execute("DELETE FROM free WHERE room = ? AND slot = ?", free)
            self._db.execute("UPDATE texts SET body = ? WHERE id = ?", (pack(data, room), slot))
        else:
            room, slot = wanted, self._next_slot
            self._next_slot += 1
            self._db.execute("INSERT INTO texts VALUES (?, ?)", (slot, pack(data, room)))
        self.row_bytes += room + INTEGER_BYTES
        return int(slot)

    def _free(self, key: int, *, from_blob: int, to_blob: int = 2**62) -> None:
        """Fill the slots of some blobs with zeros, and free them."""
        which = (key, from_blob, to_blob)
        slots = "(SELECT slot FROM pieces WHERE document = ? AND blob BETWEEN ? AND ?)"
        self._db.execute(f"INSERT INTO free SELECT length(body), id FROM texts WHERE id IN {slots}", which)
        self._db.execute(f"UPDATE texts SET body = zeroblob(length(body)) WHERE id IN {slots}", which)
        self._db.execute("DELETE FROM pieces WHERE document = ? AND blob BETWEEN ? AND ?", which)


def _changing(document: Document) -> tuple[int, bool, bool, int]:
    return document.version, document.is_open, document.is_deleted, document.size_bytes
