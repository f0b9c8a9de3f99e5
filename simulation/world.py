"""One run: a plan drawn from a seed, the places where hubs run, what befalls them, and the end, when all must agree.

Layer: simulation.

A run has three parts: bad conditions, in which everything that can happen to processes, disks
and connections does; calm, in which what was begun comes to its end and every viewer must see all of it within
`SETTLE_S`; and the farewell, after which nothing of anybody may be left in any hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import traceback
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, TypeVar

from holdfast.app import Hub
from holdfast.core.cursor import Cursor
from holdfast.core.errors import HoldfastError
from holdfast.core.limits import Limits
from holdfast.hub.subscription import take
from holdfast.hub.writer import MessageWriter
from simulation.actors import Author, Careless, Editor, Insider, Person, Piper, Remote, Steady
from simulation.bounds import Bounds
from simulation.checks import check_empty, check_nobody_is_forgotten, check_writers, members_of
from simulation.clock import Process, SimClock, Stuck, VirtualLoop
from simulation.faults import FaultModel
from simulation.hooks import HookPlan, HookRecorder, is_expected
from simulation.leases import Leaser
from simulation.ledger import Ledger
from simulation.network import Network
from simulation.people import Member, Partner
from simulation.store import SimStore, StoreLine
from simulation.trace import Trace, Violation
from simulation.truth import Truth
from simulation.turns import LocalPlan, Worker, local_handler
from simulation.viewers import InsideViewer, PollViewer, Reader, SocketViewer, StreamViewer, Viewer
from simulation.watchdog import Hung, watching

T = TypeVar("T")

SETTLE_S = 60.0  # after the last entry, within which every viewer must show it: a slow commit, some housekeeping
FINISH_S = 300.0  # for what was begun in bad conditions to come to its end
LEAVE_S = 60.0  # for a hub to close
WELL_S = 2.0  # for what was tried again in bad times to be tried once more
QUIET_S = 300.0  # for leases, turns and commands to come to their ends
TOLD_S = 150.0  # for hooks to hear all: a call may hang for a minute, and wait as long to be tried again
HERE_S = 30.0  # for members to be where they stay, and for everybody to see them

# Bounds that only size has a say in; small ones make rare things frequent. Module, name, values.
SIZES: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("holdfast.core.state", "TAIL_ENTRIES", (2, 1_000)),
    ("holdfast.core.state", "TAIL_BYTES", (500, 1024 * 1024)),
    ("holdfast.core.text", "MAX_MARKS", (8, 65_536)),
    ("holdfast.core.text", "JOIN_PIECES", (2, 64)),
    ("holdfast.core.document", "MARK_BYTES", (1, 16, 256)),
    ("holdfast.hub.committer", "DOCUMENT_BYTES", (30, 300, 64 * 1024)),
    ("holdfast.hub.committer", "MAX_ROWS", (1, 3, 128)),
    ("holdfast.hub.committer", "MAX_ITEMS", (2, 1_024)),
    ("holdfast.hub.batches", "FRAME_BYTES", (100, 1_000, 256 * 1024)),
    ("holdfast.hub.ticks", "SLICE_FEEDS", (1, 100)),
    ("holdfast.hub.presence_state", "KEPT_SIGNALS", (2, 256)),
    ("holdfast.hub.presence_state", "KEPT_LEFT", (1, 1_000)),
    ("holdfast.hub.batches", "MAX_CACHED_BATCHES", (2, 64)),
    ("holdfast.core.state", "KEPT_COMMANDS", (1, 1_000)),
)
FAULTS = (
    "kill",
    "kill at a step",
    "restart",
    "pause",
    "cut",
    "store down",
    "free memory",
    "crowd",
    "truncate tails",
    "clock",
    "sync",
    "power",
)
EDITS = ("say", "say", "edit", "delete", "read", "stop", "take over", "delete channel")


@dataclass
class Plan:
    """What a seed has in store."""

    seed: int
    hubs: int
    is_weak: bool  # the store answers before power could not take it back any more
    channels: int
    bad_s: float
    token_s: float
    authors: list[type[Author]]
    viewers: list[type[Viewer]]
    readers: int
    edits: list[str]
    faults: list[str]
    fault_s: float  # between two of them
    adopts: bool
    by_hand: bool
    flush_ms: int
    limits: Limits
    fault_model: FaultModel
    sizes: list[int] = field(default_factory=list)
    members: int = 0
    workers: int = 0
    agents: list[LocalPlan] = field(default_factory=list)
    hooks: list[HookPlan] = field(default_factory=list)
    is_hasty: bool = False  # do hubs begin before their agents and hooks are registered?
    asks_by_socket: bool = False  # do editors, partners, viewers and agents ask over sockets what they can?

    @property
    def is_exclusive(self) -> bool:
        return self.hubs == 1

    @classmethod
    def drawn(cls, seed: int) -> Plan:
        """The plan of `seed`: some of everything that there is, and not all at once."""
        draw = Random(f"{seed}/plan")
        hubs = draw.choice((1, 1, 2, 3))
        is_weak = hubs == 1 and draw.random() < 0.2
        authors: list[type[Author]] = [Remote, Piper, Careless, Insider, Editor]
        viewers: list[type[Viewer]] = [SocketViewer, StreamViewer, PollViewer, InsideViewer]
        edits = [edit for edit in EDITS if draw.random() < 0.5]
        if draw.random() < 0.6 and "delete channel" in edits:
            edits.remove("delete channel")
        faults = [fault for fault in FAULTS if draw.random() < 0.5 and fault not in ("sync", "power")]
        if is_weak:
            faults += ["sync", "sync", "power"]
        plan = cls(
            seed=seed,
            hubs=hubs,
            is_weak=is_weak,
            channels=draw.choice((1, 1, 2, 3)),
            bad_s=draw.uniform(3.0, 18.0),
            token_s=draw.choice((0.02, 0.1, 0.4)),
            authors=[draw.choice(authors) for _ in range(draw.randrange(1, 5))],
            viewers=[draw.choice(viewers) for _ in range(draw.randrange(1, 6))],
            readers=draw.choice((0, 0, 1)),
            edits=edits or ["say"],
            faults=faults,
            fault_s=draw.choice((0.3, 1.0, 4.0)),
            adopts=draw.random() < 0.5,
            by_hand=draw.random() < 0.5,
            flush_ms=draw.choice((0, 40, 40, 250)),
            limits=_limits(draw),
            fault_model=FaultModel.drawn(draw),
            sizes=[draw.choice(values) if draw.random() < 0.5 else values[-1] for _, _, values in SIZES],
        )
        plan._draw_society(Random(f"{seed}/society"))
        if plan.members and Random(f"{seed}/steady").random() < 0.3:
            plan.authors.append(Steady)
        requests = Random(f"{seed}/room").choice((2, 1_000, 1_000))
        plan.limits = replace(plan.limits, socket_requests=requests)
        plan._draw_hooks(Random(f"{seed}/hooks"))
        plan.is_hasty = Random(f"{seed}/hasty").random() < 0.3
        plan.asks_by_socket = Random(f"{seed}/sockets").random() < 0.5
        return plan

    def _draw_society(self, draw: Random) -> None:
        """Leases, people, commands and agents: some worlds are full of them, in others there are none."""
        if draw.random() < 0.35:
            return
        del self.authors[draw.choice((1, 2, 4)) :]
        self.authors += [Leaser] * draw.choice((0, 1, 1, 2)) + [Partner] * draw.choice((0, 1, 2))
        self.members = draw.choice((0, 1, 2))
        if self.is_exclusive:  # hubs that share a store do not know yet of each other's leases
            self.workers = draw.choice((0, 0, 1, 2))
            kinds = draw.choice((0, 0, 1)) if self.workers else draw.choice((0, 1, 1, 2))
            self.agents = [
                LocalPlan(
                    when_busy=draw.choice(("queue", "queue", "interrupt", "parallel")),
                    on_crash=draw.choice(("restart", "continue", "interrupt")),
                    slots=draw.choice((1, 2, 1_000)),
                    has_questions=draw.random() < 0.5,
                )
                for _ in range(kinds)
            ]

    def _draw_hooks(self, draw: Random) -> None:
        if self.is_exclusive:  # of hubs that share a store each has runners of its own
            self.hooks = [HookPlan.drawn(draw, number) for number in range(draw.choice((0, 1, 1, 2)))]


def _limits(draw: Random) -> Limits:
    return Limits(
        append_bytes=draw.choice((200, 256 * 1024)),
        writer_bytes=draw.choice((50, 1024 * 1024)),
        waiting_requests=draw.choice((6, 10_000, 10_000)),
        history_bytes=draw.choice((300, 2 * 1024 * 1024)),
        default_history=draw.choice((1, 3, 50)),
        catch_up_messages=draw.choice((2, 5, 200)),
        channel_idle_s=draw.choice((0.0, 2.0, 20.0)),
        channel_bytes=draw.choice((1, 5_000, 16 * 1024 * 1024)),
        memory_bytes=draw.choice((1, 256 * 1024 * 1024)),
    )


@dataclass(frozen=True)
class Report:
    """How a run went."""

    seed: int
    violation: Violation | None
    digest: str  # of everything that happened: the same for the same seed
    events: int
    steps: int
    virtual_s: float
    lines: list[str]  # the last of what happened


class Node:
    """A place where a hub runs, one life after another."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.is_up = False
        self._world = world
        self._lives = 0
        self._died: asyncio.Future[None] = world.loop.create_future()
        self.process: Process
        self.hub: Hub
        self.bounds: Bounds
        self.line: StoreLine
        self.clock: SimClock

    def boot(self) -> None:
        """Begin a life. The hub itself starts at once, or at the first request."""
        world, plan = self._world, self._world.plan
        self._lives += 1
        life = f"{self.name}{self._lives}"
        draw = Random(f"{plan.seed}/{life}")
        self.process = Process(life)
        self.line = world.store.connect(self.process, Random(draw.getrandbits(32)))
        self.clock = SimClock(world.loop, Random(draw.getrandbits(32)))
        self.hub = self.process.run(self._new_hub)
        self.bounds = Bounds(self.hub, life, world.loop.time, lambda: world.ledger.well_s)
        self.process.after_step = partial(world.trace.guarded, self.bounds.stepped)
        self._died = world.loop.create_future()
        self.is_up = True
        world.lives.append((self.process, self.line))
        world.trace.add(f"{life} boots")
        world.ledger.booted()
        world.ledger.is_skewed = any(node.is_skewed for node in world.nodes)
        if draw.random() < 0.5:
            self.process.start(world.loop, self._start(self.hub))

    @property
    def live_id(self) -> str | None:
        """The id by which the hub that runs here is known in the log."""
        return self.hub.node if self.is_up else None

    @property
    def is_skewed(self) -> bool:
        """Is its clock set wrong?"""
        return self.is_up and self.clock.skew_ms != 0

    def kill(self) -> None:
        """As `kill -9` does: nothing of it runs any more."""
        if not self.is_up:
            return
        world = self._world
        world.trace.add(f"{self.process.name} is killed")
        world.kept |= asyncio.all_tasks(world.loop)
        self.is_up = False
        self.process.is_alive = False
        self.process.is_held = True
        self.line.process_died()
        world.net.process_died(self.process)
        self._died.set_result(None)

    async def leave(self) -> None:
        """End as a process does that is asked to: drain, close, then be gone."""
        process, hub = self.process, self.hub
        self._world.trace.add(f"{process.name} is asked to leave")
        task = process.start(self._world.loop, hub.close())
        await asyncio.wait([task], timeout=LEAVE_S)
        if not task.done() and process.is_alive and not process.is_held:
            raise Violation(f"{process.name} did not leave within {LEAVE_S} s")
        if process is self.process:
            self.kill()

    async def inside(self, job: Coroutine[Any, Any, None]) -> None:
        """Run `job` in the process; returns when it is over, or when the process is dead. Raises what it raises."""
        task = self.process.start(self._world.loop, job)
        try:
            await asyncio.wait([task, self._died], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            await task

    def _new_hub(self) -> Hub:
        plan = self._world.plan
        hub = Hub(
            self.line,
            limits=plan.limits,
            flush_ms=plan.flush_ms,
            drain_s=1.0,
            clock=self.clock,
            hooks_signals=False,
        )
        hub.drive_by_hand = plan.by_hand
        if plan.adopts:
            hub.adopt("*")(_go_on)
        draw = Random(f"{plan.seed}/{self.process.name}/app")
        if plan.is_hasty and draw.random() < 0.7:
            self.line.on_recovery = partial(self._register, hub, self.process, draw)
        else:
            self._register(hub, self.process, draw)
        return hub

    def _register(self, hub: Hub, process: Process, draw: Random) -> None:
        """What the app does when it begins, or when it has got as far."""
        world = self._world
        for number, agent in enumerate(world.plan.agents):
            hub.agent("*", name=f"bot{number}", when_busy=agent.when_busy, on_crash=agent.on_crash, slots=agent.slots)(
                local_handler(world, agent, process)
            )
        world.hook_recorder.register(hub, process, draw)

    def wake(self) -> None:
        """Start the hub, if nobody has asked it for anything yet."""
        self.process.start(self._world.loop, self._start(self.hub))

    async def _start(self, hub: Hub) -> None:
        with contextlib.suppress(HoldfastError):  # whoever asks first starts it again
            await hub.start()


async def _go_on(writer: MessageWriter) -> None:
    for count in range(3):
        await writer.append(f"adopted at {writer.length}, {count}; ")
        await asyncio.sleep(0.05)


class World:
    """Everything there is, for one seed."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.plan = plan or Plan.drawn(seed)
        self.draw = Random(f"{seed}/world")
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop)
        self.truth = Truth(is_exclusive=self.plan.is_exclusive)
        self.fault_model = self.plan.fault_model
        self.net = Network(self.loop, self.fault_model, self.truth, self.trace)
        self.store = SimStore(self.loop, self.fault_model, self.truth, self.trace, is_exclusive=self.plan.is_exclusive)
        self.channels = [f"c{number}" for number in range(self.plan.channels)]
        self.nodes = [Node(self, name) for name in "ABC"[: self.plan.hubs]]
        self.ledger = Ledger(
            self.loop, self.truth, is_exclusive=self.plan.is_exclusive, live_node=lambda: self.nodes[0].live_id
        )
        self.ledger.is_served = bool(self.plan.agents)
        self.store.ledger = self.ledger
        self.hook_recorder = self.store.hook_recorder = HookRecorder(self, self.plan.hooks)
        self.lives: list[tuple[Process, StoreLine]] = []
        self.kept: set[asyncio.Task[Any]] = set()  # tasks of the dead: nobody may tidy them up
        self.edited: set[tuple[str, str]] = set()  # messages that an editor had a hand in
        self.abandoned: set[tuple[str, str]] = set()  # messages that somebody took over and may not have entered
        self.viewers: list[Viewer] = []
        self.is_calm = False
        self.calm_s = float("inf")
        self.is_quiet = False  # members stay where they are
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hung_s: float | None = None  # when a step began that did not end

    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        with _sizes(self.plan.sizes), _listening(self.trace), watching(lambda: self.loop.steps, self._hangs):
            try:
                self.loop.run_until_complete(self._main())
            except Violation as violation:
                self.trace.violate(violation)
            except Stuck as stuck:
                self.trace.note(f"at work is:\n{stuck.where}")
                self.trace.violate(Violation(str(stuck)))
            except Hung:
                pass  # `_hangs` was told
            report = self._report()
            self._bury()
        return report if report.violation is not None or self._hung_s is None else self._report()

    def _report(self) -> Report:
        return Report(
            seed=self.plan.seed,
            violation=self.trace.violation,
            digest=self.trace.digest,
            events=self.trace.count,
            steps=self.loop.steps,
            virtual_s=self.loop.time() if self._hung_s is None else self._hung_s,
            lines=self.trace.lines(),
        )

    def _hangs(self, where: str) -> None:
        """A step does not come to its end: called in the middle of it."""
        if self._hung_s is None:
            self._hung_s = self.loop.time()
            self.trace.note(f"it hangs here:\n{where}")
            self.trace.violate(Violation(f"a step at {self._hung_s:.4f} s does not come to its end"))

    def start(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `job` outside of every process; a violation in it ends the run."""
        task = self.loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def until_well(self) -> None:
        """In calm conditions: wait until what the bad times have held up is over, too."""
        await asyncio.sleep(max(0.0, self.ledger.well_s - self.loop.time()))

    def is_well_for(self, seconds: float) -> bool:
        """Has nothing gone wrong for so long?"""
        return self.loop.time() - self.calm_s > seconds

    # -- inside ------------------------------------------------------------------------------------------------

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = task.exception() if not task.cancelled() else None
        if isinstance(error, Violation):
            self.trace.violate(error)
        elif error is not None:
            self.trace.violate(Violation(f"somebody met {error!r}"))
            self.trace.note("".join(traceback.format_exception(error)))

    async def _main(self) -> None:
        story = self.start(self._story())
        await asyncio.wait([story, self.trace.violated], return_when=asyncio.FIRST_COMPLETED)

    async def _story(self) -> None:
        self.trace.add(f"seed {self.plan.seed}: {self.plan.hubs} hubs{', a weak store' if self.plan.is_weak else ''}")
        for node in self.nodes:
            node.boot()
        authors = [self.start(author.run()) for author in self._authors()]
        viewers = self._viewers()
        members = [Member(self, f"member{place}") for place in range(self.plan.members)]
        workers = [Worker(self, f"worker{place}") for place in range(self.plan.workers)]
        watching = [self.start(somebody.run()) for somebody in (*viewers, *members, *workers)]
        measuring = self.start(self._measure())
        fates = self.start(self._fate())
        await fates
        self._calm_down()
        await self._until_written(authors)
        await self._until_quiet()
        await self._until_told()
        await self._until_settled(viewers)
        await self._until_seen(viewers, members, workers)
        await self._check_newcomers()
        for channel in self.channels:
            self.store.audit(channel)
        self.viewers.clear()  # nobody follows any more
        for task in watching:
            task.cancel()
        await self._farewell()
        measuring.cancel()

    def _authors(self) -> list[Author]:
        return [kind(self, f"{kind.__name__.lower()}{place}") for place, kind in enumerate(self.plan.authors)]

    def _viewers(self) -> list[Person]:
        viewers: list[Person] = []
        for place, kind in enumerate(self.plan.viewers):
            viewer = kind(self, f"{kind.__name__.lower()}{place}")
            for channel in self.channels if kind is SocketViewer else [self.draw.choice(self.channels)]:
                viewer.look_at(channel)
            viewers.append(viewer)
            self.viewers.append(viewer)
        viewers += [Reader(self, f"reader{place}") for place in range(self.plan.readers)]
        return viewers

    async def _measure(self) -> None:
        """Every second: is something over that is not ended?"""
        while True:
            await asyncio.sleep(1.0)
            self.ledger.look()

    # -- what befalls ------------------------------------------------------------------------------------------

    async def _fate(self) -> None:
        """One thing after another, until the bad times end."""
        while self.plan.faults and self.loop.time() < self.plan.bad_s:
            await asyncio.sleep(self.draw.expovariate(1 / self.plan.fault_s))
            await self._befall(self.draw.choice(self.plan.faults), self.draw.choice(self.nodes))
        await asyncio.sleep(self.plan.bad_s - self.loop.time())

    async def _befall(self, fault: str, node: Node) -> None:
        draw = self.draw
        if fault not in ("store down", "cut", "sync") and not node.is_up:
            return
        self.trace.add(f"fate: {fault} {node.name}")
        match fault:
            case "kill":
                node.kill()
                await self._boot_later(node)
            case "kill at a step":
                node.process.after_steps(draw.randrange(1, 300), node.kill)
                await asyncio.sleep(draw.uniform(0.5, 3.0))
                node.process.after_steps(0, node.kill)
                if not node.is_up:
                    await self._boot_later(node)
            case "restart":
                await node.leave()
                await self._boot_later(node)
            case "pause":
                process = node.process
                process.is_held = True
                await asyncio.sleep(draw.uniform(0.1, 12.0))
                self.ledger.trouble(self.loop.time() + 1.0)
                if process.is_alive:
                    self.loop.thaw(process)
            case "cut":
                self.net.break_all()
            case "store down":
                self.store.down_until_s = self.loop.time() + draw.uniform(0.1, 8.0)
            case "free memory":
                node.process.run(lambda: _free_memory(node))
            case "crowd":
                await node.inside(self._crowd(node.hub, draw.choice(self.channels)))
            case "truncate tails":
                node.process.run(lambda: _truncate_tails(node.hub))
            case "clock":
                node.clock.skew_ms += draw.choice((-3_600_000, -10, 10, 3_600_000))
                self.ledger.is_skewed = any(node.is_skewed for node in self.nodes)
            case "sync":
                self.store.sync()
            case "power":
                node.kill()
                self.store.power_cut()
                await self._boot_later(node)

    async def _crowd(self, hub: Hub, channel: str) -> None:
        """Many come for a moment, each from a place of its own."""
        life = self.truth.head(channel)
        with contextlib.suppress(HoldfastError):
            for serial in range(0, life.serial, 1 + life.serial // 100):
                feed = await hub.attach(channel, Cursor(life.epoch, serial), history=serial, wake=_nothing)
                try:
                    await take(feed)
                finally:
                    feed.close()

    async def _boot_later(self, node: Node) -> None:
        await asyncio.sleep(self.draw.choice((0.0, 0.1, 2.0)))
        node.boot()
        if self.draw.random() < 0.5:
            self.store.audit(self.draw.choice(self.channels))

    # -- the end -----------------------------------------------------------------------------------------------

    def _calm_down(self) -> None:
        self.trace.add("calm")
        self.fault_model.calm()
        self.store.down_until_s = 0.0
        self.is_calm, self.calm_s = True, self.loop.time()
        self.net.break_all(holes_only=True)
        self.ledger.well_s = max(self.calm_s, self.store.busy_until_s) + WELL_S
        for node in self.nodes:
            node.wake()

    async def _until_written(self, authors: list[asyncio.Task[None]]) -> None:
        _, unfinished = await asyncio.wait(authors, timeout=FINISH_S)
        if unfinished:
            raise Violation(f"{len(unfinished)} authors have not come to an end within {FINISH_S} s of good conditions")

    async def _until_quiet(self) -> None:
        """Leases end, turns are had, commands are answered."""
        since_s = self.loop.time()
        while self.plan.is_exclusive and (self.ledger.is_busy or self.loop.time() < self.ledger.well_s):
            if self.loop.time() - since_s > QUIET_S:
                raise Violation(f"all is well for {QUIET_S} s, and there are still {self.ledger.busy_with}")
            await asyncio.sleep(0.5)
        if self.plan.is_exclusive:
            for channel in self.channels:
                check_nobody_is_forgotten(self.truth.head(channel), self.nodes[0].hub, self.abandoned)
        self.trace.add("quiet")

    async def _until_told(self) -> None:
        """Hooks hear of all that is left to be told, however long they were away."""
        since_s = max(self.loop.time(), self.ledger.well_s)
        while missing := self.hook_recorder.missing(self.channels):
            if self.loop.time() - since_s > TOLD_S:
                raise Violation(f"all is well for {TOLD_S} s, and hooks were never told of {missing}")
            await asyncio.sleep(0.5)
        if self.plan.hooks:
            self.trace.add("hooks have heard all")

    async def _until_seen(self, viewers: list[Person], members: list[Member], workers: list[Worker]) -> None:
        """Those who are here stay; everybody sees them, and nobody else."""
        self.is_quiet = True
        since_s = self.loop.time()
        while wrong := self._wrong_with_presence(viewers, members, workers):
            if self.loop.time() - since_s > HERE_S:
                raise Violation(wrong)
            await asyncio.sleep(0.25)
        self.trace.add("everybody sees who is here")

    def _wrong_with_presence(self, viewers: list[Person], members: list[Member], workers: list[Worker]) -> str | None:
        for viewer in viewers:
            if isinstance(viewer, Viewer) and not viewer.sees_who_is_here:
                shown = {channel: eye.view.members() for channel, eye in viewer.eyes.items()}
                return f"{viewer.name} does not see who is here, but {shown}"
        agents = {f"bot{number}" for number in range(len(self.plan.agents))}
        agents |= {worker.name for worker in workers if worker.is_connected}
        for node in self.nodes:
            for channel in self.channels:
                here = {(member.kind, member.id) for member in members_of(node.hub, channel).members}
                people = {("user", one.name) for one in members if one.node is node and one.channel == channel}
                # A channel that is not in memory shows its agents to whoever comes.
                if {one for one in here if one[0] == "user"} != people:
                    return f"{sorted(here)} are in {channel} of {node.name}, true is {sorted(people)}"
                if here - people and here - people != {("agent", name) for name in agents}:
                    return f"{sorted(here)} serve {channel} of {node.name}, true is {sorted(agents)}"
        return None

    async def _until_settled(self, viewers: list[Person]) -> None:
        stamp, since_s = self.truth.stamp, self.loop.time()
        while not all(viewer.is_settled for viewer in viewers if isinstance(viewer, Viewer | Reader)):
            await asyncio.sleep(0.25)
            if self.truth.stamp != stamp:
                stamp, since_s = self.truth.stamp, self.loop.time()
            if self.loop.time() - since_s > SETTLE_S:
                seeing = [viewer for viewer in viewers if isinstance(viewer, Viewer | Reader)]
                late = [viewer.name for viewer in seeing if not viewer.is_settled]
                raise Violation(f"nothing was written for {SETTLE_S} s, and these still do not see all: {late}")
        self.trace.add("settled")

    async def _check_newcomers(self) -> None:
        """Whoever comes now sees the same, on every hub; and what nobody alive writes does not stream."""
        for node in self.nodes:
            for kind in (SocketViewer, StreamViewer):
                viewer = kind(self, f"newcomer-{node.name}-{kind.__name__.lower()}")
                viewer.look_at(self.draw.choice(self.channels))
                watching = self.start(viewer.run())
                await self._until_settled([viewer])
                watching.cancel()
            await self._check_reader(node)
        if self.plan.is_exclusive:
            for channel in self.channels:
                check_writers(self.truth.head(channel), self.nodes[0].hub.node)

    async def _check_reader(self, node: Node) -> None:
        """Whoever reads an answer that is over gets all of it, and is told that it is over."""
        life = self.truth.head(self.draw.choice(self.channels))
        ended = [message.id for message in life.messages(life.serial) if message.status != "streaming"]
        if ended:
            reader = Reader(self, f"newcomer-{node.name}-reader")
            reading = self.start(reader.read(life.channel, self.draw.choice(ended)))
            await asyncio.wait([reading], timeout=SETTLE_S)
            if not reading.done():
                raise Violation(f"{reader.name} was not told within {SETTLE_S} s that an answer is over")

    async def _farewell(self) -> None:
        """Everybody has left; when channels were idle for long enough nothing is left of anybody."""
        await asyncio.sleep(self.plan.limits.channel_idle_s + 80.0)  # old entries get documents first
        for node in self.nodes:
            check_empty(node.hub, node.process.name)
        for node in self.nodes:
            await node.leave()
        if self.loop.complaints:
            raise Violation(f"asyncio complains: {self.loop.complaints}")

    def _bury(self) -> None:
        """Let everything that was held or still runs come to its end, with the store and the network gone."""
        for process, line in self.lives:
            line.is_severed = True
            process.is_alive = False
            process.after_step = None
            self.loop.thaw(process)
        self.net.break_all()
        for _ in range(20):
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            with contextlib.suppress(Stuck, Hung):
                self.loop.go_on()
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVE_S))
        with contextlib.suppress(Stuck, Hung):
            self.loop.go_on()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


