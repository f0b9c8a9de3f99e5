"""Presence and signals of one channel.

Layer: hub.

Presence and signals are ephemeral: they are not stored. As with the log, a feed holds a position and takes the changes
since then, joined to at most one event per member. A feed whose position is older than the kept changes gets all
members at once (`presence.sync`), and misses the signals that are no longer kept.

A crowd is a channel with more members than are listed by name, or with people who constantly come and go. Changes of
people in a crowd are sent as one `presence.sync`, at most once a second: otherwise a thousand members would cause
thousands of events for each of a thousand viewers. Changes of agents are still sent one by one: agents are few, and
viewers follow their state.

Members may be present at several nodes of a shared store (`presence`). A member that two nodes show is one member: it
has the newer data, and the connections of both.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Container, Hashable, Mapping
from itertools import takewhile
from typing import Literal

from msgspec import Struct

from tenuto.core.errors import Forbidden, TooMany, shown
from tenuto.core.events import (
    EphemeralEvent,
    Presence,
    PresenceEnter,
    PresenceLeave,
    PresenceSync,
    PresenceUpdate,
    Signal,
    encode_json,
)
from tenuto.core.limits import Limits
from tenuto.core.model import Json, Member
from tenuto.core.names import client_of

GRACE_S = 3.0  # time between the end of a member's last connection and the moment it leaves the channel
Kind = Literal["user", "agent"]
NAMED = 100  # number of members that are listed by name; the others are only counted
CROWD_S = 1.0  # least time between two `presence.sync` events of a crowd
CROWD_MOVES = 4  # a channel is a crowd if more people than this enter or leave within that time
CROWD_MEMBERS = 20  # a crowd has more members than this
OWN_MEMBERS = 100  # limit of members of one client in one channel: its id, and its id with `~` and suffixes
KEPT_LEFT = 1_000  # number of departed members for which feeds can still get single `presence.leave` events
KEPT_SIGNALS = 256  # number, and size together, of the last signals, which slow feeds can still get
KEPT_SIGNAL_BYTES = 64 * 1024
# limit of connections of one person at all nodes; the connections of an agent are limited by its sockets
MAX_CONNECTIONS = 100


class NodeMember(Struct, frozen=True, array_like=True):
    """A member as one node shows it. Of two nodes, the higher `version` has the newer data."""

    kind: Kind
    connections: int
    version: int
    data: dict[str, Json]


class _Member(Struct):
    """A member, and the position at which it entered. The data and the connections are those of this node."""

    kind: Kind
    data: dict[str, Json]
    entered: int
    connections: dict[Hashable, None] = {}
    version: int = 0
    is_here: bool = True  # present at this node, perhaps in its grace period
    elsewhere: dict[str, NodeMember] | None = None  # the member as other nodes show it

    def shown(self) -> tuple[dict[str, Json], int]:
        """Return the newest data of all nodes, and the number of connections. All nodes choose the same data."""
        if not self.elsewhere:
            return self.data, max(1, len(self.connections))  # in its grace period it has none, and counts as one
        found = list(self.elsewhere.values())
        if self.is_here:
            found.append(NodeMember(self.kind, max(1, len(self.connections)), self.version, self.data))
        newest = max(found, key=lambda one: (one.version, encode_json(one.data)))
        return newest.data, sum(one.connections for one in found)

    def has(self, data: dict[str, Json]) -> bool:
        """Return whether `data` are those of this node, and people see them: another node may have set newer ones."""
        return data == self.data == self.shown()[0]

    def at(self, nodes: Container[str]) -> int:
        """Return the number of connections at `nodes`, which are other nodes."""
        return sum(one.connections for node, one in (self.elsewhere or {}).items() if node in nodes)

    def change(self, data: dict[str, Json], version: int) -> None:
        """Set the data at this node, newer than that of all nodes; with this version at least."""
        known = max((one.version for one in (self.elsewhere or {}).values()), default=0)
        self.version = max(1 + self.version, 1 + known, version)
        self.data = data


class PresenceState:
    """The members and recent signals of a channel. It calls `changed` after each change; its owner handles leases.

    `position` rises with each change.
    """

    def __init__(self, limits: Limits, changed: Callable[[], None]) -> None:
        self.position = 0
        # Random id of this instance; positions of another instance are not comparable. Assigned when a long poll first
        # needs it. An instance ends with its hub, or when its channel leaves memory.
        self.epoch = ""
        self._limits = limits
        self._changed = changed
        self._members: dict[str, _Member] = {}  # by their ids
        self._people = 0  # number of members that are people, not agents
        self._owned: Counter[str] = Counter()  # number of those of each client
        self.is_crowd = False  # True: changes of people are sent together, at most once in `CROWD_S`
        self._is_held = False  # True: changes of a crowd have not been sent yet
        self._is_timed = False  # True: a timer for the next `presence.sync` runs
        self._moves = 0  # number of people who entered or left since the last `presence.sync`
        self._changes: OrderedDict[str, int] = OrderedDict()  # for each member the position of its last change
        # The departed members with the positions of their enter and leave, in order of leaving. As the signals, a short
        # list: an empty deque takes 760 B a channel.
        self._left: list[tuple[int, int, str]] = []
        self._floor = 0  # a feed at a lower position gets all members at once
        self._signals: list[tuple[int, Signal, int]] = []  # each with its position and its size in bytes
        self._signal_bytes = 0  # size of all these signals
        # called with each change of the members of this node; returns the time in ms, by which all nodes order changes
        self.own_changed: Callable[[], int] = lambda: 0
        # for each other node that shows members, the number of its people that it does not name
        self._unnamed: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._members)

    def close(self) -> None:
        """Stop notifying. This breaks reference cycles, so that the channel is freed without the garbage collector."""
        self._changed, self.own_changed = lambda: None, lambda: 0

    @property
    def has_people(self) -> bool:
        """Return whether a person is present at this node. Agents are members of all channels that they serve."""
        if not self._unnamed:  # no other node shows members: all are here
            return self._people > 0
        return any(here.is_here and here.kind == "user" for here in self._members.values())

    def enter(
        self,
        member_id: str,
        kind: Kind,
        connection: Hashable,
        data: dict[str, Json] | None = None,
        ended: Container[str] = (),
    ) -> None:
        """Enter `member_id` by `connection`; `data` replaces the member's data, None keeps it.

        The limit of connections does not count those at `ended`, nodes whose members leave soon: they come back here.
        Raises TooMany, and Forbidden if a person would enter under an agent's id. Agents are not limited: a full
        channel must not hide the agent that answers in it.
        """
        here = self._members.get(member_id)
        if here is None:
            if kind == "user":
                self._check_room(member_id)
            now_ms = self.own_changed()
            version = now_ms if kind == "user" and data else 0  # an agent begins everywhere with the same data
            self._add(member_id, _Member(kind, data or {}, 0, {connection: None}, version))
            return
        if here.kind != kind:
            if kind == "user":  # a person must not change the state that an agent shows
                raise Forbidden(f"member id {shown(member_id)} is an agent's in this channel; enter under another id")
            self._become_agent(member_id, here)
        is_new = connection not in here.connections
        if is_new and kind == "user" and here.shown()[1] - here.at(ended) >= MAX_CONNECTIONS:
            raise TooMany(
                f"member {shown(member_id)} has {MAX_CONNECTIONS} connections, which is the limit; close one of them "
                "first",
                limit=MAX_CONNECTIONS,
            )
        here.connections[connection] = None
        here.is_here = True
        is_changed = data is not None and not here.has(data)
        if is_new or is_changed:
            now_ms = self.own_changed()
            if data is not None and is_changed:
                here.change(data, now_ms)
            self._note(member_id, kind)

    def _add(self, member_id: str, here: _Member) -> None:
        if here.kind == "user":
            self._people += 1
            self._owned[client_of(member_id)] += 1
        self._members[member_id] = here
        self._note(member_id, here.kind, is_move=True)
        here.entered = self.position

    def _become_agent(self, member_id: str, here: _Member) -> None:
        """Make a person an agent: the connections of the person must not keep the agent present."""
        here.kind, here.connections, here.elsewhere = "agent", {}, None
        self._forget_person(member_id)

    def _check_room(self, member_id: str) -> None:
        """Raise TooMany if the channel, or the client of `member_id`, has reached its limit of members."""
        limit, people = self._limits.members, self._people + sum(self._unnamed.values())
        if people >= limit:
            raise TooMany(
                f"channel has {people} members, the limit is {limit} (Limits.members); try again later", limit=limit
            )
        if self._owned[client_of(member_id)] >= OWN_MEMBERS:
            raise TooMany(
                f"client {shown(client_of(member_id))} has {OWN_MEMBERS} members in this channel, which is the limit; "
                "leave with one of them first",
                limit=OWN_MEMBERS,
            )

    def _forget_person(self, member_id: str) -> None:
        client = client_of(member_id)
        self._people -= 1
        self._owned[client] -= 1
        if not self._owned[client]:
            del self._owned[client]

    def update(self, member_id: str, data: dict[str, Json]) -> None:
        """Set the data of a member if it is present."""
        here = self._members.get(member_id)
        if here is not None and here.is_here and not here.has(data):
            here.change(data, self.own_changed())
            self._note(member_id, here.kind)

    def disconnect(self, member_id: str, connection: Hashable) -> bool:
        """Remove one connection of a member. Return True if it was the last; the caller then calls `remove` later."""
        here = self._members.get(member_id)
        if here is None or connection not in here.connections:
            return False
        del here.connections[connection]
        if here.connections:
            self._note(member_id, here.kind)
            self.own_changed()
        return not here.connections

    def remove(self, member_id: str) -> None:
        """Remove a member of this node, unless it has a connection again."""
        here = self._members.get(member_id)
        if here is None or here.connections or not here.is_here:
            return
        here.is_here, here.data, here.version = False, {}, 0
        self._drop(member_id, here)
        self.own_changed()

    def _drop(self, member_id: str, here: _Member) -> None:
        """Remove a member, unless a node shows it still."""
        if here.is_here or here.elsewhere:
            self._note(member_id, here.kind)
            return
        del self._members[member_id]
        if here.kind == "user":
            self._forget_person(member_id)
        self._note(member_id, here.kind, entered=here.entered, is_move=True)

    # Other nodes

    def own(self) -> list[tuple[str, NodeMember]]:
        """Return the members of this node, agents first. Agents that never changed their data are left out."""
        found = [
            (one, here) for one, here in self._members.items() if here.is_here and (here.kind == "user" or here.version)
        ]
        found.sort(key=lambda one: one[1].kind == "user")
        return [  # a member in its grace period has no connection
            (one, NodeMember(here.kind, max(1, len(here.connections)), here.version, here.data)) for one, here in found
        ]

    def show(self, node: str, members: Mapping[str, NodeMember], unnamed: int = 0) -> None:
        """Show exactly `members`, and a number of `unnamed` people, as present at another node."""
        for member_id, member in members.items():
            self._show(node, member_id, member)
        for member_id, here in list(self._members.items()):
            if here.elsewhere and node in here.elsewhere and member_id not in members:
                del here.elsewhere[node]
                self._drop(member_id, here)
        is_changed = unnamed != self._unnamed.get(node, 0)
        self._unnamed.pop(node, None)
        if members or unnamed:
            self._unnamed[node] = unnamed
        if is_changed:  # only a `presence.sync` has the count
            self._is_held = True
            if not self._is_timed:
                self._sync_crowd()

    def _show(self, node: str, member_id: str, member: NodeMember) -> None:
        """Show `member` as present at another node. An agent displaces a person with its id, also one of this node."""
        here = self._members.get(member_id)
        if here is None:
            self._add(member_id, _Member(member.kind, {}, 0, is_here=False, elsewhere={node: member}))
            return
        if here.kind != member.kind:
            if member.kind == "user":
                return  # the agent with this id goes before the person
            self._become_agent(member_id, here)
            here.is_here = False
            self.own_changed()
        elif here.elsewhere is not None and here.elsewhere.get(node) == member:
            return
        before = here.shown()
        here.elsewhere = {**(here.elsewhere or {}), node: member}
        if here.shown() != before:
            self._note(member_id, here.kind)

    def signal(self, signal: Signal) -> None:
        """Send a signal to the current feeds."""
        size = len(encode_json(signal))
        self.position += 1
        self._signals.append((self.position, signal, size))
        self._signal_bytes += size
        while len(self._signals) > KEPT_SIGNALS or self._signal_bytes > KEPT_SIGNAL_BYTES:
            self._signal_bytes -= self._signals.pop(0)[2]
        self._changed()

    def member(self, member_id: str) -> Member | None:
        here = self._members.get(member_id)
        if here is None:
            return None
        data, connections = here.shown()
        return Member(id=member_id, kind=here.kind, data=data, connections=connections)

    def presence(self) -> Presence:
        """Return the members: agents first, then in order of entry, at most `NAMED`, with the count of all."""
        agents_first = sorted(self._members, key=lambda one: self._members[one].kind)
        named = [self.member(one) for one in agents_first[:NAMED]]
        return Presence(
            members=[one for one in named if one is not None], count=len(self._members) + sum(self._unnamed.values())
        )

    def since(self, position: int) -> list[EphemeralEvent]:
        """Return the changes since `position`, joined, and the signals."""
        events: list[EphemeralEvent] = []
        if position < self._floor:
            now = self.presence()
            events.append(PresenceSync(members=now.members, count=now.count))
        else:
            # members that a feed at `position` shows, and that have left since; they may be here again
            latest = takewhile(lambda stay: stay[1] > position, reversed(self._left))
            gone = {one for entered, _, one in latest if entered <= position}
            for member_id, changed in reversed(self._changes.items()):
                if changed <= position:
                    break
                event = self._event(member_id, position, was_here=member_id in gone)
                if event is not None:
                    events.append(event)
            events.reverse()
        events += [signal for at, signal, _ in self._signals if at > position]
        return events

    def _event(self, member_id: str, position: int, *, was_here: bool) -> EphemeralEvent | None:
        """Return the event of a member for a feed at `position`. `was_here`: the feed shows one that has left since."""
        member = self.member(member_id)
        if member is None:
            return PresenceLeave(id=member_id) if was_here else None
        if self._members[member_id].entered > position and not was_here:
            return PresenceEnter(member=member)
        return PresenceUpdate(member=member)

    # Notifying

    def _note(self, member_id: str, kind: Kind, *, entered: int | None = None, is_move: bool = False) -> None:
        """Record a change of a member, and notify now or later.

        `entered`: the member has left; this is the position at which it had entered. `is_move`: it came or left.
        """
        if is_move and kind == "user" and len(self._members) > CROWD_MEMBERS:
            self._moves += 1
            self._begin_second()
            self.is_crowd = self.is_crowd or self._is_crowded()
        if self.is_crowd and kind == "user":
            self._is_held = True
            if not self._is_timed:
                self._sync_crowd()
            return
        self.position += 1
        self._changes[member_id] = self.position
        self._changes.move_to_end(member_id)
        if entered is not None:
            self._left.append((entered, self.position, member_id))
            if len(self._left) > KEPT_LEFT:
                _, self._floor, gone = self._left.pop(0)
                if self._changes.get(gone) == self._floor:  # else it has come back, and perhaps left again
                    del self._changes[gone]
        self._changed()

    def _is_crowded(self) -> bool:
        return len(self._members) > NAMED or self._moves > CROWD_MOVES

    def _begin_second(self) -> None:
        """Begin a second of which the moves count, and in which changes of a crowd are held back, unless one runs."""
        if not self._is_timed:
            self._is_timed = True
            asyncio.get_running_loop().call_later(CROWD_S, self._second_over)

    def _second_over(self) -> None:
        """Decide anew whether the channel is a crowd, and send the changes that were held back."""
        self._is_timed = False
        self.is_crowd = self.is_crowd and self._is_crowded()
        self._moves = 0
        if self._is_held:
            self._sync_crowd()

    def _sync_crowd(self) -> None:
        """Send all members to all feeds, and hold back the changes of the next second."""
        self._is_held = False
        self._begin_second()
        self.position += 1
        self._floor = self.position  # every feed gets all members now, so the single changes are not needed any more
        self._changes.clear()
        self._left.clear()
        self._changed()
