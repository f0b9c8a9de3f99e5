"""Taking turns: work that the server hands out to whoever serves a pattern of channels.

Layer: client.

The low level of agents: who is told of a turn, and how it is kept. What a turn is to a handler
(its history, its reply) is built on top of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import Struct

from holdfast.client.link import Link, Result
from holdfast.core.errors import (
    Deleted,
    Fenced,
    Finished,
    HoldfastError,
    InvalidRequest,
    InvalidText,
    LocalError,
    NotFound,
    TooLarge,
)
from holdfast.core.model import Json, Message, check_json, plain
from holdfast.core.patterns import RULE, is_pattern, matches

logger = logging.getLogger("holdfast.client")

RENEWALS = 3  # in a lease's term
_LOST = (Fenced, Finished, Deleted, NotFound)
_UNSAID = (InvalidRequest, InvalidText, TooLarge)  # what is said along with a renewal cannot be


class TurnOffer(Struct, frozen=True, kw_only=True):
    """What the server gives out: a message to work on, and the claim that it is ours."""

    channel: str
    message: Message
    generation: int
    lease_s: float
    pattern: str | None = None  # of the worker that it is for
    name: str | None = None


OnTurn = Callable[["ClaimedTurn"], Awaitable[None]]


class Worker:
    """Serves one pattern of channels on one link."""

    def __init__(
        self, link: Link, pattern: str, *, slots: int, when_busy: str | None, name: str | None, on_turn: OnTurn
    ) -> None:
        self.pattern = check_pattern(pattern)
        if slots < 1:
            raise LocalError("a worker has at least one slot")
        self._link = link
        self._slots = slots
        self._fields = {"when_busy": when_busy, "name": name}
        self._on_turn = on_turn
        self._turns: dict[tuple[str, str], ClaimedTurn] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._over: asyncio.Future[None] | None = None  # the server refused us, or we have drained
        self._is_draining = False
        self._is_asking = False  # for work: not answered yet
        self._is_listed = True  # may turns be given to us?
        self._open = 0  # turns whose end is not told yet

    async def run(self) -> None:
        """Work until cancelled, or drained. Raises what the server refused, such as Forbidden.

        Turns that run when it is cancelled are cancelled too, and not reported: their claims lapse, and somebody else
        takes them over.
        """
        if self._is_draining:
            return
        self._over = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._link.stand(self)
                try:
                    await self._over
                finally:
                    self._link.step_down(self)
                    if self._link.is_live and not self._is_draining:
                        self._link.begin("work", self._frame(0), _take, is_repeatable=False)
        except* HoldfastError as group:
            raise group.exceptions[0] from None

    def drain(self) -> None:
        """Take no more turns; `run` returns when those that run are over."""
        if not self._is_draining:
            self._is_draining = True
            if not self._is_asking:  # else when it is answered
                self._unlist()

    def is_for(self, offer: TurnOffer) -> bool:
        """Is it this worker that the turn is given to?"""
        name = self._fields["name"]
        is_ours = offer.pattern in (None, self.pattern) and (name is None or offer.name in (None, name))
        return is_ours and matches(self.pattern, offer.channel)

    def take(self, offer: TurnOffer) -> None:
        """The server gave us a turn."""
        key = offer.channel, offer.message.id
        known = self._turns.get(key)
        if known is not None:
            if offer.generation <= known.generation:
                return  # told twice
            known.cancel()
        assert self._tasks is not None
        turn = self._turns[key] = ClaimedTurn(self._link, offer)
        turn.task = self._tasks.create_task(self._run(key, turn), name=f"turn {offer.channel}")
        self._open += 1
        turn.task.add_done_callback(self._closed)

    # For the link

    def opened(self) -> None:
        if self._is_draining and not self._open:
            self._unlist()
            return
        # While draining too: the renewal and the end of a turn count only on a socket that has asked for work.
        slots = self._open if self._is_draining else self._slots
        self._is_asking = self._is_listed = True
        self._link.begin("work", self._frame(slots), self._answered, is_repeatable=False)
        for turn in self._turns.values():
            turn.renew()  # the end of the socket before has cut their claims short

    def broken(self) -> None:
        """Turns go on: their claims outlive a socket by a lease."""

    def stopped(self, error: HoldfastError) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    # Inside

    def _unlist(self) -> None:
        """Turns that were given to us before the answer to this are known when it comes: they are done, too."""
        self._link.begin("work", self._frame(0), self._unlisted, is_repeatable=False)

    def _unlisted(self, answer: Result) -> None:
        self._is_listed = False  # without a connection, too: nothing is given out by none
        self._look_whether_drained()

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._open -= 1
        self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        is_drained = self._is_draining and not self._is_listed and not self._open
        if is_drained and self._over is not None and not self._over.done():
            self._over.set_result(None)

    async def _run(self, key: tuple[str, str], turn: ClaimedTurn) -> None:
        """The whole of a turn. After an error its end is not told: the claim lapses, and it is tried again."""
        turn.renew_later()
        try:
            await self._on_turn(turn)
        except asyncio.CancelledError:
            if not turn.is_lost:
                raise
            logger.warning("the turn of %s in %s was lost", turn.message.id, turn.channel)
            return
        except HoldfastError as error:
            logger.error("the turn of %s in %s failed: %s", turn.message.id, turn.channel, error)
            return
        except Exception:
            logger.exception("the turn of %s in %s failed", turn.message.id, turn.channel)
            return
        finally:
            turn.end()
            if self._turns.get(key) is turn:
                del self._turns[key]
        await turn.done()

    def _answered(self, answer: Result) -> None:
        """Was the pattern taken? What may pass is asked again with the next socket, or after a while."""
        self._is_asking = False
        if self._is_draining:
            self._unlist()
        if not isinstance(answer, HoldfastError) or self._over is None or self._over.done():
            return
        if not answer.retry:
            self._over.set_exception(answer)
        elif self._link.is_live:
            delay_s = self._link.timing.retry(4, self._link.random)
            asyncio.get_running_loop().call_later(delay_s, self._ask_again)

    def _ask_again(self) -> None:
        if self._link.is_live and self._over is not None and not self._over.done():
            self.opened()

    def _frame(self, slots: int) -> dict[str, Any]:
        fields = {name: value for name, value in self._fields.items() if value is not None}
        return {"pattern": self.pattern, "slots": slots, **fields}


class ClaimedTurn:
    """A turn that is ours, for as long as the handler runs that it was given to."""

    def __init__(self, link: Link, offer: TurnOffer) -> None:
        self.channel = offer.channel
        self.message = offer.message  # to be worked on
        self.generation = offer.generation  # of the claim: how many times it was begun
        self.lease_s = offer.lease_s
        self.outcome: Literal["done", "cancelled"] = "done"  # how it ends when the handler returns
        self.is_lost = False  # it is over, or another's: the handler is being cancelled
        self.task: asyncio.Task[None] | None = None
        self._link = link
        self._state: dict[str, Json] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, state: dict[str, Json]) -> None:
        """Let those who look on know what the agent does now. Never stored.

        Raises InvalidRequest, InvalidText or TooLarge where that cannot be sent.
        """
        limits = self._link.limits
        check_json(state, limits.data_bytes, "what an agent says", depth=limits.depth)
        self._state = plain(state)
        self.renew()

    # For the worker

    def renew_later(self) -> None:
        self.end()
        self._timer = asyncio.get_running_loop().call_later(self.lease_s / RENEWALS, self.renew)

    def renew(self) -> None:
        """Say that it is being worked on. Without a connection the claim lives on for the rest of its term."""
        state = {} if self._state is None else {"state": self._state}
        when_answered = partial(self._renewed, self._state)
        self._link.begin("turn.renew", {**self._claim(), **state}, when_answered, is_repeatable=False)
        self.renew_later()

    async def confirm(self) -> None:
        """Return when the server has said that it is ours still: we may hear of it long after it was given to us.

        Raises Fenced.
        """
        await self._link.request("turn.renew", self._claim())

    def end(self) -> None:
        """Renew no more."""
        if self._timer is not None:
            self._timer.cancel()

    def cancel(self) -> None:
        """Work on it no more, and say nothing of it."""
        self.is_lost = True
        if self.task is not None:
            self.task.cancel()

    async def done(self) -> None:
        """Tell that the turn is over."""
        try:
            await self._link.request("turn.done", {**self._claim(), "state": self.outcome})
        except HoldfastError as error:
            logger.warning("the end of the turn of %s could not be told: %s", self.message.id, error.code)

    def _renewed(self, said: dict[str, Json] | None, answer: Result) -> None:
        if self.task is None or self.task.done():
            return
        if isinstance(answer, _LOST):
            self.cancel()
        elif isinstance(answer, _UNSAID) and said is not None and said is self._state:
            logger.warning("what an agent says of %s cannot be told: %s", self.message.id, answer)
            self._state = None
            self.renew()  # the claim must not lapse for it

    def _claim(self) -> dict[str, Any]:
        return {"channel": self.channel, "message": self.message.id, "generation": self.generation}


class Workers:
    """All workers of a client: who gets which turn."""

    def __init__(self, link: Link) -> None:
        self._workers: list[Worker] = []
        link.when_turn = self._take

    def drain(self) -> None:
        """Take no more turns."""
        for worker in self._workers:
            worker.drain()

    async def run(self, worker: Worker) -> None:
        """Run `worker`, and let it have the turns of its pattern."""
        self._workers.append(worker)
        try:
            await worker.run()
        finally:
            self._workers.remove(worker)

    def _take(self, frame: dict[str, Any]) -> None:
        try:
            offer = msgspec.convert(frame, TurnOffer)
        except msgspec.ValidationError as error:
            logger.error("a turn that is not understood: %s", error)
            return
        worker = next((one for one in self._workers if one.is_for(offer)), None)
        if worker is not None:  # else we stopped serving it meanwhile: the claim lapses
            worker.take(offer)


def check_pattern(pattern: str) -> str:
    """Return `pattern`; raises InvalidRequest unless it is one."""
    if not is_pattern(pattern):
        raise InvalidRequest(f"pattern {pattern!r}: {RULE}")
    return pattern


def _take(answer: Result) -> None:
    """Whatever the server says: we have left."""
