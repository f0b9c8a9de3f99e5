"""The commit log: entries that no document covers yet, one row per commit for the entries of all channels.

You are in `stores`, on the store's thread. One row per entry wrote 850 bytes to disk per streamed byte at 500 busy
conversations, one row per commit 72, and overwriting rows no longer needed is less again. A row is a slot
(`sqlite_file`) with a list of items in MessagePack: `[document, serial, at, text]` for an append to part 0,
`[document, serial, part, at, text]` to another one, `[document, serial, n, bytes]` for the n-th piece of another
operation. What does not fit into one slot goes into more, and an append into several items with the same serial. The
rest of a slot is one element that is no item. A slot of zeros holds nothing.

Which slots are needed is known in memory only: a slot is pinned by each message that has entries in it above its
document's version. One without pins is free to be overwritten; its old items mean nothing, since their documents
cover them. So a commit writes one row and changes nothing else.
"""

from __future__ import annotations

import sqlite3
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from holdfast.core.document import DAMAGE
from holdfast.core.errors import StoreUnusable
from holdfast.core.ops import Append, Delete, Entry, Op, decode_op, encode_op
from holdfast.stores.sqlite_slots import MAX_ROOM, larger_rooms, room_for

SHORT_LIST = 14  # items of a list with a head of one byte, and room for the element that fills the slot
MAX_ITEM_BYTES = MAX_ROOM - 3  # for the head of a long list
PIECE_CHARACTERS = 1_000  # of an append too large for a slot: at most 4,000 bytes
PIECE_BYTES = 4_000

Item = list[Any]  # as decoded: see the module's docstring

_SERIAL = itemgetter(1)
_PLACE = itemgetter(-2)  # of an item among those of one operation
_encode = msgspec.msgpack.Encoder().encode
_decode_items = msgspec.msgpack.Decoder(list[Any]).decode


class Tracked:
    """A message as the log knows it: how far its document goes, and the entries beyond."""

    __slots__ = ("channel", "id", "is_deleted", "key", "serials", "since_ms", "slots", "version")

    def __init__(self, channel: str, key: int, message_id: str, version: int) -> None:
        self.channel = channel
        self.key = key  # of its document
        self.id = message_id
        self.version = version  # of its document
        self.is_deleted = False  # by an entry that the document does not cover
        self.serials = array("Q")  # of its last entry in each of `slots`
        self.slots = array("Q")
        self.since_ms: int | None = None  # when it began to pin slots, by the clock of `tidy`

    @property
    def last(self) -> int:
        """The serial of its last entry beyond the document, or 0."""
        return self.serials[-1] if self.serials else 0


Placed = tuple[Tracked, int, Op]  # an entry for the log: its message, its serial, its operation


class Row(NamedTuple):
    """A row to be written: its items, and the entry of each."""

    items: list[bytes]
    size: int
    entries: list[Placed]


