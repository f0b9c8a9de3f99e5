"""Scenarios with remote agents, and users that ask them.

Layer: chaos.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine

from proof.chaos.app import Wanted
from proof.chaos.conversation import BACK_S, CHANNELS, GONE_S, VANISHED_S, Conversation
from proof.chaos.processes import Server
from proof.chaos.viewer import TRANSPORTS
from proof.chaos.world import Failure, World
from proof.oracle.plans import Piece

__all__ = ["agents"]

AGENTS = 2


async def agents(world: World) -> None:
    """Remote agents in mid-turn are killed, stopped, cut off, shut down and cancelled; also without agents, or a
    server."""
    world.counts_entries = False  # claims are entries, and agents join text as commits allow
    world.acknowledged.kind = "script"
    # An admin may take over streaming messages and reply to any command: half of the rules would not apply.
    server = world.adds(Server.of_app("server", world.folder, Wanted(str(world.store), has_admins=False)))
    await server.start()
    proxy = await world.proxy(calm_s=1.5)
    conversation = Conversation(world)
    for transport, is_far in (*TRANSPORTS[:5], ("sse", False)):
        name = f"{transport}{'-far' if is_far else ''}"
        conversation.watch(name, transport, CHANNELS[0], far=proxy.port if is_far else None)
    conversation.watch("ws-two", "ws", CHANNELS[1])
    try:
        conversation.begin()
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
    finally:
        await conversation.close()
    await _together(*(conversation.shut_down_agent(name) for name in list(conversation.agents)))
    await conversation.until_viewers_agree()
    await conversation.check()
    await world.finish()


async def _agent_killed(world: World, conversation: Conversation) -> None:
    """`kill -9` of an agent in mid-turn; another agent gets its turn, or a new one of its name."""
    question, id, piece = await conversation.until_writing()
    is_cancelled, has_namesake = world.random.random() < 0.3, world.random.random() < 0.4
    await conversation.kill_agent(piece.writer)
    shown = conversation.until_interrupted(id, piece.attempt, GONE_S)
    if has_namesake:
        # viewers must show the agent without interruption
        await _together(shown, conversation.start_agent(piece.writer))
    else:
        await _together(shown, conversation.until_gone(piece.writer, GONE_S))
    if is_cancelled:
        await conversation.until_replied(await conversation.cancel(question))


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


async def _agent_cut_off(world: World, conversation: Conversation) -> None:
    """The connection of an agent breaks in mid-turn and is restored, or becomes a black hole; the agent continues to
    write."""
    is_vanishing, pauses_s = world.random.random() < 0.5, [world.random.uniform(0.0, 1.0) for _ in range(2)]
    _, id, piece = await conversation.until_writing()
    proxy, known = conversation.proxies[piece.writer], conversation.departures(piece.writer)
    is_steady = conversation.is_steady(piece.writer)
    conversation.expect_attempts(conversation.unstarted() if is_steady else conversation.questions.open)
    if is_vanishing:
        await proxy.black_hole()
        world.note(f"{piece.writer} has no network")
        await _silence(world, conversation, id, piece)
        await proxy.resume()
        world.note(f"{piece.writer} has its network again")
    else:
        for pause_s in pauses_s[: 2 if is_steady else 1]:
            await proxy.cut()
            world.note(f"{piece.writer} is cut off")
            await asyncio.sleep(pause_s)  # a random moment of its reconnect
        await conversation.until_settled()
        if is_steady and conversation.departures(piece.writer) != known:
            raise Failure(f"a short break of a connection was shown as {piece.writer} leaving")
    await conversation.until_shown([piece.writer], BACK_S)


async def _silence(world: World, conversation: Conversation, id: str, piece: Piece) -> None:
    """Wait for the time of the fault, in which the server receives no request of an agent; a short one has no
    effect."""
    if world.scale.silent_s <= VANISHED_S:
        await asyncio.sleep(world.scale.silent_s)  # the fault itself
        return
    conversation.expect_attempts(conversation.questions.open)
    await _together(
        asyncio.sleep(world.scale.silent_s),  # the fault itself
        conversation.until_gone(piece.writer, VANISHED_S),
        conversation.until_interrupted(id, piece.attempt, VANISHED_S),
    )


async def _turn_cancelled(world: World, conversation: Conversation) -> None:
    """`cancel` from another device, twice with one id; sometimes the server is killed before the reply."""
    is_question, is_killed = world.random.random() < 0.5, world.random.random() < 0.5
    question, id, _ = await conversation.until_writing()
    sent = await conversation.cancel(question, target=question.id if is_question else id)
    if is_killed:
        world.note("the server is killed before the reply, or just after it")
        conversation.expect_attempts(conversation.unstarted())
        await world.server.kill()
        await world.server.start()
    await conversation.until_replied(sent)


async def _no_agent(world: World, conversation: Conversation) -> None:
    """No agent is left; a user asks, and cancels or waits, also across a restart of the server."""
    names = list(conversation.agents)
    for name in names:
        await conversation.kill_agent(name)
    await _together(*(conversation.until_gone(name, GONE_S) for name in names))
    question = await conversation.ask(world.random.choice(CHANNELS))
    if world.scale.alone_s > 5.0:
        await conversation.until_signalled(question)
    if world.random.random() < 0.5:
        await world.server.kill()
        await world.server.start()
        await conversation.check()
    if world.random.random() < 0.5:
        await conversation.until_replied(await conversation.cancel(question))
    for _ in range(AGENTS):
        await conversation.start_agent()


_TO_AGENTS = (
    _agent_shut_down,
    _turn_cancelled,
    _both_killed,
    _agent_cut_off,
    _no_agent,
    _agent_stopped,
    _server_killed,
    _agent_killed,
)


async def _together(*what: Coroutine[None, None, None] | Coroutine[None, None, str]) -> None:
    """Run all coroutines side by side. Raises the first Failure as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in what:
                group.create_task(one)
    except* Failure as failures:
        raise failures.exceptions[0] from None
