"""Slots: rows that hold text and never move (`sqlite_file`). Here are their sizes, and the layout of a document's slot.

Layer: stores.

The sizes may be changed freely, the layout may not: two bytes with the length of the data, the data, and zeros up to
the end. (The slots of the log have another layout.)
"""

from __future__ import annotations

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
