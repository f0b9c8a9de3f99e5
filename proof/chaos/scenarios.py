"""Scenarios: one function for each kind of fault.

Layer: chaos.

A scenario receives an empty world, plays its rounds, and ends with `World.finish`, which checks all general rules. The
scenario itself checks the rules of its fault. Moments, places and victims are drawn from the seed. Each sleep is a
fault, or ends at a drawn moment; no sleep waits for an event.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine

from proof.chaos.cluster import cluster
from proof.chaos.conversation import BACK_S, CHANNELS, GONE_S, VANISHED_S, Conversation
from proof.chaos.finish import finish
from proof.chaos.processes import Failure, Server
from proof.chaos.viewer import TRANSPORTS
from proof.chaos.world import Scale, World
from proof.oracle.plans import Piece

Scenario = Callable[[World], Awaitable[None]]


async def kill_server(world: World) -> None:
    """`kill -9` of the server in mid-stream, again and again on the same file, sometimes during its start."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    for name, channel in (("a", "one"), ("b", "one"), ("c", "two")):
        await world.produce(name, channel)
    for transport in TRANSPORTS:
        world.view(transport, transport, "one")
    for transport in TRANSPORTS[:2]:
        world.view(f"{transport}-two", transport, "two", flush_ms=0)
    for number in range(world.scale.rounds):
        await world.until_written(world.random.randrange(1, 400))
        await asyncio.sleep(world.random.uniform(0.0, 0.03))  # somewhere within a commit
        await server.kill()
        world.note(f"round {number}: killed at {world.acknowledged.characters} characters")
        while world.random.random() < 0.2:
            await server.spawn()
            await asyncio.sleep(world.random.uniform(0.0, 0.4))  # a random moment of its start
            await server.kill()
            world.note("killed during its start")
            world.count("kills during a start")
        await server.start()
        await world.check_stored()
        world.count("kills")
        if world.random.random() < 0.3:
            await world.random.choice(world.viewers).reload()
            world.count("reloads")
    await world.finish()


AGENTS = 2


async def agents(world: World) -> None:
    """Remote agents in mid-turn, and their server, are killed, stopped and shut down."""
    world.counts_entries = False  # claims are entries, and agents join text as commits allow
    # An admin may take over streaming messages and reply to any command: half of the rules would not apply.
    server = world.adds(Server.of_app("server", world.folder, world.store, f"sqlite:///{world.store}"))
    await server.start()
    conversation = Conversation(world)
    for transport in TRANSPORTS:
        conversation.watch(transport, transport, CHANNELS[0])
    conversation.watch("ws-two", "ws", CHANNELS[1])
    deck: list[Callable[[World, Conversation], Awaitable[None]]] = []
    for number in range(world.scale.rounds):
        while len(conversation.agents) < AGENTS:
            await conversation.start_agent()
        deck = deck or world.random.sample(_TO_AGENTS, len(_TO_AGENTS))
        strike = deck.pop()
        world.note(f"round {number}: {strike.__doc__}")
        for channel in (*CHANNELS, world.random.choice(CHANNELS)):
            await conversation.ask(channel)
        await strike(world, conversation)
        await conversation.until_settled()
        await conversation.until_viewers_agree()
        world.count(strike.__name__.strip("_").replace("_", " "))
    await _together(*(conversation.shut_down_agent(name) for name in list(conversation.agents)))
    await conversation.until_viewers_agree()
    await conversation.check()
    await world.finish()


async def _agent_killed(world: World, conversation: Conversation) -> None:
    """`kill -9` of an agent in mid-turn; another agent gets its turn, or a new one of its name."""
    _, id, piece = await conversation.until_writing()
    has_namesake = world.random.random() < 0.4
    await conversation.kill_agent(piece.writer)
    shown = conversation.until_interrupted(id, piece.attempt, GONE_S)
    if has_namesake:
        # viewers must show the agent without interruption
        await _together(shown, conversation.start_agent(piece.writer))
    else:
        await _together(shown, conversation.until_gone(piece.writer, GONE_S))


