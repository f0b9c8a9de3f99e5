"""The commit log: entries that no document covers yet, one row per commit for the entries of all channels.

Layer: stores. This code runs on the store's thread.

One row per entry wrote 850 bytes to disk per streamed byte at 500 busy conversations, one row per commit 72, and
overwriting rows that are no longer needed is less again. A row is a slot (`slots`) with a list of items in MessagePack:
`[document, serial, at, text]` for an append to part 0, `[document, serial, part, at, text]` to another one, `[document,
serial, n, bytes]` for the n-th piece of another operation. A commit that does not fit into one slot uses more, and a
long append becomes several items with one serial. An empty slot has no data; zeros without a checksum are damage.

Only memory knows which slots are needed: each message pins the slots that hold entries above its
document's version. A slot without pins is free to be overwritten; its old items have no effect, since their documents
cover them. So a commit writes one row and changes no other.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnusable
from tenuto.core.ops import Append, Delete, Entry, Op, decode_op, encode_op
from tenuto.stores.base import OLD_MS
from tenuto.stores.sqlite.slots import MAX_DATA, SLOT_BYTES, larger_rooms, opened, room_for, sealed

SHORT_LIST = 15  # items in a list whose head takes one byte
MAX_ITEM_BYTES = MAX_DATA - 3  # largest item: a slot without the head of a long list
# length of the pieces of an append that does not fit into a slot; each has at most 4,000 bytes
PIECE_CHARACTERS = 1_000
PIECE_BYTES = 4_000
MAX_LIVE_BYTES = 64 * 1024 * 1024  # limit of the rows that are needed; it bounds the memory and the time of a start

# What a slot holds: zeros, a row, a row that is due for overwriting, or one of these for which a caller waits.
EMPTY, WRITTEN, DUE, AWAITED = range(4)

Item = list[Any]  # an item as decoded: a list whose forms the module's docstring describes

_SERIAL = itemgetter(1)
_PIECE = itemgetter(-2)  # sort key for the items of one operation: an append's offset, or the number of the piece
_encode = msgspec.msgpack.Encoder().encode
_decode_items = msgspec.msgpack.Decoder(list[Any]).decode


@dataclass(slots=True, eq=False)
class Tracked:
    """A message in the log: the version of its document, and the slots that hold its later entries."""

    channel: str
    key: int  # key of the message's document
    id: str
    version: int  # version of the message's document
    is_deleted: bool = False  # True: an entry that the document does not contain has deleted the message
    # for each slot in `slots`: serial of the message's last entry in it
    serials: array[int] = field(default_factory=lambda: array("Q"))
    slots: array[int] = field(default_factory=lambda: array("Q"))
    since_ms: int | None = None  # since when the message pins slots, by the clock of `tidy`

    @property
    def last(self) -> int:
        """Return the serial of the message's last entry after the document, or 0."""
        return self.serials[-1] if self.serials else 0


LogEntry = tuple[Tracked, int, Op]  # an entry to store in the log: its message, its serial, its operation


class Row(NamedTuple):
    """One row to write: its items in MessagePack, the size of a new slot for them, and the entry of each item."""

    data: bytes
    room: int
    entries: list[LogEntry]


