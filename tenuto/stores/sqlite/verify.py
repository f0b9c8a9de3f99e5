"""The check of a whole SQLite store: its structure, and each checksum.

Layer: stores.

It reads through a connection of its own that cannot write, in short transactions, so it also runs beside a server.
Where SQLite cannot read a table to its end, the check goes on with the other end and with the indexes: they name the
messages whose rows are lost. As a program, with the path of the file, it prints each line of `verify` as JSON, and
`null` at the end.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tenuto.core.document import DAMAGE, Stored, restored
from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.stores.sqlite.channels import MISCOUNTED, Channels
from tenuto.stores.sqlite.documents import Documents, Found
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.reader import check, reading_store
from tenuto.stores.sqlite.space import space_in

LINE_CHARACTERS = 10_000  # of a line that the program prints
NICENESS = 10
_MAYBE_LOST = "a damaged row of the log may have held its last text"
# Each list is read from both ends of the table, and from both ends of the index that has its columns.
_CHANNELS = tuple(
    f"SELECT id, name FROM channels {way}"
    for way in (
        "NOT INDEXED",
        "NOT INDEXED ORDER BY id DESC",
        "INDEXED BY sqlite_autoindex_channels_1 ORDER BY name",
        "INDEXED BY sqlite_autoindex_channels_1 ORDER BY name DESC",
    )
)
_DOCUMENTS = tuple(
    f"SELECT id, channel, message FROM documents {way}"
    for way in (
        "NOT INDEXED",
        "NOT INDEXED ORDER BY id DESC",
        "INDEXED BY documents_message ORDER BY channel, message",
        "INDEXED BY documents_message ORDER BY channel DESC, message DESC",
    )
)


def verify(path: Path) -> Iterator[str]:
    """Yield one line for each damaged part of the store. Raises StoreUnusable if the file cannot be read at all."""
    with reading_store(path) as db:
        remedy = "if no message is named below, run `tenuto compact`; if that fails, restore a backup"
        pages = None
        try:
            check(db, path, kind="store file", remedy=remedy)
        except StoreUnusable as error:
            yield str(error)
            pages = _Pages(db)
        yield from damage_in(db, pages)


def free_space(path: Path) -> tuple[int, int]:
    """Return the size of the file in bytes, and how much of it is free. Raises StoreUnusable.

    The slots in a damaged list of free slots do not count as free.
    """
    with reading_store(path) as db:
        documents = Documents(db)
        with contextlib.suppress(sqlite3.DatabaseError):  # `verify` reports it
            documents.count_free()
        return space_in(db, documents)


class _Pages:
    """The messages that pages and catch-ups list, by channel. A damaged index may leave some of them out."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # keys in pages, keys in catch-ups (None: the read fails), and the highest key at that moment
        self._known: dict[int, tuple[set[int] | None, set[int] | None, int]] = {}

    def leave_out(self, documents: Documents, key: int, channel: int, message_id: str) -> bool:
        """Return whether pages leave out the message, although it is not deleted, or catch-ups do."""
        fact = documents.fact(channel, message_id)
        if channel not in self._known:
            (highest,) = self._db.execute("SELECT max(id) FROM documents").fetchone()
            ways = [_keys(partial(documents.by_creation, channel, None, after)) for after in (None, 0)]
            found = [one for one in ways if one is not None]
            pages = set.intersection(*found) if found else None
            self._known[channel] = pages, _keys(partial(documents.changed, channel, 0, -1)), highest
        pages, changed, highest = self._known[channel]
        if fact is None or key > highest:
            return False
        is_shown = pages is None or key in pages or not fact[1].is_counted
        return not is_shown or (changed is not None and key not in changed)


def _keys(read: Callable[[], Iterable[Found]]) -> set[int] | None:
    """Return the keys of the documents that `read` finds; None if it fails."""
    try:
        return {found.key for found in read()}
    except sqlite3.DatabaseError:
        return None


