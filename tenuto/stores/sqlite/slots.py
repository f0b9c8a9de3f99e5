"""Slots, the rows that hold text and never move (`file`), and the checksums of the file.

Layer: stores.

The sizes may be changed freely, the layout may not: two bytes with the length of the data, the data, and zeros up to
the end. (The slots of the log have another layout.)

A checksum is the CRC-32 of a piece of text, a head, a row of the log or a channel. SQLite notices damage to its own
structure, but not a changed byte in a row. A checksum also covers the place of the data (its message, its channel, its
slot), so that intact data in the wrong place is noticed too. The formulas may not be changed without a new schema.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from tenuto.core.errors import StoreUnusable

# Largest size of a slot: SQLite keeps a row of 4,057 bytes whole in a leaf of 4,096 bytes, so that no slot spans two
# pages. A slot of the log has a checksum of four bytes besides.
MAX_ROOM = 4_048
LENGTH_BYTES = 2
MAX_DATA = MAX_ROOM - LENGTH_BYTES


def room_for(size: int) -> int:
    """Return the size of a new slot for `size` bytes: at most a sixteenth larger, and of few sizes, to ease reuse."""
    step = 1 << max(0, size.bit_length() - 5)
    return min(MAX_ROOM, -(-size // step) * step)


def larger_rooms(room: int) -> tuple[int, int]:
    """Return the next two slot sizes above `room`, for use when no slot of that size is free."""
    next_room = room_for(room + 1)
    return next_room, room_for(next_room + 1)


def pack(data: bytes, room: int) -> bytes:
    """Return `data` as the body of a slot with `room` bytes."""
    return (len(data).to_bytes(LENGTH_BYTES) + data).ljust(room, b"\0")


def unpack(body: bytes) -> bytes:
    """Return the data in `body`: the inverse of `pack`."""
    return body[LENGTH_BYTES : LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES])]


SUM_BYTES = 4  # length of the checksum in front of a row of the log
_POLYNOMIAL = 0xEDB88320  # the polynomial of CRC-32, with its bits reversed
_LAST_BIT = crc32(b"\x80") ^ crc32(b"\x00")  # change of a checksum when the last bit of the data changes

# The `text_factory` of each connection: damaged text may be no UTF-8. Python's error about it would hide all further
# rows, and would leave the statement open, so that the WAL could not be emptied. A checksum finds the damage.
tolerant_text = partial(str, encoding="utf-8", errors="replace")

_slot = struct.Struct("<q").pack  # signed: a damaged row may have a number below 0
_encode = msgspec.msgpack.Encoder().encode


def piece_sum(document: int, blob: int, chunk: int, data: bytes) -> int:
    """Return the checksum of one piece of a document."""
    return _stored(crc32(data, crc32(_encode((document, blob, chunk)))))


def head_sum(fields: tuple[Any, ...], head: bytes) -> int:
    """Return the checksum of a document's head and of the `fields` of its row (`documents`)."""
    return _stored(crc32(head, crc32(_encode(fields))))


def channel_sum(number: int, name: str, epoch: str, floor: int) -> int:
    """Return the checksum of a channel's row."""
    return _stored(crc32(_encode((number, name, epoch, floor))))


def sealed(slot: int, body: bytes) -> bytes:
    """Return the row of the log in `slot`: its checksum, and `body`."""
    return crc32(body, crc32(_slot(slot))).to_bytes(SUM_BYTES, "little") + body


def opened(slot: int, row: object) -> bytes | None:
    """Return the body of a row of the log, without its checksum; None if the row is damaged.

    A single bit that changed is put right: the difference of the checksums shows which one it is.
    """
    if type(row) is not bytes:
        return None
    body = row[SUM_BYTES:]
    difference = crc32(body, crc32(_slot(slot))) ^ int.from_bytes(row[:SUM_BYTES], "little")
    if not difference:
        return body
    if difference.bit_count() == 1:  # a bit of the checksum itself changed
        return body
    bit = _changed_bit(difference, 8 * len(body))
    if bit is None:
        return None
    right = bytearray(body)
    right[bit // 8] ^= 1 << bit % 8
    return bytes(right)


def damaged(path: Path, error: Exception) -> StoreUnusable:
    """Return the Tenuto error for a file with content that it cannot have.

    `error` is one of `DAMAGE` (`core/document`).
    """
    return StoreUnusable(
        f"store file {path} cannot be read: the file is damaged ({type(error).__name__}); restore a backup"
    )


def check_above(keys: Sequence[object], after: str | int) -> None:
    """Raise StoreUnusable unless all keys of a page are above `after`: from a damaged index, paging would never end."""
    for key in keys:
        if type(key) is not type(after) or not key > after:  # type: ignore[operator]
            raise StoreUnusable(
                f"an index of the store file is damaged: it lists {key!r} as above {after!r}; run `tenuto verify`, "
                "which says what helps, or restore a backup"
            )


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether SQLite found the file damaged, at the place that it read."""
    return error_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def error_code(error: sqlite3.Error) -> int:
    """Return the primary error code of SQLite."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _changed_bit(difference: int, bits: int) -> int | None:
    """Return the number of the bit whose change gives this difference of checksums; None if no single bit does.

    In data of this length each bit gives another difference.
    """
    change = _LAST_BIT
    for bit in reversed(range(bits)):
        if change == difference:
            return bit
        change = change >> 1 ^ (_POLYNOMIAL if change & 1 else 0)
    return None


def _stored(checksum: int) -> int:
    # a number that SQLite keeps in at most four bytes
    return checksum - 0x80000000
