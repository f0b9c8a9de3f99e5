"""The check of a whole SQLite store: its structure, and each checksum.

Layer: stores.

It reads through a connection of its own that cannot write, in short transactions, so it also runs beside a server.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from holdfast.core.errors import StoreUnusable
from holdfast.stores.sqlite_backup import check
from holdfast.stores.sqlite_channels import Channels
from holdfast.stores.sqlite_documents import Documents
from holdfast.stores.sqlite_file import CHECKSUMS, SUMMARIES
from holdfast.stores.sqlite_reader import reading_store
from holdfast.stores.sqlite_space import space_in
from holdfast.stores.sqlite_sums import opened

_MISCOUNTED = (
    "SELECT name FROM channels WHERE name IS NOT NULL AND (messages, size_bytes) IS NOT ("
    "SELECT count(*), coalesce(sum(size_bytes), 0) FROM documents"
    " WHERE channel = channels.id AND deleted = 0 AND created > 0)"
)


def verify(path: Path) -> Iterator[str]:
    """Yield one line for each damaged part of the store. Raises StoreUnusable if the file cannot be read at all."""
    with reading_store(path) as db:
        yield from _damage(db, path)


def free_space(path: Path) -> tuple[int, int]:
    """Return the size of the file in bytes, and how much of it is free. Raises StoreUnusable."""
    with reading_store(path) as db:
        documents = Documents(db)
        documents.count_free()
        return space_in(db, documents)


def _damage(db: sqlite3.Connection, path: Path) -> Iterator[str]:
    try:
        check(db, path)
    except StoreUnusable as error:
        yield str(error)
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    if schema < CHECKSUMS:
        raise StoreUnusable(f"store file {path} has no checksums yet; start the server once, which adds them")
    documents = Documents(db)
    channels = Channels(db, documents)
    names = dict(db.execute("SELECT id, name FROM channels WHERE name IS NOT NULL"))
    for name in names.values():
        with contextlib.suppress(sqlite3.DatabaseError):  # reported above
            try:
                channels.find(name, at=0)
            except StoreUnusable as error:
                yield str(error)
    if schema >= SUMMARIES:
        for (name,) in db.execute(_MISCOUNTED):
            yield f"channel {name!r}: its count of messages or bytes is wrong; its messages are not affected"
    for key, number, message_id in db.execute("SELECT id, channel, message FROM documents").fetchall():
        db.execute("BEGIN")
        try:
            documents.read(key, message_id)
        except (StoreUnusable, sqlite3.DatabaseError) as error:
            if documents.by_key(key) is not None:  # otherwise the server has removed it meanwhile
                yield f"channel {names.get(number)!r}: message {message_id!r}: {error}"
        finally:
            db.execute("ROLLBACK")
    for slot, row in db.execute("SELECT id, body FROM log"):
        if opened(slot, row) is None:
            yield f"row {slot} of the log is damaged; messages that are open may have lost text; restore a backup"