async def _server_killed(world: World, conversation: Conversation) -> None:
    """`kill -9` of the server in mid-turn: the agents continue their turns."""
    await conversation.until_writing()
    conversation.expect_attempts(conversation.unstarted())
    await world.server.kill()
    await asyncio.sleep(world.random.uniform(0.0, 0.5))  # the time that a supervisor may take to start the server again
    await world.server.start()
    await conversation.check()
    await conversation.until_shown(conversation.agents, BACK_S)


async def _both_killed(world: World, conversation: Conversation) -> None:
    """`kill -9` of the server and of an agent in mid-turn: only the lease of the turn ends it."""
    _, _, piece = await conversation.until_writing()
    conversation.expect_attempts(conversation.unstarted())
    await world.server.kill()
    await conversation.kill_agent(piece.writer)
    await world.server.start()
    await conversation.check()
    await conversation.until_shown(conversation.agents, BACK_S)


async def _agent_shut_down(world: World, conversation: Conversation) -> None:
    """SIGTERM of an agent in mid-turn: it finishes its response, or leaves it to another agent."""
    _, id, piece = await conversation.until_writing()
    if conversation.is_lasting(piece.writer):
        await conversation.shut_down_agent(piece.writer)
    else:
        await _together(
            conversation.shut_down_agent(piece.writer), conversation.until_interrupted(id, piece.attempt, 2 * GONE_S)
        )


async def _agent_stopped(world: World, conversation: Conversation) -> None:
    """SIGSTOP of an agent in mid-turn, longer than its lease; another agent gets the turn, then the first one
    continues."""
    _, id, piece = await conversation.until_writing()
    agent = conversation.agents[piece.writer]
    agent.signal(signal.SIGSTOP)
    world.note(f"{piece.writer} is stopped")
    await _silence(world, conversation, id, piece)
    agent.signal(signal.SIGCONT)
    world.note(f"{piece.writer} continues")
    await conversation.until_shown([piece.writer], BACK_S)


async def _silence(world: World, conversation: Conversation, id: str, piece: Piece) -> None:
    """Wait for the time of the fault, in which the server receives no request of an agent; a short one has no
    effect."""
    if world.scale.is_small:
        await asyncio.sleep(world.scale.silent_s)  # the fault itself
        return
    conversation.expect_attempts(conversation.questions.open)
    await _together(
        asyncio.sleep(world.scale.silent_s),  # the fault itself
        conversation.until_gone(piece.writer, VANISHED_S),
        conversation.until_interrupted(id, piece.attempt, VANISHED_S),
    )


_TO_AGENTS = (_agent_shut_down, _both_killed, _agent_stopped, _server_killed, _agent_killed)


async def _together(*what: Coroutine[None, None, None] | Coroutine[None, None, str]) -> None:
    """Run all coroutines side by side. Raises the first Failure as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in what:
                group.create_task(one)
    except* Failure as failures:
        raise failures.exceptions[0] from None


SCENARIOS: dict[str, Scenario] = {"kill": kill_server, "agents": agents, "cluster": cluster, "finish": finish}

ROUNDS = {"kill": 100, "agents": 10, "cluster": 100, "finish": 500}
"""The usual number of rounds of each scenario."""

LIMIT_S = 120.0  # longest run; each round has a limit of its own
ROUND_LIMIT_S = 120.0  # each wait has its own, shorter limit


async def run(name: str, seed: int, scale: Scale, *, write_line: Callable[[str], None] | None = None) -> dict[str, int]:
    """Play the scenario; return its figures. Raises Failure, whose `account` describes the run; `write_line` receives
    events."""
    async with World(name, seed, scale, write_line=write_line) as world:
        limit_s = LIMIT_S + scale.rounds * ROUND_LIMIT_S
        async with asyncio.timeout(limit_s):
            await SCENARIOS[name](world)
    return world.figures
