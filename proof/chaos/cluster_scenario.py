"""The scenario with several nodes on one PostgreSQL behind nginx.

Layer: chaos.

`cluster_faults` injects the faults, `cluster_stage` checks the cluster after each fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from proof.chaos.cluster import Cluster
from proof.chaos.cluster_faults import BUS_FAULTS, FAULTS, Fault, may_fail, nodes_replaced
from proof.chaos.cluster_stage import Stage
from proof.chaos.conversation import Conversation
from proof.chaos.people import Person
from proof.chaos.viewer import Transport
from proof.chaos.world import World

__all__ = ["cluster"]

AGENTS = 2  # remote ones
PER_S = 30.0  # steps per second of each writer
MOVES_S = 6.0  # longest time of a viewer at one node
SILENCE_S = 3.0
TRANSPORTS: tuple[Transport, ...] = ("ws", "sse", "poll", "eventsource")
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
    for person in stage.people:
        world.viewers.remove(person)
        await person.stop()
    await conversation.check()
    await world.finish()


async def _begin(world: World) -> Stage:
    """Start all parties."""
    world.counts_entries = False  # claims and renewals are entries, and agents join text as commits allow
    world.scale = replace(world.scale, per_second=PER_S)
    answers = world.scale.answers
    talks = [f"talk:{number}" for number in range(answers * 2 // 3)]
    texts = [f"text:{number}" for number in range(max(1, answers // 6))]
    writers = {f"writer{number}": texts[number % len(texts)] for number in range(answers - len(talks))}
    world.acknowledged.kinds = dict.fromkeys(talks, "script")
    conversation = Conversation(world, channels=talks, asks_users=False)
    servers = Cluster(world, conversation, has_bus=world.random.random() < 0.6)
    world.adds(servers)
    await servers.open()
    world.note(f"{len(servers.running)} nodes serve, with {'a' if servers.bus is not None else 'no'} bus")
    stage = Stage(world, servers, conversation, writers)
    for name, channel in writers.items():
        await world.produce(name, channel)
    flushes = FLUSH_MS if world.scale.viewers <= MANY else MANY_FLUSH_MS
    for number in range(world.scale.viewers):
        transport, channel = TRANSPORTS[number % len(TRANSPORTS)], stage.channels[number % len(stage.channels)]
        name, flush_ms = f"{transport}-{number}", world.random.choice(flushes)
        options: dict[str, Any] = {"moves_s": MOVES_S, "silence_s": SILENCE_S, "flush_ms": flush_ms}
        if channel in talks:
            conversation.watch(name, transport, channel, **options)
        else:
            world.view(name, transport, channel, **options)
    for name in ("ann", "ben"):
        person = conversation.watch(name, "ws", talks[0], by=Person, moves_s=MOVES_S, silence_s=SILENCE_S, client=name)
        assert isinstance(person, Person)
        stage.people.append(person)
    for _ in range(AGENTS):
        await conversation.start_agent()
    return stage


async def _ask_later(ask: Callable[[str], Awaitable[None]], channel: str, later_s: float) -> None:
    await asyncio.sleep(later_s)  # a drawn moment
    await ask(channel)