class CommitLog:
    """The slots of the log and what pins them. Its memory changes only after a commit: see `written`."""

    def __init__(self, now_ms: int | None = None) -> None:
        self.pinned: dict[int, Tracked] = {}  # messages that pin slots, by key
        self.now_ms = now_ms  # of the last `tidy`
        self.live_rows = 0
        self.live_bytes = 0
        self.slot_bytes = 0
        # By slot number, which begins at 1:
        self._rooms = array("H", [0])
        self._pins = array("L", [0])
        self._stamps = array("Q", [0])  # the commit that wrote it; 0 when it holds nothing
        self._stamp = 0
        self._free: dict[int, list[int]] = {}  # by room
        # Wiping: what was written up to the stamp is to go, once it is free.
        self._wipe_stamp = 0
        self._wipe_list: list[int] = []
        self._wipe_waits = 0  # slots still pinned

    @property
    def slots(self) -> int:
        return len(self._rooms) - 1

    # -- writing -------------------------------------------------------------------------------------------------

    @staticmethod
    def rows(entries: Iterable[Placed]) -> list[Row]:
        """The rows for `entries`, as few as they fit into."""
        rows = []
        items: list[bytes] = []
        owners: list[Placed] = []
        size = 0
        for entry in entries:
            tracked, serial, op = entry
            if type(op) is Append and not op.part and len(op.text) <= PIECE_CHARACTERS:  # as nearly always
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
        """Write `rows`; returns their slots and the bytes handed over. Counts only after `written`."""
        slots: list[int] = []
        taken: dict[int, int] = {}  # room → how many of its free slots
        new = len(self._rooms)
        handed = 0
        for row in rows:
            wanted = room_for(row.size)
            slot = self._find_free(wanted, taken)
            if slot is None:
                body = _body(row, wanted)
                slot, new = new, new + 1
                db.execute("INSERT INTO log VALUES (?, ?)", (slot, body))
            else:
                body = _body(row, self._rooms[slot])
                db.execute("UPDATE log SET body = ? WHERE id = ?", (body, slot))
            slots.append(slot)
            handed += len(body) + 8
        return slots, handed

    def written(self, rows: Sequence[Row], slots: Sequence[int]) -> None:
        """Note that `rows` are committed in `slots`; the next thing after `write`, before any `release`."""
        self._stamp += 1
        for row, slot in zip(rows, slots, strict=True):
            if slot == len(self._rooms):
                self._add_slot(room_for(row.size))
            else:
                last_free = self._free[self._rooms[slot]].pop()
                assert last_free == slot
            self._stamps[slot] = self._stamp
            for tracked, serial, op in row.entries:
                self._pin(tracked, serial, slot)
                if type(op) is Delete:
                    tracked.is_deleted = True

    def release(self, tracked: Tracked, version: int) -> None:
        """Note that the committed document of `tracked` covers all of it up to `version`."""
        count = bisect_right(tracked.serials, version)
        for slot in tracked.slots[:count]:
            self._pins[slot] -= 1
            if not self._pins[slot]:
                self._let_go(slot)
        del tracked.serials[:count], tracked.slots[:count]
        if not tracked.slots:
            self.pinned.pop(tracked.key, None)
            tracked.since_ms = None

    # -- reading -------------------------------------------------------------------------------------------------

    def entries(self, db: sqlite3.Connection, keys: Iterable[int]) -> dict[int, list[Entry]]:
        """The entries beyond the documents `keys`, in order; each row is read once."""
        try:
            return self._read_entries(db, keys)
        except DAMAGE as error:
            raise _damaged(error) from error

    def _read_entries(self, db: sqlite3.Connection, keys: Iterable[int]) -> dict[int, list[Entry]]:
        wanted = {key: self.pinned[key] for key in keys if key in self.pinned}
        found: dict[int, list[Item]] = {key: [] for key in wanted}
        for slot in sorted({slot for tracked in wanted.values() for slot in tracked.slots}):
            (body,) = db.execute("SELECT body FROM log WHERE id = ?", (slot,)).fetchone()
            for item in _read_items(body, slot):
                of_message = found.get(item[0])
                if of_message is not None:
                    of_message.append(item)
        return {key: _entries(wanted[key], items) for key, items in found.items()}

    def load(self, db: sqlite3.Connection, find: Callable[[int], Tracked | None]) -> int:
        """Learn from the rows what they pin; `find` tells of the document with a key.

        Returns the highest key in any of them. Raises StoreUnusable.
        """
        try:
            return self._load(db, find)
        except DAMAGE as error:
            raise _damaged(error) from error

    def _load(self, db: sqlite3.Connection, find: Callable[[int], Tracked | None]) -> int:
        known: dict[int, Tracked | None] = {}
        pins: list[tuple[int, int, Tracked]] = []
        operations: dict[tuple[int, int], list[Item]] = {}
        for slot, body in db.execute("SELECT id, body FROM log ORDER BY id"):
            if slot != len(self._rooms):
                raise StoreUnusable(f"the log is damaged: slot {len(self._rooms)} is missing; restore a backup")
            self._add_slot(len(body))
            for item in _read_items(body, slot):
                self._stamps[slot] = 1
                key, serial = item[0], item[1]
                if key not in known:
                    known[key] = find(key)
                tracked = known[key]
                if tracked is not None and serial > tracked.version:
                    pins.append((serial, slot, tracked))
                    if type(item[-1]) is bytes:
                        operations.setdefault((key, serial), []).append(item)
        for serial, slot, tracked in sorted(pins, key=lambda pin: pin[:2]):  # slots are not in the order of serials
            self._pin(tracked, serial, slot)
        for (key, _), items in operations.items():
            self.pinned[key].is_deleted |= isinstance(_operation("", items), Delete)
        self._stamp = 1
        for slot in range(1, len(self._rooms)):
            if not self._pins[slot]:
                self._free.setdefault(self._rooms[slot], []).append(slot)
        return max(known, default=0)

    # -- giving back ---------------------------------------------------------------------------------------------

    def start_wipe(self) -> None:
        """All that is in the log by now may hold deleted text: let it go as soon as it is not needed."""
        self._wipe_stamp = self._stamp
        dirty = [slot for slot in range(1, len(self._rooms)) if self._stamps[slot]]
        self._wipe_list = [slot for slot in dirty if not self._pins[slot]]
        self._wipe_waits = len(dirty) - len(self._wipe_list)

    @property
    def is_wiped(self) -> bool:
        """Nothing is left of what the log held at `start_wipe`."""
        return not self._wipe_list and not self._wipe_waits

    @property
    def can_wipe(self) -> bool:
        return bool(self._wipe_list)

    def wipe(self, db: sqlite3.Connection, limit: int) -> Callable[[], None]:
        """Overwrite up to `limit` slots with zeros; call what it returns after the commit."""
        taken = self._wipe_list[-limit:]
        dirty = [slot for slot in taken if not self._pins[slot] and 0 < self._stamps[slot] <= self._wipe_stamp]
        db.executemany("UPDATE log SET body = zeroblob(?) WHERE id = ?", [(self._rooms[slot], slot) for slot in dirty])

        def wiped() -> None:
            del self._wipe_list[-len(taken) :]
            for slot in dirty:
                self._stamps[slot] = 0

        return wiped

    def due(self, now_ms: int, *, old_ms: int, limit_bytes: int) -> Iterator[Tracked]:
        """The messages that hold the log up: deleted, for `old_ms`, or all of them if more than `limit_bytes` live."""
        self._keep_ages(now_ms)
        self.now_ms = now_ms
        is_heavy = self.live_bytes > limit_bytes
        for tracked in self.pinned.values():
            if tracked.since_ms is None:
                tracked.since_ms = now_ms
            if is_heavy or tracked.is_deleted or now_ms - tracked.since_ms >= old_ms:
                yield tracked

    def _keep_ages(self, now_ms: int) -> None:
        """A clock that was set back makes nothing younger, or what is due in a minute would come after an hour."""
        set_back_ms = 0 if self.now_ms is None else self.now_ms - now_ms
        if set_back_ms > 0:
            for tracked in self.pinned.values():
                if tracked.since_ms is not None:
                    tracked.since_ms -= set_back_ms

    # -- slots ---------------------------------------------------------------------------------------------------

    def _add_slot(self, room: int) -> None:
        self._rooms.append(room)
        self._pins.append(0)
        self._stamps.append(0)
        self.slot_bytes += room

    def _find_free(self, wanted: int, taken: dict[int, int]) -> int | None:
        """A free slot: the last one of its room that is not `taken`, which it then is."""
        for room in (wanted, *larger_rooms(wanted)):
            free = self._free.get(room, ())
            count = taken.get(room, 0)
            if count < len(free):
                taken[room] = count + 1
                return free[-1 - count]
        return None

    def _pin(self, tracked: Tracked, serial: int, slot: int) -> None:
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

    def _let_go(self, slot: int) -> None:
        room = self._rooms[slot]
        self._free.setdefault(room, []).append(slot)
        self.live_rows -= 1
        self.live_bytes -= room
        if 0 < self._stamps[slot] <= self._wipe_stamp:
            self._wipe_waits -= 1
            self._wipe_list.append(slot)


