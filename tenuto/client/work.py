"""Turns of a remote worker: the server assigns them to workers, each of which serves a pattern of channels.

Layer: client.

This is the lower level of agents: it accepts turns and renews their claims. `tenuto.agents` builds the turn of a
handler on it, with history and reply. When the process receives a signal, its running answers get time to complete
(`Signals`). The hub has its own hook (`hub.drain`), because a server shuts down in another order: there the server
receives the signal and ends; here `run` ends first, and then the signal is passed on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any, Literal, Self

from msgspec import Struct

from tenuto.client.connection import given
from tenuto.client.link import Link, Outcome, ignore
from tenuto.core.errors import (
    Deleted,
    Fenced,
    Finished,
    InvalidRequest,
    InvalidText,
    LocalError,
    NotFound,
    TenutoError,
    TooLarge,
)
from tenuto.core.model import Json, Message, check_json, plain
from tenuto.core.names import check_pattern, matches
from tenuto.core.turns import MOST_UNHEARD

logger = logging.getLogger("tenuto.client")

RENEWALS = 3  # number of renewals within the length of a lease
_LOST = (Fenced, Finished, Deleted, NotFound)  # the turn is over, at least for this attempt
_STATE_REFUSED = (InvalidRequest, InvalidText, TooLarge)  # the state in a renewal is refused, not the renewal itself


class TurnOffer(Struct, frozen=True, kw_only=True):
    """A turn that the server assigns: the message to work on, and the claim."""

    channel: str
    message: Message
    generation: int
    lease_s: float
    pattern: str | None = None  # channel pattern of the worker that gets the turn
    name: str | None = None
    debug: bool = False  # True: the reason of a failed answer may name the exception
    tries: int = 1  # number of attempts that count, with this one


OnTurn = Callable[["ClaimedTurn"], Awaitable[None]]


class RemoteWorker:
    """Serves one channel pattern on one link."""

    def __init__(
        self, link: Link, pattern: str, *, slots: int, when_busy: str | None, name: str | None, on_turn: OnTurn
    ) -> None:
        self.pattern = check_pattern(pattern)
        if slots < 1:
            raise LocalError(f"slots must be 1 or more, got {slots}")
        self._link = link
        self._slots = slots
        self._fields = given(when_busy=when_busy, name=name)  # further ones of the frame `work`
        self._on_turn = on_turn
        self._turns: dict[tuple[str, str], ClaimedTurn] = {}  # whose handler runs, by channel and message
        self._tasks: asyncio.TaskGroup | None = None
        self._over = asyncio.get_running_loop().create_future()  # done when it is refused, or has drained
        self._is_draining = False
        self._is_asking = False  # True: a request for work has no response yet
        self._is_listed = True  # True: the server may assign turns to this worker
        self._open = 0  # number of turns whose task runs: after the handler it reports the end

    async def run(self) -> None:
        """Work until cancelled or drained. Raises the server's refusal, such as Forbidden.

        If it is cancelled, its running turns are cancelled without a report: their claims lapse, and another worker
        takes them over.
        """
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._link.add_listener(self)
                try:
                    await self._over
                finally:
                    self._link.remove_listener(self)
                    if self._link.is_live and not self._is_draining:
                        self._link.begin("work", self._frame(0), ignore)  # 0: no more turns
        except* TenutoError as group:
            raise group.exceptions[0] from None

    def drain(self) -> None:
        """Take no more turns; `run` returns when the running ones are over."""
        if not self._is_draining:
            self._is_draining = True
            if not self._is_asking:  # otherwise after the response
                self._unlist()

    def is_for(self, offer: TurnOffer) -> bool:
        """Return whether the turn is meant for this worker."""
        name = self._fields.get("name")
        is_ours = offer.pattern in (None, self.pattern) and (name is None or offer.name in (None, name))
        return is_ours and matches(self.pattern, offer.channel)

    def take(self, offer: TurnOffer) -> None:
        """Accept a turn that the server has assigned."""
        key = offer.channel, offer.message.id
        known = self._turns.get(key)
        if known is not None:
            if offer.generation <= known.generation:
                return  # a repeated frame: the turn is already running
            known.cancel()
        assert self._tasks is not None
        turn = self._turns[key] = ClaimedTurn(self._link, offer)
        turn.task = self._tasks.create_task(self._run(key, turn), name=f"turn {offer.channel}")
        self._open += 1
        turn.task.add_done_callback(self._turn_ended)

    # Calls of the link

    def opened(self) -> None:
        if self._is_draining and not self._open:
            self._unlist()
            return
        # also while draining: the server accepts renewals and ends of turns only on a socket that has requested work
        slots = self._open if self._is_draining else self._slots
        self._is_asking = self._is_listed = True
        self._link.begin("work", self._frame(slots), self._on_result)
        for turn in self._turns.values():
            turn.renew()  # renew at once, because the server shortened the claims when the previous socket ended

    def broken(self) -> None:
        """Continue the turns, since a claim lasts for the rest of its lease without a socket."""

    def stopped(self, error: TenutoError) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    # Internal

    def _unlist(self) -> None:
        """Request no more turns.

        A turn that was assigned before the server's response arrives before that response, and is carried out.
        """
        self._link.begin("work", self._frame(0), self._unlisted)

    def _unlisted(self, result: Outcome) -> None:
        # without a connection this is certain, because the server assigns turns over connections only
        self._is_listed = False
        self._check_drained()

    def _turn_ended(self, task: asyncio.Task[None]) -> None:
        self._open -= 1
        self._check_drained()

    def _check_drained(self) -> None:
        is_drained = self._is_draining and not self._is_listed and not self._open
        if is_drained and not self._over.done():
            self._over.set_result(None)

    async def _run(self, key: tuple[str, str], turn: ClaimedTurn) -> None:
        """Carry out a turn.

        If that fails, its end is not sent, so that the claim ends and the turn is tried again.
        """
        turn.renew_later()
        try:
            await self._on_turn(turn)
        except asyncio.CancelledError:
            if not turn.is_lost:  # the worker was cancelled, and still has the turn
                turn.hand_over()
                raise
            logger.warning("the turn of %s in %s goes on as another attempt", turn.message.id, turn.channel)
            return
        except TenutoError as error:
            logger.error("the turn of %s in %s failed, and is tried again: %s", turn.message.id, turn.channel, error)
            return
        except Exception:
            logger.exception("the turn of %s in %s failed, and is tried again", turn.message.id, turn.channel)
            return
        finally:
            turn.stop_renewing()
            if self._turns.get(key) is turn:
                del self._turns[key]
        if turn.outcome is None:
            logger.warning("the turn of %s in %s goes on as another attempt", turn.message.id, turn.channel)
        await turn.done()

    def _on_result(self, result: Outcome) -> None:
        """Handle the response to a request for work. After a temporary refusal, repeat the request later."""
        self._is_asking = False
        if self._is_draining:
            self._unlist()
        if not isinstance(result, TenutoError) or self._over.done():
            return
        if not result.retry:
            self._over.set_exception(result)
        elif self._link.is_live:
            delay_s = self._link.timing.retry(4, self._link.random)  # as after four failures: up to 2 s
            asyncio.get_running_loop().call_later(delay_s, self._ask_again)

    def _ask_again(self) -> None:
        if self._link.is_live and not self._over.done():
            self.opened()

    def _frame(self, slots: int) -> dict[str, Any]:
        return {"pattern": self.pattern, "slots": slots, **self._fields}


class ClaimedTurn:
    """A turn that this client has claimed. The claim is renewed while the handler runs."""

    def __init__(self, link: Link, offer: TurnOffer) -> None:
        self.channel = offer.channel
        self.message = offer.message  # the user message to answer
        self.generation = offer.generation  # number of the attempt that the claim began
        self.tries = offer.tries  # number of attempts that count: all but those that were handed over
        self.lease_s = offer.lease_s
        self.is_development = offer.debug  # True: the hub's reasons of failed answers name the exception
        # how the turn ends when the handler returns; None: it does not, and waits for its next attempt
        self.outcome: Literal["done", "cancelled"] | None = "done"
        self.unheard: tuple[str, ...] = ()  # ids of messages that it took in without its handler
        self.is_lost = False  # True: the turn is over, or another worker has it; the handler is being cancelled
        self.task: asyncio.Task[None] | None = None
        self._link = link
        self._state: dict[str, Json] | None = None  # the agent's state, which renewals carry
        self._timer: asyncio.TimerHandle | None = None  # for the next renewal

    def progress(self, state: dict[str, Json]) -> None:
        """Show people the state of the agent, which is never stored. Raises InvalidRequest, InvalidText or TooLarge."""
        limits = self._link.limits
        check_json(state, limits.data_bytes, "an agent's state", depth=limits.depth)
        self._state = plain(state)
        self.renew()

    # Calls of the worker

    def renew_later(self) -> None:
        self.stop_renewing()
        self._timer = asyncio.get_running_loop().call_later(self.lease_s / RENEWALS, self.renew)

    def renew(self) -> None:
        """Renew the claim. Without a connection it lasts for the rest of its lease."""
        on_result = partial(self._renewed, self._state)
        self._link.begin("turn.renew", {**self._claim(), **given(state=self._state)}, on_result)
        self.renew_later()

    async def confirm(self) -> None:
        """Renew the claim and wait for the response, because the turn may have arrived late. Raises Fenced."""
        await self._link.request("turn.renew", self._claim())

    def stop_renewing(self) -> None:
        """Renew the claim no more."""
        if self._timer is not None:
            self._timer.cancel()

    def cancel(self) -> None:
        """Cancel the handler, and do not report the end of the turn."""
        self.is_lost = True
        if self.task is not None:
            self.task.cancel()

    def hand_over(self) -> None:
        """Let another worker take the turn at once, because this one ends; without a connection when the lease ends."""
        if self._link.is_live:
            self._link.begin("turn.done", {**self._claim(), "state": "handed_over"}, ignore)

    async def done(self) -> None:
        """Report the end of the turn, or of this attempt."""
        fields = given(state=self.outcome or "lost", unheard=self.unheard[:MOST_UNHEARD] or None)
        try:
            await self._link.request("turn.done", {**self._claim(), **fields})
        except TenutoError as error:
            logger.warning("the turn of %s is tried again, as its end was not sent: %s", self.message.id, error)

    def _renewed(self, sent_state: dict[str, Json] | None, result: Outcome) -> None:
        """Handle the response to a renewal that carried `sent_state`; None: it carried no state."""
        if self.task is None or self.task.done():
            return
        if isinstance(result, _LOST):
            self.cancel()
        elif isinstance(result, _STATE_REFUSED) and sent_state is not None and sent_state is self._state:
            logger.warning("the state of the agent for %s is not shown: %s", self.message.id, result)
            self._state = None
            self.renew()  # renew separately, because the frame with the state may be refused

    def _claim(self) -> dict[str, Any]:
        return {"channel": self.channel, "message": self.message.id, "generation": self.generation}


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Handles two signals while the block runs: calls `first` at the first one, and `again` at the second one.

    At the end of the block a received signal is passed on to the previous handler: the process ends as it would have
    without this class, but later.
    """

    def __init__(self, *, first: Callable[[], object], again: Callable[[], object]) -> None:
        self._first = first
        self._again = again
        self._before: dict[int, Any] = {}  # the previous handler of each signal
        self._loop: asyncio.AbstractEventLoop | None = None  # None outside of the block
        self._received: int | None = None  # the first signal

    def __enter__(self) -> Self:
        # Python allows handlers to be set in this thread only
        if threading.current_thread() is threading.main_thread():
            self._loop = asyncio.get_running_loop()
            for number in SIGNALS:
                before = signal.getsignal(number)
                # None: the handler was not set by Python. An ignored signal stays ignored. Neither can be called.
                if before is not None and before != signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._hit)
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()
        self._loop = None
        if self._received is not None:
            self._pass_on(self._received)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        if self._loop is None:  # the block has ended, but a handler that was set later still calls this one
            self._pass_on(number)
        elif self._received is None:
            self._received = number
            self._loop.call_soon_threadsafe(self._first)
        else:
            self._remove()  # a third signal goes to the previous handler
            self._loop.call_soon_threadsafe(self._again)

    def _remove(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._hit:  # otherwise a handler that was set later will call this one
                signal.signal(number, before)

    def _pass_on(self, number: int) -> None:
        """Let the handler from before the block have the signal; the default one of the system is no function."""
        before = self._before[number]
        if callable(before):
            before(number, None)
        else:
            signal.raise_signal(number)
