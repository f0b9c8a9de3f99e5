"""The scenario in which an answer finishes, whatever dies: the agent's process is killed or shut down at any moment.

Layer: chaos.

The agent of `finish_app` has steps, two tool calls, a question to a person, a wait and a streamed answer; the model of
`Outside` breaks. The rules: each question has one answer in one message, with the true text; no viewer and no
client of an adapter ever shows a text that is no beginning of it; no finished step runs again; the person is asked
once; and the model is called once, and once more for each break and each death.

The model and the tools run in the process of the scenario, so they outlive the agent, and count what it has called. The
text of an answer follows from the question and the results of the steps, so that a lost result makes another text. Its
numbers only rise, so that a beginning of it has no text twice. The clients of the adapters connect to one node after
the other, again after each break, and read the events as their packages do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import httpx2

from proof.chaos.engines import check_programs, running_postgres
from proof.chaos.finish_app import ON_BREAK, PLANS, FinishOrders
from proof.chaos.processes import Failure, Server, ask
from proof.chaos.viewer import Transport, Viewer, Watching, end
from proof.chaos.world import World
from proof.oracle.plans import NASTY, ORDINARY, first_difference
from proof.oracle.views import PlanOracle
from proof.wirecheck import Checker, SeenMessage, SseParser, Violation
from tenuto.agents.turn import OnCrash
from tenuto.interop.openai_stream import Reference
from tests.sources import wires
from tests.sources.provider import CUT, HOLD, Provider, Step

Json = dict[str, Any]
TOOLS = ("tool:a", "tool:b")  # the tool calls of the plan
STEPS = (*TOOLS, "pay")  # the steps beside the plan
LENGTH = 2_000  # characters of an answer
CHUNK = 40
OVERLAP = 50  # characters that a continuation may repeat
PACE_S = 0.01  # between two chunks
DEPLOYS = 10  # shutdowns in a row during one answer: each of three nodes is replaced three times, and one a fourth time
SLOW_S = 0.2  # between two characters meanwhile, so that the answer is still open
TOOL_S = 0.3  # longest work of a tool
BROKEN = 0.4  # share of the requests to the model that break
FAULTS: tuple[str | None, ...] = ("429", "503", "cut", "clean cut", "stall", "overloaded", "overlap", "repeat")
LIVE_FAULTS = ("503", "cut", "clean cut", "stall", "too old")  # of a response in the background; the last: to attach
_ERROR = {"error": {"message": "try again", "type": "overloaded_error", "code": "overloaded"}}
ENDS: dict[str | None, list[Step]] = {"cut": [CUT], "stall": [HOLD], "overloaded": [wires.sse(_ERROR)]}
WHOLE = (None, "overlap", "repeat")  # the faults with which a response is whole


def value(question: str, step: str) -> str:
    """Return the result of a step of the turn of `question`."""
    return f"{zlib.crc32(f'{question}:{step}'.encode()):08x}"


@cache  # each look at a channel asks for all its questions
def truth(question: str) -> str:
    """Return the text that the answer to `question` must have."""
    return _written(question, [value(question, step) for step in STEPS])


def _written(question: str, results: Sequence[str]) -> str:
    """Return the answer that the model writes with these results."""
    chosen = random.Random(question)
    text, number = f"{question}: {', '.join(results)}. ", 0
    while len(text) < LENGTH:
        text += f"{number} {chosen.choice(NASTY if chosen.random() < 0.2 else ORDINARY)}"
        number += 1
    return text[:LENGTH]


@dataclass
class Background:
    """A response that the model writes whether or not a client reads it; it is whole at the time of its last event."""

    wire: wires.Responses
    question: str
    events: list[bytes]
    seen_s: float
    ready: float = 0.0  # number of its events so far


class Outside(Provider):
    """The model, which speaks the Chat Completions and the Responses of OpenAI, and the tools."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.is_slow = False
        self.progress = 0  # rises with each call and each chunk
        self.calls: Counter[tuple[str, str]] = Counter()  # calls of a tool, by question and step
        self.keys: dict[tuple[str, str], set[str]] = {}  # their idempotency keys
        self.unbroken: Counter[tuple[str, str]] = Counter()  # responses of the model without a break, by question, kind
        self.faults: Counter[str] = Counter()
        self.background: dict[str, Background] = {}
        self.made_again: list[str] = []  # questions with a second response in the background, after text of the first
        self.is_shown: Callable[[str], bool] = lambda question: False  # whether text of its answer was shown
        self._random = random.Random(seed)

    def script(self, path: str, body: Any) -> tuple[int, str, Iterable[Step]]:
        """Return a response of a tool or of the model; the counters rise as it is sent."""
        if path == "/step":
            return 200, "application/json", self._step(body["question"], body["step"], body["key"])
        if path.startswith("/v1/responses"):
            return self._responses(path.removeprefix("/v1/responses").removeprefix("/"), body)
        asked, last = json.loads(body["messages"][0]["content"]), body["messages"][-1]
        question, results = asked["question"], asked["results"]
        prefix = last["content"] if last["role"] == "assistant" else ""
        fault = self._random.choice(FAULTS if self._random.random() < BROKEN else WHOLE if prefix else (None,))
        if fault == "overlap" and last.get("prefix"):  # such a model goes on exactly behind the prefix, or begins again
            fault = "repeat"
        self.faults[fault or "no fault"] += 1
        if fault in ("429", "503"):
            return int(fault), "application/json", [json.dumps(_ERROR).encode()]
        self.unbroken[question, "answer" if results else "plan"] += fault in WHOLE
        stream = self._text(question, results, prefix, fault) if results else self._plan(fault)
        return 200, "text/event-stream", stream

    def _responses(self, path: str, body: Any) -> tuple[int, str, Iterable[Step]]:
        """Return the stream of a response in the background, new or attached again, or its state."""
        id, _, options = path.partition("?")
        faults = LIVE_FAULTS if options else LIVE_FAULTS[:-1]
        fault = self._random.choice(faults) if self._random.random() < BROKEN else None
        self.faults[f"{fault or 'no fault'} in the background"] += 1
        if fault in ("503", "too old"):
            return {"503": 503, "too old": 400}[fault], "application/json", [json.dumps(_ERROR).encode()]
        if body is not None:
            asked = json.loads(body["input"])
            self.unbroken[asked["question"], "answer"] += fault is None
            response = self._begun(asked["question"], _written(asked["question"], asked["results"]))
            return 200, "text/event-stream", self._live(response, 0, fault)
        response = self.background[id]
        if options:
            after = int(options.partition("starting_after=")[2].partition("&")[0])
            return 200, "text/event-stream", self._live(response, after + 1, fault)
        is_over = self._number(response) == len(response.events)
        end = json.loads(response.events[-1].partition(b"data: ")[2])["response"]
        state = end if is_over else response.wire.about("in_progress")
        return 200, "application/json", [json.dumps(state).encode()]

    def _begun(self, question: str, text: str) -> Background:
        wire = wires.Responses(f"resp_{len(self.background)}")
        if any(one.question == question for one in self.background.values()) and self.is_shown(question):
            self.made_again.append(question)
        size = CHUNK // 4 if self.is_slow else CHUNK
        pieces = tuple(text[at : at + size] for at in range(0, len(text), size))
        content = [{"type": "output_text", "text": text, "annotations": []}]
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": content}
        events = [*wire.begin(), *wire.said(0, pieces), *wire.completed(output=[message])]
        response = Background(wire, question, events, asyncio.get_running_loop().time())
        self.background[wire.response] = response
        return response

    def _number(self, response: Background) -> int:
        """Return how many events of the response there are by now."""
        now_s = asyncio.get_running_loop().time()
        response.ready += (now_s - response.seen_s) / (SLOW_S if self.is_slow else PACE_S)
        response.seen_s = now_s
        return min(int(response.ready), len(response.events))

    def _live(self, response: Background, begin: int, fault: str | None) -> Iterator[Step]:
        """Stream the events from `begin` on as they come, up to a fault."""
        end = len(response.events) if fault is None else self._random.randrange(begin, len(response.events) + 1)
        for number in range(begin, end):
            while self._number(response) <= number:
                yield PACE_S
            self.progress += CHUNK // 20
            yield response.events[number]
        yield from ENDS.get(fault, ())

    def _step(self, question: str, step: str, key: str) -> Iterator[Step]:
        self.calls[question, step] += 1
        self.keys.setdefault((question, step), set()).add(key)
        self.progress += 10
        number = self.calls[question, step]
        yield self._random.uniform(0.0, TOOL_S)
        yield json.dumps({"value": value(question, step), "number": number}).encode()

    def _plan(self, fault: str | None) -> Iterator[Step]:
        """Stream the calls of the tools, whose ids are new in each response."""
        self.progress += 10
        calls = [
            {"id": f"call-{self.progress}-{at}", "type": "function", "index": at, "function": find}
            for at, find in enumerate({"name": "find", "arguments": json.dumps({"step": one})} for one in TOOLS)
        ]
        yield wires.chat({"tool_calls": calls[:1]})
        if fault in WHOLE:
            yield wires.chat({"tool_calls": calls[1:]})
        yield from wires.chat_end("tool_calls") if fault in WHOLE else ENDS.get(fault, ())

    def _text(self, question: str, results: list[str], prefix: str, fault: str | None) -> Iterator[Step]:
        """Stream the text behind `prefix`, up to a fault."""
        text = _written(question, results)
        assert text.startswith(prefix), f"the agent continues {prefix!r}, which is no beginning of {text!r}"
        begin = {"repeat": 0, "overlap": max(0, len(prefix) - OVERLAP)}.get(fault or "", len(prefix))
        end = len(text) if fault in WHOLE else self._random.randrange(begin, len(text) + 1)
        at = begin
        while at < end:
            self.progress += CHUNK // 20
            begin, at = at, min(at + (1 if self.is_slow else CHUNK), end)
            yield wires.chat({"content": text[begin:at]})
            yield SLOW_S if self.is_slow else PACE_S
        yield from wires.chat_end() if fault in WHOLE else ENDS.get(fault, ())