def _items(tracked: Tracked, serial: int, op: Op) -> Iterable[bytes]:
    key = tracked.key
    if type(op) is Append:
        place = (key, serial, op.part) if op.part else (key, serial)
        item = _encode((*place, op.at, op.text))
        if len(item) <= MAX_ITEM_BYTES:
            return (item,)
        return [
            _encode((*place, op.at + start, op.text[start : start + PIECE_CHARACTERS]))
            for start in range(0, len(op.text), PIECE_CHARACTERS)
        ]
    data = encode_op(replace(op, id=""))  # the document knows the id
    return [
        _encode((key, serial, number, data[start : start + PIECE_BYTES]))
        for number, start in enumerate(range(0, len(data), PIECE_BYTES))
    ]


def _row(items: list[bytes], entries: list[Placed]) -> Row:
    return Row(items, sum(map(len, items)) + (1 if len(items) <= SHORT_LIST else 3), entries)


def _body(row: Row, room: int) -> bytes:
    """The list of a row's items, filled up to `room` bytes."""
    spare = room - row.size
    count = len(row.items) + (spare > 0)
    head = bytes((0x90 | count,)) if len(row.items) <= SHORT_LIST else b"\xdc" + count.to_bytes(2)
    return b"".join([head, *row.items, _filler(spare)])