class CommitLog:
    """The slots of the log, and the messages that pin them. This state changes only after a commit: see `written`."""

    def __init__(self, now_ms: int | None = None) -> None:
        self.pinned: dict[int, Tracked] = {}  # messages that pin slots, by the key of their document
        self.now_ms = now_ms  # time of the last call of `tidy`
        self.live_rows = 0  # number of slots that messages pin
        self.live_bytes = 0  # size of these slots
        self.slot_bytes = 0  # size of all slots
        # These arrays are indexed by slot number, which begins at 1:
        self._rooms = array("H", [0])  # sizes in bytes
        self._pins = array("L", [0])  # number of messages that pin the slot
        self._written = bytearray(1)  # EMPTY, WRITTEN, DUE or AWAITED
        self._free: dict[int, list[int]] = {}  # free slots, by their size
        self.to_wipe: list[int] = []  # the slots that are due for overwriting and free, and some that are due no more
        self.damaged: list[int] = []  # slots whose rows were found damaged by `load`

    @property
    def slots(self) -> int:
        return len(self._rooms) - 1

    # -- writing -------------------------------------------------------------------------------------------------

    @staticmethod
    def rows(entries: Iterable[LogEntry]) -> list[Row]:
        """Return the rows for `entries`, as few as possible."""
        rows = []
        items: list[bytes] = []
        owners: list[LogEntry] = []
        size = 0
        for entry in entries:
            tracked, serial, op = entry
            # the common case: one item for an append to part 0
            if type(op) is Append and not op.part and len(op.text) <= PIECE_CHARACTERS:
                pieces: Iterable[bytes] = (_encode((tracked.key, serial, op.at, op.text)),)
            else:
                pieces = _items(tracked, serial, op)
            for item in pieces:
                size += len(item)
                if size > MAX_ITEM_BYTES:
                    rows.append(_row(items, owners))
                    items, owners, size = [], [], len(item)
                items.append(item)
                owners.append(entry)
        if items:
            rows.append(_row(items, owners))
        return rows

    def write(self, db: sqlite3.Connection, rows: Sequence[Row]) -> tuple[list[int], int]:
        """Write `rows`; returns their slots and the bytes handed to the database. Call `written` after the commit."""
        slots: list[int] = []
        taken: dict[int, int] = {}  # for each slot size: how many of its free slots are already taken by these rows
        new = len(self._rooms)
        handed = 0
        for row in rows:
            slot = self._find_free(row.room, taken)
            if slot is None:
                slot, new = new, new + 1
                body = sealed((slot,), row.data, row.room)
                db.execute("INSERT INTO log VALUES (?, ?)", (slot, body))
            else:
                body = sealed((slot,), row.data, self._rooms[slot])
                db.execute("UPDATE log SET body = ? WHERE id = ?", (body, slot))
            slots.append(slot)
            handed += len(body) + 8
        return slots, handed

    def written(self, rows: Sequence[Row], slots: Sequence[int]) -> None:
        """Note that `rows` are committed in `slots`. Call this directly after the commit, before any `release`."""
        for row, slot in zip(rows, slots, strict=True):
            if slot == len(self._rooms):  # a new one
                self._add_slot(row.room)
            else:
                last_free = self._free[self._rooms[slot]].pop()
                assert last_free == slot
            self._written[slot] = WRITTEN
            for tracked, serial, op in row.entries:
                self._pin(tracked, serial, slot)
                if type(op) is Delete:
                    tracked.is_deleted = True

    def release(self, tracked: Tracked, version: int) -> None:
        """Note that the committed document of `tracked` contains its entries up to `version`; frees slots."""
        count = bisect_right(tracked.serials, version)
        for slot in tracked.slots[:count]:
            self._pins[slot] -= 1
            if not self._pins[slot]:
                room = self._rooms[slot]
                self._free.setdefault(room, []).append(slot)
                self.live_rows -= 1
                self.live_bytes -= room
                if self._written[slot] >= DUE:
                    self.to_wipe.append(slot)
        del tracked.serials[:count], tracked.slots[:count]
        if not tracked.slots:
            self.pinned.pop(tracked.key, None)
            tracked.since_ms = None

    # -- reading -------------------------------------------------------------------------------------------------

    def entries(self, db: sqlite3.Connection, keys: Iterable[int]) -> tuple[dict[int, list[Entry]], dict[int, str]]:
        """Return for each document in `keys` the entries after its version, in order. Each row is read only once.

        The second result holds the documents of which a row is damaged, each with the reason.
        """
        wanted = {key: self.pinned[key] for key in keys if key in self.pinned}
        found: dict[int, list[Item]] = {key: [] for key in wanted}
        damaged: dict[int, str] = {}
        for slot in sorted({slot for tracked in wanted.values() for slot in tracked.slots}):
            row = db.execute("SELECT body FROM log WHERE id = ?", (slot,)).fetchone()
            data = opened((slot,), row[0], mends=True) if row is not None else None
            if not data:  # damaged, missing, or empty, which no pinned slot is
                reason = f"row {slot} of the log is damaged"
                damaged |= {key: reason for key, tracked in wanted.items() if slot in tracked.slots}
                continue
            for item in _read_items(data, slot):
                of_message = found.get(item[0])
                if of_message is not None:
                    of_message.append(item)
        entries = {}
        for key in wanted.keys() - damaged.keys():
            try:
                entries[key] = _entries(wanted[key], found[key])
            except DAMAGE as error:
                damaged[key] = f"its entries cannot be read ({type(error).__name__})"
        return entries, damaged

    def load(self, db: sqlite3.Connection, find: Callable[[int], Tracked | None]) -> int:
        """Compute from the rows which slots are pinned; `find` returns the tracked state of the document with a key.

        Returns the highest key in the rows. Raises StoreUnusable or one of DAMAGE if they cannot be read. `damaged` are
        the slots whose rows have a wrong checksum, and a last one if the rows from there on do not have the numbers
        1, 2, 3 and so on; a caller that writes begins a log without them (`WholeMessages`).
        """
        known: dict[int, Tracked | None] = {}
        pins: list[tuple[int, int, Tracked]] = []
        operations: dict[tuple[int, int], list[Item]] = {}
        for slot, row in db.execute("SELECT id, body FROM log ORDER BY id"):
            if slot != len(self._rooms) or type(row) is not bytes or len(row) < SLOT_BYTES:
                self.damaged.append(len(self._rooms))
                return 0
            self._add_slot(len(row))
            data = opened((slot,), row, mends=True)
            if data is None:
                self.damaged.append(slot)
                continue
            for item in _read_items(data, slot):
                self._written[slot] = WRITTEN
                key, serial = item[0], item[1]
                if key not in known:
                    known[key] = find(key)
                tracked = known[key]
                if tracked is not None and serial > tracked.version:
                    pins.append((serial, slot, tracked))
                    if type(item[-1]) is bytes:  # not an append
                        operations.setdefault((key, serial), []).append(item)
        # sort, because slots are not in the order of serials
        for serial, slot, tracked in sorted(pins, key=lambda pin: pin[:2]):
            self._pin(tracked, serial, slot)
        for (key, _), items in operations.items():  # only the kind matters, not the id
            self.pinned[key].is_deleted |= isinstance(_operation("", items), Delete)
        _check_removed(db, {key for key, tracked in known.items() if tracked is None})
        for slot in range(1, len(self._rooms)):
            if not self._pins[slot]:
                self._free.setdefault(self._rooms[slot], []).append(slot)
        return max(known, default=0)

    # -- freeing -------------------------------------------------------------------------------------------------

    def start_wipe(self) -> None:
        """Schedule all present rows for overwriting as soon as they are not needed: each may hold deleted text."""
        self._written = self._written.replace(bytes((WRITTEN,)), bytes((DUE,)))
        self.to_wipe = [slot for slot, held in enumerate(self._written) if held >= DUE and not self._pins[slot]]

    def await_wipe(self) -> None:
        """Begin to wait for the rows that are due for overwriting now."""
        self._written = self._written.replace(bytes((DUE,)), bytes((AWAITED,)))

    @property
    def awaited(self) -> set[int]:
        """Return the rows that `await_wipe` has seen and that are not overwritten yet."""
        return {slot for slot, held in enumerate(self._written) if held == AWAITED}

    @property
    def is_wiped(self) -> bool:
        """Return whether no row is due for overwriting."""
        return DUE not in self._written and AWAITED not in self._written

    def wipe(self, db: sqlite3.Connection, limit: int) -> list[int]:
        """Overwrite up to `limit` slots with zeros, and return them. Call `wiped` after the commit."""
        slots = self.to_wipe[-limit:]
        due = [slot for slot in slots if self._written[slot] >= DUE]
        empty = [(sealed((slot,), b"", self._rooms[slot]), slot) for slot in due]
        db.executemany("UPDATE log SET body = ? WHERE id = ?", empty)
        return slots

    def wiped(self, slots: Sequence[int]) -> None:
        """Note that the overwriting of `slots` is committed."""
        del self.to_wipe[-len(slots) :]
        for slot in slots:
            if self._written[slot] >= DUE:
                self._written[slot] = EMPTY

    def due(self, now_ms: int) -> Iterator[Tracked]:
        """Yield the messages that need a new document:

        deleted ones, those that have pinned slots for `OLD_MS`, and all if the needed rows exceed `MAX_LIVE_BYTES`.
        """
        # Pins keep their age although the clock was set back: else a wipe due in a minute could take an hour.
        set_back_ms = 0 if self.now_ms is None else max(0, self.now_ms - now_ms)
        self.now_ms = now_ms
        is_heavy = self.live_bytes > MAX_LIVE_BYTES
        for tracked in self.pinned.values():
            tracked.since_ms = now_ms if tracked.since_ms is None else tracked.since_ms - set_back_ms
            if is_heavy or tracked.is_deleted or now_ms - tracked.since_ms >= OLD_MS:
                yield tracked

    # -- slots ---------------------------------------------------------------------------------------------------

    def _add_slot(self, room: int) -> None:
        self._rooms.append(room)
        self._pins.append(0)
        self._written.append(EMPTY)
        self.slot_bytes += room

    def _find_free(self, wanted: int, taken: dict[int, int]) -> int | None:
        """Return the smallest fitting slot that is free and not `taken`, and count it as taken; None if none fits."""
        for room in (wanted, *larger_rooms(wanted)):
            free = self._free.get(room, ())
            count = taken.get(room, 0)
            if count < len(free):
                taken[room] = count + 1
                return free[-1 - count]
        return None

    def _pin(self, tracked: Tracked, serial: int, slot: int) -> None:
        """Note that `slot` holds an entry of `tracked`. Calls for one message come in the order of serials."""
        if tracked.slots and tracked.slots[-1] == slot:
            tracked.serials[-1] = serial
            return
        if not tracked.slots:
            self.pinned[tracked.key] = tracked
            tracked.since_ms = self.now_ms
        tracked.serials.append(serial)
        tracked.slots.append(slot)
        if not self._pins[slot]:
            self.live_rows += 1
            self.live_bytes += self._rooms[slot]
        self._pins[slot] += 1


