"""Cursors: how a client says what it has already seen.

You are in `core`. A cursor is opaque text to clients and doubles as the SSE event id. It may gain further
fields after the serial; what is written today must stay readable.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NO_EPOCH = "-"
# 2**53: browsers keep serials as doubles, and nothing we ever wrote is above it.
_FORM = re.compile(r"([A-Za-z0-9_-]{1,32}):(0|[1-9][0-9]{0,15})(?::([\x21-\x7e]{0,300}))?\Z")


class Cursor(NamedTuple):
    """The last entry seen: `serial` of the log's life `epoch`."""

    epoch: str
    serial: int
    extra: str = ""  # a transport's own field, e.g. a long poll's place in the presence ring

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.serial}"
        return f"{text}:{self.extra}" if self.extra else text


EMPTY = Cursor(NO_EPOCH, 0)


def parse_cursor(text: str | None) -> Cursor | None:
    """Return the cursor in `text`, or None: what is not a cursor is no cursor, never an error."""
    found = _FORM.match(text) if text else None
    if not found:
        return None
    epoch, serial, extra = found.groups()
    return Cursor(epoch, int(serial), extra or "")
