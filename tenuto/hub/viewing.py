"""Whether viewers may attach and stay: not while the hub drains, and not while it is cut off from its store.

Layer: hub.

On a store that several hubs share, the hub may be cut off from the store while its viewers still reach it. They would
see no new text, though other hubs could show it. So after a term of a lease without any response of the store, the hub
disconnects its viewers and refuses others. They connect to another hub, through the proxy. As soon as the store
responds, the hub serves viewers again.

An exclusive store has no other hub, so a slow disk disconnects no viewer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tenuto.core.errors import Draining, StoreUnavailable
from tenuto.hub.nodes.nodes import TERM_MS

logger = logging.getLogger("tenuto.hub")

CUT_OFF_S = TERM_MS / 1000  # without a response for this long the hub is cut off
STEP_S = 0.5  # time between two looks at the last response
LATE_S = 2 * STEP_S  # a longer step counts as this long: the process was suspended, and the store may respond
RESPONSE_S = 1.0  # time for a response after the hub has drained; servers cancel requests later, with a traceback


class Viewing:
    """Says whether the hub has viewers, and disconnects them when the hub is cut off from its store."""

    def __init__(self, store_name: str) -> None:
        """Begin with a hub that serves viewers."""
        self.is_draining = False
        self.has_drained = False
        self.is_cut_off = False
        self.on_cut_off: list[Callable[[], None]] = []  # called when the hub is cut off
        self._store_name = store_name
        self._reads: set[asyncio.Timeout] = set()  # the reads that end when the hub is cut off
        self._responses: set[asyncio.Timeout] = set()  # the requests whose responses have not begun

    @property
    def is_over(self) -> bool:
        """Return whether viewers must leave."""
        return self.is_draining or self.is_cut_off

    def check(self, *, has_ended: bool = False) -> None:
        """Raise Draining or StoreUnavailable if viewers must leave; `has_ended`: the run of the hub is over."""
        if self.is_draining or has_ended:
            raise Draining("hub is shutting down; retry with the cursor")
        if self.is_cut_off:
            raise self._no_response()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Run a block that reads the store for a viewer. Raises StoreUnavailable when the hub is cut off.

        Raises Draining if the hub begins to drain meanwhile: the read may last longer than the server's shutdown.
        """
        if self.is_cut_off:
            raise self._no_response()
        try:
            async with asyncio.timeout(None) as limit:
                self._reads.add(limit)
                try:
                    yield
                finally:
                    self._reads.discard(limit)
        except TimeoutError:
            if limit.expired():
                self.check()
                raise self._no_response() from None
            raise

    @asynccontextmanager
    async def responding(self) -> AsyncIterator[Callable[[], None]]:
        """Run a block that sends a response, and calls the given function when it begins.

        Raises Draining if it has not begun `RESPONSE_S` after the drain, because the store does not respond.
        """
        limit = asyncio.timeout(RESPONSE_S if self.has_drained else None)

        def begin() -> None:
            self._responses.discard(limit)
            if not limit.expired():
                limit.reschedule(None)

        try:
            async with limit:
                self._responses.add(limit)
                try:
                    yield begin
                finally:
                    self._responses.discard(limit)
        except TimeoutError:
            if limit.expired():
                raise Draining(
                    f"this server shuts down, and store {self._store_name!r} has not responded to the request; send "
                    "it again, with the same ids"
                ) from None
            raise

    def end_drain(self) -> None:
        """Note that the hub has drained, and limit the time of all requests without a response."""
        self.has_drained = True
        for limit in tuple(self._responses):
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + RESPONSE_S)

    def drain(self) -> None:
        """Note that the hub drains, and end the reads for viewers."""
        self.is_draining = True
        self._end_reads()

    async def watch(self, responded_s: Callable[[], float], wake_feeds: Callable[[], None]) -> None:
        """Disconnect the viewers whenever the store has not responded for a term, until this task is cancelled.

        `responded_s` returns the loop time of its last response. `wake_feeds` wakes all feeds, which then end.
        """
        loop = asyncio.get_running_loop()
        last_s, silent_s = responded_s(), 0.0
        try:
            while True:
                before_s = loop.time()
                await asyncio.sleep(STEP_S)
                if responded_s() != last_s:
                    last_s, silent_s = responded_s(), 0.0
                    if self.is_cut_off:
                        self.is_cut_off = False
                        logger.warning("store %r responds, so the hub serves viewers again", self._store_name)
                    continue
                silent_s += min(loop.time() - before_s, LATE_S)
                if silent_s >= CUT_OFF_S and not self.is_cut_off:
                    self._cut_off(wake_feeds)
        finally:
            self.is_cut_off = False

    def _cut_off(self, wake_feeds: Callable[[], None]) -> None:
        self.is_cut_off = True
        logger.warning(
            "store %r has not responded for %g s, so the hub disconnects its viewers", self._store_name, CUT_OFF_S
        )
        self._end_reads()
        for callback in self.on_cut_off:
            callback()
        wake_feeds()

    def _end_reads(self) -> None:
        now_s = asyncio.get_running_loop().time()
        for limit in tuple(self._reads):
            if not limit.expired():
                limit.reschedule(now_s)

    def _no_response(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"store {self._store_name!r} has not responded to this server for {CUT_OFF_S:g} s; connect to another "
            "server, or try again later"
        )
