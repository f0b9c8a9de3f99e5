"""Feeds: the position of one subscriber in a channel.

Layer: hub.

A feed is a cursor and a wake-up, never a queue: when it is woken it takes all missed events as one batch. A slow reader
takes later, and gets more at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import KW_ONLY, InitVar, dataclass, field

from tenuto.core.events import EMPTY, NO_EPOCH, Cursor
from tenuto.hub.channel import Behind, Channel, EncodedBatch, Group


@dataclass(slots=True, eq=False)
class Feed:
    """One subscriber's position in a channel. It holds no entries, so a slow reader uses no memory.

    It follows `channel` until `close`. A tick calls `wake` when there are events to take.
    """

    channel: Channel
    since: InitVar[Cursor | None]
    _: KW_ONLY
    history: int
    flush_ms: InitVar[int]
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
        if self.channel.batches.unreadable is not None:
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
            # Hot path: another feed has already taken the batch that follows this cursor, for example one of a thousand
            # viewers.
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
            # `channel.attached` carries presence. Presence changes before it, and their signals, must therefore go
            # before it.
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
        return batch if batch.events else self._take_ephemeral()

    def _take_ephemeral(self) -> EncodedBatch | None:
        """Take the ephemeral events since the last ones; `take` keeps them apart from entries, which have a cursor."""
        presence_state = self.channel.presence_state
        if self.ephemeral_position is None or self.ephemeral_position == presence_state.position:
            return None
        batch = self.channel.ephemeral_since(self.ephemeral_position)
        self.ephemeral_position = presence_state.position
        return batch if batch.events else None

    async def prepare(self) -> None:
        """Load the messages of the first batch, or close this feed. Raises StoreUnavailable, StoreUnusable."""
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
        state, passed = channel.state, self.ephemeral_position
        if not self._attached or self._serial != state.serial or self._epoch != state.epoch:
            self._group.moved()
        elif passed is not None and passed != channel.presence_state.position:
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
