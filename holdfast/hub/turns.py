"""The turn scheduler: it assigns user messages to agents.

Layer: hub.

A user message in a channel that agents serve is stored as pending, in the same commit. The turn scheduler offers
pending messages to matching workers, by a claim that is stored before the work begins. So exactly one process works on
a message, and when it dies another takes over. Pending messages are found again after any crash, since they are in the
store; the turn scheduler holds no state that it could not read again.

A worker is an agent in this process (`holdfast.agents`) or a socket that sent `work` (`transports.session`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Literal, NamedTuple, Protocol

from holdfast.core.decide_work import ATTEMPTS
from holdfast.core.errors import HoldfastError, TooMany
from holdfast.core.events import Signal
from holdfast.core.names import COMMAND_MARK, command_key
from holdfast.core.ops import Writer
from holdfast.core.requests import SERVER, Caller, ClaimTurn, EndTurn, SendCommand
from holdfast.core.state import ClaimState, MessageState
from holdfast.core.turns import CANCEL
from holdfast.hub.channel import Channel
from holdfast.hub.clock import Clock
from holdfast.hub.deadlines import Deadlines
from holdfast.hub.leases import BROKEN_S, RETRY_S, Submit
from holdfast.hub.patterns import matches
from holdfast.hub.results import Done, Result
from holdfast.stores.base import Store

logger = logging.getLogger("holdfast.hub")

WhenBusy = Literal["queue", "interrupt", "parallel"]
LEASE_S = 15.0  # of a remote worker's turn; the worker renews it at a third
UNHEARD_S = 120.0  # longer than the outcome of a claim may be unknown
UNCLAIMED_S = 5.0  # after this long unclaimed, viewers get a `nobody_listening` signal
REMEMBERED_PATTERNS = 1_000
REMEMBERED_MS = 24 * 3600 * 1000  # messages wait this long after the last agent of their pattern was present
NOTED_MS = 3600 * 1000  # between two notes that a pattern is still served
PATTERN_NOTE = "served/"  # notes of served patterns, so that messages wait for an absent agent


class TurnOffer(NamedTuple):
    """A turn that the scheduler offers to a worker, and its attempt."""

    channel: str
    message_id: str
    generation: int
    lease_s: float | None  # None: the worker lives in this process and needs no renewal


class Worker(Protocol):
    """A component that carries out turns; identified by the object itself."""

    def __hash__(self) -> int: ...

    name: str  # the member that people see, and the identity of the claim
    pattern: str
    when_busy: WhenBusy
    is_local: bool  # in this process
    free: int  # turns that it can take now

    def begin(self, turn: TurnOffer) -> None:
        """Begin `turn`, which belongs to this worker. Called after the claim was stored."""

    def ended(self, turn: TurnOffer, state: str) -> None:
        """Note that the turn is over (`done`, `cancelled`) or belongs to another worker (`lost`)."""


class _Work:
    """The waiting and running turns of one channel."""

    __slots__ = ("claiming", "interrupted", "running", "unheard", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[int, int]] = {}  # message → its `created`, and its attempts so far
        self.claiming: set[str] = set()
        self.interrupted: set[str] = set()  # turns that a newer message interrupted
        self.running: dict[str, tuple[ClaimState, Worker | None]] = {}
        self.unheard: dict[str, Worker] = {}  # message → the last worker of its turn, whose connection may be dead

    def held_by(self, message_id: str) -> list[str]:
        """Return the messages that the turn of `message_id` has taken in."""
        return [one for one, (claim, _) in self.running.items() if claim.within == message_id]

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.claiming or self.running)


class TurnScheduler:
    """Assigns turns to workers. A stored claim precedes each assignment. All methods run on the hub's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        deadlines: Deadlines,
        *,
        store: Store,
        node: str,
        submit: Submit,
        live: Callable[[], Iterable[Channel]],
        find: Callable[[str], Channel | None],
        spawn: Callable[..., object],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._deadlines = deadlines
        self._store = store
        self._node = node
        self._submit = submit
        self._live = live  # the channels in memory
        self._find = find  # one of them
        self._spawn = spawn
        self._workers: dict[Worker, None] = {}
        self._patterns: dict[str, int] = {}  # served now or recently → when that was noted; messages there wait
        self._work: dict[str, _Work] = {}
        self._is_over = False

    # -- workers -----------------------------------------------------------------------------------------------

    def register(self, worker: Worker) -> None:
        """Assign turns to `worker` from now on, and make it a member of each channel that it serves."""
        self._workers[worker] = None
        self._remember(worker.pattern)
        for channel in self._live():
            _show(worker, channel)
        self.offer_all()

    def unregister(self, worker: Worker, *, is_broken: bool = False) -> None:
        """Assign no more turns to `worker`. With `is_broken` its turns lapse soon, unless they are renewed."""
        if self._workers.pop(worker, worker) is worker and not is_broken:
            return
        for channel in self._live():
            if matches(worker.pattern, channel.name) and channel.presence_state.disconnect(worker.name, worker):
                if is_broken:  # a short disconnection must not flicker
                    leave = partial(channel.presence_state.remove, worker.name)
                    self._deadlines.set(("agent", channel.name, worker.name), self._loop.time() + BROKEN_S, leave)
                else:
                    channel.presence_state.remove(worker.name)
        for name, work in list(self._work.items()):
            for message_id, (claim, taker) in list(work.running.items()):
                if taker is worker and is_broken:  # a worker that only takes no more turns keeps the ones it has
                    work.running[message_id] = (claim, None)
                    if not worker.is_local:
                        self._lapse_in(name, message_id, claim, BROKEN_S)

    def hand_over(self, worker: Worker, heir: Worker) -> None:
        """Pass the turns of `worker` to `heir`, a new registration of the same agent."""
        for work in self._work.values():
            for message_id, (claim, taker) in work.running.items():
                if taker is worker:
                    work.running[message_id] = (claim, heir)

    def serves(self, channel: str) -> bool:
        """Return whether agents serve `channel`, now or after they reconnect."""
        return any(matches(pattern, channel) for pattern in self._patterns)

    def has_agent(self, channel: str) -> bool:
        """Return whether an agent for `channel` is present."""
        return any(matches(worker.pattern, channel) for worker in self._workers)

    def loaded(self, channel: Channel) -> None:
        """Make the agents of `channel`, which was loaded, members of it."""
        for worker in self._workers:
            _show(worker, channel)

    def stats(self) -> dict[str, int]:
        """Return the counters of waiting and running turns and of workers."""
        return {
            "agents": len(self._workers),
            "turns_waiting": sum(len(work.waiting) for work in self._work.values()),
            "turns_running": sum(
                claim.within is None for work in self._work.values() for claim, _ in work.running.values()
            ),
        }

    def close(self) -> None:
        """Assign no more turns: the hub is shutting down."""
        self._is_over = True

    # -- pending turns -----------------------------------------------------------------------------------------

    async def recall(self) -> None:
        """Read the patterns that were served before this start."""
        for name, value in (await self._store.notes(PATTERN_NOTE)).items():
            self._patterns[name.removeprefix(PATTERN_NOTE)] = json.loads(value)

    def tidy(self) -> None:
        """Note the served patterns, and forget the expired ones. The hub calls this every few seconds."""
        for worker in self._workers:
            self._remember(worker.pattern)
        oldest_ms = self._clock.now_ms() - REMEMBERED_MS
        for pattern in [pattern for pattern, noted_ms in self._patterns.items() if noted_ms < oldest_ms]:
            del self._patterns[pattern]
            self._spawn(self._store.note({PATTERN_NOTE + pattern: None}))

    def inspect(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """Update the turns of the messages `keys` of `channel`; None means all."""
        state = channel.state
        known = self._work.get(channel.name)
        if keys is None:
            keys = {*state.messages, *(known.waiting if known is not None else ())}
            keys |= set(known.running) if known is not None else set()
        is_changed = False
        for key in keys:
            if not key.startswith(COMMAND_MARK):
                is_changed |= self.inspect_message(channel.name, key, state.message(key))
        if is_changed:
            self._offer(channel.name)

    def inspect_message(self, channel: str, key: str, message: MessageState | None) -> bool:
        """Update the turn of the message `key`. Return True if it should be offered."""
        claim = message.claim if message is not None else None
        work = self._work.get(channel)
        if claim is None and work is None:
            return False
        if work is None:
            work = self._work[channel] = _Work()
        if message is None or claim is None or message.deleted or not claim.is_open:
            return self._drop(channel, work, key, claim)
        if claim.state == "pending" or self._is_orphaned(work, key, claim):
            if key in work.claiming:
                return False
            is_known = key in work.waiting
            work.waiting[key] = (
                message.created,
                claim.generation,
            )  # a claim that its caller gave up may be stored since
            if not is_known:
                self._watch_unclaimed(channel, key)
            return not is_known
        if key in work.waiting and work.waiting[key][1] == claim.generation:
            return False  # its worker is gone, and no other one has it yet
        running = work.running.get(key)
        if running is None or running[0].generation != claim.generation:
            work.running[key] = (claim, None)
            work.waiting.pop(key, None)
            if claim.within is not None:  # after all changed messages were inspected
                self._deadlines.set(("turn", channel, key), self._loop.time(), partial(self._check_held, channel, key))
            elif claim.lease_ms:
                self._lapse_in(channel, key, claim, claim.lease_ms / 1000)
            elif claim.node == self._node:  # until its worker has begun
                self._lapse_in(channel, key, claim, BROKEN_S)
        return False

    def _is_orphaned(self, work: _Work, key: str, claim: ClaimState) -> bool:
        """Return whether the turn has no worker: it died with its process, or its claim was stored after we gave up."""
        if claim.node == self._node:
            return key not in work.claiming and key not in work.running
        return claim.node is not None and self._store.is_exclusive

    def _drop(self, channel: str, work: _Work, key: str, claim: ClaimState | None) -> bool:
        """Forget the turn of `key`: it neither waits nor runs."""
        running = work.running.pop(key, None)
        work.interrupted.discard(key)
        work.unheard.pop(key, None)
        was_known = work.waiting.pop(key, None) is not None or running is not None
        self._deadlines.drop(("turn", channel, key))
        self._deadlines.drop(("nobody", channel, key))
        if running is not None and running[1] is not None:
            turn = TurnOffer(channel, key, running[0].generation, None)
            running[1].ended(turn, claim.state if claim is not None else "cancelled")
        if running is not None:
            for held in work.held_by(key):
                self._check_held(channel, held)
        if work.is_empty:
            del self._work[channel]
        return was_known

    def offer_all(self) -> None:
        """Offer waiting turns of all channels, since a worker has free slots."""
        for channel in list(self._work):
            self._offer(channel)

    def _offer(self, channel: str) -> None:
        work = self._work.get(channel)
        if work is None or not work.waiting or self._is_over:
            return
        self._give_up(channel, work)
        for message_id, place in sorted(work.waiting.items(), key=lambda item: item[1]):
            worker = self._worker_for(channel, work.unheard.get(message_id))
            if worker is None:
                return
            if message_id not in work.waiting:
                continue
            is_busy = bool(work.running or work.claiming)
            if is_busy and worker.when_busy == "queue":
                return
            if worker.when_busy == "interrupt":
                newest = max(work.waiting, key=lambda one: work.waiting[one])
                self._interrupt_all_but(channel, work, newest)
                if is_busy or message_id != newest:
                    continue  # it is offered again when the running turn is over
            del work.waiting[message_id]
            work.claiming.add(message_id)
            worker.free -= 1
            self._claim(channel, message_id, place, worker)

    def _give_up(self, channel: str, work: _Work) -> None:
        """End turns that have used all attempts: a turn that kills its worker would otherwise kill one after another.

        Only a turn that would be offered now is ended. So no turn ends before the hub has recovered, which decides
        about the answer of the last attempt.
        """
        if not self.has_agent(channel):
            return
        for message_id, place in list(work.waiting.items()):
            if place[1] >= ATTEMPTS:
                del work.waiting[message_id]
                work.claiming.add(message_id)
                self._end_given_up(channel, message_id, place)

    def _end_given_up(self, channel: str, message_id: str, place: tuple[int, int]) -> None:
        """Store the end of the turn and a failed answer in one decision, so that the answer is created once."""

        def done(answer: Result | HoldfastError) -> None:
            work = self._work.get(channel)
            if work is not None:
                work.claiming.discard(message_id)
            if isinstance(answer, HoldfastError):
                self._not_claimed(channel, message_id, place, answer)
                return
            logger.warning("message %s of %s is given up after %d attempts", message_id, channel, place[1])
            self._tidy(channel)
            self._offer(channel)

        try:
            request = EndTurn(generation=place[1], failure=self._clock.new_id())
            self._submit(channel, message_id, request, SERVER, done)
        except HoldfastError as error:
            done(error)

    def _worker_for(self, channel: str, unheard: Worker | None) -> Worker | None:
        """Return the worker with the most free slots; `unheard`, which may be dead, only as a last resort."""
        fitting = [one for one in self._workers if one.free > 0 and matches(one.pattern, channel)]
        return max(fitting, key=lambda one: (one is not unheard, one.free), default=None)

    @contextmanager
    def taking(self, channel: str, message_id: str, within: str, attempt: int) -> Iterator[None]:
        """Hold back the offer of `message_id` while a running turn claims it.

        If the claim's outcome is unknown but it was committed, the running turn does not know that it owns this
        message.
        """
        work = self._work.setdefault(channel, _Work())
        work.waiting.pop(message_id, None)
        work.claiming.add(message_id)
        try:
            yield
        except BaseException:
            unheard = ("unheard", channel, message_id, within, attempt)
            self._deadlines.set(unheard, self._loop.time() + UNHEARD_S, lambda: None)
            self._check_held(channel, message_id)
            raise
        finally:
            work.claiming.discard(message_id)
            self._look_again(channel)
            self._tidy(channel)
            self._offer(channel)  # messages that waited behind it, if the turn ended meanwhile

    def _claim(self, channel: str, message_id: str, place: tuple[int, int], worker: Worker) -> None:
        writer = Writer(by=worker.name, node=self._node) if worker.is_local else None
        caller = Caller(id=worker.name, writer=writer, is_server=True)
        lease_s = 0.0 if worker.is_local else LEASE_S

        def done(answer: Result | HoldfastError) -> None:
            work = self._work.get(channel)
            if work is not None:
                work.claiming.discard(message_id)
            if isinstance(answer, HoldfastError):
                self._loop.call_soon(self.freed, worker)
                self._not_claimed(channel, message_id, place, answer)
                return
            assert answer.generation is not None
            self._claimed(worker, TurnOffer(channel, message_id, answer.generation, lease_s or None))

        try:
            self._submit(channel, message_id, ClaimTurn(generation=place[1], lease_s=lease_s), caller, done)
        except HoldfastError as error:
            done(error)

    def _not_claimed(self, channel: str, message_id: str, place: tuple[int, int], error: HoldfastError) -> None:
        if error.retry:
            again = partial(self._wait_again, channel, message_id, place)
            self._deadlines.set(("claim", channel, message_id), self._loop.time() + RETRY_S, again)
        else:
            logger.debug("message %s of %s was not for us: %s", message_id, channel, error)
            self._loop.call_soon(self._offer, channel)

    def _wait_again(self, channel: str, message_id: str, place: tuple[int, int]) -> None:
        """Return the turn to the waiting ones after its claim failed, unless it has changed meanwhile."""
        work = self._work.setdefault(channel, _Work())
        if message_id not in work.running and message_id not in work.claiming:
            work.waiting.setdefault(message_id, place)
        self._look_again(channel)
        self._offer(channel)

    def _look_again(self, channel: str) -> None:
        live = self._find(channel)
        if live is not None:
            self.inspect(live, None)

    def _claimed(self, worker: Worker, turn: TurnOffer) -> None:
        work = self._work.setdefault(turn.channel, _Work())
        self._deadlines.drop(("nobody", turn.channel, turn.message_id))
        known = work.running.get(turn.message_id)
        if known is None or known[0].generation != turn.generation or worker not in self._workers:
            # The turn was ended at the same time, or the worker is gone and the lease lapses.
            self._loop.call_soon(self.freed, worker)
            self._loop.call_soon(self._offer, turn.channel)  # messages that waited behind it
            if known is None:
                self._look_again(turn.channel)
            if known is not None and worker not in self._workers:
                self._lapse_in(turn.channel, turn.message_id, known[0], 0.0)
            self._tidy(turn.channel)
            return
        work.running[turn.message_id] = (known[0], worker)
        if worker.is_local:
            self._deadlines.drop(("turn", turn.channel, turn.message_id))
        worker.begin(turn)

    def _tidy(self, channel: str) -> None:
        work = self._work.get(channel)
        if work is not None and work.is_empty:
            del self._work[channel]

    # -- running turns -----------------------------------------------------------------------------------------

    def renew(self, worker: Worker, turn: TurnOffer) -> bool:
        """Renew the lease of a remote worker's turn. Return False if the turn does not belong to it any more."""
        running = self._running(turn.channel, turn.message_id, turn.generation)
        if running is None:
            return False
        claim, _ = running
        if claim.node is not None or claim.by != worker.name or claim.within is not None:
            return False  # of another agent: a reconnecting worker has the same name
        self._work[turn.channel].running[turn.message_id] = (claim, worker)
        self._lapse_in(turn.channel, turn.message_id, claim, (claim.lease_ms or LEASE_S * 1000) / 1000)
        return True

    def claimed_by(self, channel: str, message_id: str) -> str | None:
        """Return the name of the agent that has the turn of `message_id`, or None."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        return running[0].by if running is not None else None

    def turn_of(self, channel: str, name: str, message_id: str | None) -> tuple[str, int, ClaimState] | None:
        """Return the turn of `message_id` of agent `name`, its attempt and claim; with None, the newest turn."""
        work = self._work.get(channel)
        if work is None:
            return None
        own = [
            (one, claim.generation, claim)
            for one, (claim, _) in work.running.items()
            if claim.by == name and claim.within is None and message_id in (None, one)
        ]
        return own[-1] if own else None

    def _check_held(self, channel: str, message_id: str) -> None:
        """Resolve `message_id`, which a turn had taken in: it ends with that turn, or waits again if that is lost."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        live = self._find(channel)
        within = running[0].within if running is not None else None
        if running is None or within is None:
            return
        claim = running[0]
        held = live.state.message(message_id) if live is not None else None
        host = live.state.message(within) if live is not None else None
        # A channel outside memory is loaded again when its turn ends.
        is_over = live is not None and (host is None or host.deleted or host.claim is None or not host.claim.is_open)
        if ("unheard", channel, message_id, within, claim.within_generation) in self._deadlines:
            self._lapse(channel, message_id, claim.generation)
        elif not is_over:
            if self._running(channel, within, claim.within_generation) is None:
                self._lapse(channel, message_id, claim.generation)
        elif host is not None and held is not None and host.last < held.last:  # the turn was over before
            self._lapse(channel, message_id, claim.generation)
        else:
            is_done = host is not None and host.claim is not None and host.claim.state == "done"
            self._end_held(channel, message_id, claim.generation, "done" if is_done else "cancelled")

    def is_held(self, channel: str, message_id: str, within: str, attempt: int) -> bool:
        """Return whether that attempt at the turn of `within` has taken `message_id` in."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        return running is not None and (running[0].within, running[0].within_generation) == (within, attempt)

    def _end_held(self, channel: str, message_id: str, generation: int, state: Literal["done", "cancelled"]) -> None:
        def done(answer: Result | HoldfastError) -> None:
            if isinstance(answer, HoldfastError) and answer.retry:
                again = partial(self._check_held, channel, message_id)
                self._deadlines.set(("turn", channel, message_id), self._loop.time() + RETRY_S, again)

        try:
            self._submit(channel, message_id, EndTurn(generation=generation, state=state), SERVER, done)
        except HoldfastError as error:
            done(error)

    def end(self, worker: Worker, turn: TurnOffer, state: Literal["done", "cancelled"], done: Done) -> None:
        """Store the end of `turn`, then offer waiting messages. `done` gets the result."""
        caller = Caller(id=worker.name, is_server=worker.is_local)

        self._forget_worker(worker, turn)
        try:
            request = EndTurn(generation=turn.generation, state=state)
            self._submit(turn.channel, turn.message_id, request, caller, done)
        except HoldfastError as error:
            done(error)

    def freed(self, worker: Worker) -> None:
        """Offer waiting turns: the worker has one more free slot.

        If it had a free slot before, no turn waits for a slot: all other changes that release a waiting turn (the end
        of a turn or claim, a new message) offer the turns of their channel themselves.
        """
        worker.free += 1
        if worker.free == 1:
            self.offer_all()

    def set_state(self, channel: str, worker_name: str, data: dict[str, object]) -> None:
        """Set the state that an agent shows in `channel`."""
        live = self._find(channel)
        if live is not None:
            live.presence_state.update(worker_name, data)

    def _forget_worker(self, worker: Worker, turn: TurnOffer) -> None:
        """Do not notify the worker that ended the turn itself."""
        running = self._running(turn.channel, turn.message_id, turn.generation)
        if running is not None and running[1] is worker:
            self._work[turn.channel].running[turn.message_id] = (running[0], None)

    def _running(self, channel: str, message_id: str, generation: int) -> tuple[ClaimState, Worker | None] | None:
        """Return the claim of a turn and its worker, if known; None if that attempt is over."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        return running if running is not None and running[0].generation == generation else None

    def _lapse_in(self, channel: str, message_id: str, claim: ClaimState, term_s: float) -> None:
        self._deadlines.set(
            ("turn", channel, message_id),
            self._loop.time() + term_s,
            partial(self._lapse, channel, message_id, claim.generation),
        )

    def _lapse(self, channel: str, message_id: str, generation: int) -> None:
        """Offer the turn again: its worker is gone."""
        running = self._running(channel, message_id, generation)
        if running is None:
            return
        work = self._work[channel]
        del work.running[message_id]
        if running[1] is not None:
            work.unheard[message_id] = running[1]
            running[1].ended(TurnOffer(channel, message_id, generation, None), "lost")
        self._deadlines.drop(("turn", channel, message_id))
        live = self._find(channel)
        message = live.state.message(message_id) if live is not None else None
        work.waiting[message_id] = (message.created if message is not None else 0, generation)
        for held in work.held_by(message_id):
            self._check_held(channel, held)
        self._watch_unclaimed(channel, message_id)
        self._offer(channel)

    def _interrupt_all_but(self, channel: str, work: _Work, newest: str) -> None:
        own = [one for one, (claim, _) in work.running.items() if claim.within is None]
        for message_id in [*own, *work.waiting]:
            if message_id != newest and message_id not in work.interrupted:
                work.interrupted.add(message_id)
                self._interrupt(channel, message_id, command_key(self._clock.new_id()))

    def _interrupt(self, channel: str, message_id: str, key: str) -> None:
        """Cancel the turn of `message_id`, as a `cancel` would: a newer message interrupts it."""

        def done(answer: Result | HoldfastError) -> None:
            if isinstance(answer, HoldfastError) and answer.retry:
                again = partial(self._interrupt, channel, message_id, key)
                self._deadlines.set(("interrupt", channel, message_id), self._loop.time() + RETRY_S, again)
            elif isinstance(answer, HoldfastError):
                logger.debug("message %s of %s needed no interruption: %s", message_id, channel, answer)

        try:
            command = SendCommand(name=CANCEL.name, target=message_id, data={"reason": "interrupted"})
            self._submit(channel, key, command, SERVER, done)
        except HoldfastError as error:
            done(error)

    def _watch_unclaimed(self, channel: str, message_id: str) -> None:
        """Schedule the `nobody_listening` signal for a message that waits from now on."""
        nobody_came = partial(self._signal_unclaimed, channel, message_id)
        self._deadlines.set(("nobody", channel, message_id), self._loop.time() + UNCLAIMED_S, nobody_came)

    def _signal_unclaimed(self, channel: str, message_id: str) -> None:
        work = self._work.get(channel)
        live = self._find(channel)
        if work is not None and message_id in work.waiting and live is not None and not self.has_agent(channel):
            live.presence_state.signal(Signal(name="nobody_listening", data={"message": message_id}))

    def _remember(self, pattern: str) -> None:
        now_ms = self._clock.now_ms()
        noted_ms = self._patterns.get(pattern)
        if noted_ms is not None and 0 <= now_ms - noted_ms < NOTED_MS:
            return
        if noted_ms is None and len(self._patterns) >= REMEMBERED_PATTERNS:
            logger.warning("agents serve more than %d patterns; %r is not remembered", REMEMBERED_PATTERNS, pattern)
            return
        self._patterns[pattern] = now_ms
        self._spawn(self._store.note({PATTERN_NOTE + pattern: json.dumps(now_ms).encode()}))


def _show(worker: Worker, channel: Channel) -> None:
    """Make `worker` a member of `channel` if it serves it. In a full channel it works without being a member."""
    if matches(worker.pattern, channel.name):
        with suppress(TooMany):
            channel.presence_state.enter(worker.name, "agent", worker, {"state": "listening"})
