"""Entries and logs for the tests of oracles and of the simulated store.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

from proof.oracle.log import StoredLogs
from tenuto.core.ops import Create, Entry, Finish, Op
from tenuto.stores.base import Write

END = Finish(id="m", status="complete", reason=None, meta={}, at_ms=2)


def create(message_id: str, **fields: Any) -> Create:
    """Return the creation of a message with the text "hi", streaming if not stated otherwise."""
    known: dict[str, Any] = {
        "role": "assistant",
        "author": None,
        "status": "streaming",
        "parts": [{"type": "text", "text": "hi"}],
        "meta": {},
        "parent": None,
        "reply_to": None,
        "at_ms": 1,
        "digest": b"",
    }
    return Create(id=message_id, **(known | fields))


def write(stored: StoredLogs, *ops: Op, epoch: str = "e1") -> Write:
    """Return the write of `ops` at the head of channel "c"."""
    at = stored.head("c").serial
    entries = [Entry(serial, op) for serial, op in enumerate(ops, at + 1)]
    return Write(channel="c", epoch=epoch, expected=at, entries=entries)
