"""The faults of a cluster: of its nodes, its engines and the network between them.

Layer: chaos.

Each fault ends by itself. Moments, victims and lengths are drawn from the seed. Each sleep is a fault, or ends at a
drawn moment.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from proof.chaos.cluster import NODES, Node
from proof.chaos.cluster_stage import Stage
from proof.chaos.report import Failure
from proof.chaos.world import Scale
from proof.oracle.plans import Piece
from tenuto.hub.writer import PATIENCE_S
from tests.proxy import Direction

__all__ = ["BUS_FAULTS", "FAULTS", "Fault", "may_fail", "nodes_replaced"]

Fault = Callable[[Stage], Awaitable[None]]

INTERRUPTED_S = 12.0  # twice the time from the death of a node to the end of its answers: the machine may be busy
LASTING_INTERRUPTED_S = 30.0  # a viewer at a stopped node notices it after its silence, and may meet that node again
TERM_S = 4.0  # of a node's lease
SLOWEST = "ms until the slowest interruption"
RECONNECT_S = 2.0  # from the moment at which PostgreSQL serves again to the commit of each writer
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
        await database.link.stall("down")
    await asyncio.sleep(lags_s)
    begun_s = time.monotonic()
    await database.kill()
    await stage.kill_writers()
    world.note(f"PostgreSQL is dead; its standby lags by {lags_s:.1f} s")
    await asyncio.sleep(IN_FLIGHT_S)
    acknowledged = stage.remember()
    before = stage.expect_new_epochs(kept)
    await database.promote()
    await servers.point_to(database.primary.port)
    _serves_again(stage, begun_s)
    await stage.until_new_epochs(before)
    await stage.check_kept(kept, acknowledged)
    await stage.start_writers()
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
        await database.link.stall("down")  # commits wait
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


async def connections_cut(stage: Stage) -> None:
    """The connections of nodes to PostgreSQL are reset, again and again."""
    world = stage.world
    nodes = _some(stage)
    await stage.conversation.until_writing()
    for pause_s in [world.random.uniform(0.0, 1.5) for _ in range(3)]:
        for node in nodes:
            await node.network.cut()
        await asyncio.sleep(pause_s)


async def connections_stalled(stage: Stage) -> None:
    """The connections of nodes to PostgreSQL pass no bytes for a while, in one direction or both."""
    nodes, way, lasts_s = _some(stage), _way(stage), _lasts_s(stage)
    await stage.conversation.until_writing()
    for node in nodes:
        await node.network.stall(way)
    stage.world.note(f"{[node.name for node in nodes]} stall {way} for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    for node in nodes:
        await node.network.resume(way)


async def connections_swallowed(stage: Stage) -> None:
    """The connections of nodes to PostgreSQL lose all bytes for a while, in one direction or both, and then break."""
    nodes, way, lasts_s = _some(stage), _way(stage), _lasts_s(stage)
    await stage.conversation.until_writing()
    for node in nodes:
        await node.network.black_hole(way)
    stage.world.note(f"{[node.name for node in nodes]} lose all bytes {way} for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    for node in nodes:
        await node.network.cut()
        await node.network.resume()


def _some(stage: Stage) -> list[Node]:
    """Draw one node, or all."""
    running = stage.servers.running
    return running if stage.world.random.random() < 0.3 else [stage.world.random.choice(running)]


def _way(stage: Stage) -> Direction:
    ways: tuple[Direction, ...] = ("up", "down", "both")
    return stage.world.random.choice(ways)


def _lasts_s(stage: Stage) -> float:
    return stage.world.scale.stopped_s * stage.world.random.choice((0.1, 0.3, 0.6, 1.0))


# -- the bus ---------------------------------------------------------------------------------------------------


async def bus_killed(stage: Stage) -> None:
    """The bus is killed in mid-answer, and starts again."""
    bus = stage.servers.bus
    assert bus is not None
    pause_s = stage.world.random.choice((0.0, 1.0, 3.0))
    await stage.conversation.until_writing()
    await bus.kill()
    stage.world.note(f"the bus is killed for {pause_s:.1f} s")
    await asyncio.sleep(pause_s)
    await bus.start()


async def bus_flushed(stage: Stage) -> None:
    """The bus is flushed, and disconnects its subscribers."""
    bus = stage.servers.bus
    assert bus is not None
    await stage.conversation.until_writing()
    await bus.request("FLUSHALL")
    await bus.request("CLIENT KILL TYPE pubsub")


async def bus_stopped(stage: Stage) -> None:
    """SIGSTOP of the bus."""
    bus = stage.servers.bus
    assert bus is not None
    lasts_s = _lasts_s(stage)
    await stage.conversation.until_writing()
    bus.signal(signal.SIGSTOP)
    stage.world.note(f"the bus is stopped for {lasts_s:.1f} s")
    await asyncio.sleep(lasts_s)  # the fault itself
    bus.signal(signal.SIGCONT)


FAULTS: tuple[Fault, ...] = (
    node_killed, node_stopped, node_drained, nodes_replaced, node_added, database_killed, database_stopped,
    standby_promoted, synchronous_standby_promoted, connections_cut, connections_stalled, connections_swallowed,
)  # fmt: skip
BUS_FAULTS: tuple[Fault, ...] = (bus_killed, bus_flushed, bus_stopped)
LASTING_FAULTS: tuple[Fault, ...] = (database_stopped, connections_stalled, connections_swallowed)


def may_fail(fault: Fault, scale: Scale) -> bool:
    """Return whether agents of nodes may end answers as `failed`, with the reason `store_unavailable`.

    A writer in the hub's process waits ten seconds for its store, and then raises. Only these faults last as long, in a
    run of the full size. A remote agent waits thirty seconds, longer than each fault. After a crash, a drain or a
    failover an answer is interrupted or continued, and without a bus it is late: none of them ends it.
    """
    return fault in LASTING_FAULTS and scale.stopped_s >= PATIENCE_S
