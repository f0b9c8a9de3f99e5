"""Cursors: how a client says what it has already seen.

Layer: core.

A cursor is opaque text to clients and doubles as the SSE event id. It may gain further
fields after the serial; what is written today must stay readable.

A long poll's cursor also says where its owner stands in the channel's presence. That has lives and positions as the
log has, so it is a cursor of its own, at the end, after an `@`: `epoch:serial:…@life:position`. No other field has one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NO_EPOCH = "-"
_PRESENCE = "@"
# 2**53: browsers keep serials as doubles, and nothing we ever wrote is above it.
_FORM = re.compile(r"([A-Za-z0-9_-]{1,32}):(0|[1-9][0-9]{0,15})(?::([\x21-\x7e]{0,300}))?\Z")


class Cursor(NamedTuple):
    """The last entry seen: `serial` of the log's life `epoch`."""

    epoch: str
    serial: int
    extra: str = ""  # a transport's own fields

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.serial}"
        return f"{text}:{self.extra}" if self.extra else text

    @property
    def presence(self) -> Cursor | None:
        """What its owner has been told of the channel's presence; None where it does not say, or nonsense."""
        return parse_cursor(self.extra.partition(_PRESENCE)[2])

    def with_presence(self, told: Cursor) -> Cursor:
        """The same cursor of somebody who has been told of presence up to `told`."""
        return self._replace(extra=f"{self.extra.partition(_PRESENCE)[0]}{_PRESENCE}{told}")


EMPTY = Cursor(NO_EPOCH, 0)


def parse_cursor(text: str | None) -> Cursor | None:
    """Return the cursor in `text`, or None: what is not a cursor is no cursor, never an error."""
    found = _FORM.match(text) if text else None
    if not found:
        return None
    epoch, serial, extra = found.groups()
    return Cursor(epoch, int(serial), extra or "")
