"""One timer for all heartbeats of a hub, and one for the limit of all writes to its connections.

Layer: transports.

A timer or a task for each viewer would cost more than the viewer itself; here an idle viewer is one entry in a set.
Targets with the same period are spread over its seconds, so that a thousand heartbeats are not one burst.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from tenuto.watchdog import Watchdog

logger = logging.getLogger("tenuto.transports")


class HeartbeatTarget(Protocol):
    """A connection that sends a heartbeat at regular intervals."""

    def send_heartbeat(self) -> None:
        """Send a heartbeat. Called on the event loop; must not wait."""


Slot = set[HeartbeatTarget]


class Heartbeats:
    """Calls each target every `period_s` seconds. Starts again when it is used on another event loop."""

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], Slot] = {}  # targets by period and by second within the period
        self._now_s = 0
        self._next = 0
        # when the next tick is due: exactly one second after the last one was due, even if that ran late
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._watchdog: Watchdog | None = None

    def __len__(self) -> int:
        return sum(map(len, self._slots.values()))

    def add(self, target: HeartbeatTarget, period_s: int) -> Slot:
        """Call `target` every `period_s` seconds, until it is removed from the returned slot."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # drop the targets of a loop that is closed
            self._slots, self._timer, self._emptied, self._loop = {}, None, None, loop
        self._next += 1
        slot = self._slots.setdefault((period_s, self._next % period_s), set())
        slot.add(target)
        if self._timer is None:
            self._due_s = loop.time()
            self._set_timer(loop)
        return slot

    def remove(self, target: HeartbeatTarget, slot: Slot) -> None:
        """Stop calling `target`."""
        slot.discard(target)
        if self._emptied is not None and not self._emptied.done() and not len(self):
            self._emptied.set_result(None)

    def watchdog(self, limit_s: float) -> Watchdog:
        """Return the watchdog of all writes to connections, each of which may take `limit_s`."""
        self._watchdog = Watchdog.kept(self._watchdog, limit_s)
        return self._watchdog

    async def until_empty(self) -> None:
        """Wait until no target is left."""
        while len(self):
            if self._emptied is None or self._emptied.done():
                self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    def tick(self) -> None:
        """Advance by one second and call the targets that are due."""
        self._now_s += 1
        for (period_s, second), slot in list(self._slots.items()):
            if not slot:
                del self._slots[period_s, second]
            elif self._now_s % period_s == second:
                for target in tuple(slot):
                    try:
                        target.send_heartbeat()
                    except Exception:
                        logger.exception("a heartbeat failed")

    def _run_tick(self) -> None:
        self.tick()
        if self._slots and self._loop is not None:
            self._set_timer(self._loop)
        else:
            self._timer = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = max(self._due_s + 1.0, loop.time())
        self._timer = loop.call_at(self._due_s, self._run_tick)