def _check_removed(db: sqlite3.Connection, keys: set[int]) -> None:
    """Raise StoreUnusable if a document that is not found by its key is in an index: it was not removed, but is lost.

    Its message would otherwise be read without its last entries as soon as SQLite finds the row again.
    """
    if not keys:
        return
    # The index still has the key; NOT INDEXED looks it up in the table itself.
    for (key,) in db.execute("SELECT id FROM documents INDEXED BY documents_version"):
        if key in keys and db.execute("SELECT 1 FROM documents NOT INDEXED WHERE id = ?", (key,)).fetchone() is None:
            raise StoreUnusable(f"the table of messages is damaged: no row has the key {key}; restore a backup")


def _items(tracked: Tracked, serial: int, op: Op) -> Iterable[bytes]:
    """Return the items of one entry, encoded; each fits into a slot."""
    key = tracked.key
    if type(op) is Append:
        prefix = (key, serial, op.part) if op.part else (key, serial)  # part 0 is left out
        item = _encode((*prefix, op.at, op.text))
        if len(item) <= MAX_ITEM_BYTES:
            return (item,)
        return [
            _encode((*prefix, op.at + start, op.text[start : start + PIECE_CHARACTERS]))
            for start in range(0, len(op.text), PIECE_CHARACTERS)
        ]
    data = encode_op(replace(op, id=""))  # without the id, which the document has
    return [
        _encode((key, serial, number, data[start : start + PIECE_BYTES]))
        for number, start in enumerate(range(0, len(data), PIECE_BYTES))
    ]