class Client:
    """What a client shows: at each moment the beginning of the true text, and all of it at the end."""

    def __init__(self, ports: Sequence[int], question: str, chat: str) -> None:
        self.ports = ports
        self.question = question
        self.chat = chat
        self.texts: dict[str, str] = {}
        self.place = ""  # of the last event: the next connection goes on behind it
        self.is_complete = False  # True: the answer is, so that a page that was away has no stream to follow any more

    def path(self) -> str:
        """Begin a connection, and return its address."""
        raise NotImplementedError

    def take(self, event: Json, id: str | None) -> bool:
        """Take an event; return whether the answer is over."""
        raise NotImplementedError

    async def follow(self) -> None:
        """Show the answer until it is over. Raises Failure if it shows another text."""
        while True:
            for port in self.ports:
                with contextlib.suppress(httpx2.HTTPError):
                    if await self._connect(f"http://127.0.0.1:{port}{self.path()}"):
                        return
            await asyncio.sleep(PAUSE_S)

    async def _connect(self, url: str) -> bool:
        async with httpx2.AsyncClient(timeout=SILENCE_S) as http, http.stream("GET", url) as response:
            if response.status_code == 204 and self.is_complete:
                return True
            parser = SseParser()
            async for data in response.aiter_bytes():
                for event in parser.receive(data) if response.status_code == 200 else ():
                    is_over = event.data != b"[DONE]" and self.take(json.loads(event.data), event.id)
                    text, due = "".join(self.texts.values()), truth(self.question)
                    if not due.startswith(text) or (is_over and text != due):
                        difference = first_difference(due, text)
                        raise Failure(f"{type(self).__name__}: the answer to {self.question} {difference}")
                    if is_over:
                        return True
        return False

    def _add(self, key: str, delta: str) -> None:
        self.texts[key] = self.texts.get(key, "") + delta


