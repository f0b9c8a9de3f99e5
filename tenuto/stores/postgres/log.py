"""Entries that no document covers yet, as the PostgreSQL store keeps and tracks them.

Layer: stores.

A channel's row ends with its newest entries, the tail. Each commit puts one frame in front of it: four bytes of length,
then the entries in MessagePack. PostgreSQL leaves the equal ends of both versions of a row out of its WAL, so an append
costs 250 bytes of WAL; with the newest frame at the end it cost 450. When the tail exceeds `TAIL_BYTES`, the next
commit moves it to a row of its own, named by the serial of its last entry. An entry has no effect once the document of
its message has its serial, so a row goes as soon as documents cover all its entries.

`Uncovered` tracks in memory which messages have such entries. It is complete for a channel as long as only this
instance writes to it: a write that begins at another serial than the tracked one shows that another instance has
written. It may name too many entries after a commit that failed. `unsure` are the channels where it may be wrong. Rows
are removed only where it is complete, so the rows of a channel are read again before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from tenuto.core.errors import StoreUnusable
from tenuto.core.ops import Append, Command, Create, Delete, Entry
from tenuto.stores.base import Head, Write

TAIL_BYTES = 400  # a longer tail moves to a row of its own; 200 and 800 cost the same CPU time and WAL
LENGTH_BYTES = 4
OLD_MS = 45_000  # a minute, less the time between two calls of `tidy`
MAX_UNCOVERED_BYTES = 64 * 1024 * 1024
MAX_KNOWN = 10_000  # channels whose last serial is kept

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def frame(entries: list[Entry]) -> bytes:
    """Return `entries` as one frame of a tail; no bytes if there are none."""
    if not entries:
        return b""
    body = _encode(entries)
    return len(body).to_bytes(LENGTH_BYTES) + body


def entries_in(rows: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of `rows`, each a tail or one that was moved, in the order of serials. Raises StoreUnusable."""
    for row in rows:
        found: list[Entry] = []
        at = 0
        while at < len(row):
            end = at + LENGTH_BYTES + int.from_bytes(row[at : at + LENGTH_BYTES])
            try:
                found += _decode(row[at + LENGTH_BYTES : end])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StoreUnusable(
                    f"the log holds an entry that this Tenuto cannot read ({type(error).__name__}): it is damaged, "
                    "or a newer Tenuto wrote it; upgrade Tenuto, or restore a backup"
                ) from error
            at = end
        yield from sorted(found, key=lambda entry: entry.serial)


class Tracked:
    """The entries of one message that its document does not contain."""

    __slots__ = ("first", "is_deleted", "last", "since_ms", "size_bytes")

    def __init__(self, first: int, since_ms: int | None) -> None:
        self.first = first  # serial of the first of these entries
        self.last = first
        self.size_bytes = 0
        self.is_deleted = False  # True: one of these entries has deleted the message
        self.since_ms = since_ms  # since when the message has such entries, by the clock of `tidy`


