"""Nodes: each runs a hub, in one process after the other.

Layer: simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from proof.oracle import Violation
from proof.simulation.agents import local_handler
from proof.simulation.bounds import Bounds
from proof.simulation.clock import Process, SimClock
from proof.simulation.store import StoreClient
from tenuto.app import Hub
from tenuto.core.errors import TenutoError
from tenuto.hub.writer import MessageWriter

if TYPE_CHECKING:
    from proof.simulation.world import World

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
