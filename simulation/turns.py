"""Agents: in a hub's process, by `Hub.agent`; and elsewhere, over sockets.

Layer: simulation.

Both say when they begin an attempt, so that two at work on one message are noticed. Those
elsewhere crash, lose their connection and come back, fall silent, want no turns for a while, take what waits into the
turn that they have, and finish what is another's by now.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from holdfast.agents.ids import reply_id
from holdfast.agents.turn import OnCrash, Turn
from holdfast.core.errors import HoldfastError
from holdfast.core.ops import Claim
from holdfast.hub.workers import WhenBusy
from simulation.actors import AWAY_STATUS, Person, gist
from simulation.clock import Process
from simulation.line import Frame, Line
from simulation.network import Lost
from simulation.trace import Violation
from simulation.truth import marks

if TYPE_CHECKING:
    from simulation.world import World


class OnPurpose(HoldfastError):
    """A handler that fails."""


@dataclass(frozen=True)
class LocalPlan:
    """An agent in the hub's process."""

    when_busy: WhenBusy
    on_crash: OnCrash
    slots: int
    has_questions: bool


def local_handler(world: World, plan: LocalPlan, process: Process) -> Callable[[Turn], Awaitable[None]]:
    """What that agent does with a turn."""
    at_work: set[tuple[str, str]] = set()

    async def bot(turn: Turn) -> None:
        place = (turn.channel, turn.message.id)
        draw = Random(f"{world.plan.seed}/{turn.message.id}/{turn.attempt}")
        world.ledger.begins(place, turn.attempt, process)
        world.trace.add(f"{process.name} begins attempt {turn.attempt} of {turn.message.id}")
        at_work.add(place)
        if len(at_work) > plan.slots:
            world.trace.violate(Violation(f"an agent has {plan.slots} slots, and is at work on {sorted(at_work)}"))
        try:
            await _answer(turn, draw)
        finally:
            at_work.discard(place)
            world.ledger.ends(place)

    async def _answer(turn: Turn, draw: Random) -> None:
        if draw.random() < 0.1:
            return
        if draw.random() < 0.1:
            raise OnPurpose("before anything")
        async with turn.reply() as message:
            at, generation = message.length, getattr(message, "generation", 1)
            for _ in range(draw.randrange(6)):
                text = marks(generation, at, draw.randrange(1, 9))
                await message.append(text)
                at += len(text)
                await asyncio.sleep(draw.choice((0.0, 0.1, 1.0, 4.0)))
                if plan.has_questions and draw.random() < 0.2:
                    await turn.ask("approve", timeout_s=2.0)
                if plan.has_questions and draw.random() < 0.2:
                    await turn.steered()
            if draw.random() < 0.1:
                raise OnPurpose("in the middle")

    return bot


