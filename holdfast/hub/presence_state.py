"""Presence and signals of one channel.

Layer: hub.

Presence and signals are ephemeral: they are not stored. As with the log, a feed holds a position and takes the changes
since then, joined to at most one event per member. A feed whose position is older than the kept changes gets all
members at once (`presence.sync`), and misses the signals that are no longer kept.

A crowd is a channel with more members than are listed by name, or with people who constantly come and go. Changes of
people in a crowd are sent as one `presence.sync`, at most once a second: otherwise a thousand members would cause
thousands of events for each of a thousand viewers. Changes of agents are still sent one by one: agents are few, and
viewers follow their state.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from typing import Literal

from msgspec import Struct

from holdfast.core.errors import Forbidden, TooMany, shown
from holdfast.core.events import (
    EphemeralEvent,
    Presence,
    PresenceEnter,
    PresenceLeave,
    PresenceSync,
    PresenceUpdate,
    Signal,
    encode_json,
)
from holdfast.core.limits import Limits
from holdfast.core.model import Json, Member
from holdfast.core.names import client_of

Kind = Literal["user", "agent"]
NAMED = 100  # number of members that are listed by name; the others are only counted
CROWD_S = 1.0  # least time between two `presence.sync` events of a crowd
CROWD_MOVES = 4  # a channel is a crowd if more people than this enter or leave within that time
CROWD_MEMBERS = 20  # a crowd has more members than this
OWN_MEMBERS = 100  # limit of members of one client in one channel: its id, and its id with `~` and suffixes
KEPT_LEFT = 1_000  # number of departed members for which feeds can still get single `presence.leave` events
KEPT_SIGNALS = 256
KEPT_SIGNAL_BYTES = 64 * 1024
MAX_CONNECTIONS = 100  # limit of connections of one person; the connections of an agent are limited by its sockets


class _Member(Struct):
    """A member, and the position at which it entered."""

    kind: Kind
    data: dict[str, Json]
    entered: int
    connections: dict[Hashable, None] = {}


class PresenceState:
    """The members and recent signals of a channel. It calls `changed` after each change; its owner handles leases.

    `position` rises with each change. `later(seconds, callback)` is the loop's `call_later`.
    """

    def __init__(
        self,
        limits: Limits,
        changed: Callable[[], None],
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.position = 0
        # Random id of this instance; positions of another instance are not comparable. Assigned when a long poll first
        # needs it. An instance ends with its hub, or when its channel leaves memory.
        self.epoch = ""
        self._limits = limits
        self._changed = changed
        self._later = later or _call_later
        self._members: dict[str, _Member] = {}
        self._people = 0  # number of members that are people, not agents
        self._owned: Counter[str] = Counter()  # number of members of each client
        self._is_crowd = False
        self._is_held = False  # True: changes of a crowd have not been sent yet
        self._is_timed = False  # True: a timer for the next `presence.sync` runs
        self._moves = 0  # number of people who entered or left since the last `presence.sync`
        self._changes: OrderedDict[str, int] = OrderedDict()  # for each member the position of its last change
        self._stays: defaultdict[str, list[tuple[int, int]]] = defaultdict(
            list
        )  # for each departed member the positions of its enter and leave
        # The departed members, in order of leaving. As the signals, a short list: an empty deque takes 760 B a channel.
        self._left: list[str] = []
        self._floor = 0  # a feed at a lower position gets all members at once
        self._signals: list[tuple[int, Signal, int]] = []
        self._signal_bytes = 0

    def __len__(self) -> int:
        return len(self._members)

    def close(self) -> None:
        """Stop notifying and drop the callback reference."""
        self._changed = _ignore

    @property
    def has_people(self) -> bool:
        """Return whether a person is present. Agents do not count: they are members of all channels that they serve."""
        return self._people > 0

    def enter(self, member_id: str, kind: Kind, connection: Hashable, data: dict[str, Json] | None = None) -> None:
        """Enter `member_id` by `connection`; `data` replaces the member's data, None keeps it.

        Raises TooMany, and Forbidden if a person would enter under an agent's id. Agents are not limited: a full
        channel must not hide the agent that answers in it.
        """
        here = self._members.get(member_id)
        if here is None:
            if kind == "user":
                self._check_room(member_id)
                self._people += 1
                self._owned[client_of(member_id)] += 1
            here = self._members[member_id] = _Member(kind, data or {}, 0, {connection: None})
            self._note(member_id, kind, is_move=True)
            here.entered = self.position
            return
        if here.kind != kind:
            if kind == "user":  # a person must not change the state that an agent shows
                raise Forbidden(f"member id {shown(member_id)} is an agent's in this channel; enter under another id")
            here.kind, here.connections = kind, {}  # connections of the person must not keep the agent present
            self._forget_person(member_id)
        is_new = connection not in here.connections
        if is_new and kind == "user" and len(here.connections) >= MAX_CONNECTIONS:
            raise TooMany(
                f"member {shown(member_id)} has {MAX_CONNECTIONS} connections, which is the limit; close one of them "
                "first",
                limit=MAX_CONNECTIONS,
            )
        here.connections[connection] = None
        if is_new or (data is not None and data != here.data):
            here.data = here.data if data is None else data
            self._note(member_id, kind)

    def _check_room(self, member_id: str) -> None:
        """Raise TooMany if the channel, or the client of `member_id`, has reached its limit of members."""
        limit = self._limits.members
        if self._people >= limit:
            raise TooMany(
                f"channel has {self._people} members, the limit is {limit} (Limits.members); try again later",
                limit=limit,
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
        if here is not None and here.data != data:
            here.data = data
            self._note(member_id, here.kind)

    def disconnect(self, member_id: str, connection: Hashable) -> bool:
        """Remove one connection of a member. Return True if it was the last; the caller then calls `remove` later."""
        here = self._members.get(member_id)
        if here is None or connection not in here.connections:
            return False
        del here.connections[connection]
        if here.connections:
            self._note(member_id, here.kind)
        return not here.connections

    def remove(self, member_id: str) -> None:
        """Remove a member, unless it has a connection again."""
        here = self._members.get(member_id)
        if here is None or here.connections:
            return
        del self._members[member_id]
        if here.kind == "user":
            self._forget_person(member_id)
        self._note(member_id, here.kind, entered=here.entered, is_move=True)

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
        """Return a member, or None if it is not present."""
        here = self._members.get(member_id)
        if here is None:
            return None
        return Member(id=member_id, kind=here.kind, data=here.data, connections=max(1, len(here.connections)))

    def presence(self) -> Presence:
        """Return the members: agents first, then in order of entry, at most `NAMED`, with the count of all."""
        agents_first = sorted(self._members, key=lambda one: self._members[one].kind)
        named = [self.member(one) for one in agents_first[:NAMED]]
        return Presence(members=[one for one in named if one is not None], count=len(self._members))

    def since(self, position: int) -> list[EphemeralEvent]:
        """Return the changes since `position`, joined, and the signals."""
        events: list[EphemeralEvent] = []
        if position < self._floor:
            now = self.presence()
            events.append(PresenceSync(members=now.members, count=now.count))
        else:
            for member_id, changed in reversed(self._changes.items()):
                if changed <= position:
                    break
                event = self._event(member_id, position)
                if event is not None:
                    events.append(event)
            events.reverse()
        events += [signal for at, signal, _ in self._signals if at > position]
        return events

    def _event(self, member_id: str, position: int) -> EphemeralEvent | None:
        member = self.member(member_id)
        if member is None:
            return PresenceLeave(id=member_id) if self._was_here(member_id, position) else None
        if self._members[member_id].entered > position and not self._was_here(member_id, position):
            return PresenceEnter(member=member)
        return PresenceUpdate(member=member)

    def _was_here(self, member_id: str, position: int) -> bool:
        """Return whether a feed at `position` shows the member. It may have left, returned, and left again since."""
        return any(entered <= position < left for entered, left in self._stays.get(member_id, ()))

    def _forget_stay(self, member_id: str) -> None:
        stays = self._stays[member_id]
        _, left = stays.pop(0)
        self._floor = max(self._floor, left)
        if not stays:
            del self._stays[member_id]
            if member_id not in self._members:
                self._changes.pop(member_id, None)

    # Notifying

    def _note(self, member_id: str, kind: Kind, *, entered: int | None = None, is_move: bool = False) -> None:
        """Record a change of a member, and notify now or later.

        `entered`: the member has left; this is the position at which it had entered.
        """
        if is_move and kind == "user" and len(self._members) > CROWD_MEMBERS:
            self._moves += 1
            self._run_second()
            self._is_crowd = self._is_crowd or self._is_crowded()
        if self._is_crowd and kind == "user":
            self._is_held = True
            if not self._is_timed:
                self._sync_crowd()
            return
        self.position += 1
        self._changes[member_id] = self.position
        self._changes.move_to_end(member_id)
        if entered is not None:
            self._stays[member_id].append((entered, self.position))
            self._left.append(member_id)
            while len(self._left) > KEPT_LEFT:
                self._forget_stay(self._left.pop(0))
        self._changed()

    def _is_crowded(self) -> bool:
        return len(self._members) > NAMED or self._moves > CROWD_MOVES

    def _run_second(self) -> None:
        if not self._is_timed:
            self._is_timed = True
            self._later(CROWD_S, self._second_over)

    def _second_over(self) -> None:
        self._is_timed = False
        self._is_crowd = self._is_crowd and self._is_crowded()
        self._moves = 0
        if self._is_held:
            self._sync_crowd()

    def _sync_crowd(self) -> None:
        """Send all members to all feeds, and hold back the changes of the next second."""
        self._is_held = False
        self._run_second()
        self.position += 1
        self._floor = self.position  # every feed gets all members now, so the single changes are not needed any more
        self._changes.clear()
        self._stays.clear()
        self._left.clear()
        self._changed()


def _ignore() -> None:
    """Do nothing. Used as the callback after `close`."""


def _call_later(delay_s: float, callback: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay_s, callback)