def _free_memory(node: Node) -> None:
    if node.hub.loop is not None:
        with contextlib.suppress(HoldfastError):
            node.hub.free_memory()
            node.bounds.trimmed()


def _nothing() -> None:
    pass


def _truncate_tails(hub: Hub) -> None:
    runtime = hub._runtime
    if runtime is not None:
        for channel in runtime.channels.values():
            channel.state.tail.restart(channel.state.serial)


@contextlib.contextmanager
def _sizes(sizes: list[int]) -> Iterator[None]:
    """The plan's sizes instead of the real ones."""
    before: list[Callable[[], None]] = []
    for (module, name, _), size in zip(SIZES, sizes, strict=True):
        place = importlib.import_module(module)
        before.append(_restorer(place, name, getattr(place, name)))
        setattr(place, name, size)
    try:
        yield
    finally:
        for restore in before:
            restore()


def _restorer(place: object, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(place, name, value)


class _Listener(logging.Handler):
    """What the hub logs belongs to the story; an error is a violation, since it is always a mistake of ours."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._trace.note(f"log: {text}")
        if record.levelno >= logging.ERROR and not (record.name == "holdfast.hooks" and is_expected(record.args)):
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                self._trace.note("".join(traceback.format_exception(error)))
            self._trace.violate(Violation(f"the hub logs an error: {text} {error!r}"))


@contextlib.contextmanager
def _listening(trace: Trace) -> Iterator[None]:
    logger = logging.getLogger("holdfast")
    listener = _Listener(trace)
    before, level = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = before
        logger.setLevel(level)
