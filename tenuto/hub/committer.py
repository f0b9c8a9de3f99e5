"""The committer: decides requests, stores them, then returns results. Only here does the state of a channel move.

Layer: hub.

Requests wait while a commit runs. Then the committer decides a batch of them, over all channels, on drafts, and stores
it in one transaction. So batches grow with the load, and an idle hub adds no latency. The committer returns every
result of a batch, also refusals and repeats, after the commit, since a result may depend on entries of that commit. A
failed batch needs no undo: the committer drops its drafts.

An item whose channel, or a message that its decision needs, is not in memory is parked while the store is read. Later
items of the same channel are parked behind it; items of other channels proceed. After a commit with an unknown outcome
the committer reads the channel again, and returns the results of the items that the store turns out to hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum, auto
from typing import NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.decide import decide, plain_append, stored_renewal
from tenuto.core.document import Document, document
from tenuto.core.draft import Decision, Draft
from tenuto.core.errors import Busy, Draining, StoreUnavailable, TenutoError
from tenuto.core.events import NO_EPOCH
from tenuto.core.limits import Limits
from tenuto.core.model import Part
from tenuto.core.ops import Append, Create, Entry, SetPart
from tenuto.core.requests import AppendText, Caller, CreateMessage, SendCommand
from tenuto.core.state import MessageState
from tenuto.hub.channel import MAX_CONFLICTS, Channel, Ticks, outpaced
from tenuto.hub.clock import Clock
from tenuto.hub.pending import Admission, Ask, Decided, DocumentDue, Item
from tenuto.hub.tasks import store_failures
from tenuto.stores.base import Committed, CommitUnknown, Conflict, Store, Write
from tenuto.watchdog import Watchdog

logger = logging.getLogger("tenuto.hub")

Find = Callable[[str], MessageState | None]  # the message with an id


T = TypeVar("T")

READ_TIMEOUT_S = 30.0  # time after which a read fails; the items that are parked for it fail, too


class Unclear(NamedTuple):
    """A write whose outcome is unknown: its decisions, and what the channel has if it was stored."""

    epoch: str
    serial: int
    things: dict[str, object]  # of a shared store: `_content` of the changed messages, by ids
    decided: list[Decided]


async def in_time(read: Awaitable[T], store: str) -> T:
    """Return the result of `read` from the store named `store`. Raises StoreUnavailable if it takes too long."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await read
    except TimeoutError:
        raise StoreUnavailable(
            f"store {store!r} did not respond to a read within {READ_TIMEOUT_S:g} s; check its load and the network"
        ) from None


