"""The agents of a socket, as the turn scheduler's workers: the frames `work`, `turn`, `turn.renew` and `turn.done`.

Layer: transports.

A turn of a socket is leased: its agent renews it. When the socket breaks, the scheduler soon gives the turn to another
worker.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal

from tenuto.core.errors import Fenced, InvalidRequest, NotWriter, TenutoError, TooMany
from tenuto.core.model import Json, check_json
from tenuto.core.names import check_channel, check_id, invalid_pattern, is_pattern, matches
from tenuto.hub.access.identity import Identity
from tenuto.hub.hub import HubCore
from tenuto.hub.pending import Result
from tenuto.hub.turns.scheduler import LEASE_S
from tenuto.hub.turns.workers import AssignedTurn, WhenBusy, store_renewal
from tenuto.transports.access import check_work, member_of
from tenuto.transports.codec import TurnDoneFrame, TurnRenewFrame, TurnTakeFrame, WorkFrame

Respond = Callable[[dict[str, Json] | TenutoError], None]  # gets the fields of a response, or the refusal

MAX_PATTERNS = 20
MAX_PATTERN_CHARACTERS = 201  # length of a channel's name, and a star


class SocketWorker:
    """One agent of a socket, which takes the turns of one pattern."""

    is_local = False

    def __init__(
        self,
        give: Callable[[SocketWorker, AssignedTurn], None],
        hub: HubCore,
        name: str,
        pattern: str,
        slots: int,
        when_busy: WhenBusy,
    ) -> None:
        self.name = name
        self.pattern = pattern
        self.when_busy = when_busy
        self.free = slots
        self._give = give
        self._hub = hub
        self.turns: set[AssignedTurn] = set()
        self.is_listed = True  # True: the scheduler may give this worker turns

    def take_over(self, other: SocketWorker) -> None:
        """Continue the turns of the worker that this one replaces."""
        self.turns |= other.turns
        self.free -= len(other.turns)

    def has(self, channel: str, message_id: str | None) -> bool:
        """Return whether this worker has this turn or, with None, any turn in the channel."""
        return any(turn.channel == channel and message_id in (None, turn.message_id) for turn in self.turns)

    def begin(self, turn: AssignedTurn) -> None:
        """Send the turn to the agent (`Worker.begin`)."""
        self.turns.add(turn)
        self._give(self, turn)

    def ended(self, turn: AssignedTurn, state: str) -> None:
        """Free the slot of a turn that ended elsewhere (`Worker.ended`)."""
        self._free(turn)

    def renew(self, frame: TurnRenewFrame) -> None:
        """Renew the lease of a turn. Raises Fenced if the turn is over or another worker has it."""
        turn = self.turn_of(frame)
        if not self._hub.runtime.scheduler.renew(self, turn):
            raise _not_its_turn()
        if not self.has(turn.channel, turn.message_id):  # a turn of the previous socket takes a slot here
            self.turns.add(turn)
            self.free -= 1
        if frame.state is not None:
            check_json(frame.state, self._hub.limits.data_bytes, "a state", depth=self._hub.limits.depth)
            self._hub.runtime.scheduler.set_state(frame.channel, self.name, frame.state)

    def end(self, turn: AssignedTurn, state: Literal["done", "cancelled", "pending"], done: Respond) -> None:
        """End a turn, or hand it over."""

        def ended(result: Result | TenutoError) -> None:
            if not isinstance(result, TenutoError):
                done({"serial": result.serial})
            else:  # the response must not show which turns other workers have
                done(result if result.retry else _not_its_turn())

        self._hub.runtime.scheduler.end(self, turn, state, ended)
        self._free(turn)

    def given_back(self, turn: AssignedTurn, error: TenutoError | None, done: Respond) -> None:
        """Let a turn wait for its next attempt, because its agent has lost this one, or `done` gets the `error`."""
        scheduler = self._hub.runtime.scheduler
        if error is None:
            scheduler.renew(self, turn)  # it may be a turn of the previous socket
            done({} if scheduler.left(self, turn) else _not_its_turn())
        else:
            done(error if error.retry else _not_its_turn())
        self._free(turn)

    def works_in(self, channel: str) -> bool:
        """Return whether this worker has a turn in `channel`."""
        return any(turn.channel == channel for turn in self.turns)

    def turn_of(self, frame: TurnRenewFrame | TurnDoneFrame) -> AssignedTurn:
        """Return the turn that `frame` names. Raises InvalidName."""
        return AssignedTurn(check_channel(frame.channel), check_id(frame.message), frame.generation, LEASE_S)

    def _free(self, turn: AssignedTurn) -> None:
        known = next((one for one in self.turns if one[:3] == turn[:3]), None)
        if known is not None:
            self.turns.discard(known)
            self._hub.runtime.scheduler.freed(self)
            if not any(one.channel == turn.channel for one in self.turns):
                self._hub.runtime.scheduler.set_state(turn.channel, self.name, {"state": "listening"})


def _not_its_turn() -> Fenced:
    return Fenced("the turn of this message is over or another worker has it; stop working on it")


class SocketWorkers:
    """All workers of one socket, by pattern and name."""

    __slots__ = ("_give", "_hub", "_keeps_leases", "_start_task", "_workers")

    def __init__(
        self,
        hub: HubCore,
        give: Callable[[SocketWorker, AssignedTurn], None],
        start_task: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._hub = hub
        self._give = give
        self._start_task = start_task
        self._keeps_leases = False
        # made on first use, because most sockets have no worker
        self._workers: dict[tuple[str, str], SocketWorker] | None = None

    def __bool__(self) -> bool:
        return any(one.is_listed or one.turns for one in (self._workers or {}).values())

    def work(self, frame: WorkFrame, identity: Identity) -> None:
        """Register a worker, replace it or, with `slots=0`, end it. Raises Forbidden, InvalidRequest, TooMany."""
        if self._workers is None:
            self._workers = {}
        name, pattern = member_of(identity, frame.name), frame.pattern
        known = self._workers.get((pattern, name))
        if known is not None:
            self._hub.runtime.scheduler.unregister(known)
        # With no slots, the worker takes no more turns. It keeps those that it has, and those of its previous socket,
        # which it may have yet to renew here.
        if not frame.slots:
            if known is not None:
                known.is_listed = False
            return
        if not is_pattern(pattern) or len(pattern) > MAX_PATTERN_CHARACTERS:
            raise InvalidRequest(invalid_pattern(pattern))
        check_work(identity, pattern)
        if known is None and len(self._workers) >= MAX_PATTERNS:
            self._workers = {key: one for key, one in self._workers.items() if one.is_listed or one.turns}
        if known is None and len(self._workers) >= MAX_PATTERNS:
            raise TooMany(
                f"this socket works on {MAX_PATTERNS} patterns, which is the limit; open another one",
                limit=MAX_PATTERNS,
            )
        worker = SocketWorker(self._give, self._hub, name, pattern, frame.slots, frame.when_busy)
        if known is not None:
            worker.take_over(known)
            self._hub.runtime.scheduler.hand_over(known, worker)
        self._workers[pattern, name] = worker
        self._start_task(self._register(worker))

    async def _register(self, worker: SocketWorker) -> None:
        """Register in a separate task, so that the response is sent before the first turn."""
        if (
            self._workers is not None
            and self._workers.get((worker.pattern, worker.name)) is worker
            and worker.is_listed
        ):
            self._hub.runtime.scheduler.register(worker)

    def find(self, frame: TurnRenewFrame | TurnTakeFrame | TurnDoneFrame) -> SocketWorker:
        """Return the worker that a frame about a turn is meant for. Raises InvalidRequest if no worker fits."""
        fitting = [one for one in (self._workers or {}).values() if matches(one.pattern, frame.channel)]
        for worker in fitting:
            if worker.has(frame.channel, None if isinstance(frame, TurnTakeFrame) else frame.message):
                return worker
        if fitting:  # for a turn of the previous socket: the claim in the log names the worker
            by = self._hub.runtime.scheduler.claimed_by(frame.channel, frame.message)
            return next((worker for worker in fitting if worker.name == by), fitting[0])
        # The same text for every channel, since it must not show whether the channel exists.
        raise InvalidRequest("this socket takes no turns in that channel: send `work` with a pattern for it first")

    def renew(self, frame: TurnRenewFrame, done: Respond) -> None:
        """Renew the lease of a turn, once the renewal is stored where other hubs need it."""
        worker = self.find(frame)
        turn = worker.turn_of(frame)

        def stored(error: TenutoError | None) -> None:
            try:
                if isinstance(error, NotWriter) and self.find(frame) is not worker:  # the channel is loaded by now
                    self.renew(frame, done)
                    return
                if error is not None:
                    raise error if error.retry else _not_its_turn()
                if self._workers is None:  # the socket has closed meanwhile, as in `release`
                    self._hub.runtime.scheduler.renew(worker, turn)
                    self._hub.runtime.scheduler.unregister(worker, is_broken=True, keeps_leases=self._keeps_leases)
                else:
                    self.find(frame).renew(frame)  # a worker that has replaced the other one
            except TenutoError as refusal:
                done(refusal)
            else:
                done({"lease_s": LEASE_S})

        runtime = self._hub.runtime
        store_renewal(runtime.submit, runtime.nodes, worker.name, turn, stored)

    def end(self, frame: TurnDoneFrame, done: Respond) -> None:
        """End a turn, or let it wait for its next attempt if the agent has lost this one."""
        worker = self.find(frame)
        turn = worker.turn_of(frame)

        def stored(error: TenutoError | None) -> None:
            # a `work` frame may have replaced the worker meanwhile
            holder = (self._workers or {}).get((worker.pattern, worker.name), worker)
            holder.given_back(turn, error, done)

        if frame.state == "lost":
            runtime = self._hub.runtime
            store_renewal(runtime.submit, runtime.nodes, worker.name, turn, stored, gives_back=True)
        else:
            worker.end(turn, "pending" if frame.state == "handed_over" else frame.state, done)

    async def take(self, frame: TurnTakeFrame) -> bool:
        """Take a waiting message into a running turn; return whether that succeeded."""
        worker = self.find(frame)
        channel, message_id = check_channel(frame.channel), check_id(frame.message)
        turn = check_id(frame.turn) if frame.turn is not None else None
        return worker.works_in(channel) and await self._hub.take_waiting(channel, message_id, worker.name, turn=turn)

    def release(self, *, keeps_leases: bool) -> None:
        """Unregister all workers, because the socket has closed; their turns end as `Holdings.release` ends leases."""
        self._keeps_leases = keeps_leases
        workers, self._workers = self._workers or {}, None
        if self._hub.is_running:
            for worker in workers.values():
                self._hub.runtime.scheduler.unregister(worker, is_broken=True, keeps_leases=keeps_leases)
