"""The turn scheduler: which agent works on which message.

Layer: hub.

A user message in a channel that agents serve is stored as pending, in the same commit. The turn scheduler
offers what is pending to the workers that match, by a claim that is stored before the work begins: so exactly one
process works on a message, and when it dies another takes over. What is pending is known again after any crash, since
the store answers that; the turn scheduler itself holds nothing that it could not read anew.

A worker is an agent in this process (`holdfast.agents`) or a socket that asked for work (`transports.session`).
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
from holdfast.hub.channel import Channel
from holdfast.hub.clock import Clock
from holdfast.hub.committer import Done, Result
from holdfast.hub.deadlines import Deadlines
from holdfast.hub.leases import BROKEN_S, RETRY_S, Submit
from holdfast.hub.patterns import matches
from holdfast.stores.base import Store

logger = logging.getLogger("holdfast.hub")

WhenBusy = Literal["queue", "interrupt", "parallel"]
LEASE_S = 15.0  # of a turn that a worker elsewhere has; it renews at a third
UNHEARD_S = 120.0  # longer than it may be unclear whether a claim was stored
NOBODY_S = 5.0  # a message that nobody takes for so long: whoever looks on is told
REMEMBERED_PATTERNS = 1_000
REMEMBERED_MS = 24 * 3600 * 1000  # after an agent was there last, messages wait for it so long
NOTED_MS = 3600 * 1000  # between two notes that it is still there
PATTERN_NOTE = "served/"  # notes of patterns that are served, so that a message waits for an agent that is away


class TurnOffer(NamedTuple):
    """A turn that a worker has."""

    channel: str
    message_id: str
    generation: int
    lease_s: float | None  # None: it lives in this process, and needs no renewal


class Worker(Protocol):
    """Somebody who works on messages; known by being the same object."""

    def __hash__(self) -> int: ...

    name: str  # the member that people see, and the identity of the claim
    pattern: str
    when_busy: WhenBusy
    is_local: bool  # lives and dies with this process
    free: int  # turns it would take now

    def begin(self, turn: TurnOffer) -> None:
        """The turn is yours. Called after it was stored."""

    def ended(self, turn: TurnOffer, state: str) -> None:
        """The turn is over (`done`, `cancelled`) or another's (`lost`), without your saying so."""


class _Work:
    """What a channel has for agents."""

    __slots__ = ("claiming", "interrupted", "running", "unheard", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[int, int]] = {}  # message → its `created`, and the attempts so far
        self.claiming: set[str] = set()
        self.interrupted: set[str] = set()  # for which a newer one came
        self.running: dict[str, tuple[ClaimState, Worker | None]] = {}
        self.unheard: dict[str, Worker] = {}  # message → who had its turn, and was not heard of

    def held_by(self, message_id: str) -> list[str]:
        """The messages that the turn of `message_id` has taken in."""
        return [one for one, (claim, _) in self.running.items() if claim.within == message_id]

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.claiming or self.running)


