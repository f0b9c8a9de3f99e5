"""Messages as the SQLite store returns them: whole ones, and stand-ins for damaged ones.

Layer: stores. This code runs on the store's thread.

A damaged message is returned as a failed one without text (`damaged_head`), so that all other messages of its channel
stay readable. One whose id has changed is left out, because no read finds it under that id. A channel whose row is
damaged cannot be read at all.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

from tenuto.core.document import Stored, damaged_head
from tenuto.core.errors import StoreUnusable
from tenuto.stores.sqlite.channels import ChannelRow, Channels, begin_epochs
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.log import CommitLog, Tracked
from tenuto.stores.sqlite.slots import is_damage, opened, sealed

logger = logging.getLogger("tenuto.stores")


class WholeMessages:
    """Reads messages, and notes the damage that it finds."""

    def __init__(self, path: Path, documents: Documents, channels: Channels) -> None:
        self.messages: set[int] = set()  # keys of the damaged messages that were found
        self.renamed: set[int] = set()  # those of them that have another id than the index of ids
        self._names: set[str] = set()  # damaged channels that were found
        self._path = path
        self._documents = documents
        self._channels = channels

    def read(self, db: sqlite3.Connection, log: CommitLog, channel: int, wanted: Mapping[int, str]) -> list[Stored]:
        """Return the stored form of a channel's documents, given by key and id, each with its entries, in order.

        Documents that are added to `renamed` are left out.
        """
        entries, damaged = log.entries(db, wanted)
        stored = []
        for key, message_id in wanted.items():
            try:
                if key in damaged:
                    raise StoreUnusable(f"message {message_id!r} is damaged ({damaged[key]}); restore a backup")
                head, segments = self._documents.read(key, message_id, channel)
            except StoreUnusable as error:
                stored += self._damaged(log, channel, key, message_id, error)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                stored += self._damaged(log, channel, key, message_id, error)
            else:
                stored.append(Stored(id=message_id, head=head, segments=segments, entries=entries.get(key, [])))
        return stored

    def _damaged(self, log: CommitLog, channel: int, key: int, message_id: str, error: Exception) -> list[Stored]:
        """Return the stand-in for a damaged message; none if its id has changed."""
        if key not in self.messages:
            self.messages.add(key)
            logger.error("store file %s: message %r cannot be read: %s", self._path, message_id, error)
        with suppress(sqlite3.DatabaseError):  # the index is damaged, too
            found = self._documents.find(channel, message_id)
            if found is None or found.key != key:
                self.renamed.add(key)
                return []
        created, version = self._documents.place(key)
        tracked = log.pinned.get(key)
        version = max(version, created, tracked.last if tracked is not None else 0)
        return [Stored(id=message_id, head=damaged_head(message_id, created, version), segments=[], entries=[])]

    def channel(self, name: str, *, at: int) -> ChannelRow | None:
        """Return a channel that exists, as `Channels.find` does; None if it is damaged."""
        try:
            channel = self._channels.find(name, at=at)
            if channel is not None:
                return channel
            reason = "its row is not in the index"
        except StoreUnusable as error:
            reason = str(error)
        if name not in self._names:
            self._names.add(name)
            logger.error("store file %s: channel %r cannot be read: %s", self._path, name, reason)
        return None

    def is_readable(self, tracked: Tracked) -> bool:
        """Return whether no damage of this message or its channel is known."""
        return tracked.key not in self.messages and tracked.channel not in self._names

    def load_log(self, file: SqliteFile) -> tuple[CommitLog, int]:
        """Return the log, and the highest key in its rows. Go on without its damaged rows.

        Such a row may hold the last entries of any open message, so all of them are damaged. A serial may be lost with
        it, so all channels begin new epochs.
        """
        log = CommitLog()
        try:
            highest = log.load(file.db, self._channels.tracked)
            if not log.damaged:
                return log, highest
        except (StoreUnusable, sqlite3.DatabaseError) as error:
            if not (log.is_disordered or (isinstance(error, sqlite3.DatabaseError) and is_damage(error))):
                raise
            logger.error("store file %s: %s", self._path, error)
        rows = _log_rows(file.db)  # outside of the transaction: SQLite refuses writes after a damaged page was read
        with file.transaction() as db:
            lost = _put_in_order(db, rows)
            log = CommitLog()
            highest = log.load(db, self._channels.tracked)
            if lost:
                logger.error(
                    "store file %s: %d rows of the log are damaged; the messages that were open when the last process "
                    "ended are damaged too, and all channels begin new epochs; restore a backup",
                    self._path,
                    lost,
                )
                self._documents.mark_damaged(log.pinned)
                begin_epochs(db)
        return log, highest


def _log_rows(db: sqlite3.Connection) -> list[tuple[int, bytes | None]]:
    """Return number and body of each row of the log, without a body for one that cannot be read."""
    rows: list[tuple[int, bytes | None]] = []
    (count,) = db.execute("SELECT count(*) FROM log").fetchone()
    while len(rows) < count:
        try:
            for row in db.execute("SELECT id, CAST(body AS BLOB) FROM log ORDER BY id LIMIT ?, -1", (len(rows),)):
                rows.append(row)
            break
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            rows.append((0, None))
    return rows


def _put_in_order(db: sqlite3.Connection, rows: list[tuple[int, bytes | None]]) -> int:
    """Write the whole rows of the log anew, in the transaction of the caller. Return how many of them are lost.

    The checksum of a row covers its number. So a whole row whose number has changed is found by the number that its
    place gives.
    """
    whole: list[bytes] = []
    lost = 0
    number = 0
    for (slot, row), (following, _) in zip_longest(rows, rows[1:], fillvalue=(0, None)):
        number += 1
        body = opened(number, row) or b""
        if slot > number and following != number + 1 and not any(body) and opened(slot, row):
            body, number = opened(slot, row) or b"", slot  # the rows before it are missing
            lost += 1
        lost += not body
        if any(body):
            whole.append(body)
    db.execute("DELETE FROM log")  # all rows at once: neither their numbers nor their lengths matter to it
    db.executemany("INSERT INTO log VALUES (?, ?)", [(slot, sealed(slot, body)) for slot, body in enumerate(whole, 1)])
    return lost
