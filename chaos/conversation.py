"""A conversation in a world: people who ask and stop, agents who answer, and those who look on.

Layer: chaos.

What is done to them is `scenarios`' business, what may come of it `talk`'s. Here it is
carried out over the wire, heard of, waited for within the budgets of the protocol, and judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from chaos.agent import AgentOrders
from chaos.app import OPERATOR
from chaos.processes import Child, ask
from chaos.script import Piece, Script
from chaos.talk import Question, Sent, Talk
from chaos.viewer import Transport, Viewer
from chaos.world import Failure, World
from holdfast.testing.proxy import FaultProxy

__all__ = ["BACK_S", "CHANNELS", "GONE_S", "VANISHED_S", "Conversation"]

Json = dict[str, Any]
CHANNELS = ("talk:one", "talk:two")
PATTERN = "talk:*"

GONE_S = 6.0  # a killed agent is seen to be gone, and its answer to be interrupted
VANISHED_S = 20.0  # … one that is not heard of
BACK_S = 15.0  # the longest pause between two tries to connect
STOPPED_S = 6.0  # a `cancel`: two seconds for the agent, and then the server does it
SETTLED_S = 45.0  # two terms of a turn that nobody has, since its agent was never told of it; and the answer
REST_S = 30.0  # until no turn is left: the end of one may have been lost with who told it
STEADY_S = 12.0  # a connection that was there for so long is had again at once; after others the next try may be late
LASTING_S = 30.0  # an agent that is asked to end may finish its answer


class Conversation:
    """Who takes part, and what they do. Everything that goes on for a while is awaited, or ended by `close`."""

    def __init__(self, world: World, *, looking_on: Iterable[Viewer] = ()) -> None:
        self.world = world
        self.talk = Talk(world.seed, world.scale.steps)
        self.agents: dict[str, Child] = {}  # those that should be seen
        self.lines: dict[str, FaultProxy] = {}  # the network between each agent and the server
        self._orders: dict[str, AgentOrders] = {}
        # Beside the world's, from which faults are drawn: how often this one is asked depends on real time.
        self._random = random.Random(f"people:{world.seed}")
        self._near = list(looking_on)  # those over good connections
        self._hired = 0
        self._asked = 0
        self._approving: asyncio.Task[None] | None = None

    def watch(self, name: str, transport: Transport, channel: str, *, far: int | None = None) -> None:
        """Somebody looks on; with `far` over a proxy, and then in no time that could be promised."""
        viewer = self.world.view(name, transport, channel, port=far, silence_s=3.0 if far else 8.0)
        if not far:
            self._near.append(viewer)

    def begin(self) -> None:
        """PresenceTracker answer what agents ask them, from now on."""
        self._approving = asyncio.get_running_loop().create_task(self._approve_all())

    async def close(self) -> None:
        """Nobody answers any more. Raises what went wrong with it."""
        task, self._approving = self._approving, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # -- agents ------------------------------------------------------------------------------------------------

    async def hire(self, name: str | None = None) -> str:
        """A new agent, or one of the same name as another before. Returns when everybody sees it."""
        world = self.world
        if name is None:
            self._hired += 1
            name = f"bot-{self._hired}"
        line = self.lines[name] = await world.proxy()
        orders = self._orders[name] = AgentOrders(
            url=f"http://127.0.0.1:{line.port}{world.server.prefix}",
            name=name,
            pattern=PATTERN,
            seed=world.seed,
            steps=world.scale.steps,
            per_second=world.scale.per_second,
            on_crash=world.random.choice(("restart", "continue")),
            drain_s=world.random.choice((LASTING_S, LASTING_S, 0.2)),
        )
        self.agents[name] = await world.employ(orders, self._heard)
        world.note(f"{name} begins: on_crash={orders.on_crash}, drain_s={orders.drain_s:g}")
        await self.until_seen([name], BACK_S)
        return name

    def is_lasting(self, name: str) -> bool:
        """Does it finish its answers when it is asked to end?"""
        return self._orders[name].drain_s == LASTING_S

    def is_steady(self, name: str) -> bool:
        """Has it had its connection for a while?"""
        return time.monotonic() - max(self.agents[name].spawned_s, self.world.server.spawned_s) > STEADY_S

    def lose(self, name: str, why: str, *, is_missed: bool = True) -> Child:
        """This agent is not expected to run any more; with `is_missed` others may begin anew what it had."""
        self.world.note(f"{name}: {why}")
        if is_missed:
            self.doubt(self.talk.open)
        del self.world.producers[name]
        return self.agents.pop(name)

    @staticmethod
    def doubt(questions: Iterable[Question], times: int = 1) -> None:
        """There is a reason to begin these once more, or so many times."""
        for question in questions:
            question.attempts += times

    def unbegun(self) -> list[Question]:
        """Open questions that no screen shows an answer to: whoever was given the turn may not know it."""
        begun = {question.id for question, _, _ in self.writing()}
        return [one for one in self.talk.open if one.id not in begun]

    async def kill(self, name: str) -> None:
        """`kill -9`."""
        await self.lose(name, "kill -9").kill()

    async def dismiss(self, name: str) -> None:
        """SIGTERM: it ends as any process would, when it has finished or left what it has; and at once is not seen."""
        # With time enough it finishes what it has, so nobody has a reason to begin anew.
        agent = self.lose(name, "SIGTERM", is_missed=not self.is_lasting(name))
        agent.signal(signal.SIGTERM)
        await self.until_gone(name, GONE_S)
        code = await agent.ended(LASTING_S)
        if code != -signal.SIGTERM:
            raise Failure(f"{name} was asked to end, and ended with {code}:\n{agent.log[-2_000:]}")

    def _heard(self, said: Json) -> None:
        """What an agent reports. Raises Failure."""
        if said["say"] == "ready":
            return
        written = self.world.truth.begins(said["id"], said["channel"])
        match said["say"]:
            case "begins" | "stored" | "over":
                if said["length"] < written.lengths[0] and said["say"] == "begins":
                    raise Failure(f"{said} goes on where less stands than the {written.lengths} acknowledged")
                written.lengths = [max(written.lengths[0], said["length"])]
                written.status = "complete" if said["say"] == "over" else written.status or "streaming"
            case "answered":
                if said["ok"] and (said["data"] or {}).get("by") != said["by"]:
                    raise Failure(f"an agent was given another's answer: {said}")
                self.world.count("approvals" if said["ok"] else "approvals refused")

    # -- people ------------------------------------------------------------------------------------------------

    async def ask(self, channel: str) -> Question:
        """Somebody asks something, as often as it takes to know that it is stored."""
        number, self._asked = self._asked, self._asked + 1
        who = ("ann", "ben")[number % 2]
        question = Question(f"ask-{number}", channel)
        text = Script(self.world.seed, question.id, steps=self.world.scale.steps).whole(who)
        written = self.world.truth.begins(question.id, channel)
        await self._must("POST", f"/v1/channels/{channel}/messages?client={who}", {"id": question.id, "text": text})
        written.lengths, written.status, written.is_over = [len(text)], "complete", True
        self.talk.questions[question.id] = question
        self.world.note(f"{who} asks {question.id} in {channel}")
        self.world.count("questions")
        return question

    async def cancel(self, question: Question, *, target: str | None = None) -> Sent:
        """Somebody stops it from another device, and presses twice; and somebody else may not take that id."""
        number = len(self.talk.sent)
        sent = Sent(f"stop-{number}", question.channel, "cancel", target or question.id, question.id)
        self.talk.sent[sent.id] = sent
        await asyncio.gather(self.send(sent), self.send(sent))
        self.world.note(f"{sent.id} to {sent.target}: {'refused' if sent.is_refused else 'stored'}")
        self.world.count("cancels refused" if sent.is_refused else "cancels")
        return sent

    async def send(self, sent: Sent) -> None:
        """Send a command, once more if it was sent already. Raises Failure where the answer is not the same."""
        known = (sent.told, sent.reply)
        body = {"id": sent.id, "name": sent.name, "target": sent.target}
        status, answer = await self._insist("POST", f"/v1/channels/{sent.channel}/commands?client=carol", body)
        if (wrong := self.talk.told(sent, status, answer, known=known)) is not None:
            raise Failure(wrong)

    async def until_answered(self, sent: Sent) -> None:
        """Wait until everybody is told how a command was answered; and ask, as who sent it."""
        if sent.is_refused:
            return
        near = self._near_to(sent.channel)
        await self._until(
            lambda: all(sent.id in one.heard.replies for one in near),
            lambda: f"an answer to {sent.id} on every screen",
            STOPPED_S,
        )
        await self.send(sent)
        for viewer in near:
            if (wrong := self.talk.replied(sent, viewer.heard.replies[sent.id])) is not None:
                raise Failure(f"{viewer.name}: {wrong}")
        self.world.note(f"{sent.id} was answered: {sent.reply}")

    async def _approve_all(self) -> None:
        """Answer whatever agents ask, two people at once."""
        begun: set[str] = set()
        while True:
            for viewer in self._near:
                for command in list(viewer.heard.pending.values()):
                    if command["name"] == "approve" and command["id"] not in begun:
                        begun.add(command["id"])
                        await asyncio.sleep(self._random.uniform(0.0, 0.2))  # they read it
                        await self._approve(viewer.watching.channel, command["id"])
            await asyncio.sleep(0.02)  # between two looks at the screen

    async def _approve(self, channel: str, command_id: str) -> None:
        """The first answer counts, and is the same when it is sent again; whoever was later is told so."""
        path = f"/v1/channels/{channel}/commands/{command_id}/reply"

        async def reply(who: str) -> tuple[int, Json]:
            body = {"ok": True, "data": {"by": who}, "request": f"{who}-{command_id}"}
            return await self._insist("POST", f"{path}?client={who}", body)

        first = await asyncio.gather(reply("ann"), reply("ben"))
        again = await asyncio.gather(reply("ann"), reply("ben"))
        wins = [answer for status, answer in first if status == 200]
        lost = [answer for status, answer in first if status == 409 and answer["code"] == "already_answered"]
        if len(wins) > 1 or len(wins) + len(lost) != 2 or first != again:
            raise Failure(f"two people answered {command_id}, were told {first}, and again {again}")
        self.world.count("answers to agents" if wins else "answers that came too late")

    async def _must(self, method: str, path: str, body: object) -> Json:
        status, answer = await self._insist(method, path, body)
        if status >= 300:
            raise Failure(f"{method} {path} was answered with {status}: {answer}")
        return answer

    async def _insist(self, method: str, path: str, body: object) -> tuple[int, Json]:
        """The very same request until it has an answer."""
        server, deadline_s = self.world.server, time.monotonic() + SETTLED_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, json.JSONDecodeError):  # not there, or cut
                status, answer = await ask(server.port, method, server.prefix + path, body)
                if status < 500:
                    return status, answer
                if answer.get("code") not in ("draining", "store_unavailable", "busy"):
                    raise Failure(f"{method} {path} was answered with {status}: {answer}")
            await asyncio.sleep(self._random.uniform(0.02, 0.2))  # between two tries
        raise Failure(f"{method} {path} had no answer in {SETTLED_S:.0f} s")

    # -- what is seen ------------------------------------------------------------------------------------------

    def writing(self) -> list[tuple[Question, str, Piece]]:
        """Answers that stream, on any screen: to what, their ids, and the last piece with its writer."""
        found: dict[str, tuple[Question, str, Piece]] = {}
        for viewer in self._near:
            for message in viewer.messages.values():
                question = self.talk.questions.get(message.fields.get("reply_to", ""))
                if question is None or message.status != "streaming" or question.final is not None:
                    continue
                script = Script(self.world.seed, message.fields["id"], steps=self.world.scale.steps)
                if pieces := script.pieces(message.text):
                    id = script.id
                    found[id] = max(found.get(id, (question, id, pieces[-1])), (question, id, pieces[-1]), key=_place)
        return list(found.values())

    async def until_writing(self) -> tuple[Question, str, Piece]:
        """Wait until some answer is in its middle: question, answer, piece; which one, and how far, is drawn."""
        goal = self.world.random.randrange(1, max(2, self.world.scale.steps // 2))
        await self._until(
            lambda: any(piece.number >= goal for _, _, piece in self.writing()),
            lambda: f"an answer with {goal} pieces",
            SETTLED_S,
        )
        found = self._random.choice(self.writing())
        await asyncio.sleep(self._random.uniform(0.0, 0.03))  # somewhere within a commit
        return found

    async def until_seen(self, names: Iterable[str], within_s: float) -> None:
        """Wait until these agents are seen by everybody."""
        wanted = set(names)
        await self._until(
            lambda: all(wanted <= one.heard.members.keys() for one in self._near),
            lambda: f"{sorted(wanted)} to be seen; who sees whom: {self._who_sees_whom()}",
            within_s,
        )

    async def until_gone(self, name: str, within_s: float) -> None:
        """Wait until nobody sees this agent."""
        begun_s = time.monotonic()
        await self._until(
            lambda: all(name not in one.heard.members for one in self._near),
            lambda: f"{name} to be gone; who sees whom: {self._who_sees_whom()}",
            within_s,
        )
        self.world.note(f"{name} is gone from every screen after {time.monotonic() - begun_s:.1f} s")

    async def until_interrupted(self, id: str, attempt: int, within_s: float) -> None:
        """Wait until nobody looks at an answer that seems to go on by this attempt."""
        begun_s = time.monotonic()
        near = [one for one in self._near if id in one.messages]
        await self._until(
            lambda: not any(self._seems_to_stream(one, id, attempt) for one in near),
            lambda: f"{id} to be interrupted, by all of {[one.name for one in near]}",
            within_s,
        )
        self.world.note(f"{id} is interrupted, or over, on every screen after {time.monotonic() - begun_s:.1f} s")

    def _seems_to_stream(self, viewer: Viewer, id: str, attempt: int) -> bool:
        message = viewer.messages.get(id)
        if message is None or message.status != "streaming":
            return message is None
        pieces = Script(self.world.seed, id, steps=self.world.scale.steps).pieces(message.text)
        return not pieces or pieces[-1].attempt <= attempt

    async def until_signalled(self, question: Question) -> None:
        """Wait until people are told that nobody listens."""
        near = self._near_to(question.channel)
        told = {"message": question.id}
        await self._until(
            lambda: any(
                one["name"] == "nobody_listening" and one["data"] == told for v in near for one in v.heard.signals
            ),
            lambda: f"people to be told that nobody listens to {question.id}",
            self.world.scale.alone_s,
        )
        self.world.count("told that nobody listens")

    def departures(self, name: str) -> int:
        """How often people were told that this agent leaves."""
        return sum(viewer.heard.left.count(name) for viewer in self._near)

    def _who_sees_whom(self) -> dict[str, list[str]]:
        return {one.name: sorted(one.heard.members) for one in self._near}

    def _near_to(self, channel: str) -> list[Viewer]:
        return [one for one in self._near if one.watching.channel == channel]

    async def _until(self, predicate: Callable[[], bool], what: Callable[[], str], timeout_s: float) -> None:
        """As `World.until`; what was waited for is told as it is when the time is over."""

        def look() -> bool:
            if self._approving is not None and self._approving.done():
                self._approving.result()
            return predicate()

        try:
            await self.world.until(look, "", timeout_s)
        except Failure as error:
            if not str(error).startswith("waited"):
                raise
            raise Failure(f"{error}{what()}") from None

    # -- what must hold ----------------------------------------------------------------------------------------

    async def until_settled(self) -> None:
        """Every question has come to its end, on every screen and in the store; and then no turn is left."""
        await self._until(
            lambda: not self._unsettled_on_screens(), lambda: str(self._unsettled_on_screens()), SETTLED_S
        )
        for sent in [one for one in self.talk.sent.values() if not one.is_refused]:
            await self.send(sent)  # once more: the answer is the same
        await self.check()
        for question in self.talk.open:
            self._settle(question, await self.world.stored(question.channel))
        if unanswered := self.talk.unanswered():
            raise Failure(f"commands were not answered: {unanswered}")
        await self._until_no_turn_is_left()

    def _unsettled_on_screens(self) -> list[str]:
        found = []
        for question in self.talk.open:
            for viewer in self._near_to(question.channel):
                messages = {id: one.fields | {"id": id} for id, one in viewer.messages.items()}
                if (missing := self.talk.unsettled(question, messages)) is not None:
                    found.append(f"{viewer.name}: {missing}")
        return found

    def _settle(self, question: Question, messages: dict[str, Json]) -> None:
        if (missing := self.talk.unsettled(question, messages)) is not None:
            raise Failure(f"it was shown to be settled, and is not: {missing}")
        for answer in self.talk.settle(question, messages):
            written = self.world.truth.begins(answer["id"], question.channel)
            length = sum(len(part["text"]) for part in answer.get("parts", []))
            written.lengths, written.status, written.is_over = [length], answer["status"], True
            self.world.count(answer["status"])

    async def check(self) -> None:
        """What may never be, settled or not; and all that was acknowledged or shown is stored."""
        await self.world.check_stored()
        for channel in CHANNELS:
            messages = await self.world.stored(channel)
            for question in self.talk.questions.values():
                if question.channel == channel and (wrong := self.talk.wrong(question, messages)) is not None:
                    raise Failure(wrong)

    async def _until_no_turn_is_left(self) -> None:
        deadline_s = time.monotonic() + REST_S
        while (left := await self._turns_left()) != {"running": 0, "waiting": 0}:
            if time.monotonic() > deadline_s:
                raise Failure(f"every question is settled, and after {REST_S:.0f} s turns are left: {left}")
            self.world.check()
            await asyncio.sleep(0.05)  # the server tells it by numbers only

    async def _turns_left(self) -> dict[str, int]:
        status, text = await self.world.server.get(f"/metrics?client={OPERATOR}")
        if status != 200:
            raise Failure(f"/metrics was answered with {status}: {text}")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("holdfast_turns_"))
        return {what: int(float(lines[f"holdfast_turns_{what}"])) for what in ("running", "waiting")}

    async def until_all_know(self) -> None:
        """Every screen shows who is here, and no command that seems to wait."""
        await self._until(
            lambda: not any(one.heard.differences(self.agents) for one in self._near),
            lambda: str({one.name: one.heard.differences(self.agents) for one in self._near}),
            GONE_S,
        )


def _place(found: tuple[Question, str, Piece]) -> int:
    return found[2].number
