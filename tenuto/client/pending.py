"""The requests of a link that have no response yet.

Layer: client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tenuto.core.errors import TenutoError

Outcome = dict[str, Any] | TenutoError
OnResult = Callable[[Outcome], None]

# Below the server's limits (it stops reading at 1,000 requests or 4 MiB); at this size calls wait. One call may exceed
# it.
PENDING_REQUESTS = 500
PENDING_BYTES = 1024 * 1024


class Pending:
    """A request without a response."""

    __slots__ = ("is_repeatable", "on_result", "ref", "sent_at_s", "text")

    def __init__(self, ref: int, text: str, on_result: OnResult, is_repeatable: bool) -> None:
        self.ref = ref
        self.text = text
        self.on_result = on_result
        self.is_repeatable = is_repeatable
        self.sent_at_s: float | None = None


class PendingRequests:
    """All requests without a response, the oldest first."""

    def __init__(self) -> None:
        self._by_ref: dict[int, Pending] = {}
        self._bytes = 0
        self._room = asyncio.Event()

    def all(self) -> tuple[Pending, ...]:
        """Return the requests, the oldest first."""
        return tuple(self._by_ref.values())

    @property
    def oldest(self) -> Pending | None:
        """Return the oldest request, or None."""
        return next(iter(self._by_ref.values()), None)

    def get(self, ref: object) -> Pending | None:
        """Return the request with the reference `ref` of a frame, or None."""
        return self._by_ref.get(ref) if isinstance(ref, int) else None

    def add(self, one: Pending) -> None:
        """Add a request."""
        self._by_ref[one.ref] = one
        self._bytes += len(one.text)

    def forget(self, one: Pending) -> None:
        """Remove a request, and let calls that wait for room proceed."""
        if self._by_ref.pop(one.ref, None) is not None:
            self._bytes -= len(one.text)
            self._room.set()

    def settle(self, one: Pending, result: Outcome) -> None:
        """Remove a request, and pass its response or error to its callback."""
        self.forget(one)
        one.on_result(result)

    def stop(self, error: TenutoError) -> None:
        """Settle all requests with `error`, and let waiting calls proceed."""
        for one in self.all():
            self.settle(one, error)
        self._room.set()

    async def until_room(self) -> None:
        """Wait until one more request may be sent."""
        while self._by_ref and (len(self._by_ref) >= PENDING_REQUESTS or self._bytes >= PENDING_BYTES):
            self._room.clear()
            await self._room.wait()
