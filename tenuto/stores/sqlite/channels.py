"""The channels of a SQLite file that the engine keeps in memory.

Layer: stores. This code runs on the store's thread.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from tenuto.core.document import DAMAGE, Document
from tenuto.core.errors import StoreUnusable
from tenuto.core.model import ChannelSummary
from tenuto.core.names import COMMAND_MARK
from tenuto.stores.base import NOTHING, Head, next_lives
from tenuto.stores.sqlite.documents import INTEGER_BYTES, Documents
from tenuto.stores.sqlite.log import Tracked
from tenuto.stores.sqlite.slots import channel_sum, check_above

# limit of channels in memory; above it half of them are dropped, except those with pinned log rows
MAX_CHANNELS = 10_000
LIVES = ""  # no message has this id: in `graves` it keeps the `Head.lives` of a deleted channel, as its `until_ms`
# The right counts of a channel, and the channels that have other ones.
COUNTS = (
    "SELECT count(*), coalesce(sum(size_bytes), 0) FROM documents"
    " WHERE channel = channels.id AND deleted = 0 AND created > 0"
)
MISCOUNTED = f"SELECT id, name FROM channels WHERE name IS NOT NULL AND (messages, size_bytes) IS NOT ({COUNTS})"
# after damage to the row a value may be of another type
_SUMMARY = ", ".join(
    f"coalesce(CAST({one} AS INTEGER), 0)" for one in ("created_ms", "updated_ms", "messages", "size_bytes")
)
_LAST = "\U0010ffff"  # the last character: text that begins with a prefix is below the prefix and this


@dataclass(slots=True, eq=False)
class ChannelRow:
    """The state of one channel, kept on the store's thread."""

    id: int  # number in the tables
    name: str
    epoch: str
    floor: int  # as in `Head`
    serial: int  # that of the last entry
    lives: int = 0  # as in `Head`
    # messages that stream, or that have entries without a document, by id
    tracked: dict[str, Tracked] = field(default_factory=dict)

    @property
    def head(self) -> Head:
        return Head(self.epoch, self.serial, self.floor, self.lives)


def begin_epochs(db: sqlite3.Connection) -> None:
    """Begin a new epoch in each channel. A damaged row stays damaged."""
    for number, name, epoch, floor, checksum in db.execute(
        "SELECT id, name, epoch, floor, crc FROM channels WHERE name IS NOT NULL"
    ).fetchall():
        if checksum == sum_or_none(number, name, epoch, floor):
            new = secrets.token_hex(4)
            db.execute(
                "UPDATE channels SET epoch = ?, crc = ? WHERE id = ?",
                (new, channel_sum(number, name, new, floor), number),
            )


def damaged_channel(name: str) -> str:
    """Return the error for a channel whose row is damaged."""
    return f"channel {name!r} is damaged: its row has a wrong checksum; restore a backup"


def sum_or_none(number: int, name: str, epoch: str, floor: int) -> int | None:
    """Return the checksum of a channel's row; None if a value of the row is of another type."""
    try:
        return channel_sum(number, name, epoch, floor)
    except DAMAGE:
        return None


class Plan(Struct, eq=False):
    """The documents that one write stores, with the tracked message of each."""

    channel: ChannelRow
    new: dict[str, Tracked] = {}  # messages that have no document yet
    documents: list[tuple[Tracked, Document]] = []


