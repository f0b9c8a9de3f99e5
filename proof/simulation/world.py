"""One run: hubs, actors and faults in virtual time, and an end at which all views must agree.

Layer: simulation.

A run has three parts. First faults befall processes, disks and connections. Then comes the calm: no new fault, all
begun work ends, and each viewer shows all of it within `SETTLE_S`. At the end all clients leave, and the hubs must be
empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, TypeVar
from unittest import mock

from proof.oracle import Violation
from proof.oracle.log import StoredLogs
from proof.oracle.promises import Promises
from proof.simulation.actors import Actor
from proof.simulation.agents import Worker, local_handler
from proof.simulation.bounds import Bounds, check_abandoned, check_empty, check_writers, members_of
from proof.simulation.clock import START_MS, Process, SimClock, Stuck, Trace, VirtualLoop
from proof.simulation.hooks import Hooks, is_expected
from proof.simulation.members import ACQUAINTED_S, Member
from proof.simulation.network import Network
from proof.simulation.plan import SIZES, Plan
from proof.simulation.store import SimStore, StoreClient
from proof.simulation.viewers import LocalViewer, MessageReader, SocketViewer, StreamViewer, Viewer
from proof.simulation.watchdog import Hung, watching
from proof.simulation.writers import LongWriter, StrandedWriter
from tenuto.app import Hub
from tenuto.core.errors import TenutoError
from tenuto.core.events import Cursor
from tenuto.core.turns import Phase
from tenuto.hub.channel import take
from tenuto.hub.lifecycle import free_memory
from tenuto.hub.people.presence_state import GRACE_S
from tenuto.hub.writer import MessageWriter

SHUT_DOWN_S = 60.0  # time in which a hub must close


class Node:
    """A machine that runs a hub, one process after the other."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.is_up = False
        self._world = world
        self._runs = 0
        self._died: asyncio.Future[None] = world.loop.create_future()
        self.process: Process
        self.hub: Hub
        self.bounds: Bounds
        self.store: StoreClient
        self.clock: SimClock

    def boot(self) -> None:
        """Start a process with a new hub. The hub itself starts at once, or at the first request."""
        world, plan = self._world, self._world.plan
        self._runs += 1
        run = f"{self.name}{self._runs}"
        draw = Random(f"{plan.seed}/{run}")
        self.process = Process(run)
        self.store = world.store.connect(self.process, Random(draw.getrandbits(32)))
        self.clock = SimClock(world.loop, Random(draw.getrandbits(32)))
        self.hub = self.process.run(self._new_hub)
        self.bounds = Bounds(self.hub, run, world.loop.time, lambda: world.promises.healthy_s)
        self.process.after_step = partial(world.trace.guarded, self.bounds.stepped)
        self._died = world.loop.create_future()
        self.is_up = True
        world.runs.append((self.process, self.store))
        world.trace.add(f"{run} boots")
        world.promises.note_boot()
        world.promises.is_skewed = any(node.is_skewed for node in world.nodes)
        if draw.random() < 0.5:
            self.process.start(world.loop, self._start(self.hub))

    @property
    def live_id(self) -> str | None:
        """Return the node id of the present hub."""
        return self.hub.node if self.is_up else None

    @property
    def is_skewed(self) -> bool:
        """Return whether its wall clock is set to another time."""
        return self.is_up and self.clock.skew_ms != 0

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        if not self.is_up:
            return
        world = self._world
        world.trace.add(f"{self.process.name} is killed")
        world.kept |= asyncio.all_tasks(world.loop)
        self.is_up = False
        self.process.is_alive = False
        self.suspend()
        self.store.process_died()
        world.net.process_died(self.process)
        self._died.set_result(None)

    def suspend(self) -> None:
        """Stop the process, until `VirtualLoop.thaw`."""
        self.process.is_held = True
        self.process.pauses += 1
        self._world.store.nodes.note_stop()

    async def shut_down(self) -> None:
        """Drain and close the hub, then end the process."""
        process, hub = self.process, self.hub
        self._world.trace.add(f"{process.name} shuts down")
        task = process.start(self._world.loop, hub.close())
        await asyncio.wait([task], timeout=SHUT_DOWN_S)
        if not task.done() and process.is_alive and not process.is_held:
            raise Violation(f"{process.name} did not shut down within {SHUT_DOWN_S} s")
        if process is self.process:
            self.kill()

    async def inside(self, job: Coroutine[Any, Any, None]) -> None:
        """Run `job` in the process, until it ends or the process dies. Raises the exception of the job."""
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
            self.store,
            limits=plan.limits,
            flush_ms=plan.flush_ms,
            drain_s=1.0,
            clock=self.clock,
            hooks_signals=False,
        )
        hub.drive_by_hand = plan.by_hand
        if plan.adopts:
            hub.adopt("*")(_continue)
        draw = Random(f"{plan.seed}/{self.process.name}/app")
        if plan.registers_late and draw.random() < 0.7:
            self.store.on_recovery = partial(self._register, hub, self.process, draw)
        else:
            self._register(hub, self.process, draw)
        return hub

    def _register(self, hub: Hub, process: Process, draw: Random) -> None:
        """Register agents and hooks, as the app does at its start or later."""
        world = self._world
        for number, agent in enumerate(world.plan.agents if self.name in world.plan.agents_at else ()):
            hub.agent("*", name=f"bot{number}", when_busy=agent.when_busy, on_crash=agent.on_crash, slots=agent.slots)(
                local_handler(world, agent, process)
            )
        world.hooks.register(hub, process, draw)

    def wake(self) -> None:
        """Start the hub, unless a request has started it; again if an earlier start, which still runs, fails."""
        self.process.start(self._world.loop, self._start_again(self.hub))

    async def _start_again(self, hub: Hub) -> None:
        await self._start(hub)
        while not (hub.is_running or hub.is_draining):
            await asyncio.sleep(1.0)
            await self._start(hub)

    async def _start(self, hub: Hub) -> None:
        with contextlib.suppress(TenutoError):  # the next request starts it again
            await hub.start()


