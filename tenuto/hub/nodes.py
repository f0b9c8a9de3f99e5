"""The nodes of a shared store: their leases and holds, and the notices by which their hubs follow one another.

Layer: hub.

Each run of a hub is a node. On a store that several hubs share, a node renews a lease each second, and each renewal
returns the nodes whose leases run. When the lease of a node has expired, another one recovers its messages. The living
node with the highest hash of both names is responsible for a channel. One term later each living node recovers the
messages that are left. Each step is a conditional commit, so two nodes that recover the same message do no harm.

The small holds of a node go with the next renewal. The holds about members go in batches, so that a renewal stays small
also when the store has lost all of them. The hold about the node goes with the last batch, because it tells other nodes
that the members may be read.

An exclusive store has one node, which takes no lease: all other nodes have ended.

A `moved` notice tells the other nodes of a shared store which entries this one has stored. It is sent after its commit
is durable, in a call of its own, so no commit waits for it, and carries the new entries of its channel if they are
small. Notices are hints: they may be lost, doubled, late or out of order. A hub applies entries that continue the state
in memory, and reads the store otherwise. Once in a second it reads the heads of all its channels, in one query, and
then the entries of those that have moved. So a lost notice delays viewers by a second at most. On an exclusive store
the hub reads, every five seconds, the channels that a failed read or a commit with an unknown outcome has left stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from tenuto.core.document import decoded
from tenuto.core.errors import StoreUnavailable, StoreUnusable, TenutoError
from tenuto.core.ops import Entry
from tenuto.hub.channel import Channel, is_settling
from tenuto.hub.clock import Clock, StoreClock
from tenuto.hub.committer import in_time, sent_again
from tenuto.hub.tasks import logs_errors
from tenuto.portal import retrieve_exception
from tenuto.stores.base import (
    OVER_MS,
    Bus,
    Head,
    Hold,
    Notice,
    Notices,
    Renewal,
    SharedStore,
    Store,
    StoreReplaced,
    Write,
)

logger = logging.getLogger("tenuto.hub")

BATCH_BYTES = 256 * 1024  # a batch of holds about members ends with the one that reaches this size
LATE_S = OVER_MS / 1000  # a store carries out a renewal that failed within this time, or not at all


class NodeHolds:
    """The holds that one node should have, with those of them that the store does not have yet."""

    def __init__(self) -> None:
        # each returns all small holds that the node should have: later calls may change one, but not leave it out
        self.sources: list[Callable[[], Mapping[str, bytes]]] = []
        self.about_node: Callable[[], Mapping[str, bytes]] = dict  # returns the hold about the node
        self.losses = 0  # number of times that the store may have lost the holds
        self._small: dict[str, bytes] = {}  # the small holds that the store surely has
        self._members: dict[str, bytes] = {}  # the holds about members that the node should have
        self._stale: dict[str, None] = {}  # names of those whose current value the store lacks, in order
        self._doubtful: dict[str, None] = {}  # names in renewals that failed, and that the store may carry out later
        self._failed_s = float("-inf")  # when the last one that failed was sent
        self._again_s = float("inf")  # when those names are put again, with all small holds

    @property
    def is_behind(self) -> bool:
        """Return whether the store lacks holds about members."""
        return bool(self._stale)

    def show(self, name: str, value: bytes | None) -> None:
        """Put a hold about members with one of the next renewals; None drops it."""
        self._members.pop(name, None)
        if value is not None:
            self._members[name] = value
        self._stale[name] = None

    def due(self, now_s: float) -> dict[str, Hold | None]:
        """Return the holds of the next renewal: the small ones that have changed, and a batch about members."""
        if now_s >= self._again_s:  # a renewal that failed may have been carried out, and have put older values
            self._small.clear()
            self._stale |= self._doubtful
            self._again_s = self._failed_s + LATE_S
            if self._again_s <= now_s:  # none that failed can be carried out any more
                self._doubtful, self._again_s = {}, float("inf")
        small = {name: value for source in self.sources for name, value in source().items()}
        batch: dict[str, Hold | None] = {}
        size = 0
        for name in self._stale:
            if size >= BATCH_BYTES:
                break
            value = self._members.get(name)
            batch[name] = Hold(value) if value is not None else None
            size += len(name) + len(value or b"")
        else:  # this is the last batch
            small |= self.about_node()
        changed = {name: Hold(value) for name, value in small.items() if self._small.get(name) != value}
        for name in changed:
            self._small.pop(name, None)  # unknown until `note_put`
        return {**changed, **batch}

    def note_failed(self, values: Mapping[str, Hold | None], now_s: float) -> None:
        """Note that a renewal with `values` failed: the store may carry it out later, and so bring them back."""
        self._doubtful |= {name: None for name in values if name in self._stale}
        self._failed_s, self._again_s = now_s, min(self._again_s, now_s + LATE_S)

    def note_put(self, values: Mapping[str, Hold | None]) -> None:
        """Note that the store has `values`, which `due` has returned."""
        for name, hold in values.items():
            value = hold.value if hold is not None else None
            if name in self._stale:
                if self._members.get(name) == value:  # it may have changed since
                    del self._stale[name]
            elif value is not None:
                self._small[name] = value

    def lose(self) -> None:
        """Let all holds be put again, because the store may have lost them."""
        self.losses += 1
        self._small.clear()
        self._stale |= dict.fromkeys(self._members)


TERM_MS = 4_000  # length of the lease of a node
RENEW_S = 1.0  # time between two renewals
RENEW_TIMEOUT_S = 2.0  # a renewal without a response for this long is sent again
FIRST_TIMEOUT_S = 10.0  # the same for the first one, which keeps no lease: a process that starts would end
RETRY_S = 4.0  # longest wait before a recovery that met an unavailable store or a full queue is repeated
STORED_S = 1.0  # time in which a request is stored, since a stored time is that of its decision
SET_MS = 1_000  # a clock of the store that is further ahead than the last renewal allows was set
LEAVING = "leaving/"  # begins the name of the hold that a node has while it drains
ROUND_S = 60.0  # time between two recoveries; a commit of a dead node may be stored late

IsMine = Callable[[str], bool]  # returns whether this node recovers a channel
Recover = Callable[[IsMine], Awaitable[None]]  # recovers the messages of all nodes that are gone in those channels


def every_channel(channel: str) -> bool:
    """Return True: this node recovers each channel."""
    return True


def responsible_node(channel: str, nodes: Iterable[str]) -> str:
    """Return the node that recovers `channel` first: all nodes with the same view name the same one."""
    return max(nodes, key=lambda node: hashlib.blake2b(f"{channel}\n{node}".encode(), digest_size=8).digest())


class NodeLease:
    """The lease of one node on its store, and the state of all nodes at the last renewal."""

    def __init__(self, store: SharedStore, node: str, now_s: Callable[[], float], clock: Clock | None = None) -> None:
        """Make the lease of `node`; `now_s` is the clock of the event loop. Renewals measure a `clock` of the store."""
        self.node = node
        self.is_exclusive = store.is_exclusive  # this is the only node of its store: all others have ended
        self.renewal: Renewal | None = None  # the result of the last renewal
        self.holds = NodeHolds()
        self.holds.sources.append(lambda: {f"{LEAVING}{node}": b""} if self.is_leaving else {})
        self.renewed_s = 0.0  # loop time at which that result was noted
        self._sent_s = 0.0  # when that renewal was sent
        self._store = store
        self._now_s = now_s
        self._clock = clock if isinstance(clock, StoreClock) else None
        self._certain_s = float("inf")  # from then on a node without a lease is gone
        self._own_due_s = float("inf")  # when this node recovers the channels that it is responsible for
        self._all_due_s = float("inf")  # when it recovers all channels
        self._kept_since_s = self._kept_until_s = float("-inf")  # the time in which the lease surely runs
        self.regained: Callable[[], None] = lambda: None  # called when the lease runs again after it had expired
        self.replaced: Callable[[], None] = lambda: None  # called when the store goes on from an earlier state
        self._retry_s = RENEW_S  # wait before a recovery that failed is repeated; it doubles with each failure
        self._is_recovering = False  # True: `recover` runs
        self.is_leaving = False  # set when this node drains: it recovers no further messages; its lease runs to `end`
        self._is_over = False  # True: no lease is renewed
        self._renewing = asyncio.Lock()  # renewals follow one another, so that no older result replaces a newer one
        if self.is_exclusive:
            self.renewal, self._certain_s = Renewal(0, frozenset({node}), ""), float("-inf")
            self._kept_until_s, self._is_over = float("inf"), True  # no lease is renewed

    def is_kept_since(self, time_s: float) -> bool:
        """Return whether other nodes have counted this one as alive from loop time `time_s` until now."""
        return self._kept_since_s <= time_s <= self._now_s() < self._kept_until_s

    def left_s(self, term_s: float, alive_ms: int) -> float:
        """Return the rest of a lease whose holder gave a stored sign of life at `alive_ms`; all of it for 0 (unknown).

        The term counts from then, and not from the moment at which this node reads of it. It counts from a later moment
        if before that the holder may have reached no node: when this one began, its lease had ended, the store had lost
        the leases, or the store's clock was set.
        """
        since_s = max(self._kept_since_s, self._certain_s - TERM_MS / 1000)
        if self.is_exclusive or not alive_ms or not self.is_kept_since(since_s):
            return term_s
        silent_s = min((self.now_ms - alive_ms) / 1000 - STORED_S, self._now_s() - since_s)
        return max(0.0, term_s - max(0.0, silent_s))

    async def renew(self) -> None:
        """Take or renew the lease, and note the living nodes; not on an exclusive store. Raises StoreUnavailable."""
        async with self._renewing:
            if self._is_over:
                return
            timeout_s = FIRST_TIMEOUT_S if self.renewal is None else RENEW_TIMEOUT_S
            try:
                async with asyncio.timeout(timeout_s):
                    if await self._send():
                        await self._send()  # puts the holds again
            except TimeoutError:
                raise StoreUnavailable(
                    f"store {self._store.name!r} did not renew the lease of this node within {timeout_s:g} s; "
                    "check its load and the network"
                ) from None

    async def put(self) -> None:
        """Renew the lease until the store has all holds. Raises StoreUnavailable."""
        await self.renew()
        while self.holds.is_behind and not self._is_over:
            await self.renew()

    async def keep(self, recover: Recover, start: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Renew the lease each second, and recover the messages of ended nodes, until this task is cancelled."""
        while not self._is_over:
            slept_s = self._now_s()
            await asyncio.sleep(RENEW_S)
            if (late_s := self._now_s() - slept_s) > TERM_MS / 1000:
                logger.warning(
                    "this process renewed no lease for %.0f s, so others may have ended its answers: it was suspended, "
                    "or a call blocked its event loop; run such a call with asyncio.to_thread",
                    late_s,
                )
            with logs_errors("the lease of this node was not renewed; the hub tries again"):
                try:
                    await self.put()
                except StoreReplaced:
                    self.replaced()
                    raise
                if self.is_recovery_due and not self._is_recovering:
                    start(self.recover(recover))

    @property
    def now_ms(self) -> int:
        """Return the time by the store's clock at the earliest, from the last renewal; 0 before the first."""
        return self.renewal.now_ms + int(1000 * (self._now_s() - self.renewed_s)) if self.renewal is not None else 0

    @property
    def latest_ms(self) -> int:
        """Return the same at the latest: later than `now_ms` by the duration of that renewal."""
        return self.renewal.now_ms + math.ceil(1000 * (self._now_s() - self._sent_s)) if self.renewal is not None else 0

    async def end(self) -> None:
        """End the lease now, so that other nodes recover the messages of this one. The lease is not renewed again."""
        self.is_leaving = self._is_over = True
        if self.is_exclusive:
            return
        with logs_errors(f"the lease of this node was not ended; it expires within {TERM_MS} ms"):
            async with asyncio.timeout(RENEW_TIMEOUT_S):
                async with self._renewing:  # a renewal that the store carries out later would begin a new lease
                    await self._store.hold(self.node, 0, {})

    # -- other nodes -------------------------------------------------------------------------------------------

    def is_gone(self, node: str) -> bool:
        """Return whether `node` has ended, as far as the last renewal shows."""
        if node == self.node or self.renewal is None:
            return False
        return self._now_s() >= self._certain_s and node not in self.renewal.nodes

    @property
    def has_others(self) -> bool:
        """Return whether another node lives, as far as the last renewal shows."""
        return self.renewal is not None and not self.renewal.nodes <= {self.node}

    @property
    def is_recovery_due(self) -> bool:
        """Return whether this node may have messages of other nodes to recover."""
        return not self.is_leaving and self._now_s() >= min(self._own_due_s, self._all_due_s)

    def recover_soon(self) -> None:
        """Let all channels be recovered again soon, because the recovery of one has failed."""
        self._all_due_s = min(self._all_due_s, self._now_s() + RETRY_S)

    async def recover(self, recover: Recover) -> None:
        """Recover the messages that ended nodes have left. If this fails, it is due again soon."""
        self._is_recovering, is_for_all = True, self._now_s() >= self._all_due_s
        with logs_errors("the messages of other nodes were not recovered; the hub tries again"):
            try:
                is_mine = every_channel if is_for_all else partial(self._is_mine, await self._draining())
                await self.renew()  # this process may have been suspended since the last renewal
                if not self.is_recovery_due:
                    return
                self._own_due_s = self._now_s() + ROUND_S
                if is_for_all:
                    self._all_due_s = float("inf")
                await recover(is_mine)
                self._retry_s = RENEW_S
            except Exception as error:  # an error of a third-party store must not end the recovery for good
                due_s = self._now_s() + self._retry_s
                self._own_due_s = min(self._own_due_s, due_s)
                if is_for_all:
                    self._all_due_s = min(self._all_due_s, due_s)
                self._retry_s = min(2 * self._retry_s, RETRY_S if isinstance(error, StoreUnavailable) else ROUND_S)
                raise
            finally:
                self._is_recovering = False

    async def _draining(self) -> frozenset[str]:
        """Return the nodes that drain; none if the store does not respond soon. Raises StoreUnavailable."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEW_TIMEOUT_S):
                return frozenset(node for node, _ in (await self._store.holds(LEAVING)).values())
        return frozenset()

    def _is_mine(self, draining: frozenset[str], channel: str) -> bool:
        renewal = self.renewal
        return renewal is not None and responsible_node(channel, renewal.nodes - draining | {self.node}) == self.node

    async def _send(self) -> bool:
        """Renew the lease, and put the holds that are due. Return whether the store may have lost the others."""
        sent_s = self._now_s()
        values = self.holds.due(sent_s)
        try:
            renewal = await self._store.hold(self.node, TERM_MS, values)
        except BaseException:
            self.holds.note_failed(values, sent_s)
            raise
        if self._clock is not None:
            self._clock.measure(renewal.now_ms, sent_s, self._now_s)
        self.holds.note_put(values)
        is_lost = self.renewal is not None and renewal.lease != self.renewal.lease
        if is_lost:
            self.holds.lose()
        # a lease may have expired by a clock that was set, and stored times may be older than they seem
        is_regained = self._now_s() >= self._kept_until_s or renewal.now_ms > self.latest_ms + SET_MS
        self._note(renewal)
        self._sent_s = sent_s
        self._kept_until_s = sent_s + TERM_MS / 1000
        if is_regained:
            self._kept_since_s = self._now_s()
            self.regained()
        return is_lost

    def _note(self, renewal: Renewal) -> None:
        """Take in a renewal of the lease. If a node has gone since the last one, recovery is due once that is sure."""
        now_s, term_s = self._now_s(), TERM_MS / 1000
        before, self.renewal, self.renewed_s = self.renewal, renewal, now_s
        if before is None or before.lease != renewal.lease:
            # The leases of other nodes may be lost, too. They renew them within a term.
            self._certain_s = self._own_due_s = now_s + term_s
            self._all_due_s = self._certain_s + term_s
        elif before.ended != renewal.ended or before.nodes - renewal.nodes:
            due_s = max(now_s, self._certain_s)
            self._own_due_s = min(self._own_due_s, due_s)
            # the first of several nodes that vanish one after another decides; the recovery is for all of them
            self._all_due_s = min(self._all_due_s, due_s + term_s)


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
        """Add the entries of `write`. Once they exceed the limit all are dropped, and so are later ones."""
        self.serial = write.expected + len(write.entries)
        if self.size_bytes <= MOVED_BYTES:
            added = [msgspec.Raw(_encode(entry)) for entry in write.entries]
            self.entries += added
            self.size_bytes += sum(map(len, added))
        if self.size_bytes > MOVED_BYTES:
            self.entries.clear()


_encode = msgspec.msgpack.Encoder().encode


@dataclass(eq=False)
class Notifier:
    """Sends a notice of each channel in which this node has stored entries, as long as other nodes live."""

    _way: Notices  # the store, or a bus
    _nodes: NodeLease

    def __post_init__(self) -> None:
        self._unsent: dict[str, _Unsent] = {}  # stored entries, by channel
        self._waiting: list[Notice] = []  # further notices, such as about members, and signals
        self._waiting_bytes = 0  # their size
        self._wake = asyncio.Event()  # set when there are notices to send

    def stored(self, write: Write) -> None:
        """Send a notice of `write`, which is stored and has entries, soon."""
        if not self._nodes.has_others:
            return
        unsent = self._unsent.get(write.channel)  # `write` continues it, or begins another one
        if unsent is None or (unsent.epoch, unsent.floor, unsent.serial) != (write.epoch, write.floor, write.expected):
            unsent = _Unsent(write.epoch, write.floor, write.expected, write.lives, [])
            self._unsent[write.channel] = unsent
        unsent.add(write)
        self._wake.set()

    def send(self, notice: Notice) -> None:
        """Send `notice` soon. It is dropped if too many wait, or if no other node lives."""
        size = len(notice.channel) + len(notice.body)
        is_full = len(self._waiting) >= WAITING_NOTICES or self._waiting_bytes + size > WAITING_BYTES
        if self._nodes.has_others and not is_full:
            self._waiting.append(notice)
            self._waiting_bytes += size
            self._wake.set()

    async def run(self) -> None:
        """Send the waiting notices and drop them, at most once in a window, until this task is cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            notices = [
                Notice("moved", channel, _encode((one.epoch, one.floor, one.serial, one.entries, one.lives)))
                for channel, one in self._unsent.items()
            ]
            notices += self._waiting
            self._unsent.clear()
            self._waiting, self._waiting_bytes = [], 0
            with logs_errors(f"{len(notices)} notices were not sent; other nodes read the heads", level=logging.DEBUG):
                async with asyncio.timeout(NOTIFY_TIMEOUT_S):
                    await self._way.notify(notices)
            await asyncio.sleep(WINDOW_S)


