"""The time limits of a client, and its delays between attempts.

Layer: client.

Values may be changed freely. Tests make them small; apps do not need to change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All time limits of a client, in seconds."""

    # time limit for the very first connection; if it takes longer, the address is probably wrong
    connect_s: float = 5.0
    open_s: float = 10.0  # time limit for opening a socket, since some proxies never respond to an upgrade
    # time without any frame after which a connection counts as broken; the server pings every 5 s
    silence_s: float = 14.0
    # time without a response after which a connection counts as broken, even if other frames arrive
    response_s: float = 20.0
    send_s: float = 14.0
    request_s: float = 30.0  # time limit of one call, over any number of connections
    # A delay is random, from 0 up to a limit that doubles ("full jitter"), so that the clients of a restarted server
    # spread out. The first limit is far below the 3 s that a writer's lease has left when its socket broke.
    backoff_s: float = 0.5
    backoff_cap_s: float = 15.0
    # A connection that breaks sooner than this counts as one more failure. With a much longer time, an outage and then
    # a broken connection would cost a turn.
    stable_s: float = 1.0
    retry_s: float = 0.25  # first limit of the delay after the store or the hub had no room
    leave_s: float = 10.0  # time limit for ending a message whose block ended early

    def backoff(self, failures: int, random: Random) -> float:
        """Return the delay before the next connection, after `failures` failures in a row (at least 1)."""
        return random.uniform(0, self._ceiling(self.backoff_s, failures))

    def retry(self, failures: int, random: Random) -> float:
        """Return the delay before a request is repeated, after `failures` temporary refusals."""
        ceiling_s = self._ceiling(self.retry_s, failures)
        return ceiling_s / 2 + random.uniform(0, ceiling_s / 2)

    def _ceiling(self, base_s: float, failures: int) -> float:
        doubled: float = base_s * 2 ** min(failures - 1, 16)
        return min(self.backoff_cap_s, doubled)
