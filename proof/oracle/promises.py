"""Promises: leases, turns, commands and presence end in time, neither early nor late.

Layer: oracle.

The log knows no time. `Promises` receives each stored entry, each sign of life of a holder and the end of each
connection, and raises Violation for an end that comes too early or too late. A hub that is held up (its process is
stopped, its store is slow or down) cannot know of a sign of life. So no end is too early then, and an end is too late
only once the faults are over. Hubs that share a store keep deadlines of their own: of those only the log is judged.

`NodeLeases` receives each renewal and each write that a shared store has carried out, with their times: no node
recovers a message whose writer lives, and no message outlives the lease of its writer's node. `Members` judges
presence: hubs that share a store show one another's members a moment later, and those of a stopped
node leave with its lease.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from proof.oracle import Violation
from proof.oracle.log import STEP, EpochLog, StoredLogs
from tenuto.core.ops import (
    Append,
    Claim,
    Command,
    Create,
    Delete,
    Entry,
    Finish,
    Lease,
    Op,
    Reply,
    Takeover,
    WriterIdentity,
)
from tenuto.core.turns import CANCEL_S
from tenuto.hub.leases import BROKEN_S
from tenuto.hub.people.presence_state import GRACE_S
from tenuto.stores.base import Write

TERM_S = 4.0  # length of the lease of a node
RENEW_S = 1.0  # time between two renewals
LATE_S = 90.0  # with faults a recovery may be stored this long after its node has read the leases
READ_S = 3.0  # the same without faults


class NodeLeases:
    """The leases of all nodes, as the store has carried them out."""

    def __init__(self, now_s: Callable[[], float], stored: StoredLogs) -> None:
        self._now_s = now_s
        self._stored = stored
        self._until_s: dict[str, float] = {}  # for each node the end of its lease
        self._since_s: dict[str, float] = {}  # for each node when its lease began that has not expired since
        # for each node the nodes that had no lease when it read the leases, each with the time of the last such read
        self._missed_s: dict[str, dict[str, float]] = {}
        self._changed_s = 0.0  # when a node last began or stopped
        self.steady_s = float("inf")  # time since which at most one node stops
        self.stopped_s = float("-inf")  # when a node last stopped, or the store lost the leases

    def hold(self, node: str, term_ms: int) -> None:
        """Take a renewal."""
        now_s = self._now_s()
        if not self.is_alive(node):
            self._changed_s = self._since_s[node] = now_s
        elif self._until_s[node] - TERM_S < self.stopped_s:  # no renewal before this one told the node of it
            self._changed_s = now_s
        self._until_s[node] = now_s + (term_ms - 1) / 1000  # a store may count in whole milliseconds
        self._missed_s.setdefault(node, {}).update({one: now_s for one in self._until_s if not self.is_alive(one)})

    def note_stop(self) -> None:
        """Note that a process dies or is suspended, or that the store loses all leases: a recovery may wait a term."""
        self._changed_s = self.stopped_s = self._now_s()

    def since_s(self, node: str) -> float:
        """Return when the lease of `node` began, or infinity if it does not run."""
        return self._since_s[node] if self.is_alive(node) else float("inf")

    @property
    def oldest_s(self) -> float:
        """Return when the oldest lease began that runs, or infinity if none does."""
        return min(map(self.since_s, self._since_s), default=float("inf"))

    @property
    def known_s(self) -> float:
        """Return when the other nodes know all that a node knew which has stopped."""
        return self.stopped_s + TERM_S + RENEW_S

    def is_alive(self, node: str) -> bool:
        """Return whether the lease of `node` runs."""
        return self._until_s.get(node, 0.0) > self._now_s()

    def check_write(self, who: str | None, write: Write, *, is_healthy: bool) -> None:
        """Check the recoveries in `write` of node `who`, before the log takes it. Raises Violation."""
        log = self._stored.head(write.channel)
        for entry in write.entries:
            op = entry.op
            owner = _writer(log, op.id)
            if owner is None or owner.node is None or owner.node == who or not isinstance(op, Finish | Takeover):
                continue
            message = log.now(op.id)
            if message is None or message.status != "streaming":
                continue  # an agent continues an answer that has ended
            if isinstance(op, Takeover) and (op.writer is None or op.writer.node is None or not _is_author(log, op)):
                continue  # a client takes the message over
            if isinstance(op, Finish) and op.status != "interrupted":
                continue
            read_s = self._missed_s.get(who or "", {}).get(owner.node, float("-inf"))
            if read_s < self._now_s() - (READ_S if is_healthy else LATE_S):
                raise Violation(f"{who} recovers {write.channel}/{op.id}, though node {owner.node} was alive")

    def check_due(self, healthy_s: float) -> None:
        """Check that no message streams long after the lease of its node. Raises Violation."""
        now_s = self._now_s()
        base_s = max(healthy_s, self._changed_s + RENEW_S + TERM_S)
        for message, node in self.orphans(self._stored.channels):
            if now_s > max(base_s, self._until_s.get(node, 0.0)) + SOON_S:
                raise Violation(f"{message} still streams, though the lease of {node} has expired")

    def orphans(self, channels: Iterable[str]) -> Iterable[tuple[str, str]]:
        """Yield each streaming message whose writer's node has no lease, with that node."""
        for channel in channels:
            log = self._stored.head(channel)
            for message in log.messages(log.serial):
                owner = _writer(log, message.id)
                node = owner.node if owner is not None and message.status == "streaming" else None
                if node is not None and not self.is_alive(node):
                    yield f"{channel}/{message.id}", node


