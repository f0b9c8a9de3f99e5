"""The ledger: who was heard of when, and what follows from it: leases, turns, commands and presence, over time.

Layer: simulation.

The truth knows no time; this does. It is told of every entry when it is stored, of every sign
of life that somebody gave, and of each connection's end, and says when something ends too early or too late. Where the
hub was held up (a process that was stopped, a store that was slow or down) nobody can say what it should have known,
so there nothing is said of what is early; and of what is late only once all is well. Where several hubs write, each
keeps deadlines of its own, so that only what the log itself says is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.core.ops import Claim, Command, Create, Delete, Entry, Finish, Lease, Reply, Takeover, Writer
from holdfast.core.turns import CANCEL_S
from holdfast.hub.leases import BROKEN_S
from holdfast.hub.presence import GRACE_S
from holdfast.stores.base import Write
from simulation.clock import START_MS, Process, VirtualLoop
from simulation.trace import Violation
from simulation.truth import Truth

if TYPE_CHECKING:
    from simulation.network import Connection

Place = tuple[str, str]  # a channel, and a message, command or member

SOON_S = 5.0  # within which the server does what is due, when all is well
EARLY_S = 0.01  # by which two clocks may differ
CROSSING_S = 1.0  # for what was sent on one connection to be overtaken by what is sent on another
TROUBLE_S = 0.3  # a store that takes longer holds the hub up
SKEWED_MS = 1_000


@dataclass
class Held:
    """A lease that somebody elsewhere has, of a message or of a turn."""

    generation: int
    term_s: float
    heard_s: float  # the last sign of life that the hub had for certain; it may have had a later one
    tried_s: float  # the last one that was given; the hub had none after it
    by: str | None = None
    node: str | None = None  # of whoever lives in a hub's process, and has no lease
    lines: list[Connection] = field(default_factory=list)  # the sockets that it was ever held by
    line: Connection | None = None  # the one that the last sign of life was given on; None: over HTTP
    answered: Connection | None = None  # the one that a sign of life was last answered on: the hub knows of it
    is_given: bool = True  # does its holder know of it?
    overdue_s: float = float("-inf")  # when a sign of life came that may have been too late


@dataclass
class Sent:
    """A command that waits for its answer."""

    op: Command
    stored_s: float


@dataclass
class Presence:
    """When somebody was connected, as far as that is certain: the end of one stretch, the beginning of the next."""

    here: dict[Connection, float] = field(default_factory=dict)  # acknowledged at
    left_s: list[float] = field(default_factory=list)  # when they said so, or had only a lease
    goodbyes: list[Connection] = field(default_factory=list)  # on which they said so: heard before the server is done


class Ledger:
    """What was due when. `live_node` gives the id of the one hub that runs, where there is but one."""

    def __init__(
        self, loop: VirtualLoop, truth: Truth, *, is_exclusive: bool, live_node: Callable[[], str | None]
    ) -> None:
        self.booted_s = 0.0  # the last boot of a hub
        self.well_s = float("inf")  # since then all is well
        self.is_served = False  # does every life of the hub begin with an agent for all channels?
        self.whispers: dict[str, float] = {}  # what was ever signalled, and when
        self.agents: dict[str, list[Connection]] = {}  # the sockets of agents, by name
        self._loop = loop
        self._truth = truth
        self._is_exclusive = is_exclusive
        self._live_node = live_node
        self._trouble_s = 0.0  # until then the hub was held up
        self._leases: dict[Place, Held] = {}
        self._turns: dict[Place, Held] = {}
        self._lines: dict[Place, list[Connection]] = {}  # on which anything was ever sent for a message
        self._last: dict[tuple[Place, int], Connection | None] = {}  # the one on which a generation was last
        self._commands: dict[Place, Sent] = {}
        self._stored_s: dict[Place, float] = {}  # when each command was stored last
        self._attempts: dict[tuple[str, str, int], int] = {}  # how often each was begun
        self._at_work: dict[Place, Process] = {}
        self._presence: dict[Place, Presence] = {}

    @property
    def is_busy(self) -> bool:
        """Does something end by itself, soon?"""
        is_due = not all(self._is_skewed(sent) for sent in self._commands.values())  # else in an hour, or a day
        return bool(self._turns or is_due or self._leases or any(self._waiting()))

    @property
    def busy_with(self) -> str:
        """What that is."""
        return f"leases {list(self._leases)}, turns {[*self._turns, *self._waiting()]}, commands {list(self._commands)}"

    # -- what happens ------------------------------------------------------------------------------------------

    def stored(self, write: Write) -> None:
        """The store took `write`, and the truth knows. Raises Violation."""
        for entry in write.entries:
            self._take(write.channel, entry)

    def forget(self, channels: Iterable[str]) -> None:
        """What was in `channels` is gone, or goes on as another life."""
        gone = set(channels)
        for known in (self._leases, self._turns, self._commands):
            for place in [place for place in known if place[0] in gone]:
                del known[place]

    def power_was_lost(self, channels: Iterable[str]) -> None:
        """The truth went back to what the store kept of `channels`: that has to end in time, too."""
        for channel in channels:
            self.forget([channel])
            life = self._truth.head(channel)
            for message in life.messages(life.serial):
                if message.status == "streaming":
                    generation = 1 + len(life.takeovers.get(message.id, []))
                    self._begin_lease((channel, message.id), generation, life.writers[message.id][-1][1])
            for message_id, turns in life.turns.items():
                _, state, attempt = turns[-1]
                if state == "taken" and not life.is_deleted(message_id):
                    self._begin_turn((channel, message_id), life.claims[message_id, attempt])
            for key, (_, command) in life.commands.items():
                if key not in life.replies:
                    self._commands[channel, key] = Sent(command, self._stored_s[channel, key])

    def booted(self) -> None:
        """A hub begins: what is due has all its time again."""
        self.booted_s = self._loop.time()

    def trouble(self, until_s: float) -> None:
        """The hub is held up."""
        self._trouble_s = max(self._trouble_s, until_s)

    def was_well(self, since_s: float) -> bool:
        """Was the hub held up by nothing since then?"""
        return self._trouble_s < since_s

    def tried(self, place: Place, line: Connection | None = None, *, generation: int = 1) -> None:
        """The writer of a message gives a sign of life: it sends something."""
        self._last[place, generation] = line
        if line is not None and line not in self._lines.setdefault(place, []):
            self._lines[place].append(line)
        self._tried(self._lease(place, generation), line)

    def heard(self, place: Place, sent_s: float, line: Connection | None = None, *, generation: int = 1) -> None:
        """What the writer sent at `sent_s` was accepted."""
        self._heard(self._lease(place, generation), sent_s, line)

    def answered(self, place: Place, line: Connection) -> None:
        """Its writer was told on `line` that something was accepted: the hub knows by what it writes."""
        held = self._lease(place, 1)
        if held is not None:
            held.answered = line

    def turn_tried(self, place: Place, generation: int, line: Connection) -> None:
        """As `tried`, of the agent that has attempt `generation` of a turn."""
        self._tried(self._turn(place, generation), line)

    def turn_heard(self, place: Place, generation: int, sent_s: float, line: Connection) -> None:
        """As `heard`, of a turn."""
        self._heard(self._turn(place, generation), sent_s, line)

    def given(self, place: Place, generation: int, stamp: int, line: Connection) -> None:
        """An agent elsewhere was given an attempt, by a frame of `stamp`. Raises Violation."""
        self._begin(place, generation, stamp)
        turn = self._turn(place, generation)
        if turn is not None:
            turn.is_given = True
            turn.lines.append(line)
            turn.line = line

    def begins(self, place: Place, generation: int, process: Process) -> None:
        """An agent in a hub's process begins an attempt. Raises Violation."""
        self._begin(place, generation, self._truth.stamp)
        other = self._at_work.get(place)
        if other is not None and other.is_alive:
            raise Violation(f"two are at work on {place} in {process.name}")
        self._at_work[place] = process
        turn = self._turn(place, generation)
        if turn is not None:
            turn.is_given = True

    def ends(self, place: Place) -> None:
        """That agent is done."""
        self._at_work.pop(place, None)

    def entered(self, place: Place, line: Connection) -> None:
        """Somebody was told that they are here by `line`."""
        self._presence.setdefault(place, Presence()).here[line] = self._loop.time()

    def left(self, place: Place, lease_s: float = 0.0, line: Connection | None = None) -> None:
        """Somebody leaves without a grace: says so, or has a lease that ends, at some time until `lease_s` from now.

        What they say on `line` a hub that is held up hears later.
        """
        known = self._presence.setdefault(place, Presence())
        known.left_s.append(self._loop.time() + lease_s)
        if line is not None:
            known.goodbyes.append(line)

    # -- what must hold ----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Every second: is something over that is not ended? Raises Violation."""
        now_s = self._loop.time()
        base_s = max(self.well_s, self.booted_s)
        if not self._is_exclusive or now_s < base_s:
            return
        for place, held in self._leases.items():
            limit_s = max(held.tried_s, base_s) + held.term_s
            line = held.line if held.line is held.answered else None
            if line is not None and line.ended_s is not None and line.process.is_alive:
                limit_s = min(limit_s, max(held.tried_s, base_s, line.ended_s) + BROKEN_S)
            if now_s > limit_s + SOON_S:
                raise Violation(f"{place} streams still, its writer was last heard of at {held.tried_s:.3f}: {held}")
        for place, sent in self._commands.items():
            since_s = max(sent.stored_s, base_s)
            if sent.op.name == "cancel" and now_s > since_s + CANCEL_S + SOON_S:
                raise Violation(f"the cancel {place} of {sent.op.target} was not carried out")
            if not self._is_skewed(sent) and now_s > max(self._expires_s(sent), since_s) + SOON_S:
                raise Violation(f"nobody answers the command {place}, which has expired")

    def check_leave(self, place: Place, attached_s: float) -> None:
        """A viewer that was attached at `attached_s` is told that a member left. Raises Violation."""
        known = self._presence.get(place)
        if not self._is_exclusive or known is None or any(left_s >= attached_s - GRACE_S for left_s in known.left_s):
            return
        if any(line.ended_s is None or line.ended_s >= attached_s - GRACE_S for line in known.goodbyes):
            return
        away_s = 0.0
        for line, entered_s in known.here.items():
            if not line.process.is_alive:
                continue  # of another life of the hub, which knew of nobody
            if entered_s - away_s >= GRACE_S - EARLY_S and entered_s >= attached_s - GRACE_S:
                return
            away_s = max(away_s, float("inf") if line.ended_s is None else line.ended_s)
        if self._loop.time() - away_s < GRACE_S - EARLY_S:
            raise Violation(f"{place} is said to have left; they were away for less than {GRACE_S} s, or not at all")

    # -- inside ------------------------------------------------------------------------------------------------

    def _take(self, channel: str, entry: Entry) -> None:
        op = entry.op
        place = (channel, op.id)
        match op:
            case Create() if op.status == "streaming":
                self._begin_lease(place, 1, op.writer)
            case Create() if self.is_served and op.role == "user" and not op.is_pending:
                raise Violation(f"{place} waits for no agent, though one is there")
            case Takeover():
                self._begin_lease(place, op.generation, op.writer)
            case Lease():
                if place in self._leases:
                    self._leases[place].term_s = op.lease_ms / 1000
                self._stored_for(place)
            case Finish():
                held = self._leases.pop(place, None)
                if held is not None and op.status == "interrupted" and op.reason == "writer_gone":
                    self._check_not_early(place, held)
            case Delete():
                self._leases.pop(place, None)
                self._turns.pop(place, None)
            case Claim():
                self._take_claim(place, op)
            case Command():
                self._stored_s[place] = self._loop.time()
                self._commands[place] = Sent(op, self._stored_s[place])
            case Reply():
                self._take_reply(place, op, entry.serial)
            case _:
                self._stored_for(place)

    def _begin_lease(self, place: Place, generation: int, writer: Writer | None) -> None:
        if writer is None or writer.node is not None or not writer.lease_ms:
            self._leases.pop(place, None)
            return
        now_s = self._loop.time()
        held = self._leases[place] = Held(generation, writer.lease_ms / 1000, now_s, now_s, writer.by)
        held.lines = self._lines.setdefault(place, [])
        held.line = self._last.get((place, generation))

    def _stored_for(self, place: Place) -> None:
        """Something of a message's writer was stored."""
        self._heard(self._leases.get(place), self._loop.time(), None)

    def _tried(self, held: Held | None, line: Connection | None) -> None:
        if held is not None:
            held.tried_s, held.line = self._loop.time(), line
            if line is not None and line not in held.lines:
                held.lines.append(line)

    def _heard(self, held: Held | None, sent_s: float, line: Connection | None) -> None:
        if held is not None:
            if self._may_end(held):
                held.overdue_s = self._loop.time()
            held.heard_s = max(held.heard_s, sent_s)
            held.tried_s = max(held.tried_s, self._loop.time())
            if line is not None:
                held.answered = line
                if line not in held.lines:
                    held.lines.append(line)

    def _check_not_early(self, place: Place, held: Held) -> None:
        """`held` is ended now, because its holder is not heard of. Raises Violation if it was."""
        if self._is_exclusive and not self._may_end(held) and self._loop.time() - held.overdue_s > CROSSING_S:
            raise Violation(f"{place} ends at {self._loop.time():.3f}, though its holder was heard of: {held}")

    def _may_end(self, held: Held) -> bool:
        """Was its holder not heard of for its term, or for less since the socket broke by which it was held?"""
        now_s = self._loop.time()
        if not held.is_given:
            return True  # nobody is at work on it, nor knows of it
        if self._trouble_s >= held.heard_s or now_s >= max(held.heard_s, self.booted_s) + held.term_s - EARLY_S:
            return True
        for line in held.lines:
            if line.ended_s is None or not line.process.is_alive:
                continue  # one that ended with another life of the hub, be it in this moment, shortens nothing
            if line is not held.line and line.sent_s + CROSSING_S < held.heard_s:
                continue  # another has held it since
            if now_s >= line.ended_s + min(held.term_s, BROKEN_S) - EARLY_S:
                return True
        return False

    def _lease(self, place: Place, generation: int) -> Held | None:
        lease = self._leases.get(place)
        return lease if lease is not None and lease.generation == generation else None

    def _turn(self, place: Place, generation: int) -> Held | None:
        turn = self._turns.get(place)
        return turn if turn is not None and turn.generation == generation else None

    def _take_claim(self, place: Place, op: Claim) -> None:
        before = self._turns.pop(place, None)
        if op.state != "taken":
            return
        if before is not None and self._is_exclusive:
            if before.is_given and before.node is not None and before.node == self._live_node():
                raise Violation(f"{place} is given to {op.by}, though {before.by} is at work on it, here and alive")
            if before.node is None:
                self._check_not_early(place, before)
        self._begin_turn(place, op)

    def _begin_turn(self, place: Place, op: Claim) -> None:
        now_s = self._loop.time()
        turn = self._turns[place] = Held(op.generation, op.lease_ms / 1000, now_s, now_s, op.by, op.node)
        turn.is_given = False
        turn.lines += self.agents.get(op.by or "", [])

    def _begin(self, place: Place, generation: int, stamp: int) -> None:
        """An attempt begins. It may once in each life of the channel; which one it is of, its agent is not told."""
        claims = 0
        for life in self._truth.lives_between(place[0], 0, stamp):
            claims += any(
                (state, number) == ("taken", generation) and life.is_stored(serial, stamp)
                for serial, state, number in life.turns.get(place[1], [])
            )
        attempt = (*place, generation)
        self._attempts[attempt] = begun = self._attempts.get(attempt, 0) + 1
        if not claims:
            raise Violation(f"attempt {generation} of {place} was given before that was stored")
        if begun > claims:
            raise Violation(f"attempt {generation} of {place} was given a second time")

    def _waiting(self) -> Iterable[Place]:
        """Messages that wait for an agent."""
        for channel in self._truth.channels:
            for message_id, turns in self._truth.head(channel).turns.items():
                if turns[-1][1] == "pending" and not self._truth.head(channel).is_deleted(message_id):
                    yield channel, message_id

    def _take_reply(self, place: Place, op: Reply, serial: int) -> None:
        sent = self._commands.pop(place, None)
        if sent is None:
            return
        is_expiry = op.by is None and isinstance(op.error, dict) and op.error.get("code") == "expired"
        if is_expiry and not self._is_skewed(sent) and self._loop.time() < self._expires_s(sent) - EARLY_S:
            raise Violation(f"{place} is said to have expired, {self._expires_s(sent) - self._loop.time():.3f} s early")
        if sent.op.name == "cancel" and op.ok:
            life = self._truth.head(place[0])
            for message in life.messages(serial):
                if op.by is not None and life.takeovers.get(message.id):
                    continue  # an agent speaks for what it writes itself, which this may not be any more; …
                # … the server carries out all of it.
                answers = (message.id, message.reply_to) if op.by is None else (message.id,)
                if message.status == "streaming" and sent.op.target in answers:
                    raise Violation(f"{place} is said to be carried out, and {message.id} streams on")

    def _expires_s(self, sent: Sent) -> float:
        return sent.stored_s + (sent.op.expires_ms - sent.op.at_ms) / 1000 - self._lag_s(sent)

    def _lag_s(self, sent: Sent) -> float:
        return max(0.0, sent.stored_s - (sent.op.at_ms - START_MS) / 1000)

    def _is_skewed(self, sent: Sent) -> bool:
        """Did a wall clock that was set have a say in when it expires?"""
        return self.is_skewed or abs(sent.op.at_ms - START_MS - sent.stored_s * 1000) > 60 * SKEWED_MS

    is_skewed = False  # is the hub's clock set back or forth now?
