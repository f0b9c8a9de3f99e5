"""The lease of a remote writer: the writer's right to write its message until a time.

Layer: client.

Each request of the writer renews the lease. `WriterLease` renews it while the writer sends no requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tenuto.client.link import Link
from tenuto.client.pending import Outcome
from tenuto.core.errors import Deleted, Fenced, Finished, InvalidRequest, NotWriter, TenutoError

SHORTEST_LEASE_S = 5.0  # shortest lease that a server accepts
RENEWALS = 3  # number of renewals within the length of a lease


class WriterLease:
    """The lease of one writer, from `begin` to `end`. The link's timer renews it three times within its length."""

    def __init__(
        self,
        link: Link,
        frame: Callable[[dict[str, Any]], dict[str, Any]],
        term_s: float,
        *,
        is_in_trouble: Callable[[], bool],
        when_lost: Callable[[TenutoError], None],
    ) -> None:
        """Renew over `link` for a message, whose name `frame` adds to the fields of a request.

        While the writer `is_in_trouble`, its requests may be refused, so they do not count as renewals. `when_lost` is
        called with the error if the message has ended or has another writer.
        """
        self.term_s = term_s
        self._link = link
        self._frame = frame
        self._is_in_trouble = is_in_trouble
        self._when_lost = when_lost
        self._is_renewed = True  # False: the server has no leases, or the writer lets the lease end
        self._used_at_s = 0.0
        self._generation = 1
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, generation: int) -> None:
        """Renew the lease from now on, as the writer with number `generation`."""
        self._generation = generation
        self.use()
        self._schedule()

    def use(self) -> None:
        """Note that the writer is sending a request, which renews the lease."""
        self._used_at_s = _now_s()

    def renew(self) -> None:
        """Renew the lease, unless a request has done so recently."""
        is_idle = _now_s() - self._used_at_s >= self.term_s / RENEWALS * 0.9
        if self._is_renewed and self._link.is_live and (is_idle or self._is_in_trouble()):
            self.use()
            self._link.begin("lease", self._fields(self.term_s), self._renewed, is_repeatable=False)
        self._schedule()

    async def let_end(self) -> None:
        """Set the shortest lease and renew no more, so that the server soon ends the message as `interrupted`."""
        self._is_renewed = False
        await self._link.request("lease", self._fields(SHORTEST_LEASE_S), is_repeatable=False)

    def end(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _fields(self, lease_s: float) -> dict[str, Any]:
        return self._frame({"generation": self._generation, "lease_s": lease_s})

    def _schedule(self) -> None:
        self.end()
        interval_s = self.term_s / RENEWALS
        due_s = max(self._used_at_s + interval_s, _now_s() + interval_s / 10)
        self._timer = asyncio.get_running_loop().call_at(due_s, self.renew)

    def _renewed(self, result: Outcome) -> None:
        if isinstance(result, InvalidRequest):
            self._is_renewed = False  # the server has no leases
        elif isinstance(result, Finished | Fenced | Deleted | NotWriter):
            self._when_lost(result)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
