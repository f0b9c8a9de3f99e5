"""Legal holds: channels of which no message may be deleted until they are released.

Layer: hub.

A hold is a note in the store, and all holds are in memory, so a decision about a deletion needs no read. On a store
that several hubs share, another hub knows a hold some seconds later (`housekeeping`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import Held, InvalidRequest, NotFound, StoreUnusable, shown
from tenuto.core.model import check_text
from tenuto.stores.base import Store

logger = logging.getLogger("tenuto.hub")

NOTE = "hold:"  # prefix of the notes about holds; the channel follows
MAX_REASON = 1_000  # characters


class ChannelHold(Struct, frozen=True, kw_only=True):
    """A channel that is held, the reason, and the time from which it is held, in ms since 1970."""

    channel: str
    reason: str
    since_ms: int


_decode = msgspec.json.Decoder(ChannelHold).decode


def decode_hold(note: bytes) -> ChannelHold:
    """Return the hold in a note. Raises StoreUnusable."""
    try:
        return _decode(note)
    except (msgspec.DecodeError, ValueError) as error:
        raise StoreUnusable(f"note about a hold is damaged ({error}); restore a backup") from None


def _hold_or_none(note: bytes) -> ChannelHold | None:
    try:
        return _decode(note)
    except (msgspec.DecodeError, ValueError):
        return None


def held_in(notes: Mapping[str, bytes]) -> frozenset[str]:
    """Return the channels that the notes of a store hold, also by a note whose name is damaged."""
    named = {name.removeprefix(NOTE) for name in notes if name.startswith(NOTE)}
    return frozenset(named | {hold.channel for note in notes.values() if (hold := _hold_or_none(note)) is not None})


async def is_held_in(store: Store, channel: str) -> bool:
    """Return whether `store` has a hold of `channel`. Raises StoreUnavailable."""
    return NOTE + channel in await store.notes(NOTE + channel)


class LegalHolds:
    """The holds of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._holds: dict[str, ChannelHold] = {}  # by channel
        self._changing = asyncio.Lock()  # a hold that is made while the notes are read would be lost

    async def load(self) -> None:
        """Read the holds. Raises StoreUnavailable, StoreUnusable."""
        async with self._changing:
            # An SQLite file has no checksums of notes. A changed name may hide a hold, but its value names the channel.
            notes = await self._store.notes("" if self._store.is_exclusive else NOTE)
            found: dict[str, ChannelHold] = {}
            lost: dict[str, ChannelHold] = {}
            damaged: list[str] = []
            for name, note in notes.items():
                hold = decode_hold(note) if name.startswith(NOTE) else _hold_or_none(note)
                if hold is None:
                    continue
                if name.startswith(NOTE):
                    channel = name.removeprefix(NOTE)
                    found[channel] = replace(hold, channel=channel)
                if name != NOTE + hold.channel:
                    logger.error("note %r about the hold of channel %r is damaged; it is held", name, hold.channel)
                    lost[hold.channel] = hold
                    damaged.append(name)
            self._holds = lost | found
            for name in damaged:
                await self._mend(name, notes)

    async def _mend(self, name: str, notes: Mapping[str, bytes]) -> None:
        """Store the hold of a damaged note under the name of its channel, unless another node changed either since.

        If the damaged name is that of a channel, this is held as well.
        """
        channels = [_decode(notes[name]).channel, *([name.removeprefix(NOTE)] if name.startswith(NOTE) else [])]
        kept = {NOTE + channel: msgspec.json.encode(self._holds[channel]) for channel in channels}
        await self._store.note({name: None, **kept}, expected={one: notes.get(one) for one in (name, *kept)})

    def is_held(self, channel: str) -> bool:
        """Return whether the data of `channel` must stay."""
        return channel in self._holds

    def check(self, channel: str) -> None:
        """Raise Held if `channel` is held."""
        if channel in self._holds:
            raise Held(f"channel {channel!r} is held, so nothing in it can be deleted; release it first")

    def all(self) -> list[ChannelHold]:
        """Return all holds, in the order of the channels' names."""
        return [self._holds[channel] for channel in sorted(self._holds)]

    async def hold(self, channel: str, reason: str, now_ms: int) -> ChannelHold:
        """Hold `channel`; a second hold keeps the time. Raises InvalidRequest, StoreUnavailable."""
        if not isinstance(reason, str) or not 1 <= len(reason) <= MAX_REASON:
            raise InvalidRequest(f"reason of a hold must be 1-{MAX_REASON} characters, got {shown(reason)}")
        check_text(reason)
        async with self._changing:
            before = await self._stored(channel)
            since_ms = before.since_ms if before is not None else now_ms
            hold = self._holds[channel] = ChannelHold(channel=channel, reason=reason, since_ms=since_ms)
            try:
                await self._store.note({NOTE + channel: msgspec.json.encode(hold)})
            except BaseException:
                self._holds.pop(channel, None)
                if before is not None:
                    self._holds[channel] = before
                raise
            return hold

    async def release(self, channel: str) -> ChannelHold:
        """End the hold of `channel` and return it. Raises NotFound, StoreUnavailable."""
        async with self._changing:
            hold = await self._stored(channel)
            if hold is None:
                self._holds.pop(channel, None)
                raise NotFound(f"channel {channel!r} is not held; tenuto channels shows the held ones")
            await self._store.note({NOTE + channel: None})
            self._holds.pop(channel, None)
            return hold

    async def _stored(self, channel: str) -> ChannelHold | None:
        """Return the hold of `channel` in the store, where another hub may have put or ended it."""
        note = (await self._store.notes(NOTE + channel)).get(NOTE + channel)
        return decode_hold(note) if note is not None else None
