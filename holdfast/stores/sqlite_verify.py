"""The check of a whole SQLite store: its structure, and each checksum.

Layer: stores.

It reads through a connection of its own that cannot write, in short transactions, so it also runs beside a server.
As a program, with the path of the file, it prints each line of `verify` as JSON, and `null` at the end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.core.errors import LocalError, StoreUnusable
from holdfast.stores.sqlite_backup import check
from holdfast.stores.sqlite_channels import Channels
from holdfast.stores.sqlite_documents import Documents
from holdfast.stores.sqlite_file import CHECKSUMS, SUMMARIES
from holdfast.stores.sqlite_reader import reading_store
from holdfast.stores.sqlite_space import space_in
from holdfast.stores.sqlite_sums import opened

LINE_CHARACTERS = 10_000  # of a line that the program prints
NICENESS = 10
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
    """Return the size of the file in bytes, and how much of it is free. Raises StoreUnusable.

    The slots in a damaged list of free slots do not count as free.
    """
    with reading_store(path) as db:
        documents = Documents(db)
        with contextlib.suppress(sqlite3.DatabaseError):  # `verify` reports it
            documents.count_free()
        return space_in(db, documents)


def _damage(db: sqlite3.Connection, path: Path) -> Iterator[str]:
    try:
        check(db, path, kind="store file", remedy="if no message is named below, run `holdfast compact`")
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


def main(path: Path) -> None:
    """Print the lines of `verify` as JSON; an error is the last of them. It gives way to other processes."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        for line in verify(path):
            _print(line[:LINE_CHARACTERS])
    except (StoreUnusable, LocalError) as error:
        _print(str(error)[:LINE_CHARACTERS])
    _print(None)


def _print(value: str | None) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
