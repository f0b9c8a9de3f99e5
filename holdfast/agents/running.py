"""How a turn runs: the handler in a task, and somebody who listens for a stop.

Layer: agents.

The same in the hub's process and in another one. However a handler ends, its answer is ended, the
turn is ended, and whoever asked for a stop is answered; a traceback stays in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

from holdfast.agents.backend import Backend, Watch, Writer, find
from holdfast.agents.ids import ANSWERS, reply_id, reply_ids
from holdfast.agents.stops import answer_stops, until_stopped
from holdfast.agents.turn import OnCrash, Turn
from holdfast.core.decide_work import CRASHED
from holdfast.core.errors import (
    AlreadyAnswered,
    Deleted,
    Draining,
    Fenced,
    Finished,
    Forbidden,
    HoldfastError,
    LocalError,
    NotFound,
    StillStreaming,
    public_reason,
)
from holdfast.core.model import Json, Message
from holdfast.core.names import check_id
from holdfast.core.turns import Replier, rules_of

logger = logging.getLogger("holdfast.agents")

PATIENCE_S = 30.0  # for an earlier attempt's answer to be interrupted, before it is gone on with
RETRY_S = 1.0  # after a store that failed
SHUTDOWN_S = 10.0  # for a handler that was cancelled to put down what it holds

WITHDRAWN: Json = {"code": "withdrawn", "detail": "whoever asked does not wait for the answer any more"}

T = TypeVar("T")
Handler = Callable[[Turn], Awaitable[None]]


class Agent(NamedTuple):
    """A handler, and how it is to be run."""

    handler: Handler
    name: str
    on_crash: OnCrash = "restart"
    timeout_s: float = 3600.0  # for one turn


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """What `call` gives; where the store fails, asked again until it does not. Raises what will not pass."""
    while True:
        try:
            return await call()
        except HoldfastError as error:
            if not error.retry or isinstance(error, Draining):
                raise
            logger.warning("an agent will try again: %s", error)
        await asyncio.sleep(RETRY_S)


def check_agent(agent: Agent) -> Agent:
    """Return `agent`; raises LocalError or InvalidName where it cannot be run."""
    if inspect.isroutine(agent.handler) and not inspect.iscoroutinefunction(agent.handler):
        raise LocalError(f"an agent's handler is an async function; {agent.name!r} is none")
    check_id(agent.name, "an agent's name")
    if agent.on_crash not in ("interrupt", "restart", "continue"):
        raise LocalError("on_crash is interrupt, restart or continue")
    if not agent.timeout_s > 0:
        raise LocalError("timeout_s is above 0")
    return agent


def check_work(when_busy: str, slots: int) -> None:
    """Raises LocalError where turns cannot be taken so."""
    if when_busy not in ("queue", "interrupt", "parallel"):
        raise LocalError("when_busy is queue, interrupt or parallel")
    if slots < 1:
        raise LocalError("an agent has at least one slot")


class _Left(NamedTuple):
    """What the attempt before this one left."""

    answer: Message | None = None
    writer: Writer | None = None  # that goes on with it
    is_over: bool = False  # was it whole, or stopped by somebody? Then only the turn's end is missing


class Running:
    """One turn of `agent`, from its claim to its end. `run` is the whole of it; `stop` may come from outside."""

    def __init__(self, agent: Agent, backend: Backend, channel: str, message: Message, attempt: int) -> None:
        self.channel = channel
        self.message = message
        self.attempt = attempt
        self._agent = agent
        self._backend = backend
        self._work: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._is_lost = False
        self._is_late = False
        self._is_shutting_down = False
        self._failure: str | None = None  # public reason
        self._ending = asyncio.Event()  # the handler was asked to end
        self._turn: Turn | None = None

    def stop(self, *, is_lost: bool = False) -> None:
        """End the handler: somebody said so, or, with `is_lost`, another has the turn now."""
        self._is_stopped = True
        self._is_lost = self._is_lost or is_lost
        self._ending.set()
        if self._turn is not None:
            self._turn.is_cancelled = True
            for reply in self._turn.replies:
                reply.cancelled_as = ("cancelled", None)
        if self._work is not None:
            self._work.cancel()

    async def run(self) -> str | None:
        """Do the turn. Returns how it ended, `done` or `cancelled`, or None when it is left for somebody else."""
        watch = await self._backend.watch(self.channel)
        try:
            return await self._run(watch)
        finally:
            watch.close()

    async def _run(self, watch: Watch) -> str | None:
        left = await patiently(lambda: self._after_crash(watch))
        turn = self._turn = Turn(
            self._backend,
            watch,
            self.channel,
            self.message,
            self.attempt,
            name=self._agent.name,
            previous=left.answer,
            taken_up=left.writer,
        )
        if self.attempt > 1:
            await self._withdraw(self._questions_left(watch, left.answer))
        if left.is_over:
            return "cancelled" if left.answer is not None and left.answer.status == "cancelled" else "done"
        if self.attempt > 1 and self._agent.on_crash == "interrupt":
            if left.answer is None:
                await self._say_failed(turn, CRASHED)
            return "done"
        return await self._work_on(watch, turn)

    async def _work_on(self, watch: Watch, turn: Turn) -> str | None:
        """Run the handler, until it ends or is ended, and see to what it leaves."""
        backend = self._backend
        turn.progress("thinking")
        self._work = asyncio.ensure_future(self._handle(turn))
        listening = asyncio.ensure_future(self._listen(watch, turn))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            if self._is_stopped:
                self._work.cancel()
            await asyncio.wait([self._work, ending], return_when=asyncio.FIRST_COMPLETED)
            if not self._work.done():  # a handler that does not let itself be cancelled holds nobody up for ever
                await asyncio.wait([self._work], timeout=SHUTDOWN_S)
        except asyncio.CancelledError:  # the process is leaving, which is nobody's wish that the answer ends
            for reply in turn.replies:
                reply.cancelled_as = ("interrupted", None)
            self._is_shutting_down = True
            self._work.cancel()
            await asyncio.wait([self._work], timeout=SHUTDOWN_S)
            raise
        finally:
            listening.cancel()
            ending.cancel()
            await asyncio.wait([listening, ending])
        if self._is_lost or (backend.is_shutting_down and self._work.cancelled()):
            return None  # another has it, or will
        await self._withdraw(turn.asked)
        if self._is_late:
            self._failure = self._failure or "timeout"  # of one who did not let itself be cancelled, too
        if self._failure is not None:
            await self._say_failed(turn, self._failure)
        await self._end_what_is_open(turn)
        await answer_stops(watch, lambda: turn.targets, self._answer_stop)
        return "cancelled" if self._is_stopped else "done"

    async def _handle(self, turn: Turn) -> None:
        """The handler, and why it failed."""
        limit = asyncio.get_running_loop().call_later(self._agent.timeout_s, self._time_out, turn)
        try:
            await self._agent.handler(turn)
        except asyncio.CancelledError as error:
            if self._is_late:
                logger.warning("turn of %s in %s took too long", self.message.id, self.channel)
                self._failure = "timeout"
            elif self._is_stopped or self._is_shutting_down or self._backend.is_shutting_down:
                raise
            else:  # not ours: something that the handler waited for was cancelled
                logger.error("turn of %s in %s failed", self.message.id, self.channel, exc_info=error)
                self._failure = "error"
        except HoldfastError as error:
            if self._is_stopped and isinstance(error, Finished):
                return
            logger.warning("turn of %s in %s failed: %s", self.message.id, self.channel, error, exc_info=error)
            self._failure = error.code
        except Exception as error:
            logger.exception("turn of %s in %s failed", self.message.id, self.channel)
            self._failure = public_reason(error) or "error"
        finally:
            limit.cancel()

    def _time_out(self, turn: Turn) -> None:
        self._is_late = True
        self._ending.set()
        for reply in turn.replies:
            reply.cancelled_as = ("failed", "timeout")
        if self._work is not None:
            self._work.cancel()

    async def _say_failed(self, turn: Turn, reason: str) -> None:
        """A turn that failed before it began an answer, or while it did: people see at least that.

        An answer that was begun says itself how it ended.
        """

        async def say() -> None:
            if self._is_lost or (turn.replies and turn.replies[-1].is_begun):
                return
            turn.replies = turn.begun
            async with turn.reply() as message:
                await message.finish("failed", reason=reason)

        try:
            await patiently(say)
        except HoldfastError as error:
            logger.warning("the failure of a turn could not be said: %s", error)

    async def _end_what_is_open(self, turn: Turn) -> None:
        """Answers that were opened, or taken over for the handler, and neither finished nor left."""
        taken_up = turn.take_unused()
        if taken_up is not None:
            with contextlib.suppress(HoldfastError):
                async with taken_up:
                    await taken_up.finish("cancelled" if self._is_stopped else "failed", reason=None)
        for reply in turn.begun:
            with contextlib.suppress(HoldfastError):
                if reply.is_over:
                    await reply.flush()  # its end may be under way still: nobody is told of it before it is stored
                else:
                    reason = "timeout" if self._is_late else None
                    await reply.finish("cancelled" if self._is_stopped else "failed", reason=reason)

    async def _listen(self, watch: Watch, turn: Turn) -> None:
        """Stop the handler when somebody asks for it."""
        await until_stopped(watch, lambda: turn.targets)
        self.stop()

    async def _answer_stop(self, command_id: str) -> None:
        by = self._agent.name
        await self._backend.reply(self.channel, command_id, ok=self._is_stopped, data=None, error=None, by=by)

    def _questions_left(self, watch: Watch, answer: Message | None) -> list[str]:
        """What earlier attempts asked people, and nobody waits for any more."""
        authors = {self._agent.name, answer.author if answer is not None else None} - {None}
        targets = {self.message.id, *reply_ids(self.message.id, self.attempt - 1)}
        return [
            one.id
            for one in watch.commands()
            if one.from_ in authors and one.target in targets and rules_of(one.name).replier is Replier.READER
        ]

    async def _withdraw(self, questions: Iterable[str]) -> None:
        """Result questions that nobody waits for."""
        for command_id in tuple(questions):
            try:
                async with asyncio.timeout(SHUTDOWN_S):
                    await self._withdraw_one(command_id)
            except AlreadyAnswered:
                pass
            except (HoldfastError, TimeoutError) as error:  # it will expire
                logger.warning("a question in %s could not be withdrawn: %r", self.channel, error)

    async def _withdraw_one(self, command_id: str) -> None:
        by = self._agent.name
        await patiently(
            lambda: self._backend.reply(self.channel, command_id, ok=False, data=None, error=WITHDRAWN, by=by)
        )

    async def _after_crash(self, watch: Watch) -> _Left:
        """What the attempt before this one left, and with `continue` the writer that goes on with it."""
        for attempt in range(self.attempt - 1, 0, -1):
            answers = await self._answers_of(attempt)
            if not answers:
                continue
            previous = answers[0]
            if answers[-1].status in ("complete", "cancelled"):
                return _Left(answers[-1], is_over=True)
            if self._agent.on_crash != "continue" or previous.status not in ("streaming", "interrupted"):
                return _Left(previous)
            return await self._go_on(watch, previous)
        return _Left()

    async def _answers_of(self, attempt: int) -> list[Message]:
        """What an earlier attempt wrote; nothing where we may not read."""
        answers: list[Message] = []
        for number in range(ANSWERS):
            try:
                one = await find(self._backend, self.channel, reply_id(self.message.id, attempt, number))
            except Forbidden as error:
                logger.warning("an agent may not read what it wrote before a crash: %s", error)
                break
            if one is None or one.reply_to != self.message.id or one.role == "user":  # nothing, or somebody else's
                break
            answers.append(one)
        return answers

    async def _go_on(self, watch: Watch, previous: Message) -> _Left:
        """Take the earlier attempt's answer over, once its lease has ended."""
        writer = await self._taken_over(watch, previous)
        if writer is None:
            return _Left(previous)
        try:  # from here on it is ours, whatever happens: nobody else would end it
            return _Left(await patiently(lambda: find(self._backend, self.channel, previous.id)), writer)
        except HoldfastError as error:
            logger.warning("an answer that is gone on with could not be read: %s", error)
            return _Left(previous, writer)

    async def _taken_over(self, watch: Watch, previous: Message) -> Writer | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        return await self._backend.take_over(self.channel, previous.id, author=self._agent.name)
                    except StillStreaming:
                        await watch.changed()
                    except (Finished, Fenced, Deleted, NotFound):  # somebody else has ended it, or goes on with it
                        return None
        return None