class AiSdkPage(Client):
    """A page with the AI SDK 7: each connection has the whole turn."""

    before: Iterable[str] = ()  # the texts of the steps that are over

    def path(self) -> str:
        self.texts = {}
        return f"/ai/{self.chat}/stream"

    def take(self, event: Json, id: str | None) -> bool:
        match event["type"]:
            case "start-step":
                self.before = list(self.texts)
            case "reset-step":
                self.texts = {key: self.texts[key] for key in self.before}
            case "text-delta":
                self._add(event["id"], event["delta"])
        return bool(event["type"] == "finish")


class AguiClient(Client):
    """A client of AG-UI, which gets only what it lacks."""

    def path(self) -> str:
        return f"/agui/{self.chat}/connect{self.place}"

    def take(self, event: Json, id: str | None) -> bool:
        self.place = f"?cursor={id}" if id else self.place
        match event["type"]:
            case "MESSAGES_SNAPSHOT":
                ids = [one["id"] for one in event["messages"]]  # of the thread; this answer follows its question
                later = event["messages"][ids.index(self.question) + 1 :]
                self.texts = {one["id"]: one.get("content") or "" for one in later}
            case "TEXT_MESSAGE_CONTENT":
                self._add(event["messageId"], event["delta"])
            case "RUN_ERROR":
                self.texts, self.place = {}, ""
        return bool(event["type"] == "RUN_FINISHED")


