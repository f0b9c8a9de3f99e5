"""The workers of a hub: the registered workers, the patterns that they serve, and their presence in channels.

Layer: hub. The turn scheduler (`tenuto.hub.turns.scheduler`) gives them turns. A worker is an agent in this process
(`tenuto.agents`) or a socket that sent `work` (`transports.session`).

On a store that several hubs share, each of them has a deadline for the turn of an agent in another process. So a
renewal is stored before it is answered, as a confirmation of the attempt: each hub that reads it gives the turn another
term, and a hub that has not read it cannot claim the turn, because its claim names the confirmation before. An attempt
that its agent has lost is given back by a confirmation with a lease that ends at once: then each hub offers the turn to
its own agents.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Literal, NamedTuple, Protocol

from tenuto.core.errors import TenutoError, TooMany
from tenuto.core.names import matches
from tenuto.core.requests import Caller, ClaimTurn
from tenuto.core.turns import TurnState
from tenuto.hub.channel import Channel
from tenuto.hub.clock import Clock, Deadlines
from tenuto.hub.leases import BROKEN_S, Submit
from tenuto.hub.nodes.nodes import NodeLease
from tenuto.hub.pending import Result
from tenuto.stores.base import Store

logger = logging.getLogger("tenuto.hub")

WhenBusy = Literal["queue", "interrupt", "parallel"]
REMEMBERED_PATTERNS = 1_000
# messages wait for an agent for this time after the last agent of their pattern was present
REMEMBERED_MS = 24 * 3600 * 1000
NOTED_MS = 3600 * 1000  # time between two notes in the store that a pattern is still served
# prefix of the notes in the store that a pattern is served: its messages wait even while all its agents are absent
PATTERN_NOTE = "served/"


class AssignedTurn(NamedTuple):
    """One attempt at a turn, as a worker gets it."""

    channel: str
    message_id: str
    generation: int
    lease_s: float | None  # None: the worker lives in this process, so its lease needs no renewal
    tries: int = 1  # number of attempts of this round that count, with this one


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


class WorkerPool:
    """The workers that take turns now. All methods run on the hub's loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        deadlines: Deadlines,
        *,
        store: Store,
        live: Callable[[], Iterable[Channel]],
        spawn: Callable[..., object],
    ) -> None:
        """Make a pool without workers."""
        self._loop = loop
        self._clock = clock
        self._deadlines = deadlines
        self._store = store
        self._live = live  # the channels in memory, by name
        self._spawn = spawn
        self.changed: Callable[[], None] = _ignore  # called when other nodes should know of a pattern or a waiting turn
        self.elsewhere: frozenset[str] = frozenset()  # patterns that other living nodes serve
        self._workers: dict[Worker, None] = {}
        # patterns that are or were recently served, with the time of the last note about it; messages there wait for an
        # agent
        self._patterns: dict[str, int] = {}

    def __contains__(self, worker: Worker) -> bool:
        return worker in self._workers

    def __len__(self) -> int:
        return len(self._workers)

    def add(self, worker: Worker) -> None:
        """Add `worker`, and make it a member of each channel that it serves."""
        self._workers[worker] = None
        self._remember(worker.pattern)
        for channel in self._live():
            _show(worker, channel)
        self.changed()

    def remove(self, worker: Worker) -> bool:
        """Remove `worker`, but leave it a member of its channels until `hide`. Return whether it was there."""
        return self._workers.pop(worker, worker) is None

    def hide(self, worker: Worker, *, is_broken: bool) -> None:
        """End the presence of `worker` in its channels; with `is_broken` a little later."""
        for channel in self._live():
            if matches(worker.pattern, channel.name) and channel.presence_state.disconnect(worker.name, worker):
                if is_broken:  # a short disconnection must not make the agent vanish and reappear
                    leave = partial(channel.presence_state.remove, worker.name)
                    self._deadlines.set(("agent", channel.name, worker.name), self._loop.time() + BROKEN_S, leave)
                else:
                    channel.presence_state.remove(worker.name)

    def loaded(self, channel: Channel) -> None:
        """Make the agents that serve `channel` members of it, because it was loaded."""
        for worker in self._workers:
            _show(worker, channel)

    def best_for(self, channel: str, suspect: Worker | None) -> Worker | None:
        """Return the worker with the most free slots. `suspect`, whose connection may be dead, is the last resort."""
        fitting = [one for one in self._workers if one.free > 0 and matches(one.pattern, channel)]
        return max(fitting, key=lambda one: (one is not suspect, one.free), default=None)

    def patterns_by_name(self) -> dict[str, str]:
        """Return the names of the workers, each with its pattern."""
        return {worker.name: worker.pattern for worker in self._workers}

    def has_agent(self, channel: str) -> bool:
        """Return whether an agent for `channel` is present."""
        return any(matches(worker.pattern, channel) for worker in self._workers)

    def has_room(self, channel: str) -> bool:
        """Return whether a worker for `channel` has a free slot."""
        return self.best_for(channel, None) is not None

    # -- served patterns ---------------------------------------------------------------------------------------

    @property
    def patterns(self) -> Mapping[str, int]:
        """Return the patterns that are or were recently served, with the time of the last note about each."""
        return self._patterns

    def serves(self, channel: str) -> bool:
        """Return whether agents serve `channel`, at this node or another one, now or after they reconnect."""
        return any(matches(pattern, channel) for pattern in self._patterns) or self.is_served_elsewhere(channel)

    def is_served_elsewhere(self, channel: str) -> bool:
        """Return whether an agent for `channel` is present at another node."""
        return any(matches(pattern, channel) for pattern in self.elsewhere)

    def served(self) -> list[str]:
        """Return the patterns of the workers that are present."""
        return sorted({worker.pattern for worker in self._workers})

    @property
    def present(self) -> set[str]:
        """Return the patterns of the agents that are present, at this node or another one."""
        return {*self.served(), *self.elsewhere}

    def note_elsewhere(self, patterns: Iterable[str]) -> None:
        """Note all patterns that other nodes serve now. Those nodes keep the notes in the store."""
        self.elsewhere = frozenset(patterns)
        now_ms = self._clock.now_ms()
        for pattern in self.elsewhere:
            if pattern in self._patterns or len(self._patterns) < REMEMBERED_PATTERNS:
                self._patterns[pattern] = now_ms

    async def recall(self, known: Mapping[str, int]) -> None:
        """Read from the store the patterns that were served before this start.

        A failover may have lost the notes of patterns that the hub has `known`: they are stored again.
        """
        for name, value in (await self._store.notes(PATTERN_NOTE)).items():
            with suppress(ValueError):  # of another version of the hub
                self._patterns[name.removeprefix(PATTERN_NOTE)] = int(value)
        for pattern, noted_ms in known.items():
            if noted_ms >= self._patterns.get(pattern, 0) + NOTED_MS:
                self._patterns[pattern] = noted_ms
                self._spawn(self._note(pattern, noted_ms))

    def tidy(self) -> None:
        """Renew the stored notes of served patterns and drop the expired ones. The hub calls this every few seconds."""
        for worker in self._workers:
            self._remember(worker.pattern)
        oldest_ms = self._clock.now_ms() - REMEMBERED_MS
        for pattern in [pattern for pattern, noted_ms in self._patterns.items() if noted_ms < oldest_ms]:
            del self._patterns[pattern]
            self._spawn(self._store.note({PATTERN_NOTE + pattern: None}))

    def _remember(self, pattern: str) -> None:
        now_ms = self._clock.now_ms()
        noted_ms = self._patterns.get(pattern)
        if noted_ms is not None and 0 <= now_ms - noted_ms < NOTED_MS:
            return
        if noted_ms is None and len(self._patterns) >= REMEMBERED_PATTERNS:
            logger.warning("agents serve more than %d patterns; %r is not remembered", REMEMBERED_PATTERNS, pattern)
            return
        self._patterns[pattern] = now_ms
        self._spawn(self._note(pattern, now_ms))

    async def _note(self, pattern: str, now_ms: int) -> None:
        """Store that `pattern` is served at `now_ms`. After a failure of the store, `tidy` does it again."""
        try:
            await self._store.note({PATTERN_NOTE + pattern: json.dumps(now_ms).encode()})
        except TenutoError:
            if self._patterns.get(pattern) == now_ms:
                self._patterns[pattern] = now_ms - NOTED_MS
            raise


