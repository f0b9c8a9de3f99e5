"""Loading: items wait here, in order, while the store is read for their channel.

Layer: hub.

The committer parks an item if its channel, or a message that its decision needs, is not in memory. Later items of the
same channel are parked behind it; items of other channels proceed. After a commit with an unknown outcome the loader
reads the channel again, and returns the results of the items that the store turns out to hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from tenuto.core.errors import StoreUnavailable, TenutoError
from tenuto.hub.channel import Channel
from tenuto.hub.pending import Decided, Item
from tenuto.stores.base import CommitUnknown

logger = logging.getLogger("tenuto.hub")

T = TypeVar("T")

READ_TIMEOUT_S = 30.0  # time after which a read fails; the items that are parked for it fail, too


class Unclear(NamedTuple):
    """A write whose outcome is unknown: its decisions, and the head that the channel has if it was stored."""

    epoch: str
    serial: int
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


class Loader:
    """Holds the parked items of all channels, and reads the store for them."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[None, None, None]], object],
        *,
        queue_first: Callable[[Iterable[Item]], None],
        stored: Callable[[Decided], None],
        fail: Callable[[Item, TenutoError], None],
        followed: Callable[[Channel], None],
    ) -> None:
        """Give items back through functions: `queue_first` gets those that can be decided now, in order.

        `stored` gets decisions that turn out to be stored, `fail` the items whose channel could not be read, and
        `followed` each channel that was read again, perhaps with entries of other hubs.
        """
        self._spawn = spawn
        self._queue_first = queue_first
        self._stored = stored
        self._fail = fail
        self._followed = followed
        self.parked: dict[Channel, deque[Item]] = {}  # parked items by channel; other components must not change this
        self._unclear: dict[Channel, Unclear] = {}

    def park(self, channel: Channel, item: Item) -> None:
        """Park `item`, and later items of its channel, until the store has been read."""
        parked = self.parked.setdefault(channel, deque())
        parked.append(item)
        if len(parked) == 1:
            self._spawn(self._load(channel))

    def park_again(self, items: Mapping[Channel, Sequence[Item]], unclear: Mapping[Channel, Unclear]) -> None:
        """Park items of a failed or unknown commit before all others of their channels, which are loaded anew.

        `unclear`: channels whose store may hold the items.
        """
        self._unclear.update(unclear)
        for channel, again in items.items():
            self.parked.setdefault(channel, deque()).extendleft(reversed(again))
        for channel in items:
            self._spawn(self._load(channel))

    def drain(self) -> list[Item]:
        """Remove and return all parked items."""
        items = [item for parked in self.parked.values() for item in parked]
        self.parked.clear()
        self._unclear.clear()
        return items

    async def _load(self, channel: Channel) -> None:
        """Load the messages that the parked items need, then queue the items again, first and in order."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await channel.load()
                is_read = False
                while not is_read:
                    if channel.is_stale:
                        await channel.refresh()
                        self._followed(channel)
                    await channel.load_messages(self._ids(channel))
                    # A commit with an unknown outcome may have parked more items meanwhile; `_resolve_unclear` handles
                    # those.
                    is_read = not channel.is_stale and not channel.missing(self._ids(channel))
                # resolved here, with the messages in memory, because a result may contain one
                self._resolve_unclear(channel)
        except Exception as error:  # catch any error: no other component would fail the parked items
            logger.warning("channel %s could not be read: %r", channel.name, error)
            refused = (
                error
                if isinstance(error, TenutoError)
                else StoreUnavailable(f"channel {channel.name!r} could not be read from the store; try again")
            )
            if self._unclear.pop(channel, None) is not None:
                refused = CommitUnknown(
                    "the store did not confirm whether the request was stored; send it again to find out"
                )
            for item in self.parked.pop(channel, ()):
                self._fail(item, refused)
            return
        self._queue_first(self.parked.pop(channel, ()))

    def _ids(self, channel: Channel) -> list[str]:
        """Return the ids that the parked items of `channel` need in memory."""
        return [one for item in self.parked.get(channel, ()) for one in item.ids]

    def _resolve_unclear(self, channel: Channel) -> None:
        """If the store, now read again, holds a write with an unknown outcome, return the results of that write."""
        unclear = self._unclear.pop(channel, None)
        if unclear is None or (channel.state.epoch, channel.state.serial) != (unclear.epoch, unclear.serial):
            return
        parked = self.parked[channel]
        for decided in unclear.decided:
            if decided.item in parked:
                parked.remove(decided.item)
                self._stored(decided)