class Uncovered:
    """The messages of all channels that have entries after their documents."""

    def __init__(self) -> None:
        self.unsure: set[str] = set()
        self._channels: dict[str, dict[str, Tracked]] = {}
        self._known: dict[str, tuple[str, int]] = {}  # epoch and serial up to which a channel is tracked, newest last
        self._now_ms: int | None = None  # time of the last call of `due`
        self._size_bytes = 0

    def add(self, channel: str, entries: Iterable[Entry]) -> None:
        """Track `entries` of `channel`, which no document contains."""
        messages = self._channels.setdefault(channel, {})
        for entry in entries:
            op = entry.op
            tracked = messages.get(op.id)
            if tracked is None:
                tracked = messages[op.id] = Tracked(entry.serial, self._now_ms)
            tracked.last = max(tracked.last, entry.serial)
            size = len(op.text) if type(op) is Append else 0
            tracked.size_bytes += size
            self._size_bytes += size
            tracked.is_deleted |= type(op) is Delete

    def is_complete(self, write: Write) -> bool:
        """Return whether all entries of the channel before `write`, which is stored, are tracked."""
        at = (write.epoch, write.expected)
        return not write.expected or (write.channel not in self.unsure and self._known.get(write.channel) == at)

    def note_heads(self, heads: Mapping[str, Head]) -> None:
        """Be unsure of those channels that are not tracked up to their `heads`."""
        self.unsure.update(name for name, head in heads.items() if self._known.get(name) != (head.epoch, head.serial))

    def note_channels(self, channels: Iterable[str]) -> None:
        """Be unsure of those `channels`, which have entries, of which none is tracked."""
        self.unsure.update(name for name in channels if name not in self._channels)

    def reload(self, channel: str, head: Head, entries: Iterable[Entry], versions: Mapping[str, int]) -> None:
        """Track what the store holds: `entries` of `channel` up to `head`, and the versions of its documents."""
        before = self._channels.get(channel, {})
        self.forget(channel)
        self.unsure.discard(channel)
        self.add(channel, (entry for entry in entries if entry.serial > versions.get(entry.op.id, 0)))
        for message_id, tracked in self._channels.get(channel, {}).items():
            if message_id in before and before[message_id].first == tracked.first:
                tracked.since_ms = before[message_id].since_ms
        if not self._channels.get(channel):
            self._channels.pop(channel, None)
        self._know(channel, head.epoch, head.serial)

    def forget(self, channel: str) -> None:
        """Track no entry of `channel`."""
        messages = self._channels.pop(channel, {})
        self._known.pop(channel, None)
        self._size_bytes -= sum(tracked.size_bytes for tracked in messages.values())

    def _know(self, channel: str, epoch: str, serial: int) -> None:
        self._known.pop(channel, None)
        self._known[channel] = (epoch, serial)
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def covers(self, write: Write) -> bool:
        """Return whether a document of `write` contains entries that were stored before it."""
        messages = self._channels.get(write.channel, {})
        return any(document.id in messages for document in write.documents)

    def floor(self, write: Write) -> int | None:
        """Return the serial of the first entry that is needed once `write` is stored; None: no entry is needed."""
        versions = {document.id: document.version for document in write.documents}
        needed = [
            tracked.first
            for message_id, tracked in self._channels.get(write.channel, {}).items()
            if tracked.last > versions.get(message_id, 0)
        ]
        return min(needed, default=None)

    def stored(self, write: Write) -> None:
        """Stop tracking the messages that the stored documents of `write` contain whole."""
        after = write.expected + len(write.entries)
        if self.is_complete(write) or self._known.get(write.channel) == (write.epoch, after):
            self._know(write.channel, write.epoch, after)
        else:
            self._known.pop(write.channel, None)
        messages = self._channels.get(write.channel)
        if messages is None:
            return
        for document in write.documents:
            tracked = messages.get(document.id)
            if tracked is not None and tracked.last <= document.version:
                del messages[document.id]
                self._size_bytes -= tracked.size_bytes
        if not messages:
            del self._channels[write.channel]

    def due(self, now_ms: int) -> list[tuple[str, str]]:
        """Return (channel, message id) of the messages that should get a document (`Store.tidy`)."""
        set_back_ms = 0 if self._now_ms is None else max(0, self._now_ms - now_ms)
        self._now_ms = now_ms
        is_heavy = self._size_bytes > MAX_UNCOVERED_BYTES
        found = []
        for channel, messages in self._channels.items():
            for message_id, tracked in messages.items():
                # keep the age although the clock was set back
                tracked.since_ms = now_ms if tracked.since_ms is None else tracked.since_ms - set_back_ms
                if is_heavy or tracked.is_deleted or now_ms - tracked.since_ms >= OLD_MS:
                    found.append((channel, message_id))
        return found


def changes_older(write: Write) -> bool:
    """Return whether a document of `write` is about a message or command that does not begin in it."""
    begun = {entry.op.id for entry in write.entries if type(entry.op) is Create or type(entry.op) is Command}
    return any(document.id not in begun for document in write.documents)


def uncovered_entries(write: Write) -> list[Entry]:
    """Return the entries of `write` that its documents do not contain."""
    if not write.documents:
        return list(write.entries)
    versions = {document.id: document.version for document in write.documents}
    return [entry for entry in write.entries if entry.serial > versions.get(entry.op.id, 0)]
