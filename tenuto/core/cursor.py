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
MAX_SERIAL = 10**16 - 1
_PRESENCE = "@"
_FOLLOWING = re.compile(r"[^_]+_([^_]+)_([0-9]{1,16})\Z")
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


def kept_serial(epoch: str, current: str) -> int:
    """Return the highest serial of `epoch` that a log in the epoch `current` has; -1 if `current` follows another one.

    When a store goes on from an earlier state of itself, for example after a failover, another epoch follows each one:
    `name_former_serial`, its own name, that of the epoch before, and the last serial of it that is left.
    """
    if epoch == current:
        return MAX_SERIAL
    found, known = _FOLLOWING.match(current), _FOLLOWING.match(epoch)
    if found is None:
        return -1
    if known is not None and known[1] == found[1]:  # no entry has stored either: both follow the same epoch
        return min(int(known[2]), int(found[2]))
    return int(found[2]) if found[1] == epoch.partition("_")[0] else -1


def parse_cursor(text: str | None) -> Cursor | None:
    """Return the cursor in `text`, or None: an invalid cursor counts as no cursor and is never an error."""
    found = _FORM.match(text) if text else None
    if not found:
        return None
    epoch, serial, extra = found.groups()
    return Cursor(epoch, int(serial), extra or "")
