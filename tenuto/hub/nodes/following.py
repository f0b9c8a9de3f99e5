"""Notices to other nodes, and following: bring the channels in memory up to their heads in the store.

Layer: hub.

A `moved` notice tells the other nodes of a shared store which entries this one has stored. It is sent after its commit
is durable, in a call of its own, so no commit waits for it, and carries the new entries of its channel if they are
small. Notices are hints: they may be lost, doubled, late or out of order. A hub applies entries that continue the state
in memory, and reads the store otherwise. Once in a second it reads the heads of all its channels, in one query, and
then the entries of those that have moved. So a lost notice delays viewers by a second at most. On an exclusive store
the hub reads, every five seconds, the channels that a failed read or a commit with an unknown outcome has left stale.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.core.ops import Entry
from tenuto.hub.channel import Channel, is_settling
from tenuto.hub.committer import in_time, sent_again
from tenuto.hub.nodes.nodes import NodeLease
from tenuto.hub.tasks import logs_errors
from tenuto.stores.base import Bus, Head, Notice, Notices, Store, Write

logger = logging.getLogger("tenuto.hub")

WINDOW_S = 0.005  # time between two calls of `Notices.notify`
MOVED_BYTES = 4_096  # limit of the entries in the notice of one channel
WAITING_NOTICES = 1_000  # limit of the other notices that wait to be sent; further ones are dropped
WAITING_BYTES = 256 * 1024  # limit of their size
NOTIFY_TIMEOUT_S = 2.0  # a call without a response for this long is given up: its notices are lost


class Moved(Struct, frozen=True, array_like=True):
    """The body of a `moved` notice: `entries` are the last ones up to `serial`; none if they are too large.

    If they are the first ones of their epoch, the empty channel had these `lives` before.
    """

    epoch: str
    floor: int
    serial: int
    entries: list[Entry]
    lives: int


class _Unsent(Struct):
    """The entries of one channel that no notice has carried yet, each encoded."""

    epoch: str
    floor: int
    serial: int
    lives: int
    entries: list[msgspec.Raw]
    size_bytes: int = 0

    def add(self, write: Write) -> None:
        """Add the entries of `write`; drop all entries once they exceed the limit."""
        self.serial = write.expected + len(write.entries)
        if self.size_bytes <= MOVED_BYTES:
            added = [msgspec.Raw(_encode(entry)) for entry in write.entries]
            self.entries += added
            self.size_bytes += sum(map(len, added))
        if self.size_bytes > MOVED_BYTES:
            self.entries.clear()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Moved).decode


class Notifier:
    """Sends a notice of each channel in which this node has stored entries, as long as other nodes live."""

    def __init__(self, way: Notices, nodes: NodeLease) -> None:
        """Send notices by `way`: the store, or a bus."""
        self._way = way
        self._nodes = nodes
        self._unsent: dict[str, _Unsent] = {}
        self._others: list[Notice] = []  # notices about members, and signals
        self._others_bytes = 0
        self._wake = asyncio.Event()

    def stored(self, write: Write) -> None:
        """Send a notice of `write`, which is stored and has entries, soon."""
        if not self._nodes.has_others:
            return
        unsent = self._unsent.get(write.channel)
        if unsent is None or (unsent.epoch, unsent.floor, unsent.serial) != (write.epoch, write.floor, write.expected):
            unsent = _Unsent(write.epoch, write.floor, write.expected, write.lives, [])
            self._unsent[write.channel] = unsent
        unsent.add(write)
        self._wake.set()

    def send(self, notice: Notice) -> None:
        """Send `notice` soon. It is dropped if too many wait."""
        size = len(notice.channel) + len(notice.body)
        if not self._nodes.has_others or len(self._others) >= WAITING_NOTICES:
            return
        if self._others_bytes + size <= WAITING_BYTES:
            self._others.append(notice)
            self._others_bytes += size
            self._wake.set()

    async def run(self) -> None:
        """Send the notices, at most once in a window, until this task is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._send(
                [
                    Notice("moved", channel, _encode((one.epoch, one.floor, one.serial, one.entries, one.lives)))
                    for channel, one in self._unsent.items()
                ]
                + self._others
            )
            await asyncio.sleep(WINDOW_S)

    async def _send(self, notices: list[Notice]) -> None:
        self._unsent.clear()
        self._others, self._others_bytes = [], 0
        try:
            async with asyncio.timeout(NOTIFY_TIMEOUT_S):
                await self._way.notify(notices)
        except (TenutoError, TimeoutError) as error:
            logger.debug("%d notices were not sent; other nodes read the heads: %r", len(notices), error)
        except Exception:  # an error of a third-party store or bus must not end the notices
            logger.exception("%d notices were not sent; other nodes read the heads", len(notices))


def moved_in(notice: Notice) -> Moved | None:
    """Return the body of a `moved` notice; None if this Tenuto cannot read it."""
    try:
        return _decode(notice.body)
    except DAMAGE:
        return None


