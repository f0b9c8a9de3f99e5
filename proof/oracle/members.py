"""Members: none leaves a channel while it is present, or before its grace is over.

Layer: oracle.

A hub whose process or store is held up may miss the end of a connection. Hubs that share a store show one another's
members a moment later, and those of a node that has stopped leave with its lease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from proof.oracle.violation import Violation
from tenuto.hub.people.presence_state import GRACE_S

Place = tuple[str, str]  # a channel, and the id of a message, command or member

EARLY_S = 0.01  # tolerated difference between two clocks
SEEN_S = 1.5  # hubs on one store see an entry of another within this time, without faults
STEADY_S = 10.0  # a fault of a node or of the store moves members for this time: a term of a lease, the grace, and rest


class Process(Protocol):
    """A process of the simulation."""

    name: str
    is_alive: bool
    pauses: int  # number of times that it was paused


class Connection(Protocol):
    """A connection of the simulation: its hub, when it ended, and when its client last sent a request."""

    @property
    def process(self) -> Process: ...

    ended_s: float | None
    sent_s: float


@dataclass
class Presence:
    """The times at which a member was connected, as far as they are certain."""

    entered_s: dict[Connection, float] = field(default_factory=dict)  # when the server acknowledged the entry
    left_s: list[float] = field(default_factory=list)  # when the member left, or had only a lease
    leaving: list[Connection] = field(default_factory=list)  # connections on which it left: the hub may read that late


class Members:
    """The stays of all members."""

    def __init__(self, now_s: Callable[[], float], trouble_s: Callable[[], float], *, is_exclusive: bool) -> None:
        """`trouble_s` returns the time until which a hub was held up."""
        # returns when a node last stopped, or lost its lease
        self.stopped_s: Callable[[], float] = lambda: float("-inf")
        self._now_s = now_s
        self._trouble_s = trouble_s
        self._is_exclusive = is_exclusive
        self._presence: dict[Place, Presence] = {}

    def note_entered(self, place: Place, connection: Connection) -> None:
        """Note that the server has acknowledged a member's entry on `connection`."""
        self._presence.setdefault(place, Presence()).entered_s[connection] = self._now_s()

    def note_left(self, place: Place, lease_s: float = 0.0, connection: Connection | None = None) -> None:
        """Note that a member leaves without a grace: by a request, or by a lease that ends within `lease_s`.

        A hub that is held up reads the request on `connection` later.
        """
        known = self._presence.setdefault(place, Presence())
        known.left_s.append(self._now_s() + lease_s)
        if connection is not None:
            known.leaving.append(connection)

    def check_leave(self, place: Place, attached_s: float) -> None:
        """Check a `presence.leave` that a viewer received, which attached at `attached_s`. Raises Violation."""
        known = self._presence.get(place)
        if known is None or any(left_s >= attached_s - GRACE_S for left_s in known.left_s):
            return
        if not self._is_exclusive and max(self._trouble_s(), self.stopped_s()) >= self._now_s() - STEADY_S:
            return  # the members of a node whose lease has ended leave
        if any(one.ended_s is None or one.ended_s >= attached_s - GRACE_S for one in known.leaving):
            return
        away_s, early_s = 0.0, EARLY_S if self._is_exclusive else SEEN_S
        for connection, entered_s in known.entered_s.items():
            if not connection.process.is_alive:
                continue  # the member is of an earlier run of the hub, which has lost its members
            if entered_s - away_s >= GRACE_S - early_s and entered_s >= attached_s - GRACE_S:
                return
            away_s = max(away_s, float("inf") if connection.ended_s is None else connection.ended_s)
        if self._now_s() - away_s < GRACE_S - EARLY_S:
            raise Violation(f"presence.leave of {place} was sent, though the member was away for less than {GRACE_S} s")
