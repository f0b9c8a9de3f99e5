"""Slots, the rows that hold text and never move (`file`), and the checksums of the file.

Layer: stores.

The sizes may be changed freely, the layout may not: a checksum of four bytes, two bytes with the length of the data,
the data, and zeros up to the end. A free slot of a document has zeros only.

A checksum is the CRC-32 of a slot, a head or a channel. SQLite notices damage to its own structure, but not a changed
byte in a row. A checksum also covers the place of the data (its message, its channel, its slot), so that intact data in
the wrong place is noticed too. The formulas may not be changed without a new schema.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import Any
from zlib import crc32

import msgspec

from tenuto.core.errors import StoreUnusable

# Largest size of a slot: SQLite keeps a row of 4,057 bytes whole in a leaf of 4,096, so that no slot spans two pages.
MAX_ROOM = 4_052
SUM_BYTES = 4
LENGTH_BYTES = 2
SLOT_BYTES = SUM_BYTES + LENGTH_BYTES  # what a slot has besides its data
MAX_DATA = MAX_ROOM - SLOT_BYTES


def room_for(size: int) -> int:
    """Return the size of a new slot of `size` bytes: at most a sixteenth larger, and of few sizes, to ease reuse."""
    step = 1 << max(0, size.bit_length() - 5)
    return min(MAX_ROOM, -(-size // step) * step)


def larger_rooms(room: int) -> tuple[int, int]:
    """Return the next two slot sizes above `room`, for use when no slot of that size is free."""
    next_room = room_for(room + 1)
    return next_room, room_for(next_room + 1)


_POLYNOMIAL = 0xEDB88320  # the polynomial of CRC-32, with its bits reversed
_LAST_BIT = crc32(b"\x80") ^ crc32(b"\x00")  # change of a checksum when the last bit of the data changes

# The `text_factory` of each connection: damaged text may be no UTF-8. Python's error about it would hide all further
# rows, and would leave the statement open, so that the WAL could not be emptied. A checksum finds the damage.
tolerant_text = partial(str, encoding="utf-8", errors="replace")

_HALF = 0x80000000  # a stored checksum is lower by this: a number that SQLite keeps in at most four bytes
_encode = msgspec.msgpack.Encoder().encode


def head_sum(fields: tuple[Any, ...], head: bytes) -> int:
    """Return the checksum of a document's head and of the `fields` of its row (`documents`)."""
    return crc32(head, crc32(_encode(fields))) - _HALF


def channel_sum(number: int, name: str, epoch: str, floor: int) -> int:
    """Return the checksum of a channel's row."""
    return crc32(_encode((number, name, epoch, floor))) - _HALF


def sealed(place: tuple[int, ...], data: bytes, room: int) -> bytes:
    """Return `data` as the body of a slot with `room` bytes.

    The place is the number of a slot of the log, or document, blob and chunk.
    """
    rest = (len(data).to_bytes(LENGTH_BYTES) + data).ljust(room - SUM_BYTES, b"\0")
    return crc32(rest, crc32(_encode(place))).to_bytes(SUM_BYTES, "little") + rest


def sealed_chunks(place: tuple[int, int], data: bytes, count: int) -> bytes:
    """Return the bodies of `count` slots that the first chunks of a blob fill; the place is document and blob."""
    # no chunk is copied alone: those copies would take four times as long as the rest
    view, length = memoryview(data), MAX_DATA.to_bytes(LENGTH_BYTES)
    bodies: list[bytes | memoryview] = []
    for chunk in range(count):
        piece = view[chunk * MAX_DATA : (chunk + 1) * MAX_DATA]
        checksum = crc32(piece, crc32(length, crc32(_encode((*place, chunk)))))
        bodies += (checksum.to_bytes(SUM_BYTES, "little"), length, piece)
    return b"".join(bodies)


def opened(place: tuple[int, ...], body: object, *, mends: bool = False) -> bytes | None:
    """Return the data in the body of a slot, which has this place; None if it is damaged.

    With `mends`, a single bit that changed is put right: the difference of the checksums shows which one it is. In one
    of 100,000 other damages it shows one, too, so only the log does so, whose damage touches all open messages.
    """
    if type(body) is not bytes or len(body) < SLOT_BYTES:
        return None
    rest = body[SUM_BYTES:]
    difference = crc32(rest, crc32(_encode(place))) ^ int.from_bytes(body[:SUM_BYTES], "little")
    if difference and not (mends and difference.bit_count() == 1):  # else a bit of the checksum itself changed
        bit = _changed_bit(difference, 8 * len(rest)) if mends else None
        if bit is None:
            return None
        right = bytearray(rest)
        right[bit // 8] ^= 1 << bit % 8
        rest = bytes(right)
    return rest[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(rest[:LENGTH_BYTES])]


def damaged(what: str, error: Exception, *, remedy: str = "restore a backup") -> StoreUnusable:
    """Return the Tenuto error for a file, called `what`, with content that it cannot have.

    `error` is one of SQLite, which may have had no access, or one of `DAMAGE` (`core/document`).
    """
    reason = str(error) if isinstance(error, sqlite3.Error) else f"the file is damaged ({type(error).__name__})"
    if isinstance(error, sqlite3.Error) and error_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        remedy = "file and directory must be writable for this user; read a copy of a file on a read-only disk"
    return StoreUnusable(f"{what} cannot be read: {reason}; {remedy}")


def check_above(keys: Sequence[object], after: str | int) -> None:
    """Raise StoreUnusable unless all keys of a page are above `after`: from a damaged index, paging would never end."""
    for key in keys:
        if type(key) is not type(after) or not key > after:  # type: ignore[operator]
            raise StoreUnusable(
                f"an index of the store file is damaged: it lists {key!r} as above {after!r}; run `tenuto verify`, "
                "which says what helps, or restore a backup"
            )


def is_damage(error: Exception) -> bool:
    """Return whether an error tells of damage: each does but those of SQLite that are not about what it read."""
    return not isinstance(error, sqlite3.Error) or error_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def error_code(error: sqlite3.Error) -> int:
    """Return the primary error code of SQLite."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _changed_bit(difference: int, bits: int) -> int | None:
    """Return the number of the bit whose change gives this difference of checksums; None if no single bit does.

    In data of this length each bit gives another difference.
    """
    change = _LAST_BIT  # the difference that a change of `bit` makes; from it follows that of the bit before
    for bit in reversed(range(bits)):
        if change == difference:
            return bit
        change = change >> 1 ^ (_POLYNOMIAL if change & 1 else 0)
    return None
