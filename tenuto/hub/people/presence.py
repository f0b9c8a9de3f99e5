"""Members enter and leave channels, by connections and by leases, and the nodes of one store show one another theirs.

Layer: hub.

`presence_state` holds the members of one channel; this module holds how long they stay. A member leaves some seconds
after its last connection closed, so that a page refresh does not flicker. A member without a connection stays until its
lease ends.

Each node keeps a hold for each channel with members of its own, and one hold about itself: its agents, and the channels
whose members it has changed last. A node reads the members of a channel when the first viewer attaches or the first
member enters, after a `here` notice, and when the hold of another node shows a change whose notice was lost. The holds
of a node end with its lease; its members stay for the grace period of a broken connection, so those that reconnect to
another node do not flicker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
from msgspec import Struct

from tenuto.core.document import decoded
from tenuto.core.errors import Forbidden, TenutoError, TooMany, shown
from tenuto.core.events import Presence, Signal
from tenuto.core.limits import Limits
from tenuto.core.model import Json, check_json, plain
from tenuto.core.names import check_id, client_of, is_own_name, matches
from tenuto.hub.channel import Channel
from tenuto.hub.clock import Deadlines
from tenuto.hub.committer import in_time
from tenuto.hub.nodes import NodeLease, Notifier
from tenuto.hub.people.presence_state import CROWD_S, GRACE_S, NAMED, NodeMember
from tenuto.hub.tasks import logs_errors, store_failures
from tenuto.stores.base import Notice, SharedStore

logger = logging.getLogger("tenuto.hub")

MEMBERS = "members/"  # prefix of the holds with the members of a channel at a node; both names follow
NODES = "here/"  # prefix of the holds of the nodes; the node follows
FOLLOW_S = 1.0  # time between two reads of the holds of the nodes
MERGE_S = 0.1  # changes within this time are put, and read, at once
HOLD_BYTES = 64 * 1024  # limit of the members in one hold; further people are only counted
RECENT = 50  # number of changed channels that a node lists
READS = 50  # number of channels that are read one by one; the members of all channels are read at once if more are due
AGENTS = 100  # number of agents that a node lists
SIGNAL_BYTES = 4_200  # limit of the body of a notice; a longer signal stays at its node
SEEN = 1_000  # number of received signals by which repeated notices are recognised


class _ShownMembers(Struct, frozen=True, array_like=True):
    """The hold of a channel at a node: its members by id, and the number of further people."""

    members: list[tuple[str, NodeMember]] = []
    unnamed: int = 0


class _ShownNode(Struct, frozen=True, array_like=True):
    """The hold of a node."""

    revision: int = 0  # number of changes of its members
    recent: list[str] = []  # the channels of the last changes, the newest last
    agents: list[tuple[str, str]] = []  # name and pattern
    losses: int = 0  # number of times that the store may have lost the holds of the node


class _Sent(Struct, frozen=True, array_like=True):
    """The body of a `signal` notice. `number` counts the signals of the node."""

    node: str
    number: int
    name: str
    data: Json = None
    by: str | None = None


class _MembersMoved(Struct, frozen=True, array_like=True):
    """The body of a `here` notice. With a `member`, its lease was withdrawn at `at_ms`, by the store's clock."""

    node: str
    member: str = ""
    at_ms: int = 0


class _Due:
    """Channels that are due, each at most once in its pause."""

    def __init__(self, pause_s: Callable[[str], float]) -> None:
        self._pause_s = pause_s
        self._due: set[str] = set()
        self._rest_s: dict[str, float] = {}  # loop time until which a channel rests
        self._wake = asyncio.Event()  # lets `take` return

    def add(self, *channels: str) -> None:
        """Make `channels` due."""
        if channels:
            self._due.update(channels)
            self.wake()

    def wake(self) -> None:
        """Let `take` return at once, perhaps without a channel."""
        self._wake.set()

    async def take(self, until_s: float | None) -> list[str]:
        """Return the channels that are due, as soon as there are any, or `take` is woken, or at `until_s`."""
        loop = asyncio.get_running_loop()
        rests_s = [self._rest_s.get(one, 0.0) for one in self._due] + ([until_s] if until_s is not None else [])
        if not rests_s or min(rests_s) > loop.time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(rests_s, default=None)):
                    await self._wake.wait()
        self._wake.clear()
        now_s = loop.time()
        self._rest_s = {one: rest_s for one, rest_s in self._rest_s.items() if rest_s > now_s}
        ready = sorted(one for one in self._due if one not in self._rest_s)
        self._due.difference_update(ready)
        self._rest_s |= {one: now_s + pause_s for one in ready if (pause_s := self._pause_s(one)) > 0}
        return ready


