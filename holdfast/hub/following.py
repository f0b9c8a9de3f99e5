"""Following: bring the channels in memory up to their heads in the store.

Layer: hub.

On a store that several hubs share, notices of other nodes carry their new entries. They are hints: a hub applies
entries that continue the state in memory, and reads the store otherwise. Once in a second it reads the heads of all its
channels, in one query, and then the entries of those that have moved. So a lost notice delays viewers by a second at
most. On an exclusive store the hub reads, every five seconds, the channels that a failed read or a commit with an
unknown outcome has left stale.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

from holdfast.core.errors import HoldfastError, StoreUnavailable
from holdfast.hub.channel import Channel, is_settling
from holdfast.hub.loading import in_time
from holdfast.hub.notices import Notifier, moved_in
from holdfast.hub.store_errors import logs_errors
from holdfast.stores.base import Bus, Head, Notice, Store

logger = logging.getLogger("holdfast.hub")

FOLLOW_S = 1.0  # time between two reads of the heads
STALE_S = 5.0  # time between two searches for stale channels, on an exclusive store


class _HeadQuery:
    """One query for the heads of `channels`. `outcome` is None until it has ended."""

    def __init__(self) -> None:
        self.channels: dict[str, None] = {}
        self.outcome: dict[str, Head] | HoldfastError | None = None


class HeadReads:
    """Reads the heads of channels at attaches: those that are wanted while a query runs share the next one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = _HeadQuery()
        self._turn = asyncio.Lock()  # held by the query that runs

    async def read(self, channel: str) -> Head:
        """Return the head that `channel` has now or later. Raises StoreUnavailable."""
        query = self._next
        query.channels[channel] = None
        async with self._turn:
            if query.outcome is None:  # the first of its callers asks for all; another one if that was cancelled
                if self._next is query:
                    self._next = _HeadQuery()
                names = list(query.channels)
                try:
                    query.outcome = dict(zip(names, await self._store.heads(names), strict=True))
                except HoldfastError as error:
                    query.outcome = error
        assert query.outcome is not None
        if isinstance(query.outcome, HoldfastError):
            raise query.outcome.with_traceback(None)
        return query.outcome[channel]


class Follower:
    """Follows the store for the channels in memory. `notifier` tells other nodes, which follow this one."""

    def __init__(
        self, store: Store, channels: Mapping[str, Channel], notifier: Notifier, bus: Bus | None = None
    ) -> None:
        """Follow `store`. `bus` carries the notices if there is one."""
        self.notifier = notifier
        self.bus = bus
        self.heads = HeadReads(store)
        self.receivers: list[Callable[[Notice | None], None]] = []  # they get the notices of other kinds, and None
        self._store = store
        self._channels = channels
        self._due: set[str] = set()  # channels whose notice could not be applied
        self._wake = asyncio.Event()
        self._heads_s = 0.0  # loop time of the next read of the heads
        self.responded_s = 0.0  # loop time of the last response to a read of the heads
        self._is_over = False

    def receive(self, notice: Notice | None) -> None:
        """Apply the entries of a notice, or have the store read soon. None: notices may have been missed."""
        if self._is_over:
            return
        for pass_on in self.receivers if notice is None or notice.kind != "moved" else ():
            pass_on(notice)
        if notice is None:
            self._heads_s = 0.0
            self._wake.set()
            return
        channel = self._channels.get(notice.channel)
        if channel is None or notice.kind != "moved":
            return
        moved = moved_in(notice)
        if moved is None or not channel.take_entries(moved.epoch, moved.floor, moved.serial, moved.entries):
            self._due.add(notice.channel)
            self._wake.set()

    def stop(self) -> None:
        """Ignore further notices, because the hub ends."""
        self._is_over = True

    async def run(self) -> None:
        """Follow the store until this task is cancelled."""
        loop = asyncio.get_running_loop()
        pause_s = STALE_S if self._store.is_exclusive else FOLLOW_S
        self._heads_s = loop.time() + pause_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._heads_s):
                    await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, set()
            with logs_errors("channels were not read; the hub tries again"):
                if loop.time() >= self._heads_s:
                    self._heads_s = loop.time() + pause_s
                    behind = await self.behind()
                else:
                    behind = [self._channels[name] for name in sorted(due) if name in self._channels]
                for channel in behind:
                    is_here = self._channels.get(channel.name) is channel  # it may have left memory meanwhile
                    if is_here and not is_settling(channel):  # a long import must not hold up the others
                        await self._refresh(channel)

    async def behind(self) -> list[Channel]:
        """Return the channels in memory that are behind the store. Raises StoreUnavailable."""
        channels = list(self._channels.values())
        if self._store.is_exclusive:
            return [channel for channel in channels if channel.is_stale]
        channels = [channel for channel in channels if channel.is_loaded]
        heads = await in_time(self._store.heads([channel.name for channel in channels]), self._store.name)
        if channels:
            self.responded_s = asyncio.get_running_loop().time()
        return [one for one, head in zip(channels, heads, strict=True) if one.is_stale or not one.is_at(head)]

    async def _refresh(self, channel: Channel) -> None:
        """Read the entries of `channel`. Raises StoreUnavailable: the other channels would wait for the store, too."""
        try:
            await in_time(channel.refresh(), self._store.name)
        except StoreUnavailable:
            raise
        except Exception:
            logger.exception("channel %r could not be read; the hub tries again", channel.name)
