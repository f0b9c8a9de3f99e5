"""Agents in another process: `@client.agent("chat:*")` runs the same handlers as `@hub.agent`.

Layer: client.

`work` takes the turns and `tenuto.agents` runs them; `RemoteBackend` gives such a turn the operations of the hub. Of
the client's modules only this one loads `tenuto.agents`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tenuto.agents.backend import Sent, Watch
from tenuto.agents.running import Agent, Handler, Running, check_agent, check_worker_settings
from tenuto.client.connection import given
from tenuto.client.feed import ChannelView
from tenuto.client.work import ClaimedTurn
from tenuto.core.errors import LocalError, TenutoError, shown
from tenuto.core.events import CommandReply
from tenuto.core.model import Command, Json, Message
from tenuto.core.names import check_pattern
from tenuto.core.turns import WhenBusy
from tenuto.development import failure_reason
from tenuto.portal import Writer

if TYPE_CHECKING:
    from tenuto.client.client import Client

logger = logging.getLogger("tenuto.client")

KEPT_REPLIES = 100  # replies that a watch remembers; of more, the oldest are dropped
HISTORY = 20  # earlier messages that a turn loads at first; it can request more


class Agents:
    """All agents of a client, and the views that their turns share."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._works: list[Callable[[], Coroutine[Any, Any, None]]] = []  # each takes the turns of one agent
        self._shared: dict[ChannelView, int] = {}  # views in use, with the number of turns that use each
        self._runs: list[asyncio.Task[None]] = []  # the tasks of `_works`
        self.running: set[Running] = set()
        self.is_ending = False  # True: the process ends

    def register(
        self, pattern: str, *, name: str | None, when_busy: WhenBusy, slots: int, debug: bool | None, **settings: Any
    ) -> Callable[[Handler], Handler]:
        """Register an agent (`Client.agent`); `settings` are the other fields of `Agent`."""
        check_pattern(pattern)
        check_worker_settings(when_busy, slots)
        if debug is not None and not isinstance(debug, bool):
            raise LocalError(f"debug must be True, False or None, got {shown(debug)}")

        def register(handler: Handler) -> Handler:
            on_turn = partial(self._run_turn, check_agent(Agent(handler, name or "agent", **settings)), debug)
            work = partial(self._client.work, pattern, on_turn=on_turn, slots=slots, when_busy=when_busy, name=name)
            self._works.append(work)
            return handler

        return register

    async def run(self) -> None:
        """Run all agents until cancelled, drained or ended by `leave`. Raises a refusal of the server."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._runs = [tasks.create_task(work()) for work in self._works]
        except* TenutoError as group:
            raise group.exceptions[0] from None

    async def _run_turn(self, agent: Agent, debug: bool | None, turn: ClaimedTurn) -> None:
        """Carry out `turn` with `agent`, and note in it how it ended."""
        backend = RemoteBackend(self._client, self, turn, debug=debug)
        running = Running(agent, backend, turn.channel, turn.message, turn.generation, tries=turn.tries)
        self.running.add(running)
        try:
            turn.outcome = await running.run()
            turn.unheard = running.unheard
        finally:
            self.running.discard(running)

    def leave_at_rest(self) -> None:
        """Let other workers take over the turns that lose nothing by it, now or when they come to rest."""
        self.is_ending = True
        for running in self.running:
            running.leave_at_rest()

    def leave(self) -> None:
        """Cancel the running turns, so that other workers take them over."""
        for run in self._runs:
            run.cancel()

    def borrow(self, channel: str) -> ChannelView:
        """Return the view of `channel`. The caller must return it with `give_back`."""
        is_of_app = channel in self._client._views and channel not in {view.channel for view in self._shared}
        view = self._client.channel(channel, history=HISTORY)
        # if the app has opened the view, the app counts as one more user, so that the view is never closed here
        self._shared[view] = self._shared.get(view, int(is_of_app)) + 1
        return view

    def give_back(self, view: ChannelView) -> None:
        """Close the view after the last turn that borrowed it has given it back."""
        left = self._shared.pop(view, 0) - 1
        if left > 0:
            self._shared[view] = left
        elif left == 0:  # below 0, the view was closed before
            view.close()


class RemoteBackend:
    """Gives one turn the operations of a hub in another process."""

    may_begin = True  # `watch` has confirmed the turn

    def __init__(self, client: Client, agents: Agents, turn: ClaimedTurn, *, debug: bool | None) -> None:
        self._client = client
        self._agents = agents
        self._turn = turn
        self._debug = debug
        self.limits = client._limits
        # what the client has in the same form
        self.read, self.page, self.take_waiting = client.read, client.history, client.take_waiting

    @property
    def is_shutting_down(self) -> bool:
        """Return whether the process ends (`Backend.is_shutting_down`)."""
        return self._agents.is_ending

    def drains(self, error: BaseException) -> bool:
        """Return False: a hub that drains is not this process, which keeps its turns (`Backend.drains`)."""
        return False

    def now_ms(self) -> int:
        """Return the time of the client's clock (`Backend.now_ms`)."""
        return round(self._client._now() * 1000)

    def reason_of(self, error: BaseException) -> str | None:
        """Return the reason for a message that `error` ended (`Backend.reason_of`).

        The hub decides whether a reason names the exception. The exception's text may hold a key of this process, so
        only the process's own setting `debug` sends it.
        """
        return failure_reason(error, debug=self._debug, is_development=self._turn.is_development)

    def write(
        self, channel: str, message_id: str, *, reply_to: str, parent: str | None, meta: dict[str, Json]
    ) -> Writer:
        """Return the writer of a new answer (`Backend.write`).

        Its author is the client's own id, which the server sets.
        """
        writer = self._client.message(channel, id=message_id, reply_to=reply_to, meta=meta, parent=parent or reply_to)
        writer.reason_of = self.reason_of
        return writer

    async def take_over(self, channel: str, message_id: str) -> Writer:
        """Take over an interrupted answer (`Backend.take_over`)."""
        writer = self._client.take_over(channel, message_id)
        writer.reason_of = self.reason_of
        return await writer.open()

    async def command(self, channel: str, name: str, *, id: str, target: str, data: Json, expires_s: float) -> Sent:
        """Send a command (`Backend.command`)."""
        sent = await self._client._send(
            channel, id, name=name, target=target, data=data, expires_s=expires_s, generation=self._turn.generation
        )
        return Sent(sent.command, sent.reply)

    def note_new(self, channel: str, command_id: str) -> None:
        """Do nothing: the hub may have the command of this client, whose connection broke (`Backend.note_new`)."""

    async def reply(self, channel: str, command_id: str, *, ok: bool, data: Json, error: Json) -> None:
        """Reply to a command (`Backend.reply`)."""
        generation = self._turn.generation
        await self._client._reply(channel, command_id, ok=ok, data=data, error=error, generation=generation)

    async def watch(self, channel: str) -> Watch:
        """Follow a channel (`Backend.watch`)."""
        return await RemoteWatch(self._client, self._agents, self._turn).begin()

    def progress(self, channel: str, data: dict[str, Json]) -> None:
        """Show people the state of the agent (`Backend.progress`)."""
        self._turn.progress(data)


