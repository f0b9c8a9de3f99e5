"""Who is here, and what is said in passing: presence and signals of one channel.

Layer: hub.

Nothing here is stored. Like the log it is pulled: a feed holds a position, and what changed since
then is told joined, at most one event a member however often they came and went. What fell out of the bounds is told
as a whole (`presence.sync`); signals that a reader did not come for in time are lost.

Where there is a crowd (more members than are told by name, or fewer who come and go all the time), people are told as a
whole, at most once a second: what a thousand of them do would else be thousands of events for each of a thousand
viewers. The agents among them are still told one by one: they are few, and what they do is what people watch.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable
from typing import Literal

from msgspec import Struct

from holdfast.core.errors import Forbidden, TooMany
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
NAMED = 100  # members that are told by name; of the rest only the count
CROWD_S = 1.0  # a crowd is told once in so long
CROWD_MOVES = 4  # so many who come and go in that time are no crowd yet, …
CROWD_MEMBERS = 20  # … and so few are none however often they do
OWN_MEMBERS = 100  # of one client, in one channel: its id, and that with `~` and suffixes
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


class PresenceState:
    """The members of a channel. `changed` is called when there is something to tell; leases are its owner's business.

    `later(seconds, callback)` is the loop's `call_later`.
    """

    def __init__(
        self,
        limits: Limits,
        changed: Callable[[], None],
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self.position = 0
        # Random id of this instance; positions of another instance are not comparable. Assigned on first use by
        # long poll. An instance ends with its hub, or when its channel leaves memory.
        self.life = ""
        self._limits = limits
        self._changed = changed
        self._later = later or _call_later
        self._members: dict[str, _Here] = {}
        self._people = 0  # of the members, those who are no agents
        self._owned: Counter[str] = Counter()  # client → how many of these are theirs
        self._is_crowd = False
        self._is_held = False  # has a crowd done what it was not told of yet?
        self._is_timed = False  # does a second run that says when it may be?
        self._moves = 0  # how many people came and went in it
        self._changes: OrderedDict[str, int] = OrderedDict()  # member → position of the last change
        self._stays: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # member → when they came and left
        self._left: deque[str] = deque()  # the members of these stays, in the order in which they left
        self._floor = 0  # who has seen less is told all
        self._signals: deque[tuple[int, Signal, int]] = deque()
        self._signal_bytes = 0

    def __len__(self) -> int:
        return len(self._members)

    def close(self) -> None:
        """Tell of no change any more, and hold on to nobody who was told."""
        self._changed = _nobody

    @property
    def has_people(self) -> bool:
        """Is anybody here who came by themselves? (An agent is everywhere.)"""
        return self._people > 0

    def enter(self, member_id: str, kind: Kind, connection: Hashable, data: dict[str, Json] | None = None) -> None:
        """`member_id` is here by `connection`; `data` replaces what was known, None leaves it.

        Raises TooMany, and Forbidden where a person would be one with an agent. An agent is never one too many: what
        people take up of a channel must not hide who answers in it.
        """
        here = self._members.get(member_id)
        if here is None:
            if kind == "user":
                self._check_room(member_id)
                self._people += 1
                self._owned[client_of(member_id)] += 1
            here = self._members[member_id] = _Here(kind, data or {}, 0, {connection: None})
            self._note(member_id, kind, is_move=True)
            here.entered = self.position
            return
        if here.kind != kind:
            if kind == "user":  # or anybody of that name could say what the agent does
                raise Forbidden(f"{member_id!r} is an agent here")
            here.kind, here.connections = kind, {}  # nor does a person of that name keep it here when it is gone
            self._forget_person(member_id)
        is_new = connection not in here.connections
        if is_new and kind == "user" and len(here.connections) >= MAX_CONNECTIONS:
            raise TooMany(f"a member has at most {MAX_CONNECTIONS} connections", limit=MAX_CONNECTIONS)
        here.connections[connection] = None
        if is_new or (data is not None and data != here.data):
            here.data = here.data if data is None else data
            self._note(member_id, kind)

    def _check_room(self, member_id: str) -> None:
        """Raises TooMany where there is no room for one more person, or for one more of that client."""
        if self._people >= self._limits.members:
            raise TooMany(f"a channel has at most {self._limits.members} members", limit=self._limits.members)
        if self._owned[client_of(member_id)] >= OWN_MEMBERS:
            raise TooMany(f"a client is at most {OWN_MEMBERS} members of a channel", limit=OWN_MEMBERS)

    def _forget_person(self, member_id: str) -> None:
        client = client_of(member_id)
        self._people -= 1
        self._owned[client] -= 1
        if not self._owned[client]:
            del self._owned[client]

    def update(self, member_id: str, data: dict[str, Json]) -> None:
        """New data of somebody who is here; of somebody who is not, nothing."""
        here = self._members.get(member_id)
        if here is not None and here.data != data:
            here.data = data
            self._note(member_id, here.kind)

    def disconnect(self, member_id: str, connection: Hashable) -> bool:
        """One connection of a member is gone. True if it was the last: after a grace, `remove` follows."""
        here = self._members.get(member_id)
        if here is None or connection not in here.connections:
            return False
        del here.connections[connection]
        if here.connections:
            self._note(member_id, here.kind)
        return not here.connections

    def remove(self, member_id: str) -> None:
        """The member leaves, unless they are connected again."""
        here = self._members.get(member_id)
        if here is None or here.connections:
            return
        del self._members[member_id]
        if here.kind == "user":
            self._forget_person(member_id)
        self._note(member_id, here.kind, entered=here.entered, is_move=True)

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

    def since(self, position: int) -> list[EphemeralEvent]:
        """What changed since `position`, joined."""
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
        """Was it told up to `position` that the member is here? They may have left and come back since, and left."""
        return any(entered <= position < left for entered, left in self._stays.get(member_id, ()))

    def _forget_stay(self, member_id: str) -> None:
        stays = self._stays[member_id]
        _, left = stays.pop(0)
        self._floor = max(self._floor, left)
        if not stays:
            del self._stays[member_id]
            if member_id not in self._members:
                self._changes.pop(member_id, None)

    # What is told when

    def _note(self, member_id: str, kind: Kind, *, entered: int | None = None, is_move: bool = False) -> None:
        """Something is new of a member: tell it, or hold it back. `entered`: they left, and were here since then."""
        if is_move and kind == "user" and len(self._members) > CROWD_MEMBERS:
            self._moves += 1
            self._run_second()
            self._is_crowd = self._is_crowd or self._is_crowded()
        if self._is_crowd and kind == "user":
            self._is_held = True
            if not self._is_timed:
                self._tell_crowd()
            return
        self.position += 1
        self._changes[member_id] = self.position
        self._changes.move_to_end(member_id)
        if entered is not None:
            self._stays[member_id].append((entered, self.position))
            self._left.append(member_id)
            while len(self._left) > KEPT_LEFT:
                self._forget_stay(self._left.popleft())
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
            self._tell_crowd()

    def _tell_crowd(self) -> None:
        """Tell everybody who is here; what comes within the next second is held back."""
        self._is_held = False
        self._run_second()
        self.position += 1
        self._floor = self.position  # whoever has seen less is told all, so nobody's way here need be known
        self._changes.clear()
        self._stays.clear()
        self._left.clear()
        self._changed()


def _nobody() -> None:
    """Whom a closed presence_state tells."""


def _call_later(delay_s: float, callback: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay_s, callback)
