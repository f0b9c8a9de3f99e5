"""Cursors: each names the last entry that a client has seen.

Layer: core.

A cursor is opaque text to clients and doubles as the SSE event id. It may gain further
fields after the serial; cursors of today must stay readable.

A long poll's cursor also holds its client's position in the channel's presence. Presence has epochs and positions as
the log has epochs and serials, so this position is a cursor of its own, at the end, after an `@`:
`epoch:serial:…@epoch:position`. No other field contains an `@`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

NO_EPOCH = "-"
_PRESENCE = "@"
# At most 16 digits: browsers keep serials as doubles, exact up to 2**53, and we never wrote a higher one.
_FORM = re.compile(r"([A-Za-z0-9_-]{1,32}):(0|[1-9][0-9]{0,15})(?::([\x21-\x7e]{0,300}))?\Z")


class Cursor(NamedTuple):
    """The last entry that a client has seen: its `serial`, in the log's `epoch`."""

    epoch: str
    serial: int
    extra: str = ""  # further fields that a transport adds to its cursors

    def __str__(self) -> str:
        text = f"{self.epoch}:{self.serial}"
        return f"{text}:{self.extra}" if self.extra else text

    @property
    def presence(self) -> Cursor | None:
        """Return the client's position in the channel's presence; None if the cursor holds none, or an invalid one."""
        return parse_cursor(self.extra.partition(_PRESENCE)[2])

    def with_presence(self, position: Cursor) -> Cursor:
        """Return this cursor with `position` as the client's position in the channel's presence."""
        return self._replace(extra=f"{self.extra.partition(_PRESENCE)[0]}{_PRESENCE}{position}")


EMPTY = Cursor(NO_EPOCH, 0)


def parse_cursor(text: str | None) -> Cursor | None:
    """Return the cursor in `text`, or None: an invalid cursor counts as no cursor and is never an error."""
    found = _FORM.match(text) if text else None
    if not found:
        return None
    epoch, serial, extra = found.groups()
    return Cursor(epoch, int(serial), extra or "")