async def _continue(writer: MessageWriter) -> None:
    for count in range(3):
        await writer.append(f"adopted at {writer.length}, {count}; ")
        await asyncio.sleep(0.05)


T = TypeVar("T")

SETTLE_S = 60.0  # time in which each view must show the last entry: a slow commit, and housekeeping
KNOWN_S = 3.0  # time in which the agents of a hub that begins are known to the others
FINISH_S = 300.0  # time in which begun messages must end
QUIET_S = 300.0  # time in which leases, turns and commands must end
RETRY_S = 2.0  # pause before a failed request is repeated
HOOKS_S = 150.0  # time in which hooks must end: a call may hang for a minute, and wait as long for its repetition
CUT_OFF_S = 6.0  # without its store for this long, a hub has no viewers: a term of its lease and two seconds
AWAY_S = 12.0  # time for which a lost hub is away: the others recover its messages in two terms of a lease
BEGIN_AGAIN_S = 4.0  # time in which a hub notices a failover and begins again
SHOWN_S = 3.0  # without faults each hub shows members of others within this time, though notices are lost
MEMBERS_S = 30.0  # time in which members must enter and all views must show them


@dataclass(frozen=True)
class Report:
    """The outcome of a run."""

    seed: int
    violation: Violation | None
    digest: str  # digest of all events: the same for the same seed
    events: int
    steps: int
    virtual_s: float
    lines: list[str]  # the last events

    def describe(self, lines: int = 100, *, is_as_drawn: bool = True) -> str:
        """Return the last events, the violation, and the command that repeats the run, if the plan is the drawn one."""
        again = f"python -m proof.simulation --start {self.seed} --seeds 1" if is_as_drawn else "only by this test"
        return "\n".join((*self.lines[-lines:], f"seed {self.seed}: {self.violation}", f"again: {again}"))


