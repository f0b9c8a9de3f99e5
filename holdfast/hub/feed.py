"""Feeds: the position of one subscriber in a channel, and the ticks that release feeds together.

Layer: hub.

A feed is a cursor and a wake-up, never a queue: when it is woken it takes all missed events as one batch. A slow reader
takes later, and gets more at once. A batch for the same cursor is made and encoded once, and all feeds of the channel
share its bytes. Transports rely on `Feed` and `EncodedBatch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from holdfast.core.cursor import EMPTY, NO_EPOCH, Cursor
from holdfast.core.events import MessageAppend, MessageCreate, MessagePart, MessageUpdate, ServerEvent, encode_json
from holdfast.core.state import part_bytes

if TYPE_CHECKING:
    from holdfast.hub.channel import Channel

logger = logging.getLogger("holdfast.hub")

# Classes of flush windows: feeds of one class are released on one tick, so that their batches are the same bytes.
FLUSH_CLASSES_MS = (0, 20, 40, 100, 250, 500, 1000)
# Feeds released in one turn of the loop: about a millisecond of work, so that a large channel delays no other one.
SLICE_FEEDS = 100
EPHEMERAL_S = 0.1  # presence changes and signals within this time are sent together
FRAME_BYTES = 256 * 1024  # of a WebSocket frame, as far as whole events allow


def flush_class(flush_ms: int) -> int:
    """Return the flush class of `flush_ms` milliseconds: the shortest that is not below it."""
    return next((known for known in FLUSH_CLASSES_MS if known >= flush_ms), FLUSH_CLASSES_MS[-1])


class Behind(Exception):
    """The feed's cursor is older than what is in memory: `await feed.catch_up()`, then take again."""


class EncodedBatch:
    """The events of one batch, in the forms that transports send. Each form is made once, on first use."""

    __slots__ = ("_body", "_frames", "_raw", "_sse", "channel", "cursor", "events")

    def __init__(self, channel: str, cursor: str, events: Sequence[ServerEvent]) -> None:
        """Hold `events`; `cursor` is empty for ephemeral events."""
        self.channel = channel
        self.cursor = cursor
        self.events = events
        self._raw: list[bytes] | None = None
        self._sse: bytes | None = None
        self._body: dict[str, Any] | None = None
        self._frames: tuple[str, ...] | None = None

    @property
    def text_bytes(self) -> int:
        """Return about how many bytes of text the batch holds, without encoding it."""
        return sum(_text_length(event) for event in self.events)

    @property
    def raw(self) -> list[bytes]:
        """Return each event as JSON."""
        if self._raw is None:
            self._raw = [encode_json(event) for event in self.events]
        return self._raw

    @property
    def sse(self) -> bytes:
        """Return the batch as Server-Sent Events; only the last one carries the cursor as its id."""
        if self._sse is None:
            pieces: list[bytes] = []
            for event, data in zip(self.events, self.raw, strict=True):
                pieces += (b"event: ", _type_of(event), b"\ndata: ", data, b"\n\n")
            if self.cursor:
                pieces[-1] = b"\nid: " + self.cursor.encode() + b"\n\n"
            self._sse = b"".join(pieces)
        return self._sse

    @property
    def body(self) -> dict[str, Any]:
        """Return the ASGI message that sends `sse`; it is shared, so callers must not change it."""
        if self._body is None:
            self._body = {"type": "http.response.body", "body": self.sse, "more_body": True}
        return self._body

    @property
    def frames(self) -> tuple[str, ...]:
        """Return the batch as WebSocket frames; only the last one carries the cursor."""
        if self._frames is None:
            opening = f'{{"type":"events","channel":{encode_json(self.channel).decode()},'
            groups = list(_groups(self.raw))
            last, is_cursor_due = len(groups) - 1, bool(self.cursor)
            self._frames = tuple(
                opening
                + (f'"cursor":"{self.cursor}",' if is_cursor_due and place == last else "")
                + f'"events":[{group}]}}'
                for place, group in enumerate(groups)
            )
        return self._frames

    def frames_with(self, extra: str) -> tuple[str, ...]:
        """Return `frames` with `extra` in the cursor. They are for one viewer, so they are not kept."""
        cursor = f'"cursor":"{self.cursor}'
        *first, last = self.frames
        return (*first, last.replace(cursor, f"{cursor}:{extra}", 1))  # only the channel's name precedes it


