"""The bound of the store's data, `max_bytes`: above it the hub accepts no new message.

Layer: hub.

Only creates are refused, and the last part of the space is a reserve: running answers end, and stored questions get
their answers. The used space is the size of the file without its free space, as the store last measured it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenuto.core.errors import LocalError, StoreFull
from tenuto.core.message_state import MessageState
from tenuto.core.requests import CreateMessage
from tenuto.core.retention import size_bytes
from tenuto.stores.base import Store
from tenuto.stores.sqlite.store import SqliteStore

logger = logging.getLogger("tenuto.hub")

LEAST_BYTES = 10 * 10**6
WARNED_AT = 0.9  # part of `max_bytes` from which the log warns
FULL_AT = 0.95  # part of `max_bytes` from which creates are refused; the rest is the reserve

Find = Callable[[str], MessageState | None]  # the message with an id


class Capacity:
    """The bound of a hub's store. Without `max_bytes` it refuses no request."""

    def __init__(self, max_bytes: str | int | None, store: Store) -> None:
        """Bound the data in `store` by a size such as "10GB". Raises LocalError."""
        self._store = store
        self._max_bytes = size_bytes(max_bytes, "max_bytes") if max_bytes is not None else 0
        self._is_warned = False
        self._refused = 0
        if max_bytes is None:
            return
        if not isinstance(store, SqliteStore):
            raise LocalError(
                f"max_bytes needs a store in a file such as sqlite:///chat.db, and the store is {store.name}; leave it "
                "out, and bound the disk of the database"
            )
        if self._max_bytes < LEAST_BYTES:
            raise LocalError(f'max_bytes must be "{LEAST_BYTES // 10**6}MB" or more, got {max_bytes!r}')

    def check(self) -> None:
        """Raise StoreFull if the store has no space for a new message."""
        if self._max_bytes and (used := self._used_bytes()) >= self._max_bytes * FULL_AT:
            self._refused += 1
            raise StoreFull(
                f"store has {used:,} bytes of data, max_bytes is {self._max_bytes:,}, and the last "
                f"{1 - FULL_AT:.0%} are kept for running answers; delete messages, set retention, or raise max_bytes",
                limit=self._max_bytes,
            )

    def check_create(self, request: CreateMessage, find: Find) -> None:
        """Raise StoreFull if there is no space for the message, unless it answers a message that waits for it."""
        if self._max_bytes:
            asked = find(request.reply_to) if request.reply_to is not None and request.role != "user" else None
            if asked is None or asked.claim is None or not asked.claim.is_open:
                self.check()

    def watch(self) -> None:
        """Log once when the store is nearly full, and when it is full no longer. Housekeeping calls this."""
        if not self._max_bytes:
            return
        used = self._used_bytes()
        if used >= self._max_bytes * WARNED_AT and not self._is_warned:
            logger.warning(
                "store has %d bytes of data, and max_bytes is %d; above %d new messages are refused (store_full): "
                "delete messages, set retention, or raise max_bytes",
                *(used, self._max_bytes, self._max_bytes * FULL_AT),
            )
        self._is_warned = used >= self._max_bytes * WARNED_AT

    def stats(self) -> dict[str, int]:
        """Return the bound and the used space in bytes, and the number of refused creates; none without a bound."""
        if not self._max_bytes:
            return {}
        used = self._used_bytes()
        return {"max_bytes": self._max_bytes, "used_bytes": used, "store_full_refusals": self._refused}

    def _used_bytes(self) -> int:
        counts = self._store.stats()
        return counts["file_bytes"] - counts["free_bytes"] if "file_bytes" in counts else 0  # not opened yet
