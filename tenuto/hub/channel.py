"""A live channel: its durable state in memory, and the feeds that follow it, each for one subscriber.

Layer: hub.

The state in memory is always durable, so a channel cannot show a token that a crash could lose. Only the committer
moves the state. The methods that read the store into it (`load_*`, `refresh`) run while no commit of this channel is in
flight, because a read that races a commit would leave a hole.

The feeds with one flush class form a `Group`, which is released once per flush window. All windows end on the grid of
`Ticks`, so one timer serves many channels. The events behind one cursor are the same for all feeds of a channel, so a
batch is made and encoded once (`BatchCache`).

A feed is a cursor and a wake-up, never a queue: when it is woken it takes all missed events as one batch. A slow reader
takes later, and gets more at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import KW_ONLY, InitVar, dataclass, field
from math import ceil, floor
from typing import TypeVar, get_args

from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.catch_up import events_since, new_start, newest_messages, resumed, sole_append
from tenuto.core.document import Document, mark_documented, restored
from tenuto.core.errors import Busy, StoreUnusable, shown
from tenuto.core.events import (
    EMPTY,
    NO_EPOCH,
    ChannelAttached,
    Cursor,
    MessageAppend,
    MessageCreate,
    MessagePart,
    MessageUpdate,
    ServerEvent,
    encode_json,
)
from tenuto.core.limits import Limits
from tenuto.core.names import command_key
from tenuto.core.ops import Append, Command, Create, Entry
from tenuto.core.state import ChannelState, CommandState, MessageState, apply_entry, part_bytes
from tenuto.core.turns import STEP_MARK
from tenuto.hub.people.presence_state import PresenceState
from tenuto.stores.base import Conflict, Head, Store, head_of

FRAME_BYTES = 256 * 1024  # size of a WebSocket frame at most, unless a single event is larger
# Larger batches are rare, and to keep another form of them would cost more than to make it again.
MAX_CHUNK_BYTES = 64 * 1024
# Limits per channel of the batches that are kept for other feeds at the same cursor; each exists in up to four forms.
MAX_CACHED_BATCHES = 64
MAX_CACHED_BYTES = 2 * 1024 * 1024


T = TypeVar("T")


class Behind(Exception):
    """Raised by `Feed.take`, because the feed's cursor is older than the events in memory.

    Call `await feed.catch_up()`, then `take` again.
    """


class EncodedBatch(Struct, eq=False):
    """The events of one batch, in the forms that transports send. Each form is made once, on first use."""

    channel: str
    cursor: str  # empty for ephemeral events
    events: Sequence[ServerEvent]
    _raw: list[bytes] | None = None
    _sse: bytes | None = None
    _chunk: bytes | None = None
    _frames: tuple[bytes, ...] | None = None

    @property
    def encoded_bytes(self) -> int:
        """Return how many bytes the events take as JSON."""
        return sum(map(len, self.raw))

    @property
    def raw(self) -> list[bytes]:
        """Return each event as JSON."""
        if self._raw is None:
            self._raw = [encode_json(event) for event in self.events]
        return self._raw

    @property
    def sse(self) -> bytes:
        """Return the batch as Server-Sent Events; only the last one carries the cursor as its id."""
        if self._sse is None and len(self.events) == 1 and self.cursor:  # hot path, with the same bytes as below
            event = self.events[0]
            self._sse = b"event: %b\ndata: %b\nid: %b\n\n" % (_TYPES[type(event)], self.raw[0], self.cursor.encode())
        if self._sse is None:
            pieces: list[bytes] = []
            for event, data in zip(self.events, self.raw, strict=True):
                pieces += (b"event: ", _TYPES[type(event)], b"\ndata: ", data, b"\n\n")
            if self.cursor:
                pieces[-1] = b"\nid: " + self.cursor.encode() + b"\n\n"
            self._sse = b"".join(pieces)
        return self._sse

    @property
    def chunk(self) -> bytes | None:
        """Return `sse` as an HTTP/1.1 chunk; None if it is too large to keep it in this form, too."""
        if self._chunk is None and len(body := self.sse) <= MAX_CHUNK_BYTES:
            self._chunk = b"%x\r\n%b\r\n" % (len(body), body)
        return self._chunk

    @property
    def frames(self) -> tuple[bytes, ...]:
        """Return the batch as texts of WebSocket frames; only the last one carries the cursor."""
        if self._frames is None:
            raw = self.raw
            opening = b'{"type":"events","channel":%b,' % encode_json(self.channel)
            cursor = b'"cursor":"%b",' % self.cursor.encode() if self.cursor else b""
            *first, last = raw if len(raw) == 1 else _groups(raw)  # hot path: one event
            self._frames = (
                *(b'%b"events":[%b]}' % (opening, group) for group in first),
                b'%b%b"events":[%b]}' % (opening, cursor, last),
            )
        return self._frames

    def frames_with(self, extra: str) -> tuple[bytes, ...]:
        """Return `frames` with `:` and `extra` after the cursor, made for one viewer and therefore not kept."""
        cursor = b'"cursor":"%b' % self.cursor.encode()
        *first, last = self.frames
        # the replacement is unambiguous, since only the channel's name stands before the cursor in the frame
        return (*first, last.replace(cursor, b"%b:%b" % (cursor, extra.encode()), 1))


# the names of the types of events
_TYPES = {kind: str(kind.__struct_config__.tag).encode() for kind in get_args(ServerEvent)}


def _groups(raw: Sequence[bytes]) -> list[bytes]:
    """Return the events, joined by commas, in groups of at most one frame where possible; an event is never split."""
    groups, size = list[list[bytes]]([[]]), 0
    for data in raw:
        if groups[-1] and size + len(data) > FRAME_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(data)
        size += len(data)
    return [b",".join(group) for group in groups]


@dataclass(eq=False, slots=True)
class BatchCache:
    """The batches of one channel that are kept for other feeds at the same cursor, within a limit of memory."""

    # batches by the serial that they follow, if several feeds may take them; dropped once the channel's serial moves
    live: dict[int, EncodedBatch] = field(default_factory=dict)
    # the epoch and the event of the last commit, if it was a single append
    appended: tuple[str, MessageAppend] | None = None
    # batches that begin with `channel.attached`, by kind of attach, and serial or length of history
    first: dict[tuple[str, int], EncodedBatch] = field(default_factory=dict)
    # ephemeral batches, by the position in the presence state that they follow
    ephemeral: dict[int, EncodedBatch] = field(default_factory=dict)
    text_bytes: int = 0  # total size of the text in `live` and `first`
    # why no further batch can be made: the store cannot return the entries after the state in memory
    unreadable: StoreUnusable | None = None

    def keep(self, kept: dict[T, EncodedBatch], key: T, batch: EncodedBatch) -> EncodedBatch:
        """Keep `batch` in `kept`, which is `live` or `first`, and return it.

        Beyond the limit drop all others, because each feed may have another cursor.
        """
        size = 0  # an estimate, since the batch may never be encoded
        for event in batch.events:
            if isinstance(event, MessageAppend):
                size += len(event.text)
            elif isinstance(event, MessagePart):
                size += part_bytes(event.part)
            elif isinstance(event, MessageCreate | MessageUpdate):
                size += sum(map(part_bytes, event.message.parts))
        is_full = len(self.live) + len(self.first) >= MAX_CACHED_BATCHES
        if is_full or self.text_bytes + size > MAX_CACHED_BYTES:
            self.forget()
        self.text_bytes += size
        kept[key] = batch
        return batch

    def forget(self) -> None:
        """Drop the batches of stored events."""
        self.live.clear()
        self.first.clear()
        self.appended = None
        self.text_bytes = 0


logger = logging.getLogger("tenuto.hub")

# Called with the ids of the changed messages and commands; None means that they are unknown.
Observe = Callable[["Channel", "Iterable[str] | None"], None]
MAX_CONFLICTS = 100  # conflicts in a row after which a request fails
FOLLOW_BYTES = 256 * 1024  # limit of the entries of other hubs that are read one by one
_STEP_KEY = command_key(STEP_MARK)  # begins the keys of steps
KEPT_ABSENT = 10_000  # ids that the store is known not to have, so that a new message looks its id up at most once


# Classes of flush windows: the feeds of a class are released at the same tick, and so share the bytes of a batch.
FLUSH_CLASSES_MS = (0, 20, 40, 100, 250, 500, 1000)
# Feeds released in one iteration of the loop: about a millisecond of work, so that a large channel delays no other.
SLICE_FEEDS = 100
EPHEMERAL_S = 0.1  # presence changes and signals within this time are sent together


class Ticks:
    """The timers of all flush windows, on a grid of a few milliseconds, so that one timer serves many channels."""

    GRID_S = 0.004
    # A time this close to a point of the grid is that point: products of floats, and timers, differ from it by less.
    _EXACT = 1e-6

    def __init__(self) -> None:
        self._due: dict[int, list[Callable[[], None]]] = {}  # callbacks by the number of their point of the grid

    def tick_s(self, due_s: float) -> float:
        """Return the time of the first point of the grid that is not before `due_s`."""
        return ceil(due_s / self.GRID_S) * self.GRID_S

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` at the first point of the grid that is not before `due_s` (of the loop's clock)."""
        self._call(ceil(due_s / self.GRID_S), callback)

    def _call(self, point: int, callback: Callable[[], None]) -> None:
        callbacks = self._due.get(point)
        if callbacks is None:
            callbacks = self._due[point] = []
            asyncio.get_running_loop().call_at(point * self.GRID_S, self._run, point)  # one timer for all of the point
        callbacks.append(callback)

    def call_before(self, over_s: float, lead_s: float, callback: Callable[[], None]) -> bool:
        """Call `callback` at the last grid point that is at least `lead_s` before the tick at `over_s`.

        Return False if that point has passed.
        """
        point = ceil(over_s / self.GRID_S) - ceil(lead_s / self.GRID_S)
        if point * self.GRID_S <= asyncio.get_running_loop().time():
            return False
        self._call(point, callback)
        return True

    def call_after(self, time_s: float, callback: Callable[[], None]) -> bool:
        """Call `callback` at the first point of the grid after `time_s` of the loop's clock.

        Return False, and do not call it, if that point has passed.
        """
        point = floor(time_s / self.GRID_S + self._EXACT) + 1
        if point * self.GRID_S <= asyncio.get_running_loop().time():
            return False
        self._call(point, callback)
        return True

    def _run(self, point: int) -> None:
        for callback in self._due.pop(point):
            try:
                callback()
            except Exception:  # an error in one channel must not delay the viewers of other channels
                logger.exception("the viewers of a channel get text late; please report this bug")


