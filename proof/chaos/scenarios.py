"""Scenarios: one function for each kind of fault.

Layer: chaos.

A scenario receives an empty world, plays its rounds, and ends with `World.finish`, which checks all general rules. The
scenario itself checks the rules of its fault. Moments, places and victims are drawn from the seed. Each sleep is a
fault, or ends at a drawn moment; no sleep waits for an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

import proof.chaos.wrong_clock as wrong_clock
from proof.chaos.app import Wanted
from proof.chaos.cluster import cluster
from proof.chaos.conversation import BACK_S, CHANNELS, GONE_S, VANISHED_S, Conversation
from proof.chaos.finish import finish
from proof.chaos.processes import Child, Server, ask
from proof.chaos.report import Failure
from proof.chaos.viewer import TRANSPORTS
from proof.chaos.world import Scale, World
from proof.oracle.plans import AcknowledgedMessage, Piece
from tenuto import Hub
from tenuto.stores.sqlite.verify import verify

Scenario = Callable[[World], Awaitable[None]]

HOUR_S = 3600.0


# -- kill -9 ---------------------------------------------------------------------------------------------------


async def kill_server(world: World) -> None:
    """`kill -9` of the server in mid-stream, again and again on the same file, sometimes during its start."""
    server = await _serve(world)
    await _cast(world)
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


async def kill_producer(world: World) -> None:
    """`kill -9` of a producer in mid-answer; a successor continues its message, or only finishes it."""
    server = await _serve(world)
    proxy = await world.proxy(calm_s=2.0)
    await world.produce("steady", "one")
    await world.produce("mortal", "one")
    for transport, port in TRANSPORTS:
        world.view(f"{transport}{'-far' if port else ''}", transport, "one", port=proxy.port if port else None)
    first = 0
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        await world.until_written(world.random.randrange(1, 300))
        await asyncio.sleep(world.random.uniform(0.0, 0.03))  # somewhere within a request
        mortal = world.producers.pop("mortal")
        await mortal.kill()
        ids = [id for id in world.acknowledged.messages if id.startswith("mortal-")]
        first = max((int(id.rpartition("-")[2]) for id in ids), default=first)
        last = world.acknowledged.messages.get(f"mortal-{first}")
        is_both = world.random.random() < 0.2
        if is_both:  # kill both, as a failure of the whole machine would
            await server.kill()
            await server.start()
        ending = world.random.choice(("complete", "complete", "failed"))
        is_over = last is not None and last.is_over
        world.note(f"round {number}: mortal-{first} lost its producer at {last and last.lengths}; next: {ending}")
        await world.produce(
            "mortal", "one", first=first + is_over, takes_up=not is_over, ending="complete" if is_over else ending
        )
        await world.check_stored()
        world.count("kills")
    await world.finish()


# -- the disk --------------------------------------------------------------------------------------------------


async def disk_full(world: World) -> None:
    """The disk is full: writers are refused and may retry, readers continue; then the disk has room again."""
    mounted = _mount(world.folder / "small")
    if mounted is not None:
        world.store = mounted / "chaos.db"
        world.count("runs on a file system of their own")
    try:
        await _disk_full(world, mounted)
    except BaseException:
        if mounted is not None:
            shutil.copytree(mounted, world.folder / "kept", ignore=shutil.ignore_patterns("ballast"))
        raise
    finally:
        if mounted is not None:
            _unmount(mounted)


async def _disk_full(world: World, mounted: Path | None) -> None:
    server = await _serve(world)
    await _cast(world, calm_s=None)
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        is_limit = mounted is None or number % 2 == 0
        room = world.random.randrange(0, 64 * 1024)
        _fill(server, None if is_limit else mounted, room)
        world.note(f"round {number}: {room} bytes are left, by {'a limit' if is_limit else 'a full file system'}")
        known, goal = (
            len(world.acknowledged.refusals),
            world.acknowledged.characters + (1_000 if not is_limit else 10**9),
        )
        # The WAL keeps its room on a full file system, which may last long; a limit on file sizes acts at once.
        await world.until(
            lambda known=known, goal=goal: (  # type: ignore[misc]
                len(world.acknowledged.refusals) >= known + 3 or world.acknowledged.characters >= goal
            ),
            "three refusals by a full disk",
        )
        await world.check_stored()
        if world.random.random() < 0.5:
            await _kill_on_full_disk(world, server, is_limit=is_limit, room=room)
        _free(server, None if is_limit else mounted)
        if not server.is_running:
            await server.start()
        await world.until_each_writes()
        await world.check_stored()
        world.count("full disks")
    codes = {refusal["code"] for refusal in world.acknowledged.refusals}
    if codes != {"store_unavailable"}:
        raise Failure(f"writers were refused with {codes}")
    await world.finish()


async def _kill_on_full_disk(world: World, server: Server, *, is_limit: bool, room: int) -> None:
    """Kill the server and start it while the disk is full: it serves, or says in one line why it does not."""
    await server.kill()
    before = len(server.log)
    await server.spawn()
    if is_limit:
        _fill(server, None, room)  # set before the process opens the file
    try:
        await server.serves()
        await world.check_stored()
        world.count("starts on a full disk that served")
    except AssertionError:
        if server.is_running or "Error: " not in server.log[before:]:
            raise
        world.count("starts on a full disk that refused")
    world.note(f"killed and started while full: {'serves' if server.is_running else 'refuses'}")


def _fill(server: Server, mounted: Path | None, room: int) -> None:
    """Leave `room` bytes free, by a limit on file sizes or by filling the file system."""
    if mounted is None:
        # The limit applies to each file of the store. The database file may be larger, since the server writes to the
        # WAL, from the WAL's beginning. The index of the WAL needs 32 KiB.
        limit = 40 * 1024 + room
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return
    with (mounted / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        free = os.statvfs(mounted)  # other processes may take some of it; the disk is full in any case
        ballast.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))


def _free(server: Server, mounted: Path | None) -> None:
    if mounted is not None:
        (mounted / "ballast").unlink()
    elif server.is_running:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _mount(place: Path) -> Path | None:
    """Mount a small file system, if the machine allows it; otherwise the limit on file sizes is used."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tenuto-chaos", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    return place if done else None


