"""Reads of an SQLite store beside the process that serves it, and the check of all of it: structure and checksums.

Layer: stores.

The connection cannot write. Reads are short, so they do not keep the server from emptying its WAL for long. If the
structure is damaged, the check names messages as far as SQLite can read the table. As a program, with the path of the
file, it prints each line of `verify` as JSON, and `null` at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Collection, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from tenuto.core.document import DAMAGE, Stored, restored
from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.stores.base import NOTHING, Facts
from tenuto.stores.sqlite.channels import MISCOUNTED, Channels, damaged_channel, sum_or_none
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.engine import space_in
from tenuto.stores.sqlite.file import check_header, check_tables, reading
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.slots import damaged, is_damage


@contextlib.contextmanager
def reading_store(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the store file for reading. A foreign `-wal` is not read.

    Raises LocalError if the file does not exist, StoreUnusable if it cannot be read.
    """
    if not path.is_file():
        raise LocalError(f"store file {path} does not exist; name the store with --store")
    try:
        with reading(path) as db:
            check_header(db, f"store file {path}", advice="name the store with --store")
            check_tables(db, f"store file {path}")
            yield db
    except (sqlite3.DatabaseError, *DAMAGE) as error:
        raise damaged(f"store file {path}", error) from error


def check(db: sqlite3.Connection, what: str, *, remedy: str) -> None:
    """Raise StoreUnusable for a database, called `what`, whose structure is damaged; the caller knows its header."""
    try:
        check_tables(db, what, remedy=remedy)
        (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.DatabaseError, *DAMAGE) as error:
        if not is_damage(error):
            raise
        raise damaged(what, error, remedy=remedy) from error
    if found != "ok":
        raise StoreUnusable(f"{what} is damaged ({' '.join(found.split())}); {remedy}")


