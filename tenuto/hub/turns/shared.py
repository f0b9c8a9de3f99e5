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

from tenuto.core.document import DAMAGE
from tenuto.core.errors import StoreUnavailable, TenutoError
from tenuto.core.turns import Phase
from tenuto.hub.channel import Channel, is_settling
from tenuto.hub.committer import in_time
from tenuto.hub.nodes.nodes import Follower, NodeLease
from tenuto.hub.tasks import logs_errors
from tenuto.hub.turns.scheduler import OpenTurn, TurnScheduler
from tenuto.stores.base import Notice, Store

logger = logging.getLogger("tenuto.hub")

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
        follower: Follower,
    ) -> None:
        """Make the shared turns of this node. `channels` are those in memory; `fresh` reads one from the store.

        `follower` sends and receives the notices.
        """
        self._store = store
        self._nodes = nodes
        self._scheduler = scheduler
        self._channels = channels
        self._fresh = fresh
        self._due = asyncio.Event()  # set when the hold has changed
        self._shown: Mapping[str, bytes] = {}  # the hold that the store has
        self._patterns: list[str] = []  # the patterns in it
        self._notifier = follower.notifier
        follower.receivers.append(self._receive)
        nodes.holds.sources.append(self._values)
        scheduler.workers.changed = self._due.set

    async def begin(self) -> None:
        """Show this node to the others, then read theirs. Raises StoreUnavailable.

        So of two nodes that begin at the same moment one finds the other, which learns of it by a notice.
        """
        await self._show(self._values())
        await self.read()

    async def run(self) -> None:
        """Show and follow until this task is cancelled."""
        while True:
            self._due.clear()
            with logs_errors("the turns of other nodes were not read; the hub tries again"):
                await self._share()
                await self.follow()
            await asyncio.sleep(REST_S)
            try:
                async with asyncio.timeout(FOLLOW_S - REST_S):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _share(self) -> None:
        values = self._values()
        if values != self._shown:
            await self._show(values)

    async def _show(self, values: Mapping[str, bytes]) -> None:
        patterns = self._scheduler.workers.served()
        await self._nodes.renew()
        self._shown = values
        if patterns != self._patterns:
            self._patterns = patterns
            self._notifier.send(Notice("here", "", self._nodes.node.encode()))

    def _receive(self, notice: Notice | None) -> None:
        """Read the holds soon, because another node serves other patterns. None: notices may have been missed."""
        is_about_turns = notice is not None and notice.kind == "here" and not notice.channel
        if notice is None or (is_about_turns and notice.body != self._nodes.node.encode()):
            self._due.set()

    def _values(self) -> dict[str, bytes]:
        """Return the hold of this node."""
        workers = self._scheduler.workers
        shown = ShownTurns(patterns=workers.served()[:SHOWN], waiting=self._unplaced()[:SHOWN])
        return {PREFIX + self._nodes.node: msgspec.json.encode(shown)} if shown != ShownTurns() else {}

    def _waiting(self) -> list[str]:
        """Return the channels in which turns wait; if there are many, first those that an agent serves."""
        workers = self._scheduler.workers
        waiting = list(dict(self._scheduler.where(lambda turn: turn.phase is Phase.WAITING)))
        if len(waiting) > SHOWN:
            waiting.sort(key=lambda name: not (workers.has_agent(name) or workers.is_served_elsewhere(name)))
        return waiting

    def _unplaced(self) -> list[str]:
        """Return the channels whose waiting turns need a worker of another node."""
        workers = self._scheduler.workers
        return [channel for channel in self._waiting() if not workers.has_room(channel)]

    async def read(self) -> list[ShownTurns]:
        """Return the holds of the other nodes, after noting their patterns. Raises StoreUnavailable."""
        held = await in_time(self._store.holds(PREFIX), self._store.name)
        others = [shown for node, hold in held.values() if node != self._nodes.node and (shown := _decode(hold.value))]
        self._scheduler.workers.note_elsewhere(pattern for one in others for pattern in one.patterns)
        return others

    async def follow(self) -> None:
        """Read the holds of the other nodes, and offer the turns that wait there. Raises StoreUnavailable."""
        others = await self.read()
        workers = self._scheduler.workers
        # own turns of channels outside memory, which `tenuto.hub.nodes.nodes` does not read, may be taken
        # elsewhere, or wait for a turn of another node that has ended
        wanted = [channel for channel in self._waiting() if channel not in self._channels][:SHOWN]
        own = set(wanted)
        wanted += [channel for one in others for channel in one.waiting]
        looked_at = []
        for name in dict.fromkeys(wanted):
            live = self._channels.get(name)
            if (name not in own and not workers.has_room(name)) or (live is not None and is_settling(live)):
                continue
            try:
                self._scheduler.inspect(await in_time(self._fresh(name), self._store.name), None)
            except StoreUnavailable:
                raise
            except TenutoError as error:
                logger.warning("the turns of channel %s were not read: %s", name, error)
                continue
            looked_at.append(name)
        await lose_turns(self._nodes, self._scheduler)
        for name in looked_at:
            self._scheduler.offer(name)


async def lose_turns(nodes: NodeLease, scheduler: TurnScheduler, channel: str | None = None) -> None:
    """Let the turns of ended nodes wait again, in `channel` or in all channels. Raises StoreUnavailable.

    The lease of this node is renewed between the look at a claim and the decision: the node that stored the claim may
    have begun, or have run again after a pause, since the renewal before.
    """

    def is_left(turn: OpenTurn) -> bool:
        node = turn.claim.node if turn.phase is Phase.RUNNING and turn.claim is not None else None
        return node is not None and nodes.is_gone(node)

    left = [(name, turn, turn.attempt, turn.confirmed) for name, turn in scheduler.where(is_left, channel)]
    if left:
        await nodes.renew()
    for name, turn, *known in left:
        if [turn.attempt, turn.confirmed] == known and is_left(turn):
            scheduler.lose(name, turn)


def _decode(value: bytes) -> ShownTurns | None:
    try:
        return msgspec.json.decode(value, type=ShownTurns)
    except DAMAGE:  # of another version of the hub
        return None
