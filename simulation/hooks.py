"""Hooks: functions of the app's in a hub's process, and what each of them is told over all lives of the hub.

Layer: simulation.

A hook is slow, fails, hangs, and dies with its process; in some lives it is registered late,
so that it was away. Its `Ear` outlives the process and compares what it is told with the truth and with the position
that the store keeps: at least once, in order per channel, only what was stored, and in the end all that is left of what
was stored since it was registered first. Only for a hub that has its store to itself: each that shares one has runners
of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from holdfast.app import Hub
from holdfast.core.errors import Deleted, HoldfastError
from holdfast.core.model import Message
from holdfast.core.names import COMMAND_MARK, command_id, command_key
from holdfast.core.ops import Command, Create, Delete, Finish, Op, Reply, Update
from holdfast.hub.hooks import KINDS, HookEvent, HookKind
from holdfast.hub.patterns import matches
from simulation.checks import check_message
from simulation.clock import Process
from simulation.trace import Violation
from simulation.truth import Life, Truth, seen

if TYPE_CHECKING:
    from simulation.world import World

Place = tuple[str, int]  # epoch and serial
Told = tuple[str, str, int, str]  # epoch, kind, serial, id

OPS: dict[str, type[Op]] = {
    "message.create": Create,
    "message.update": Update,
    "message.finish": Finish,
    "message.delete": Delete,
    "command": Command,
    "command.reply": Reply,
}
LONGEST_S = 70.0  # of a call: longer than a hook may take
# What the hub may have to log of hooks: each is the simulator's doing.
FAILURES = ("OnPurpose", "TimeoutError", "StoreUnavailable", "CommitUnknown", "Busy", "Draining")


class OnPurpose(Exception):
    """A hook that fails."""


@dataclass(frozen=True)
class HookPlan:
    """One hook."""

    name: str
    kinds: tuple[HookKind, ...]
    pattern: str
    pause_s: float  # at most, of most calls
    fail_chance: float
    hang_chance: float
    late_chance: float  # of a life of the hub: it is registered when that is under way
    writes: bool = False  # does it answer what users say, by a message whose id says which?

    @classmethod
    def drawn(cls, draw: Random, number: int) -> HookPlan:
        """Some hook."""
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


class HookRecorder:
    """All hooks of a world, and what they were told."""

    def __init__(self, world: World, plans: Iterable[HookPlan]) -> None:
        self._world = world
        self._recorder = [Ear(plan, world.truth) for plan in plans]

    def register(self, hub: Hub, process: Process, draw: Random) -> None:
        """A life of the hub begins, with these hooks from its start or from some time later."""
        for ear in self._recorder:
            if draw.random() < ear.plan.late_chance:
                started = asyncio.Event()
                hub.on_start(started.set)
                process.start(self._world.loop, self._register_late(hub, process, ear, started, draw.uniform(0.0, 3.0)))
            else:
                hub.on_start(ear.begins)
                self._register(hub, process, ear)

    def stored(self, values: Mapping[str, bytes | None]) -> None:
        """The store took notes. Raises Violation."""
        for ear in self._recorder:
            ear.noted(values)

    def power_was_lost(self, notes: Mapping[str, bytes]) -> None:
        """Only `notes` are left."""
        for ear in self._recorder:
            ear.recalled(notes)

    def missing(self, channels: Iterable[str]) -> list[str]:
        """What is due to hooks, and was never told to its end."""
        return [one for ear in self._recorder for one in ear.missing(channels)]

    async def _register_late(
        self, hub: Hub, process: Process, ear: Ear, started: asyncio.Event, after_s: float
    ) -> None:
        await started.wait()
        await asyncio.sleep(after_s)
        ear.begins()
        self._register(hub, process, ear)

    def _register(self, hub: Hub, process: Process, ear: Ear) -> None:
        world, plan = self._world, ear.plan

        async def hear(event: HookEvent) -> None:
            world.trace.guarded(lambda: ear.hears(event, process))
            world.trace.add(f"{process.name} tells {plan.name} {event.channel} {event.serial} {event.type} {event.id}")
            draw = Random(f"{world.plan.seed}/{plan.name}/{ear.calls}")
            try:
                if plan.pause_s:
                    await asyncio.sleep(draw.uniform(0.0, plan.pause_s))
                if not world.is_calm and draw.random() < plan.hang_chance:
                    await asyncio.sleep(LONGEST_S)
                if not world.is_calm and draw.random() < plan.fail_chance:
                    raise OnPurpose
                if plan.writes and event.type == "message.create":
                    await _answer(hub, event, plan.name, world)
                ear.heard(event)
            finally:
                ear.leaves(event.channel)

        hub.on(plan.kinds, plan.pattern, name=plan.name)(hear)


async def _answer(hub: Hub, event: HookEvent, name: str, world: World) -> None:
    """However often the hook is called, there is one answer."""
    if event.message is None or event.message.role != "user":
        return
    with contextlib.suppress(Deleted):  # somebody was faster, the last time
        text = f"{name} has seen {event.id}"
        stored = await hub.create(event.channel, id=f"{event.id}~{name}", role="system", text=text, author=name)
        world.trace.guarded(lambda: _check_stored(world.truth, event.channel, stored))


def _check_stored(truth: Truth, channel: str, message: Message) -> None:
    check_message(truth, channel, message, truth.stamp)


class Ear:
    """What one hook is told, over all lives of the hub."""

    def __init__(self, plan: HookPlan, truth: Truth) -> None:
        self.plan = plan
        self.calls = 0
        self._truth = truth
        self._told: dict[str, set[Told]] = {}  # by channel, what it was told to the end
        self._last: dict[str, Place] = {}  # by channel, what it was told of last
        self._noted: dict[str, Place] = {}  # by channel, the position that the store keeps
        self._at_work: dict[str, Process] = {}
        self._stood: dict[str, Place] = {}  # where the channels stood when it was registered in this life
        self._since: dict[str, Place] | None = None  # the same of the life in which it was registered first

    def begins(self) -> None:
        """It is registered now, in a new life of the hub."""
        self._stood = {channel: _place(self._truth.head(channel)) for channel in self._truth.channels}

    def hears(self, event: HookEvent, process: Process) -> None:
        """It is called. Raises Violation."""
        self.calls += 1
        channel, at = event.channel, (event.epoch, event.serial)
        other = self._at_work.get(channel)
        if other is not None and other.is_alive:
            raise self._violation(event, "and is still at work on what was before")
        self._at_work[channel] = process
        if not matches(self.plan.pattern, channel) or event.type not in self.plan.kinds:
            raise self._violation(event, "which it has not asked for")
        noted, last = self._noted.get(channel), self._last.get(channel)
        if noted is not None and noted[0] == at[0] and noted[1] >= at[1]:
            raise self._violation(event, f"though its position is {noted[1]}")
        if last is not None and last[0] == at[0] and last[1] > at[1]:
            raise self._violation(event, f"after {last[1]}")
        if last is not None and last[0] != at[0] and self._born(channel, last[0]) > self._born(channel, at[0]):
            raise self._violation(event, f"after the next life of the channel, {last[0]}")
        self._last[channel] = at
        self._check_true(event)

    def heard(self, event: HookEvent) -> None:
        """It has done what there was to do."""
        told = self._told.setdefault(event.channel, set())
        told.add((event.epoch, event.type, event.serial, event.id))

    def leaves(self, channel: str) -> None:
        """That call is over."""
        self._at_work.pop(channel, None)

    def noted(self, values: Mapping[str, bytes | None]) -> None:
        """The store took notes. Raises Violation."""
        for name, value in values.items():
            if name == f"hook-registered/{self.plan.name}":
                self._since = self._stood
            channel = name.removeprefix(f"hook/{self.plan.name}/")
            if channel == name:
                continue
            before, after = self._noted.pop(channel, None), _position(value)
            if after is not None:
                self._noted[channel] = after
            if before is not None and after is not None and before[0] == after[0] and before[1] > after[1]:
                raise Violation(f"{self.plan.name} on {channel}: its position goes back from {before} to {after}")

    def recalled(self, notes: Mapping[str, bytes]) -> None:
        """Only `notes` are left."""
        self._noted.clear()
        prefix = f"hook/{self.plan.name}/"
        for name, value in notes.items():
            if name.startswith(prefix) and (position := _position(value)) is not None:
                self._noted[name.removeprefix(prefix)] = position
        if f"hook-registered/{self.plan.name}" not in notes:
            self._since = None

    def missing(self, channels: Iterable[str]) -> list[str]:
        """What is due, and was never told to its end."""
        if self._since is None:
            return [f"{self.plan.name} is not registered"]
        late: list[str] = []
        for channel in channels:
            if not matches(self.plan.pattern, channel):
                continue
            life, told = self._truth.head(channel), self._told.get(channel, set())
            epoch, since = self._since.get(channel, ("", 0))
            for one in _due(life):
                if one[1] in self.plan.kinds and one not in told and (one[2] > since or one[0] != epoch):
                    late.append(f"{self.plan.name} {channel} {one[2]} {one[1]} {one[3]}")
        return late

    # -- inside ------------------------------------------------------------------------------------------------

    def _violation(self, event: HookEvent, why: str) -> Violation:
        return Violation(
            f"{self.plan.name} is told of {event.channel} {event.epoch}:{event.serial} {event.type}, {why}"
        )

    def _born(self, channel: str, epoch: str) -> int:
        life = self._truth.life(channel, epoch)
        return life.born if life is not None else 0

    def _check_true(self, event: HookEvent) -> None:
        """It was stored, and is told as it was at that entry or later."""
        life, stamp = self._truth.life(event.channel, event.epoch), self._truth.stamp
        if life is None or not event.serial or not life.is_stored(event.serial, stamp):
            raise self._violation(event, "before that was stored")
        op = life.ops[event.serial - 1]
        is_of_command = isinstance(op, Command | Reply)
        if not isinstance(op, OPS[event.type]) or op.id != (command_key(event.id) if is_of_command else event.id):
            raise self._violation(event, f"and stored is {op}")
        if is_of_command:
            self._check_command(event, life)
            return
        message = event.message
        if message is None:
            if event.type != "message.delete":
                raise self._violation(event, "and not what there is of it")
        elif message.version < event.serial or not life.is_stored(message.version, stamp):
            raise self._violation(event, f"and of what was not stored then: {message}")
        elif message != life.at(event.id, message.version):
            raise self._violation(event, f"as {message}, true is {life.at(event.id, message.version)}")

    def _check_command(self, event: HookEvent, life: Life) -> None:
        key = command_key(event.id)
        if event.command != seen(life.commands[key][1]):
            raise self._violation(event, f"as {event.command}, true is {life.commands[key]}")
        if event.type == "command.reply":
            op = life.replies[key][1]
            if event.reply != {"ok": op.ok, "data": op.data, "error": op.error, "from": op.by}:
                raise self._violation(event, f"as {event.reply}, true is {op}")


def is_expected(arguments: object) -> bool:
    """Does an error that is logged of a hook, with these arguments, say that it or the store failed on purpose?"""
    told = arguments if isinstance(arguments, tuple) else ()
    return any(isinstance(one, HoldfastError) or one in FAILURES for one in told)


def _due(life: Life) -> Iterator[Told]:
    """What is left to be told of a channel, to whoever comes only now."""
    last: dict[tuple[str, type[Op]], int] = {}  # by id and kind
    for serial, op in enumerate(life.ops, 1):
        last[op.id, type(op)] = serial
    for (key, kind), serial in last.items():
        if key.startswith(COMMAND_MARK):
            yield life.epoch, "command" if kind is Command else "command.reply", serial, command_id(key)
        elif life.is_deleted(key):
            if kind is Delete:
                yield life.epoch, "message.delete", serial, key
        elif kind is Create or kind is Update:
            yield life.epoch, "message.create" if kind is Create else "message.update", serial, key
        elif kind is Finish:
            message = life.now(key)
            if message is not None and message.status != "streaming":
                yield life.epoch, "message.finish", serial, key


def _place(life: Life) -> Place:
    return life.epoch, life.serial


def _position(value: bytes | None) -> Place | None:
    """A position as the store keeps it."""
    if value is None:
        return None
    epoch, _, serial = value.decode().rpartition(":")
    return epoch, int(serial)