def damage_in(db: sqlite3.Connection, pages: _Pages | None = None) -> Iterator[str]:
    """Yield one line for each damaged channel, message and row of the log, in a database.

    With `pages` also for each message that they leave out.
    """
    documents = Documents(db)
    channels = Channels(db, documents)
    names: dict[int, str] = {}
    problems = []
    for row in _listed(db, _CHANNELS):
        number, name = row
        names[number] = "(deleted)" if name is None else f"{name!r}"
        problem = _problem_of_channel(channels, name) if name is not None else None
        if problem is not None:
            problems.append((row, problem))
    if problems:
        still = set(_listed(db, _CHANNELS))  # the server has deleted the others meanwhile
        yield from (problem for row, problem in problems if row in still)
    with contextlib.suppress(sqlite3.DatabaseError):  # the check of the structure has reported it
        for _, name in db.execute(MISCOUNTED):
            yield (
                f"channel {name!r}: its count of messages or bytes is wrong; if none of its messages is named, run "
                "`tenuto compact`, which counts anew"
            )
    lost = []
    for row in _listed(db, _DOCUMENTS):
        key, number, message_id = row
        place = _place(names, number, message_id)
        db.execute("BEGIN")
        try:
            problem = _problem(documents, pages, key, number, message_id)
        except LookupError:
            lost.append((row, place))
        else:
            if problem is not None:
                yield f"{place}: {problem}"
        finally:
            db.execute("ROLLBACK")
    if lost:
        still = set(_listed(db, _DOCUMENTS))  # the server has removed the others meanwhile
        for row, place in lost:
            if row in still:
                yield f"{place}: it cannot be found by its key {row[0]}; restore a backup"
    db.execute("BEGIN")
    try:
        lines = _damage_of_log(db, channels, documents, names)
    finally:
        db.execute("ROLLBACK")
    yield from lines


def _problem_of_channel(channels: Channels, name: str) -> str | None:
    try:
        if channels.find(name, at=0) is None:
            return f"channel {name!r} is damaged: its row cannot be found by its name; restore a backup"
    except StoreUnusable as error:
        return str(error)
    except sqlite3.DatabaseError as error:
        return f"channel {name!r} cannot be read: {error}; restore a backup"
    return None


def _problem(documents: Documents, pages: _Pages | None, key: int, channel: int, message_id: str) -> str | None:
    """Return what is wrong with a message; None if it is whole. Raises LookupError if no row has its key."""
    try:
        documents.read(key, message_id)
    except StoreUnusable as error:
        problem = str(error)
    except sqlite3.DatabaseError as error:
        problem = f"{error}; restore a backup"
    else:
        with contextlib.suppress(sqlite3.DatabaseError):
            found = documents.find(channel, message_id)
            if found is not None and found.key == key:
                if pages is not None and pages.leave_out(documents, key, channel, message_id):
                    return "it is whole, but an index leaves it out of pages or catch-ups; run `tenuto compact`"
                return None
        return "it is whole, but an index of the file does not list it, so it is not shown; run `tenuto compact`"
    with contextlib.suppress(sqlite3.DatabaseError):
        if documents.by_key(key) is None:
            raise LookupError
    return problem


def _damage_of_log(
    db: sqlite3.Connection, channels: Channels, documents: Documents, names: dict[int, str]
) -> list[str]:
    """Return a line for each damaged row of the log, and for each message that lost entries. One transaction."""
    log = CommitLog()
    try:
        log.load(db, channels.tracked)
        entries, damaged = log.entries(db, log.pinned)
    except StoreUnusable as error:
        return [str(error), *(_maybe_lost(db, {}, names) if log.is_disordered else [])]
    except (sqlite3.DatabaseError, *DAMAGE) as error:
        line = f"the log cannot be read ({type(error).__name__}: {error}); restore a backup"
        return [line, *_maybe_lost(db, {}, names)]
    lines = [
        f"row {slot} of the log is damaged; messages that are open may have lost text; restore a backup"
        for slot in log.damaged
    ]
    for key, tracked in log.pinned.items():
        with contextlib.suppress(StoreUnusable, sqlite3.DatabaseError):  # named above
            head, segments = documents.read(key, tracked.id)
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


def _listed(db: sqlite3.Connection, ways: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Return the rows of queries for the same rows, as far as each can be read, without repetition."""
    found: dict[tuple[Any, ...], None] = {}
    for one in ways:
        with contextlib.suppress(sqlite3.DatabaseError):
            for row in db.execute(one):
                found[row] = None
    return list(found)


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