class RemoteWatch(Watch):
    """A view of the turn's channel. All turns that run in the channel share it."""

    def __init__(self, client: Client, agents: Agents, turn: ClaimedTurn) -> None:
        super().__init__()
        self._client = client
        self._agents = agents
        self._view = agents.borrow(turn.channel)
        self._turn = turn
        self._replies: dict[str, CommandReply] = {}  # received replies, by the ids of their commands
        self._starts = 0  # number of new starts that the view had when this watch began
        self._reading = asyncio.ensure_future(self._read())  # until `close`

    async def begin(self) -> Self:
        """Follow the channel from now on; returns when the view is complete and the turn confirmed."""
        try:
            await self._view.live()
            self._starts = self._view._starts
            await self._turn.confirm()
        except BaseException:
            self.close()
            raise
        return self

    def commands(self) -> list[Command]:
        """Return the commands without a reply (`Watch.commands`)."""
        return self._view.commands

    async def reply_to(self, command: Command) -> CommandReply:
        """Wait for the reply to a command (`Watch.reply_to`).

        A view that has begun anew may have missed it: unless the command is pending there, this requests the reply.
        """
        seen = self._starts  # new starts of the view after which the reply was requested, or need not be
        while (reply := self._replies.get(command.id)) is None:
            if seen != self._view._starts and all(one.id != command.id for one in self.commands()):
                seen = self._view._starts
                if (reply := await self._ask_for_reply(command)) is not None:
                    return reply
            else:
                await self.changed()
        return reply

    async def _ask_for_reply(self, command: Command) -> CommandReply | None:
        """Send a command again as this attempt, under the same id. Return its reply; None: no reply yet, or an error.

        The server responds to a repeated command with its reply, and stores the command again if a crash has lost it.
        """
        left_s = max(1.0, command.expires_at / 1000 - self._client._now())
        fields = given(name=command.name, target=command.target, data=command.data, generation=self._turn.generation)
        try:
            return (await self._client._send(self._view.channel, command.id, **fields, expires_s=left_s)).reply
        except TenutoError as error:
            logger.warning("a question in %s may wait until it expires: %s", self._view.channel, error)
            return None

    def waiting(self) -> list[Message]:
        """Return messages that may wait for an agent (`Watch.waiting`); only the server knows whether they do."""
        found = [one for one in self._view.messages if one.role == "user" and one.status == "complete"]
        return [one for one in found if one.created > self._turn.message.created]

    def close(self) -> None:
        """Stop using the view (`Watch.close`)."""
        self._reading.cancel()
        self._agents.give_back(self._view)

    async def _read(self) -> None:
        try:
            async for change in self._view:
                for reply in change.replies:
                    self._replies[reply.id] = reply
                    if len(self._replies) > KEPT_REPLIES:
                        del self._replies[next(iter(self._replies))]
                self.wake()
        except TenutoError:
            self._woken.set()  # no need to raise the error here: the turn's own requests raise it