class _Followed(Struct):
    """A channel whose members at other nodes are shown."""

    live: Channel
    applied: int = 0  # number of the last read that was applied
    members: dict[str, _ShownMembers] = {}  # for each node that shows members, what that read has found
    first: asyncio.Lock | None = msgspec.field(default_factory=asyncio.Lock)  # held by the first read; None after it


@dataclass(eq=False)
class SharedPresence:
    """Shows the members of this node to the others, and theirs in the channels that are viewed here."""

    _store: SharedStore
    lease: NodeLease
    _notifier: Notifier
    _channels: Mapping[str, Channel]  # those in memory
    _agents: Callable[[], Iterable[tuple[str, str]]]  # returns the names and patterns of the agents here
    _note_agents: Callable[[Iterable[tuple[str, str]]], None]  # gets those of all other nodes

    def __post_init__(self) -> None:
        self._node = self.lease.node
        self._to_show = _Due(self._pause_s)  # channels whose members here have changed
        self._shown: set[str] = set()  # channels with members here
        self._revision = 0  # this and `_recent` are those of this node's hold (`_ShownNode`)
        self._recent: list[str] = []
        self._to_read = _Due(self._pause_s)  # channels whose members elsewhere have changed
        self._followed: dict[str, _Followed] = {}
        self._reads = 0  # number of calls of the store for members; orders their results
        self._nodes: dict[str, _ShownNode] = {}  # the other nodes, with their holds
        self.ended: dict[str, float] = {}  # those without a hold, with the loop time at which their members leave
        self._check_s = 0.0  # loop time of the next read of the nodes
        self._signals = 0  # number of signals that this node has sent
        self._seen: dict[tuple[str, int], None] = {}  # node and number of the last received signals
        # called with the channel and id of a member whose lease was withdrawn at another node, and with the time
        self.on_withdrawn: Callable[[str, str, int], None] | None = None
        self.lease.holds.about_node = self._about_node

    def added(self, channel: Channel) -> None:
        """Show the members that enter `channel` here, from now on."""
        channel.presence_state.own_changed = partial(self._own_changed, channel.name)

    def _own_changed(self, channel: str) -> int:
        """Show the members of `channel` to other nodes soon; return the time by the store's clock, in ms."""
        self._to_show.add(channel)
        return self.lease.now_ms

    def _pause_s(self, channel: str) -> float:
        """Return the least time between two puts, or two reads, of the members of `channel`."""
        live = self._channels.get(channel)
        return CROWD_S if live is not None and live.presence_state.is_crowd else 0.0

    # -- the members of this node ------------------------------------------------------------------------------

    def _about_node(self) -> dict[str, bytes]:
        agents = sorted(self._agents())[:AGENTS]
        shown = _ShownNode(self._revision, self._recent, agents, self.lease.holds.losses)
        return {NODES + self._node: _encode(shown)}

    def _show_own(self, channel: str) -> None:
        """Put the members of `channel` here into its hold, which other nodes show; without members, end it."""
        live = self._channels.get(channel)
        own = live.presence_state.own() if live is not None else []
        has_people = any(member.kind == "user" for _, member in own)
        if live is not None and has_people and not self._begin_to_follow(live).applied:
            self._to_read.add(channel)  # read them: the limits of members count those of all nodes
        if own or channel in self._shown:
            self.lease.holds.show(f"{MEMBERS}{channel}/{self._node}", _encode_members(own) if own else None)
        self._shown.discard(channel)
        if own:
            self._shown.add(channel)

    async def publish(self) -> None:
        """Put the members of this node into the store, until this task is cancelled."""
        while True:
            channels = await self._to_show.take(None)
            if not channels:
                continue
            for channel in channels:
                self._show_own(channel)
            self._revision += len(channels)
            self._recent = (self._recent + channels)[-RECENT:]
            # after an error the next renewal puts them
            with logs_errors(f"members of {len(channels)} channels are shown to others later", level=logging.DEBUG):
                await self.lease.put()
                for channel in channels:
                    self._notifier.send(Notice("here", channel, _encode(_MembersMoved(self._node))))
            await asyncio.sleep(MERGE_S)

    # -- the members of other nodes ----------------------------------------------------------------------------

    async def read(self, channel: Channel) -> None:
        """Show the members of other nodes in `channel`, and follow them, unless that is so already."""
        known = self._begin_to_follow(channel)
        first = known.first
        if first is None:
            return
        async with first:
            if known.first is None:
                return  # another reader was first
            try:
                await self._read([channel.name])
            except TenutoError as error:  # viewers get the members later
                store_failures.log_failed("members of other nodes were not read; the hub tries again", error)
                self._to_read.add(channel.name)
            known.first = None

    def _begin_to_follow(self, channel: Channel) -> _Followed:
        """Follow `channel` unless it is followed already; return its state. A channel loaded anew begins anew."""
        known = self._followed.get(channel.name)
        if known is None or known.live is not channel:
            known = self._followed[channel.name] = _Followed(channel)
        return known

    async def follow(self) -> None:
        """Follow the members of the other nodes until this task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            channels = await self._to_read.take(self._check_s)
            begun_s = loop.time()
            with logs_errors("members of other nodes were not read; the hub tries again"):
                if begun_s >= self._check_s:
                    self._check_s = begun_s + FOLLOW_S
                    self._forget_unused()
                    await self._read_nodes()
                if len(channels) > READS:  # one read of the members of all channels costs less
                    await self._read(channels)
                else:
                    for channel in channels:
                        await self._read([channel])
                channels = []
            self._to_read.add(*channels)  # retry the channels whose read failed
            await asyncio.sleep(min(max(MERGE_S, loop.time() - begun_s), FOLLOW_S))  # half of the time without a read

    def _forget_unused(self) -> None:
        """Forget the channels that have left memory, and end the holds of their members here."""
        followed = self._followed.items()
        self._followed = {name: known for name, known in followed if self._channels.get(name) is known.live}
        self._to_show.add(*(name for name in self._shown if name not in self._channels))

    async def _read_nodes(self) -> None:
        """Read the holds of the nodes, and note the channels whose members have changed. Raises StoreUnavailable."""
        held = await in_time(self._store.holds(NODES), self._store.name)
        now_s = asyncio.get_running_loop().time()
        others = [(node, hold) for node, hold in held.values() if node != self._node]
        found = {node: decoded(hold.value, _ShownNode) or _ShownNode() for node, hold in others}
        for node, seen in found.items():
            known, self._nodes[node] = self._nodes.get(node, _ShownNode()), seen
            missed = seen.revision - known.revision
            was_ended = self.ended.pop(node, None) is not None
            if was_ended or seen.losses != known.losses or not 0 <= missed <= len(seen.recent):  # it is unknown which
                self._to_read.add(*self._followed)
            elif missed:
                self._to_read.add(*(one for one in seen.recent[-missed:] if one in self._followed))
            if seen.agents != known.agents:
                for channel, followed in self._followed.items():
                    self._show(channel, followed, node)
        for node in self._nodes.keys() - found.keys():
            self.ended.setdefault(node, now_s + GRACE_S)
        for node in [node for node, ends_s in self.ended.items() if now_s >= ends_s]:
            del self.ended[node], self._nodes[node]
            for channel, followed in self._followed.items():
                followed.members.pop(node, None)
                self._show(channel, followed, node)
        self._note_agents(agent for one in self._nodes.values() for agent in one.agents)

    async def _read(self, channels: Sequence[str]) -> None:
        """Read the members of `channels` that are followed, by one call. Raises StoreUnavailable."""
        followed = {channel: self._followed[channel] for channel in channels if channel in self._followed}
        if not followed:
            return
        self._reads += 1
        number = self._reads
        losses = {node: shown.losses for node, shown in self._nodes.items()}
        prefix = f"{MEMBERS}{channels[0]}/" if len(channels) == 1 else MEMBERS
        held = await in_time(self._store.holds(prefix), self._store.name)
        found: dict[str, dict[str, _ShownMembers]] = {channel: {} for channel in followed}
        for name, (node, hold) in held.items():
            channel = name.removeprefix(MEMBERS).removesuffix(f"/{node}")
            if node != self._node and channel in found:
                found[channel][node] = decoded(hold.value, _ShownMembers) or _ShownMembers()
        if any(
            found[one].keys() - self._nodes.keys() or known.members.keys() - found[one].keys()
            for one, known in followed.items()
        ):
            await self._read_nodes()  # a node has begun, or has ended, or its last member has left
        for channel, known in followed.items():
            if number < known.applied:
                continue  # a later read was faster
            known.applied = number
            if known.first is not None and not known.first.locked():
                known.first = None  # this was the first read, not one of `read`
            for node in sorted(found[channel].keys() | self._nodes.keys()):
                if node in found[channel]:
                    known.members[node] = found[channel][node]
                elif node in self.ended or self._nodes[node].losses != losses.get(node):
                    continue  # its holds were lost, perhaps before they were read
                else:
                    known.members.pop(node, None)
                self._show(channel, known, node)

    def _show(self, channel: str, followed: _Followed, node: str) -> None:
        """Show the members and the agents of `node` in a channel, as far as they are known."""
        shown = followed.members.get(node, _ShownMembers())
        agents = self._nodes[node].agents if node in self._nodes else []
        listening = NodeMember("agent", 1, 0, {"state": "listening"})  # as far as the hold does not show the agent
        members = {name: listening for name, pattern in agents if matches(pattern, channel)} | dict(shown.members)
        followed.live.presence_state.show(node, members, shown.unnamed)

    # -- notices -----------------------------------------------------------------------------------------------

    def receive(self, notice: Notice | None) -> None:
        """Take a notice of another node. None: notices may have been missed."""
        if notice is None:
            self._check_s = 0.0
            self._to_read.wake()
        elif notice.kind == "here":
            self._receive_here(notice)
        elif notice.kind == "signal":
            self._receive_signal(notice)

    def _receive_here(self, notice: Notice) -> None:
        """Read the members of the channel soon, and end the lease that the notice withdraws, if it does."""
        here = decoded(notice.body, _MembersMoved)
        if here is None or here.node == self._node:
            return
        if here.member and self.on_withdrawn is not None:
            self.on_withdrawn(notice.channel, here.member, here.at_ms)
        if notice.channel in self._followed:
            self._to_read.add(notice.channel)

    def send_withdrawn(self, channel: str, member_id: str) -> None:
        """Let the other nodes end the lease of a member."""
        moved = _MembersMoved(self._node, member_id, self.lease.latest_ms)
        self._notifier.send(Notice("here", channel, _encode(moved)))

    def send_signal(self, channel: str, signal: Signal) -> None:
        """Send a signal to the viewers at other nodes, unless it takes more than `SIGNAL_BYTES`."""
        self._signals += 1
        body = _encode(_Sent(self._node, self._signals, signal.name, signal.data, signal.from_))
        if len(body) <= SIGNAL_BYTES:
            self._notifier.send(Notice("signal", channel, body))

    def _receive_signal(self, notice: Notice) -> None:
        live = self._channels.get(notice.channel)
        sent = decoded(notice.body, _Sent)
        if live is None or sent is None or sent.node == self._node or (sent.node, sent.number) in self._seen:
            return
        self._seen[sent.node, sent.number] = None
        if len(self._seen) > SEEN:
            del self._seen[next(iter(self._seen))]
        live.presence_state.signal(Signal(name=sent.name, data=sent.data, from_=sent.by))


_encode = msgspec.msgpack.Encoder().encode


def _encode_members(own: list[tuple[str, NodeMember]]) -> bytes:
    """Return the hold with the members `own`, at most `HOLD_BYTES` of them.

    The first `NAMED` have their data, as long as that takes at most half of the bytes.
    """
    members: list[msgspec.Raw] = []
    size = 0
    for member_id, member in own:
        encoded = _encode((member_id, member))
        if len(members) >= NAMED or size + len(encoded) > HOLD_BYTES // 2:
            encoded = _encode((member_id, NodeMember(member.kind, member.connections, 0, {})))
        if size + len(encoded) > HOLD_BYTES:
            break
        members.append(msgspec.Raw(encoded))
        size += len(encoded)
    return _encode((members, len(own) - len(members)))


SERVERS_SIGNALS = frozenset(("nobody_listening",))  # only the server may send these, since clients trust them


@dataclass(eq=False)
class PresenceTracker:
    """Enters members into channels, and removes them when their connections or leases end."""

    _loop: asyncio.AbstractEventLoop
    _deadlines: Deadlines
    _limits: Limits
    _channel: Callable[[str], Channel]  # returns a live channel
    shared: SharedPresence | None  # None on an exclusive store
    # for each client: the channels and member ids of its leases, with the times of their renewals (`now_ms`)
    _leases: defaultdict[str, dict[tuple[str, str], int]] = field(default_factory=lambda: defaultdict(dict), init=False)

    def __post_init__(self) -> None:
        if self.shared is not None:
            self.shared.on_withdrawn = self._withdrawn

    def enter(self, channel: str, member_id: str, connection: Hashable, data: dict[str, Json] | None) -> None:
        """Enter `member_id` over `connection`, until `leave`. Raises InvalidRequest, TooLarge, TooMany, Forbidden."""
        if data is not None:
            check_json(data, self._limits.data_bytes, "a member's data", depth=self._limits.depth)
            data = plain(data)
        ended = self.shared.ended if self.shared is not None else ()
        self._channel(channel).presence_state.enter(member_id, "user", connection, data, ended)
        self._deadlines.drop(("grace", channel, member_id))

    def leave(self, channel: str, member_id: str, connection: Hashable, *, is_final: bool = False) -> None:
        """End one connection of a member. With `is_final` the member leaves at once, else after the grace period."""
        is_last = self._channel(channel).presence_state.disconnect(member_id, connection)
        grace = ("grace", channel, member_id)

        def remove() -> None:
            self._channel(channel).presence_state.remove(member_id)

        if is_final:
            if is_last and grace not in self._deadlines:  # else a broken connection may come back in its grace period
                remove()
        elif is_last or (channel, member_id) in self._leases.get(client_of(member_id), ()):
            # With a lease, too, because the lease may end within the grace period.
            self._deadlines.set(grace, self._loop.time() + GRACE_S, remove)

    def lease(self, channel: str, member_id: str, data: dict[str, Json] | None, lease_s: float) -> None:
        """Enter `member_id` without a connection, for `lease_s` seconds from now. Raises as `enter`.

        Each lease keeps a channel in memory, so a client may hold as many as a socket may hold channels.
        """
        leases = self._leases.get(client_of(member_id), ())
        limit = self._limits.socket_channels
        if len(leases) >= limit and (channel, member_id) not in leases:
            raise TooMany(
                f"client {shown(client_of(member_id))} has {len(leases)} presence leases, the limit is {limit}; end "
                "one of them first",
                limit=limit,
            )
        self.enter(channel, member_id, "lease", data)
        renewed_ms = self.shared.lease.now_ms if self.shared is not None else 0
        self._leases[client_of(member_id)][channel, member_id] = renewed_ms
        ends_s = self._loop.time() + lease_s
        self._deadlines.set(("here", channel, member_id), ends_s, partial(self.end_lease, channel, member_id))

    def withdraw(self, channel: str, member_id: str) -> None:
        """End the leases of `member_id` at all nodes."""
        self.end_lease(channel, member_id)
        if self.shared is not None:
            self.shared.send_withdrawn(channel, member_id)

    def _withdrawn(self, channel: str, member_id: str, at_ms: int) -> None:
        """End the lease of `member_id`, which was withdrawn at another node, unless it was renewed since."""
        renewed_ms = self._leases.get(client_of(member_id), {}).get((channel, member_id))
        if renewed_ms is not None and renewed_ms < at_ms:
            self.end_lease(channel, member_id)

    def end_lease(self, channel: str, member_id: str) -> None:
        """End the lease of `member_id` at this node, because it was withdrawn or was not renewed in time."""
        self._deadlines.drop(("here", channel, member_id))
        leases = self._leases.get(client_of(member_id))
        if leases is not None:
            leases.pop((channel, member_id), None)
            if not leases:
                del self._leases[client_of(member_id)]
        self.leave(channel, member_id, "lease", is_final=True)

    async def read(self, channel: str) -> Channel:
        """Return `channel` with its members at all nodes, which its limits count."""
        live = self._channel(channel)
        if self.shared is not None:
            await self.shared.read(live)
        return live

    async def present(self, channel: str) -> Presence:
        """Return the present members of `channel`, at all nodes."""
        return (await self.read(channel)).presence_state.presence()

    def signal(self, channel: str, name: str, data: Json, by: str | None) -> None:
        """Send a signal to the current subscribers; it is never stored. Raises InvalidRequest, TooLarge."""
        check_id(name, "a signal's name")
        if data is not None:
            check_json(data, self._limits.data_bytes, "a signal's data", depth=self._limits.depth)
        signal = Signal(name=name, data=plain({"data": data})["data"], from_=by)
        self._channel(channel).presence_state.signal(signal)
        if self.shared is not None:
            self.shared.send_signal(channel, signal)


def check_member(member_id: str, client_id: str | None) -> str:
    """Return `member_id`. Raises Forbidden unless it is the client's own id, or that id with `~` and a suffix."""
    check_id(member_id, "a member's id")
    if is_own_name(member_id, client_id):
        return member_id
    raise Forbidden(
        f"member id {shown(member_id)} belongs to another client; use {shown(client_id)}, or that with ~ and a suffix"
    )


def check_signal(name: str) -> None:
    """Raise Forbidden if only the server may send a signal called `name`."""
    if name in SERVERS_SIGNALS:
        raise Forbidden(f"signal {name!r} is reserved for the server; use another name")