FOLLOW_S = 1.0  # time between two reads of the heads
READS = 3  # channels that are read at the same time: a connection of a PostgreSQL store is left for new viewers
SLOW_S = 1.0  # time after which the read of a channel no longer holds up the other channels
HEADS_S = 2.0  # a read of heads without a response for this long is sent again: its connection may be broken
STALE_S = 5.0  # time between two searches for stale channels, on an exclusive store


async def _heads(store: Store, channels: list[str]) -> list[Head]:
    """Return the heads of `channels`. Raises StoreUnavailable."""
    return await sent_again(lambda: store.heads(channels), store.name, after_s=HEADS_S)


@dataclass(eq=False)
class Follower:
    """Follows the store for the channels in memory. `notifier` tells other nodes, which follow this one."""

    _store: Store
    _channels: Mapping[str, Channel]  # those in memory
    notifier: Notifier
    bus: Bus | None  # carries the notices if there is one
    followed: Callable[[Channel], None]  # called after entries of other hubs were applied

    def __post_init__(self) -> None:
        # for attaches: the channels of the next query for heads, and that query; the lock is held by the one that runs
        self._wanted: dict[str, None] = {}
        self._next: asyncio.Task[dict[str, Head]] | None = None
        self._turn = asyncio.Lock()
        self.receivers: list[Callable[[Notice | None], None]] = []  # they get the notices of other kinds, and None
        self._due: set[str] = set()  # channels whose notice could not be applied
        self._slow: set[Channel] = set()  # channels whose reads took too long, which are read one at a time
        self._slow_turn = asyncio.Lock()  # held while one of them is read
        self._wake = asyncio.Event()  # set when channels, or the heads, are to be read at once
        self._heads_s = 0.0  # loop time of the next read of the heads
        self.responded_s = 0.0  # loop time of the last response to a read of the heads
        self._is_over = False

    def receive(self, notice: Notice | None) -> None:
        """Apply the entries of a notice, or have the store read soon. None: notices may have been missed."""
        if self._is_over:
            return
        if notice is None or notice.kind != "moved":
            for pass_on in self.receivers:
                pass_on(notice)
            if notice is None:
                self._heads_s = 0.0
                self._wake.set()
        elif (channel := self._channels.get(notice.channel)) is not None:
            one = decoded(notice.body, Moved)
            if one is not None and channel.take_entries(one.epoch, one.floor, one.serial, one.entries, lives=one.lives):
                self.followed(channel)
            else:
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
        async with asyncio.TaskGroup() as slow_reads:
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

    async def head(self, channel: str) -> Head:
        """Return the head that `channel` has now or later. Raises StoreUnavailable.

        Calls while a query runs share the next one.
        """
        self._wanted[channel] = None
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._wanted_heads())
            self._next.add_done_callback(retrieve_exception)
        try:
            return (await asyncio.shield(self._next))[channel]
        except TenutoError as error:
            raise error.with_traceback(None) from None  # it is raised for each of the callers

    async def _wanted_heads(self) -> dict[str, Head]:
        """Return the heads of all channels that are wanted when the query before has ended. Raises StoreUnavailable."""
        async with self._turn:
            names, self._wanted, self._next = list(self._wanted), {}, None
            return dict(zip(names, await _heads(self._store, names), strict=True))

    async def behind(self) -> list[Channel]:
        """Return the channels in memory that are behind the store. Raises StoreUnavailable."""
        channels = list(self._channels.values())
        if self._store.is_exclusive:
            return [channel for channel in channels if channel.is_stale]
        channels = [channel for channel in channels if channel.is_loaded or channel.is_stale]
        serials = [channel.state.serial for channel in channels]
        heads = await _heads(self._store, [channel.name for channel in channels])
        if channels:
            self.responded_s = asyncio.get_running_loop().time()
        # a store may lose its last commits
        return [
            one
            for one, serial, head in zip(channels, serials, heads, strict=True)
            if one.is_stale or one.batches.unreadable is not None or head.serial < serial or not one.is_past(head)
        ]

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

        reads = min(READS - bool(self._slow), len(behind))  # a slow channel is read beside these
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
