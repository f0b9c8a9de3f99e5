"""The time limits of a client, and its delays between attempts.

Layer: client.

Values may be changed freely. Tests make them small; apps do not need to change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All waits of a client, in seconds."""

    connect_s: float = 5.0  # longest time of the first connection of all; after it the address is probably wrong
    open_s: float = 10.0  # some proxies never respond to an upgrade
    silence_s: float = 14.0  # the server pings every 5 s
    response_s: float = 20.0  # a connection without a response for so long is broken, even if other frames arrive
    send_s: float = 14.0
    request_s: float = 30.0  # longest time of one call, over any number of connections
    # Full jitter: a delay is drawn from 0 up to a ceiling that doubles, so that the clients of a restarted server
    # spread out. The base is well below the 3 s that a writer's lease has left when its socket broke.
    backoff_s: float = 0.5
    backoff_cap_s: float = 15.0
    # A connection that breaks sooner is one more failure. Well above that, one outage and one cut would cost a turn.
    stable_s: float = 1.0
    retry_s: float = 0.25  # after the store or the hub had no room: the base of another back-off
    leave_s: float = 10.0  # longest time to end a message whose block ended early

    def backoff(self, failures: int, random: Random) -> float:
        """Return the delay before the next connection, after `failures` failures in a row (at least 1)."""
        return random.uniform(0, self._ceiling(self.backoff_s, failures))

    def retry(self, failures: int, random: Random) -> float:
        """Return the delay before a request is repeated, after `failures` refusals that pass."""
        ceiling_s = self._ceiling(self.retry_s, failures)
        return ceiling_s / 2 + random.uniform(0, ceiling_s / 2)

    def _ceiling(self, base_s: float, failures: int) -> float:
        doubled: float = base_s * 2 ** min(failures - 1, 16)
        return min(self.backoff_cap_s, doubled)