def _row(items: list[bytes], entries: list[LogEntry]) -> Row:
    count = len(items)
    head = bytes((0x90 | count,)) if count <= SHORT_LIST else b"\xdc" + count.to_bytes(2)  # of a MessagePack list
    data = b"".join([head, *items])
    return Row(data, room_for(SLOT_BYTES + len(data)), entries)


def _read_items(data: bytes, slot: int) -> list[Item]:
    try:
        return _decode_items(data) if data else []
    except msgspec.DecodeError as error:
        raise StoreUnusable(f"the log is damaged: slot {slot} cannot be read ({error}); restore a backup") from error


def _entries(tracked: Tracked, items: list[Item]) -> list[Entry]:
    """Return the entries that follow the document of `tracked`, in order."""
    items.sort(key=_SERIAL)  # slots are not in the order of serials
    return [
        Entry(serial, _operation(tracked.id, list(of_entry)))
        for serial, of_entry in groupby(items, key=_SERIAL)
        if serial > tracked.version
    ]


def _operation(message_id: str, items: list[Item]) -> Op:
    """Return the operation that `items`, in any order, make up. Raises StoreUnusable."""
    items.sort(key=_PIECE)
    first = items[0]
    if type(first[-1]) is str:
        text = "".join([item[-1] for item in items])
        return Append(id=message_id, part=first[2] if len(first) == 5 else 0, at=first[-2], text=text)
    if [item[-2] for item in items] != list(range(len(items))):
        raise StoreUnusable("the log is damaged: a piece of an operation is missing; restore a backup")
    try:
        op = decode_op(b"".join([item[-1] for item in items]))
    except msgspec.DecodeError as error:
        if not isinstance(error, msgspec.ValidationError):  # a piece was cut off at the end, or is damaged
            raise StoreUnusable(f"the log is damaged ({error}); restore a backup") from error
        raise StoreUnusable(
            f"the log holds an operation that this Tenuto does not know ({error}), written by a newer one; "
            "upgrade Tenuto"
        ) from error
    return replace(op, id=message_id)