def _type_of(event: ServerEvent) -> bytes:
    return str(event.__struct_config__.tag).encode()


def _text_length(event: ServerEvent) -> int:
    if isinstance(event, MessageAppend):
        return len(event.text)
    parts = [event.part] if isinstance(event, MessagePart) else []
    if isinstance(event, MessageCreate | MessageUpdate):
        parts = event.message.parts
    return sum(part_bytes(part) for part in parts)


def _groups(raw: Sequence[bytes]) -> Iterator[str]:
    """Return the events, joined by commas, in groups of about one frame; an event is never split."""
    group: list[bytes] = []
    size = 0
    for data in raw:
        if group and size + len(data) > FRAME_BYTES:
            yield b",".join(group).decode()
            group, size = [], 0
        group.append(data)
        size += len(data)
    yield b",".join(group).decode()


class Feed:
    """One subscriber's position in a channel. It holds no entries, so a slow reader uses no memory."""

    __slots__ = ("_attached", "_ephemeral_position", "_epoch", "_group", "_history", "_serial", "channel", "wake")

    def __init__(
        self,
        channel: Channel,
        since: Cursor | None,
        *,
        history: int,
        group: Group,
        wake: Callable[[], None],
        has_passing: bool = False,
    ) -> None:
        self.channel = channel
        self.wake = wake  # called on a tick when there are events to take
        self._history = history
        self._group = group
        self._attached = False  # `channel.attached` was taken
        self._epoch: str | None = since.epoch if since is not None else None  # None: a new start is due
        self._serial = since.serial if since is not None else 0
        self._ephemeral_position = (
            -1 if has_passing else None
        )  # position in the ephemeral events; None: not subscribed to them

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
        return self._ephemeral_position is not None and self._ephemeral_position != self.channel.presence_state.position

    def take(self) -> EncodedBatch | None:
        """Take all missed events as one batch, or None. Raises Behind if the store must be read first."""
        channel = self.channel
        state = channel.state
        if self._attached and self._epoch == state.epoch:
            if self._serial == state.serial:
                return self._take_ephemeral()
            # Hot path: another feed has taken the batch from this cursor, as with a thousand viewers of one channel.
            known = channel.live_batches.get(self._serial)
            if known is not None:
                self._serial = state.serial
                return known if known.events else self._take_ephemeral()
        if self._is_continued():
            batch = channel.batch_since(self._serial, attach=not self._attached or self._epoch == NO_EPOCH)
            if batch is None:  # more messages changed than a catch-up may hold
                self._epoch = None  # set before the attempt: `catch_up` must load the messages of a new start
                batch = channel.new_start(self._history)
        else:
            batch = channel.new_start(self._history)
        if not self._attached and self._ephemeral_position is not None:
            self._ephemeral_position = channel.presence_state.position  # `channel.attached` carries presence
        self._attached = True
        self._epoch, self._serial = state.epoch, state.serial
        return batch if batch.events else self._take_ephemeral()

    def _take_ephemeral(self) -> EncodedBatch | None:
        """Take the ephemeral events; only when the feed has caught up with the log."""
        presence_state = self.channel.presence_state
        if self._ephemeral_position is None or self._ephemeral_position == presence_state.position:
            return None
        batch = self.channel.ephemeral_since(self._ephemeral_position)
        self._ephemeral_position = presence_state.position
        return batch if batch.events else None

    async def catch_up(self) -> None:
        """Load the messages that `take` needs. Raises StoreUnavailable."""
        if self._is_continued() and await self.channel.load_since(self._serial):
            return
        self._epoch = None
        await self.channel.load_history(self._history)

    def done(self) -> None:
        """Note that the reader is free again; the next tick wakes this feed if it has missed events.

        If only ephemeral events are due, wake it at once, without waiting for the flush window. Otherwise they would
        wait behind a growing answer until that answer ends.
        """
        channel = self.channel
        state, passed = channel.state, self._ephemeral_position
        if not self._attached or self._serial != state.serial or self._epoch != state.epoch:
            self._group.moved()
        elif passed is not None and passed != channel.presence_state.position:
            asyncio.get_running_loop().call_soon(self.wake)

    def close(self) -> None:
        """Detach from the channel. A second call has no effect."""
        if self._group.remove(self):
            self.channel.watchers -= 1

    def _is_continued(self) -> bool:
        """Return whether the feed's cursor is of the channel's current epoch, so that it can resume."""
        state = self.channel.state
        if self._epoch is None:
            return False
        if (self._epoch, self._serial) == EMPTY[:2]:
            return state.floor == 0  # the cursor of an empty channel resumes to any next entry
        return self._epoch == state.epoch and state.floor <= self._serial <= state.serial


