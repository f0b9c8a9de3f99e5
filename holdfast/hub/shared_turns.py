"""The part of the turns that the nodes of one store show one another.

Layer: hub.

Each node keeps one hold: the patterns that its workers serve, and the channels in which turns wait and it has no worker
with a free slot. Each node reads the holds of the others every second. It lets messages wait for agents of other nodes,
and reads the channels whose waiting turns its own workers can take. The claim of a turn is a conditional commit, so one
node gets the turn. The holds of a node end with its lease.

An exclusive store has one node, which has no use for this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from holdfast.core.errors import HoldfastError, StoreUnavailable
from holdfast.hub.channel import Channel, is_settling
from holdfast.hub.loading import in_time
from holdfast.hub.nodes import NodeLease
from holdfast.hub.turns import TurnScheduler
from holdfast.stores.base import Store

logger = logging.getLogger("holdfast.hub")

PREFIX = "turns/"  # of the names of the holds; the node follows
FOLLOW_S = 1.0  # time between two reads of the holds of other nodes
REST_S = 0.05  # shortest time between two changes of the hold
SHOWN = 500  # number of patterns, and of channels, in the hold of a node


class ShownTurns(Struct, frozen=True):
    """The hold of a node."""

    patterns: list[str] = []
    waiting: list[str] = []


class SharedTurns:
    """Shows the turns of this node to the others, and follows theirs."""

    def __init__(
        self,
        store: Store,
        nodes: NodeLease,
        scheduler: TurnScheduler,
        channels: Mapping[str, Channel],
        fresh: Callable[[str], Awaitable[Channel]],
    ) -> None:
        """Make the shared turns of this node. `channels` are those in memory; `fresh` reads one from the store."""
        self._store = store
        self._nodes = nodes
        self._scheduler = scheduler
        self._channels = channels
        self._fresh = fresh
        self._due = asyncio.Event()  # set when the hold has changed
        self._shown: Mapping[str, bytes] = {}  # the hold that the store has
        nodes.values = self._values
        scheduler.workers.changed = self._due.set

    async def run(self) -> None:
        """Show and follow until this task is cancelled."""
        while True:
            self._due.clear()
            try:
                await self._share()
                await self.follow()
            except HoldfastError as error:
                logger.warning("the turns of other nodes were not read; the hub tries again: %s", error)
            except Exception:  # an error of a third-party store must not end the hub
                logger.exception("the turns of other nodes were not read; the hub tries again")
            await asyncio.sleep(REST_S)
            try:
                async with asyncio.timeout(FOLLOW_S - REST_S):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _share(self) -> None:
        values = self._values()
        if values != self._shown:
            await self._nodes.renew()
            self._shown = values

    def _values(self) -> dict[str, bytes]:
        """Return the hold of this node."""
        workers = self._scheduler.workers
        shown = ShownTurns(patterns=workers.served()[:SHOWN], waiting=self._unplaced()[:SHOWN])
        return {PREFIX + self._nodes.node: msgspec.json.encode(shown)} if shown != ShownTurns() else {}

    def _unplaced(self) -> list[str]:
        """Return the channels whose waiting turns need a worker of another node."""
        workers = self._scheduler.workers
        waiting = [channel for channel in self._scheduler.waiting() if not workers.has_room(channel)]
        if len(waiting) > SHOWN:  # the others have no use for a channel that no agent of theirs serves
            waiting.sort(key=lambda channel: not workers.is_served_elsewhere(channel))
        return waiting

    async def follow(self) -> None:
        """Read the holds of the other nodes, and offer the turns that wait there. Raises StoreUnavailable."""
        held = await in_time(self._store.holds(PREFIX), self._store.name)
        others = [shown for node, hold in held.values() if node != self._nodes.node and (shown := _decode(hold.value))]
        workers = self._scheduler.workers
        workers.note_elsewhere(pattern for one in others for pattern in one.patterns)
        # own turns of channels outside memory, which `holdfast.hub.following` does not read, may be taken elsewhere
        wanted = [channel for channel in self._unplaced()[:SHOWN] if channel not in self._channels]
        own = set(wanted)
        wanted += [channel for one in others for channel in one.waiting]
        for name in dict.fromkeys(wanted):
            live = self._channels.get(name)
            if (name not in own and not workers.has_room(name)) or (live is not None and is_settling(live)):
                continue
            try:
                self._scheduler.inspect(await in_time(self._fresh(name), self._store.name), None)
            except StoreUnavailable:
                raise
            except HoldfastError as error:
                logger.warning("the turns of channel %s were not read: %s", name, error)
                continue
            self._scheduler.offer(name)


def _decode(value: bytes) -> ShownTurns | None:
    try:
        return msgspec.json.decode(value, type=ShownTurns)
    except msgspec.MsgspecError:  # of another version of the hub
        return None