def _filler(size: int) -> bytes:
    """One element of `size` bytes."""
    if size < 2:
        return bytes(size)  # a zero
    if size < 258:
        return b"\xc4" + (size - 2).to_bytes() + bytes(size - 2)
    return b"\xc5" + (size - 3).to_bytes(2) + bytes(size - 3)


def _read_items(body: bytes, slot: int) -> list[Item]:
    if not body[0]:
        return []
    try:
        items = _decode_items(body)
    except msgspec.DecodeError as error:
        raise StoreUnusable(f"the log is damaged: slot {slot} cannot be read ({error}); restore a backup") from error
    if type(items[-1]) is not list:
        items.pop()
    return items


def _damaged(error: Exception) -> StoreUnusable:
    return StoreUnusable(f"the log is damaged ({type(error).__name__}: {error}); restore a backup")


def _entries(tracked: Tracked, items: list[Item]) -> list[Entry]:
    """The entries beyond the document of `tracked`, in order."""
    items.sort(key=_SERIAL)  # slots are not in the order of serials
    entries: list[Entry] = []
    place, count = 0, len(items)
    while place < count:
        item = items[place]
        serial = item[1]
        end = place + 1
        while end < count and items[end][1] == serial:
            end += 1
        if serial > tracked.version:
            # After a start there may be half a million: most are appends of one item, and take the short way.
            is_short = end == place + 1 and type(item[-1]) is str
            op = _append(tracked.id, item) if is_short else _operation(tracked.id, items[place:end])
            entries.append(Entry(serial, op))
        place = end
    return entries


def _append(message_id: str, item: Item) -> Append:
    return Append(id=message_id, part=item[2] if len(item) == 5 else 0, at=item[-2], text=item[-1])


def _operation(message_id: str, items: list[Item]) -> Op:
    """The operation whose items these are, in any order. Raises StoreUnusable."""
    items.sort(key=_PLACE)
    if type(items[0][-1]) is str:
        return replace(_append(message_id, items[0]), text="".join([item[-1] for item in items]))
    try:
        op = decode_op(b"".join([item[-1] for item in items]))
    except msgspec.DecodeError as error:
        raise StoreUnusable(
            f"the log holds an operation that this Holdfast does not know ({error}); it was written by a newer one"
        ) from error
    return replace(op, id=message_id)
