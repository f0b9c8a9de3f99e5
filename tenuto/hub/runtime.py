"""The services of a running hub.

Layer: hub.

A `Runtime` serves one run of the hub on one event loop. The lifecycle builds it, complete, once the store is open, and
drops it when the run ends; a later start builds another one. Its methods assume that the hub has started and that the
names they get are valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import InitVar, dataclass
from typing import cast

from tenuto.core.errors import Deleted, NotFound, TenutoError
from tenuto.core.limits import Limits
from tenuto.core.names import check_channel, check_id
from tenuto.core.requests import SERVER, Caller, CreateMessage, ExpireLease, FinishMessage, Request, SendCommand
from tenuto.core.state import MessageState
from tenuto.hub.access.rates import Asked, Questions
from tenuto.hub.channel import Channel, Ticks
from tenuto.hub.clock import Clock, Deadlines
from tenuto.hub.committer import Committer, Pace, in_time
from tenuto.hub.hooks import Hook, HookRunner
from tenuto.hub.keep.policies import Capacity
from tenuto.hub.leases import LeaseMonitor
from tenuto.hub.nodes import Follower, NodeLease, Notifier
from tenuto.hub.pending import Done, Result, Waiting, result_later
from tenuto.hub.people.presence import PresenceTracker, SharedPresence
from tenuto.hub.tasks import Tasks
from tenuto.hub.turns.scheduler import TurnScheduler, WorkerPool
from tenuto.portal import Writer
from tenuto.stores.base import Bus, SharedStore, Store

# it waits at the committer behind earlier requests, and has no effect: each message has an entry after serial -1
_NO_CHANGE = ExpireLease(end=FinishMessage(), last=-1)


@dataclass(eq=False)
class Runtime:
    """All services of one run of a hub."""

    store: Store
    limits: Limits
    clock: Clock
    node: str  # names the run in the leases of its writers
    group: InitVar[asyncio.TaskGroup]
    capacity: Capacity
    bus: InitVar[Bus | None]
    _questions: Questions | None  # counts those of visitors; None: no caller is a visitor

    def __post_init__(self, group: asyncio.TaskGroup, bus: Bus | None) -> None:
        store, limits, clock, capacity = self.store, self.limits, self.clock, self.capacity
        self.loop = asyncio.get_running_loop()
        self.shared_store = shared_store = cast("SharedStore", store)  # on an exclusive store, no method is called
        self.nodes = NodeLease(shared_store, self.node, self.loop.time, clock)
        self.tasks = Tasks(group)
        self.channels: dict[str, Channel] = {}  # the channels in memory, by name
        self.writers: dict[tuple[str, str], Writer] = {}  # the writers in this process, by channel and message id
        self.deadlines = Deadlines(self.loop)
        self.ticks = Ticks()
        self.large_bodies = asyncio.Lock()  # held while a large body is decoded
        self.hooks: list[HookRunner] = []
        self.leases = LeaseMonitor(
            self.loop, clock, self.deadlines, self.submit, read=self.settled, nodes=self.nodes, spawn=self.tasks.spawn
        )
        workers = WorkerPool(
            self.loop, clock, self.deadlines, store, lambda: list(self.channels.values()), self.tasks.spawn
        )
        self.scheduler = TurnScheduler(
            self.loop, clock, self.deadlines, workers, self.nodes, self.submit, self.channels.get
        )
        self.nodes.regained = self.scheduler.offer_all
        notifier = Notifier(bus or shared_store, self.nodes)
        shared: SharedPresence | None = None
        if not store.is_exclusive:
            agents = workers.present, workers.note_agents_elsewhere
            shared = SharedPresence(shared_store, self.nodes, notifier, self.channels, *agents)
        self.presence = PresenceTracker(self.loop, self.deadlines, limits, self.channel, shared)
        self.follower = Follower(store, self.channels, notifier, bus, self.leases.followed)
        if shared is not None:
            self.follower.receivers.append(shared.receive)
        self.committer = Committer(
            store,
            limits,
            clock,
            self.channels,
            self.channel,
            self.tasks.spawn,
            Pace(self.ticks),
            is_served=workers.serves,
            accepted=lambda channel, key: self.leases.renew(channel.name, key, channel.state.messages.get(key)),
            check=capacity.check_create,
            stored=None if store.is_exclusive else self.follower.notifier.stored,
            followed=self.leases.followed,
        )

    def channel(self, name: str) -> Channel:
        """Return the live channel `name`; it may not be loaded yet."""
        now_s = self.loop.time()
        channel = self.channels.get(name)
        if channel is None:
            channel = self.channels[name] = Channel(
                name, self.store, self.limits, self.ticks, now_s=now_s, observe=self._changed
            )
            if self.presence.shared is not None:
                self.presence.shared.added(channel)
            self.scheduler.workers.added(channel)
            if self.follower.bus is not None:
                self.follower.bus.follow(name)
        channel.used_s = now_s
        return channel

    def forget(self, name: str) -> None:
        """Drop the idle channel `name` from memory."""
        self.channels.pop(name).presence_state.close()
        self.scheduler.forget(name)
        if self.follower.bus is not None:
            self.follower.bus.unfollow(name)

    def begin_hook(self, hook: Hook) -> None:
        """Call `hook` from now on."""
        # its runner is notified of a channel that is being loaded when its head is known
        known = {name: (one.state.epoch, one.state.serial) for name, one in self.channels.items() if one.is_loaded}
        runner = HookRunner(self.store, self.nodes, self.tasks.start_background, hook, known)
        self.hooks.append(runner)
        runner.begin()

    async def fresh(self, name: str, *, with_members: bool = False) -> Channel:
        """Return the channel, loaded; on a shared store, with the entries of other hubs. Raises StoreUnavailable.

        `with_members`: also with the members of other hubs, which are followed as long as the channel is in memory.
        """
        live = None
        # memory may be freed while the members are read; a feed of a channel that is not in memory would get no events
        while live is None or self.channels.get(name) is not live:
            live = self.channel(check_channel(name))
            await live.load()
            head = None if self.store.is_exclusive else await self.follower.head(live.name)
            if live.is_stale or (head is not None and not live.is_past(head)):
                await live.refresh(head)
                self.leases.followed(live)
            if with_members and self.presence.shared is not None:
                await self.presence.shared.read(live)
        return live

    async def message(self, channel: str, message_id: str) -> MessageState:
        """Return the message in its stored state. Raises NotFound, Deleted, StoreUnavailable."""
        return (await self.found(channel, message_id))[1]

    async def found(self, channel: str, message_id: str, *, may_be_gone: bool = False) -> tuple[Channel, MessageState]:
        """Return the message as `message` does, and the channel in whose state it is: both of one run of the hub."""
        live = await self.fresh(channel)
        await live.load_messages([check_id(message_id)])
        known = live.state.messages.get(message_id)
        if known is None:
            raise NotFound(f"message {message_id!r} does not exist in this channel; check the id")
        if known.deleted and not may_be_gone:
            raise Deleted(f"message {message_id!r} was deleted; create another one")
        return live, known

    async def settled(self, channel: str, message_id: str) -> MessageState:
        """Return the message as it is once all requests about it that were submitted before this call are decided.

        Raises NotFound, Deleted, StoreUnavailable, Busy, Draining.
        """
        await self.ask(channel, message_id, _NO_CHANGE, SERVER)
        return await in_time(self.message(channel, message_id), self.store.name)

    def submit(
        self, channel: str, key: str, request: Request, caller: Caller, done: Done, *, is_repeat: bool = False
    ) -> None:
        """Submit `request` and call `done` with the result or the error. Raises Busy, Draining.

        With `is_repeat` the same request was submitted before, and may have been stored although it failed.
        """
        asked: Asked | None = None
        # The one place that every new message and command passes.
        if self._questions is not None and isinstance(request, CreateMessage | SendCommand):
            caller, asked = self._questions.counted(channel, request, caller)
        if asked is None:
            self.committer.submit(Waiting(channel, key, request, caller, done, is_repeat=is_repeat))
            return

        def settled(result: Result | TenutoError) -> None:
            asked.settle(result, may_be_stored=item.became_unclear)
            done(result)

        item = Waiting(channel, key, request, caller, settled, is_repeat=is_repeat)
        try:
            self.committer.submit(item)
        except TenutoError:
            asked.give_back()
            raise

    async def ask(self, channel: str, key: str, request: Request, caller: Caller) -> Result:
        """Submit `request` and return its result, which is durable. Raises the refusal."""
        outcome, done = result_later()
        self.submit(channel, key, request, caller, done)
        return await outcome

    def stats(self) -> dict[str, int]:
        channels = self.channels.values()
        return {
            "channels": len(channels),
            "feeds": sum(channel.watchers for channel in channels),
            "writers": len(self.writers),
            "commits": self.committer.commits,
            "entries": self.committer.entries,
            "waiting": self.committer.waiting,
            "deadlines": len(self.deadlines),
            "members": sum(len(channel.presence_state) for channel in channels),
            **self.scheduler.stats(),
            **(self.follower.bus.stats() if self.follower.bus is not None else {}),
        }

    def responded_s(self) -> float:
        """Return the loop time of the last response of the store, as far as the hub asks it at regular times."""
        return max(self.nodes.renewed_s, self.follower.responded_s)

    def wake_feeds(self) -> None:
        """Wake all feeds so that they notice that viewers must leave."""
        for channel in self.channels.values():
            for feed in channel.feeds:
                feed.wake()

    def _changed(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """Notify the services of entries other than appends in `channel`."""
        self.leases.inspect(channel, keys)
        self.scheduler.inspect(channel, keys)
        for hook in self.hooks:
            hook.changed(channel)
