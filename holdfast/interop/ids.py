"""Ids of stored messages for the ids of other clients.

Layer: interop.
"""

from __future__ import annotations

import hashlib
import re

_ID = re.compile(r"[A-Za-z0-9_.:~@=+-]{1,64}\Z")


def stored_id(id: str) -> str:
    """Return the id of the stored message for a client's message `id`: the same, or a hash if it breaks the rules."""
    return id if _ID.match(id) and id not in (".", "..") else hashed(id)


def hashed(*values: str) -> str:
    """Return an id that is the same for the same values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]
