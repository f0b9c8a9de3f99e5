"""How a turn runs: the handler in a task, and somebody who listens for a stop.

You are in `agents`. The same in the hub's process and in another one. However a handler ends, its answer is ended, the
turn is ended, and whoever asked for a stop is answered; a traceback stays in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from holdfast.agents.place import Place, Watch, Writer, find
from holdfast.agents.stops import answer_stops, until_stopped
from holdfast.agents.turn import OnCrash, Turn, reply_id
from holdfast.core.errors import (
    Deleted,
    Draining,
    Fenced,
    Finished,
    HoldfastError,
    LocalError,
    NotFound,
    StillStreaming,
    public_reason,
)
from holdfast.core.model import Message
from holdfast.core.names import check_id

logger = logging.getLogger("holdfast.agents")

PATIENCE_S = 30.0  # for an earlier attempt's answer to be interrupted, before it is gone on with
RETRY_S = 1.0  # after a store that failed
LEAVING_S = 10.0  # for a handler that was cancelled to put down what it holds

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


class Running:
    """One turn of `agent`, from its claim to its end. `run` is the whole of it; `stop` may come from outside."""

    def __init__(self, agent: Agent, place: Place, channel: str, message: Message, attempt: int) -> None:
        self.channel = channel
        self.message = message
        self.attempt = attempt
        self._agent = agent
        self._place = place
        self._work: asyncio.Task[None] | None = None
        self._is_stopped = False
        self._is_lost = False
        self._is_late = False
        self._is_leaving = False
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
        watch = await self._place.watch(self.channel)
        try:
            return await self._run(watch)
        finally:
            watch.close()

    async def _run(self, watch: Watch) -> str | None:
        agent, place = self._agent, self._place
        previous, taken_up = await patiently(lambda: self._after_crash(watch))
        if previous is not None and agent.on_crash == "interrupt":
            return "done"
        turn = self._turn = Turn(
            place,
            watch,
            self.channel,
            self.message,
            self.attempt,
            name=agent.name,
            previous=previous,
            taken_up=taken_up,
        )
        turn.progress("thinking")
        self._work = asyncio.ensure_future(self._handle(turn))
        listening = asyncio.ensure_future(self._listen(watch, turn))
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            if self._is_stopped:
                self._work.cancel()
            await asyncio.wait([self._work, ending], return_when=asyncio.FIRST_COMPLETED)
            if not self._work.done():  # a handler that does not let itself be cancelled holds nobody up for ever
                await asyncio.wait([self._work], timeout=LEAVING_S)
        except asyncio.CancelledError:  # the process is leaving, which is nobody's wish that the answer ends
            for reply in turn.replies:
                reply.cancelled_as = ("interrupted", None)
            self._is_leaving = True
            self._work.cancel()
            await asyncio.wait([self._work], timeout=LEAVING_S)
            raise
        finally:
            listening.cancel()
            ending.cancel()
            await asyncio.wait([listening, ending])
        if self._is_lost or (place.is_leaving and self._work.cancelled()):
            return None  # another has it, or will
        await self._end_what_is_open(turn)
        await answer_stops(watch, lambda: turn.targets, self._answer_stop)
        return "cancelled" if self._is_stopped else "done"

    async def _handle(self, turn: Turn) -> None:
        """The handler, with its end said in a message where it wrote none."""
        limit = asyncio.get_running_loop().call_later(self._agent.timeout_s, self._time_out, turn)
        try:
            await self._agent.handler(turn)
        except asyncio.CancelledError as error:
            if self._is_late:
                logger.warning("turn of %s in %s took too long", self.message.id, self.channel)
                await self._say_failed(turn, "timeout")
            elif self._is_stopped or self._is_leaving or self._place.is_leaving:
                raise
            else:  # not ours: something that the handler waited for was cancelled
                logger.error("turn of %s in %s failed", self.message.id, self.channel, exc_info=error)
                await self._say_failed(turn, "error")
        except HoldfastError as error:
            if self._is_stopped and isinstance(error, Finished):
                return
            logger.warning("turn of %s in %s failed: %s", self.message.id, self.channel, error, exc_info=error)
            await self._say_failed(turn, error.code)
        except Exception as error:
            logger.exception("turn of %s in %s failed", self.message.id, self.channel)
            await self._say_failed(turn, public_reason(error) or "error")
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
        """A turn that failed before it began an answer: people see at least that."""
        if turn.replies:
            return
        try:
            async with turn.reply() as message:
                await message.finish("failed", reason=reason)
        except HoldfastError as error:
            logger.warning("the failure of a turn could not be said: %s", error)

    async def _end_what_is_open(self, turn: Turn) -> None:
        """Answers that were opened, or taken over for the handler, and neither finished nor left."""
        taken_up = turn.take_unused()
        if taken_up is not None:
            with contextlib.suppress(HoldfastError):
                async with taken_up:
                    await taken_up.finish("cancelled" if self._is_stopped else "failed", reason=None)
        for reply in turn.replies:
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
        await self._place.reply(self.channel, command_id, ok=self._is_stopped, data=None, error=None, by=by)

    async def _after_crash(self, watch: Watch) -> tuple[Message | None, Writer | None]:
        """What the attempt before this one left, and with `continue` the writer that goes on with it."""
        for attempt in range(self.attempt - 1, 0, -1):
            message_id = reply_id(self.message.id, attempt)
            previous = await find(self._place, self.channel, message_id)
            if previous is None:
                continue
            if self._agent.on_crash != "continue" or previous.status not in ("streaming", "interrupted"):
                return previous, None
            return await self._go_on(watch, message_id, previous)
        return None, None

    async def _go_on(self, watch: Watch, message_id: str, previous: Message) -> tuple[Message | None, Writer | None]:
        """Take the earlier attempt's answer over, once its lease has ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        writer = await self._place.take_over(self.channel, message_id, author=self._agent.name)
                    except StillStreaming:
                        await watch.changed()
                        continue
                    except (Finished, Fenced, Deleted, NotFound):  # somebody else has ended it, or goes on with it
                        return previous, None
                    return await find(self._place, self.channel, message_id), writer
        return previous, None
