"""Removal of data whose time is over, from an SQLite file: by retention, and of commands and used-up ids.

Layer: stores. This code runs on the store's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from tenuto.stores.base import Facts, Pruned
from tenuto.stores.sqlite.channels import ChannelRow, Channels
from tenuto.stores.sqlite.documents import INTEGER_BYTES, Documents
from tenuto.stores.sqlite.file import SqliteFile
from tenuto.stores.sqlite.sums import check_above

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
