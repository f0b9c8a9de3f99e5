"""The turn scheduler: it assigns user messages to agents.

Layer: hub.

A user message in a channel that agents serve is stored as pending, in the same commit. The turn scheduler offers
pending messages to matching workers, by a claim that is stored before the work begins. So exactly one process works on
a message, and when it dies another takes over. Pending messages are found again after any crash, since they are in the
store; the turn scheduler holds no state that it could not read again.

The phases of a turn are those of `tenuto.core.turns`; `docs/architecture.md` draws them. The scheduler moves each
turn according to the log and to the outcomes of its own requests, and sets a timer for the phase that the turn enters.

A `WorkerPool` has the registered workers, the patterns that they serve, and their presence in channels. A worker is an
agent in this process (`tenuto.agents`) or a socket that sent `work` (`transports.session`).

On a store that several hubs share, each of them has a deadline for the turn of an agent in another process. So a
renewal is a stored confirmation of the attempt. The loss that an agent gives back is one, too: its lease ends at once.
The nodes show one another the patterns that they serve and their waiting turns (`SharedTurns`, decision 0073).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from tenuto.core.document import decoded
from tenuto.core.errors import StoreUnavailable, TenutoError
from tenuto.core.events import Signal
from tenuto.core.names import COMMAND_MARK, command_key, matches
from tenuto.core.ops import WriterIdentity
from tenuto.core.requests import SERVER, Caller, ClaimTurn, EndTurn, SendCommand
from tenuto.core.state import ClaimState, MessageState
from tenuto.core.turns import ATTEMPTS, CANCEL, INTERRUPTED, ChannelTurns, Left, Phase, TurnEvent, TurnMachine, WhenBusy
from tenuto.hub.channel import Channel, is_settling
from tenuto.hub.clock import Clock, Deadlines
from tenuto.hub.committer import in_time
from tenuto.hub.leases import BROKEN_S, RETRY_S, Submit, send
from tenuto.hub.nodes import Follower, NodeLease
from tenuto.hub.pending import Done, Result
from tenuto.hub.tasks import logs_errors
from tenuto.stores.base import Notice, SharedStore, Store

logger = logging.getLogger("tenuto.hub")

REMEMBERED_PATTERNS = 1_000
REMEMBERED_MS = 24 * 3600 * 1000  # a message waits so long after the last agent of its pattern was present
REJOIN_S = 60.0  # an agent that left less than this time ago may reconnect, such as after a deploy
NOTED_MS = 3600 * 1000  # time between two notes in the store that a pattern is still served
# prefix of the notes in the store that a pattern is served: its messages wait even while all its agents are absent
PATTERN_NOTE = "served/"

Agent = tuple[str, str]  # the name of an agent, and its pattern of channels


class AssignedTurn(NamedTuple):
    """One attempt at a turn, as a worker gets it."""

    channel: str
    message_id: str
    generation: int
    tries: int = 1  # number of attempts of this round that count, with this one
    unheard: tuple[str, ...] = ()  # at its end: messages that it may have taken in, and its handler did not get


class Worker(Protocol):
    """A component that carries out turns. The scheduler compares workers by object identity."""

    def __hash__(self) -> int: ...

    name: str  # the name of the member that people see; claims carry it, too
    pattern: str
    when_busy: WhenBusy
    is_local: bool  # True: the worker lives in this process
    free: int  # number of turns that it can take now

    def begin(self, turn: AssignedTurn) -> None:
        """Begin `turn`, which this worker now has. Called after the claim was stored."""

    def ended(self, turn: AssignedTurn, state: str) -> None:
        """Note that the turn is over (`done`, `cancelled`) or that another worker has it (`lost`)."""


@dataclass(eq=False)
class WorkerPool:
    """The workers that take turns now. All methods run on the hub's loop."""

    _loop: asyncio.AbstractEventLoop
    _clock: Clock
    _deadlines: Deadlines
    _store: Store
    _live: Callable[[], Iterable[Channel]]  # returns the channels in memory
    _spawn: Callable[..., object]

    def __post_init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None  # called if other nodes should know a pattern or waiting turn
        self.elsewhere: frozenset[str] = frozenset()  # patterns that other living nodes serve
        self._agents_elsewhere: frozenset[Agent] = frozenset()
        self._left: dict[Agent, float] = {}  # agents that left, with the time; a deploy must not make them unknown
        self._workers: dict[Worker, None] = {}
        # patterns that are or were recently served, with the time of the last note; messages there wait for an agent
        self.patterns: dict[str, int] = {}

    def __contains__(self, worker: Worker) -> bool:
        return worker in self._workers

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: Worker) -> None:
        """Add `worker`, and make it a member of each channel that it serves."""
        self._workers[worker] = None
        self.remember(worker.pattern)
        for channel in self._live():
            _show(worker, channel)
        self.changed()

    def remove(self, worker: Worker) -> bool:
        """Remove `worker`, but leave it a member of its channels until `hide`. Return whether it was there."""
        if self._workers.pop(worker, worker) is not None:
            return False
        self._note_left([(worker.name, worker.pattern)])
        return True

    def hide(self, worker: Worker, *, is_broken: bool) -> None:
        """End the presence of `worker` in its channels; with `is_broken` a little later."""
        for channel in self._live():
            if matches(worker.pattern, channel.name) and channel.presence_state.disconnect(worker.name, worker):
                if is_broken:  # a short disconnection must not make the agent vanish and reappear
                    leave = partial(channel.presence_state.remove, worker.name)
                    self._deadlines.set(("agent", channel.name, worker.name), self._loop.time() + BROKEN_S, leave)
                else:
                    channel.presence_state.remove(worker.name)

    def added(self, channel: Channel) -> None:
        """Make the agents that serve `channel` members of it, because it is in memory now."""
        for worker in self._workers:
            _show(worker, channel)

    def best_for(self, channel: str, suspect: Worker | None = None) -> Worker | None:
        """Return the worker with the most free slots. `suspect`, whose connection may be dead, is the last resort."""
        fitting = [one for one in self._workers if one.free > 0 and matches(one.pattern, channel)]
        return max(fitting, key=lambda one: (one is not suspect, one.free), default=None)

    def present(self) -> list[Agent]:
        """Return the workers as agents."""
        return list({(worker.name, worker.pattern): None for worker in self._workers})

    def agents(self, channel: str | None = None) -> dict[str, str]:
        """Return the names of the agents of all nodes, each with its pattern; with `channel`, of those that serve it.

        Agents that left less than `REJOIN_S` ago are among them. Of another node these are at most 100 (`presence`).
        """
        since_s, found = self._loop.time() - REJOIN_S, dict[str, str]()
        left = [agent for agent, left_s in self._left.items() if left_s >= since_s]
        for agents in (self.present(), sorted(self._agents_elsewhere), left):
            fitting = [one for one in agents if channel is None or matches(one[1], channel)]
            found |= {name: pattern for name, pattern in fitting if name not in found}
        return found

    def _note_left(self, agents: Iterable[Agent]) -> None:
        """Note that `agents` are not present any more."""
        now = dict.fromkeys(agents, self._loop.time())
        earlier = {agent: left_s for agent, left_s in self._left.items() if agent not in now}
        self._left = dict([*earlier.items(), *now.items()][-REMEMBERED_PATTERNS:])

    def has_agent(self, channel: str) -> bool:
        return any(matches(worker.pattern, channel) for worker in self._workers)

    # -- served patterns ---------------------------------------------------------------------------------------

    def serves(self, channel: str) -> bool:
        """Return whether agents serve `channel`, at this node or another one, now or after they reconnect."""
        return any(matches(pattern, channel) for pattern in self.patterns) or self.is_served_elsewhere(channel)

    def is_served_elsewhere(self, channel: str) -> bool:
        """Return whether an agent for `channel` is present at another node."""
        return any(matches(pattern, channel) for pattern in self.elsewhere)

    def served(self) -> list[str]:
        """Return the patterns of the workers that are present."""
        return sorted({worker.pattern for worker in self._workers})

    def note_agents_elsewhere(self, agents: Iterable[Agent]) -> None:
        """Note all agents that are at other nodes now."""
        known, self._agents_elsewhere = self._agents_elsewhere, frozenset(agents)
        self._note_left(sorted(known - self._agents_elsewhere))

    def note_elsewhere(self, patterns: Iterable[str]) -> None:
        """Note all patterns that other nodes serve now. Those nodes keep the notes in the store."""
        self.elsewhere = frozenset(patterns)
        now_ms = self._clock.now_ms()
        for pattern in self.elsewhere:
            if pattern in self.patterns or len(self.patterns) < REMEMBERED_PATTERNS:
                self.patterns[pattern] = now_ms

    async def recall(self, known: Mapping[str, int]) -> None:
        """Read from the store the patterns that were served before this start.

        A failover may have lost the notes of patterns that the hub has `known`: they are stored again.
        """
        for name, value in (await self._store.notes(PATTERN_NOTE)).items():
            with suppress(ValueError):  # of another version of the hub
                self.patterns[name.removeprefix(PATTERN_NOTE)] = int(value)
        for pattern, noted_ms in known.items():
            if noted_ms >= self.patterns.get(pattern, 0) + NOTED_MS:  # a stored note is late by less than that
                self.patterns[pattern] = noted_ms
                self._spawn(self._note(pattern, noted_ms))

    def tidy(self) -> None:
        """Renew the stored notes of served patterns and drop the expired ones. The hub calls this every few seconds."""
        for worker in self._workers:
            self.remember(worker.pattern)
        oldest_ms = self._clock.now_ms() - REMEMBERED_MS
        for pattern in [pattern for pattern, noted_ms in self.patterns.items() if noted_ms < oldest_ms]:
            del self.patterns[pattern]
            self._spawn(self._forget(PATTERN_NOTE + pattern, oldest_ms))

    async def _forget(self, name: str, oldest_ms: int) -> None:
        """Drop the note `name` that a pattern is served, unless another node has stored a later one."""
        found = (await in_time(self._store.notes(name), self._store.name)).get(name)
        if found is not None and int(found) < oldest_ms:
            await self._store.note({name: None}, expected={name: found})

    def remember(self, pattern: str) -> None:
        """Let messages in channels that match `pattern` wait for an agent, from now on."""
        now_ms = self._clock.now_ms()
        if 0 <= now_ms - self.patterns.get(pattern, -NOTED_MS) < NOTED_MS:
            return
        if pattern not in self.patterns and len(self.patterns) >= REMEMBERED_PATTERNS:
            logger.warning("messages for %r wait for no agent: more than %d patterns", pattern, REMEMBERED_PATTERNS)
            return
        self.patterns[pattern] = now_ms
        self._spawn(self._note(pattern, now_ms))

    async def _note(self, pattern: str, now_ms: int) -> None:
        """Store that `pattern` is served at `now_ms`. After a failure of the store, `tidy` does it again."""
        try:
            await self._store.note({PATTERN_NOTE + pattern: json.dumps(now_ms).encode()})
        except TenutoError:
            if self.patterns.get(pattern) == now_ms:
                self.patterns[pattern] = now_ms - NOTED_MS
            raise