class FileReader:
    """The reads of a `Store` that lists and retention need, of a file that may be served. Raises LocalError, too."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def notes(self, prefix: str) -> dict[str, bytes]:
        with reading_store(self._path) as db:
            return dict(db.execute("SELECT name, value FROM notes WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)))

    async def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        with reading_store(self._path) as db:
            return Channels(db).summaries(within, after=after, limit=limit)

    async def open_documents(self, channel: str) -> Collection[object]:
        with reading_store(self._path) as db:
            channels = Channels(db)
            return channels.documents.open(channels.get(channel).id)

    async def facts(self, channel: str, *, after: int, limit: int) -> Facts:
        with reading_store(self._path) as db:
            channels = Channels(db)
            return Facts(NOTHING, channels.documents.facts(channels.get(channel).id, after, limit))


LINE_CHARACTERS = 10_000  # of a line that the program prints
NICENESS = 10
_MAYBE_LOST = "a damaged row of the log may have held its last text"


def verify(path: Path) -> Iterator[str]:
    """Yield one line for each damaged part of the store. Raises StoreUnusable if the file cannot be read at all."""
    with reading_store(path) as db:
        remedy = "if no message is named below, run `tenuto compact`; if that fails, restore a backup"
        try:
            check(db, f"store file {path}", remedy=remedy)
        except StoreUnusable as error:
            yield str(error)
        yield from damage_in(db)


def free_space(path: Path) -> tuple[int, int]:
    """Return the size of the file in bytes, and how much of it is free. Raises StoreUnusable.

    The slots in a damaged list of free slots do not count as free.
    """
    with reading_store(path) as db:
        documents = Documents(db)
        with contextlib.suppress(sqlite3.DatabaseError):  # `verify` reports it
            documents.count_free()
        return space_in(db, documents)


def damage_in(db: sqlite3.Connection) -> Iterator[str]:
    """Yield one line for each damaged channel, message and row of the log in a database."""
    channels = Channels(db)
    names: dict[int, str] = {}
    for number, name, epoch, floor, checksum in _listed(db, "SELECT id, name, epoch, floor, crc FROM channels"):
        names[number] = "(deleted)" if name is None else f"{name!r}"
        if name is not None and checksum != sum_or_none(number, name, epoch, floor):
            yield damaged_channel(name)
    for _, name in _listed(db, MISCOUNTED):
        yield (
            f"channel {name!r}: its count of messages or bytes is wrong; if none of its messages is named, run "
            "`tenuto compact`, which counts anew"
        )
    for key, number, message_id in _listed(db, "SELECT id, channel, message FROM documents"):
        db.execute("BEGIN")
        try:
            problem = _problem(channels.documents, key, message_id)
        finally:
            db.execute("ROLLBACK")
        if problem is not None:
            yield f"{_place(names, number, message_id)}: {problem}"
    db.execute("BEGIN")
    try:
        lines = _damage_of_log(db, channels, names)
    finally:
        db.execute("ROLLBACK")
    yield from lines


def _problem(documents: Documents, key: int, message_id: str) -> str | None:
    """Return what is wrong with a message; None if it is whole, or if the server has removed it meanwhile."""
    try:
        documents.read(key, message_id)
    except StoreUnusable as error:
        problem = str(error)
    except sqlite3.DatabaseError as error:
        problem = f"{error}; restore a backup"
    else:
        return None
    with contextlib.suppress(sqlite3.DatabaseError):
        if documents.by_key(key) is None:
            return None
    return problem


def _damage_of_log(db: sqlite3.Connection, channels: Channels, names: dict[int, str]) -> list[str]:
    """Return a line for each damaged row of the log, and for each message that lost entries. One transaction."""
    log = CommitLog()
    try:
        log.load(db, channels.tracked)
        entries, damaged = log.entries(db, log.pinned)
    except StoreUnusable as error:
        return [str(error)]
    except (sqlite3.DatabaseError, *DAMAGE) as error:
        line = f"the log cannot be read ({type(error).__name__}: {error}); restore a backup"
        return [line, *_maybe_lost(db, {}, names)]
    lines = [
        f"row {slot} of the log is damaged; the next start names what is lost in open messages; restore a backup"
        for slot in log.damaged
    ]
    for key, tracked in log.pinned.items():
        with contextlib.suppress(StoreUnusable, sqlite3.DatabaseError):  # named above
            head, segments = channels.documents.read(key, tracked.id)
            reason = damaged.get(key)
            try:
                if reason is None:
                    restored([Stored(id=tracked.id, head=head, segments=segments, entries=entries[key])])
            except StoreUnusable as error:
                reason = str(error)
            if reason is None and log.damaged:
                reason = _MAYBE_LOST
            if reason is not None:
                lines.append(f"channel {tracked.channel!r}: message {tracked.id!r}: {reason}; restore a backup")
    return lines + _maybe_lost(db, log.pinned, names) if log.damaged else lines


def _maybe_lost(db: sqlite3.Connection, pinned: Container[int], names: dict[int, str]) -> list[str]:
    """Return a line for each open message that is not in `pinned`."""
    with contextlib.suppress(sqlite3.DatabaseError):  # the check of the structure has reported it
        rows = db.execute("SELECT id, channel, message FROM documents WHERE open = 1").fetchall()
        return [
            f"{_place(names, number, message_id)}: {_MAYBE_LOST}; restore a backup"
            for key, number, message_id in rows
            if key not in pinned and names.get(number) != "(deleted)"
        ]
    return []


def _place(names: dict[int, str], channel: int, message_id: str) -> str:
    return f"channel {names.get(channel, f'number {channel}')}: message {message_id!r}"


def _listed(db: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query, as far as they can be read; the check of the structure has reported the rest."""
    found: list[tuple[Any, ...]] = []
    with contextlib.suppress(sqlite3.DatabaseError):
        found.extend(db.execute(query))  # keeps the rows before an error
    return found


def main(path: Path) -> None:
    """Print the lines of `verify` as JSON; an error is the last of them. It gives way to other processes."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    try:
        for line in verify(path):
            print(json.dumps(line[:LINE_CHARACTERS]), flush=True)
    except (StoreUnusable, LocalError) as error:
        print(json.dumps(str(error)[:LINE_CHARACTERS]))
    print("null")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
