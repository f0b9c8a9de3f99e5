"""Agents in the hub's own process: `@hub.agent("chat:*")`.

Layer: agents.

A `LocalAgent` is a worker of the turn scheduler; `LocalBackend` gives turns the operations of the hub.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tenuto.agents.backend import Sent, Watch, find, patiently
from tenuto.agents.running import Agent, Running, check_worker_settings
from tenuto.core.catch_up import reply_to
from tenuto.core.errors import Deleted, Fenced, Finished, TenutoError, is_of_drain
from tenuto.core.events import CommandReply
from tenuto.core.model import Command, Json, Message, check_json, plain
from tenuto.core.names import command_key
from tenuto.core.requests import ReplyCommand, SendCommand
from tenuto.core.turns import WhenBusy
from tenuto.hub.pending import result_later
from tenuto.hub.turns.scheduler import AssignedTurn
from tenuto.portal import Writer

if TYPE_CHECKING:
    from tenuto.hub.hub import HubCore

HAND_OVER_S = 2.0  # time that a draining process waits until its store has the hand-over of a turn


@dataclass(eq=False)
class _Begun:
    """A turn that the agent has, and its attempt once the message has been read."""

    turn: AssignedTurn
    running: Running | None = None
    is_over: bool = False  # True: the turn ended elsewhere


class LocalAgent:
    """A worker that runs an agent's handler in this process."""

    is_local = True

    def __init__(self, hub: HubCore, agent: Agent, pattern: str, *, when_busy: WhenBusy, slots: int) -> None:
        check_worker_settings(when_busy, slots)
        self.name = agent.name
        self.pattern = pattern
        self.when_busy = when_busy
        self.slots = slots
        self.free = slots  # number of further turns that it can take now; the scheduler counts
        self._hub = hub
        self._agent = agent
        self._begun: dict[str, dict[str, _Begun]] = {}  # by the ids of channels and messages

    def start(self) -> None:
        """Take turns from now on, because the hub has started."""
        self.free = self.slots
        self._begun.clear()
        self._hub.runtime.scheduler.register(self)
        self._hub.on_drain(self._leave)

    def _leave(self) -> None:
        """Hand over at once the turns that lose nothing by it; the others have `drain_s`."""
        for turns in self._begun.values():
            for one in turns.values():
                if one.running is not None:
                    one.running.leave_at_rest()

    def begin(self, turn: AssignedTurn) -> None:
        one = self._begun.setdefault(turn.channel, {})[turn.message_id] = _Begun(turn)
        self._hub.runtime.tasks.start_job(self._run(one, asyncio.get_running_loop().time()))

    def ended(self, turn: AssignedTurn, state: str) -> None:
        one = self._begun.get(turn.channel, {}).get(turn.message_id)
        if one is not None and one.turn.generation == turn.generation:
            one.is_over = True
            if one.running is not None:
                one.running.stop(is_lost=state == "lost")

    async def _run(self, one: _Begun, claimed_s: float) -> None:
        """Run the attempt, store the end of its turn, or hand it over if the process drains; then free the slot."""
        turn = one.turn
        backend = LocalBackend(self._hub, self.name, turn.generation, claimed_s)
        try:
            message = await patiently(lambda: find(backend, turn.channel, turn.message_id))
            if message is None or one.is_over:
                return
            running = Running(self._agent, backend, turn.channel, message, turn.generation, tries=turn.tries)
            one.running = running
            state = await running.run()
            if state is not None:
                ended = turn._replace(unheard=running.unheard)
                with contextlib.suppress(Finished, Fenced, Deleted):
                    # also while the store fails: a turn without an end would keep its channel busy
                    await patiently(partial(self._end_once, ended, state))
        finally:
            may_leave = not one.is_over if one.running is None else one.running.may_be_handed_over
            if self._hub.is_draining and may_leave:
                await self._hand_over(turn)
            turns = self._begun.get(turn.channel, {})
            if turns.get(turn.message_id) is one:
                del turns[turn.message_id]
            if not turns:
                self._begun.pop(turn.channel, None)
            if not self._hub.is_draining and self._hub.is_running:
                scheduler = self._hub.runtime.scheduler
                if not turns:
                    scheduler.set_state(turn.channel, self.name, {"state": "listening"})
                scheduler.left(self, turn, has_begun=one.running is None or not one.running.came_too_late)
                scheduler.freed(self)

    async def _hand_over(self, turn: AssignedTurn) -> None:
        """Let the turn wait for another process, since this one drains: the attempt does not count as a death.

        A turn that is not handed over in time waits until this node is gone.
        """
        with contextlib.suppress(TenutoError, TimeoutError):
            async with asyncio.timeout(HAND_OVER_S):
                await self._end_once(turn, "pending")

    async def _end_once(self, turn: AssignedTurn, state: Literal["done", "cancelled", "pending"]) -> None:
        ended, done = result_later()
        self._hub.runtime.scheduler.end(self, turn, state, done)
        await ended


