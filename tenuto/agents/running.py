"""Runs a turn: the handler in one task, and a second task that waits for a stop.

Layer: agents.

It is the same in the hub's process and in another one. Whichever way a handler ends, its answers and its turn are
ended, and each client that sent a stop gets a reply. A traceback stays in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from functools import partial
from itertools import count
from typing import Literal, NamedTuple

from tenuto.agents.backend import Backend, Watch, find, patiently
from tenuto.agents.request import TurnRequest, turn_request
from tenuto.agents.steps import Allowance
from tenuto.agents.turn import LeftAnswer, OnCrash, TakenUp, Turn
from tenuto.core.decide import CRASHED
from tenuto.core.errors import (
    AlreadyAnswered,
    Deleted,
    Draining,
    Fenced,
    Finished,
    Forbidden,
    LocalError,
    NotFound,
    StillStreaming,
    StoreUnavailable,
    TenutoError,
    failures_in,
    public_reason,
)
from tenuto.core.model import OPTIONS, OPTIONS_KEY, Command, Json, Message
from tenuto.core.names import check_id
from tenuto.core.requests import references, regenerate_options_id, stored_options
from tenuto.core.turns import ATTEMPTS, ROUND, WITHDRAWN, Replier, attempt_of, reply_id, reply_ids, rules_of
from tenuto.portal import Writer, current_try
from tenuto.sources.writing import going_on
from tenuto.watchdog import timed

logger = logging.getLogger("tenuto.agents")

Targets = Callable[[], Set[str]]  # returns the ids that a command may name; each answer of a turn adds its own


def stops(watch: Watch, targets: Targets) -> list[Command]:
    """Return the commands without a reply that stop one of `targets`."""
    return [one for one in watch.commands() if rules_of(one.name).stops and one.target in targets()]


async def reply_to_stops(watch: Watch, targets: Targets, reply: Callable[[str], Awaitable[None]]) -> None:
    """Call `reply` with the id of each command without a reply that stops one of `targets`."""
    for command in stops(watch, targets):
        with contextlib.suppress(TenutoError):  # another client has replied already
            await reply(command.id)


PATIENCE_S = 30.0  # longest wait for the end of an earlier attempt's lease, whose answer this attempt continues
SHUTDOWN_S = 10.0  # time that a cancelled handler has to clean up

State = Literal["done", "cancelled"]  # how a turn ends
Handler = Callable[[Turn], Awaitable[None]]


class Agent(NamedTuple):
    """A handler and its settings."""

    handler: Handler
    name: str
    on_crash: OnCrash = "restart"
    timeout_s: float = 3600.0  # longest time that one attempt may take
    budget_s: float | None = None  # longest time that all attempts at one turn may take
    max_tries: int = ATTEMPTS  # attempts after which a turn whose process died fails


def check_agent(agent: Agent) -> Agent:
    """Return `agent`. Raises LocalError or InvalidName for a setting that is not valid."""
    if inspect.isroutine(agent.handler) and not inspect.iscoroutinefunction(agent.handler):
        shown = getattr(agent.handler, "__name__", repr(agent.handler))
        raise LocalError(f"handler of agent {agent.name!r} must be an async function, got {shown!r}; use `async def`")
    if agent.on_crash not in ("interrupt", "restart", "continue"):
        raise LocalError(f"on_crash must be 'interrupt', 'restart' or 'continue', got {agent.on_crash!r}")
    for limit, seconds in (("timeout_s", agent.timeout_s), ("budget_s", agent.budget_s)):
        if not (isinstance(seconds, int | float) and seconds > 0) and (limit, seconds) != ("budget_s", None):
            raise LocalError(f"{limit} must be a number of seconds above 0, got {seconds!r}")
    if agent.max_tries not in range(1, ATTEMPTS + 1):
        raise LocalError(f"max_tries must be a whole number from 1 to {ATTEMPTS}, got {agent.max_tries!r}")
    return agent._replace(name=check_id(agent.name, "an agent's name"))


def check_worker_settings(when_busy: str, slots: int) -> None:
    """Raise LocalError for settings that are not valid."""
    if when_busy not in ("queue", "interrupt", "parallel"):
        raise LocalError(f"when_busy must be 'queue', 'interrupt' or 'parallel', got {when_busy!r}")
    if not isinstance(slots, int) or slots < 1:
        raise LocalError(f"slots must be a whole number from 1 on, got {slots!r}")


class _Left(NamedTuple):
    """The answer that an earlier attempt left unfinished or without a stored end of its turn: the first of several."""

    answer: Message | None = None
    is_over: bool = False  # True: an answer has ended the turn, and only the end of the turn must be stored


class Running:
    """One turn of `agent`, from its claim to its end. `run` carries it out; `stop` ends it early."""

    def __init__(
        self, agent: Agent, backend: Backend, channel: str, message: Message, generation: int, *, tries: int
    ) -> None:
        """Make the attempt `generation` at the turn of `message`; `tries` attempts count, with this one."""
        self.channel = channel
        self.tries = tries
        self.message = message
        self.generation = generation
        self.attempt = attempt_of(generation)  # its number in this round; `tries` leaves out those that do not count
        self._agent = agent
        self._backend = backend
        self._work: asyncio.Task[None] | None = None  # that of the handler
        self._task: asyncio.Task[object] | None = None  # that of `run`
        self._is_stopped = False  # True: the turn was cancelled, or is lost
        self._is_lost = False  # True: another attempt has the turn, or will get it
        self.came_too_late = False  # the handler was not begun
        self.unheard: tuple[str, ...] = ()  # `Turn.unheard` at the end
        self._is_late = False  # True: the time of the attempt was over
        self._failure: str | None = None  # public reason of the handler's failure
        # done when the handler must end: its turn was stopped, its time is over, or the process ends
        self._ending = asyncio.get_running_loop().create_future()
        self._turn: Turn | None = None
        self._taken_up: TakenUp = {}
        self._complete: set[int] = set()  # numbers of the complete answers of earlier attempts

    @property
    def may_be_handed_over(self) -> bool:
        """Return whether another attempt may begin: this one still has the turn, and no handler of it runs."""
        return not self._is_lost and (self._work is None or self._work.done())

    def stop(self, *, is_lost: bool = False) -> None:
        """End the handler, because the turn was cancelled or, with `is_lost`, because another worker has it now."""
        self._is_stopped = True
        self._is_lost = self._is_lost or is_lost
        if self._turn is not None:
            self._turn.is_cancelled = True
        self._end_handler("interrupted" if self._is_lost else "cancelled")  # no person has stopped one that is lost

    def _end_handler(self, status: str, reason: str | None = None) -> None:
        """Cancel the handler, if it runs; the answers that it has open end with this status and reason."""
        for reply in self._turn.replies if self._turn is not None else ():
            reply.cancelled_as = (status, reason)
        if not self._ending.done():
            self._ending.set_result(None)
        if self._work is not None:
            self._work.cancel()

    def leave_at_rest(self) -> None:
        """Cancel `run` if the process ends and the next one loses nothing by going on with the turn from here: the turn
        only waits, or all that it writes comes from responses that go on without their reader, or is continued.
        """
        turn, task = self._turn, self._task
        if not self._backend.is_shutting_down or self._agent.on_crash == "interrupt" or turn is None or task is None:
            return
        waits = turn.allowance is not None and turn.allowance.waits > 0
        streams = {reply: going_on(reply, is_continued=self._agent.on_crash == "continue") for reply in turn.replies}
        writing = [reply for reply in turn.begun if not reply.is_over]
        is_at_rest = waits or (writing and all(streams[reply] for reply in writing))
        # each stream must be able to go on, also one that is read beside a wait: it would be cut
        if is_at_rest and not turn.steps.is_running and all(map(all, streams.values())):
            task.cancel()

    async def run(self) -> State | None:
        """Carry out the turn. Return how it ended, `done` or `cancelled`; None if another worker carries it out."""
        self._task = asyncio.current_task()
        with contextlib.closing(await self._backend.watch(self.channel)) as watch:
            return await self._run(watch)

    async def _run(self, watch: Watch) -> State | None:
        """Run the handler, unless an earlier attempt has ended the turn, or was the last: then end what is open."""
        left = await patiently(lambda: self._after_crash(watch))
        turn = self._turn = Turn(
            self._backend,
            watch,
            self.channel,
            self.message,
            self.generation,
            name=self._agent.name,
            previous=left.answer if left.answer is None or left.answer.status != "complete" else None,
            taken_up=self._taken_up,
            on_crash=self._agent.on_crash,
            request=await self._request(),
            rests=self.leave_at_rest,
        )
        if self.attempt > 1:
            turn.open_questions.update(self._questions_left(watch, left.answer))
        ends_at_crash = self._agent.on_crash == "interrupt"
        is_given_up = (self.attempt > 1 and ends_at_crash) or self.tries > self._agent.max_tries
        if not (left.is_over or is_given_up):
            return await self._work_on(watch, turn)
        if self.attempt > 1:
            await turn.recall(self._complete)
        await self._withdraw(turn.open_questions)
        if left.is_over:
            self._is_stopped |= left.answer is not None and left.answer.status == "cancelled"
            await self._end_what_is_open(turn)
            if self._is_stopped:
                return "cancelled"
            detail = "message %s of %s had its answer before the crash, so its handler does not run again"
            logger.warning(detail, self.message.id, self.channel)
            return "done"
        if left.answer is None:
            await self._store_failed_answer(turn, CRASHED)
        await self._end_what_is_open(turn, CRASHED)
        return "done"

    async def _request(self) -> TurnRequest:
        """Return the options of the client beside its message, with those of the `regenerate` that began this round."""
        options = stored_options(self.message.meta, ())  # without the messages that it names, if they may not be read
        try:
            options |= await self._stored_options(self.message.meta)
            # only a turn that was begun again has an attempt above the first round
            again = await self._found(regenerate_options_id(self.message.id)) if self.generation > ROUND else None
            part = again.parts[0] if again is not None and again.role == OPTIONS and again.parts else {}
            if part.get("name") == str(self.message.created):  # else they were of a removed message with the same id
                options |= await self._stored_options({OPTIONS_KEY: part.get("data")})
        except Forbidden as error:
            logger.warning("the agent of %s may not read all that a client asks for: %s", self.channel, error)
        return turn_request(options)

    async def _stored_options(self, meta: Mapping[str, Json]) -> dict[str, Json]:
        """Return the options in `meta`, and in the messages to which it refers. Raises Forbidden."""
        kept = []
        for name, message_id in references(meta).items():
            if (one := await self._found(message_id)) is not None:
                kept.append(one)
            else:
                logger.warning("%s of message %s in %s were removed", name or "options", self.message.id, self.channel)
        return stored_options(meta, kept)

    async def _found(self, message_id: str) -> Message | None:
        return await patiently(partial(find, self._backend, self.channel, message_id))

    async def _work_on(self, watch: Watch, turn: Turn) -> State | None:
        """Run the handler until it ends or is stopped.

        Then end its answers, withdraw its questions and reply to the clients that stopped it.
        """
        backend = self._backend
        turn.progress("thinking")
        self._work = asyncio.ensure_future(self._handle(turn))
        watch.follow(partial(self._stop_if_asked, watch, turn))
        try:
            if self._is_stopped:
                self._work.cancel()
            await asyncio.wait([self._work, self._ending], return_when=asyncio.FIRST_COMPLETED)
            if not self._work.done():  # wait a limited time for a handler that ignores its cancellation
                await asyncio.wait([self._work], timeout=SHUTDOWN_S)
        except asyncio.CancelledError:  # the process shuts down, so the answer is interrupted instead of cancelled
            self._end_handler("interrupted")
            await asyncio.wait([self._work], timeout=SHUTDOWN_S)
            raise
        is_left = backend.is_shutting_down and self._work.cancelled() and not self._is_stopped
        if self._is_lost or is_left:
            if self._is_lost:
                await self._give_back(turn)
            return None  # another worker has the turn or will get it
        await self._withdraw(turn.open_questions)
        if self._failure is not None:
            await self._store_failed_answer(turn, self._failure)
        await self._end_what_is_open(turn)
        respond = partial(backend.reply, self.channel, ok=self._is_stopped, data=None, error=None)
        await reply_to_stops(watch, lambda: turn.targets, respond)
        self.unheard = turn.unheard
        return "cancelled" if self._is_stopped else "done"

    async def _handle(self, turn: Turn) -> None:
        """Run the handler, and record the public reason if it fails."""
        current_try.set(None)  # a try in which the hub was started is none of this turn
        if not self._backend.may_begin:  # for example after a suspension of the process
            self._is_lost = self.came_too_late = True
            return
        agent, noting = self._agent, None
        try:
            left_s = agent.timeout_s
            if agent.budget_s is not None:
                left_s = min(left_s, max(0.0, agent.budget_s - await turn.steps.time_used_ms() / 1000))
                noting = asyncio.ensure_future(turn.steps.note_time())
            turn.has_budget = agent.budget_s is not None
            turn.allowance = Allowance(left_s, self._time_out)
            if self.attempt > 1:
                await turn.recall(self._complete)
            await timed(f'handler "{self._agent.name}"', self._agent.handler(turn), logger)
            if self._is_late:
                raise asyncio.CancelledError  # which the handler has caught
        except asyncio.CancelledError as error:
            if self._is_late:
                limit_s = agent.budget_s if left_s < agent.timeout_s else left_s
                logger.warning("turn %s in %s took more than %g s, its limit", self.message.id, self.channel, limit_s)
            elif self._ending.done() or self._backend.is_shutting_down:
                raise
            else:  # the cancellation was not a stop: other code cancelled a task that the handler awaited
                logger.error("turn of %s in %s failed", self.message.id, self.channel, exc_info=error)
                self._failure = "error"
        except Exception as raised:
            failures = failures_in(raised)
            if self._is_stopped and all(isinstance(one, Finished | Fenced) for one in failures):
                return  # it wrote after the end of its answer
            is_away = any(getattr(one, "code", None) == "unreachable" for one in failures)
            is_cut = is_away or any(isinstance(one, Finished) for one in failures)
            if is_cut and await self._is_unfinished(turn, has_begun=not is_away):
                self._is_lost = True  # the turn waits for its next attempt, as after a crash
                return
            if self._backend.drains(raised) and not (self._is_stopped or self._is_late):
                if not all(isinstance(one, Draining) for one in failures):
                    logger.error("turn of %s in %s failed in a drain", self.message.id, self.channel, exc_info=raised)
                await turn.steps.idle()  # the next attempt would call again what still runs
                raise asyncio.CancelledError from raised  # as when the drain cancels it, which leaves its answers open
            failure = failures[0]
            trace = None if isinstance(failure, StoreUnavailable) else raised  # not a mistake of the handler
            level = logging.WARNING if isinstance(failure, TenutoError) else logging.ERROR
            logger.log(level, "turn of %s in %s failed: %s", self.message.id, self.channel, failure, exc_info=trace)
            reason = public_reason(raised) or public_reason(failure) or self._backend.reason_of(failure) or "error"
            self._failure = failure.code if isinstance(failure, TenutoError) else reason
        finally:
            if turn.allowance is not None:
                turn.allowance.cancel()
            if noting is not None:
                noting.cancel()
                await asyncio.gather(noting, return_exceptions=True)  # it fails if a later attempt has the turn

    async def _is_unfinished(self, turn: Turn, *, has_begun: bool) -> bool:
        """Return whether the last answer has no end: a lease had ended, or the hub was out of reach.

        Without `has_begun` an answer that could not begin is one, too.
        """
        for last in (turn.begun if has_begun else turn.replies)[-1:]:
            with contextlib.suppress(TenutoError):
                one = await self._found(last.id) if last.is_begun else None
                return not last.is_begun or (one is not None and one.status in ("interrupted", "streaming"))
        return False

    def _time_out(self) -> None:
        self._is_late = True
        self._failure = "timeout"  # also if the handler ignores its cancellation
        self._end_handler("failed", "timeout")

    async def _store_failed_answer(self, turn: Turn, reason: str) -> None:
        """Store a failed answer, so that people see the failure, unless the handler has begun an answer itself."""

        async def store() -> None:
            if self._is_lost or (turn.replies and turn.replies[-1].is_begun):
                return
            turn.replies = turn.begun  # the failed answer has the number of one that was not begun
            async with turn.reply() as message:
                await message.finish("failed", reason=reason)

        try:
            await patiently(store)
        except TenutoError as error:
            what = "turn of %s in %s failed, and viewers do not see it, because it was not stored: %s"
            logger.warning(what, self.message.id, self.channel, error)

    async def _end_what_is_open(self, turn: Turn, reason: str | None = None) -> None:
        """Finish the answers that the handler has left open, and, for `reason`, those that it did not continue."""
        for taken_up in turn.take_unused():
            with contextlib.suppress(TenutoError):
                async with taken_up:
                    await taken_up.finish("cancelled" if self._is_stopped else "failed", reason=reason)
        for reply in turn.begun:
            with contextlib.suppress(TenutoError):
                if reply.is_over:
                    await reply.flush()  # store the end of the answer first, the end of the turn afterwards
                else:
                    late = "timeout" if self._is_late else None
                    await reply.finish("cancelled" if self._is_stopped else "failed", reason=late)

    async def _give_back(self, turn: Turn) -> None:
        """Interrupt earlier answers that the handler did not continue, so that the next attempt can continue them."""
        for taken_up in turn.take_unused():
            taken_up.cancelled_as = ("interrupted", None)
            with contextlib.suppress(TenutoError, GeneratorExit):
                async with taken_up:
                    raise GeneratorExit  # ends the answer as `cancelled_as` says

    def _stop_if_asked(self, watch: Watch, turn: Turn) -> None:
        """Stop the handler if a client has cancelled the turn."""
        if not self._is_stopped and stops(watch, lambda: turn.targets):
            self.stop()

    def _questions_left(self, watch: Watch, answer: Message | None) -> list[str]:
        """Return the ids of open questions of earlier attempts, which may be those of another agent."""
        authors = {self._agent.name, answer.author if answer is not None else None} - {None}
        targets = {self.message.id, *reply_ids(self.message.id, self.generation - 1)}
        return [
            one.id
            for one in watch.commands()
            if one.from_ in authors and one.target in targets and rules_of(one.name).replier is Replier.READER
        ]

    async def _withdraw(self, questions: Iterable[str]) -> None:
        """Reply to the agent's own questions that they are withdrawn."""
        for command_id in tuple(questions):
            try:
                async with asyncio.timeout(SHUTDOWN_S):
                    reply = partial(self._backend.reply, self.channel, command_id)
                    await patiently(partial(reply, ok=False, data=None, error=WITHDRAWN))
            except (AlreadyAnswered, NotFound):  # not found: the question was refused
                pass
            except (TenutoError, TimeoutError) as error:
                why = str(error) or "timed out"
                logger.warning("question %s in %s stays open until it expires: %s", command_id, self.channel, why)

    async def _after_crash(self, watch: Watch) -> _Left:
        """Return the first answer of the previous attempts, and take over all of them unless one has ended the turn.

        An answer that a client has stopped has ended it. So has a failed last one, if none is unfinished: only handlers
        fail answers, while a hub that finds a process gone interrupts them. So has a complete one with
        `on_crash="interrupt"`, or beside a failed one, in whose place the handler might write another.
        """
        answers = await self._earlier_answers()
        states = [one.status for one in answers]
        self._complete = {number for number, status in enumerate(states) if status == "complete"}
        ends_complete = "complete" in states and (self._agent.on_crash == "interrupt" or "failed" in states)
        ends_failed = states[-1:] == ["failed"] and not {"streaming", "interrupted"} & {*states}
        if ends_failed or ends_complete or "cancelled" in states:
            # a handler may have cancelled a draft itself, before its complete answer
            by_people = [] if states[-1] == "complete" else [one for one in answers if one.status == "cancelled"]
            return _Left((by_people or answers[-1:])[0], is_over=True)
        if self._agent.on_crash != "interrupt":
            for number, answer in enumerate(answers):
                if answer.status == "complete":
                    writer = self._backend.write(
                        self.channel, answer.id, reply_to=self.message.id, parent=None, meta={}
                    )
                    writer.begin_ended(answer)
                    self._taken_up[number] = LeftAnswer(answer, writer)
                elif answer.status == "failed" or number in self._taken_up:  # by an earlier call of this method
                    continue
                elif not await self._take_over(watch, number, answer):
                    return await self._after_crash(watch)  # by what it has ended as
        unfinished = [one.answer for one in self._taken_up.values() if one.answer.status != "complete"]
        return _Left(next(iter(unfinished), next(iter(answers), None)))

    async def _earlier_answers(self) -> list[Message]:
        """Return the newest answer of each number in this round; an empty list if the agent may not read them."""
        answers: list[Message] = []
        try:
            for number in count():
                for generation in range(self.generation - 1, self.generation - self.attempt, -1):
                    one = await find(self._backend, self.channel, reply_id(self.message.id, generation, number))
                    # any other message is not an answer of this turn
                    if one is not None and one.reply_to == self.message.id and one.role != "user":
                        answers.append(one)
                        break
                else:
                    break  # no attempt has an answer of this number
        except Forbidden as error:
            logger.warning("the agent of %s may not read its answers from before a crash: %s", self.channel, error)
        return answers

    async def _take_over(self, watch: Watch, number: int, previous: Message) -> bool:
        """Take over an answer of an earlier attempt once its lease has ended. Return False if it ends meanwhile."""
        writer: Writer | None = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while writer is None:
                    try:
                        writer = await self._backend.take_over(self.channel, previous.id)
                    except StillStreaming:
                        await watch.changed()
        except Finished:
            return False
        except (TimeoutError, Fenced, Deleted, NotFound):  # another client continues the answer, or it is gone
            return True
        self._taken_up[number] = LeftAnswer(previous, writer)  # now this attempt must end it, even after an error
        try:
            known = await self._found(previous.id)
            self._taken_up[number] = LeftAnswer(known or previous, writer)
        except TenutoError as error:
            logger.warning("answer %s in %s goes on as it was read before: %s", previous.id, self.channel, error)
        return True
