"""One timer for all heartbeats of a hub.

Layer: transports.

A timer or a task for each viewer would cost more than the viewer itself; here an idle viewer
is one entry in a set. Members with the same period are spread over its seconds, so that a thousand heartbeats are not
one burst.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

logger = logging.getLogger("holdfast.transports")


class HeartbeatTarget(Protocol):
    """Whoever wants to be called every so many seconds."""

    def send_heartbeat(self) -> None:
        """Called from the loop; must not wait."""


Slot = set[HeartbeatTarget]


class Heartbeats:
    """Calls its members every `period_s` seconds of theirs, from the running loop; begins anew on another loop."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], Slot] = {}  # by period, and second within the period
        self._now_s = 0
        self._next = 0
        self._due_s = 0.0  # of the next turn; a second after the last one was due, not after it came
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._emptied: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, member: HeartbeatTarget, period_s: int) -> Slot:
        """Call `member` every `period_s` seconds, until it is removed from the slot that is returned."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the members of a loop that is gone are gone too
            self._slots, self._timer, self._emptied, self._loop = {}, None, None, loop
        self._next += 1
        slot = self._slots.setdefault((period_s, self._next % period_s), set())
        slot.add(member)
        if self._timer is None:
            self._due_s = loop.time()
            self._wind(loop)
        return slot

    def remove(self, member: HeartbeatTarget, slot: Slot) -> None:
        """Call `member` no more."""
        slot.discard(member)
        if self._emptied is not None and not self._emptied.done() and not len(self):
            self._emptied.set_result(None)

    async def until_empty(self) -> None:
        """Wait until all members are gone."""
        while len(self):
            if self._emptied is None or self._emptied.done():
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    def tick(self) -> None:
        """A second has passed: call those whose turn it is."""
        self._now_s += 1
        for (period_s, second), slot in list(self._slots.items()):
            if not slot:
                del self._slots[period_s, second]
            elif self._now_s % period_s == second:
                for member in tuple(slot):
                    try:
                        member.send_heartbeat()
                    except Exception:
                        logger.exception("a heartbeat failed")

    def _turn(self) -> None:
        self.tick()
        if self._slots and self._loop is not None:
            self._wind(self._loop)
        else:
            self._timer = None

    def _wind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = max(self._due_s + 1.0, loop.time())
        self._timer = loop.call_at(self._due_s, self._turn)