class LocalBackend:
    """The hub in this process, as the backend of an attempt at a turn. `Backend` describes its methods."""

    def __init__(self, hub: HubCore, name: str, attempt: int, claimed_s: float) -> None:
        """Give the operations to attempt `attempt` of agent `name`, claimed at `claimed_s` by the hub's loop."""
        self._hub = hub
        self._name = name
        self._attempt = attempt
        self._claimed_s = claimed_s
        # what the hub has in the same form
        self.limits, self.now_ms, self.reason_of, self.page = hub.limits, hub.clock.now_ms, hub.reason_of, hub.history

    @property
    def is_shutting_down(self) -> bool:
        return self._hub.is_draining

    def drains(self, error: BaseException) -> bool:
        """Return whether the drain of the hub has caused `error` (`Backend.drains`)."""
        return self._hub.is_draining and is_of_drain(error)

    @property
    def may_begin(self) -> bool:
        """Return whether the other nodes have counted this one as alive since the claim (`Backend.may_begin`)."""
        return self._hub.runtime.nodes.is_kept_since(self._claimed_s)

    def write(
        self, channel: str, message_id: str, *, reply_to: str, parent: str | None, meta: dict[str, Json]
    ) -> Writer:
        writer = self._hub.message(
            channel, id=message_id, author=self._name, reply_to=reply_to, meta=meta, parent=parent or reply_to
        )
        writer.turn_attempt = self._attempt
        return writer

    async def take_over(self, channel: str, message_id: str) -> Writer:
        return await self._hub.take_over(channel, message_id, author=self._name)

    async def read(self, channel: str, message_id: str) -> tuple[Message, str]:
        return await self._hub.read(channel, message_id)

    async def command(self, channel: str, name: str, *, id: str, target: str, data: Json, expires_s: float) -> Sent:
        request = SendCommand(name=name, target=target, data=data, expires_s=expires_s, generation=self._attempt)
        sent = await self._hub.ask(channel, command_key(id), request, self._hub.caller(self._name))
        assert sent.command is not None
        return Sent(sent.command, sent.reply)

    def note_new(self, channel: str, command_id: str) -> None:
        self._hub.channel(channel).note_absent(command_key(command_id))

    async def reply(self, channel: str, command_id: str, *, ok: bool, data: Json, error: Json) -> None:
        request = ReplyCommand(ok=ok, data=data, error=error, generation=self._attempt)
        await self._hub.ask(channel, command_key(command_id), request, self._hub.caller(self._name))

    async def watch(self, channel: str) -> Watch:
        return LocalWatch(self._hub, channel)

    async def take_waiting(self, channel: str, message_id: str, *, turn: str) -> bool:
        return await self._hub.take_waiting(channel, message_id, self._name, turn=turn)

    def progress(self, channel: str, data: dict[str, Json]) -> None:
        # bounded, because the state is sent to all viewers
        check_json(data, self.limits.data_bytes, "an agent's state", depth=self.limits.depth)
        self._hub.runtime.scheduler.set_state(channel, self._name, plain(data))


class LocalWatch(Watch):
    """A channel's state in memory, with a wake-up after each change. `Watch` describes its methods."""

    def __init__(self, hub: HubCore, channel: str) -> None:
        super().__init__()
        self._channel = hub.channel(channel)
        self._channel.listeners[self.wake] = None

    def commands(self) -> list[Command]:
        return [one.command() for one in self._channel.state.pending_commands()]

    async def reply_to(self, command: Command) -> CommandReply:
        key = command_key(command.id)
        while True:
            if self._channel.state.commands.get(key) is None:  # the command has a reply, and has left memory since
                await patiently(lambda: self._channel.load_messages([key]))
            known = self._channel.state.commands.get(key)
            if known is not None and (reply := reply_to(known)) is not None:
                return reply
            await self.changed()

    def waiting(self) -> list[Message]:
        state = self._channel.state
        found = [one for message_id in state.turns if (one := state.messages[message_id]).is_pending]
        return [one.message() for one in sorted(found, key=lambda one: one.created)]

    def close(self) -> None:
        self._channel.listeners.pop(self.wake, None)
