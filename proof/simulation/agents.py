"""Agents: in a hub's process, by `Hub.agent`; and remote ones, over sockets.

Layer: simulation.

Both report each attempt that begins, so that two agents at work on one message are noticed. Remote agents crash, lose
their connection, fall silent, want no turns for a while, take waiting messages into their turn, and try to finish turns
of other agents.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from proof.oracle import Violation
from proof.oracle.log import ROUND, counted_texts, marks
from proof.simulation.actors import RETRY_STATUS, Actor, summary
from proof.simulation.clock import Process
from proof.simulation.network import ClientSocket, ConnectionLost, Frame
from tenuto.agents.turn import OnCrash, Turn
from tenuto.core.errors import TenutoError
from tenuto.core.ops import Claim
from tenuto.core.turns import WhenBusy, reply_id

if TYPE_CHECKING:
    from proof.simulation.world import World


class OnPurpose(TenutoError):
    """Raised by a handler that fails."""


@dataclass(frozen=True)
class LocalPlan:
    """How an agent in the hub's process behaves."""

    when_busy: WhenBusy
    on_crash: OnCrash
    slots: int
    has_questions: bool


def local_handler(world: World, plan: LocalPlan, process: Process) -> Callable[[Turn], Awaitable[None]]:
    """Return the handler of that agent."""
    at_work: set[tuple[str, str]] = set()

    async def bot(turn: Turn) -> None:
        place = (turn.channel, turn.message.id)
        draw = Random(f"{world.plan.seed}/{turn.message.id}/{turn.generation}")
        world.promises.begin_attempt(place, turn.generation, process)
        world.trace.add(f"{process.name} begins attempt {turn.generation} of {turn.message.id}")
        at_work.add(place)
        if len(at_work) > plan.slots:
            world.trace.violate(Violation(f"an agent has {plan.slots} slots, and works on {sorted(at_work)}"))
        try:
            await _answer(turn, draw)
        finally:
            at_work.discard(place)
            world.promises.end_attempt(place, process)

    async def _answer(turn: Turn, draw: Random) -> None:
        if draw.random() < 0.1:
            return
        if draw.random() < 0.1:
            raise OnPurpose("before anything")
        steps = Random(f"{world.plan.seed}/{turn.message.id}/steps").choice((0, 0, 1, 3)) if plan.has_questions else 0
        if draw.random() < 0.3:
            _check_history(world, turn.channel, await turn.history())
        await asyncio.sleep(draw.choice((0.0, 0.0, 1.0, 4.0)))  # nothing is open yet that keeps another attempt away
        async with turn.reply() as message:
            at, generation = message.length, getattr(message, "generation", 1)
            for number in range(steps):
                await _step(turn, number)
            for _ in range(draw.randrange(6)):
                text = marks(generation, at, draw.randrange(1, 9))
                await message.append(text)
                at += len(text)
                await asyncio.sleep(draw.choice((0.0, 0.1, 1.0, 4.0)))
                if plan.has_questions and draw.random() < 0.2:
                    await turn.ask("approve", timeout_s=2.0)
                if plan.has_questions and draw.random() < 0.2:
                    for taken in [one.message for one in await turn.steered() if one.message is not None]:
                        world.promises.note_taken_in((turn.channel, taken.id), turn.message.id, turn.generation)
            if draw.random() < 0.1:
                raise OnPurpose("in the middle")

    async def _step(turn: Turn, number: int) -> None:
        place, name = (turn.channel, turn.message.id), (turn.generation // ROUND, number)

        async def work() -> str:
            world.promises.step_begins(place, name)
            await asyncio.sleep(Random(f"{place}/{turn.generation}/{number}").choice((0.0, 0.3, 2.0)))
            return f"result of attempt {turn.generation}"

        try:
            world.promises.step_ended(place, name, await turn.step(f"step:{number}", work))
        except Violation as violation:
            world.trace.violate(violation)

    return bot


def _check_history(world: World, channel: str, turns: list[dict[str, Any]]) -> None:
    """Check that each answer in a history is one that the channel had, without what was superseded in it."""
    logs = world.stored.between(channel, 0, world.stored.stamp)  # a node may learn late that the channel was deleted
    states = (one for log in logs for message_id in log.versions for one in log.states(message_id))
    texts = {"".join(counted_texts(one, "text")) for one in states}
    for turn in turns:
        if turn["role"] == "assistant" and turn["content"] not in texts:
            world.trace.violate(
                Violation(f"the history of {channel} has {turn['content']!r}, which is no answer's text")
            )


class Worker(Actor):
    """A remote agent."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.slots = self.draw.choice((1, 2))
        self.when_busy: WhenBusy = self.draw.choice(("queue", "interrupt", "parallel"))
        self._listens = self.draw.random() < 0.5  # True: it carries out `cancel` commands
        self._choices = Random(f"{world.plan.seed}/{name}/moods")
        self._is_off = False  # True: it wants no turns now
        self._socket: ClientSocket | None = None
        self._back: asyncio.Event = asyncio.Event()
        self._attempts: dict[tuple[str, str], Attempt] = {}

    @property
    def is_connected(self) -> bool:
        """Return whether it has an open socket."""
        return self._socket is not None and not self._socket.is_lost

    async def run(self) -> None:
        """Work until the end of the run."""
        while True:
            node = await self.some_node()
            try:
                self._socket = await ClientSocket.open(self, node, self._receive)
                await self._work(self._socket)
            except ConnectionLost:
                pass
            finally:
                self._back.clear()
                if self._socket is not None:
                    self._socket.close()
            if self.draw.random() < 0.4 and not self.world.is_calm:
                self._crash()
            await self.pause(0.0, 1.0)

    async def _work(self, socket: ClientSocket) -> None:
        self.world.promises.agents.setdefault(self.name, []).append(socket.connection)
        self._is_off = False
        await self._want(socket, self.slots)
        self._back.set()
        for attempt in list(self._attempts.values()):
            self.world.start(attempt.renew_at_once())
        stay_s = self.draw.choice((1.0, 6.0, 1e9)) if not self.world.is_calm else 1e9
        if self.world.plan.asks_by_socket and not self.world.is_calm:
            low_s, high_s = (0.0, stay_s / 2) if stay_s < 1e9 else (0.5, 5.0)
            await socket.rest(self._choices.uniform(low_s, high_s))
            await self._want(socket, 0)
            self._is_off = True
            await socket.rest(self._choices.uniform(0.1, 4.0))
            self._is_off = False
            await self._want(socket, self.slots)
        await socket.rest(stay_s)

    async def _want(self, socket: ClientSocket, slots: int) -> None:
        """Send `work` with the number of turns that it takes at once; 0: no further ones. Raises ConnectionLost."""
        frame = {"type": "work", "pattern": "*", "slots": slots, "when_busy": self.when_busy, "name": self.name}
        await self.ask_accepted(socket, frame)

    def _crash(self) -> None:
        """Forget all attempts."""
        self.world.trace.add(f"{self.name} crashes")
        attempts, self._attempts = self._attempts, {}
        for attempt in attempts.values():
            attempt.task.cancel()

    def _receive(self, frame: Frame, stamp: int) -> None:
        if frame["type"] != "turn" or self._socket is None:
            return
        place, generation = (frame["channel"], frame["message"]["id"]), frame["generation"]
        if self._is_off:
            self.world.trace.violate(Violation(f"{self.name} receives attempt {generation} of {place}, and wants none"))
        self.world.trace.add(f"{self.name} receives attempt {generation} of {place[1]}")
        socket = self._socket.connection
        self.world.trace.guarded(lambda: self.world.promises.note_offer(place, generation, stamp, socket))
        earlier = self._attempts.pop(place, None)
        if earlier is not None:
            earlier.task.cancel()
        self._attempts[place] = Attempt(self, place, generation, frame["lease_s"])

    def over(self, attempt: Attempt) -> None:
        """Forget an attempt that has ended."""
        if self._attempts.get(attempt.place) is attempt:
            del self._attempts[attempt.place]

    async def ask_until_response(self, attempt: Attempt, frame: Frame) -> tuple[dict[str, Any], float, ClientSocket]:
        """Send a request until it has a response; return it, the time of the request, and its socket."""
        begun_s = self.world.loop.time()
        while True:
            await self._back.wait()
            if self._attempts.get(attempt.place) is not attempt:
                raise ConnectionLost("forgotten")
            socket, sent_s = self._socket, self.world.loop.time()
            try:
                if socket is None:
                    raise ConnectionLost("none")
                # note it for each request, because the hub knows a writer by the connection of its requests
                if "id" in frame:
                    self.world.promises.note_request((frame["channel"], frame["id"]), socket.connection)
                response, _ = await socket.ask(frame)
                if response["type"] == "ok" or response["status"] not in RETRY_STATUS:
                    self.world.trace.add(f"{self.name} {frame['type']} {attempt.place[1]}: {summary(response)}")
                    return response, sent_s, socket
            except ConnectionLost:
                pass
            self.check_patience(begun_s, f"{frame['type']} for {attempt.place}")
            await self.pause(0.05, 0.5)

    @property
    def listens(self) -> bool:
        return self._listens


class Attempt:
    """One attempt at a turn."""

    def __init__(self, worker: Worker, place: tuple[str, str], generation: int, lease_s: float) -> None:
        self.place = place
        self._worker = worker
        self._world = worker.world
        self._generation = generation
        self._lease_s = lease_s
        self._draw = Random(f"{worker.world.plan.seed}/{worker.name}/{place[1]}/{generation}")
        self._choices = Random(f"{worker.world.plan.seed}/{worker.name}/{place[1]}/{generation}/moods")
        self._reply_id = reply_id(place[1], generation)
        self._length = 0
        self._renewed_s = worker.world.loop.time()
        self.task = worker.world.start(self._run())

    async def renew(self) -> bool:
        """Renew the turn. Return False if it is over, or belongs to another agent."""
        channel, message_id = self.place
        self._renewed_s = self._world.loop.time()
        frame = {"type": "turn.renew", "channel": channel, "message": message_id, "generation": self._generation}
        if self._world.plan.asks_by_socket:
            frame["state"] = {"state": "thinking"}
        if self._worker.is_connected and self._worker._socket is not None:
            self._world.promises.note_turn_request(self.place, self._generation, self._worker._socket.connection)
        response, sent_s, socket = await self._worker.ask_until_response(self, frame)
        if response["type"] == "ok":
            self._world.promises.note_turn_accepted(self.place, self._generation, sent_s, socket.connection)
            return True
        return False

    async def renew_at_once(self) -> None:
        """Renew the turn after a break of the connection, which has shortened its lease."""
        with contextlib.suppress(ConnectionLost):
            if not await self.renew():
                self.task.cancel()

    async def _run(self) -> None:
        with contextlib.suppress(ConnectionLost):
            await self._work()

    async def _work(self) -> None:
        try:
            if self._draw.random() < 0.1 and not self._world.is_calm:
                return  # it hangs, and renews no lease
            state = await self._answer()
            frame = {"type": "turn.done", "channel": self.place[0], "message": self.place[1], "state": state}
            await self._worker.ask_until_response(self, {**frame, "generation": self._generation})
        finally:
            self._worker.over(self)

    async def _answer(self) -> str:
        """Write the answer; return the state in which the turn ends."""
        about = {"channel": self.place[0], "id": self._reply_id}
        create = {"type": "create", **about, "role": "assistant", "status": "streaming", "reply_to": self.place[1]}
        if not await self._is_accepted({**create, "parts": [{"type": "text", "text": ""}], "lease_s": 15.0}):
            return "done"
        longest_s = self._draw.choice((0.1, 1.0, 9.0))
        for _ in range(self._draw.randrange(7)):
            text = marks(1, self._length, self._draw.randrange(1, 9))
            if not await self._is_accepted({"type": "append", **about, "part": 0, "at": self._length, "text": text}):
                return self._refused()
            self._length += len(text)
            await self._worker.pause(longest_s / 2, longest_s)
            if self._world.loop.time() - self._renewed_s > self._lease_s / 4 and not await self.renew():
                return "done"  # another agent has the turn; the lease of the answer will expire
            if self._world.plan.asks_by_socket and self._choices.random() < 0.5:
                await self._take_another()
            if self._worker.listens and (command := self._stop()) is not None:
                await self._is_accepted({"type": "finish", **about, "status": "cancelled"})
                await self._is_accepted({"type": "reply", "channel": self.place[0], "id": command, "ok": True})
                return "cancelled"
        await self._is_accepted({"type": "finish", **about, "status": "complete"})
        return "done"

    def _refused(self) -> str:
        """Return the state in which the turn ends whose answer another client, or the server, has ended."""
        answer = self._world.stored.head(self.place[0]).now(self._reply_id)
        if not self._world.plan.asks_by_socket or answer is None or answer.status != "interrupted":
            return "cancelled"
        self._world.promises.note_turn_request(self.place, self._generation, None, gives_back=True)
        return "lost"

    async def _take_another(self) -> None:
        """Take a waiting message into this turn. Raises Violation if the server grants that and does not store it."""
        channel, message_id = self.place
        stored, since = self._world.stored, self._world.stored.stamp
        log = stored.head(channel)
        waiting = [one for one, turns in log.turns.items() if turns[-1][1] == "pending" and not log.is_deleted(one)]
        if not waiting:
            return
        other = self._choices.choice(waiting)
        frame = {"type": "turn.take", "channel": channel, "message": other, "turn": message_id}
        response, _, _ = await self._worker.ask_until_response(self, frame)
        if response["type"] == "error":
            if response["code"] != "deleted":
                raise Violation(f"{self._worker.name} could not take {other} into the turn of {self.place}: {response}")
        elif response["taken"] and not any(
            isinstance(op, Claim) and (op.id, op.within, op.by) == (other, message_id, self._worker.name)
            for log in stored.between(channel, since, stored.stamp)
            for op in log.ops
        ):
            raise Violation(f"{self._worker.name} was granted {other} in its turn of {self.place}: not stored")
        elif response["taken"]:
            self._world.promises.note_taken_in((channel, other), message_id, self._generation)

    def _stop(self) -> str | None:
        """Return a pending cancel of this turn, if there is one."""
        log = self._world.stored.head(self.place[0])
        for key, command in log.pending(log.serial).items():
            if command.name == "cancel" and command.target in (self.place[1], self._reply_id):
                return key
        return None

    async def _is_accepted(self, frame: Frame) -> bool:
        """Send a request. Return False if another client has ended the message."""
        place = (self.place[0], self._reply_id)
        response, sent_s, socket = await self._worker.ask_until_response(self, frame)
        if response["type"] == "ok":
            if frame["type"] == "append":
                self._world.promises.note_accepted(place, sent_s, socket.connection)
            return True
        return False