def _show(worker: Worker, channel: Channel) -> None:
    """Make `worker` a member of `channel` if it serves it, also in a full one."""
    if matches(worker.pattern, channel.name):
        channel.presence_state.enter(worker.name, "agent", worker, {"state": "listening"})


MAX_UNENDED = 10_000  # number of handlers of deleted messages to remember; each takes some 200 bytes


LEASE_S = 15.0  # length of the lease of a remote worker's turn; the worker renews it after a third
UNCLAIMED_S = 5.0  # if a message is unclaimed for this long, viewers get a `nobody_listening` signal
NAMED_UNSERVED = 100  # kinds of channels that no agent serves and the log names
NAMED_PATTERNS = 5  # served patterns that such a line names

OpenTurn = TurnMachine[Worker]
OpenTurns = ChannelTurns[Worker]


def _listed(patterns: Iterable[str]) -> str:
    """Return some of `patterns` for a line of the log."""
    return ", ".join(f'"{one}"' for one in sorted(set(patterns))[:NAMED_PATTERNS])


@dataclass(eq=False)
class TurnScheduler:
    """Assigns turns to workers. Before each assignment a claim is stored. All methods run on the hub's loop."""

    _loop: asyncio.AbstractEventLoop
    _clock: Clock
    _deadlines: Deadlines
    workers: WorkerPool
    _nodes: NodeLease
    _submit: Submit
    _find: Callable[[str], Channel | None]  # returns a channel if it is in memory

    def __post_init__(self) -> None:
        self._node = self._nodes.node
        self._request = partial(send, self._submit)
        self._turns: dict[str, OpenTurns] = {}  # by channel
        # for each deleted message the last attempt whose handler, in another process, may not have ended
        self._unended: dict[tuple[str, str], int] = {}
        self._unserved: set[str] = set()  # kinds of channels that the log has named
        self._is_over = False

    # -- workers -----------------------------------------------------------------------------------------------

    def register(self, worker: Worker) -> None:
        """Assign turns to `worker` from now on, and make it a member of each channel that it serves."""
        self.workers.add(worker)
        self.offer_all()

    def unregister(self, worker: Worker, *, is_broken: bool = False, keeps_leases: bool = False) -> None:
        """Assign `worker` no more turns. With `is_broken` its turns are lost soon; `keeps_leases`: when those end."""
        if not self.workers.remove(worker) and not is_broken:
            return
        self.workers.hide(worker, is_broken=is_broken)
        if is_broken:  # a worker that stops taking turns keeps those that it has
            for channel, turn in self.where(
                lambda turn: worker is (turn.handler if turn.phase is Phase.ENDING else turn.worker)
            ):
                turn.worker = None
                if not (worker.is_local or keeps_leases):
                    self._deadlines.hasten(("turn", channel, turn.message_id), self._loop.time() + BROKEN_S)

    def abandon(self, name: str) -> list[AssignedTurn]:
        """Let the turns of the agent `name` in another process wait again now, since that process is known to be gone.

        Return the lost attempts. Without this call the turns wait again at the end of their leases.
        """
        lost = self.where(lambda turn: turn.is_run_by(name))
        attempts = [AssignedTurn(channel, turn.message_id, turn.attempt) for channel, turn in lost]
        for channel, turn in lost:
            self.lose(channel, turn)
        return attempts

    def freed(self, worker: Worker) -> None:
        """Offer waiting turns, because the worker has one more free slot.

        If it had a free slot before, no turn waits for one, because each turn that begins to wait is offered at once.
        """
        worker.free += 1
        if worker.free == 1:
            self.offer_all()

    def left(self, worker: Worker, assigned: AssignedTurn, *, has_begun: bool = True) -> bool:
        """Note that a handler has ended. A turn without an end waits again. Return False for any other attempt."""
        turn = self._turn(assigned.channel, assigned.message_id)
        if turn is None or turn.handler is not worker or turn.begun != assigned.generation:
            return False
        turn.begun = assigned.generation if has_begun else 0  # 0: no handler has begun it, so a claim confirms it
        has_no_end = turn.phase is Phase.RUNNING and turn.attempt == assigned.generation
        (self.lose if has_no_end else self._handler_ended)(assigned.channel, turn)
        return True

    def unended(self, channel: str, message_id: str) -> int:
        """Return the last attempt at a deleted message with this id whose handler may still end it, or 0.

        It may do so after the message was created again, so new attempts get numbers above this one.
        """
        return self._unended.get((channel, message_id), 0)

    def _note_unended(self, channel: str, turn: OpenTurn) -> None:
        key = (channel, turn.message_id)
        self._unended[key] = max(turn.attempt, self._unended.pop(key, 0))  # the newest stands last
        if len(self._unended) > MAX_UNENDED:
            del self._unended[next(iter(self._unended))]

    def _handler_ended(self, channel: str, turn: OpenTurn) -> None:
        if turn.handler is not None:
            self._moved(channel, turn, turn.handler_ended())
            self.offer(channel)

    def set_state(self, channel: str, worker_name: str, data: dict[str, object]) -> None:
        """Set the state that an agent shows to people in `channel`."""
        if (live := self._find(channel)) is not None:
            live.presence_state.update(worker_name, data)

    def stats(self) -> dict[str, int]:
        """Return the counters of waiting and running turns and of workers."""
        phases = [turn.phase for turns in self._turns.values() for turn in turns.values()]
        waiting = phases.count(Phase.WAITING) + phases.count(Phase.DELAYED)
        return {"agents": len(self.workers), "turns_waiting": waiting, "turns_running": phases.count(Phase.RUNNING)}

    def where(self, is_wanted: Callable[[OpenTurn], bool], channel: str | None = None) -> list[tuple[str, OpenTurn]]:
        """Return the open turns that are wanted, of `channel` or of all channels, each with its channel."""
        channels = self._turns if channel is None else {channel: self._turns.get(channel, OpenTurns())}
        return [(name, turn) for name, turns in channels.items() for turn in turns.values() if is_wanted(turn)]

    def close(self) -> None:
        """Assign no more turns, because the hub is shutting down."""
        self._is_over = True

    # -- the log -----------------------------------------------------------------------------------------------

    def inspect(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """Update the turns of the messages `keys` of `channel`; None means all of them."""
        state = channel.state
        # of messages that were only loaded, and in a hub without agents, no viewer learns that no agent takes them
        checks_served = keys is not None and bool(self.workers.patterns)
        if keys is None:
            keys = dict.fromkeys((*state.messages, *self._turns.get(channel.name, ())))
        is_changed = False
        for key in keys:
            if not key.startswith(COMMAND_MARK):
                message = state.messages.get(key)
                is_changed |= self.inspect_message(channel.name, key, message)
                if checks_served and message is not None and message.version == message.created:  # a new one
                    self._check_served(channel.name, message)
        if is_changed:
            self.offer(channel.name)

    def inspect_message(self, channel: str, key: str, message: MessageState | None) -> bool:
        """Update the turn of the message `key`. Return True if waiting turns of the channel should be offered."""
        claim = message.claim if message is not None and not message.deleted else None
        turn = self._turn(channel, key)
        if turn is None:
            if claim is None or not claim.is_open:
                return False
            turn = OpenTurn(key)
            self._turns.setdefault(channel, OpenTurns()).put(turn)
        node = claim.node if claim is not None else None
        # `lose_turns` asks the store whether another node lives before its turns wait again
        is_orphan = node is not None and (node == self._node or self._nodes.is_exclusive)
        confirmed = turn.confirmed
        left = turn.observe(message, is_orphan=is_orphan)
        is_confirmed = left is None and turn.phase is Phase.RUNNING and turn.confirmed > confirmed
        if is_confirmed and claim is not None and claim.lease_ms:
            # a hub of this store has stored a renewal; this one may read of it late
            self._lapse_in(channel, turn, self._nodes.left_s(claim.lease_ms / 1000, turn.alive_at))
            turn.worker = None  # the agent may have renewed elsewhere; its renewal here names its worker again
        return self._moved(channel, turn, left)

    def forget(self, channel: str) -> None:
        """Forget the turns of other nodes in `channel`, which leaves memory: this node follows it no longer."""
        for turn in tuple(self._turns.get(channel, OpenTurns()).values()):
            node = turn.claim.node if turn.claim is not None and turn.handler is None else None
            if node not in (None, self._node) and turn.is_taken:
                self._deadlines.drop(("turn", channel, turn.message_id))
                del self._turns[channel][turn.message_id]
        if not self._turns.get(channel, True):  # no turn of it is left
            del self._turns[channel]

    def _look_again(self, channel: str) -> None:
        if (live := self._find(channel)) is not None:
            self.inspect(live, None)

    def _moved(self, channel: str, turn: OpenTurn, left: Left[Worker] | None) -> bool:
        """Act on the phase that `turn` has entered, and tell the worker that no longer has it.

        Return True if waiting turns of the channel should be offered: this one waits, or has made room for another.
        """
        if left is None:
            return False
        self._set_timers(channel, turn, left.phase)
        if turn.phase is Phase.RUNNING:
            self._turns[channel].put(turn)  # move it to the end: a worker that names no turn means its latest one
        if turn.phase is Phase.OVER:
            if turn.claim is None and turn.attempt:  # a worker that has lost the turn may come back with it
                self._note_unended(channel, turn)
            self._turns[channel].pop(turn.message_id, None)
            if not self._turns[channel]:
                del self._turns[channel]
        if left.worker is not None:
            state = "lost"
            if turn.phase in (Phase.ENDING, Phase.OVER):
                state = turn.claim.state if turn.claim is not None else "cancelled"
            left.worker.ended(AssignedTurn(channel, turn.message_id, left.attempt), state)
        if left.phase is Phase.RUNNING:
            for held in self._turns.get(channel, OpenTurns()).held_by(turn.message_id):  # they are checked anew
                self._set_timers(channel, held, held.phase)
        return turn.phase in (Phase.WAITING, Phase.ENDING, Phase.OVER)

    def _set_timers(self, channel: str, turn: OpenTurn, left: Phase) -> None:
        """Set the timers of the phase that `turn` has entered from `left`, and drop those that it no longer needs."""
        key, unclaimed = ("turn", channel, turn.message_id), ("unclaimed", channel, turn.message_id)
        now_s = self._loop.time()
        if turn.phase is Phase.WAITING:
            if left in (Phase.NEW, Phase.RUNNING, Phase.HELD):  # after a refused claim the time goes on
                self._deadlines.set(unclaimed, now_s + UNCLAIMED_S, partial(self._signal_unclaimed, channel, turn))
        elif turn.phase is not Phase.DELAYED:
            self._deadlines.drop(unclaimed)
        match turn.phase:
            case Phase.DELAYED:
                self._deadlines.set(key, now_s + RETRY_S, partial(self._try_again, channel, turn))
            case Phase.RUNNING if turn.claim is not None and turn.claim.lease_ms:
                self._lapse_in(channel, turn, self._nodes.left_s(turn.claim.lease_ms / 1000, turn.alive_at))
            case Phase.HELD:  # checked later, after all changed messages were inspected
                self._deadlines.set(key, now_s, partial(self._check_held, channel, turn))
            case Phase.WAITING | Phase.ENDING if turn.handler is not None and not turn.handler.is_local:
                if key not in self._deadlines:  # a handler in another process ends at the latest when its lease ends
                    self._lapse_in(channel, turn, LEASE_S)
            case _:
                self._deadlines.drop(key)

    def _turn(self, channel: str, message_id: str) -> OpenTurn | None:
        turns = self._turns.get(channel)
        return turns.get(message_id) if turns is not None else None

    def _signal_unclaimed(self, channel: str, turn: OpenTurn) -> None:
        """Notify viewers if `turn` still waits, and not for a free slot."""
        live = self._find(channel)
        has_agent = self.workers.has_agent(channel) or self.workers.is_served_elsewhere(channel)
        if turn.phase is Phase.WAITING and live is not None and not has_agent:
            self._note_unserved(live, turn.message_id)

    def _check_served(self, channel: str, message: MessageState) -> None:
        """Check later whether a new message waits in vain: other channels have agents, and this one has none."""
        if message.role == "user" and message.claim is None and not self.workers.serves(channel):
            due_s = self._loop.time() + UNCLAIMED_S
            self._deadlines.set(("unserved", channel), due_s, partial(self._signal_unserved, channel, message.id))

    def _signal_unserved(self, channel: str, message_id: str) -> None:
        """Notify viewers if a message that has no turn still has no answer."""
        live = self._find(channel)
        asked = live.state.messages.get(message_id) if live is not None else None
        if live is None or asked is None or asked.deleted or self.workers.serves(channel):
            return
        if any(one.created > asked.created and one.role != "user" for one in live.state.messages.values()):
            return  # a route of the app answers here
        self._note_unserved(live, message_id)

    def _note_unserved(self, live: Channel, message_id: str) -> None:
        """Notify viewers that no agent has taken a message, and log once for each kind of channels what is served."""
        live.presence_state.signal(Signal(name="nobody_listening", data={"message": message_id}))
        channel, kind = live.name, live.name.rpartition(":")[0]
        if kind in self._unserved or len(self._unserved) >= NAMED_UNSERVED:
            return
        self._unserved.add(kind)
        present = _listed([*self.workers.served(), *self.workers.elsewhere])
        gone = _listed(pattern for pattern in self.workers.patterns if matches(pattern, channel))
        logger.warning(
            'no agent serves "%s"; %s%s',
            channel,
            f"agents serve {present}" if present else "no agent is connected",
            f". The agent of {gone} has gone, and questions wait for it for a day" if gone else "",
        )

    # -- claims ------------------------------------------------------------------------------------------------

    def offer_all(self) -> None:
        """Offer waiting turns of all channels, since a worker has free slots."""
        for channel in list(self._turns):
            self.offer(channel)

    def offer(self, channel: str) -> None:
        """Give waiting turns of `channel` to workers with free slots."""
        turns = self._turns.get(channel)
        if turns is None or self._is_over or not self._nodes.is_kept_since(self._loop.time()):
            return
        waiting = [turn for turn in turns.waiting() if not self._give_up(channel, turn)]
        for turn in waiting:
            worker = self.workers.best_for(channel, turn.suspect)
            if worker is None:
                self.workers.changed()  # other nodes may have a worker for it
                return
            if turn.phase is not Phase.WAITING:
                continue
            is_busy = turns.is_busy
            if is_busy and worker.when_busy == "queue":
                return
            if worker.when_busy == "interrupt":
                for older in turns.to_interrupt(waiting[-1]):
                    older.is_interrupted = True
                    self._interrupt(channel, older.message_id, command_key(self._clock.new_id()))
                if is_busy or turn is not waiting[-1]:
                    continue  # the turn is offered again when the running turn is over
            self._turns[channel] = self._turns.pop(channel)  # the other channels are offered first next time
            turn.send_claim()
            worker.free -= 1
            self._claim(channel, turn, worker, None if worker.when_busy == "parallel" else turns.lost())

    def _give_up(self, channel: str, turn: OpenTurn) -> bool:
        """End a turn that has used all its attempts: otherwise its message could crash one worker after another.

        This is called only when the turn would be offered, so never before the hub has recovered: recovery decides
        about the answer of the last attempt. The request stores the end of the turn and a failed answer in one
        decision, so that the answer is created once. Returns whether it was sent: a turn that no agent serves waits.
        """
        if not turn.is_used_up(self._node) or not self.workers.has_agent(channel):
            return False

        def done(result: Result | TenutoError) -> None:
            if isinstance(result, TenutoError):
                self._not_claimed(channel, turn, result)
                return
            logger.warning("%s in %s failed: its agent died %d times, see its log", turn.message_id, channel, ATTEMPTS)
            self._moved(channel, turn, turn.resolve(TurnEvent.ENDED))
            self.offer(channel)

        turn.send_claim()  # no worker takes the turn before the decision, as with a claim
        request = EndTurn(generation=turn.attempt, confirmed=turn.confirmed, failure=self._clock.new_id())
        self._request(channel, turn.message_id, request, SERVER, done)
        return True

    @contextmanager
    def taking(self, channel: str, message_id: str, within: str, attempt: int) -> Iterator[None]:
        """Do not offer `message_id` while a running turn claims it.

        If the claim is committed with an unknown outcome, the running turn does not know that it owns this message.
        """
        if (live := self._find(channel)) is not None:
            self.inspect_message(channel, message_id, live.state.messages.get(message_id))
        turn = self._turn(channel, message_id)
        if turn is None or turn.is_taken:  # a message in this phase needs no protection: the claim will be refused
            yield
            return
        turn.send_claim()
        event = TurnEvent.REFUSED
        try:
            yield
            event = TurnEvent.TAKEN_IN
        finally:
            turn.unheard = (within, attempt) if event is TurnEvent.REFUSED else None
            self._moved(channel, turn, turn.resolve(event))
            self._check_held(channel, turn)
            self._look_again(channel)
            self.offer(channel)  # offer messages that waited behind this one, in case the turn ended meanwhile

    def _claim(
        self, channel: str, turn: OpenTurn, worker: Worker, lost: tuple[tuple[str, int, int], ...] | None
    ) -> None:
        """Send a claim of the turn for `worker`, which begins it once the claim is stored. `lost`: `ClaimTurn.lost`."""
        writer = WriterIdentity(by=worker.name, node=self._node) if worker.is_local else None
        caller = Caller(id=worker.name, writer=writer, is_server=True)
        asked_s = self._loop.time()

        def done(result: Result | TenutoError) -> None:
            if isinstance(result, TenutoError):
                self._loop.call_soon(self.freed, worker)
                self._not_claimed(channel, turn, result)
                return
            assert result.generation is not None
            assigned = AssignedTurn(channel, turn.message_id, result.generation)
            self._claimed(worker, turn, assigned, self._nodes.is_kept_since(asked_s))

        request = ClaimTurn(
            generation=turn.attempt,
            confirmed=turn.confirmed,
            confirms=worker.is_local and turn.is_unbegun_by(self._node),
            lease_s=LEASE_S,  # not in the claim of a local worker, which its node keeps
            above=self.unended(channel, turn.message_id),
            lost=lost,
        )
        self._request(channel, turn.message_id, request, caller, done)

    def _not_claimed(self, channel: str, turn: OpenTurn, error: TenutoError) -> None:
        """Let a turn whose claim, or end as given up, was refused with `error` wait: for a second, or for the log."""
        # Wait first: after a refusal that the log does not explain, the same claim would be refused again at once.
        event = TurnEvent.FAILED if error.retry or turn.is_unchanged else TurnEvent.REFUSED
        self._moved(channel, turn, turn.resolve(event))
        if not error.retry:
            logger.debug("message %s of %s was not assigned to this hub: %s", turn.message_id, channel, error)
            self._loop.call_soon(self.offer, channel)

    def _try_again(self, channel: str, turn: OpenTurn) -> None:
        """Let the turn wait again after its claim failed, unless it has changed meanwhile."""
        self._moved(channel, turn, turn.due())
        self._look_again(channel)
        self.offer(channel)

    def _claimed(self, worker: Worker, turn: OpenTurn, assigned: AssignedTurn, is_safe: bool) -> None:
        """Begin the attempt `assigned`, whose claim is stored. `is_safe`: this node has kept its lease meanwhile."""
        self._moved(assigned.channel, turn, turn.resolve(TurnEvent.TAKEN, assigned.generation))
        assigned = assigned._replace(tries=turn.tries)
        is_ours = turn.phase is Phase.RUNNING and turn.attempt == assigned.generation
        if is_ours and is_safe and worker in self.workers:
            turn.begin(worker)
            worker.begin(assigned)
            if worker.when_busy == "interrupt":  # a newer message may have been stored together with the claim
                self.offer(assigned.channel)
            return
        # The turn has ended meanwhile, the worker is gone, or another node may have the turn by now: no handler begins.
        self._loop.call_soon(self.freed, worker)
        self._loop.call_soon(self.offer, assigned.channel)  # offer messages that waited behind this one
        if is_ours:
            self._lapse_in(assigned.channel, turn, 0.0)

    # -- running turns -----------------------------------------------------------------------------------------

    def renew(self, worker: Worker, assigned: AssignedTurn) -> bool:
        """Renew the lease of a remote worker's turn. Return False if the worker no longer has the turn."""
        turn = self._turn(assigned.channel, assigned.message_id)
        if turn is None or turn.phase is not Phase.RUNNING or turn.attempt != assigned.generation:
            return False
        if turn.claim is None or turn.claim.node is not None or turn.claim.by != worker.name:
            return False  # another agent has the turn; a worker that reconnects would have the same name
        turn.begin(worker)
        self._lapse_in(assigned.channel, turn, (turn.claim.lease_ms or LEASE_S * 1000) / 1000)
        return True

    def store_renewal(
        self,
        worker: Worker,
        turn: AssignedTurn,
        done: Callable[[Result | TenutoError | None], None],
        *,
        gives_back: bool,
    ) -> None:
        """Store that a remote worker renews a turn, or `gives_back` an attempt that it has lost: its lease ends then.

        Only a shared store needs it, for its other hubs; `done` gets None from an exclusive one.
        """
        if self._nodes.is_exclusive:
            done(None)
            return
        request = ClaimTurn(generation=turn.generation, renews=True, gives_back=gives_back)  # renews=True for both
        self._request(turn.channel, turn.message_id, request, Caller(id=worker.name), done)

    def claimed_by(self, channel: str, message_id: str) -> str | None:
        """Return the name of the agent that has the turn of `message_id`, or None."""
        turn = self._turn(channel, message_id)
        return turn.claim.by if turn is not None and turn.is_taken and turn.claim is not None else None

    def turn_of(self, channel: str, name: str, message_id: str | None) -> tuple[str, int, ClaimState] | None:
        """Return the turn of `message_id` of agent `name`, with attempt and claim; for None the agent's latest turn."""
        turn = self._turns.get(channel, OpenTurns()).newest_of(name, message_id)
        return (turn.message_id, turn.attempt, turn.claim) if turn is not None and turn.claim is not None else None

    def is_held(self, channel: str, message_id: str, within: str, attempt: int) -> bool:
        """Return whether attempt `attempt` at the turn of `within` has taken `message_id` in."""
        turn = self._turn(channel, message_id)
        return turn is not None and turn.host == (within, attempt)

    def end(
        self, worker: Worker, assigned: AssignedTurn, state: Literal["done", "cancelled", "pending"], done: Done
    ) -> None:
        """Store the end of a turn, or with `pending` that it is handed over, then offer waiting messages.

        `done` is called with the result.
        """
        turn = self._turn(assigned.channel, assigned.message_id)
        if turn is not None and (turn.handler is not worker or turn.attempt != assigned.generation):
            turn = None  # another worker or attempt has it; the log decides about the request
        if turn is not None:
            turn.worker = None  # the worker that ends the turn itself needs no notification
        caller = Caller(id=worker.name, is_server=worker.is_local)
        host = assigned.message_id, assigned.generation
        unheard = [id for id, one in self._turns.get(assigned.channel, OpenTurns()).items() if one.unheard == host]
        request = EndTurn(generation=assigned.generation, state=state, unheard=(*unheard, *assigned.unheard))
        self._request(assigned.channel, assigned.message_id, request, caller, done)
        if turn is not None:  # do this after the request, which must not end a turn that follows
            self._handler_ended(assigned.channel, turn)

    def _check_held(self, channel: str, turn: OpenTurn) -> None:
        """Let a turn that another has taken in wait again if the other is lost. The log shows that both have ended."""
        if turn.phase is Phase.HELD and self._turns[channel].is_lost(turn):
            self.lose(channel, turn)

    def _lapse_in(self, channel: str, turn: OpenTurn, term_s: float) -> None:
        """Count the attempt, or the handler of an earlier one, as gone in `term_s`, in place of an earlier deadline."""
        attempt = turn.attempt

        def lapse() -> None:
            if turn.phase is not Phase.RUNNING and turn.handler is not None:
                self._note_unended(channel, turn)
                self._handler_ended(channel, turn)
            elif turn.phase is Phase.RUNNING and turn.attempt == attempt:
                self.lose(channel, turn)

        self._deadlines.set(("turn", channel, turn.message_id), self._loop.time() + term_s, lapse)

    def lose(self, channel: str, turn: OpenTurn) -> None:
        """Offer the turn again, because its worker is gone, or the attempt that had taken the message in."""
        is_broken = turn.is_broken
        self._moved(channel, turn, turn.lose())
        self.offer(channel)
        if is_broken and turn.phase is Phase.WAITING and self.workers.is_served_elsewhere(channel):  # not taken here
            self._share_loss(channel, turn)

    def _share_loss(self, channel: str, turn: OpenTurn) -> None:
        """Give back, on a shared store, the attempt of a remote worker with a broken connection, unless it was renewed.

        This hub ends such an attempt before its lease ends, and the other hubs would wait for that.
        """
        claim = turn.claim
        if claim is None or claim.node is not None or claim.within is not None:
            return

        def done(result: Result | TenutoError) -> None:
            if isinstance(result, TenutoError):
                logger.debug("the turn of %s in %s was not given back: %s", turn.message_id, channel, result)

        request = ClaimTurn(generation=turn.attempt, confirmed=turn.confirmed, renews=True, gives_back=True)
        self._request(channel, turn.message_id, request, Caller(id=claim.by, is_server=True), done)

    def _interrupt(self, channel: str, message_id: str, key: str) -> None:
        """Cancel the turn of `message_id`, as a `cancel` command would, because a newer message interrupts it."""

        def done(result: Result | TenutoError) -> None:
            if isinstance(result, TenutoError) and result.retry:
                again = partial(self._interrupt, channel, message_id, key)
                self._deadlines.set(("interrupt", channel, message_id), self._loop.time() + RETRY_S, again)
            elif isinstance(result, TenutoError):
                logger.debug("message %s of %s needed no interruption: %s", message_id, channel, result)

        command = SendCommand(name=CANCEL.name, target=message_id, data=INTERRUPTED)
        self._request(channel, key, command, SERVER, done)


PREFIX = "turns/"  # of the names of the holds; the node follows
FOLLOW_S = 1.0  # time between two reads of the holds of other nodes
REST_S = 0.05  # shortest time between two changes of the hold
SHOWN = 500  # number of patterns, and of channels, in the hold of a node


class ShownTurns(Struct, frozen=True):
    """The hold of a node."""

    patterns: list[str] = []
    waiting: list[str] = []


@dataclass(eq=False)
class SharedTurns:
    """Shows the turns of this node to the others, and follows theirs."""

    _store: SharedStore
    _nodes: NodeLease
    _scheduler: TurnScheduler
    _channels: Mapping[str, Channel]  # those in memory
    _fresh: Callable[[str], Awaitable[Channel]]  # reads a channel from the store
    _follower: Follower  # sends and receives the notices

    def __post_init__(self) -> None:
        self._due = asyncio.Event()  # set when the hold has changed
        self._shown = ShownTurns()  # the hold that the store has
        self._follower.receivers.append(self._receive)
        name, encode = PREFIX + self._nodes.node, msgspec.msgpack.encode
        self._nodes.holds.sources.append(lambda: {name: encode(self._hold())})
        self._scheduler.workers.changed = self._due.set
        self._unread: dict[str, None] = {}  # channels whose last read failed: they are read last

    async def begin(self) -> None:
        """Show this node to the others, then read theirs. Raises StoreUnavailable.

        So of two nodes that begin at the same moment one finds the other, which learns of it by a notice.
        """
        await self._show(self._hold())
        await self.read()

    async def run(self) -> None:
        """Show and follow until this task is cancelled."""
        while True:
            self._due.clear()
            with logs_errors("the turns of other nodes were not read; the hub tries again"):
                if (hold := self._hold()) != self._shown:
                    await self._show(hold)
                await self.follow()
            await asyncio.sleep(REST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S - REST_S):
                    await self._due.wait()

    async def _show(self, hold: ShownTurns) -> None:
        """Put `hold` by a renewal; if it has other patterns, notify the other nodes. Raises StoreUnavailable."""
        await self._nodes.renew()
        known, self._shown = self._shown, hold
        if hold.patterns != known.patterns:
            self._follower.notifier.send(Notice("here", "", self._nodes.node.encode()))

    def _receive(self, notice: Notice | None) -> None:
        """Read the holds soon, because another node serves other patterns. None: notices may have been missed."""
        is_about_turns = notice is not None and notice.kind == "here" and not notice.channel
        if notice is None or (is_about_turns and notice.body != self._nodes.node.encode()):
            self._due.set()

    def _hold(self) -> ShownTurns:
        workers = self._scheduler.workers
        waiting = [channel for channel in self._waiting() if workers.best_for(channel) is None]  # for other nodes
        return ShownTurns(patterns=workers.served()[:SHOWN], waiting=waiting[:SHOWN])

    def _waiting(self) -> list[str]:
        """Return the channels in which turns wait; if there are many, first those that an agent serves."""
        workers = self._scheduler.workers
        waiting = list(dict(self._scheduler.where(lambda turn: turn.phase is Phase.WAITING)))
        if len(waiting) > SHOWN:
            waiting.sort(key=lambda name: not (workers.has_agent(name) or workers.is_served_elsewhere(name)))
        return waiting

    async def read(self) -> list[ShownTurns]:
        """Return the holds of the other nodes, after noting their patterns. Raises StoreUnavailable."""
        held = await in_time(self._store.holds(PREFIX), self._store.name)
        others = [
            decoded(hold.value, ShownTurns) or ShownTurns() for node, hold in held.values() if node != self._nodes.node
        ]
        self._scheduler.workers.note_elsewhere(pattern for one in others for pattern in one.patterns)
        return others

    async def follow(self) -> None:
        """Read the holds of the other nodes, and offer the turns that wait there. Raises StoreUnavailable."""
        others = await self.read()
        workers = self._scheduler.workers
        # own turns of channels outside memory, which `tenuto.hub.nodes` does not read, may be taken
        # elsewhere, or wait for a turn of another node that has ended
        wanted = [channel for channel in self._waiting() if channel not in self._channels][:SHOWN]
        own = set(wanted)
        wanted += [channel for one in others for channel in one.waiting]
        looked_at = []
        names = dict.fromkeys(wanted)
        self._unread = {name: names.pop(name) for name in self._unread if name in names}
        for name in (*names, *self._unread):
            live = self._channels.get(name)
            if (name not in own and workers.best_for(name) is None) or (live is not None and is_settling(live)):
                continue
            self._unread.pop(name, None)
            try:
                self._scheduler.inspect(await in_time(self._fresh(name), self._store.name), None)
            except Exception as error:
                self._unread[name] = None
                logger.warning("the turns of channel %s were not read; the hub tries again: %r", name, error)
                if isinstance(error, StoreUnavailable):  # the store may not respond for further channels either
                    break
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