class World:
    """All hubs, actors and faults of one seed, and the oracles that judge them."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.plan = plan or Plan.drawn(seed)
        self.draw = Random(f"{seed}/world")
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop)
        self.stored = StoredLogs()
        self.net = Network(self.loop, self.plan.fault_model, self.stored, self.trace)
        self.store = SimStore(
            self.loop, self.plan.fault_model, self.stored, self.trace, is_exclusive=self.plan.is_exclusive, seed=seed
        )
        self.nodes = [Node(self, name) for name in "ABCD"[: self.plan.hubs]]
        self.promises = Promises(
            self.loop.time,
            self.stored,
            start_ms=START_MS,
            nodes=None if self.plan.is_exclusive else self.store.nodes,
            live_node=lambda: self.nodes[0].live_id,
        )
        self.promises.is_served = self._is_served
        self.promises.members.stopped_s = lambda: self.store.nodes.stopped_s
        self.store.promises = self.promises
        self.hooks = self.store.hooks = Hooks(self, self.plan.hooks)
        self.runs: list[tuple[Process, StoreClient]] = []
        self.kept: set[asyncio.Task[Any]] = set()  # tasks of killed processes: the garbage collector must not end them
        self.edited: set[tuple[str, str]] = set()  # messages that an editor has changed
        self.abandoned: set[tuple[str, str]] = set()  # messages whose takeover may have no writer
        self.viewers: list[Viewer] = []
        self.calm_s = float("inf")  # since when no fault happens
        self.leases_count_s = float("inf")  # since when the store serves nodes without faults
        self.is_quiet = False  # members stay in their channels
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hung_s: float | None = None  # when the step began that does not end

    def run(self) -> Report:
        """Run to the end, or to the first violation."""
        with _sizes(self.plan.sizes), _listening(self.trace), watching(lambda: self.loop.steps, self._hangs):
            try:
                self.loop.run_until_complete(self._main())
            except Violation as violation:
                self.trace.violate(violation)
            except Stuck as stuck:
                self.trace.note(f"the due steps:\n{stuck.where}")
                self.trace.violate(Violation(str(stuck)))
            except Hung:
                pass  # `_hangs` has noted the violation
            report = self._report()
            self._tear_down()
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
        """Note a step that does not end; the watchdog calls this in the middle of it."""
        if self._hung_s is None:
            self._hung_s = self.loop.time()
            self.trace.note(f"the step hangs here:\n{where}")
            self.trace.violate(Violation(f"a step at {self._hung_s:.4f} s does not end"))

    def start(self, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `job` outside of all processes; a violation in it fails the run."""
        task = self.loop.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def until_healthy(self) -> None:
        """Wait in the calm until the effects of earlier faults are over."""
        await asyncio.sleep(max(0.0, self.promises.healthy_s - self.loop.time()))

    @property
    def channels(self) -> list[str]:
        """Return the names of the channels."""
        return [f"c{number}" for number in range(self.plan.channels)]

    @property
    def is_calm(self) -> bool:
        """Return whether no fault happens any more."""
        return self.calm_s < float("inf")

    def _is_served(self) -> bool:
        """Return whether all hubs know an agent: each has one, or in the calm one of them."""
        is_everywhere = set(self.plan.agents_at) >= {node.name for node in self.nodes}
        known_s = max(self.promises.healthy_s, self.promises.booted_s + KNOWN_S)
        return bool(self.plan.agents) and (is_everywhere or self.loop.time() >= known_s)

    def is_calm_for(self, seconds: float) -> bool:
        """Return whether the calm has lasted for `seconds`."""
        return self.loop.time() - self.calm_s > seconds

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = task.exception() if not task.cancelled() else None
        if isinstance(error, Violation):
            self.trace.violate(error)
        elif error is not None:
            self.trace.violate(Violation(f"a task failed with {error!r}"))
            self.trace.note("".join(traceback.format_exception(error)))

    async def _main(self) -> None:
        play = self.start(self._play())
        await asyncio.wait([play, self.trace.violated], return_when=asyncio.FIRST_COMPLETED)

    async def _play(self) -> None:
        self.trace.add(f"seed {self.plan.seed}: {self.plan.hubs} hubs{', a weak store' if self.plan.is_weak else ''}")
        for node in self.nodes:
            node.boot()
        drawn = enumerate(self.plan.authors)
        authors = [self.start(kind(self, f"{kind.label}{place}").run()) for place, kind in drawn]
        viewers = self._viewers()
        members = [Member(self, f"member{place}") for place in range(self.plan.members)]
        workers = [Worker(self, f"worker{place}") for place in range(self.plan.workers)]
        others = [self.start(actor.run()) for actor in (*viewers, *members, *workers)]
        checking = self.start(self._check_every_second(members))
        failing_over = self.start(self._fail_over())
        await self.start(self._inject_faults())
        await failing_over
        if self.plan.loss is not None:
            await self.start(self._lose_a_node(self.plan.loss))
        self._begin_calm()
        await self._until_written(authors)
        await self._until_quiet()
        await self._until_hooks_are_done()
        await self._until_settled(viewers)
        await self._until_members_are_shown(viewers, members, workers)
        await self._check_new_viewers()
        for channel in self.channels:
            self.store.audit(channel)
        self.viewers.clear()
        for task in others:
            task.cancel()
        await self._check_end()
        checking.cancel()

    def _viewers(self) -> list[Actor]:
        viewers: list[Actor] = []
        for place, kind in enumerate(self.plan.viewers):
            viewer = kind(self, f"{kind.label}{place}")
            for channel in self.channels if kind is SocketViewer else [self.draw.choice(self.channels)]:
                viewer.look_at(channel)
            viewers.append(viewer)
            self.viewers.append(viewer)
        viewers += [MessageReader(self, f"reader{place}") for place in range(self.plan.readers)]
        return viewers

    async def _check_every_second(self, members: list[Member]) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.promises.check_due()
            if not self.plan.is_exclusive:
                self.store.nodes.check_due(self.leases_count_s)
            self._check_members(members)
            self._check_turns()

    def _check_turns(self) -> None:
        """Check that no hub counts a turn as running whose agent has been silent for longer than its lease."""
        for node in self.nodes:
            if node.is_up and not node.process.is_held and node.hub.is_running:
                for channel, turn in node.hub.runtime.scheduler.where(lambda turn: turn.phase is Phase.RUNNING):
                    self.promises.check_running((channel, turn.message_id), turn.attempt, node.hub.node)

    def _check_members(self, members: list[Member]) -> None:
        """Check, in the calm, that hubs show the members that have been present for a while, and none that is away."""
        now_s, calm_s = self.loop.time(), self.promises.healthy_s + ACQUAINTED_S
        for node in self.nodes:
            for channel in self.channels:
                if not any(viewer.follows(channel, node.process, now_s - SHOWN_S) for viewer in self.viewers):
                    continue  # a hub shows the members of other hubs from the first attach on
                here = {member.id for member in members_of(node.hub, channel).members}
                for one in members:
                    is_present = calm_s <= one.present_s <= now_s - SHOWN_S
                    is_away = calm_s <= one.away_s <= now_s - GRACE_S - SHOWN_S
                    if one.channel == channel and (
                        (is_present and one.name not in here) or (is_away and one.name in here)
                    ):
                        what = f"present since {one.present_s:.3f}" if is_present else f"away since {one.away_s:.3f}"
                        raise Violation(
                            f"{sorted(here)} are members of {channel} on {node.name}, and {one.name} is {what}"
                        )

    # -- faults ------------------------------------------------------------------------------------------------

    async def _inject_faults(self) -> None:
        """Inject one fault after another, until the calm."""
        if self.plan.is_full:
            await self._inject("clock", self.draw.choice(self.nodes))
        while self.plan.faults and self.loop.time() < self.plan.bad_s:
            await asyncio.sleep(self.draw.expovariate(1 / self.plan.fault_s))
            await self._inject(self.draw.choice(self.plan.faults), self.draw.choice(self.nodes))
        await asyncio.sleep(self.plan.bad_s - self.loop.time())

    async def _inject(self, fault: str, node: Node) -> None:
        draw = self.draw
        if fault not in ("store down", "store restart", "cut", "sync") and not node.is_up:
            return
        self.trace.add(f"fault: {fault} {node.name}")
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
                await node.shut_down()
                await self._boot_later(node)
            case "pause":
                process = node.process
                node.suspend()
                await asyncio.sleep(draw.uniform(0.1, 12.0))
                self.promises.note_trouble(self.loop.time() + 1.0)
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
            case "forget first values":
                node.process.run(lambda: _forget_first_values(node.hub))
            case "clock":
                node.clock.skew_ms += draw.choice((-3_600_000, -10, 10, 3_600_000))
                self.promises.is_skewed = True  # also once it is right again: deadlines may be from before
            case "sync":
                self.store.sync()
            case "store restart":
                self.store.restart()
            case "power":
                node.kill()
                self.store.power_cut()
                await self._boot_later(node)

    async def _fail_over(self) -> None:
        """Let the store fail over at drawn moments before the calm."""
        draw = Random(f"{self.plan.seed}/failover")
        for _ in range(self.plan.failovers):
            await asyncio.sleep(draw.uniform(0.2, self.plan.bad_s / self.plan.failovers))
            away_s = draw.choice((0.0, 0.3, 4.0))  # from the end of the old server until the new one responds
            self.store.down_until_s = max(self.store.down_until_s, self.loop.time() + away_s)
            self.store.fail_over(draw.choice((0, 1, 5, 40)))
            self.promises.note_boot()
            self.promises.note_trouble(self.store.down_until_s + BEGIN_AGAIN_S)

    async def _lose_a_node(self, how: str) -> None:
        """Without other faults, let one hub die, pause, drain or lose its store, for longer than its lease."""
        self._heal()
        await asyncio.sleep(self.leases_count_s - self.loop.time() + self.draw.uniform(0.0, 6.0))
        node, other = self.draw.sample(self.nodes, 2)
        await StrandedWriter(self, "stranded").write_to(node)
        writing = [
            self.start(LongWriter(self, f"long-{one.name}").write_in(one, self.draw.choice(self.channels)))
            for one in (node, other)
        ]
        await asyncio.sleep(self.draw.uniform(0.2, 2.0))
        self.trace.add(f"loss: {how} {node.name}")
        if how == "drain":
            await node.shut_down()
        elif how == "kill":
            node.kill()
        elif how == "cut off":
            await self._cut_off(node)
        else:
            node.suspend()
        await asyncio.sleep(AWAY_S)
        if how == "cut off":
            node.store.restore()
            self.store.nodes.note_stop()  # it may write before it renews its lease
        elif node.is_up:
            self.loop.thaw(node.process)
        else:
            node.boot()
        await asyncio.wait(writing)

    async def _cut_off(self, node: Node) -> None:
        """Break the connection of `node` to the store, and check that it disconnects its viewers."""
        self.store.nodes.note_stop()
        node.store.cut()
        self.promises.note_trouble(self.loop.time() + CUT_OFF_S + AWAY_S + RETRY_S)  # of signals and members, too
        node.process.pauses += 1  # another node takes over its turns while their handlers run on
        await asyncio.sleep(CUT_OFF_S)
        # a reader inside the process that is busy with a batch is disconnected when it reads on
        local = (one for one in self.viewers if isinstance(one, LocalViewer) and one.node is node and one.is_busy)
        busy = Counter(name for one in local for name in one.oracles)
        stays = [name for name, channel in node.hub.runtime.channels.items() if len(channel.feeds) > busy[name]]
        if stays:
            raise Violation(f"{node.name} does not reach its store for {CUT_OFF_S} s, and has viewers of {stays}")

    async def _crowd(self, hub: Hub, channel: str) -> None:
        """Attach many viewers for a moment, each with another cursor."""
        log = self.stored.head(channel)
        with contextlib.suppress(TenutoError):
            for serial in range(0, log.serial, 1 + log.serial // 100):
                feed = await hub.attach(channel, Cursor(log.epoch, serial), history=serial, wake=lambda: None)
                try:
                    await take(feed, contextlib.nullcontext)
                finally:
                    feed.close()

    async def _boot_later(self, node: Node) -> None:
        delays_s = (0.0, 0.1, 2.0) if self.plan.is_exclusive else (0.0, 0.1, 2.0, 9.0)
        await asyncio.sleep(self.draw.choice(delays_s))
        node.boot()
        if self.draw.random() < 0.5:
            self.store.audit(self.draw.choice(self.channels))

    # -- the calm ----------------------------------------------------------------------------------------------

    def _begin_calm(self) -> None:
        self.trace.add("calm")
        self._heal()
        self.calm_s = self.loop.time()
        self.net.break_all(holes_only=True)
        self.promises.healthy_s = max(self.calm_s, self.store.busy_until_s) + RETRY_S

    def _heal(self) -> None:
        """End the faults of the store, and start all hubs."""
        self.plan.fault_model.calm()
        self.store.down_until_s = 0.0
        self.leases_count_s = min(self.leases_count_s, max(self.loop.time(), self.store.busy_until_s) + RETRY_S)
        self.store.nodes.steady_s = self.leases_count_s
        for node in self.nodes:
            node.wake()

    async def _until_written(self, authors: list[asyncio.Task[None]]) -> None:
        _, unfinished = await asyncio.wait(authors, timeout=FINISH_S)
        if unfinished:
            raise Violation(f"{len(unfinished)} authors have not ended within {FINISH_S} s of the calm")

    async def _until_quiet(self) -> None:
        """Wait until all leases and turns have ended and all commands have replies."""
        since_s = self.loop.time()
        while self.plan.is_exclusive and (self.promises.is_busy or self.loop.time() < self.promises.healthy_s):
            if self.loop.time() - since_s > QUIET_S:
                raise Violation(f"no fault for {QUIET_S} s, and there are still {self.promises.busy_with}")
            await asyncio.sleep(0.5)
        if not self.plan.is_exclusive:
            await self._until_recovered()
        if self.plan.is_exclusive:
            for channel in self.channels:
                check_abandoned(self.stored.head(channel), self.nodes[0].hub, self.abandoned)
        self.trace.add("quiet")

    async def _until_recovered(self) -> None:
        """Wait until no message of an ended node or of a remote writer streams, and no turn waits or runs."""
        since_s, fewest = max(self.loop.time(), self.promises.healthy_s), float("inf")
        while left := [*self.store.nodes.orphans(self.channels), *self.promises.leased, *self.promises.turns]:
            if len(left) < fewest:  # a slow worker answers one question after another
                since_s, fewest = max(self.loop.time(), since_s), len(left)
            if self.loop.time() - since_s > QUIET_S:
                raise Violation(
                    f"no fault for {QUIET_S} s, and messages of ended writers stream, or turns wait: {left}"
                )
            await asyncio.sleep(0.5)

    async def _until_hooks_are_done(self) -> None:
        """Wait until each hook has received all calls that are due."""
        since_s = max(self.loop.time(), self.promises.healthy_s)
        while missing := self.hooks.missing(self.channels):
            if self.loop.time() - since_s > HOOKS_S:
                raise Violation(f"no fault for {HOOKS_S} s, and hooks have missed {missing}")
            await asyncio.sleep(0.5)
        if self.plan.hooks:
            self.trace.add("hooks are done")

    async def _until_members_are_shown(
        self, viewers: list[Actor], members: list[Member], workers: list[Worker]
    ) -> None:
        """Wait until all views and hubs show exactly the members that are present at some hub."""
        self.is_quiet = True
        since_s = self.loop.time()
        while wrong := self._wrong_with_presence(viewers, members, workers):
            if self.loop.time() - since_s > MEMBERS_S:
                raise Violation(wrong)
            await asyncio.sleep(0.25)
        self.trace.add("members are shown")

    def _wrong_with_presence(self, viewers: list[Actor], members: list[Member], workers: list[Worker]) -> str | None:
        for viewer in viewers:
            if isinstance(viewer, Viewer) and not viewer.shows_members:
                shown = {channel: oracle.view.members() for channel, oracle in viewer.oracles.items()}
                return f"{viewer.name} shows other members than its hub: {shown}"
        bots = {f"bot{number}" for number in range(len(self.plan.agents))}
        workers_here = {worker.name for worker in workers if worker.is_connected}
        for node in self.nodes:
            for channel in self.channels:
                here = {(member.kind, member.id) for member in members_of(node.hub, channel).members}
                people = {("user", one.name) for one in members if one.node is not None and one.channel == channel}
                own = {("user", one.name) for one in members if one.node is node and one.channel == channel}
                agents = {("agent", name) for name in workers_here | bots}
                # A hub shows the agents of a channel, and the members of other hubs, from the first attach on.
                is_viewed = any(viewer.node is node and channel in viewer.oracles for viewer in self.viewers)
                if here != people | agents and (is_viewed or not own <= here <= people | agents):
                    expected = sorted(people | agents)
                    return f"{sorted(here)} are members of {channel} on {node.name}, expected {expected}"
        return None

    async def _until_settled(self, viewers: list[Actor]) -> None:
        stamp, since_s = self.stored.stamp, self.loop.time()
        while not all(viewer.is_settled for viewer in viewers if isinstance(viewer, Viewer | MessageReader)):
            await asyncio.sleep(0.25)
            if self.stored.stamp != stamp:
                stamp, since_s = self.stored.stamp, self.loop.time()
            if self.loop.time() - since_s > SETTLE_S:
                seeing = [viewer for viewer in viewers if isinstance(viewer, Viewer | MessageReader)]
                late = [viewer.name for viewer in seeing if not viewer.is_settled]
                raise Violation(f"no entry was stored for {SETTLE_S} s, and these views are still behind: {late}")
        self.trace.add("settled")

    async def _check_new_viewers(self) -> None:
        """Check that new viewers on each hub see the same, and that no message of a dead process streams."""
        for node in self.nodes:
            for kind in (SocketViewer, StreamViewer):
                viewer = kind(self, f"newcomer-{node.name}-{kind.label}")
                viewer.look_at(self.draw.choice(self.channels))
                running = self.start(viewer.run())
                await self._until_settled([viewer])
                running.cancel()
            await self._check_reader(node)
        for channel in self.channels if self.plan.is_exclusive else ():
            check_writers(self.stored.head(channel), self.nodes[0].hub.node)

    async def _check_reader(self, node: Node) -> None:
        """Check that a reader of a finished message receives all of it and its end."""
        log = self.stored.head(self.draw.choice(self.channels))
        if ended := [message.id for message in log.messages(log.serial) if message.status != "streaming"]:
            reader = MessageReader(self, f"newcomer-{node.name}-reader")
            reading = self.start(reader.read(log.channel, self.draw.choice(ended)))
            await asyncio.wait([reading], timeout=SETTLE_S)
            if not reading.done():
                raise Violation(f"{reader.name} did not receive the end of a message within {SETTLE_S} s")

    async def _check_end(self) -> None:
        """Check that the hubs are empty once all clients have left and the channels were idle."""
        await asyncio.sleep(self.plan.limits.channel_idle_s + 80.0)  # before that, old entries get documents
        if any(node.hub.is_running and node.hub.stats()["channels"] for node in self.nodes):
            await asyncio.sleep(self.plan.limits.channel_idle_s + 310.0)  # a command may have expired meanwhile
        for node in self.nodes:
            check_empty(node.hub, node.process.name)
        for node in self.nodes:
            await node.shut_down()
        if self.loop.complaints:
            raise Violation(f"asyncio reports: {self.loop.complaints}")

    def _tear_down(self) -> None:
        """End all tasks, with the store and the network gone."""
        for process, store in self.runs:
            store.is_severed = True
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
                self.loop.resume()
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=SHUT_DOWN_S))
        with contextlib.suppress(Stuck, Hung):
            self.loop.resume()
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