class Channels:
    """The channels in memory, and the documents of all channels."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.by_name: dict[str, ChannelRow] = {}  # the one that was used last comes last
        self._db = db
        self.documents = Documents(db)
        self._limit = MAX_CHANNELS  # number in memory above which `bound` drops some
        (number,) = db.execute("SELECT max(id) FROM channels").fetchone()
        self._next = (number or 0) + 1  # number of the next new channel

    def find(self, name: str) -> ChannelRow | None:
        """Return the channel `name`, read from the file if needed; None if it does not exist.

        Raises StoreUnusable if the row is damaged.
        """
        channel = self.by_name.get(name)
        if channel is None:
            row = self._db.execute("SELECT id, epoch, floor, crc FROM channels WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            number, epoch, floor, checksum = row
            if checksum != sum_or_none(number, name, epoch, floor):
                raise StoreUnusable(damaged_channel(name))
            # after `prune` the floor may be above the versions of all documents that are left
            channel = ChannelRow(number, name, epoch, floor, max(floor, self.documents.top(number)))
        self.use(channel)
        return channel

    def use(self, channel: ChannelRow) -> None:
        """Note that `channel` is used. Appends need not: it is kept for the sake of their rows in the log."""
        self.by_name.pop(channel.name, None)
        self.by_name[channel.name] = channel

    def get(self, name: str) -> ChannelRow:
        """Return the channel `name`, as `find` does; if it does not exist, an empty one, with a number of no row."""
        return self.find(name) or ChannelRow(0, name, NOTHING.epoch, 0, 0, self._lives(name))

    def head(self, name: str) -> Head:
        """Return the head of the channel `name`. Raises as `find`."""
        return self.get(name).head

    def _lives(self, name: str) -> int:
        """Return the `Head.lives` of the channel `name`, which has no entries."""
        row = self._db.execute(
            "SELECT until_ms FROM graves WHERE channel = ? AND message = ?", (name, LIVES)
        ).fetchone()
        return int(row[0]) if row is not None else 0

    def bury(self, name: str, used_up: Sequence[str], until_ms: int) -> None:
        """Empty the channel `name` and write its used-up ids and next `lives`, in the transaction of the caller."""
        self._db.execute("UPDATE channels SET name = NULL WHERE name = ?", (name,))
        lives = next_lives(self._lives(name), until_ms)
        rows = [(name, LIVES, lives), *((name, message_id, until_ms) for message_id in used_up)]
        self._db.executemany("REPLACE INTO graves VALUES (?, ?, ?)", rows)
        self.documents.row_bytes += sum(2 * INTEGER_BYTES + len(name) + len(message_id) for _, message_id, _ in rows)

    def tracked(self, key: int) -> Tracked | None:
        """Return the message whose document has this key, without its entries in the log; None if there is none."""
        found = self.documents.by_key(key)
        if found is None:
            return None
        (name,) = self._db.execute("SELECT name FROM channels WHERE id = ?", (found.channel,)).fetchone()
        return Tracked(name, key, found.id, found.version) if name is not None else None

    def new(self, name: str, epoch: str) -> ChannelRow:
        """Return a new channel with its own number. It enters `by_name` with its first commit."""
        channel = ChannelRow(self._next, name, epoch, 0, 0)
        self._next += 1
        return channel

    def add(self, channel: ChannelRow) -> None:
        """Write the row of a new channel, in the transaction of the caller."""
        checksum = channel_sum(channel.id, channel.name, channel.epoch, channel.floor)
        row = (channel.id, channel.name, channel.epoch, channel.floor, checksum)
        self._db.execute("INSERT INTO channels (id, name, epoch, floor, crc) VALUES (?, ?, ?, ?, ?)", row)
        self.documents.row_bytes += 3 * INTEGER_BYTES + len(channel.name) + len(channel.epoch)

    def count(self, channel: ChannelRow, messages: int, size_bytes: int, first_ms: int, last_ms: int) -> None:
        """Add to the counts of a channel, in the transaction of the caller.

        `first_ms` and `last_ms` are the earliest and the latest time of the documents that it writes.
        """
        self._db.execute(
            # after damage to the row a value may be NULL
            "UPDATE channels SET created_ms = CASE ? WHEN 0 THEN ? ELSE min(coalesce(created_ms, 0), ?) END,"
            " updated_ms = max(coalesce(updated_ms, 0), ?), messages = coalesce(messages, 0) + ?,"
            " size_bytes = coalesce(size_bytes, 0) + ? WHERE id = ?",
            (channel.serial, first_ms, first_ms, last_ms, messages, size_bytes, channel.id),  # serial 0: it is new
        )
        self.documents.row_bytes += 3 * INTEGER_BYTES

    def prune(self, channel: ChannelRow, floor: int, messages: int, size_bytes: int) -> None:
        """Raise the floor of a channel and lower its counts, in the transaction of the caller."""
        checksum = channel_sum(channel.id, channel.name, channel.epoch, floor)
        self._db.execute(
            "UPDATE channels SET floor = ?, crc = ?, messages = coalesce(messages, 0) - ?,"
            " size_bytes = coalesce(size_bytes, 0) - ? WHERE id = ?",
            (floor, checksum, messages, size_bytes, channel.id),
        )
        self.documents.row_bytes += 5 * INTEGER_BYTES

    def newest_ms(self) -> int:
        (newest_ms,) = self._db.execute("SELECT max(updated_ms) FROM channels WHERE name IS NOT NULL").fetchone()
        return newest_ms or 0

    def names(self, *, after: str | None, limit: int) -> list[str]:
        """Return the names of channels that are not empty (`Store.channels`)."""
        rows = self._db.execute("SELECT name FROM channels WHERE name > ? ORDER BY name LIMIT ?", (after or "", limit))
        names = [name for (name,) in rows]
        check_above(names, after or "")
        return names

    def commands(self, name: str, *, after: str | None, limit: int) -> list[str]:
        """Return the ids of commands of a channel (`Store.commands`)."""
        rows = self._db.execute(
            "SELECT message FROM documents WHERE channel = (SELECT id FROM channels WHERE name = ?)"
            " AND message > ? AND message < ? ORDER BY message LIMIT ?",
            (name, after or COMMAND_MARK, chr(ord(COMMAND_MARK) + 1), limit),
        )
        found = [message for (message,) in rows]
        check_above(found, after or COMMAND_MARK)
        return found

    def summaries(self, within: Sequence[str], *, after: str | None, limit: int) -> list[ChannelSummary]:
        found: list[ChannelSummary] = []
        for one in sorted(within):
            low = one.removesuffix("*")
            high = low + _LAST if low != one else low
            rows = self._db.execute(
                f"SELECT name, {_SUMMARY} FROM channels WHERE name BETWEEN ? AND ? AND name > ? ORDER BY name LIMIT ?",
                (low, high, after or "", limit - len(found)),
            )
            found += [ChannelSummary(**dict(zip(ChannelSummary.__struct_fields__, row, strict=True))) for row in rows]
            if len(found) == limit:
                break
        check_above([one.channel for one in found], after or "")
        return found

    def bound(self) -> None:
        """Beyond the limit, drop the least recently used half, except channels that pin rows of the log.

        Never called within a commit, which keeps references to its channels.
        """
        if len(self.by_name) <= self._limit:
            return
        kept = 0
        for channel in list(self.by_name.values())[: len(self.by_name) // 2]:
            if any(tracked.slots for tracked in channel.tracked.values()):
                kept += 1
            else:
                del self.by_name[channel.name]
        self._limit = MAX_CHANNELS + kept
