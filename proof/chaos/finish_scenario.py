"""The scenario in which an answer finishes, whatever dies: the agent's process is killed or shut down at any moment.

Layer: chaos.

The agent of `finish_app` has four steps, two tool calls, a question to a person and a streamed answer; the model of
`outside` breaks. The rules: each question has one answer in one message, with the true text; no viewer and no
client of an adapter ever shows a text that is no beginning of it; no finished step runs again; the person is asked
once; and the model completes one response, and one for each death.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter
from typing import Any, Literal

from proof.chaos.engines import check_programs
from proof.chaos.finish_app import FinishOrders
from proof.chaos.finish_clients import CLIENTS
from proof.chaos.outside import STEPS, TOOLS, Outside, truth, value
from proof.chaos.postgres_server import running_postgres
from proof.chaos.processes import Server, ask
from proof.chaos.viewer import Transport, Viewer, Watching, end
from proof.chaos.world import Failure, World
from proof.oracle.plans import first_difference
from proof.oracle.views import PlanOracle
from proof.wirecheck import Checker, Violation
from tenuto.agents.turn import OnCrash

__all__ = ["finish"]

Json = dict[str, Any]
APP = ["-m", "tenuto", "serve", "--app", "proof.chaos.finish_app:app"]
CHATS: dict[str, tuple[Transport, Transport]] = {  # with their viewers
    "a": ("ws", "sse"), "b": ("poll", "eventsource"), "c": ("ws", "eventsource"), "d": ("sse", "poll"),
}  # fmt: skip
ON_CRASH: tuple[OnCrash, ...] = ("restart", "continue")
ON_BREAK: tuple[Literal["restart"], Literal["continue"]] = ("restart", "continue")
SETTLED_S = 60.0
TURN = 150  # progress of one turn without a break
PAUSE_S = 0.02
READS_S = 0.3  # longest time in which the person reads a question


async def finish(world: World) -> None:
    """An agent with steps, tools, a question and a model that breaks is killed or shut down; each answer is whole."""
    world.acknowledged.kind = "script"  # steps are entries without an event
    rounds = world.scale.rounds
    await _play(world, "sqlite", f"sqlite:///{world.store}", rounds - rounds // 2, nodes=1)
    check_programs()
    with running_postgres() as database:
        await _play(world, "postgres", database.url, rounds // 2, nodes=2)
    await world.check_what_is_left()


async def _play(world: World, name: str, store: str, rounds: int, *, nodes: int) -> None:
    """Play the rounds on one store."""
    play = Play(world, name)
    await play.outside.start()
    on_crash, on_break = world.random.choice(ON_CRASH), world.random.choice(ON_BREAK)
    world.note(f"{nodes} nodes on {store}: on_crash={on_crash}, on_break={on_break}")
    for number in range(nodes):
        report = world.checked(f"{name}-{number}", play.take_report)
        node = Server(f"{name}-{number}", world.folder, world.store, arguments=APP, prefix="/tenuto", report=report)
        drain_s = world.random.choice((0.2, 5.0))
        node.environment = FinishOrders(store, play.outside.url, on_crash, on_break, drain_s).environment
        play.nodes.append(world.adds(node))
    await asyncio.gather(*(node.start() for node in play.nodes))
    for chat, transports in CHATS.items():
        for node, transport in zip(play.nodes * 2, transports, strict=False):
            world.view(f"{name}-{transport}-{chat}", transport, f"finish:{chat}", port=node.port, by=Watcher)
    approving = asyncio.get_running_loop().create_task(play.approve())
    for number in range(rounds):
        await play.round(number)
    await end(approving)
    for viewer in world.viewers:
        await viewer.stop()
    world.viewers.clear()
    for node in play.nodes:
        node.signal(signal.SIGTERM)
        await node.ended()
    await play.outside.stop()
    for fault, count in play.outside.faults.items():
        world.count(f"{fault} of the model", count)


class AnswerOracle(PlanOracle):
    """All that one person was shown: at each moment the text of an answer is a beginning of the true one."""

    def look(self, checker: Checker) -> None:
        """Judge the messages that `checker` shows now."""
        for message in checker.messages.values():
            question, text = message.fields.get("reply_to"), message.text
            if question and not truth(question).startswith(text):
                self.violations.append(Violation("untrue", first_difference(truth(question), text)))


class Watcher(Viewer):
    """A viewer of the answers, which collects the questions of the agent."""

    def __init__(self, watching: Watching, news: asyncio.Event | None = None) -> None:
        super().__init__(watching, news)
        self.shown = AnswerOracle(watching.seed, watching.steps)
        self.asked: dict[str, set[str]] = {}  # ids of the questions of the agent, by the message that they are about

    def _look(self, events: list[Json]) -> None:
        for event in events:
            for command in [event["command"]] if event["type"] == "command" else event.get("commands", []):
                self.asked.setdefault(command["target"], set()).add(command["id"])
        super()._look(events)


class Play:
    """The nodes on one store, the person, and the rules."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.outside = Outside(f"{world.seed}:{name}")
        self.nodes: list[Server] = []
        self._deaths: Counter[str] = Counter()  # by the question whose turn was open
        self._returned: dict[tuple[str, str], int] = {}  # by question and step, the call whose result was returned
        self._random = random.Random(world.seed)  # of the person: the number of draws depends on real time

    def take_report(self, report: Json) -> None:
        """Take a report of an agent: a step has returned. Raises Failure if it returned another result before."""
        step, call = (report["question"], report["step"]), report["call"]
        if self._returned.setdefault(step, call) != call:
            raise Failure(f"{step} returned the result of call {self._returned[step]}, and then that of call {call}")

    async def round(self, number: int) -> None:
        """Ask in each chat, let processes die at drawn moments, and judge the answers."""
        world, chats = self.world, {f"{self.name}-{number}-{chat}": chat for chat in CHATS}
        for id, chat in chats.items():
            await self._insist("POST", "/messages", chat, {"id": id, "text": id})
        ports = [node.port for node in self.nodes]
        clients = [
            asyncio.create_task(kind(ports, id, chat).follow())
            for kind, (id, chat) in zip(world.random.sample(CLIENTS, len(CLIENTS)), chats.items(), strict=False)
        ]
        for count in range(1, world.random.randrange(2, 5)):
            await self._strike(chats, world.random.randrange(TURN * len(chats)) // count)
        await world.until(lambda: not self._open(chats), f"the answers to {[*chats]}", SETTLED_S)
        async with asyncio.timeout(SETTLED_S):
            await asyncio.gather(*clients)
        for id, chat in chats.items():
            await self._judge(id, chat)
        world.count("rounds")

    async def _strike(self, chats: dict[str, str], further: int) -> None:
        """End a process when the agent has come further by so much, unless the round is over before."""
        world, goal = self.world, self.outside.progress + further
        node, is_kill = world.random.choice(self.nodes), world.random.random() < 0.7
        pause_s = world.random.uniform(0.0, 0.3)  # the time that a supervisor may take
        await world.until(lambda: self.outside.progress >= goal or not self._open(chats), "progress", SETTLED_S)
        if not (lost := self._open(chats)):
            return
        self._deaths.update(lost)
        world.note(f"{node.name}: {'kill -9' if is_kill else 'SIGTERM'}; open are {lost}")
        node.signal(signal.SIGKILL if is_kill else signal.SIGTERM)
        await node.ended()
        await asyncio.sleep(pause_s)
        await node.start()
        world.count("kills" if is_kill else "shutdowns")
        world.count("open turns at these", len(lost))

    def _open(self, chats: dict[str, str]) -> list[str]:
        """Return the questions whose answer no viewer shows as complete."""
        shown = (message for viewer in self.world.viewers for message in viewer.messages.values())
        over = {message.fields.get("reply_to") for message in shown if message.status == "complete"}
        return [id for id in chats if id not in over]

    async def _judge(self, question: str, chat: str) -> None:
        """Check the stored answer, the steps, the question to the person, and the calls of the model."""
        page = await self._insist("GET", "/messages?limit=50", chat)
        answers = [one for one in page["messages"] if one.get("reply_to") == question]
        if [one["status"] for one in answers] != ["complete"]:
            raise Failure(f"{question} has the answers {[(one['id'], one['status']) for one in answers]}, due is one")
        parts = answers[0]["parts"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        if text != truth(question):
            raise Failure(f"the answer to {question} {first_difference(truth(question), text)}")
        outputs = [(part["call"], part["output"]) for part in parts if part["type"] == "tool"]
        if outputs != [(tool, value(question, tool)) for tool in TOOLS]:
            raise Failure(f"the answer to {question} has the results {outputs}")
        watchers = [one for one in self.world.viewers if isinstance(one, Watcher) and one.watching.channel[-1] == chat]
        await self.world.until(
            lambda: not any(one.checker.differences(answers[0]) for one in watchers), f"all viewers of {question}"
        )
        if len(asked := {id for one in watchers for id in one.asked.get(question, ())}) != 1:
            raise Failure(f"{question}: the person was asked {len(asked)} times")
        for step in STEPS:
            calls, keys = self.outside.calls[question, step], self.outside.keys[question, step]
            if calls != self._returned.get((question, step)) or len(keys) > 1 or calls > 1 + self._deaths[question]:
                raise Failure(f"{step} of {question}: {calls} calls with the keys {keys}, returned {self._returned}")
            self.world.count("calls of interrupted steps again", calls - 1)
        for kind in ("plan", "answer"):
            if (completed := self.outside.completed[question, kind]) > 1 + self._deaths[question]:
                raise Failure(f"{question}: {completed} whole responses of {kind}, {self._deaths[question]} deaths")
        self.world.count("answers")
        self.world.count("superseded attempts", sum(part["type"] == "attempt" for part in parts))

    async def approve(self) -> None:
        """Reply as the person to each question of the agent once."""
        begun: set[str] = set()
        while True:
            for viewer in self.world.viewers:
                for id in viewer.notices.pending.keys() - begun:
                    begun.add(id)
                    await asyncio.sleep(self._random.uniform(0.0, READS_S))
                    body = {"ok": True, "request": id}
                    await self._insist("POST", f"/commands/{id}/reply", viewer.watching.channel[-1], body)
            await asyncio.sleep(PAUSE_S)  # before the viewers are checked again

    async def _insist(self, method: str, path: str, chat: str, body: Json | None = None) -> Any:
        """Send a request to one node after the other until one answers. Raises Failure for a refusal."""
        async with asyncio.timeout(SETTLED_S):
            while True:
                for node in self.nodes:
                    with contextlib.suppress(OSError):
                        status, response = await ask(
                            node.port, method, f"/tenuto/v1/channels/finish:{chat}{path}", body
                        )
                        if status < 300:
                            return response
                        if status < 500:
                            raise Failure(f"{method} {path} got status {status}: {response}")
                await asyncio.sleep(PAUSE_S)  # before the nodes are asked again
