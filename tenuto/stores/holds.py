"""The holds of a store that lives in this process: the leases of nodes, and small values that end with them.

Layer: stores.

Holds are kept in memory. A store that is opened again has none, and its leases have new names, so each node puts its
holds again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

from tenuto.stores.base import Hold, Renewal

OVER_MS = 60_000  # time for which an ended lease stays ended, because a renewal may arrive late


def steady_ms() -> Callable[[], int]:
    """Return a clock: Unix time in ms that never goes back, even if the clock of the machine is set."""
    base_ns = time.time_ns() - time.monotonic_ns()
    return lambda: (base_ns + time.monotonic_ns()) // 1_000_000


class Holds:
    """The leases and holds of all nodes of one store, by the clock `now_ms`."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._opening = secrets.token_hex(4)
        self._begun = 0  # number of leases that have begun
        self._ended = 0  # number of leases that have ended
        self._nodes: dict[str, tuple[int, str]] = {}  # for each node the end of its lease in ms, and its name
        self._over: dict[str, int] = {}  # nodes that have ended their leases, each with the time to forget it
        self._held: dict[str, tuple[str, Hold]] = {}  # the holds by name, with their nodes

    def hold(self, node: str, term_ms: int, values: Mapping[str, Hold | None]) -> Renewal:
        """Renew the lease of `node`, and put or drop holds (`Store.hold`)."""
        now_ms = self._now_ms()
        self._drop_ended(now_ms)
        if node in self._over:
            return Renewal(now_ms, frozenset(self._nodes), "", self._ended)
        if node not in self._nodes:
            self._begun += 1
        _, lease = self._nodes.get(node, (0, f"{self._opening}:{self._begun}"))
        self._nodes[node] = (now_ms + term_ms, lease)
        if not term_ms:
            self._over[node] = now_ms + OVER_MS
        for name, value in values.items():
            if value is not None:
                self._held[name] = (node, value)
            elif name in self._held and self._held[name][0] == node:
                del self._held[name]
        self._drop_ended(now_ms)
        return Renewal(now_ms, frozenset(self._nodes), lease, self._ended)

    def holds(self, prefix: str) -> dict[str, tuple[str, Hold]]:
        """Return the holds under names that begin with `prefix` (`Store.holds`)."""
        self._drop_ended(self._now_ms())
        return {name: held for name, held in sorted(self._held.items()) if name.startswith(prefix)}

    def _drop_ended(self, now_ms: int) -> None:
        before = len(self._nodes)
        self._nodes = {node: lease for node, lease in self._nodes.items() if lease[0] > now_ms}
        self._ended += before - len(self._nodes)
        self._over = {node: until_ms for node, until_ms in self._over.items() if until_ms > now_ms}
        self._held = {
            name: (node, value)
            for name, (node, value) in self._held.items()
            if (node in self._nodes if value.until_ms is None else value.until_ms > now_ms)
        }