class Ticks:
    """The timers of all flush windows, on a grid of a few milliseconds, so that one timer serves many channels."""

    GRID_S = 0.004

    def __init__(self) -> None:
        self._due: dict[int, list[Callable[[], None]]] = {}

    def call_at(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call `callback` at the first point of the grid that is not before `due_s` (of the loop's clock)."""
        self._call(ceil(due_s / self.GRID_S), callback)

    def _call(self, point: int, callback: Callable[[], None]) -> None:
        waiting = self._due.get(point)
        if waiting is None:
            waiting = self._due[point] = []
            asyncio.get_running_loop().call_at(point * self.GRID_S, self._run, point)
        waiting.append(callback)

    def call_before(self, over_s: float, lead_s: float, callback: Callable[[], None]) -> bool:
        """Call `callback` at the last point `lead_s` before what is due at `over_s` is; False if it has passed."""
        point = ceil(over_s / self.GRID_S) - ceil(lead_s / self.GRID_S)
        if point * self.GRID_S <= asyncio.get_running_loop().time():
            return False
        self._call(point, callback)
        return True

    def _run(self, point: int) -> None:
        for callback in self._due.pop(point):
            try:
                callback()
            except Exception:  # an error in one channel must not delay the viewers of another
                logger.exception("a release of viewers failed")


class Group:
    """The feeds of one channel and flush class. They are released together, once per window; the first time at once."""

    __slots__ = ("_feeds", "_is_due", "_is_ephemeral_due", "_last_s", "_ticks", "_window_s")

    def __init__(self, ticks: Ticks, flush_ms: int) -> None:
        self._ticks = ticks
        self._window_s = flush_ms / 1000
        self._feeds: dict[Feed, None] = {}
        self._is_due = False  # a release is scheduled
        self._is_ephemeral_due = False  # a release of ephemeral events is scheduled; it uses up no window
        self._last_s = -self._window_s  # the first release is at once

    def __len__(self) -> int:
        return len(self._feeds)

    def __iter__(self) -> Iterator[Feed]:
        return iter(tuple(self._feeds))

    def add(self, feed: Feed) -> None:
        self._feeds[feed] = None

    def remove(self, feed: Feed) -> bool:
        """Remove `feed`. False if it was not in this group."""
        is_here = feed in self._feeds
        self._feeds.pop(feed, None)
        return is_here

    @property
    def over_s(self) -> float:
        """Return when the window ends, in the loop's time: earlier changes are released then, later ones at once."""
        return self._last_s + self._window_s

    def moved(self) -> None:
        """Schedule the release of the feeds: at the end of their window, or at once after a pause."""
        if self._is_due or not self._feeds:
            return
        self._is_due = True
        loop = asyncio.get_running_loop()
        due_s = self.over_s
        if loop.time() >= due_s:
            loop.call_soon(self._release)
        else:
            self._ticks.call_at(due_s, self._release)

    def ephemeral_moved(self) -> None:
        """Schedule the release of ephemeral events a little later, so that several go out together."""
        if not self._is_ephemeral_due and self._feeds:
            self._is_ephemeral_due = True
            self._ticks.call_at(asyncio.get_running_loop().time() + EPHEMERAL_S, self._release_ephemeral)

    def _release_ephemeral(self) -> None:
        self._is_ephemeral_due = False
        self._wake_feeds()

    def _release(self) -> None:
        self._is_due = False
        self._last_s = asyncio.get_running_loop().time()
        self._wake_feeds()

    def _wake_feeds(self) -> None:
        if len(self._feeds) <= SLICE_FEEDS:
            for feed in tuple(self._feeds):
                feed.wake()
        else:
            self._release_slice(tuple(self._feeds), 0)

    def _release_slice(self, feeds: tuple[Feed, ...], start: int) -> None:
        for feed in feeds[start : start + SLICE_FEEDS]:
            if feed in self._feeds:
                feed.wake()
        if start + SLICE_FEEDS < len(feeds):
            asyncio.get_running_loop().call_soon(self._release_slice, feeds, start + SLICE_FEEDS)
