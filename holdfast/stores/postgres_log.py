"""Entries that no document covers yet, as the PostgreSQL store keeps and tracks them.

Layer: stores.

A channel's row ends with its newest entries, the tail. Each commit adds one frame to it: four bytes of length, then the
entries in MessagePack. When the tail exceeds `TAIL_BYTES`, the next commit moves it to a row of its own, named by the
serial of its last entry. An entry has no effect once the document of its message has its serial, so a row goes as
soon as documents cover all its entries.

`Uncovered` tracks in memory which messages have such entries. It may name too many entries after a commit that failed,
never too few; `unsure` are the channels where it may be wrong, and their rows are read again before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from holdfast.core.errors import StoreUnusable
from holdfast.core.ops import Append, Delete, Entry
from holdfast.stores.base import Write

TAIL_BYTES = 1_000  # a longer tail moves to a row of its own
LENGTH_BYTES = 4
OLD_MS = 45_000  # a minute, less the time between two calls of `tidy`
MAX_UNCOVERED_BYTES = 64 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


def frame(entries: list[Entry]) -> bytes:
    """Return `entries` as one frame of a tail; no bytes if there are none."""
    if not entries:
        return b""
    body = _encode(entries)
    return len(body).to_bytes(LENGTH_BYTES) + body


def entries_in(rows: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of `rows`, each a tail or one that was moved. Raises StoreUnusable."""
    for row in rows:
        at = 0
        while at < len(row):
            end = at + LENGTH_BYTES + int.from_bytes(row[at : at + LENGTH_BYTES])
            try:
                yield from _decode(row[at + LENGTH_BYTES : end])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise StoreUnusable(
                    f"the log holds an entry that this Holdfast cannot read ({type(error).__name__}): it is damaged, "
                    "or a newer Holdfast wrote it; upgrade Holdfast, or restore a backup"
                ) from error
            at = end


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

    def reload(self, channel: str, entries: Iterable[Entry], versions: Mapping[str, int]) -> None:
        """Track what the store holds: `entries` of `channel`, and the versions of its messages' documents."""
        self.forget(channel)
        self.unsure.discard(channel)
        self.add(channel, (entry for entry in entries if entry.serial > versions.get(entry.op.id, 0)))

    def forget(self, channel: str) -> None:
        """Track no entry of `channel`."""
        messages = self._channels.pop(channel, {})
        self._size_bytes -= sum(tracked.size_bytes for tracked in messages.values())

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


def uncovered_entries(write: Write) -> list[Entry]:
    """Return the entries of `write` that its documents do not contain."""
    if not write.documents:
        return list(write.entries)
    versions = {document.id: document.version for document in write.documents}
    return [entry for entry in write.entries if entry.serial > versions.get(entry.op.id, 0)]
