"""A cluster: nodes that share one PostgreSQL, behind nginx.

Layer: chaos.

Between each node and PostgreSQL is a proxy that can break the connection. nginx knows more ports than there are nodes,
so that a node can be added.

`Stage` checks the cluster after each fault. After a failover that may lose acknowledged text, two rules still hold: all
text of the standby is stored, and each viewer shows the messages of the new epoch alone. Each fault ends by itself.
Moments, victims and lengths are drawn from the seed. Each sleep is a fault, or ends at a drawn moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from proof.chaos.agent import AgentOrders
from proof.chaos.app import NodeOrders
from proof.chaos.conversation import PATTERN, Conversation
from proof.chaos.engines import PostgresPair, Redis, check_programs, configuration
from proof.chaos.processes import Failure, Server, ask
from proof.chaos.proxies import Proxy
from proof.chaos.viewer import TRANSPORTS
from proof.chaos.world import Scale, World
from proof.oracle.plans import AcknowledgedMessage, Piece
from proof.oracle.questions import Question
from tenuto.core.events import NO_EPOCH
from tenuto.hub.writer import PATIENCE_S
from tests.proxy import Direction

NODES = 3
SPARE = 1  # number of nodes that can be added
READY_S = 60.0
ASK_AGAIN_S = 40.0
NODE_DRAIN_S = 2.0


class Node(Server):
    """A server process, and the proxy between it and PostgreSQL."""

    def __init__(self, world: World, conversation: Conversation, name: str, network: Proxy, bus: str | None) -> None:
        arguments = ["-m", "tenuto", "serve", "--app", "proof.chaos.app:app", "--trust-proxy", "127.0.0.1"]
        report = world.checked(name, conversation.take_report)
        super().__init__(name, world.folder, world.store, arguments=arguments, prefix="/tenuto", report=report)
        self.network = network
        orders = AgentOrders(
            url="", name=name, pattern=PATTERN, seed=world.seed, steps=world.scale.steps,
            per_second=world.scale.per_second, on_crash=world.random.choice(("restart", "continue")), drain_s=0.0,
        )  # fmt: skip
        store = f"postgresql://app@127.0.0.1:{network.port}/app"
        settings = NodeOrders(store, bus, NODE_DRAIN_S, orders)
        self.environment = {"TENUTO_CHAOS": json.dumps(asdict(settings))}
        self.is_stopped = False  # by SIGSTOP

    async def is_ready(self) -> bool:
        """Return whether it serves viewers."""
        with contextlib.suppress(OSError):
            return (await self.get("/readyz"))[0] == 200
        return False


class Cluster(Server):
    """All nodes as one server, whose port is that of nginx."""

    def __init__(self, world: World, conversation: Conversation, *, has_bus: bool) -> None:
        super().__init__("nginx", world.folder, world.store, arguments=[], prefix="/tenuto")
        self._program = "nginx"
        self.world = world
        self.database = PostgresPair(world.folder, world.proxy)
        self.bus = Redis(world.folder) if has_bus else None
        self.all: list[Node] = []
        self._conversation = conversation
        self._stack = contextlib.AsyncExitStack()
        # Separate from the world's, which determines the faults: the number of requests depends on real time.
        self._random = random.Random(f"cluster:{world.seed}")

    @property
    def nodes(self) -> list[Server]:
        """Return the nodes that run and are not stopped."""
        return [one for one in self.all if one.is_running and not one.is_stopped]

    @property
    def running(self) -> list[Node]:
        """Return the nodes that run, in the order of their names."""
        return [one for one in self.all if one.is_running]

    async def open(self) -> None:
        """Start the engines, three nodes, and nginx."""
        check_programs()
        self._stack.push_async_callback(self.database.close)
        await self.database.open()
        if self.bus is not None:
            self._stack.push_async_callback(self.bus.clean_up)
            await self.bus.start()
        for number in range(NODES + SPARE):
            network = await self.world.proxy(self.database.primary.port)
            url = self.bus.url if self.bus is not None else None
            node = Node(self.world, self._conversation, f"node-{number + 1}", network, url)
            self.all.append(node)
            self.world.adds(node, serves=False)
        await self.start()

    async def start(self) -> None:
        """Start the nodes and nginx, as far as they do not run."""
        for node in self.all[:NODES]:
            if not node.is_running:
                await node.spawn()
        for node in self.running:
            await node.serves()
        await self.until_ready()
        if not self.is_running:
            await self.start_proxy(*(node.port for node in self.all))
            await self.serves()

    async def start_proxy(self, *ports: int) -> None:
        """Start nginx before the nodes at `ports`."""
        folder = self.world.folder / "proxy"
        folder.mkdir()
        path = folder / "nginx.conf"
        text = configuration(folder, self.port, *ports)
        text = text.replace("limit_conn peers 96;", "limit_conn peers 9600;")  # all viewers have one address
        path.write_text(text)
        self._arguments = ["-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]
        await self.spawn()

    async def kill(self) -> None:
        """End all nodes as `kill -9` does."""
        for node in self.running:
            await node.kill()

    async def clean_up(self) -> None:
        """End nginx, the nodes and the engines."""
        if self.is_running:
            self.signal(signal.SIGTERM)  # a killed nginx would leave its worker process
            with contextlib.suppress(TimeoutError):
                await self.ended()
        await super().clean_up()
        for node in self.all:
            await node.clean_up()
        await self._stack.aclose()

    async def until_ready(self) -> None:
        """Wait until each node that runs serves viewers. Raises Failure."""
        deadline_s = time.monotonic() + READY_S
        while late := [one.name for one in self.running if not await one.is_ready()]:
            if time.monotonic() > deadline_s:
                raise Failure(f"{', '.join(late)} do not serve after {READY_S:.0f} s")
            self.world.check()
            await asyncio.sleep(0.05)  # poll, because a node gives no event for it

    async def get(self, path: str) -> tuple[int, Any]:
        """Send a GET to any node, and to another one after each refusal."""
        deadline_s = time.monotonic() + ASK_AGAIN_S
        while time.monotonic() < deadline_s:
            node = self._random.choice(self.nodes or [self])
            with contextlib.suppress(OSError):
                status, response = await ask(node.port, "GET", self.prefix + path)
                if status < 500:
                    return status, response
            await asyncio.sleep(0.05)  # before the next node is asked
        raise Failure(f"GET {path} had no response of any node in {ASK_AGAIN_S:.0f} s")

    async def point_to(self, port: int) -> None:
        """Let the nodes connect to the PostgreSQL server at `port`."""
        for node in self.all:
            await node.network.do("point_to", port)


AGREE_S = 30.0  # a dead node's members leave after its lease and three seconds; a client may wait before it reconnects
ANEW_S = 45.0

Json = dict[str, Any]


class Stage:
    """The cluster and the users of a run."""

    def __init__(self, world: World, servers: Cluster, conversation: Conversation) -> None:
        self.world = world
        self.servers = servers
        self.conversation = conversation
        self._asking = asyncio.Lock()  # no question is stored while a failover is judged

    async def ask(self, channel: str, *, further_attempts: int, may_fail: bool) -> None:
        """Let a user ask a question. With `may_fail` an agent of a node may end the answer as failed."""
        async with self._asking:
            question = await self.conversation.ask(channel)
            self.conversation.expect_attempts([question], further_attempts)
            if may_fail:
                self.allow_failures([question])

    def allow_failures(self, questions: Iterable[Question] | None = None) -> None:
        """Let agents of nodes end the answers to `questions` as failed, by default to all open ones."""
        for question in self.conversation.questions.open if questions is None else questions:
            question.may_fail = frozenset(node.name for node in self.servers.all)

    async def check_calm(self) -> None:
        """Wait until the cluster works as before the fault; check all that was acknowledged and shown."""
        await self.servers.until_ready()
        await self.conversation.until_settled()
        nodes = [node.name for node in self.servers.running]
        await self.conversation.until_viewers_agree(nodes, AGREE_S)

    # -- failovers -------------------------------------------------------------------------------------------------

    def remember(self) -> dict[str, AcknowledgedMessage]:
        """Return a copy of all acknowledgements."""
        return {id: replace(one) for id, one in self.world.acknowledged.messages.items()}

    def expect_new_epochs(self, kept: dict[str, AcknowledgedMessage] | None) -> dict[str, str]:
        """Expect that a failover begins new epochs; return the present ones.

        With `kept`, all later acknowledgements may be lost.
        """
        before = {viewer.watching.channel: viewer.epoch for viewer in self.world.viewers if viewer.epoch != NO_EPOCH}
        for viewer in self.world.viewers:
            viewer.may_begin_anew, viewer.may_lose = True, kept is not None
        self.world.acknowledged.epochs.clear()
        for id, one in self.world.acknowledged.messages.items() if kept is not None else ():
            if id in self.conversation.questions.all:
                continue
            old = (kept or {}).get(id)
            one.length = old.length if old is not None else 0
            one.status = old.status if old is not None else None
            one.is_over = old is not None and old.is_over
        return before

    async def until_new_epochs(self, before: dict[str, str]) -> None:
        """Wait until each node and each viewer is in the new epochs."""
        await self.servers.until_ready()
        now: dict[str, str] = {}
        deadline_s = time.monotonic() + ANEW_S
        for node in self.servers.running:
            for channel, epoch in before.items():
                while (found := await self._epoch(node, channel)) in (None, epoch):
                    if time.monotonic() > deadline_s:
                        raise Failure(f"{node.name} shows {channel} in epoch {found} after {ANEW_S:.0f} s")
                    await asyncio.sleep(0.1)  # poll, because a node gives no event for it
                if now.setdefault(channel, str(found)) != found:
                    raise Failure(f"{channel} has the epoch {now[channel]}, and {found} at {node.name}")

        def late() -> list[str]:
            return [one.name for one in self.world.viewers if one.epoch in (NO_EPOCH, before.get(one.watching.channel))]

        try:
            await self.world.until(lambda: not late(), "viewers to begin the new epochs", ANEW_S)
        except Failure as failure:
            raise Failure(f"{failure}: {late()[:9]}") if late() else failure from None
        for viewer in self.world.viewers:
            viewer.may_begin_anew = viewer.may_lose = False

    @staticmethod
    async def _epoch(node: Node, channel: str) -> str | None:
        try:
            status, response = await node.get(f"/v1/channels/{channel}")
        except OSError:
            return None
        return str(response["epoch"]) if status == 200 else None

    async def check_kept(
        self, kept: dict[str, AcknowledgedMessage], acknowledged: dict[str, AcknowledgedMessage]
    ) -> None:
        """Check that all of `kept` is stored; then forget the messages out of `acknowledged` that are lost."""
        questions = self.conversation.questions.all
        async with self._asking:
            for channel in self.conversation.channels:
                stored = await self.world.stored(channel)
                for id, one in acknowledged.items():
                    if one.channel == channel:
                        texts = [len(part.get("text", "")) for part in stored.get(id, {}).get("parts", [])]
                        self.world.count("characters lost by failovers", max(0, one.length - sum(texts)))
                for id, one in self.world.acknowledged.of(channel).items():
                    old = kept.get(id)
                    if old is not None and (wrong := old.wrong(stored.get(id))) is not None:
                        raise Failure(f"the standby had it before it was promoted: {wrong}")
                    is_new = old is None or old.status is None  # None: its request was under way
                    is_unknown = one.status is None or id in questions
                    if is_new and id not in stored and is_unknown:
                        del self.world.acknowledged.messages[id]
                        questions.pop(id, None)
                        self.world.count("messages lost by failovers")


Fault = Callable[[Stage], Awaitable[None]]

INTERRUPTED_S = 12.0  # twice the time from the death of a node to the end of its answers: the machine may be busy
LASTING_INTERRUPTED_S = 30.0  # a viewer at a stopped node notices it after its silence, and may meet that node again
TERM_S = 4.0  # of a node's lease
SLOWEST = "ms until the slowest interruption"
RECONNECT_S = 2.0  # from the moment at which PostgreSQL serves again to the commit of each writer
WAYS: tuple[Direction, ...] = ("up", "down", "both")
IN_FLIGHT_S = 1.0  # until reports of acknowledgements have arrived here


# -- nodes -----------------------------------------------------------------------------------------------------


async def node_killed(stage: Stage) -> None:
    """`kill -9` of a node, mostly of one that writes an answer; later it starts again."""
    world, conversation = stage.world, stage.conversation
    pause_s = world.random.uniform(0.0, 8.0) if world.random.random() < 0.5 else 0.0
    node, id, piece = await _until_writing(stage)
    await node.kill()
    begun_s = time.monotonic()
    world.note(f"{node.name} is killed; {piece.writer} writes {id}")
    if piece.writer == node.name:
        await conversation.until_interrupted(id, piece.attempt, INTERRUPTED_S)
        world.count("answers of killed nodes")
        took_ms = int(1_000 * (time.monotonic() - begun_s))
        world.figures[SLOWEST] = max(world.figures.get(SLOWEST, 0), took_ms)
    await asyncio.sleep(pause_s)
    await node.start()


async def node_stopped(stage: Stage) -> None:
    """SIGSTOP of a node, in some rounds for longer than its lease; another node takes its answers over."""
    world, conversation = stage.world, stage.conversation
    lasts_s = world.scale.stopped_s * world.random.choice((0.2, 0.5, 1.0))
    node, id, piece = await _until_writing(stage)
    node.signal(signal.SIGSTOP)
    node.is_stopped = True
    world.note(f"{node.name} is stopped for {lasts_s:.1f} s; {piece.writer} writes {id}")
    await asyncio.sleep(lasts_s)  # the fault itself
    node.signal(signal.SIGCONT)
    node.is_stopped = False
    if piece.writer == node.name and lasts_s > 2 * TERM_S:
        await conversation.until_interrupted(id, piece.attempt, LASTING_INTERRUPTED_S)
        world.count("answers of stopped nodes")


async def node_drained(stage: Stage) -> None:
    """SIGTERM of a node in mid-answer, which then starts again."""
    node, _, _ = await _until_writing(stage)
    await _drain(stage, node, starts_again=True)


async def nodes_replaced(stage: Stage) -> None:
    """SIGTERM of each node, one after the other, as a deployment does."""
    for node in stage.servers.running:
        await _drain(stage, node, starts_again=True)


async def node_added(stage: Stage) -> None:
    """Another node joins; in a later round it is drained."""
    spare = stage.servers.all[NODES]
    if spare.is_running:
        await _drain(stage, spare, starts_again=False)
        return
    await spare.start()
    stage.world.note(f"{spare.name} has joined")


async def _drain(stage: Stage, node: Node, *, starts_again: bool) -> None:
    node.signal(signal.SIGTERM)
    stage.world.note(f"{node.name} gets SIGTERM")
    code = await node.ended()
    if code != -signal.SIGTERM:
        raise Failure(f"{node.name} got SIGTERM, and ended with {code}:\n{node.log[-2_000:]}")
    if starts_again:
        await node.start()


async def _until_writing(stage: Stage) -> tuple[Node, str, Piece]:
    """Wait until an answer has some pieces; return a node that writes one, or any node, with the answer and piece."""
    _, id, piece = await stage.conversation.until_writing()
    running = {node.name: node for node in stage.servers.running}
    drawn = stage.world.random.choice(list(running.values()))
    own = [(one.writer, id, one) for _, id, one in stage.conversation.writing() if one.writer in running]
    return (running[own[0][0]], *own[0][1:]) if own else (drawn, id, piece)


# -- PostgreSQL ------------------------------------------------------------------------------------------------


async def database_killed(stage: Stage) -> None:
    """PostgreSQL crashes and starts again, in some rounds after the nodes' leases have ended."""
    world, database = stage.world, stage.servers.database
    pause_s = world.random.choice((0.0, 1.0, 1.5 * TERM_S))
    await stage.conversation.until_writing()
    begun_s = time.monotonic()
    await database.kill()
    world.note(f"PostgreSQL is killed for {pause_s:.1f} s")
    await asyncio.sleep(pause_s)
    await database.start()
    _serves_again(stage, begun_s)