def _ignore() -> None:
    """Do nothing: no other node uses the store."""


def _show(worker: Worker, channel: Channel) -> None:
    """Make `worker` a member of `channel` if it serves it. In a full channel it works without being a member."""
    if matches(worker.pattern, channel.name):
        with suppress(TooMany):
            channel.presence_state.enter(worker.name, "agent", worker, {"state": "listening"})


def store_renewal(
    submit: Submit,
    nodes: NodeLease,
    name: str,
    turn: AssignedTurn,
    done: Callable[[TenutoError | None], None],
    *,
    gives_back: bool = False,
) -> None:
    """Store that the agent `name` renews `turn`, or `gives_back` the lost attempt, on a shared store.

    `done` is called with None, or with the refusal.
    """

    def stored(result: Result | TenutoError) -> None:
        done(result if isinstance(result, TenutoError) else None)

    if nodes.is_exclusive:
        done(None)
        return
    request = ClaimTurn(generation=turn.generation, renews=True, gives_back=gives_back)
    try:
        submit(turn.channel, turn.message_id, request, Caller(id=name), stored)
    except TenutoError as error:
        done(error)


def share_loss(submit: Submit, channel: str, turn: TurnState[Worker]) -> None:
    """Give back, on a shared store, the attempt of a remote worker whose connection is broken, unless it was renewed.

    This hub ends such an attempt before its lease ends, and the other hubs would wait for that.
    """
    claim = turn.claim
    if claim is None or claim.node is not None or claim.within is not None:
        return

    def stored(result: Result | TenutoError) -> None:
        if isinstance(result, TenutoError):
            logger.debug("the turn of %s in %s was not given back: %s", turn.message_id, channel, result)

    request = ClaimTurn(generation=turn.attempt, confirmed=turn.confirmed, renews=True, gives_back=True)
    try:
        submit(channel, turn.message_id, request, Caller(id=claim.by, is_server=True), stored)
    except TenutoError as error:
        stored(error)
