"""Hooks: functions of the app in a hub's process, registered in each run of the hub.

Layer: simulation.

A hook is slow, fails, hangs, and dies with its process. In some runs it is registered late, so it has missed entries.
Its `HookOracle` outlives the process and judges each call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from proof.oracle.hooks import HookOracle
from proof.oracle.log import StoredLogs
from proof.oracle.responses import check_message
from proof.simulation.clock import Process
from tenuto.app import Hub
from tenuto.core.errors import Deleted, TenutoError
from tenuto.core.model import Message
from tenuto.hub.hooks import KINDS, HookEvent, HookKind

if TYPE_CHECKING:
    from proof.simulation.world import World

LONGEST_S = 70.0  # longest call: longer than a hook may run
# Errors of hooks that the hub logs, by the name of their class: the simulator causes each of them.
EXPECTED = ("OnPurpose", "TimeoutError", "StoreUnavailable", "StoreReplaced", "CommitUnknown", "Busy", "Draining")


class OnPurpose(Exception):
    """Raised by a hook that fails."""


@dataclass(frozen=True)
class HookPlan:
    """How one hook behaves."""

    name: str
    kinds: tuple[HookKind, ...]
    pattern: str
    pause_s: float  # longest time that a usual call takes
    fail_chance: float
    hang_chance: float
    late_chance: float  # chance that a hub registers the hook some time after its start
    writes: bool = False  # whether it answers messages of users, with an id that names the message

    @classmethod
    def drawn(cls, draw: Random, number: int) -> HookPlan:
        """Return a random plan."""
        return cls(
            name=f"hook{number}",
            kinds=draw.choice((KINDS, KINDS, ("message.finish", "message.delete"), ("command", "command.reply"))),
            pattern=draw.choice(("*", "*", "c0")),
            pause_s=draw.choice((0.0, 0.01, 0.5)),
            fail_chance=draw.choice((0.0, 0.1, 0.4)),
            hang_chance=draw.choice((0.0, 0.0, 0.02)),
            late_chance=draw.choice((0.0, 0.3)),
            writes=draw.random() < 0.3,
        )


class Hooks:
    """All hooks of a world, each with its oracle."""

    def __init__(self, world: World, plans: Iterable[HookPlan]) -> None:
        self._world = world
        self._oracles = [(plan, _oracle(world, plan)) for plan in plans]

    def register(self, hub: Hub, process: Process, draw: Random) -> None:
        """Register the hooks in a new run of the hub, at its start or some time later."""
        for plan, oracle in self._oracles:
            if draw.random() < plan.late_chance:
                started = asyncio.Event()
                hub.on_start(started.set)
                late = self._register_late(hub, process, plan, oracle, started, draw.uniform(0.0, 3.0))
                process.start(self._world.loop, late)
            else:
                oracle.note_run()
                self._register(hub, process, plan, oracle)

    def note_kept(self, values: Mapping[str, bytes | None]) -> None:
        """Take notes that the store keeps from now on. Raises Violation."""
        for _, oracle in self._oracles:
            oracle.note_kept(values)

    def note_unclear(self, names: Iterable[str]) -> None:
        """Note that the hub does not know whether the store keeps its last notes `names`."""
        for _, oracle in self._oracles:
            oracle.note_unclear(names)

    def lose_power(self, notes: Mapping[str, bytes]) -> None:
        """Replace the kept notes by `notes`."""
        for _, oracle in self._oracles:
            oracle.lose_power(notes)

    def missing(self, channels: Iterable[str]) -> list[str]:
        """Return the calls that are due and never succeeded."""
        return [one for _, oracle in self._oracles for one in oracle.missing(channels)]

    async def _register_late(
        self, hub: Hub, process: Process, plan: HookPlan, oracle: HookOracle, started: asyncio.Event, after_s: float
    ) -> None:
        await started.wait()
        await asyncio.sleep(after_s)
        oracle.note_registered()
        self._register(hub, process, plan, oracle)

    def _register(self, hub: Hub, process: Process, plan: HookPlan, oracle: HookOracle) -> None:
        world = self._world

        async def handle(event: HookEvent) -> None:
            world.trace.guarded(lambda: oracle.check_call(event, process))
            world.trace.add(f"{process.name} calls {plan.name} {event.channel} {event.serial} {event.type} {event.id}")
            draw = Random(f"{world.plan.seed}/{plan.name}/{oracle.calls}")
            try:
                if plan.pause_s:
                    await asyncio.sleep(draw.uniform(0.0, plan.pause_s))
                if not world.is_calm and draw.random() < plan.hang_chance:
                    await asyncio.sleep(LONGEST_S)
                if not world.is_calm and draw.random() < plan.fail_chance:
                    raise OnPurpose
                if plan.writes and event.type == "message.create":
                    await _answer(hub, event, plan.name, world)
                oracle.note_done(event)
            finally:
                oracle.end_call(event.channel, process)

        hub.on(plan.kinds, plan.pattern, name=plan.name)(handle)


def _oracle(world: World, plan: HookPlan) -> HookOracle:
    shared = world.plan

    def was_healthy(since_s: float) -> bool:
        return world.promises.was_healthy(since_s) and world.store.nodes.stopped_s < since_s

    return HookOracle(
        plan,
        world.stored,
        is_shared=not shared.is_exclusive,
        now_s=world.loop.time,
        was_healthy=was_healthy if shared.hubs > 1 else None,
    )


async def _answer(hub: Hub, event: HookEvent, name: str, world: World) -> None:
    """Answer a user's message: one answer, however often the hook is called."""
    if event.message is None or event.message.role != "user":
        return
    with contextlib.suppress(Deleted):  # an editor has deleted the answer of an earlier call
        text = f"{name} has seen {event.id}"
        stored = await hub.create(event.channel, id=f"{event.id}~{name}", role="system", text=text, author=name)
        world.trace.guarded(lambda: _check_stored(world.stored, event.channel, stored))


def _check_stored(stored: StoredLogs, channel: str, message: Message) -> None:
    check_message(stored, channel, message, stored.stamp)


def is_expected(arguments: object) -> bool:
    """Return whether a logged error of a hook, with these arguments, is an error that the simulator causes."""
    listed = arguments if isinstance(arguments, tuple) else ()
    return any(isinstance(one, TenutoError) or one in EXPECTED for one in listed)