class OpenAiClient(Client):
    """A client of OpenAI's Responses, which gets only what it lacks; the last event has the whole."""

    def path(self) -> str:
        id = Reference(f"finish:{self.chat}", self.question, (0, 0)).id("resp_")
        return f"/v1/responses/{id}?stream=true{self.place}"

    def take(self, event: Json, id: str | None) -> bool:
        self.place = f"&starting_after={event['sequence_number']}"
        match event["type"]:
            case "response.output_text.delta":
                self._add(event["item_id"], event["delta"])
            case "response.output_item.done" if event["item"].get("status") == "incomplete":
                self.texts.pop(event["item"]["id"], None)
            case "response.failed" | "response.incomplete" | "error":
                self.texts, self.place = {}, ""
            case "response.completed":
                items = [one for one in event["response"]["output"] if one["type"] == "message"]
                self.texts = {one["id"]: "".join(block["text"] for block in one["content"]) for one in items}
        return bool(event["type"] == "response.completed")


CLIENTS: tuple[type[Client], ...] = (AiSdkPage, AguiClient, OpenAiClient)
APP = ["-m", "tenuto", "serve", "--app", "proof.chaos.finish_app:app"]
AGENT = ["-m", "proof.chaos.finish_app"]
CHATS: dict[str, tuple[Transport, Transport]] = {  # with their viewers
    "a": ("ws", "sse"), "b": ("poll", "eventsource"), "c": ("ws", "eventsource"), "d": ("sse", "poll"),
}  # fmt: skip
ON_CRASH: tuple[OnCrash, ...] = ("restart", "continue")
SETTLED_S = 60.0
SILENCE_S = 10.0
TURN = 150  # progress of one turn without a break
PAUSE_S = 0.02
READS_S = 0.3  # longest time in which the person reads a question