@dataclass(eq=False, slots=True)
class Group:
    """The feeds of one channel and flush class. They are released together, once per window; the first time at once."""

    _ticks: Ticks
    _window_s: float
    feeds: dict[Feed, None] = field(default_factory=dict)
    _is_due: bool = False  # a release is scheduled
    _is_ephemeral_due: bool = False  # a release of ephemeral events is scheduled; it does not start a flush window
    # End of the flush window, in the loop's time: changes before it are released then, later ones at once. It begins in
    # the past, so the first release is immediate.
    over_s: float = 0.0

    def moved(self) -> None:
        """Schedule a release of the feeds: at the end of their window, or at once if the window has passed."""
        if self._is_due or not self.feeds:
            return
        self._is_due = True
        loop = asyncio.get_running_loop()
        if loop.time() >= self.over_s:
            loop.call_soon(self._release)
        else:
            self._ticks.call_at(self.over_s, self._release)

    def ephemeral_moved(self) -> None:
        """Schedule a release of ephemeral events a little later, so that several of them are sent together."""
        if not self._is_ephemeral_due and self.feeds:
            self._is_ephemeral_due = True
            self._ticks.call_at(asyncio.get_running_loop().time() + EPHEMERAL_S, self._release_ephemeral)

    def _release_ephemeral(self) -> None:
        self._is_ephemeral_due = False
        self._wake_feeds()

    def _release(self) -> None:
        self._is_due = False
        self.over_s = asyncio.get_running_loop().time() + self._window_s
        self._wake_feeds()

    def _wake_feeds(self, feeds: tuple[Feed, ...] = ()) -> None:
        """Wake `feeds`, by default all, in slices between which the loop runs other callbacks."""
        feeds = feeds or tuple(self.feeds)
        for feed in feeds[:SLICE_FEEDS]:
            if feed in self.feeds:  # it may have closed since the slice before
                feed.wake()
        if len(feeds) > SLICE_FEEDS:
            asyncio.get_running_loop().call_soon(self._wake_feeds, feeds[SLICE_FEEDS:])