def _is_author(log: EpochLog, op: Takeover) -> bool:
    """Return whether the new writer bears the name of the message's first one, as in a recovery."""
    first = log.writers[op.id][0][1]
    return op.writer is not None and first is not None and first.by == op.writer.by


def _writer(log: EpochLog, message_id: str) -> WriterIdentity | None:
    known = log.writers.get(message_id)
    return known[-1][1] if known else None


Place = tuple[str, str]  # a channel, and the id of a message, command or member

EARLY_S = 0.01  # tolerated difference between two clocks
SEEN_S = 1.5  # hubs on one store see an entry of another within this time, without faults
STEADY_S = 10.0  # a fault of a node or of the store moves members for this time: a term of a lease, the grace, and rest


class Process(Protocol):
    """A process of the simulation."""

    name: str
    is_alive: bool
    is_held: bool  # True: it is paused
    pauses: int  # number of times that it was paused


class Connection(Protocol):
    """A connection of the simulation: its hub, when it ended, and when its client last sent a request."""

    @property
    def process(self) -> Process: ...

    ended_s: float | None
    sent_s: float


@dataclass
class Presence:
    """The times at which a member was connected, as far as they are certain."""

    entered_s: dict[Connection, float] = field(default_factory=dict)  # when the server acknowledged the entry
    left_s: list[float] = field(default_factory=list)  # when the member left, or had only a lease
    leaving: list[Connection] = field(default_factory=list)  # connections on which it left: the hub may read that late