async def database_stopped(stage: Stage) -> None:
    """SIGSTOP of PostgreSQL, in some rounds for longer than the nodes' leases."""
    world, database = stage.world, stage.servers.database
    lasts_s = world.scale.stopped_s * world.random.choice((0.2, 0.5, 1.0))
    await stage.conversation.until_writing()
    database.primary.pause()
    world.note(f"PostgreSQL is stopped for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    database.primary.resume()


async def standby_promoted(stage: Stage) -> None:
    """PostgreSQL dies, and an asynchronous standby that lacks the last commits is promoted."""
    world, servers, database = stage.world, stage.servers, stage.servers.database
    leads_s, lags_s = world.random.uniform(0.0, 1.0), world.random.choice((0.0, 0.3, 1.5))
    await stage.conversation.until_writing()
    kept = stage.remember()  # before: a later acknowledgement may be of a commit that the standby lacks
    await database.until_caught_up()
    await asyncio.sleep(leads_s)
    if lags_s:
        await database.link.do("stall", "down")
    await asyncio.sleep(lags_s)
    begun_s = time.monotonic()
    await database.kill()
    world.note(f"PostgreSQL is dead; its standby lags by {lags_s:.1f} s")
    await asyncio.sleep(IN_FLIGHT_S)
    acknowledged = stage.remember()
    before = stage.expect_new_epochs(kept)
    await database.promote()
    await servers.point_to(database.primary.port)
    _serves_again(stage, begun_s)
    await stage.until_new_epochs(before)
    await stage.check_kept(kept, acknowledged)
    world.note(f"the standby serves; {world.figures['characters lost by failovers']} characters are lost in all")
    await database.renew_standby()


async def synchronous_standby_promoted(stage: Stage) -> None:
    """PostgreSQL dies, and a synchronous standby is promoted: no acknowledged text is lost."""
    world, servers, database = stage.world, stage.servers, stage.servers.database
    leads_s, lags_s = world.random.uniform(0.0, 1.0), world.random.choice((0.0, 0.3))
    await database.set_synchronous(True)
    await stage.conversation.until_writing()
    await asyncio.sleep(leads_s)
    if lags_s:
        await database.link.do("stall", "down")  # commits wait
    await asyncio.sleep(lags_s)
    before = stage.expect_new_epochs(None)
    begun_s = time.monotonic()
    await database.kill()
    world.note("PostgreSQL is dead; its synchronous standby is promoted")
    await database.promote()
    await servers.point_to(database.primary.port)
    _serves_again(stage, begun_s)
    await stage.until_new_epochs(before)
    await database.renew_standby()


def _serves_again(stage: Stage, begun_s: float) -> None:
    """Note how long PostgreSQL was away. On a busy machine its start may take longer than a writer waits."""
    away_s = time.monotonic() - begun_s
    stage.world.note(f"PostgreSQL serves again after {away_s:.1f} s")
    if away_s + RECONNECT_S >= PATIENCE_S:
        stage.allow_failures()


# -- the network between nodes and PostgreSQL ------------------------------------------------------------------


async def connections_stalled(stage: Stage) -> None:
    """The connections of nodes to PostgreSQL pass no bytes for a while, in one direction or both."""
    await _break(stage, "stall", "resume")


async def connections_swallowed(stage: Stage) -> None:
    """The connections of nodes to PostgreSQL lose all bytes for a while, in one direction or both, and then break."""
    await _break(stage, "black_hole", "cut", "resume")


async def _break(stage: Stage, fault: str, *ends: str) -> None:
    nodes, way, lasts_s = _some(stage), stage.world.random.choice(WAYS), _lasts_s(stage)
    await stage.conversation.until_writing()
    for node in nodes:
        await node.network.do(fault, way)
    stage.world.note(f"{[node.name for node in nodes]} {fault} {way} for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    for node in nodes:
        for one in ends:
            await node.network.do(one)


def _some(stage: Stage) -> list[Node]:
    """Draw one node, or all."""
    running = stage.servers.running
    return running if stage.world.random.random() < 0.3 else [stage.world.random.choice(running)]


def _lasts_s(stage: Stage) -> float:
    return stage.world.scale.stopped_s * stage.world.random.choice((0.1, 0.3, 0.6, 1.0))


# -- the bus ---------------------------------------------------------------------------------------------------


async def bus_killed(stage: Stage) -> None:
    """The bus is killed in mid-answer, and starts again."""
    pause_s = stage.world.random.choice((0.0, 1.0, 3.0))
    bus = await _bus_in_mid_answer(stage)
    await bus.kill()
    stage.world.note(f"the bus is killed for {pause_s:.1f} s")
    await asyncio.sleep(pause_s)
    await bus.start()


async def bus_stopped(stage: Stage) -> None:
    """SIGSTOP of the bus."""
    lasts_s = _lasts_s(stage)
    bus = await _bus_in_mid_answer(stage)
    bus.signal(signal.SIGSTOP)
    stage.world.note(f"the bus is stopped for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    bus.signal(signal.SIGCONT)


async def _bus_in_mid_answer(stage: Stage) -> Redis:
    await stage.conversation.until_writing()
    assert stage.servers.bus is not None
    return stage.servers.bus


FAULTS: tuple[Fault, ...] = (
    node_killed, node_stopped, node_drained, nodes_replaced, node_added, database_killed, database_stopped,
    standby_promoted, synchronous_standby_promoted, connections_stalled, connections_swallowed,
)  # fmt: skip
BUS_FAULTS: tuple[Fault, ...] = (bus_killed, bus_stopped)
LASTING_FAULTS: tuple[Fault, ...] = (database_stopped, connections_stalled, connections_swallowed)


def may_fail(fault: Fault, scale: Scale) -> bool:
    """Return whether agents of nodes may end answers as `failed`, with the reason `store_unavailable`.

    A writer in the hub's process waits ten seconds for its store, and then raises. Only these faults last as long, in a
    run of the full size. A remote agent waits thirty seconds, longer than each fault. After a crash, a drain or a
    failover an answer is interrupted or continued, and without a bus it is late: none of them ends it.
    """
    return fault in LASTING_FAULTS and scale.stopped_s >= PATIENCE_S


AGENTS = 2  # remote ones
PER_S = 30.0  # steps per second of each writer
MOVES_S = 6.0  # longest time of a viewer at one node
SILENCE_S = 3.0
FLUSH_MS = (0, 40, 250)
MANY = 60  # with more viewers each one gets larger batches
MANY_FLUSH_MS = (250, 1_000)
FURTHER_ATTEMPTS = 3  # that a fault of a node, of the store or of the network explains


async def cluster(world: World) -> None:
    """Three nodes behind nginx on one PostgreSQL, with viewers that move; nodes, PostgreSQL, bus and network fail."""
    stage = await _begin(world)
    conversation, servers = stage.conversation, stage.servers
    faults = FAULTS if servers.bus is None else (*FAULTS, *BUS_FAULTS)
    deck: list[Fault] = []
    for number in range(world.scale.rounds):
        deck = deck or world.random.sample(faults, len(faults))
        fault = deck.pop()
        attempts = 0 if fault in BUS_FAULTS else FURTHER_ATTEMPTS
        if fault is nodes_replaced:
            attempts = len(servers.running)
        world.note(f"round {number}: {fault.__doc__}")
        ask = partial(stage.ask, further_attempts=attempts, may_fail=may_fail(fault, world.scale))
        for channel in conversation.channels:
            await ask(channel)
        later_s, channel = world.random.uniform(0.0, 4.0), world.random.choice(conversation.channels)
        asking = asyncio.get_running_loop().create_task(_ask_later(ask, channel, later_s))
        try:
            await fault(stage)
            await asking
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await stage.check_calm()
        if world.random.random() < 0.3:
            await world.random.choice(world.viewers).reload()
        world.count(fault.__name__.replace("_", " "))
    for name in list(conversation.agents):
        await conversation.shut_down_agent(name)
    await conversation.check()
    await world.finish()


async def _begin(world: World) -> Stage:
    """Start all parties."""
    world.counts_entries = False  # claims and renewals are entries, and agents join text as commits allow
    world.scale = replace(world.scale, per_second=PER_S)
    talks = [f"talk:{number}" for number in range(world.scale.answers)]
    conversation = Conversation(world, channels=talks)
    servers = Cluster(world, conversation, has_bus=world.random.random() < 0.6)
    world.adds(servers)
    await servers.open()
    world.note(f"{len(servers.running)} nodes serve, with {'a' if servers.bus is not None else 'no'} bus")
    stage = Stage(world, servers, conversation)
    flushes = FLUSH_MS if world.scale.viewers <= MANY else MANY_FLUSH_MS
    for number in range(world.scale.viewers):
        transport, channel = TRANSPORTS[number % len(TRANSPORTS)], talks[number % len(talks)]
        name, flush_ms = f"{transport}-{number}", world.random.choice(flushes)
        options: dict[str, Any] = {"moves_s": MOVES_S, "silence_s": SILENCE_S, "flush_ms": flush_ms}
        conversation.watch(name, transport, channel, **options)
    for _ in range(AGENTS):
        await conversation.start_agent()
    return stage


async def _ask_later(ask: Callable[[str], Awaitable[None]], channel: str, later_s: float) -> None:
    await asyncio.sleep(later_s)  # a drawn moment
    await ask(channel)