async def finish(world: World) -> None:
    """An agent with steps, tools, a question and a model that breaks is killed or shut down; each answer is whole."""
    rounds = world.scale.rounds
    await _play(world, "sqlite", f"sqlite:///{world.store}", rounds - rounds // 2, nodes=1)
    check_programs()
    with running_postgres() as database:
        await _play(world, "postgres", database.url, rounds // 2, nodes=2)
        await _play(world, "deploy", database.url, rounds=1, nodes=3)
    await world.check_what_is_left()


async def _play(world: World, name: str, store: str, rounds: int, *, nodes: int) -> None:
    """Play the rounds on one store."""
    play = Play(world, name)
    await play.outside.start()
    on_crash = {chat: world.random.choice(ON_CRASH) for chat in CHATS}
    play.remote = remote = world.random.sample([*CHATS], 2)
    world.note(f"{nodes} nodes on {store}: on_crash={on_crash}, remote={remote}")
    for number in range(nodes):
        report = world.checked(f"{name}-{number}", play.take_report)
        node = Server(f"{name}-{number}", world.folder, world.store, arguments=APP, prefix="/tenuto", report=report)
        agent = Server(f"{node.name}-agent", world.folder, world.store, arguments=AGENT, report=report)
        drain_s, url = world.random.choice((0.2, 5.0)), f"http://127.0.0.1:{node.port}/tenuto"
        orders = FinishOrders(store, play.outside.url, on_crash, drain_s, remote, url)
        node.environment = agent.environment = {"TENUTO_CHAOS": json.dumps(asdict(orders))}
        play.nodes.append(world.adds(node))
        play.agents.append(world.adds(agent, serves=False))
    await asyncio.gather(*(node.start() for node in play.nodes), *(agent.spawn() for agent in play.agents))
    for chat, transports in CHATS.items():
        for node, transport in zip(play.nodes * 2, transports, strict=False):
            world.view(f"{name}-{transport}-{chat}", transport, f"finish:{chat}", port=node.port, by=Watcher)
    # from then on each channel has been served, and its questions wait for an agent
    await world.until(lambda: all("bot" in one.notices.members for one in world.viewers), "the agents", SETTLED_S)
    approving = asyncio.get_running_loop().create_task(play.approve())
    for number in range(rounds):
        await play.round(number, is_deploy=nodes > 2)
    await end(approving)
    for viewer in world.viewers:
        await viewer.stop()
    world.viewers.clear()
    for one in (*play.agents, *play.nodes):
        one.signal(signal.SIGTERM)
        await one.ended()
    await play.outside.stop()
    world.count("responses in the background", len(play.outside.background))
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
        self.outside.is_shown = lambda question: any(answer.text for answer in self._shown(question))
        self.nodes: list[Server] = []
        self.agents: list[Server] = []  # processes that serve no requests
        self.remote: list[str] = []  # chats whose turns they run
        self._deaths: Counter[str] = Counter()  # by the question whose turn was open, and may have run there
        self._returned: dict[tuple[str, str], int] = {}  # by question and step, the call whose result was returned
        self._random = random.Random(world.seed)  # of the person: the number of draws depends on real time

    def take_report(self, report: Json) -> None:
        """Take a report of an agent: a step has returned. Raises Failure if it returned another result before."""
        step, call = (report["question"], report["step"]), report["call"]
        if self._returned.setdefault(step, call) != call:
            raise Failure(f"{step} returned the result of call {self._returned[step]}, and then that of call {call}")

    async def round(self, number: int, *, is_deploy: bool) -> None:
        """Ask in each chat, let processes die at drawn moments, or all be replaced in turn, and judge the answers."""
        world, chats = self.world, {f"{self.name}-{number}-{chat}": chat for chat in CHATS}
        for (id, chat), on_break in zip(chats.items(), world.random.sample(ON_BREAK, len(ON_BREAK)), strict=True):
            text = f"{on_break} {world.random.choice(PLANS)}"
            world.note(f"{id}: {text}")
            await self._insist("POST", "/messages", chat, {"id": id, "text": text})
        ports = [node.port for node in self.nodes]
        kinds = world.random.sample(CLIENTS, len(CLIENTS))
        clients = [kind(ports, id, chat) for kind, (id, chat) in zip(kinds, chats.items(), strict=False)]
        following = [asyncio.create_task(client.follow()) for client in clients]
        if is_deploy:
            self.outside.is_slow = True
            for number in range(DEPLOYS):
                await self._strike(chats, TURN // 5, self.nodes[number % len(self.nodes)])
            self.outside.is_slow = False
        else:
            for count in range(1, world.random.randrange(2, 5)):
                further = world.random.randrange(TURN * len(chats)) // count
                await self._strike(
                    chats, further, world.random.choice(self.nodes + self.agents), is_kill=world.random.random() < 0.7
                )
        await world.until(lambda: not self._open(chats), f"the answers to {[*chats]}", SETTLED_S)
        for client in clients:
            client.is_complete = True
        async with asyncio.timeout(SETTLED_S):
            await asyncio.gather(*following)
        for id, chat in chats.items():
            await self._judge(id, chat)
        world.count("rounds")

    async def _strike(self, chats: dict[str, str], further: int, node: Server, *, is_kill: bool = False) -> None:
        """End the process of `node` when the agent has come further by so much, unless the round is over before."""
        world, goal = self.world, self.outside.progress + further
        pause_s = world.random.uniform(0.0, 0.3)  # the time that a supervisor may take
        await world.until(lambda: self.outside.progress >= goal or not self._open(chats), "progress", SETTLED_S)
        if not (lost := self._open(chats)):
            return
        self._deaths.update(one for one in lost if node in self.nodes or chats[one] in self.remote)
        world.note(f"{node.name}: {'kill -9' if is_kill else 'SIGTERM'}; open are {lost}")
        node.signal(signal.SIGKILL if is_kill else signal.SIGTERM)
        await node.ended()
        await asyncio.sleep(pause_s)
        await (node.start() if node in self.nodes else node.spawn())
        world.count("kills" if is_kill else "shutdowns")
        world.count("open turns at these", len(lost))

    def _open(self, chats: dict[str, str]) -> list[str]:
        """Return the questions whose answer no viewer shows as complete."""
        return [id for id in chats if not any(answer.status == "complete" for answer in self._shown(id))]

    def _shown(self, question: str) -> Iterator[SeenMessage]:
        """Yield the answer as each viewer shows it."""
        for viewer in self.world.viewers:
            yield from (one for one in viewer.messages.values() if one.fields.get("reply_to") == question)

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
        outputs = [part["output"]["value"] for part in parts if part["type"] == "tool"]
        if outputs != [value(question, step) for step in STEPS]:
            raise Failure(f"the answer to {question} has the results {outputs}")
        watchers = [one for one in self.world.viewers if isinstance(one, Watcher) and one.watching.channel[-1] == chat]
        await self.world.until(
            lambda: not any(one.checker.differences(answers[0]) for one in watchers), f"all viewers of {question}"
        )
        if len(asked := {id for one in watchers for id in one.asked.get(answers[0]["id"], ())}) != 1:
            raise Failure(f"{question}: the person was asked {len(asked)} times")
        for step in STEPS:
            calls, keys = self.outside.calls[question, step], self.outside.keys[question, step]
            if calls != self._returned.get((question, step)) or len(keys) > 1 or calls > 1 + self._deaths[question]:
                raise Failure(f"{step} of {question}: {calls} calls with the keys {keys}, returned {self._returned}")
            self.world.count("calls of interrupted steps again", calls - 1)
        if question in self.outside.made_again:
            raise Failure(f"{question} has a second response in the background, although text of the first was shown")
        for kind in ("plan", "answer"):
            if (calls := self.outside.unbroken[question, kind]) > 1 + self._deaths[question]:
                raise Failure(
                    f"{question}: {calls} calls for the {kind} without a break, {self._deaths[question]} deaths"
                )
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
        url = f"/tenuto/v1/channels/finish:{chat}{path}"
        async with asyncio.timeout(SETTLED_S):
            while True:
                for node in self.nodes:
                    with contextlib.suppress(OSError):
                        status, response = await ask(node.port, method, url, body)
                        if status < 300:
                            return response
                        if status < 500:
                            raise Failure(f"{method} {path} got status {status}: {response}")
                await asyncio.sleep(PAUSE_S)  # before the nodes are asked again