def _free_memory(node: Node) -> None:
    if node.hub.is_running:
        with contextlib.suppress(TenutoError):
            free_memory(node.hub.runtime)
            node.bounds.trimmed()


def _forget_first_values(hub: Hub) -> None:
    """Let the hub know of its messages what it would know after a restart."""
    if hub.is_running:
        for channel in hub.runtime.channels.values():
            for part in (part for message in channel.state.messages.values() for part in message.parts):
                part.first = None


@contextlib.contextmanager
def _sizes(sizes: list[int]) -> Iterator[None]:
    """Use the sizes of the plan instead of the real ones."""
    with contextlib.ExitStack() as stack:
        for (module, name, _), size in zip(SIZES, sizes, strict=True):
            stack.enter_context(mock.patch(f"{module}.{name}", size))
        yield


class _Listener(logging.Handler):
    """Adds the log lines of the hub to the trace; a logged error is a violation."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(logging.WARNING)
        self._trace = trace

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._trace.note(f"log: {text}")
        if record.levelno >= logging.ERROR and not (record.name == "tenuto.hooks" and is_expected(record.args)):
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                self._trace.note("".join(traceback.format_exception(error)))
            self._trace.violate(Violation(f"the hub logs an error: {text} {error!r}"))


@contextlib.contextmanager
def _listening(trace: Trace) -> Iterator[None]:
    logger = logging.getLogger("tenuto")
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