def _unmount(mounted: Path) -> None:
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


# -- locks -----------------------------------------------------------------------------------------------------


async def locked_store(world: World) -> None:
    """Another program locks the database; a second server waits for the file, and gets it when the first one dies."""
    wanted = Wanted(str(world.store), busy_s=0.4, lock_wait_s=0.2)
    first = world.adds(Server.of_app("first", world.folder, wanted))
    await first.start()
    proxy = await world.proxy()
    await world.produce("a", "one", port=proxy.port)
    await world.produce("b", "two", port=proxy.port)
    for transport, _ in TRANSPORTS[:4]:
        world.view(transport, transport, "one", port=proxy.port)
    world.view("ws-two", "ws", "two", port=proxy.port)
    lazy = Wanted(**{**vars(wanted), "is_lazy": True})
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        third = world.adds(Server.plain(f"third-{number}", world.folder, world.store), serves=False)
        await third.spawn()  # the third server waits a few seconds for the file
        for kind in ("write", "read"):
            await _lock(world, kind)
        second = world.adds(Server.of_app(f"heir-{number}", world.folder, lazy), serves=False)
        await second.spawn()
        await second.serves()  # it responds to requests although it does not have the file
        await _check_in_use(second, third)
        await world.server.kill()
        world.adds(second)
        await proxy.do("point_to", second.port)
        await world.until_each_writes()
        await world.check_stored()
        world.note(f"round {number}: {second.name} has the file now")
        world.count("successions")
    await world.finish()