class Members:
    """The stays of all members."""

    def __init__(self, now_s: Callable[[], float], trouble_s: Callable[[], float], *, is_exclusive: bool) -> None:
        """`trouble_s` returns the time until which a hub was held up."""
        # returns when a node last stopped, or lost its lease
        self.stopped_s: Callable[[], float] = lambda: float("-inf")
        self._now_s = now_s
        self._trouble_s = trouble_s
        self._is_exclusive = is_exclusive
        self._presence: dict[Place, Presence] = {}

    def note_entered(self, place: Place, connection: Connection) -> None:
        """Note that the server has acknowledged a member's entry on `connection`."""
        self._presence.setdefault(place, Presence()).entered_s[connection] = self._now_s()

    def note_left(self, place: Place, lease_s: float = 0.0, connection: Connection | None = None) -> None:
        """Note that a member leaves without a grace: by a request, or by a lease that ends within `lease_s`.

        A hub that is held up reads the request on `connection` later.
        """
        known = self._presence.setdefault(place, Presence())
        known.left_s.append(self._now_s() + lease_s)
        if connection is not None:
            known.leaving.append(connection)

    def check_leave(self, place: Place, attached_s: float) -> None:
        """Check a `presence.leave` that a viewer received, which attached at `attached_s`. Raises Violation."""
        known = self._presence.get(place)
        if known is None or any(left_s >= attached_s - GRACE_S for left_s in known.left_s):
            return
        if not self._is_exclusive and max(self._trouble_s(), self.stopped_s()) >= self._now_s() - STEADY_S:
            return  # the members of a node whose lease has ended leave
        if any(one.ended_s is None or one.ended_s >= attached_s - GRACE_S for one in known.leaving):
            return
        away_s, early_s = 0.0, EARLY_S if self._is_exclusive else SEEN_S
        for connection, entered_s in known.entered_s.items():
            if not connection.process.is_alive or (connection.process.is_held and not self._is_exclusive):
                continue  # the hub of an earlier run has lost its members, and so may one whose lease has ended
            if entered_s - away_s >= GRACE_S - early_s and entered_s >= attached_s - GRACE_S:
                return
            away_s = max(away_s, float("inf") if connection.ended_s is None else connection.ended_s)
        if self._now_s() - away_s < GRACE_S - EARLY_S:
            raise Violation(f"presence.leave of {place} was sent, though the member was away for less than {GRACE_S} s")


SOON_S = 2.0  # without faults the server ends a due lease, turn or command, or recovers a message, within this time
# a frame on one connection may arrive by this much earlier than a frame that was sent before it on another
CROSSING_S = 1.0
TROUBLE_S = 0.3  # a store that takes longer than this counts as holding the hub up
SKEWED_MS = 1_000
DECIDED_S = 60.0  # a request is stored within this time after it was decided, even if the process is suspended


@dataclass
class Held:
    """A lease on a message or on a turn, and the signs of life of its holder."""

    generation: int
    term_s: float
    received_s: float  # the last sign of life that the hub received for certain
    tried_s: float  # the last sign of life that the holder sent; the hub received none after it
    by: str | None = None
    node: str | None = None  # the node of a holder in a hub's process, which has no lease
    connections: list[Connection] = field(default_factory=list)  # all connections that the holder used
    connection: Connection | None = None  # connection of the last sign of life; None: HTTP
    responded: Connection | None = None  # connection of the last response to a sign of life: the hub knows it
    is_given: bool = True  # True: the holder knows that it has the lease
    overdue_s: float = float("-inf")  # when a sign of life arrived that may have been too late
    host: tuple[str, int] | None = None  # the turn that has taken the message in, and its attempt


@dataclass
class Sent:
    """A command that waits for its reply."""

    op: Command
    stored_s: float


@dataclass
class Carriers:
    """The connections that ever carried a request about one message."""

    all: list[Connection] = field(default_factory=list)
    last: dict[int, Connection | None] = field(default_factory=dict)  # of each generation; None: in the hub's process

    def note(self, connection: Connection | None, generation: int) -> None:
        """Note that `connection` carries a request of the writer with this generation."""
        self.last[generation] = connection
        if connection is not None and connection not in self.all:
            self.all.append(connection)


