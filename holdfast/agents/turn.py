"""A turn: an agent's work on one user message, as its handler sees it.

Layer: agents.

A handler gets a `Turn` and writes its `reply()`. The same in the hub's process and in another one.
Names without an underscore are public.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Literal, NamedTuple

from holdfast.agents.backend import Backend, Watch, Writer
from holdfast.agents.history import Shape, as_turns, path_to
from holdfast.agents.ids import reply_id, spare_id
from holdfast.core.errors import AlreadyAnswered, HoldfastError, LocalError
from holdfast.core.events import CommandReply
from holdfast.core.model import Command, Json, Message
from holdfast.core.turns import STEER

logger = logging.getLogger("holdfast.agents")

GRACE_S = 5.0  # extra time for the server to report that a command expired

OnCrash = Literal["interrupt", "restart", "continue"]


class Steer(NamedTuple):
    """Something that arrived while the turn ran: a `steer` command's data, or a further user message."""

    text: str
    data: Json = None  # of the command
    message: Message | None = None  # the user message
    by: str | None = None


class Answered(NamedTuple):
    """What came back of `Turn.ask`."""

    ok: bool
    data: Json
    error: Json  # `{"code": "expired"}` if no reply arrived in time
    by: str | None


class Turn:
    """One user message to be answered."""

    def __init__(
        self,
        backend: Backend,
        watch: Watch,
        channel: str,
        message: Message,
        attempt: int,
        *,
        name: str,
        previous: Message | None,
        taken_up: Writer | None,
    ) -> None:
        self.channel = channel
        self.message = message  # the user message
        self.attempt = attempt  # 1, or more after a crash
        self.previous = previous  # what a crashed attempt had written, if anything, and did not complete
        self.name = name  # the agent's: author of its answers, and the member that people see
        self.is_cancelled = False  # has somebody asked it to stop?
        self._backend = backend
        self._watch = watch
        self._taken_up = taken_up
        self._heard: set[str] = set()  # ids of `steer` commands that were given out
        self._others: set[str] = set()  # ids of messages that are not for us to take in
        self.replies: list[Writer] = []
        self.asked: set[str] = set()  # ids of questions whose answer was not heard yet

    @property
    def text(self) -> str:
        """The text of the user message."""
        return self.message.text

    async def history(self, shape: Shape = "text", *, limit: int = 200) -> list[dict[str, Json]]:
        """The conversation up to and with this message, oldest first, in the shape that a model's API takes.

        `text`: `{"role", "content"}`, for OpenAI's Chat Completions and Responses and most others. `openai`: as Chat
        Completions takes them, with tool calls and their results. `responses`: as items of OpenAI's Responses.
        `anthropic`: for Anthropic's Messages, without system messages (give those as `system`) and with turns that
        alternate. At most `limit` messages. Of branches it is the path that leads to this message.
        """
        page = await self._backend.page(self.channel, before=None, limit=min(limit, 200))
        return as_turns([*path_to(self.message, page.messages), self.message], shape)

    def reply(self, *, meta: dict[str, Json] | None = None) -> Writer:
        """The answer, to be entered: `async with turn.reply() as message: …`. A second call makes a second message.

        After a crash, with `on_crash="continue"`, the first call gives the answer that was begun (`previous`), to go
        on with: it stands at its `length`.
        """
        writer = self.take_unused()
        if writer is None:
            message_id = reply_id(self.message.id, self.attempt, len(self.replies))
            writer = self._backend.write(
                self.channel,
                message_id,
                author=self.name,
                reply_to=self.message.id,
                parent=self.begun[-1].id if self.begun else None,
                meta=meta or {},
            )
            writer.spare_id = spare_id
        if not self.is_cancelled:  # nobody has asked for a stop, so what cancels the block is a fault of the handler's
            writer.cancelled_as = ("failed", "error")
        self.replies.append(writer)
        self.progress("answering")
        return writer

    def progress(self, state: str, **data: Json) -> None:
        """Say what you do, for those who look on: `thinking`, `answering`, `using a tool`. Never stored."""
        self._backend.say(self.channel, self.name, {"state": state, "message": self.message.id, **data})

    async def steered(self) -> list[Steer]:
        """What arrived for this turn since the last call; it gets no turn of its own.

        First `steer` commands that name this message or its answer (they are answered by this), then further user
        messages, each oldest first.
        """
        arrived: list[Steer] = []
        for command in self._watch.commands():
            is_ours = command.name == STEER.name and command.target in self.targets
            if is_ours and command.id not in self._heard and await self._accept(command):
                arrived.append(Steer(_text_in(command.data), command.data, None, command.from_))
        for message in self._watch.waiting():
            if message.id == self.message.id or message.id in self._others:
                continue
            self._others.add(message.id)  # elsewhere it is a request each time
            if await self._backend.take_waiting(self.channel, message.id, by=self.name, turn=self.message.id):
                arrived.append(Steer(message.text, None, message, message.author))
        return arrived

    async def _accept(self, command: Command) -> bool:
        """Result a `steer`; False if it was answered already, as by its end. What goes wrong harms no turn."""
        self._heard.add(command.id)
        try:
            await self._backend.reply(self.channel, command.id, ok=True, data=None, error=None, by=self.name)
        except AlreadyAnswered:
            return False
        except HoldfastError as error:
            logger.warning("a steer in %s could not be answered: %s", self.channel, error.detail)
        return True

    async def ask(self, name: str, data: Json = None, *, timeout_s: float = 300.0) -> Answered:
        """Ask the people in the channel (`approve`, say) and wait for the first answer, at most `timeout_s` seconds.

        The question is a command: stored, seen on all devices, and answered once. The answer of nobody is `ok=False`
        with the error `expired`. A question that is open when the turn ends is withdrawn.
        """
        if not 1 <= timeout_s <= 24 * 3600:
            raise LocalError("timeout_s is from a second to a day")
        begun = self.begun
        target = begun[-1].id if begun else self.message.id
        if begun:
            await begun[-1].flush()  # people see what they are asked about
        command = await self._backend.command(
            self.channel, name, target=target, data=data, by=self.name, expires_s=timeout_s
        )
        self.asked.add(command.id)
        self.progress("waiting", command=command.id)
        reply = await self._reply_to(command, timeout_s + GRACE_S)
        self.asked.discard(command.id)
        if reply is None:
            return Answered(False, None, {"code": "expired", "detail": "no answer was heard of"}, None)
        self.progress("answering" if begun else "thinking")
        return _answered(reply)

    def take_unused(self) -> Writer | None:
        """The answer that was taken over after a crash, if nobody has asked for it yet."""
        writer, self._taken_up = self._taken_up, None
        return writer

    async def _reply_to(self, command: Command, timeout_s: float) -> CommandReply | None:
        """The reply; None where none was heard of in time: we may have been away for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                return await self._watch.reply_to(command)
        return None

    @property
    def begun(self) -> list[Writer]:
        """The answers that are stored, if only their beginnings. Others were not entered, or could not be stored."""
        return [reply for reply in self.replies if reply.is_begun]

    @property
    def targets(self) -> set[str]:
        """What a command to this turn names: the user message, or one of its answers."""
        return {self.message.id, *(reply.id for reply in self.replies)}


def _answered(reply: CommandReply) -> Answered:
    return Answered(reply.ok, reply.data, reply.error, reply.from_)


def _text_in(data: Json) -> str:
    """The text of a `steer`: its data, or what that calls `text`."""
    if isinstance(data, dict):
        data = data.get("text")
    return data if isinstance(data, str) else ""