async def sent_again(read: Callable[[], Awaitable[T]], store: str, *, after_s: float) -> T:
    """Return the result of `read()`. After `after_s` it is called again, as its connection may be broken.

    Raises StoreUnavailable if the second call takes too long.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(after_s):
            return await read()
    return await in_time(read(), store)


PATIENCE_S = 0.04  # longest delay of a commit that only viewers wait for; equals the default flush window
SPARE_S = 0.001  # safety margin, in addition to twice the recent duration of a commit


class Begin(Enum):
    """When a writer queues new text, and when the committer takes it."""

    NOW = auto()  # now; the next commit begins without a gap
    AFTER_GAP = auto()  # now; the next commit may keep its gap to the last one
    LATER = auto()  # at the call of the callback, as for NOW


class Pace:
    """When commits begin that only viewers wait for: the recent duration of commits, and the gap between two of them.

    Inside of a flush window, text is stored shortly before the end of the window, because viewers see it no earlier.
    After the windows of all viewers, they see it as soon as it is stored; such text of many channels shares a commit,
    after the gap. The gap ends at the first point of the ticks' grid after the beginning of the last commit. So a
    commit begins at once if that point has passed, and all text that one tick has queued shares a commit.
    """

    def __init__(self, ticks: Ticks) -> None:
        self._ticks = ticks
        self._took_s = 0.0  # moving average of the time from queueing an item until it is stored
        self._begun_s = -1.0  # loop time at which the last commit began
        self._is_urgent = False  # True: the next commit keeps no gap, because a queued item is urgent
        self._over: asyncio.Event | None = None  # set to end the gap; None: no gap is kept now

    def begin(self, channel: Channel, callback: Callable[[], None]) -> Begin:
        """Return when to commit text for the viewers of `channel`; if LATER, call `callback` then.

        That is so early that the text is stored by the next flush, also in a slow store. Until the flush no viewer sees
        a difference if more text is stored. The gap never delays text inside of a flush window, so it makes no text
        miss its flush.
        """
        if channel.has_unbuffered_viewers:
            return Begin.NOW
        first_s, last_s = channel.windows_end_s()
        now_s = asyncio.get_running_loop().time()
        if self._ticks.tick_s(first_s) <= now_s:  # until the tick, a flush of earlier text may still be due
            # other viewers of the channel may have a longer window, with a flush that the gap would miss
            return Begin.NOW if self._ticks.tick_s(last_s) > now_s else Begin.AFTER_GAP
        if self._ticks.call_before(min(first_s, now_s + PATIENCE_S), 2 * self._took_s + SPARE_S, callback):
            return Begin.LATER
        return Begin.NOW

    def took(self, took_s: float) -> None:
        """Update the average by a commit whose oldest item waited `took_s` for it: fast upwards, slowly downwards."""
        more_s = took_s - self._took_s
        self._took_s += more_s * (0.5 if more_s > 0 else 0.1)

    def hurry(self) -> None:
        """End the gap, and keep none before the next commit, because a caller waits for a queued item."""
        self._is_urgent = True
        if self._over is not None:
            self._over.set()

    async def keep_gap(self) -> bool:
        """Wait for the end of the gap, and note that a commit begins now. Return whether there was a gap."""
        over = asyncio.Event()
        is_kept = not self._is_urgent and self._ticks.call_after(self._begun_s, over.set)
        if is_kept:
            self._over = over
            await over.wait()
            self._over = None
        self._is_urgent = False
        self._begun_s = asyncio.get_running_loop().time()
        return is_kept


# Small batches give the best tail latency: at 500 conversations of 50 tokens a second with two viewers each the p99 was
# 75 ms with 64 rows, 84 with 128 and 106 with 256 (two runs each, 1 to 8 ms apart).
MAX_ROWS = 64
# With no subscribers there is no tail latency to protect, and larger commits are cheaper: an awaited append takes 12.3
# µs of CPU with 64 rows, 10.4 with 128 and 8.9 with 512. A channel with viewers that queues meanwhile waits 4 ms more.
UNWATCHED_FACTOR = 8
# limit of items in one batch: many requests may join to few rows, and this bounds the work between two commits
MAX_ITEMS = 1_024
# Size from which an item, such as a question with a photo, has a commit of its own, or is the last of the commit after
# one in which others came first. The commit after it has no such item, so that text of others waits for one at most.
LARGE_BYTES = 256 * 1024
# Limit of a message's text since its last document; beyond it the message gets another, so that a restart reads little.
DOCUMENT_BYTES = 64 * 1024
STORE_TIMEOUT_S = 30.0  # time without a response after which the outcome of a commit counts as unknown
PROBE = "readyz"  # the note by which `check_writes` tries to write
PROBE_BYTES = 8 * 1024  # more than a page of the store, so that it needs space
PROBE_S = 1.0  # time between two tries
SPACE_BYTES = 64 * 1024  # free space of a disk below which `check_writes` tries to write


class _Batch(Struct):
    """The decisions of one commit, with one draft for each channel."""

    drafts: dict[Channel, Draft]
    single: dict[Channel, Entry]  # the single append of a channel, which then needs no draft
    decided: list[Decided]
    due: dict[Channel, list[str]]  # ids of messages whose document the store has requested
    since_s: float | None  # loop time at which the oldest item of the batch was queued, or earlier

    def draft(self, channel: Channel) -> Draft:
        """Return the draft of `channel` with the entries decided so far."""
        draft = self.drafts.get(channel)
        if draft is None:
            draft = self.drafts[channel] = Draft(channel.state)
            entry = self.single.pop(channel, None)
            if entry is not None:
                draft.add(entry.op)
        return draft


@dataclass(eq=False)
class Committer:
    """Decides and stores queued requests, one batch at a time. A request is decided on durable state only."""

    _store: Store
    _limits: Limits
    _clock: Clock
    _channels: Mapping[str, Channel]  # those in memory
    _channel: Callable[[str], Channel]  # returns the one with a name, also if it is not in memory yet
    _spawn: Callable[[Coroutine[None, None, None]], object]  # starts a task
    pace: Pace
    _: KW_ONLY
    is_served: Callable[[str], bool]  # returns whether agents serve a channel
    accepted: Callable[[Channel, str], None]  # called with the accepted requests of remote writers
    check: Callable[[CreateMessage | SendCommand, Find], None]  # raises StoreFull if there is no space for a message
    stored: Callable[[Write], None] | None  # called with each write that was stored
    followed: Callable[[Channel], None]  # called with each channel that was read again
    waiting: int = field(default=0, init=False)  # number of items that are queued or parked
    commits: int = field(default=0, init=False)
    entries: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._parked: dict[Channel, deque[Item]] = {}  # items that wait for a read of the store, oldest first
        self._in_doubt: dict[Channel, Unclear] = {}  # channels whose store may hold parked items
        self._queue = Admission()
        self._waiting_bytes = 0  # size of the items that `waiting` counts
        self._may_be_large = True  # False: the last commit was that of a large item
        self._was_held = False  # True: a large item waits only because others came first in the last commit
        self._wake = asyncio.Event()  # set while items are queued
        self._since_s: float | None = None  # loop time at which the oldest item was queued, or earlier
        self._batch_in_flight: _Batch | None = None  # the one whose commit runs, or was cancelled
        self._is_over = False
        self._failure: StoreUnavailable | None = None  # of the last commit
        self._probe_at_s = 0.0  # loop time from which `check_writes` may try again

    async def check_writes(self) -> None:
        """Raise StoreUnavailable if the store cannot write.

        After a failed commit, or if the store's disk is nearly full, this writes and removes a note, at most once a
        second. Otherwise it writes nothing. A full disk alone is no failure: a log may have space within its file.
        """
        has_space = self._store.stats().get("disk_free_bytes", SPACE_BYTES) >= SPACE_BYTES
        if self._failure is None and has_space:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._probe_at_s:
            self._probe_at_s = now_s + PROBE_S
            try:
                await self._store.note({PROBE: bytes(PROBE_BYTES)})
                await self._store.note({PROBE: None})
                self._failure = None
            except StoreUnavailable as error:
                self._failure = error
        if self._failure is not None:
            raise StoreUnavailable(str(self._failure), **self._failure.details)

    def submit(self, item: Item, *, is_urgent: bool = True) -> None:
        """Queue `item` for the next batch. Raises Busy if the queue is full, Draining after the hub has ended.

        Unless `is_urgent`, or enough items for a batch wait, the batch may keep its gap to the last one.
        """
        if self._is_over:
            raise Draining("hub is closed; start it again, or reconnect to another one")
        limits = self._limits
        if self.waiting >= limits.waiting_requests or self._waiting_bytes + item.size_bytes > limits.waiting_bytes:
            raise Busy(
                f"hub has {self.waiting} requests of {self._waiting_bytes} bytes waiting to be stored, the limits are "
                f"{limits.waiting_requests} requests and {limits.waiting_bytes} bytes (Limits.waiting_requests, "
                "Limits.waiting_bytes); try again",
                limit=limits.waiting_requests,
            )
        self.waiting += 1
        self._waiting_bytes += item.size_bytes
        self._queue.append(item)
        if self._since_s is None:
            self._since_s = asyncio.get_running_loop().time()
        self._wake.set()
        if is_urgent or len(self._queue) >= MAX_ROWS:
            self.pace.hurry()

    def is_parked(self, channel: Channel) -> bool:
        """Return whether requests of `channel` are parked until the store has been read."""
        return channel in self._parked

    async def run(self) -> None:
        """Store queued items until the hub ends and cancels this task; then fail the remaining ones."""
        watchdog = Watchdog(STORE_TIMEOUT_S)
        try:
            while True:
                await self._wake.wait()
                if await self.pace.keep_gap():
                    # The gap is no part of the time that a commit takes: text in a flush window does not wait for it.
                    self._since_s = asyncio.get_running_loop().time()
                self._batch_in_flight = self._assemble()
                if self._batch_in_flight.decided:
                    await self._commit(self._batch_in_flight, watchdog)
                else:
                    await asyncio.sleep(0)  # all items are parked; let other tasks run
                self._batch_in_flight = None
        finally:
            self._end()

    def _end(self) -> None:
        """Fail all items that are queued or in flight."""
        self._is_over = True
        in_flight = self._batch_in_flight.decided if self._batch_in_flight is not None else []
        for decided in in_flight:
            for ask in decided.granted:
                ask.is_unclear = True  # the commit that was cancelled may have stored it
        items = [decided.item for decided in in_flight]
        items += [*self._queue.drain(), *(item for parked in self._parked.values() for item in parked)]
        self._parked.clear()
        self._in_doubt.clear()  # their items were parked
        for item in items:
            item.failed(Draining("the hub stopped while this was stored, so the outcome is unknown; send it again"))

    # -- deciding ----------------------------------------------------------------------------------------------

    def _assemble(self) -> _Batch:
        """Decide a batch of queued items. It never awaits, so all decisions see the same state."""
        batch = _Batch({}, {}, [], {}, self._since_s)
        rows, limit = 0, UNWATCHED_FACTOR * MAX_ROWS
        may_be_large, self._may_be_large = self._may_be_large, True
        held: list[Item] = []  # large items that wait for a later commit, and those behind them
        held_channels: set[str] = set()
        now_s, now_ms = asyncio.get_running_loop().time(), None  # the clock is read if a decision needs it
        self._queue.begin(now_s)
        while rows < limit and len(batch.decided) + len(held) < MAX_ITEMS:
            item = self._queue.take()
            if item is None:
                break
            is_large = item.size_bytes >= LARGE_BYTES
            if item.channel in held_channels or (
                is_large and ((batch.decided and not self._was_held) or not may_be_large)
            ):
                held.append(item)
                held_channels.add(item.channel)
                continue
            channel = self._channels.get(item.channel) or self._channel(item.channel)
            channel.used_s = now_s
            is_first = channel not in batch.drafts and channel not in batch.single  # the batch has no decision on it
            if is_first and channel.trim_bytes is not None:
                channel.trim(channel.trim_bytes)
            if channel in self._parked or not channel.is_ready_for(item.ids):
                self._park(channel, item)
                continue
            try:
                asks = item.asks()
            except Exception:  # an exception from one writer must not fail the items of others
                logger.exception("requests for channel %s could not be made; please report this bug", item.channel)
                self._fail(item, TenutoError("the writer's requests could not be made: a bug; the log has the reason"))
                continue
            if channel.watchers:
                limit = MAX_ROWS  # viewers wait for this commit
                if not item.is_beginning:
                    self._queue.note_running(now_s)
            # A plain append that comes first needs no draft: `single` holds its entry until the channel's next request.
            entry = self._plain_append(channel, asks) if is_first and len(asks) == 1 and not is_large else None
            if entry is not None:
                batch.single[channel] = entry
                batch.decided.append(Decided(channel, item, asks, single=entry))
                rows += 1
                continue
            draft = batch.draft(channel)
            before = len(draft.ops)
            now_ms = now_ms or self._clock.now_ms()
            batch.decided.append(self._decide(channel, draft, item, asks, now_ms))
            if type(item) is DocumentDue:
                batch.due.setdefault(channel, []).extend(item.ids)
            rows += len(draft.ops) - before
            if is_large:
                self._may_be_large = False
                break
        self._was_held = bool(held) and may_be_large
        if held:
            self._queue.put_first(held)
        if not self._queue:
            self._since_s = None
            self._wake.clear()
        else:
            self.pace.hurry()
            # new messages and claims wait for later commits beside running text (`Admission`), not for the store
            if self._queue.has_only_beginnings:
                self._since_s = None
        return batch

    def _plain_append(self, channel: Channel, asks: Sequence[Ask]) -> Entry | None:
        """Return the entry of the only request if it is a plain append by the app and needs no document, else None."""
        (ask,) = asks
        request, state = ask.request, channel.state
        if type(request) is not AppendText or not ask.caller.is_app:
            return None
        op = plain_append(state, ask.key, request, self._limits)
        if op is None or state.messages[op.id].undocumented_bytes + len(op.text) > DOCUMENT_BYTES:
            return None
        return Entry(state.serial + 1, op)

    def _decide(self, channel: Channel, draft: Draft, item: Item, asks: Sequence[Ask], now_ms: int) -> Decided:
        """Decide the requests of `item`, up to the first refusal: later ones depend on it."""
        outcomes, refusal = list[tuple[Decision, int]](), None
        for ask in asks:
            request = ask.request
            is_served = isinstance(request, CreateMessage | SendCommand) and self.is_served(channel.name)
            try:
                decision = decide(
                    draft, ask.key, request, caller=ask.caller, now_ms=now_ms, limits=self._limits, is_served=is_served
                )
                if decision.ops and isinstance(request, CreateMessage | SendCommand):
                    self.check(request, draft.message)
            except TenutoError as error:
                refusal = error.with_traceback(None)
                break
            except Exception:  # an unexpected exception in a decision must not fail the requests of others
                logger.exception("a request about %r could not be decided; please report this bug", ask.key)
                refusal = TenutoError("the request could not be decided because of a bug; the hub's log has the reason")
                break
            serials = [draft.add(op) for op in decision.ops]
            outcomes.append((decision, decision.serial or (serials[decision.result_op] if serials else 0)))
            if not serials and not self._store.is_exclusive and _renews_lease(ask.caller):  # for other hubs
                for op in stored_renewal(draft.message(ask.key), now_ms):
                    draft.add(op)
            if isinstance(request, AppendText) and request.at is None and decision.length is not None:
                # The request keeps its first offset: after an unknown outcome its text is not added twice.
                ask.request = replace(request, at=decision.length - len(request.text))
        return Decided(channel, item, asks[: len(outcomes)], outcomes, refusal)

    # -- storing -----------------------------------------------------------------------------------------------

    async def _commit(self, batch: _Batch, watchdog: Watchdog) -> None:
        """Store `batch`, apply it to its channels, and return its results, also if it fails. Only a bug raises."""
        writes, loop = self._writes(batch), asyncio.get_running_loop()
        over = loop.create_future()
        channels = [*batch.drafts, *batch.single]
        for channel in channels:
            channel.commit_over = over
        begun_s, results = loop.time(), list[Committed | Conflict]()
        try:
            if writes:
                with watchdog:
                    results = await self._store.commit([write for _, write in writes])
            else:
                await asyncio.sleep(0)  # there is no entry to store; let other tasks run
        except Exception as error:
            failure = self._failure = self._failed(error)
            if isinstance(failure, CommitUnknown):
                store_failures.log_failed("it is not known whether a commit was stored", failure)
                again = [decided.channel for decided in batch.decided]
                self._return_all(batch, again, self._unclear(batch, writes))
                return
            store_failures.log_failed("a commit failed, nothing of it is stored", failure)
            for decided in batch.decided:
                self._fail(decided.item, failure)
            return
        finally:
            for channel in channels:
                channel.commit_over = None
            over.set_result(None)
            now_s = loop.time()
            if writes:
                self._queue.stored(now_s - begun_s)
            if batch.since_s is not None:
                self.pace.took(now_s - batch.since_s)
        if writes:
            self._failure = None
        conflicted = []
        for (channel, write), result in zip(writes, results, strict=True):
            if isinstance(result, Committed):
                channel.committed(write.epoch, write.entries, write.documents)
                if self.stored is not None and write.entries:
                    self.stored(write)
            else:
                conflicted.append(channel)
        self.commits += bool(writes)
        self.entries += sum(len(write.entries) for _, write in writes)
        self._return_all(batch, conflicted, {})

    def _failed(self, error: Exception) -> StoreUnavailable:
        """Return why a commit failed: CommitUnknown if it may be stored, another StoreUnavailable if it is not."""
        if isinstance(error, StoreUnavailable):
            return error
        if isinstance(error, TimeoutError):
            return CommitUnknown(f"store {self._store.name!r} did not respond within {STORE_TIMEOUT_S:g} s; check it")
        logger.error("store %r failed in a way it should not; report this bug", self._store.name, exc_info=error)
        return CommitUnknown(f"store {self._store.name!r} failed with {type(error).__name__}; the log has the reason")

    def _unclear(self, batch: _Batch, writes: Sequence[tuple[Channel, Write]]) -> dict[Channel, Unclear]:
        """Return what the channels will have if the writes were stored.

        On a shared store another hub's write may have led to the same serial, so there the messages are compared, too.
        That tells a message, text and parts, but not a claim or a command: two hubs can make equal ones for different
        callers.
        """
        unclear = {}
        for channel, write in writes:
            things: dict[str, object] = {}
            if not self._store.is_exclusive:
                if not write.entries or any(type(entry.op) not in (Append, Create, SetPart) for entry in write.entries):
                    continue
                draft = batch.draft(channel)
                things = {key: _content(draft.message(key)) for key in {entry.op.id for entry in write.entries}}
            decided = [one for one in batch.decided if one.channel is channel]
            unclear[channel] = Unclear(write.epoch, write.expected + len(write.entries), things, decided)
        return unclear

    def _writes(self, batch: _Batch) -> list[tuple[Channel, Write]]:
        """Return what to store for the batch; on an exclusive store only new entries and documents."""
        contents: list[tuple[Channel, Sequence[Entry], Sequence[Document]]]
        contents = [(channel, (entry,), ()) for channel, entry in batch.single.items()]
        for channel, draft in batch.drafts.items():
            documents = _documents(draft, batch.due.get(channel, ()))
            # On a shared store a result without an entry may be based on an old state. An empty write checks the head.
            if draft.ops or documents or not self._store.is_exclusive:
                contents.append((channel, draft.entries(), documents))
        writes = []
        for channel, entries, documents in contents:
            state = channel.state
            write = Write(
                channel=channel.name,
                epoch=self._clock.new_epoch() if state.epoch == NO_EPOCH else state.epoch,
                expected=state.serial,
                entries=entries,
                documents=documents,
                lives=state.lives,
                floor=state.floor,
            )
            writes.append((channel, write))
        return writes

    def _return_all(self, batch: _Batch, again: Iterable[Channel], unclear: Mapping[Channel, Unclear]) -> None:
        """Return the results of a commit. Requests of the channels `again` are decided again after a read of the store.

        The writes of the channels `unclear` may have been stored.
        """
        parked: dict[Channel, list[Item]] = {channel: [] for channel in again}
        for channel in parked:
            channel.is_stale = True
            channel.conflicts += 1
        for decided in batch.decided:
            channel = decided.channel
            if channel not in parked:
                channel.conflicts = 0
                self._return(decided)
            elif channel.conflicts <= MAX_CONFLICTS:
                for ask in decided.granted:
                    ask.is_unclear = True
                parked[channel].append(decided.item)
            else:
                self._fail(decided.item, outpaced(channel.name, channel.conflicts))
        self._in_doubt.update(unclear)
        for channel, items in parked.items():
            if channel.conflicts > MAX_CONFLICTS:
                channel.conflicts = 0  # its requests have failed; later ones begin anew
            # before all others of the channel, which is read again
            self._parked.setdefault(channel, deque()).extendleft(reversed(items))
            self._spawn(self._load(channel))

    def _return(self, decided: Decided) -> None:
        """Return the durable results of one item to it."""
        item = decided.item
        self.waiting -= 1
        self._waiting_bytes -= item.size_bytes
        # the remote writers' leases concern decided requests; `plain_append` handles writers of this process only
        if decided.single is None:
            for ask in decided.granted:
                if _renews_lease(ask.caller):
                    self.accepted(decided.channel, ask.key)
        item.decided(decided)

    def _fail(self, item: Item, error: TenutoError) -> None:
        """Return `error` to an item of which no request is stored, or of which that is unknown (CommitUnknown)."""
        self.waiting -= 1
        self._waiting_bytes -= item.size_bytes
        item.failed(error)

    # -- reading the store -------------------------------------------------------------------------------------

    def _park(self, channel: Channel, item: Item) -> None:
        """Park `item`, and later items of its channel, until the store has been read."""
        parked = self._parked.setdefault(channel, deque())
        parked.append(item)
        if len(parked) == 1:
            self._spawn(self._load(channel))

    async def _load(self, channel: Channel) -> None:
        """Load the messages that the parked items need, then queue the items again, first and in order."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                is_read = False
                while not is_read:
                    if channel.is_stale:
                        await channel.refresh()
                        self.followed(channel)
                    await channel.load_messages(self._ids(channel))
                    # An unknown outcome may have parked more items meanwhile, which `_resolve_unclear` handles.
                    is_read = not channel.is_stale and not channel.missing(self._ids(channel))
                # resolved here, with the messages in memory, because a result may contain one
                self._resolve_unclear(channel)
        except Exception as error:  # catch any error: no other component would fail the parked items
            what = f"channel {channel.name} could not be read"
            if isinstance(error, StoreUnavailable | TimeoutError):
                store_failures.log_failed(what, repr(error), reason=f"channel: {error!r}")
            else:
                logger.warning("%s: %r", what, error)
            refused = (
                error
                if isinstance(error, TenutoError)
                else StoreUnavailable(f"channel {channel.name!r} could not be read from the store; try again")
            )
            if self._in_doubt.pop(channel, None) is not None:
                refused = CommitUnknown("store did not confirm that the request was stored; send it again to find out")
            for item in self._parked.pop(channel, ()):
                self._fail(item, refused)
            return
        self._queue.put_first(self._parked.pop(channel, ()))
        self._wake.set()
        self.pace.hurry()

    def _ids(self, channel: Channel) -> list[str]:
        """Return the ids that the parked items of `channel` need in memory."""
        return [one for item in self._parked.get(channel, ()) for one in item.ids]

    def _resolve_unclear(self, channel: Channel) -> None:
        """If the store, now read again, holds a write with an unknown outcome, return the results of that write."""
        unclear, state = self._in_doubt.pop(channel, None), channel.state
        if unclear is None or (state.epoch, state.serial) != (unclear.epoch, unclear.serial):
            return
        if any(_content(state.messages.get(key)) != content for key, content in unclear.things.items()):
            return
        parked = self._parked[channel]
        for decided in unclear.decided:
            if decided.item in parked:
                parked.remove(decided.item)
                self._return(decided)


def _content(message: MessageState | None) -> tuple[bytes, list[Part]] | None:
    """Return all that a store keeps of a message, for a comparison; None if there is no message."""
    return (document(message).head, [part.value() for part in message.parts]) if message is not None else None


def _renews_lease(caller: Caller) -> bool:
    """Return whether an accepted request of `caller` renews the lease of its message: writers here have none."""
    return caller.writer is None and not caller.is_server


def _documents(draft: Draft, due: Iterable[str]) -> Sequence[Document]:
    """Return the documents that a batch must store.

    They are those of messages that changed by more than appended text, that have much new text, or whose document the
    store has requested (`due`). A damaged message gets no document, which would replace the rest of its text.
    """
    messages = draft.base.messages
    grown = []
    for message_id, length in draft.appended.items():
        known = messages.get(message_id)
        if known is not None and known.undocumented_bytes + length > DOCUMENT_BYTES:
            grown.append(message_id)
    if not (draft.reshaped or grown or due):  # the common case: no document
        return ()
    things = [draft.thing(key) for key in dict.fromkeys((*draft.reshaped, *grown, *due))]
    return [document(thing) for thing in things if thing is not None and not thing.is_damaged]
