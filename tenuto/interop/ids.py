"""Ids of stored messages for the ids of other clients.

Layer: interop.
"""

from __future__ import annotations

import hashlib

from tenuto.routes import is_id


def stored_id(id: str) -> str:
    """Return the id of the stored message for a client's message `id`: the same, or a hash if it breaks the rules."""
    return id if is_id(id) else hashed(id)


def hashed(*values: str) -> str:
    """Return an id that is the same for the same values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]
