"""Checksums of the SQLite file: CRC-32 of each piece of text, each head, each row of the log and each channel.

Layer: stores.

SQLite notices damage to its own structure, but not a changed byte in a row. A checksum also covers the place of the
data (its message, its channel, its slot), so that intact data in the wrong place is noticed too. The formulas may not
be changed without a new schema.
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
    """Return the checksum of a document's head and of the `fields` of its row (`sqlite_documents`)."""
    return _stored(crc32(head, crc32(_encode(fields))))


def channel_sum(number: int, name: str, epoch: str, floor: int) -> int:
    """Return the checksum of a channel's row."""
    return _stored(crc32(_encode((number, name, epoch, floor))))


def sealed(slot: int, body: bytes) -> bytes:
    """Return the row of the log in `slot`: its checksum, and `body`."""
    return crc32(body, crc32(_slot(slot))).to_bytes(SUM_BYTES, "little") + body


def opened(slot: int, row: object) -> bytes | None:
    """Return the body of a row of the log, without its checksum; None if the row is damaged.

    A single bit that changed is put right: the difference of the checksums shows which one it is. A slot without a
    row has zeros only.
    """
    if type(row) is not bytes:
        return None
    body = row[SUM_BYTES:]
    difference = crc32(body, crc32(_slot(slot))) ^ int.from_bytes(row[:SUM_BYTES], "little")
    if not difference or row.count(0) == len(row):
        return body
    if row.count(0) >= len(row) - 1:  # a bit changed in a slot without a row
        return bytes(len(body))
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