class Channel:
    """One channel in memory. Its state is durable, and only the committer moves it."""

    def __init__(
        self, name: str, store: Store, limits: Limits, ticks: Ticks, *, now_s: float, observe: Observe
    ) -> None:
        self.name = name
        self.state = ChannelState(name)
        self.is_stale = False  # the store may hold more than this state, so requests must wait until it is read
        self.conflicts = 0  # number of commits in a row that failed because the store's data differed from this state
        self.used_s = now_s
        self.presence_state = PresenceState(limits, self._ephemeral_moved)
        # functions to call after entries other than appends and steps (a dict keeps their order)
        self.listeners: dict[Callable[[], None], None] = {}
        self._observe = observe
        self._store = store
        self._limits = limits
        self._ticks = ticks
        self.is_loaded = False  # True: the head was read from the store, also while more is being read
        # removes a part that `rewrite` has left; called before the channel is read again
        self._mend: Callable[[], Awaitable[None]] | None = None
        self._absent: set[str] = set()  # ids of messages and commands that the store is known not to have
        self._groups: dict[int, Group] = {}  # by flush class, in ms
        self.watchers = 0  # number of feeds that follow this channel
        self.batches = BatchCache()
        self._loading = asyncio.Lock()  # held by the block of `_exclusive` that runs
        self._loaders = 0  # number of these blocks that run or wait
        # set by the committer while a commit of this channel is in flight: no load may begin until it is done
        self.commit_over: asyncio.Future[None] | None = None
        # memory to keep in a trim that had to be delayed; it runs before the next decision
        self.trim_bytes: int | None = None

    # -- for the committer -------------------------------------------------------------------------------------

    def is_ready_for(self, ids: Iterable[str]) -> bool:
        """Return whether requests about `ids` can be decided now, without a read of the store."""
        if not self.is_loaded or self._loaders or self.is_stale:
            return False
        messages = self.state.messages
        for one in ids:  # hot path: usually all ids are in memory
            if one not in messages and one not in self.state.commands and one not in self._absent:
                return not self.missing(ids)
        return True

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Return those of `ids` that must be read from the store before a decision; a whole state lacks only steps."""
        state, absent = self.state, self._absent
        unknown = (one for one in ids if one not in state.messages and one not in state.commands and one not in absent)
        return [one for one in unknown if not state.is_whole or one.startswith(_STEP_KEY)]

    def note_absent(self, key: str) -> None:
        """Note that the store does not have the message or command `key`, so that no decision needs a read."""
        self._absent.add(key)

    def trim(self, keep_bytes: int) -> None:
        """Drop finished messages from memory beyond `keep_bytes`; while a commit runs, do it after that commit."""
        if self.commit_over is None:
            self.trim_bytes = None
            self.state.trim(keep_bytes)
        else:
            self.trim_bytes = keep_bytes

    def committed(self, epoch: str, entries: Sequence[Entry], documents: Sequence[Document]) -> None:
        """Apply `entries` and `documents`, which this hub or another one has stored, and wake the feeds."""
        state = self.state
        if len(entries) == 1 and type(entries[0].op) is Append and not documents:  # the common case: one append
            # without a group the channel has had no subscriber yet, so it keeps no batch
            event = sole_append(state, entries[0]) if self._groups else None
            apply_entry(state, entries[0])
            if self._groups:
                self.moved()
                if event is not None:
                    self.batches.appended = (state.epoch, event)
            return
        if state.serial == 0 and entries:
            state.epoch, state.lives = epoch, 0  # with entries the epoch names the life (`Head.lives`)
        shaped: dict[str, None] = {}  # ids with entries other than appends, except those of steps
        for entry in entries:
            apply_entry(state, entry)
            if type(entry.op) is not Append:
                self._absent.discard(entry.op.id)
                if not entry.op.id.startswith(_STEP_KEY):
                    shaped[entry.op.id] = None
        for document in documents:
            message = state.messages.get(document.id)
            if message is not None:
                mark_documented(message, document.version)
        if entries:
            self.moved()
        if shaped:
            self._changed(shaped)

    def _changed(self, keys: Iterable[str] | None) -> None:
        """Notify listeners of changes other than appends and steps. `keys` are the affected ids; None means unknown."""
        self._observe(self, keys)
        for listener in tuple(self.listeners):
            listener()

    # -- for feeds ---------------------------------------------------------------------------------------------

    def add_feed(self, feed: Feed, flush_ms: int) -> Group:
        """Wake `feed` from now on, and return the group of feeds that is woken together with it.

        Its window is the shortest one of at least `flush_ms`, else the longest.
        """
        window = next((known for known in FLUSH_CLASSES_MS if known >= flush_ms), FLUSH_CLASSES_MS[-1])
        group = self._groups.get(window)
        if group is None:
            group = self._groups[window] = Group(self._ticks, window / 1000)
        group.feeds[feed] = None
        self.watchers += 1
        return group

    def remove_feed(self, feed: Feed, group: Group) -> None:
        """Stop waking `feed`. A second call has no effect."""
        if feed in group.feeds:
            del group.feeds[feed]
            self.watchers -= 1

    @property
    def feeds(self) -> list[Feed]:
        return [feed for group in self._groups.values() for feed in group.feeds]

    @property
    def is_idle(self) -> bool:
        """Return whether the channel is unused: no subscriber, member, commit, pending read or rest of a `rewrite`."""
        is_wanted = self.listeners or self.presence_state.has_people or self.watchers
        is_read_later = self.is_stale and self.batches.unreadable is None  # a damaged one may never be read
        return not (self._loaders or self.commit_over or is_read_later or self._mend or is_wanted)

    def windows_end_s(self) -> tuple[float, float]:
        """Return when the first and when the last flush window of the viewers ends, in the loop's time."""
        ends_s = [group.over_s for group in self._groups.values() if group.feeds] or [0.0]
        return min(ends_s), max(ends_s)

    @property
    def has_unbuffered_viewers(self) -> bool:
        """Return whether a viewer has requested each event at once, without a flush window."""
        group = self._groups.get(0)
        return group is not None and bool(group.feeds)

    def moved(self) -> None:
        """Wake the feeds, because the durable serial has moved."""
        self.batches.forget()
        for group in self._groups.values():
            group.moved()

    def _ephemeral_moved(self) -> None:
        self.batches.first.clear()
        self.batches.ephemeral.clear()
        for group in self._groups.values():
            group.ephemeral_moved()

    def ephemeral_since(self, position: int) -> EncodedBatch:
        """Return the presence changes and signals since `position`, encoded once for all subscribers at it."""
        kept = self.batches.ephemeral
        batch = kept.get(position)
        if batch is None:
            batch = EncodedBatch(self.name, "", self.presence_state.since(position))
            if len(kept) < MAX_CACHED_BATCHES:
                kept[position] = batch
        return batch

    def batch_since(self, since: int, *, attach: bool) -> EncodedBatch | None:
        """Return the events after serial `since`; with `attach`, `channel.attached` first.

        Return None if too many messages changed. Raises Behind if a message that it needs is not in memory.
        """
        known = self.batches.first.get(("resume", since)) if attach else self.batches.live.get(since)
        if known is not None:
            return known
        if since < self.state.complete_since:
            raise Behind
        events = events_since(self.state, since, limit=self._limits.catch_up_messages)
        if events is None:
            return None
        if attach:
            return self._first_batch(("resume", since), resumed(self.state), events)
        batch = EncodedBatch(self.name, self.state.cursor, events)  # kept if another feed may take it, too
        return self.batches.keep(self.batches.live, since, batch) if self.watchers > 1 else batch

    def append_since(self, since: int) -> EncodedBatch | None:
        """Return the events after serial `since` if they are the single append of the last commit, else None.

        Hot path: it returns exactly what `batch_since` would. The kept append names its epoch and its serial, since the
        state may have moved by a read of the store instead.
        """
        kept = self.batches.appended
        if kept is None:
            return None
        epoch, event = kept
        state = self.state
        serial = event.serial
        if serial != since + 1 or serial != state.serial or epoch != state.epoch:
            return None
        batch = EncodedBatch(self.name, f"{epoch}:{serial}", (event,))  # kept if another feed may take it, too
        return self.batches.keep(self.batches.live, since, batch) if self.watchers > 1 else batch

    def new_start(self, history: int) -> EncodedBatch:
        """Return a new start: the newest `history` messages and all streaming ones. Raises Behind as `batch_since`."""
        known = self.batches.first.get(("new", history))
        if known is not None:
            return known
        page = newest_messages(self.state, history, self._limits)
        if page is None:
            raise Behind
        attached, updates = new_start(self.state, *page)
        return self._first_batch(("new", history), attached, updates)

    def _first_batch(
        self, key: tuple[str, int], attached: ChannelAttached, rest: Sequence[ServerEvent]
    ) -> EncodedBatch:
        if len(self.presence_state):
            attached = replace(attached, presence=self.presence_state.presence())
        batch = EncodedBatch(self.name, self.state.cursor, [attached, *rest])
        return self.batches.keep(self.batches.first, key, batch)

    # -- reading the store -------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Read the head of the channel from the store, unless it is known."""
        if not self.is_loaded:
            async with self._exclusive():
                pass

    async def load_messages(self, ids: Sequence[str]) -> None:
        """Load those of the messages `ids` that exist."""
        if self.is_loaded and not self._loaders and not self.missing(ids):  # a read that runs may replace the state
            return
        async with self._exclusive():
            while wanted := self.missing(ids):
                head, found = await self._store.messages(self.name, wanted)
                if await self._has_passed(head):  # else read again, since `found` may not fit the state
                    self._insert(restored(found.values()))
                    if len(self._absent) > KEPT_ABSENT:
                        self._absent.clear()
                    self._absent.update(one for one in self.missing(wanted) if one not in found)
                    return

    async def load_since(self, since: int) -> bool:
        """Load every message that changed after `since`.

        Return False if too many changed: the viewer needs a new start.
        """
        async with self._exclusive():
            limit = self._limits.catch_up_messages
            while since < self.state.complete_since:  # memory lacks messages that changed after `since`
                changes = await self._store.changes(self.name, after=since, limit=limit)
                if not await self._has_passed(changes.head):
                    continue  # read again: `changes` may not fit the state
                if changes.messages is None:
                    return False
                self._insert(restored(changes.messages))
                self.state.complete_since = min(self.state.complete_since, since)
            return True

    async def load_history(self, history: int) -> None:
        """Load the newest `history` messages."""
        async with self._exclusive():
            limits = self._limits
            wanted = max(1, history)
            while newest_messages(self.state, history, limits) is None:  # not all of them are in memory
                page = await self._store.page(self.name, before=None, limit=wanted, limit_bytes=limits.history_bytes)
                if not await self._has_passed(page.head):
                    continue  # read again: `page` may not fit the state
                state = self.state
                found = restored(page.messages)
                self._insert(found)
                state.is_history_cut = page.more and len(found) < wanted
                oldest = min((one.created for one in found), default=1)
                state.history_from = min(state.history_from, oldest if page.more else 1)

    async def refresh(self, head: Head | None = None) -> None:
        """Read what another hub, or a commit with an unknown outcome, has stored. Raises StoreUnavailable.

        With `head`, the caller needs no more than the entries up to it: an earlier call may have read them meanwhile.
        """
        async with self._exclusive():
            if head is None or self.is_stale or not self.is_past(head):
                await self._catch_up()
            self.is_stale, self.batches.unreadable = False, None

    async def delete(self, until_ms: int) -> None:
        """Empty the channel; its next entry begins a new epoch.

        Ids of streaming messages cannot be used until `until_ms`. Raises Busy if other processes write to the channel
        faster than this one can read it, StoreUnavailable.
        """
        async with self._exclusive():
            head = await head_of(self._store, self.name)
            for _ in range(MAX_CONFLICTS):
                if not self.is_at(head):
                    await self._catch_up()
                self.is_stale = True  # a call that fails may have emptied the channel all the same
                streaming = [message.id for message in self.state.messages.values() if message.is_streaming]
                result = await self._store.delete_channel(
                    self.name, expected=head, used_up=streaming, until_ms=until_ms
                )
                if not isinstance(result, Conflict):
                    break
                head = result.head
            else:
                raise outpaced(self.name, MAX_CONFLICTS)
            await self._reload()

    async def rewrite(self, write: Callable[[], Awaitable[T]], mend: Callable[[], Awaitable[None]] | None = None) -> T:
        """Run `write`, which changes this channel in the store without a request, and return its result.

        Requests and new viewers wait until `mend`, which removes a part that `write` left, has worked and the channel
        was read again; None if no part has to go. Raises StoreUnavailable.
        """
        async with self._exclusive():
            try:
                return await write()
            finally:
                # stale: if this read fails, the `Follower` repeats it for the viewers, since no request may follow
                self.is_loaded, self.is_stale, self._mend = False, True, mend
                await self._reload()

    async def _has_passed(self, head: Head) -> bool:
        """Return whether the state is at `head`, which a read of the store returned, or further; catch up first.

        Messages of that read that are not in the state are then as they were: a change would have put them there.
        """
        state = self.state
        if self.is_at(head):
            return True
        await self._catch_up()
        return self.state is state and self.is_past(head)

    def is_at(self, head: Head) -> bool:
        """Return whether the state in memory is at `head`."""
        return head.serial == self.state.serial and self.is_past(head)

    def is_past(self, head: Head) -> bool:
        """Return whether the state in memory is at `head`, or further in the same epoch: it has moved since."""
        state = self.state
        is_same = (head.epoch, head.floor, head.lives) == (state.epoch, state.floor, state.lives)
        return is_same and head.serial <= state.serial

    async def _catch_up(self) -> None:
        """Bring the state up to the channel's head in the store.

        Apply the missing entries one by one. If that cannot be done, read the changed messages whole, else the channel.
        """
        state = self.state
        head, entries = await self._store.entries(self.name, after=state.serial, limit_bytes=FOLLOW_BYTES)
        if self.is_at(head):
            return
        has_grown = (head.epoch, head.floor) == (state.epoch, state.floor) and head.serial > state.serial
        if has_grown and entries is not None and self._can_apply(entries):
            self.committed(head.epoch, entries, ())
            return
        if has_grown or not state.serial:  # of an empty channel the head's whole epoch is missing
            self._absent.clear()
            limit = self._limits.catch_up_messages
            head, newest, found = await self._store.changes(self.name, after=state.serial, limit=limit)
            if found and (not state.serial or (head.epoch, head.floor) == (state.epoch, state.floor)):  # None: too many
                state.insert(restored(found))
                (state.epoch, state.serial, state.floor, state.lives), state.newest = head, newest
                state.is_whole = False
                self.moved()
                self._changed(None)
                return
        await self._reload()

    def take_entries(self, epoch: str, floor: int, serial: int, entries: Sequence[Entry], *, lives: int) -> bool:
        """Apply `entries`, which another hub has stored up to `serial`; return whether the state is at `serial` now.

        If not, `refresh` is due: an earlier entry is missing, the state may not move, or epoch, floor or lives differ.
        """
        state = self.state
        is_same = (epoch, floor) == (state.epoch, state.floor) if state.serial else lives == state.lives
        if not self.is_ready_for(()) or self.commit_over is not None or not is_same:
            return False
        new = [entry for entry in entries if entry.serial > state.serial]
        if new and new[0].serial == state.serial + 1 and self._can_apply(new):
            self.committed(epoch, new, ())
        return serial <= state.serial

    def _can_apply(self, entries: Iterable[Entry]) -> bool:
        """Return whether all messages and commands of `entries` are in memory, or begin with one of the entries."""
        begun = {entry.op.id for entry in entries if type(entry.op) is Create or type(entry.op) is Command}
        return all(entry.op.id in begun or self.state.knows(entry.op.id) for entry in entries)

    async def _reload(self) -> None:
        """Replace the state by what the store has, and wake the feeds. Raises StoreUnavailable, StoreUnusable."""
        if self._mend is not None:
            await self._mend()
        while True:
            first = changes = await self._store.changes(self.name, after=0, limit=0)
            opened, since = await self._store.open_documents(self.name), first.head.serial
            if self._store.is_exclusive:
                break
            # Changes since the first read are read whole: to read all again could go on for ever. That is done only if
            # there are too many, or if the epoch or the floor has changed.
            changes = await self._store.changes(self.name, after=since, limit=self._limits.catch_up_messages)
            if changes.messages is not None and (not since or changes.head._replace(serial=since) == first.head):
                break
        state = ChannelState(self.name, changes.head.epoch, changes.head.serial, changes.head.floor)
        state.lives, state.newest = changes.head.lives, changes.newest
        state.is_whole = not (state.serial or state.lives)
        # of an empty channel, the open messages may be those of an epoch that came and went between the reads
        state.insert(restored([*(opened if since else ()), *(changes.messages or ())]))
        self.state = state
        self._absent.clear()
        self.is_loaded, self.is_stale, self._mend, self.batches.unreadable = True, False, None, None
        self.moved()
        self._changed(None)

    def _insert(self, found: Iterable[MessageState | CommandState]) -> None:
        """Insert messages that the store returned, unless they are in memory: those are as new, and have more marks."""
        fresh = [one for one in found if not self.state.knows(one.id)]
        if fresh:
            self.state.insert(fresh)

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Keep commits of this channel from starting until the block ends; wait for a running one first.

        Then read the head of the channel, unless it is known.
        """
        self._loaders += 1
        try:
            async with self._loading:
                while self.commit_over is not None:
                    await asyncio.shield(self.commit_over)
                if not self.is_loaded:
                    await self._reload()
                yield
        finally:
            self._loaders -= 1


def is_settling(channel: Channel) -> bool:
    """Return whether a `rewrite` of `channel` or a read of the store runs."""
    return channel._loading.locked()


async def until_settled(channel: Channel | None) -> None:
    """Wait for the end of a `rewrite` of `channel`, and of reads of the store. Raises StoreUnavailable."""
    if channel is None:
        return
    if is_settling(channel):
        async with channel._loading:
            pass
    if channel._mend is not None:  # `rewrite` has left a part
        await channel.load()


def outpaced(channel: str, conflicts: int) -> Busy:
    """Return the error of a request that met `conflicts` writes of other processes in a row."""
    return Busy(
        f"other processes write to channel {shown(channel)} faster than this hub can read it: "
        f"{conflicts} commits in a row have failed; try again later"
    )


@dataclass(slots=True, eq=False)
class Feed:
    """One subscriber's position in a channel. It holds no entries, so a slow reader uses no memory.

    It follows `channel` until `close`. A tick calls `wake` when there are events to take.
    """

    channel: Channel
    since: InitVar[Cursor | None]  # None: the first batch is a new start
    _: KW_ONLY
    history: int  # number of the newest messages in a new start
    flush_ms: InitVar[int]  # see `Channel.add_feed`
    wake: Callable[[], None]
    has_ephemeral: InitVar[bool] = False  # True: it also takes presence and signals, in batches without a cursor
    # called with the first batch that this feed takes after it was attached
    on_first: Callable[[EncodedBatch], None] | None = field(default=None, init=False)
    # Position in the presence state up to which changes were taken; None: not subscribed to ephemeral events.
    ephemeral_position: int | None = field(init=False)
    _attached: bool = field(default=False, init=False)  # `channel.attached` has been taken
    # epoch of the cursor; None: the next batch is a new start
    _epoch: str | None = field(default=None, init=False)
    _serial: int = field(default=0, init=False)
    _group: Group = field(init=False)

    def __post_init__(self, since: Cursor | None, flush_ms: int, has_ephemeral: bool) -> None:
        if since is not None:
            self._epoch, self._serial = since.epoch, since.serial
        self.ephemeral_position = -1 if has_ephemeral else None
        self._group = self.channel.add_feed(self, flush_ms)

    @property
    def cursor(self) -> Cursor:
        """Return the cursor of the last entry that this feed has taken."""
        return Cursor(self._epoch or NO_EPOCH, self._serial)

    @property
    def is_behind(self) -> bool:
        """Return whether there are events to take."""
        state = self.channel.state
        if not self._attached or self._serial != state.serial or self._epoch != state.epoch:
            return True
        if self.channel.batches.unreadable is not None:  # `catch_up` raises it
            return True
        return self.ephemeral_position is not None and self.ephemeral_position != self.channel.presence_state.position

    def take(self) -> EncodedBatch | None:
        """Take all missed events as one batch, or None. Raises Behind if the store must be read first."""
        channel = self.channel
        state = channel.state
        if self._attached and self._epoch == state.epoch:
            if self._serial == state.serial:
                if channel.batches.unreadable is not None:
                    raise Behind
                return self._take_ephemeral()
            # Hot path: another feed, such as one of a thousand viewers, has taken the batch that follows this cursor.
            known = channel.batches.live.get(self._serial) or channel.append_since(self._serial)
            if known is not None:
                self._serial = state.serial
                return known if known.events else self._take_ephemeral()
        is_start = not self._attached or self._epoch == NO_EPOCH  # True: the batch begins with `channel.attached`
        batch = channel.batch_since(self._serial, attach=is_start) if self._is_continued() else None
        if batch is None:  # None also means that more messages have changed than one catch-up may hold
            is_start = True
            # set it first: if `new_start` raises Behind, `catch_up` must load the messages of a new start
            self._epoch = None
        if is_start and self.ephemeral_position is not None:
            # `channel.attached` carries presence, so earlier presence changes, and their signals, must go before it.
            if self._attached and (ephemeral := self._take_ephemeral()) is not None:
                return ephemeral
            self.ephemeral_position = channel.presence_state.position
        if batch is None:
            batch = channel.new_start(self.history)
        if self.on_first is not None:
            self.on_first(batch)
            self.on_first = None
        self._attached = True
        self._epoch, self._serial = state.epoch, state.serial
        return batch if batch.events else self._take_ephemeral()  # without events: its entries show viewers no change

    def _take_ephemeral(self) -> EncodedBatch | None:
        """Take the ephemeral events since the last ones; `take` keeps them apart from entries, which have a cursor."""
        presence_state = self.channel.presence_state
        if self.ephemeral_position is None or self.ephemeral_position == presence_state.position:
            return None
        batch = self.channel.ephemeral_since(self.ephemeral_position)
        self.ephemeral_position = presence_state.position
        return batch if batch.events else None

    async def prepare(self) -> None:
        """Load the first batch's messages; close this feed if that fails. Raises StoreUnavailable, StoreUnusable."""
        try:
            try:
                if not self._is_continued() or self.channel.batch_since(self._serial, attach=True) is None:
                    self._epoch = None  # so that `catch_up` loads the messages of a new start
                    self.channel.new_start(self.history)
            except Behind:
                await self.catch_up()
        except BaseException:
            self.close()
            raise

    async def catch_up(self) -> None:
        """Load from the store the messages that `take` needs. Raises StoreUnavailable, StoreUnusable."""
        if self.channel.batches.unreadable is not None:
            raise self.channel.batches.unreadable.with_traceback(None)
        if self._is_continued() and await self.channel.load_since(self._serial):
            return
        self._epoch = None
        await self.channel.load_history(self.history)

    def done(self) -> None:
        """Note that the reader is ready again; the next tick wakes this feed if there are events to take.

        If only ephemeral events are due, wake it at once, without waiting for the flush window. Otherwise they would
        wait behind a growing answer until that answer ends.
        """
        channel = self.channel
        state, position = channel.state, self.ephemeral_position
        if not self._attached or self._serial != state.serial or self._epoch != state.epoch:
            self._group.moved()
        elif position is not None and position != channel.presence_state.position:
            asyncio.get_running_loop().call_soon(self.wake)

    def close(self) -> None:
        """Detach from the channel. A second call has no effect."""
        self.channel.remove_feed(self, self._group)

    def _is_continued(self) -> bool:
        """Return whether the feed's cursor belongs to the channel's current epoch, so that it can resume."""
        state = self.channel.state
        if self._epoch is None:
            return False
        if (self._epoch, self._serial) == EMPTY[:2]:
            return state.floor == 0  # a cursor of the empty channel resumes, whatever the first entry was
        return self._epoch == state.epoch and state.floor <= self._serial <= state.serial


async def take(feed: Feed, reading: Callable[[], AbstractAsyncContextManager[None]]) -> EncodedBatch | None:
    """Take the missed events of `feed`; reads the store if needed, in the context `reading`."""
    while True:
        try:
            return feed.take()
        except Behind:
            async with reading():
                await feed.catch_up()