FOLLOW_S = 1.0  # time between two reads of the heads
READS = 3  # channels that are read at the same time: a connection of a PostgreSQL store is left for new viewers
SLOW_S = 1.0  # time after which the read of a channel no longer holds up the other channels
HEADS_S = 2.0  # a read of heads without a response for this long is sent again: its connection may be broken
STALE_S = 5.0  # time between two searches for stale channels, on an exclusive store


async def _heads(store: Store, channels: list[str]) -> list[Head]:
    """Return the heads of `channels`. Raises StoreUnavailable."""
    return await sent_again(lambda: store.heads(channels), store.name, after_s=HEADS_S)


class _HeadQuery:
    """One query for the heads of `channels`. `outcome` is None until it has ended."""

    def __init__(self) -> None:
        self.channels: dict[str, None] = {}
        self.outcome: dict[str, Head] | TenutoError | None = None


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
                    query.outcome = dict(zip(names, await _heads(self._store, names), strict=True))
                except TenutoError as error:
                    query.outcome = error
        assert query.outcome is not None
        if isinstance(query.outcome, TenutoError):
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
        self.followed: Callable[[Channel], None] = lambda _: None  # called after entries of other hubs were applied
        self._store = store
        self._channels = channels
        self._due: set[str] = set()  # channels whose notice could not be applied
        self._slow: set[Channel] = set()  # channels whose reads took too long, which are read one at a time
        self._slow_turn = asyncio.Lock()
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
        if moved is not None and channel.take_entries(
            moved.epoch, moved.floor, moved.serial, moved.entries, lives=moved.lives
        ):
            self.followed(channel)
        else:
            self._due.add(notice.channel)
            self._wake.set()

    def stop(self) -> None:
        """Ignore further notices, because the hub ends."""
        self._is_over = True

    async def run(self) -> None:
        """Follow the store until this task is cancelled."""
        async with asyncio.TaskGroup() as slow_reads:
            await self._follow(slow_reads)

    async def _follow(self, slow_reads: asyncio.TaskGroup) -> None:
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
                await self._refresh_all(deque(behind), slow_reads)

    async def behind(self) -> list[Channel]:
        """Return the channels in memory that are behind the store. Raises StoreUnavailable."""
        channels = list(self._channels.values())
        if self._store.is_exclusive:
            return [channel for channel in channels if channel.is_stale]
        channels = [channel for channel in channels if channel.is_loaded]
        heads = await _heads(self._store, [channel.name for channel in channels])
        if channels:
            self.responded_s = asyncio.get_running_loop().time()
        return [one for one, head in zip(channels, heads, strict=True) if _is_due(one, head)]

    async def _refresh_all(self, behind: deque[Channel], slow_reads: asyncio.TaskGroup) -> None:
        """Read the entries of the channels `behind`, several at a time. Raises StoreUnavailable.

        A channel whose read takes too long is read again in `slow_reads`: it must not hold up the others.
        """

        async def refresh() -> None:
            while behind:
                channel = behind.popleft()
                is_here = self._channels.get(channel.name) is channel  # it may have left memory meanwhile
                # a long import must not hold up the others, either
                if is_here and channel not in self._slow and not is_settling(channel):
                    try:
                        async with asyncio.timeout(SLOW_S):
                            await self._refresh(channel)
                    except TimeoutError:
                        self._slow.add(channel)
                        slow_reads.create_task(self._refresh_slow(channel))
                    except StoreUnavailable:
                        behind.clear()
                        raise

        reads = min(READS - bool(self._slow), len(behind))
        for error in await asyncio.gather(*(refresh() for _ in range(reads)), return_exceptions=True):
            if error is not None:
                raise error

    async def _refresh_slow(self, channel: Channel) -> None:
        """Read a channel whose read took too long. After an error it is among the others again."""
        async with self._slow_turn:
            if self._channels.get(channel.name) is channel:
                with logs_errors(f"channel {channel.name!r} was not read; the hub tries again"):
                    await self._refresh(channel)
        self._slow.discard(channel)

    async def _refresh(self, channel: Channel) -> None:
        """Read the entries of `channel`. Raises StoreUnavailable: the other channels would wait for the store, too."""
        try:
            await in_time(channel.refresh(), self._store.name)
            self.followed(channel)
        except StoreUnavailable:
            raise
        except StoreUnusable as error:
            if channel.batches.unreadable is None:
                logger.warning("channel %r cannot be read, so its viewers are detached: %s", channel.name, error)
            channel.batches.unreadable = error
            channel.moved()
        except Exception:
            logger.exception("channel %r could not be read; the hub tries again", channel.name)


def _is_due(channel: Channel, head: Head) -> bool:
    return channel.is_stale or channel.batches.unreadable is not None or not channel.is_at(head)