class TurnScheduler:
    """Offers turns to workers. Every method is called on the hub's loop."""

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
        self._patterns: dict[str, int] = {}  # served now or lately, and when that was noted: messages there wait
        self._work: dict[str, _Work] = {}
        self._is_over = False

    # -- workers -----------------------------------------------------------------------------------------------

    def register(self, worker: Worker) -> None:
        """`worker` takes turns from now on, and is seen in every channel it serves."""
        self._workers[worker] = None
        self._remember(worker.pattern)
        for channel in self._live():
            _show(worker, channel)
        self.offer_all()

    def unregister(self, worker: Worker, *, is_broken: bool = False) -> None:
        """`worker` takes no more turns. With `is_broken` those it has are another's soon, unless they are renewed."""
        if self._workers.pop(worker, worker) is worker and not is_broken:
            return
        for channel in self._live():
            if matches(worker.pattern, channel.name) and channel.presence_state.disconnect(worker.name, worker):
                if is_broken:  # a blip does not flicker
                    leave = partial(channel.presence_state.remove, worker.name)
                    self._deadlines.set(("agent", channel.name, worker.name), self._loop.time() + BROKEN_S, leave)
                else:
                    channel.presence_state.remove(worker.name)
        for name, work in list(self._work.items()):
            for message_id, (claim, taker) in list(work.running.items()):
                if taker is worker and is_broken:  # one that takes no more still has those
                    work.running[message_id] = (claim, None)
                    if not worker.is_local:
                        self._lapse_in(name, message_id, claim, BROKEN_S)

    def hand_over(self, worker: Worker, heir: Worker) -> None:
        """What turns `worker` has are those of `heir`, which is the same agent asked for anew."""
        for work in self._work.values():
            for message_id, (claim, taker) in work.running.items():
                if taker is worker:
                    work.running[message_id] = (claim, heir)

    def serves(self, channel: str) -> bool:
        """Do agents answer in `channel`, now or when they are back?"""
        return any(matches(pattern, channel) for pattern in self._patterns)

    def has_agent(self, channel: str) -> bool:
        """Is there an agent for `channel` now?"""
        return any(matches(worker.pattern, channel) for worker in self._workers)

    def loaded(self, channel: Channel) -> None:
        """`channel` is in memory from now on: its agents are seen there."""
        for worker in self._workers:
            _show(worker, channel)

    def stats(self) -> dict[str, int]:
        """Counters."""
        return {
            "agents": len(self._workers),
            "turns_waiting": sum(len(work.waiting) for work in self._work.values()),
            "turns_running": sum(
                claim.within is None for work in self._work.values() for claim, _ in work.running.values()
            ),
        }

    def close(self) -> None:
        """No more turns: the hub leaves."""
        self._is_over = True

    # -- what is to be done ------------------------------------------------------------------------------------

    async def recall(self) -> None:
        """Read which patterns were served before this start."""
        for name, value in (await self._store.notes(PATTERN_NOTE)).items():
            self._patterns[name.removeprefix(PATTERN_NOTE)] = json.loads(value)

    def tidy(self) -> None:
        """Every few seconds: note what is served, and forget what is not any more."""
        for worker in self._workers:
            self._remember(worker.pattern)
        oldest_ms = self._clock.now_ms() - REMEMBERED_MS
        for pattern in [pattern for pattern, noted_ms in self._patterns.items() if noted_ms < oldest_ms]:
            del self._patterns[pattern]
            self._spawn(self._store.note({PATTERN_NOTE + pattern: None}))

    def look(self, channel: Channel, keys: Iterable[str] | None) -> None:
        """The messages `keys` of `channel` changed; with None, any may have."""
        state = channel.state
        known = self._work.get(channel.name)
        if keys is None:
            keys = {*state.messages, *(known.waiting if known is not None else ())}
            keys |= set(known.running) if known is not None else set()
        is_changed = False
        for key in keys:
            if not key.startswith(COMMAND_MARK):
                is_changed |= self.look_at(channel.name, key, state.message(key))
        if is_changed:
            self._offer(channel.name)

    def look_at(self, channel: str, key: str, message: MessageState | None) -> bool:
        """See to the turn of the message `key`; True if something is to be done."""
        claim = message.claim if message is not None else None
        work = self._work.get(channel)
        if claim is None and work is None:
            return False
        if work is None:
            work = self._work[channel] = _Work()
        if message is None or claim is None or message.deleted or not claim.is_open:
            return self._over(channel, work, key, claim)
        if claim.state == "pending" or self._is_orphan(work, key, claim):
            if key in work.claiming:
                return False
            is_known = key in work.waiting
            work.waiting[key] = (message.created, claim.generation)  # who gave up a claim may have it stored since
            if not is_known:
                self._expect_somebody(channel, key)
            return not is_known
        if key in work.waiting and work.waiting[key][1] == claim.generation:
            return False  # whoever took it is gone, and nobody else has it yet
        running = work.running.get(key)
        if running is None or running[0].generation != claim.generation:
            work.running[key] = (claim, None)
            work.waiting.pop(key, None)
            if claim.within is not None:  # when all that changed has been looked at
                self._deadlines.set(("turn", channel, key), self._loop.time(), partial(self._check_held, channel, key))
            elif claim.lease_ms:
                self._lapse_in(channel, key, claim, claim.lease_ms / 1000)
            elif claim.node == self._node:  # until its worker begins
                self._lapse_in(channel, key, claim, BROKEN_S)
        return False

    def _is_orphan(self, work: _Work, key: str, claim: ClaimState) -> bool:
        """Did its worker die with another process, or was it stored as ours when we had given up waiting for that?"""
        if claim.node == self._node:
            return key not in work.claiming and key not in work.running
        return claim.node is not None and self._store.is_exclusive

    def _over(self, channel: str, work: _Work, key: str, claim: ClaimState | None) -> bool:
        """The turn of `key` waits for nobody and nobody is at work on it."""
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
        """Workers have room: see what waits."""
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
                    continue  # it is offered again when what runs is over
            del work.waiting[message_id]
            work.claiming.add(message_id)
            worker.free -= 1
            self._claim(channel, message_id, place, worker)

    def _give_up(self, channel: str, work: _Work) -> None:
        """End turns that had all their attempts: what kills its worker would do so for ever, one after another.

        Only where somebody would get them: until then nobody is harmed. So none ends before the hub has recovered,
        which has a say in what the last attempt left.
        """
        if not self.has_agent(channel):
            return
        for message_id, place in list(work.waiting.items()):
            if place[1] >= ATTEMPTS:
                del work.waiting[message_id]
                work.claiming.add(message_id)
                self._end_given_up(channel, message_id, place)

    def _end_given_up(self, channel: str, message_id: str, place: tuple[int, int]) -> None:
        """Store that the turn is over, with an answer that says so: one decision, so that it is said once."""

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
        """Who has most room; `unheard`, whose socket may be about to be found dead, only where nobody else is."""
        fitting = [one for one in self._workers if one.free > 0 and matches(one.pattern, channel)]
        return max(fitting, key=lambda one: (one is not unheard, one.free), default=None)

    @contextmanager
    def taking(self, channel: str, message_id: str, within: str, attempt: int) -> Iterator[None]:
        """Somebody claims `message_id` for a turn that runs already: meanwhile it is offered to nobody.

        Where that does not come to an answer, and is stored all the same, the turn has not heard of it.
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
            self._offer(channel)  # what waited behind it, if the turn ended meanwhile

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
        """It could not be stored who has the turn: it waits as before, unless it has moved on meanwhile."""
        work = self._work.setdefault(channel, _Work())
        if message_id not in work.running and message_id not in work.claiming:
            work.waiting.setdefault(message_id, place)
        self._look_again(channel)
        self._offer(channel)

    def _look_again(self, channel: str) -> None:
        live = self._find(channel)
        if live is not None:
            self.look(live, None)

    def _claimed(self, worker: Worker, turn: TurnOffer) -> None:
        work = self._work.setdefault(turn.channel, _Work())
        self._deadlines.drop(("nobody", turn.channel, turn.message_id))
        known = work.running.get(turn.message_id)
        if known is None or known[0].generation != turn.generation or worker not in self._workers:
            # It was ended in the same moment, or the worker is gone: then its lease lapses.
            self._loop.call_soon(self.freed, worker)
            self._loop.call_soon(self._offer, turn.channel)  # what waited behind it
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

    # -- turns that are had ------------------------------------------------------------------------------------

    def renew(self, worker: Worker, turn: TurnOffer) -> bool:
        """A worker elsewhere is still at it. False: the turn is not its own any more."""
        running = self._running(turn.channel, turn.message_id, turn.generation)
        if running is None:
            return False
        claim, _ = running
        if claim.node is not None or claim.by != worker.name or claim.within is not None:
            return False  # of another agent: whoever comes back does so by its name
        self._work[turn.channel].running[turn.message_id] = (claim, worker)
        self._lapse_in(turn.channel, turn.message_id, claim, (claim.lease_ms or LEASE_S * 1000) / 1000)
        return True

    def claimed_by(self, channel: str, message_id: str) -> str | None:
        """The name of the agent that has the turn of `message_id`, if one has."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        return running[0].by if running is not None else None

    def turn_of(self, channel: str, name: str, message_id: str | None) -> tuple[str, int, ClaimState] | None:
        """The turn of `message_id` that agent `name` has, its attempt and claim; with None, the one that came last."""
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
        """A turn had taken `message_id` in: it is over with that turn, and waits again where that is lost."""
        work = self._work.get(channel)
        running = work.running.get(message_id) if work is not None else None
        live = self._find(channel)
        within = running[0].within if running is not None else None
        if running is None or within is None:
            return
        claim = running[0]
        held = live.state.message(message_id) if live is not None else None
        host = live.state.message(within) if live is not None else None
        # A channel that is not in memory is read anew when its turn ends.
        is_over = live is not None and (host is None or host.deleted or host.claim is None or not host.claim.is_open)
        if ("unheard", channel, message_id, within, claim.within_generation) in self._deadlines:
            self._lapse(channel, message_id, claim.generation)
        elif not is_over:
            if self._running(channel, within, claim.within_generation) is None:
                self._lapse(channel, message_id, claim.generation)
        elif host is not None and held is not None and host.last < held.last:  # it was over before
            self._lapse(channel, message_id, claim.generation)
        else:
            is_done = host is not None and host.claim is not None and host.claim.state == "done"
            self._end_held(channel, message_id, claim.generation, "done" if is_done else "cancelled")

    def is_held(self, channel: str, message_id: str, within: str, attempt: int) -> bool:
        """Has that attempt at the turn of `within` taken `message_id` in?"""
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
        """The worker's work on `turn` is over: store that, and offer what waits. `done` gets the answer."""
        caller = Caller(id=worker.name, is_server=worker.is_local)

        self._forget_worker(worker, turn)
        try:
            request = EndTurn(generation=turn.generation, state=state)
            self._submit(turn.channel, turn.message_id, request, caller, done)
        except HoldfastError as error:
            done(error)

    def freed(self, worker: Worker) -> None:
        """The worker has room for one more.

        Where it had room already, nothing waits for it to have more: whatever else makes something wait no longer (a
        turn or a claim that is over, a message that comes) offers what waits in that channel itself.
        """
        worker.free += 1
        if worker.free == 1:
            self.offer_all()

    def said(self, channel: str, worker_name: str, data: dict[str, object]) -> None:
        """What an agent does in `channel` now, for those who look on."""
        live = self._find(channel)
        if live is not None:
            live.presence_state.update(worker_name, data)

    def _forget_worker(self, worker: Worker, turn: TurnOffer) -> None:
        """Whoever ends a turn need not be told that it ended."""
        running = self._running(turn.channel, turn.message_id, turn.generation)
        if running is not None and running[1] is worker:
            self._work[turn.channel].running[turn.message_id] = (running[0], None)

    def _running(self, channel: str, message_id: str, generation: int) -> tuple[ClaimState, Worker | None] | None:
        """The claim of a turn, and who works on it where that is known; None where that attempt is over."""
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
        """The worker of a turn is gone: another takes over."""
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
        self._expect_somebody(channel, message_id)
        self._offer(channel)

    def _interrupt_all_but(self, channel: str, work: _Work, newest: str) -> None:
        own = [one for one, (claim, _) in work.running.items() if claim.within is None]
        for message_id in [*own, *work.waiting]:
            if message_id != newest and message_id not in work.interrupted:
                work.interrupted.add(message_id)
                self._interrupt(channel, message_id, command_key(self._clock.new_id()))

    def _interrupt(self, channel: str, message_id: str, key: str) -> None:
        """Something newer is wanted: the turn of `message_id` is cancelled, as if somebody had asked for it."""

        def done(answer: Result | HoldfastError) -> None:
            if isinstance(answer, HoldfastError) and answer.retry:
                again = partial(self._interrupt, channel, message_id, key)
                self._deadlines.set(("interrupt", channel, message_id), self._loop.time() + RETRY_S, again)
            elif isinstance(answer, HoldfastError):
                logger.debug("message %s of %s needed no interruption: %s", message_id, channel, answer)

        try:
            command = SendCommand(name="cancel", target=message_id, data={"reason": "interrupted"})
            self._submit(channel, key, command, SERVER, done)
        except HoldfastError as error:
            done(error)

    def _expect_somebody(self, channel: str, message_id: str) -> None:
        """The message waits from now on: whoever looks on is told when nobody takes it."""
        nobody_came = partial(self._nobody_came, channel, message_id)
        self._deadlines.set(("nobody", channel, message_id), self._loop.time() + NOBODY_S, nobody_came)

    def _nobody_came(self, channel: str, message_id: str) -> None:
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
    """Let `worker` be seen in `channel` if it serves it. In a crowd it is not seen, and works all the same."""
    if matches(worker.pattern, channel.name):
        with suppress(TooMany):
            channel.presence_state.enter(worker.name, "agent", worker, {"state": "listening"})
