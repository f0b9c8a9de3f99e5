"""A conversation in a world: users that ask, agents that answer, and viewers.

Layer: chaos.

`scenarios` injects the faults, and `proof.oracle.questions` judges the outcome. This module sends the requests over the
wire, and waits for their effects within the limits of the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from proof.chaos.agent import AgentOrders
from proof.chaos.app import OPERATOR
from proof.chaos.processes import Child, Failure, ask
from proof.chaos.viewer import Transport, Viewer
from proof.chaos.world import World
from proof.oracle.plans import Piece, Script, counted
from proof.oracle.questions import Question, Questions

Json = dict[str, Any]
CHANNELS = ("talk:one", "talk:two")
PATTERN = "talk:*"

GONE_S = 6.0  # time in which viewers must see that a killed agent is gone and its answer is interrupted
VANISHED_S = 40.0  # time in which viewers must see the same of an agent that falls silent
BACK_S = 15.0  # longest pause between two tries of a client to connect
SETTLED_S = 45.0  # two leases of a turn whose agent never received it, and the answer
REST_S = 30.0  # time in which all turns must end, although the request that ends one may have been lost
LASTING_S = 30.0  # an agent that shuts down may finish its answer


class Conversation:
    """The users, the agents and the viewers."""

    def __init__(self, world: World, *, viewers: Iterable[Viewer] = (), channels: Iterable[str] = CHANNELS) -> None:
        self.world = world
        self.channels = tuple(channels)
        self.questions = Questions(world.seed, world.scale.steps)
        self.agents: dict[str, Child] = {}  # the agents that viewers must show as present
        self._orders: dict[str, AgentOrders] = {}
        # Separate from the world's, which determines the faults: the number of draws here depends on real time.
        self._random = random.Random(f"people:{world.seed}")
        self._viewers = list(viewers)
        self._agents_started = 0
        self._question_count = 0

    def watch(self, name: str, transport: Transport, channel: str, **more: Any) -> None:
        """Add a viewer."""
        self._viewers.append(self.world.view(name, transport, channel, **{"silence_s": 8.0, **more}))

    # -- agents ------------------------------------------------------------------------------------------------

    async def start_agent(self, name: str | None = None) -> str:
        """Start an agent, with a new name or with that of an earlier one. Return when all viewers show it."""
        world = self.world
        if name is None:
            self._agents_started += 1
            name = f"bot-{self._agents_started}"
        orders = self._orders[name] = AgentOrders(
            url=f"http://127.0.0.1:{world.server.port}{world.server.prefix}",
            name=name,
            pattern=PATTERN,
            seed=world.seed,
            steps=world.scale.steps,
            per_second=world.scale.per_second,
            on_crash=world.random.choice(("restart", "continue")),
            drain_s=world.random.choice((LASTING_S, LASTING_S, 0.2)),
        )
        self.agents[name] = await world.start_program("proof.chaos.agent", orders, self.take_report)
        world.note(f"{name} starts: on_crash={orders.on_crash}, drain_s={orders.drain_s:g}")
        await self.until_shown([name], BACK_S)
        return name

    def is_lasting(self, name: str) -> bool:
        """Return whether the agent finishes its answers before it ends."""
        return self._orders[name].drain_s == LASTING_S

    def lose(self, name: str, why: str, *, is_missed: bool = True) -> Child:
        """Stop expecting that this agent runs. With `is_missed`, other agents may begin its open turns again."""
        self.world.note(f"{name}: {why}")
        if is_missed:
            self.expect_attempts(self.questions.open)
        del self.world.producers[name]
        return self.agents.pop(name)

    @staticmethod
    def expect_attempts(questions: Iterable[Question], times: int = 1) -> None:
        """Allow one more attempt at each of these questions, or `times`."""
        for question in questions:
            question.attempts += times

    def unstarted(self) -> list[Question]:
        """Return the open questions without a shown answer: their agents may not have received the turn."""
        begun = {question.id for question, _, _ in self.writing()}
        return [one for one in self.questions.open if one.id not in begun]

    async def kill_agent(self, name: str) -> None:
        """End an agent as `kill -9` does."""
        await self.lose(name, "kill -9").kill()

    async def shut_down_agent(self, name: str) -> None:
        """End an agent by SIGTERM: it finishes its turns or leaves them, and then ends by the signal."""
        # An agent with enough time finishes its turns, so no other agent may begin them again.
        agent = self.lose(name, "SIGTERM", is_missed=not self.is_lasting(name))
        agent.signal(signal.SIGTERM)
        await self.until_gone(name, GONE_S)
        code = await agent.ended(LASTING_S)
        if code != -signal.SIGTERM:
            raise Failure(f"{name} got SIGTERM, and ended with {code}:\n{agent.log[-2_000:]}")

    def take_report(self, report: Json) -> None:
        """Take a report of an agent. Raises Failure."""
        if report["say"] == "ready":
            return
        written = self.world.acknowledged.begin(report["id"], report["channel"])
        if report.get("supersedes"):
            written.length = 0
        if report["length"] < written.length and report["say"] == "begins":
            raise Failure(f"{report} begins behind the {written.length} acknowledged characters")
        written.length = max(written.length, report["length"])
        written.status = "complete" if report["say"] == "over" else written.status or "streaming"

    # -- users -----------------------------------------------------------------------------------------------------

    async def ask(self, channel: str) -> Question:
        """Let a user ask a question, until it is acknowledged."""
        number, self._question_count = self._question_count, self._question_count + 1
        who = ("ann", "ben")[number % 2]
        question = Question(f"ask-{number}", channel)
        text = "".join(Script(self.world.seed, question.id, steps=self.world.scale.steps).texts(who))
        written = self.world.acknowledged.begin(question.id, channel)
        await self._must("POST", f"/v1/channels/{channel}/messages?client={who}", {"id": question.id, "text": text})
        written.length, written.status, written.is_over = len(text), "complete", True
        self.questions.all[question.id] = question
        self.world.note(f"{who} asks {question.id} in {channel}")
        self.world.count("questions")
        return question

    async def _must(self, method: str, path: str, body: object) -> Json:
        status, response = await self._insist(method, path, body)
        if status >= 300:
            raise Failure(f"{method} {path} got status {status}: {response}")
        return response

    async def _insist(self, method: str, path: str, body: object) -> tuple[int, Json]:
        """Send the same request until it has a response; return it."""
        server, deadline_s = self.world.server, time.monotonic() + SETTLED_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):  # there is no server, or the connection was cut
                status, response = await ask(server.port, method, server.prefix + path, body)
                if status < 500:
                    return status, response
                if status in (502, 503, 504) and isinstance(response, str):
                    raise OSError("a proxy has no server")
                if response.get("code") not in ("draining", "store_unavailable", "busy"):
                    raise Failure(f"{method} {path} got status {status}: {response}")
            await asyncio.sleep(self._random.uniform(0.02, 0.2))  # before the request is sent again
        raise Failure(f"{method} {path} had no response in {SETTLED_S:.0f} s")

    # -- viewers ---------------------------------------------------------------------------------------------------

    def writing(self) -> list[tuple[Question, str, Piece]]:
        """Return the streaming answers of all viewers: question, id, and the last piece."""
        found: dict[str, tuple[Question, str, Piece]] = {}
        for viewer in self._viewers:
            for message in viewer.messages.values():
                question = self.questions.all.get(message.fields.get("reply_to", ""))
                if question is None or message.status != "streaming" or question.final is not None:
                    continue
                script = Script(self.world.seed, message.fields["id"], steps=self.world.scale.steps)
                if pieces := script.pieces(message.text):
                    id = script.id
                    found[id] = max(
                        found.get(id, (question, id, pieces[-1])),
                        (question, id, pieces[-1]),
                        key=lambda one: one[2].number,
                    )
        return list(found.values())

    async def until_writing(self) -> tuple[Question, str, Piece]:
        """Wait until an answer has some of its pieces; return question, answer and piece. The seed determines which."""
        goal = self.world.random.randrange(1, max(2, self.world.scale.steps // 2))
        await self._until(
            lambda: any(piece.number >= goal for _, _, piece in self.writing()),
            lambda: f"an answer with {goal} pieces",
            SETTLED_S,
        )
        found = self._random.choice(self.writing())
        await asyncio.sleep(self._random.uniform(0.0, 0.03))  # a random moment of a commit
        return found

    async def until_shown(self, names: Iterable[str], within_s: float) -> None:
        """Wait until all viewers show these agents."""
        wanted = set(names)
        await self._until(
            lambda: all(wanted <= one.notices.members.keys() for one in self._viewers),
            lambda: f"{sorted(wanted)} to be shown; the viewers show {self._shown_members()}",
            within_s,
        )

    async def until_gone(self, name: str, within_s: float) -> None:
        """Wait until no viewer shows this agent."""
        begun_s = time.monotonic()
        await self._until(
            lambda: all(name not in one.notices.members for one in self._viewers),
            lambda: f"{name} to be gone; the viewers show {self._shown_members()}",
            within_s,
        )
        self.world.note(f"no viewer shows {name} after {time.monotonic() - begun_s:.1f} s")

    async def until_interrupted(self, id: str, attempt: int, within_s: float) -> None:
        """Wait until no viewer shows that this attempt still writes the answer."""
        begun_s = time.monotonic()
        near = [one for one in self._viewers if id in one.messages]
        await self._until(
            lambda: not any(self._seems_to_stream(one, id, attempt) for one in near),
            lambda: f"{id} to be interrupted, at all of {[one.name for one in near]}",
            within_s,
        )
        self.world.note(f"{id} is interrupted or finished at each viewer after {time.monotonic() - begun_s:.1f} s")

    def _seems_to_stream(self, viewer: Viewer, id: str, attempt: int) -> bool:
        message = viewer.messages.get(id)
        if message is None or message.status != "streaming":
            return message is None
        pieces = Script(self.world.seed, id, steps=self.world.scale.steps).pieces(message.text)
        return not pieces or pieces[-1].attempt <= attempt

    def _shown_members(self) -> dict[str, list[str]]:
        return {one.name: sorted(one.notices.members) for one in self._viewers}

    async def _until(self, predicate: Callable[[], bool], what: Callable[[], str], timeout_s: float) -> None:
        """Wait as `World.until` does; a failure describes the awaited state at its end."""
        try:
            await self.world.until(predicate, "", timeout_s)
        except Failure as error:
            if not str(error).startswith("waited"):
                raise
            raise Failure(f"{error}{what()}") from None

    # -- checks ----------------------------------------------------------------------------------------------------

    async def until_settled(self) -> None:
        """Wait until each question is settled at all viewers and in the store, and until no turn is left."""
        await self._until(
            lambda: not self._unsettled_on_screens(), lambda: str(self._unsettled_on_screens()), SETTLED_S
        )
        await self.check()
        for question in self.questions.open:
            self._settle(question, await self.world.stored(question.channel))
        await self._until_no_turn_is_left()

    def _unsettled_on_screens(self) -> list[str]:
        found = []
        for question in self.questions.open:
            for viewer in [one for one in self._viewers if one.watching.channel == question.channel]:
                messages = {id: one.fields | {"id": id} for id, one in viewer.messages.items()}
                if (missing := self.questions.unsettled(question, messages)) is not None:
                    found.append(f"{viewer.name}: {missing}")
        return found

    def _settle(self, question: Question, messages: dict[str, Json]) -> None:
        if (missing := self.questions.unsettled(question, messages)) is not None:
            raise Failure(f"the viewers show it as settled, the store does not: {missing}")
        for answer in self.questions.settle(question, messages):
            written = self.world.acknowledged.begin(answer["id"], question.channel)
            length = sum(len(part["text"]) for part in counted(answer.get("parts", [])))
            written.length, written.status, written.is_over = length, answer["status"], True
            self.world.count(answer["status"])

    async def check(self) -> None:
        """Check the answers so far, and that all acknowledged and shown text is stored."""
        await self.world.check_stored()
        for channel in self.channels:
            messages = await self.world.stored(channel)
            for question in self.questions.all.values():
                if question.channel == channel and (wrong := self.questions.wrong(question, messages)) is not None:
                    raise Failure(wrong)

    async def _until_no_turn_is_left(self) -> None:
        deadline_s = time.monotonic() + REST_S
        while (left := await self._turns_left()) != {"running": 0, "waiting": 0}:
            if time.monotonic() > deadline_s:
                raise Failure(f"all questions are settled, and after {REST_S:.0f} s turns are left: {left}")
            self.world.check()
            await asyncio.sleep(0.05)  # poll, because the server has no event for the end of a turn

    async def _turns_left(self) -> dict[str, int]:
        left = {"running": 0, "waiting": 0}
        for node in self.world.server.nodes:
            status, text = await node.get(f"/metrics?client={OPERATOR}")
            if status != 200:
                raise Failure(f"/metrics got status {status}: {text}")
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("tenuto_turns_"))
            for what in left:
                left[what] += int(float(lines[f"tenuto_turns_{what}"]))
        return left

    async def until_viewers_agree(self, others: Iterable[str] = (), within_s: float = GONE_S) -> None:
        """Wait until all viewers show the agents, and `others`, and no command without a reply."""

        def differences(viewer: Viewer) -> list[str]:
            return viewer.notices.differences([*self.agents, *others])

        await self._until(
            lambda: not any(differences(one) for one in self._viewers),
            lambda: str({one.name: found for one in self._viewers if (found := differences(one))}),
            within_s,
        )
