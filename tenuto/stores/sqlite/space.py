"""The space in an SQLite file: its size, how much of it is free, and the removal of data whose time is over.

Layer: stores. This code runs on the store's thread; other threads may call `stats` only.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Mapping

from tenuto.stores.base import Facts, Pruned
from tenuto.stores.sqlite.channels import ChannelRow, Channels
from tenuto.stores.sqlite.documents import INTEGER_BYTES, Documents
from tenuto.stores.sqlite.file import FREE, SET_ASIDE, SqliteFile
from tenuto.stores.sqlite.log import CommitLog
from tenuto.stores.sqlite.slots import check_above, is_damage

logger = logging.getLogger("tenuto.stores")


class Pruning:
    """Removes documents one by one, each call in one transaction. The caller bounds their number."""

    def __init__(
        self,
        file: SqliteFile,
        channels: Channels,
        documents: Documents,
        find: Callable[[str], ChannelRow | None],
        deleted: Callable[[int, int], int],
    ) -> None:
        """`find` returns a channel by its name.

        `deleted` notes a commit that removed text, by its bytes and documents, and returns its number.
        """
        self._file = file
        self._channels = channels
        self._documents = documents
        self._find = find
        self._deleted = deleted

    def facts(self, name: str, after: int, limit: int) -> Facts:
        """Return facts for retention (`Store.facts`)."""
        channel = self._find(name)
        if channel is None:
            return Facts(self._channels.empty(name), [])
        facts = [fact for _, fact in self._documents.facts(channel.id, after, limit)]
        check_above([one.version for one in facts], after)
        pinned = {message_id for message_id, tracked in channel.tracked.items() if tracked.slots}
        return Facts(channel.head, [one._replace(is_busy=one.is_busy or one.id in pinned) for one in facts])

    def prune(self, name: str, epoch: str, versions: Mapping[str, int]) -> Pruned:
        """Remove messages and commands (`Store.prune`)."""
        channel = self._find(name)
        if channel is None or channel.epoch != epoch:
            return Pruned(channel.head if channel is not None else self._channels.empty(name), [])
        gone = []
        for message_id, version in versions.items():
            found = self._documents.fact(channel.id, message_id)
            tracked = channel.tracked.get(message_id)
            is_pinned = tracked is not None and bool(tracked.slots)
            if found is not None and found[1].version == version and not (found[1].is_busy or is_pinned):
                gone.append(found)
        if gone:
            floor = max(channel.floor, *(fact.version for _, fact in gone))
            counted = [fact.size_bytes for _, fact in gone if fact.is_counted]
            with self._file.transaction():
                self._documents.remove_keys([key for key, _ in gone])
                self._channels.prune(channel, floor, len(counted), sum(counted))
            channel.floor = floor
            for _, fact in gone:
                channel.tracked.pop(fact.id, None)
            channel.used = self._deleted(5 * INTEGER_BYTES, len(gone))
        return Pruned(channel.head, [fact.id for _, fact in gone])

    def sweep(self, channel: int, limit: int) -> bool:
        """Remove up to `limit` remaining documents of a deleted channel; returns whether no more can be removed."""
        with self._file.transaction() as db:
            rows = db.execute("SELECT id FROM documents WHERE channel = ? LIMIT ?", (channel, limit)).fetchall()
            removed = self._documents.remove_keys([key for (key,) in rows])
            if not rows:
                db.execute("DELETE FROM channels WHERE id = ?", (channel,))
        if rows and not removed:
            logger.error(
                "store file %s: the rows of %d documents of a deleted channel cannot be found by their keys, so they "
                "stay, without their text; restore a backup",
                self._file.path,
                len(rows),
            )
        return not (rows and removed)

    def drop_outdated(self, now_ms: int, limit: int) -> int | None:
        """Remove used-up ids and the data of up to `limit` commands whose time is over.

        Return the number of these commands; None if there was no data to remove.
        """
        commands = self._documents.outdated(now_ms, limit)
        over = self._file.db.execute("SELECT 1 FROM graves WHERE until_ms <= ? LIMIT 1", (now_ms,)).fetchone()
        if not commands and over is None:
            return None
        with self._file.transaction() as db:
            db.execute("DELETE FROM graves WHERE until_ms <= ?", (now_ms,))
            self._documents.drop_data(commands)
        return len(commands)


MEASURED_BYTES = 256 * 1024  # the file is measured again after writes of so many bytes
WORTH_BYTES = 16 * 1024 * 1024  # free space below this is not reported in the log


class Space:
    """Measures the file, and logs once when more than half of it is free."""

    def __init__(self, file: SqliteFile, documents: Documents) -> None:
        self._file = file
        self._documents = documents
        self._rollbacks = -1  # the first call of `count_free` counts
        self._bytes = self._free_bytes = self._written = 0
        self._is_reported = False

    def wrote(self, size_bytes: int, log: CommitLog) -> None:
        """Note written bytes, and measure the file if they are many."""
        self._written += size_bytes
        if self._written >= MEASURED_BYTES:
            with contextlib.suppress(sqlite3.Error):  # the commit is stored; `tidy` measures again
                self.measure(log)

    def count_free(self) -> None:
        """Count the free slots again if that is needed. A damaged list of them is set aside."""
        if self._rollbacks != (rollbacks := self._file.rollbacks):
            try:
                self._documents.count_free()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._begin_free()
            self._rollbacks = rollbacks

    def measure(self, log: CommitLog) -> None:
        """Measure the file, with its WAL. Free are its unused pages, and the slots without text in them."""
        self._written = 0
        self.count_free()
        self._bytes, free_bytes = space_in(self._file.db, self._documents)
        self._free_bytes = free_bytes + log.slot_bytes - log.live_bytes
        is_mostly_free = self._free_bytes * 2 > self._bytes and self._free_bytes >= WORTH_BYTES
        if is_mostly_free and not self._is_reported:
            logger.warning(
                "store file %s has %d bytes, of which %d are free; new messages use them, and `tenuto compact` gives "
                "them back while the server is stopped",
                *(self._file.path, self._bytes, self._free_bytes),
            )
        self._is_reported = is_mostly_free

    def _begin_free(self) -> None:
        """Begin a new table of free slots. The damaged one gets another name, because SQLite cannot remove it."""
        with self._file.transaction() as db:
            (number,) = db.execute(
                "SELECT count(*) FROM sqlite_master WHERE name GLOB ?", (f"{SET_ASIDE}*",)
            ).fetchone()
            db.execute(f"ALTER TABLE free RENAME TO {SET_ASIDE}{number}")
            db.execute(FREE)
        self._documents.free_bytes = 0
        logger.error(
            "store file %s: its list of free slots is damaged, and a new one begins; no message is affected. Until "
            "`tenuto compact` has made the file anew, backups of it fail, because they are checked",
            self._file.path,
        )

    def stats(self) -> dict[str, int]:
        """Return the size of the file and its free space, both in bytes, as `measure` last found them."""
        return {"file_bytes": self._bytes, "free_bytes": self._free_bytes}


def space_in(db: sqlite3.Connection, documents: Documents) -> tuple[int, int]:
    """Return the size of a file in bytes, and how many are free apart from those in its log."""
    pages, page_bytes, unused = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size", "freelist_count")
    )
    return pages * page_bytes, unused * page_bytes + documents.free_bytes