class Promises:
    """The ends that are due. `live_node` returns the id of the one hub that runs, if there is only one."""

    def __init__(
        self,
        now_s: Callable[[], float],
        stored: StoredLogs,
        *,
        start_ms: int,
        nodes: NodeLeases | None,
        live_node: Callable[[], str | None],
    ) -> None:
        """Judge by the clock `now_s`, which is 0 at `start_ms` of the wall clock.

        `nodes` are the leases of hubs that share a store; None: a hub has the store for itself.
        """
        self.booted_s = 0.0  # the last boot of a hub
        self.healthy_s = float("inf")  # time since which the effects of all faults are over
        self.is_served: Callable[[], bool] = bool  # returns whether each new user message waits for an agent
        self.is_skewed = False  # whether the hub's wall clock was set to another time
        self.signals: dict[str, float] = {}  # the data of all sent signals, and when they were sent
        self.agents: dict[str, list[Connection]] = {}  # the connections of agents, by name
        self._now_s = now_s
        self._start_ms = start_ms
        self._stored = stored
        self._nodes = nodes
        self._live_node = live_node
        self._trouble_s = float("-inf")  # time until which the hub was held up
        self._leases: dict[Place, Held] = {}
        self._turns: dict[Place, Held] = {}
        self._carriers: defaultdict[Place, Carriers] = defaultdict(Carriers)
        self._commands: dict[Place, Sent] = {}
        self._stored_s: dict[Place, float] = {}  # when each command was stored last
        self._attempts: dict[tuple[str, str, int], int] = {}  # how often each attempt began
        # results of steps by channel, message, round, number and epoch
        self._results: dict[tuple[str, str, int, int, str], str] = {}
        # with the number of pauses at the begin, and whether the channel has been deleted since
        self._at_work: dict[Place, tuple[Process, int, bool]] = {}
        self.members = Members(now_s, lambda: self._trouble_s, is_exclusive=nodes is None)

    @property
    def is_busy(self) -> bool:
        """Return whether a lease, a turn or a command ends by itself soon."""
        # The expiry of a command under a skewed clock can be an hour or a day away.
        is_due = not all(self._is_skewed(sent) for sent in self._commands.values())
        return bool(self._turns or is_due or self._leases or any(self._waiting()))

    @property
    def turns(self) -> list[Place]:
        """Return the user messages whose turns run or wait."""
        return [*self._turns, *self._waiting()]

    @property
    def leased(self) -> list[Place]:
        """Return the messages whose writers hold leases."""
        return list(self._leases)

    @property
    def busy_with(self) -> str:
        """Return the leases that end soon, as text."""
        return f"leases {list(self._leases)}, turns {self.turns}, commands {list(self._commands)}"

    # -- facts -------------------------------------------------------------------------------------------------

    def apply(self, write: Write) -> None:
        """Take a write that the store has carried out, after the log has taken it. Raises Violation."""
        for entry in write.entries:
            self._take(write.channel, entry)

    def forget(self, channels: Iterable[str]) -> None:
        """Forget all leases, turns and commands of `channels`: their epochs have ended."""
        gone = set(channels)
        for known in (self._leases, self._turns, self._commands):
            for place in [place for place in known if place[0] in gone]:
                del known[place]
        for place, (process, pauses, _) in self._at_work.items():
            if place[0] in gone:
                self._at_work[place] = process, pauses, True

    def lose_power(self, channels: Iterable[str]) -> None:
        """Read the leases, turns and commands again from the logs of `channels`, which a power cut has shortened."""
        for channel in channels:
            self.forget([channel])
            log = self._stored.head(channel)
            for message in log.messages(log.serial):
                if message.status == "streaming":
                    generation = 1 + len(log.takeovers.get(message.id, []))
                    self._begin_lease((channel, message.id), generation, log.writers[message.id][-1][1])
            for message_id, turns in log.turns.items():
                _, state, attempt = turns[-1]
                if state == "taken" and not log.is_deleted(message_id):
                    self._begin_turn((channel, message_id), log.claims[message_id, attempt])
            for key, (_, command) in log.commands.items():
                if key not in log.replies and command.name != STEP:
                    self._commands[channel, key] = Sent(command, self._stored_s[channel, key])

    def note_boot(self) -> None:
        """Note that a hub begins, which gives each lease its full term again."""
        self.booted_s = self._now_s()

    def note_trouble(self, until_s: float) -> None:
        """Note that the hub is held up until then."""
        self._trouble_s = max(self._trouble_s, until_s)

    def was_healthy(self, since_s: float) -> bool:
        """Return whether no fault has held the hub up since then."""
        return self._trouble_s < since_s

    def note_request(self, place: Place, connection: Connection | None = None, *, generation: int = 1) -> None:
        """Note that the writer of a message sends a request, which is a sign of life."""
        self._carriers[place].note(connection, generation)
        self._note_request(self._lease(place, generation), connection)

    def note_accepted(
        self, place: Place, sent_s: float, connection: Connection | None = None, *, generation: int = 1
    ) -> None:
        """Note that the hub has accepted a request that the writer sent at `sent_s`."""
        self._note_accepted(self._lease(place, generation), sent_s, connection)

    def note_response(self, place: Place, connection: Connection) -> None:
        """Note a response to the writer on `connection`: the hub knows this connection of the writer."""
        held = self._lease(place, 1)
        if held is not None:
            held.responded = connection

    def note_turn_request(
        self, place: Place, generation: int, connection: Connection | None, *, gives_back: bool = False
    ) -> None:
        """Note a request of the agent that holds attempt `generation` of a turn, and perhaps `gives_back` that."""
        turn = self._turn(place, generation)
        if turn is not None and gives_back:
            turn.is_given = False
        if connection is not None:
            self._note_request(turn, connection)

    def note_turn_accepted(self, place: Place, generation: int, sent_s: float, connection: Connection) -> None:
        """Note that the hub has accepted a request of that agent."""
        self._note_accepted(self._turn(place, generation), sent_s, connection)

    def note_offer(self, place: Place, generation: int, stamp: int, connection: Connection) -> None:
        """Note that a remote agent receives an attempt, in a frame that was sent at `stamp`. Raises Violation."""
        self._check_attempt(place, generation, stamp)
        turn = self._turn(place, generation)
        if turn is not None:
            turn.is_given = True
            turn.connections.append(connection)
            turn.connection = connection

    def note_taken_in(self, place: Place, host: str, generation: int) -> None:
        """Note that attempt `generation` at the turn of `host` knows that it has taken the message in."""
        turn = self._turns.get(place)
        if turn is not None and turn.host == (host, generation):
            turn.is_given = True

    def step_begins(self, place: Place, name: tuple[int, int]) -> None:
        """Note that the function of a step is called. Raises Violation if its result was returned before."""
        key = (*place, *name, self._stored.head(place[0]).epoch)
        if key in self._results:
            raise Violation(f"step {name} of {place} runs again, and {self._results[key]} was returned before")

    def step_ended(self, place: Place, name: tuple[int, int], result: str) -> None:
        """Note that the result of a step was returned to its handler. Raises Violation if it was another before."""
        known = self._results.setdefault((*place, *name, self._stored.head(place[0]).epoch), result)
        if known != result:
            raise Violation(f"step {name} of {place} has the result {result}, and {known} was returned before")

    def begin_attempt(self, place: Place, generation: int, process: Process) -> None:
        """Note that an agent in a hub's process begins an attempt. Raises Violation."""
        self._check_attempt(place, generation, self._stored.stamp)
        other, pauses, is_deleted = self._at_work.get(place, (None, 0, False))
        # Another node takes over the turn of a node that is paused for longer than its lease, and may run again by now.
        # A node hears a moment later that another one has deleted the channel, in which the id may be created again.
        is_elsewhere = is_deleted and other is not process
        if other is not None and other.is_alive and other.pauses == pauses and not is_elsewhere:
            raise Violation(f"two agents work on {place} in {process.name}")
        self._at_work[place] = process, process.pauses, False
        turn = self._turn(place, generation)
        if turn is not None:
            turn.is_given = True

    def end_attempt(self, place: Place, process: Process) -> None:
        """Note that the agent in `process` has ended its attempt."""
        if place in self._at_work and self._at_work[place][0] is process:
            del self._at_work[place]

    # -- checks ------------------------------------------------------------------------------------------------

    def check_running(self, place: Place, generation: int, node: str) -> None:
        """Check a remote agent's attempt that hub `node` counts as running; call it every second. Raises Violation.

        The log does not show that an attempt is lost: its message waits, and is claimed by an agent with a free slot.
        A hub that reads the channel only now counts the term from the last sign of life, too.
        """
        turn, base_s = self._turn(place, generation), max(self.healthy_s, self.booted_s)
        if turn is None or turn.node is not None or turn.host is not None:
            return
        if self._nodes is not None:  # a hub that was suspended, or did not reach its store, begins with a full term
            base_s = max(self._nodes.steady_s, self._nodes.since_s(node))
        if self._now_s() > max(turn.tried_s, base_s) + turn.term_s + SOON_S:
            raise Violation(f"attempt {generation} of {place} runs on without a sign of life of its agent: {turn}")

    def check_due(self) -> None:
        """Check that the server has ended all that is over; call it every second. Raises Violation."""
        now_s = self._now_s()
        base_s = max(self.healthy_s, self.booted_s)
        # hubs that share a store know each lease from its entries, also after one of them has stopped
        leased_s = base_s if self._nodes is None else max(self._nodes.steady_s, self._nodes.oldest_s)
        known_s = base_s if self._nodes is None else self._nodes.known_s
        for place, held in self._leases.items():
            limit_s = max(held.tried_s, leased_s) + held.term_s
            # on a shared store a hub may begin again while the connection stays
            connection = held.connection if held.connection is held.responded and self._nodes is None else None
            if connection is not None and connection.ended_s is not None and connection.process.is_alive:
                limit_s = min(limit_s, max(held.tried_s, base_s, connection.ended_s) + BROKEN_S)
            if now_s > max(limit_s, known_s) + SOON_S:
                raise Violation(
                    f"{place} still streams, its writer sent the last request at {held.tried_s:.3f}: {held}"
                )
        for place, sent in self._commands.items():
            since_s = max(sent.stored_s, base_s)
            if sent.op.name == "cancel" and now_s > since_s + CANCEL_S + SOON_S:
                raise Violation(f"the cancel {place} of {sent.op.target} was not carried out")
            if not self._is_skewed(sent) and now_s > max(self._expires_s(sent), since_s) + SOON_S:
                raise Violation(f"command {place} has expired and has no reply")

    def _take(self, channel: str, entry: Entry) -> None:
        op = entry.op
        place = (channel, op.id)
        if self._nodes is not None:
            _check_time(place, op, self._start_ms + 1000 * self._now_s())
        match op:
            case Create() if op.status == "streaming":
                self._begin_lease(place, 1, op.writer)
            case Create() if self.is_served() and op.role == "user" and not op.is_pending:
                raise Violation(f"{place} waits for no agent, though an agent serves the channel")
            case Takeover():
                self._begin_lease(place, op.generation, op.writer)
            case Lease():
                if place in self._leases:
                    self._leases[place].term_s = op.lease_ms / 1000
                self._note_stored(place)
            case Finish():
                held = self._leases.pop(place, None)
                if held is not None and op.status == "interrupted" and op.reason == "writer_gone":
                    self._check_not_early(place, held)
            case Delete():
                self._leases.pop(place, None)
                self._turns.pop(place, None)
                self._check_held(place)
            case Claim():
                self._take_claim(place, op)
            case Command() if op.name == STEP:
                pass  # waits for no reply
            case Command():
                self._stored_s[place] = self._now_s()
                self._commands[place] = Sent(op, self._stored_s[place])
            case Reply():
                self._take_reply(place, op, entry.serial)
            case _:
                self._note_stored(place)

    def _begin_lease(self, place: Place, generation: int, writer: WriterIdentity | None) -> None:
        if writer is None or writer.node is not None or not writer.lease_ms:
            self._leases.pop(place, None)
            return
        now_s = self._now_s()
        held = self._leases[place] = Held(generation, writer.lease_ms / 1000, now_s, now_s, writer.by)
        held.connections = self._carriers[place].all
        held.connection = self._carriers[place].last.get(generation)

    def _note_stored(self, place: Place) -> None:
        """Note that an entry of the message's writer was stored."""
        self._note_accepted(self._leases.get(place), self._now_s(), None)

    def _note_request(self, held: Held | None, connection: Connection | None) -> None:
        if held is not None:
            held.tried_s, held.connection = self._now_s(), connection
            if connection is not None and connection not in held.connections:
                held.connections.append(connection)

    def _note_accepted(self, held: Held | None, sent_s: float, connection: Connection | None) -> None:
        if held is not None:
            if self._may_end(held):
                held.overdue_s = self._now_s()
            held.received_s = max(held.received_s, sent_s)
            held.tried_s = max(held.tried_s, self._now_s())
            if connection is not None:
                held.responded = connection
                if connection not in held.connections:
                    held.connections.append(connection)

    def _check_not_early(self, place: Place, held: Held) -> None:
        """Check that a lease that ends now for lack of a sign of life had none. Raises Violation."""
        if not self._may_end(held) and self._now_s() - held.overdue_s > CROSSING_S:
            raise Violation(f"{place} ends at {self._now_s():.3f}, though its holder gave a sign of life: {held}")

    def _may_end(self, held: Held) -> bool:
        """Return whether the lease may end: after its term, or sooner after the end of its connection."""
        now_s = self._now_s()
        if not held.is_given:
            return True  # the holder does not know that it has the lease
        booted_s = (
            self.booted_s if self._nodes is None else 0.0
        )  # otherwise the lease is known to hubs that boot earlier
        if self._trouble_s >= held.received_s or now_s >= max(held.received_s, booted_s) + held.term_s - EARLY_S:
            return True
        for connection in held.connections:
            if connection.ended_s is None:
                continue
            if not connection.process.is_alive and booted_s >= connection.ended_s:
                continue  # the next hub knows no connection of the dead one; until it boots, a last commit may arrive
            is_another = connection is not held.connection and connection.sent_s + CROSSING_S < held.received_s
            if is_another and self._nodes is None:  # conflicts on a shared store delay a request by more than that
                continue  # the holder has used another one since
            if now_s >= connection.ended_s + min(held.term_s, BROKEN_S) - EARLY_S:
                return True
        return False

    def _lease(self, place: Place, generation: int) -> Held | None:
        lease = self._leases.get(place)
        return lease if lease is not None and lease.generation == generation else None

    def _turn(self, place: Place, generation: int) -> Held | None:
        turn = self._turns.get(place)
        return turn if turn is not None and turn.generation == generation else None

    def _take_claim(self, place: Place, op: Claim) -> None:
        before = self._turns.get(place)
        if before is not None and op.state == "taken" and op.confirmed and op.node is None:
            if op.lease_ms >= before.term_s * 1000:  # else it is given back
                before.tried_s = self._now_s()  # it may have waited at a node without a store; others count it from now
            return  # the renewal of a remote agent
        self._turns.pop(place, None)
        if op.state != "taken":
            self._check_held(place)
            return
        if before is not None and before.is_given and op.confirmed:
            raise Violation(f"{place} was claimed again by {op.node}, though {before.by} has begun this attempt")
        if before is not None and before.node is None:
            if not self._has_lost_host(place, before):
                self._check_not_early(place, before)
        elif before is not None and self._nodes is None and before.is_given and before.node == self._live_node():
            raise Violation(f"{place} was claimed by {op.by}, though {before.by} works on it in a living process")
        self._begin_turn(place, op)

    def _has_lost_host(self, place: Place, held: Held) -> bool:
        """Return whether the attempt that has taken the message in is lost or given back: the message waits again."""
        if held.host is None:
            return False
        host = self._turn((place[0], held.host[0]), held.host[1])
        return host is None or not host.is_given

    def _check_held(self, host: Place) -> None:
        """Check, behind the entry that ends a turn, that no message is held by it any more. Raises Violation."""
        for place, held in self._turns.items():
            if held.host is not None and (place[0], held.host[0]) == host:
                raise Violation(f"the turn of {place} goes on, and that of {host}, which took it in, is over: {held}")

    def _begin_turn(self, place: Place, op: Claim) -> None:
        now_s = self._now_s()
        turn = self._turns[place] = Held(op.generation, op.lease_ms / 1000, now_s, now_s, op.by, op.node)
        turn.is_given = False
        if op.within is not None:
            turn.host = op.within, op.within_generation
        turn.connections += self.agents.get(op.by or "", [])

    def _check_attempt(self, place: Place, generation: int, stamp: int) -> None:
        """Check an attempt that begins: it may begin once in each epoch, which its agent does not know."""
        claims = 0
        for log in self._stored.between(place[0], 0, stamp):
            claims += any(
                (state, number) == ("taken", generation) and log.is_stored(serial, stamp)
                for serial, state, number in log.turns.get(place[1], [])
            )
        attempt = (*place, generation)
        self._attempts[attempt] = begun = self._attempts.get(attempt, 0) + 1
        if not claims:
            raise Violation(f"attempt {generation} of {place} was offered before its claim was stored")
        if begun > claims:
            raise Violation(f"attempt {generation} of {place} was offered a second time")

    def _waiting(self) -> Iterable[Place]:
        """Yield the messages that wait for an agent."""
        for channel in self._stored.channels:
            for message_id, turns in self._stored.head(channel).turns.items():
                if turns[-1][1] == "pending" and not self._stored.head(channel).is_deleted(message_id):
                    yield channel, message_id

    def _take_reply(self, place: Place, op: Reply, serial: int) -> None:
        sent = self._commands.pop(place, None)
        if sent is None:
            return
        is_expiry = op.by is None and isinstance(op.error, dict) and op.error.get("code") == "expired"
        if is_expiry and not self._is_skewed(sent) and self._now_s() < self._expires_s(sent) - EARLY_S:
            raise Violation(f"the reply to {place} says expired, {self._expires_s(sent) - self._now_s():.3f} s early")
        if sent.op.name == "cancel" and op.ok:
            log = self._stored.head(place[0])
            for message in log.messages(serial):
                if op.by is not None and log.takeovers.get(message.id):
                    continue  # an agent replies for its own message, which another writer may have taken over
                # The server carries out the whole command.
                answers = (message.id, message.reply_to) if op.by is None else (message.id,)
                if message.status == "streaming" and sent.op.target in answers:
                    raise Violation(f"the reply to {place} says ok, but {message.id} still streams")

    def _expires_s(self, sent: Sent) -> float:
        return sent.stored_s + (sent.op.expires_ms - sent.op.at_ms) / 1000 - self._lag_s(sent)

    def _lag_s(self, sent: Sent) -> float:
        return max(0.0, sent.stored_s - (sent.op.at_ms - self._start_ms) / 1000)

    def _is_skewed(self, sent: Sent) -> bool:
        """Return whether the expiry of the command depends on a skewed wall clock: not if hubs share a store."""
        if self._nodes is not None:
            return False
        return self.is_skewed or abs(sent.op.at_ms - self._start_ms - sent.stored_s * 1000) > 60 * SKEWED_MS


def _check_time(place: Place, op: Op, now_ms: float) -> None:
    """Check the time of an entry of a shared store: each hub uses the clock of the store. Raises Violation."""
    if isinstance(op, Append) and not op.at_ms:  # its writer is in the process of a hub, and has no lease
        return
    ahead_s = (op.at_ms - now_ms) / 1000
    if not -DECIDED_S <= ahead_s <= EARLY_S:
        raise Violation(f"{type(op).__name__} of {place} has a time {ahead_s:+.3f} s from now by the store's clock")
