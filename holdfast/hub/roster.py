"""Who is here, and what is said in passing: presence and signals of one channel.

You are in `hub`. Nothing here is stored. Like the log it is pulled: a feed holds a position, and what changed since
then is told joined, at most one event a member however often they came and went. What fell out of the bounds is told
as a whole (`presence.sync`); signals that a reader did not come for in time are lost.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable
from typing import Literal

from msgspec import Struct

from holdfast.core.errors import Forbidden, TooMany
from holdfast.core.events import (
    PassingEvent,
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

Kind = Literal["user", "agent"]
NAMED = 100  # members that are told by name; of the rest only the count
KEPT_LEFT = 1_000  # times that somebody left, so that it can be told
KEPT_SIGNALS = 256
KEPT_SIGNAL_BYTES = 64 * 1024
MAX_CONNECTIONS = 100  # of one person; of an agent there may be as many as there are sockets


class _Here(Struct):
    """A member, and since when."""

    kind: Kind
    data: dict[str, Json]
    entered: int
    connections: dict[Hashable, None] = {}


class Roster:
    """The members of a channel. `changed` is called after each change; time is its owner's business."""

    def __init__(self, limits: Limits, changed: Callable[[], None]) -> None:
        self.position = 0
        # Of what `position` is one: given by whoever first tells it to somebody who may come back with it. A roster is
        # gone with the hub, and when its channel leaves memory.
        self.life = ""
        self._limits = limits
        self._changed = changed
        self._members: dict[str, _Here] = {}
        self._changes: OrderedDict[str, int] = OrderedDict()  # member → position of the last change
        self._stays: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # member → when they came and left
        self._left: deque[str] = deque()  # the members of these stays, in the order in which they left
        self._floor = 0  # who has seen less is told all
        self._signals: deque[tuple[int, Signal, int]] = deque()
        self._signal_bytes = 0

    def __len__(self) -> int:
        return len(self._members)

    @property
    def has_people(self) -> bool:
        """Is anybody here who came by themselves? (An agent is everywhere.)"""
        return any(here.kind == "user" for here in self._members.values())

    def enter(self, member_id: str, kind: Kind, connection: Hashable, data: dict[str, Json] | None = None) -> None:
        """`member_id` is here by `connection`; `data` replaces what was known, None leaves it.

        Raises TooMany, and Forbidden where a person would be one with an agent.
        """
        here = self._members.get(member_id)
        if here is None:
            if len(self._members) >= self._limits.members:
                raise TooMany(f"a channel has at most {self._limits.members} members", limit=self._limits.members)
            self._note(member_id)
            self._members[member_id] = _Here(kind, data or {}, self.position, {connection: None})
        else:
            if here.kind != kind:
                if kind == "user":  # or anybody of that name could say what the agent does
                    raise Forbidden(f"{member_id!r} is an agent here")
                here.kind, here.connections = kind, {}  # nor does a person of that name keep it here when it is gone
            is_new = connection not in here.connections
            if is_new and kind == "user" and len(here.connections) >= MAX_CONNECTIONS:
                raise TooMany(f"a member has at most {MAX_CONNECTIONS} connections", limit=MAX_CONNECTIONS)
            here.connections[connection] = None
            if not is_new and (data is None or data == here.data):
                return
            if data is not None:
                here.data = data
            self._note(member_id)
        self._changed()

    def update(self, member_id: str, data: dict[str, Json]) -> None:
        """New data of somebody who is here; of somebody who is not, nothing."""
        here = self._members.get(member_id)
        if here is not None and here.data != data:
            here.data = data
            self._note(member_id)
            self._changed()

    def disconnect(self, member_id: str, connection: Hashable) -> bool:
        """One connection of a member is gone. True if it was the last: after a grace, `remove` follows."""
        here = self._members.get(member_id)
        if here is None or connection not in here.connections:
            return False
        del here.connections[connection]
        if here.connections:
            self._note(member_id)
            self._changed()
        return not here.connections

    def remove(self, member_id: str) -> None:
        """The member leaves, unless they are connected again."""
        here = self._members.get(member_id)
        if here is None or here.connections:
            return
        del self._members[member_id]
        self._note(member_id)
        self._stays[member_id].append((here.entered, self.position))
        self._left.append(member_id)
        while len(self._left) > KEPT_LEFT:
            self._forget_stay(self._left.popleft())
        self._changed()

    def signal(self, signal: Signal) -> None:
        """Say something to those who are here now."""
        size = len(encode_json(signal))
        self.position += 1
        self._signals.append((self.position, signal, size))
        self._signal_bytes += size
        while len(self._signals) > KEPT_SIGNALS or self._signal_bytes > KEPT_SIGNAL_BYTES:
            self._signal_bytes -= self._signals.popleft()[2]
        self._changed()

    def member(self, member_id: str) -> Member | None:
        """Somebody who is here."""
        here = self._members.get(member_id)
        if here is None:
            return None
        return Member(id=member_id, kind=here.kind, data=here.data, connections=max(1, len(here.connections)))

    def presence(self) -> Presence:
        """Who is here: agents and the first comers by name, and how many."""
        agents_first = sorted(self._members, key=lambda one: self._members[one].kind)
        named = [self.member(one) for one in agents_first[:NAMED]]
        return Presence(members=[one for one in named if one is not None], count=len(self._members))

    def since(self, position: int) -> list[PassingEvent]:
        """What changed since `position`, joined."""
        events: list[PassingEvent] = []
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

    def _event(self, member_id: str, position: int) -> PassingEvent | None:
        member = self.member(member_id)
        if member is None:
            return PresenceLeave(id=member_id) if self._was_here(member_id, position) else None
        if self._members[member_id].entered > position and not self._was_here(member_id, position):
            return PresenceEnter(member=member)
        return PresenceUpdate(member=member)

    def _was_here(self, member_id: str, position: int) -> bool:
        """Was it told up to `position` that the member is here? They may have left and come back since, and left."""
        return any(entered <= position < left for entered, left in self._stays.get(member_id, ()))

    def _forget_stay(self, member_id: str) -> None:
        stays = self._stays[member_id]
        _, left = stays.pop(0)
        self._floor = max(self._floor, left)
        if not stays:
            del self._stays[member_id]
            if member_id not in self._members:
                del self._changes[member_id]

    def _note(self, member_id: str) -> None:
        self.position += 1
        self._changes[member_id] = self.position
        self._changes.move_to_end(member_id)