async def _lock(world: World, kind: str) -> None:
    """Lock the database for a while, for writing or for reading, as another program does."""
    with contextlib.closing(sqlite3.connect(world.store, isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA busy_timeout = 20000")  # the server commits meanwhile
        await asyncio.to_thread(db.execute, "BEGIN IMMEDIATE" if kind == "write" else "BEGIN")
        db.execute("SELECT count(*) FROM log").fetchone()
        known = len(world.acknowledged.refusals)
        if kind == "write":
            await world.until(
                lambda: len(world.acknowledged.refusals) >= known + 2, "two refusals by a locked database"
            )
            await world.check_stored()  # reads must work while the database is locked
            wrong = [one for one in world.acknowledged.refusals[known:] if one["code"] != "store_unavailable"]
            if wrong:
                raise Failure(f"a locked store was reported as {wrong[0]}")
        await asyncio.sleep(world.scale.locked_s)  # the fault itself
        if kind == "read":
            await world.until_each_writes()  # a foreign reader does not delay writers
            if len(world.acknowledged.refusals) > known:
                raise Failure(f"a foreign reader delayed writers: {world.acknowledged.refusals[known]}")
    await world.until_each_writes()
    world.note(f"the database was locked for {kind}")
    world.count(f"locks for {kind}")


async def _check_in_use(mounted: Server, served: Server) -> None:
    """Check that a second server on the file refuses: a mounted hub with 503, `serve` with a message and its exit
    status."""
    status, response = await mounted.get("/v1/channels/one")
    if status != 503 or response["code"] != "store_in_use":
        raise Failure(f"a second server on the file responded {status} {response}")
    code = await served.ended()
    if code != 1 or "is in use by process" not in served.log:
        raise Failure(f"a second `serve` on the file ended with {code}:\n{served.log}")


# -- the network -----------------------------------------------------------------------------------------------


async def network(world: World) -> None:
    """A bad network between all parties: resets, stalls, low rates, black holes, refused connections."""
    await _serve(world)
    for name, channel in (("a", "one"), ("b", "one"), ("c", "two")):
        proxy = await world.proxy(calm_s=1.0)
        await world.produce(name, channel, port=proxy.port, timeout_s=1.0)
    for channel in ("one", "two"):
        for transport, _ in TRANSPORTS[:4]:
            proxy = await world.proxy(calm_s=0.6)
            world.view(f"{transport}-{channel}", transport, channel, port=proxy.port, silence_s=1.5, flush_ms=0)
    for number in range(world.scale.rounds):
        await asyncio.sleep(world.scale.faults_s)  # the fault itself
        await world.check_stored()
        world.note(f"round {number}: {world.acknowledged.characters} characters were acknowledged")
        await world.random.choice(world.viewers).reload()
    for fault, count in world.fault_model().items():
        world.count(fault, count)
    await world.finish()


# -- the clock -------------------------------------------------------------------------------------------------


async def clock_set_back(world: World) -> None:
    """The server's wall clock is set back an hour in mid-stream and across a restart, and forward again."""
    offset = world.folder / "clock"
    wrong_clock.set_offset(offset, 0.0)
    by = ["-P", wrong_clock.__file__, str(offset)]
    server = world.adds(Server.plain("server", world.folder, world.store, by=by))
    await server.start()
    world.counts_entries = False  # the scenario writes other messages, too
    await _cast(world, calm_s=None, has_proxy=False)
    hours = 0
    ids: list[str] = []
    await _must(world, "POST", f"{_OTHERS.replace('others', 'scrap')}", _streaming("scrapped"), status=201)
    await _must(world, "DELETE", "/v1/channels/scrap")
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        marker, doomed = f"marker-{world.seed}-{number}-", f"doomed-{number}"
        await _write_side_by_side(world, marker, doomed, f"lasting-{number}")
        ids += [await _created(world) for _ in range(3)]
        hours += world.random.choice((-1, -1, -1, 1)) if number else -1
        wrong_clock.set_offset(offset, hours * HOUR_S)
        world.note(f"round {number}: the clock is {hours} hours ahead")
        await world.until_each_writes()
        await _must(world, "DELETE", f"{_OTHERS}/{doomed}")
        ids += [await _created(world) for _ in range(3)]
        if ids != sorted(ids):
            raise Failure(f"ids of one process do not sort: {ids}")
        await world.check_stored()
        if world.scale.waits_for_deleted_text:
            await _until_gone(world, marker)
        if number % 2:
            await server.kill()
            hours -= 1
            wrong_clock.set_offset(offset, hours * HOUR_S)
            await server.start()
            await world.check_stored()
            ids = []  # the next process sorts its ids by its own clock
            world.count("restarts an hour before")
        for base, id in ((_OTHERS, doomed), (_OTHERS.replace("others", "scrap"), "scrapped")):
            await _must(world, "GET", f"{base}/{id}", status=410)
            await _must(world, "POST", base, {"id": id, "text": "again"}, status=410)
        await _check_order(world)
        world.count("times the clock was set")
    await world.finish()


_OTHERS = "/v1/channels/others/messages"


def _streaming(id: str) -> dict[str, object]:
    return {"id": id, "role": "assistant", "status": "streaming", "parts": [{"type": "text", "text": ""}]}


async def _write_side_by_side(world: World, marker: str, doomed: str, lasting: str) -> None:
    """Write two messages whose text goes into the same commits, so that rows of the file hold text of both."""
    for id in (doomed, lasting):
        await _must(world, "POST", _OTHERS, _streaming(id), status=201)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            for id in (doomed, lasting):
                group.create_task(
                    _must(world, "POST", f"{_OTHERS}/{id}/append", {"text": marker if id == doomed else "-"})
                )


async def _created(world: World) -> str:
    response = await _must(world, "POST", _OTHERS, {"text": "x"}, status=201)
    id: str = response["message"]["id"]
    return id


async def _must(
    world: World, method: str, path: str, body: object | None = None, *, status: int = 0
) -> dict[str, dict[str, str]]:
    """Send a request. Raises Failure unless it succeeds, or gets `status` if that is given."""
    got, response = await ask(world.server.port, method, path, body)
    if got != status and (status or got >= 300):
        raise Failure(f"{method} {path} got status {got}: {response}")
    return response if isinstance(response, dict) else {}


async def _check_order(world: World) -> None:
    """Check that messages have the order in which they were created, for any setting of the clock."""
    written = list(world.acknowledged.of("two"))  # the texts of one producer
    stored = [id for id in reversed(await world.stored("two")) if id in written]
    expected = [id for id in written if id in stored]
    if stored != expected:
        raise Failure(f"the messages have the order {stored}, they were created as {expected}")


async def _until_gone(world: World, text: str) -> None:
    """Wait until deleted text is gone from the disk, at most a minute by the real clock."""
    begun_s = asyncio.get_running_loop().time()
    files = [path for path in world.folder.iterdir() if path.is_file() and path.name.startswith(world.store.name)]
    while any(text.encode() in path.read_bytes() for path in files if path.exists()):
        spent_s = asyncio.get_running_loop().time() - begun_s
        if spent_s > 75.0:  # a minute, plus the interval of housekeeping and a margin
            raise Failure(f"deleted text is still in the file after {spent_s:.0f} s")
        world.check()
        await asyncio.sleep(0.5)  # poll, because no event reports that the text is gone
    spent_s = asyncio.get_running_loop().time() - begun_s
    world.note(f"deleted text was gone after {spent_s:.0f} s")
    world.count("deleted texts that left the file")


# -- the parties ---------------------------------------------------------------------------------------------------


async def _serve(world: World) -> Server:
    """Start the server of a run."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    return server


async def _cast(world: World, *, calm_s: float | None = 1.5, has_proxy: bool = True) -> None:
    """Start three producers on two channels, and viewers of all kinds, half of them behind a proxy with faults."""
    far = (await world.proxy(calm_s=calm_s)).port if has_proxy else None
    writers_far = (await world.proxy(calm_s=calm_s)).port if has_proxy else None
    await world.produce("a", "one")
    await world.produce("b", "one", port=writers_far)
    await world.produce("c", "two")
    for transport, is_far in TRANSPORTS:
        world.view(f"{transport}{'-far' if is_far else ''}", transport, "one", port=far if is_far else None)
    world.view("sse-two", "sse", "two", flush_ms=0)
    world.view("ws-two", "ws", "two", port=far, flush_ms=0)


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
        await proxy.do("black_hole")
        world.note(f"{piece.writer} has no network")
        await _silence(world, conversation, id, piece)
        await proxy.do("resume")
        world.note(f"{piece.writer} has its network again")
    else:
        for pause_s in pauses_s[: 2 if is_steady else 1]:
            await proxy.do("cut")
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


BALLAST = 40  # messages that make a copy last long enough to be killed
BALLAST_CHARACTERS = 200_000
MB_PER_S = (20, 200)  # the copy of 8 MB takes from 0.04 to 0.4 s
START_S = 0.5  # about the time until the command has reached the server
COMMAND_S = 60.0
PAGE = 200

Json = dict[str, Any]


async def backups(world: World) -> None:
    """Backups during load, and `kill -9` of the server or the command; each backup is whole and has all stored text."""
    server = await _serve(world)
    for n in range(BALLAST):
        status, response = await ask(
            server.port, "POST", "/v1/channels/ballast/messages", {"text": f"{n:05}" * (BALLAST_CHARACTERS // 5)}
        )
        if status != 201:
            raise Failure(f"a message of ballast got status {status}: {response}")
    await world.produce("a", "one")
    await world.produce("b", "two")
    for transport in ("sse", "ws", "poll"):
        world.view(transport, transport, "one")
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        victim = world.random.choice(("server", "server", "server", "command", "command", None))
        await _round(world, server, world.folder / f"{number}.backup", victim)
        world.count(f"kills of the {victim}" if victim is not None else "backups without a kill")
        if not server.is_running:
            await server.start()
        await world.check_stored()
    await world.finish()


async def _round(world: World, server: Server, target: Path, victim: str | None) -> None:
    """Make a backup, kill `victim` meanwhile, and check the file under the final name, if there is one."""
    written = {id: replace(one) for id, one in world.acknowledged.messages.items()}
    speed = world.random.uniform(*MB_PER_S)
    arguments = ["-m", "tenuto", "backup", str(target), "--mb-per-s", str(speed)]
    command = Child(target.name, [*arguments, "--store", f"sqlite:///{world.store}"], world.folder / "backup.log")
    await command.spawn()
    try:
        if victim is not None:
            await _reach_moment(world, command, target, speed)
            struck = server if victim == "server" else command
            await struck.kill()
            world.note(f"{victim} was killed while {target.name} was {_stage(target)}")
            world.count(f"files that were {_stage(target)} at a kill")
        code = await command.ended(COMMAND_S)
    finally:
        await command.clean_up()
    stage = _stage(target)
    if code == 0 and stage != "whole":
        raise Failure(f"the command reported {target.name}, and there is no such file")
    if code and victim is None:
        raise Failure(f"the command ended with {code}:\n{command.log[-2_000:]}")
    if victim == "command":  # the server may still be at work for a moment
        partial = target.with_name(f"{target.name}.partial")
        await world.until(lambda: not partial.exists(), f"{partial} to be renamed or removed")
    if _stage(target) == "whole":
        await _check(world, target, written)
        world.count("whole backups")
    for path in world.folder.glob(f"{target.name}*"):
        path.unlink()


async def _reach_moment(world: World, command: Child, target: Path, speed: float) -> None:
    """Wait until a random moment of the command, in most rounds while the file is copied, checked or renamed."""
    if world.random.random() < 0.25:
        await asyncio.sleep(world.random.uniform(0.0, START_S))
        return
    partial = target.with_name(f"{target.name}.partial")
    await world.until(lambda: partial.exists() or target.exists() or not command.is_running, f"{partial} to begin")
    copy_s = BALLAST * BALLAST_CHARACTERS / 1e6 / speed
    await asyncio.sleep(world.random.uniform(0.0, 1.3 * copy_s + 0.05))


def _stage(target: Path) -> str:
    if target.exists():
        return "whole"
    return "unfinished" if target.with_name(f"{target.name}.partial").exists() else "absent"


async def _check(world: World, target: Path, written: dict[str, AcknowledgedMessage]) -> None:
    """Check that a backup is whole, and holds what was acknowledged before it began and what was sent by now."""
    if damage := list(verify(target)):
        raise Failure(f"{target} is damaged: {damage[:3]}")
    with contextlib.closing(sqlite3.connect(target)) as db:
        (journal,) = db.execute("PRAGMA journal_mode").fetchone()
    if journal != "delete" or os.stat(target).st_mode & 0o077:
        raise Failure(f"{target} has the journal mode {journal} and the mode {os.stat(target).st_mode:o}")
    copy = world.folder / "opened.db"
    shutil.copyfile(target, copy)
    hub = Hub(f"sqlite:///{copy}")
    await hub.start()
    try:
        for channel in ("one", "two"):
            stored = await _messages(hub, channel)
            for id, one in world.acknowledged.of(channel).items():
                before, message = written.get(id), stored.get(id)
                wrong = before.wrong(message) if before is not None else None
                if message is not None and wrong is None:  # a running answer is a prefix, a finished one is equal
                    wrong = one.plan.wrong(message.get("parts", []), is_whole=message["status"] == "complete")
                if wrong is not None:
                    raise Failure(f"in {target}: {wrong}")
        world.count("compared messages", len(written))
        ballast = await _messages(hub, "ballast")
        if len(ballast) != BALLAST or any(
            len(one["parts"][0]["text"]) != BALLAST_CHARACTERS for one in ballast.values()
        ):
            raise Failure(f"{target} has {len(ballast)} messages of ballast")
    finally:
        await hub.close()
        for path in world.folder.glob("opened.db*"):
            path.unlink()


async def _messages(hub: Hub, channel: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    before = None
    while True:
        page = await hub.history(channel, before=before, limit=PAGE)
        for message in page.messages:
            found[message.id] = msgspec.to_builtins(message)
            before = message.created
        if not page.more:
            return found


SCENARIOS: dict[str, Scenario] = {
    "kill": kill_server,
    "producer": kill_producer,
    "disk": disk_full,
    "lock": locked_store,
    "network": network,
    "clock": clock_set_back,
    "agents": agents,
    "backup": backups,
    "cluster": cluster,
    "finish": finish,
}

ROUNDS = {
    "kill": 100, "producer": 30, "disk": 10, "lock": 4, "network": 6, "clock": 3, "agents": 12,
    "backup": 40, "cluster": 100, "finish": 100,
}  # fmt: skip
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