class Worker(Person):
    """An agent elsewhere."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.slots = self.draw.choice((1, 2))
        self.when_busy: WhenBusy = self.draw.choice(("queue", "interrupt", "parallel"))
        self._listens = self.draw.random() < 0.5  # to those who ask it to stop
        self._moods = Random(f"{world.plan.seed}/{name}/moods")
        self._is_off = False  # it wants no turns for now
        self._line: Line | None = None
        self._back: asyncio.Event = asyncio.Event()
        self._attempts: dict[tuple[str, str], Attempt] = {}

    @property
    def is_connected(self) -> bool:
        """Has it a socket?"""
        return self._line is not None and not self._line.is_lost

    async def run(self) -> None:
        """For ever."""
        while True:
            node = await self.some_node()
            try:
                self._line = await Line.open(self, node, self._receive)
                await self._work(self._line)
            except Lost:
                pass
            finally:
                self._back.clear()
                if self._line is not None:
                    self._line.leave()
            if self.draw.random() < 0.4 and not self.world.is_calm:
                self._crash()
            await self.pause(0.0, 1.0)

    async def _work(self, line: Line) -> None:
        self.world.ledger.agents.setdefault(self.name, []).append(line.connection)
        self._is_off = False
        await self._want(line, self.slots)
        self._back.set()
        for attempt in list(self._attempts.values()):
            self.world.start(attempt.renew_at_once())
        stay_s = self.draw.choice((1.0, 6.0, 1e9)) if not self.world.is_calm else 1e9
        if self.world.plan.asks_by_socket and not self.world.is_calm:
            await line.rest(self._moods.uniform(0.0, stay_s / 2) if stay_s < 1e9 else self._moods.uniform(0.5, 5.0))
            await self._want(line, 0)
            self._is_off = True
            await line.rest(self._moods.uniform(0.1, 4.0))
            self._is_off = False
            await self._want(line, self.slots)
        await line.rest(stay_s)

    async def _want(self, line: Line, slots: int) -> None:
        """Say how many turns it would have at once; 0: no more than it has. Raises Lost."""
        frame = {"type": "work", "pattern": "*", "slots": slots, "when_busy": self.when_busy, "name": self.name}
        answer, _ = await line.ask(frame)
        if answer["type"] == "error":
            if answer["status"] not in AWAY_STATUS:
                raise Violation(f"{self.name} was refused: {answer}")
            raise Lost("sent away")

    def _crash(self) -> None:
        """All is forgotten."""
        self.world.trace.add(f"{self.name} crashes")
        attempts, self._attempts = self._attempts, {}
        for attempt in attempts.values():
            attempt.task.cancel()

    def _receive(self, frame: Frame, stamp: int) -> None:
        if frame["type"] != "turn" or self._line is None:
            return
        place, generation = (frame["channel"], frame["message"]["id"]), frame["generation"]
        if self._is_off:
            self.world.trace.violate(Violation(f"{self.name} is given attempt {generation} of {place}, and wants none"))
        self.world.trace.add(f"{self.name} is given attempt {generation} of {place[1]}")
        line = self._line.connection
        self.world.trace.guarded(lambda: self.world.ledger.given(place, generation, stamp, line))
        earlier = self._attempts.pop(place, None)
        if earlier is not None:
            earlier.task.cancel()
        self._attempts[place] = Attempt(self, place, generation, frame["lease_s"])

    def over(self, attempt: Attempt) -> None:
        """It has come to its end."""
        if self._attempts.get(attempt.place) is attempt:
            del self._attempts[attempt.place]

    async def ask_until_answered(self, attempt: Attempt, frame: Frame) -> tuple[dict[str, Any], float, Line]:
        """Ask over whatever socket there is, until there is an answer; and when and on which it was asked."""
        begun_s = self.world.loop.time()
        while True:
            await self._back.wait()
            if self._attempts.get(attempt.place) is not attempt:
                raise Lost("forgotten")
            line, sent_s = self._line, self.world.loop.time()
            try:
                if line is None:
                    raise Lost("none")
                if "id" in frame:  # each time anew: by the line that it came on the hub knows its writer
                    self.world.ledger.tried((frame["channel"], frame["id"]), line.connection)
                answer, _ = await line.ask(frame)
                if answer["type"] == "ok" or answer["status"] not in AWAY_STATUS:
                    self.world.trace.add(f"{self.name} {frame['type']} {attempt.place[1]}: {gist(answer)}")
                    return answer, sent_s, line
            except Lost:
                pass
            self.check_patience(begun_s, f"{frame['type']} for {attempt.place}")
            await self.pause(0.05, 0.5)

    @property
    def listens(self) -> bool:
        return self._listens


class Attempt:
    """An agent's work on one message."""

    def __init__(self, worker: Worker, place: tuple[str, str], generation: int, lease_s: float) -> None:
        self.place = place
        self._worker = worker
        self._world = worker.world
        self._generation = generation
        self._lease_s = lease_s
        self._draw = Random(f"{worker.world.plan.seed}/{worker.name}/{place[1]}/{generation}")
        self._moods = Random(f"{worker.world.plan.seed}/{worker.name}/{place[1]}/{generation}/moods")
        self._reply_id = reply_id(place[1], generation)
        self._length = 0
        self._renewed_s = worker.world.loop.time()
        self.task = worker.world.start(self._run())

    async def renew(self) -> bool:
        """Say that it is being worked on; False: it is over, or another's."""
        channel, message_id = self.place
        self._renewed_s = self._world.loop.time()
        frame = {"type": "turn.renew", "channel": channel, "message": message_id, "generation": self._generation}
        if self._world.plan.asks_by_socket:
            frame["state"] = {"state": "thinking"}
        if self._worker.is_connected and self._worker._line is not None:
            self._world.ledger.turn_tried(self.place, self._generation, self._worker._line.connection)
        answer, sent_s, line = await self._worker.ask_until_answered(self, frame)
        if answer["type"] == "ok":
            self._world.ledger.turn_heard(self.place, self._generation, sent_s, line.connection)
            return True
        return False

    async def renew_at_once(self) -> None:
        """After the connection was lost, which has cut the lease short."""
        with contextlib.suppress(Lost):
            if not await self.renew():
                self.task.cancel()

    async def _run(self) -> None:
        with contextlib.suppress(Lost):
            await self._work()

    async def _work(self) -> None:
        try:
            if self._draw.random() < 0.1 and not self._world.is_calm:
                return  # it hangs, and renews nothing
            state = await self._answer()
            frame = {"type": "turn.done", "channel": self.place[0], "message": self.place[1], "state": state}
            await self._worker.ask_until_answered(self, {**frame, "generation": self._generation})
        finally:
            self._worker.over(self)

    async def _answer(self) -> str:
        """Write the answer; how the turn ends."""
        about = {"channel": self.place[0], "id": self._reply_id}
        create = {"type": "create", **about, "role": "assistant", "status": "streaming", "reply_to": self.place[1]}
        if not await self._is_accepted({**create, "parts": [{"type": "text", "text": ""}], "lease_s": 15.0}):
            return "done"
        longest_s = self._draw.choice((0.1, 1.0, 9.0))
        for _ in range(self._draw.randrange(7)):
            text = marks(1, self._length, self._draw.randrange(1, 9))
            if not await self._is_accepted({"type": "append", **about, "part": 0, "at": self._length, "text": text}):
                return "cancelled"
            self._length += len(text)
            await self._worker.pause(longest_s / 2, longest_s)
            if self._world.loop.time() - self._renewed_s > self._lease_s / 4 and not await self.renew():
                return "done"  # another has it; what was begun lapses
            if self._world.plan.asks_by_socket and self._moods.random() < 0.5:
                await self._take_another()
            if self._worker.listens and (command := self._stop()) is not None:
                await self._is_accepted({"type": "finish", **about, "status": "cancelled"})
                await self._is_accepted({"type": "reply", "channel": self.place[0], "id": command, "ok": True})
                return "cancelled"
        await self._is_accepted({"type": "finish", **about, "status": "complete"})
        return "done"

    async def _take_another(self) -> None:
        """Take a message that waits into this turn. Raises Violation where it is said to be, and that is not stored."""
        channel, message_id = self.place
        truth, since = self._world.truth, self._world.truth.stamp
        life = truth.head(channel)
        waiting = [one for one, turns in life.turns.items() if turns[-1][1] == "pending" and not life.is_deleted(one)]
        if not waiting:
            return
        other = self._moods.choice(waiting)
        frame = {"type": "turn.take", "channel": channel, "message": other, "turn": message_id}
        answer, _, _ = await self._worker.ask_until_answered(self, frame)
        if answer["type"] == "error":
            if answer["code"] != "deleted":
                raise Violation(f"{self._worker.name} could not take {other} into the turn of {self.place}: {answer}")
        elif answer["taken"] and not any(
            isinstance(op, Claim) and (op.id, op.within, op.by) == (other, message_id, self._worker.name)
            for life in truth.lives_between(channel, since, truth.stamp)
            for op in life.ops
        ):
            raise Violation(f"{self._worker.name} is said to have {other} in its turn of {self.place}: not stored")

    def _stop(self) -> str | None:
        """The command of somebody who asks it to stop, as far as it is told."""
        life = self._world.truth.head(self.place[0])
        for key, command in life.pending(life.serial).items():
            if command.name == "cancel" and command.target in (self.place[1], self._reply_id):
                return key
        return None

    async def _is_accepted(self, frame: Frame) -> bool:
        """Ask; False: it was refused, because somebody else has ended it."""
        place = (self.place[0], self._reply_id)
        answer, sent_s, line = await self._worker.ask_until_answered(self, frame)
        if answer["type"] == "ok":
            if frame["type"] == "append":
                self._world.ledger.heard(place, sent_s, line.connection)
            return True
        return False
