"""What goes wrong, and when: one function per kind of fault.

Layer: chaos.

Each gets a world that is empty, plays its rounds, and ends with `World.finish`, which
checks what must hold whatever happened. What is special to a fault is checked here. Drawn from the run's seed: moments,
places, and who is hit. Pauses are the faults themselves, or moments drawn; nothing sleeps to wait for something.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from chaos import wrong_clock
from chaos.app import Wanted
from chaos.conversation import BACK_S, CHANNELS, GONE_S, VANISHED_S, Conversation
from chaos.processes import Child, Server, ask
from chaos.script import Piece
from chaos.viewer import Transport
from chaos.world import Failure, World

__all__ = ["SCENARIOS", "Scenario"]

Scenario = Callable[[World], Awaitable[None]]

HOUR_S = 3600.0


# -- kill -9 ---------------------------------------------------------------------------------------------------


async def kill_server(world: World) -> None:
    """`kill -9` of the server in mid-stream, again and again on the same file; now and then while it starts."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    await _cast(world)
    for number in range(world.scale.rounds):
        await world.until_written(world.random.randrange(1, 400))
        await asyncio.sleep(world.random.uniform(0.0, 0.03))  # somewhere within a commit
        await server.kill()
        world.note(f"round {number}: killed at {world.truth.characters} characters")
        while world.random.random() < 0.2:
            await server.spawn()
            await asyncio.sleep(world.random.uniform(0.0, 0.4))  # somewhere within its start
            await server.kill()
            world.note("killed while it started")
            world.count("kills while starting")
        await server.start()
        await world.check_stored()
        world.count("kills")
        if world.random.random() < 0.3:
            await world.random.choice(world.viewers).reload()
            world.count("reloads")
    await world.finish()


async def kill_producer(world: World) -> None:
    """`kill -9` of a producer in mid-answer; another one takes up what it left, or only finishes it."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    proxy = await world.proxy(calm_s=2.0)
    await world.produce("steady", "one")
    await world.produce("mortal", "one")
    for transport, port in _SOME_OF_EACH:
        world.view(f"{transport}{'-far' if port else ''}", transport, "one", port=proxy.port if port else None)
    first = 0
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        await world.until_written(world.random.randrange(1, 300))
        await asyncio.sleep(world.random.uniform(0.0, 0.03))  # somewhere within a request
        mortal = world.producers.pop("mortal")
        await mortal.kill()
        ids = [id for id in world.truth.written if id.startswith("mortal-")]
        first = max((int(id.rpartition("-")[2]) for id in ids), default=first)
        last = world.truth.written.get(f"mortal-{first}")
        is_both = world.random.random() < 0.2
        if is_both:  # the whole machine, so to speak
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


async def kill_agent(world: World) -> None:
    """Writers in the server's own process die with it: their messages are `interrupted` before anyone is served."""
    world.counts_entries = False  # they join what gathers as commits allow
    wanted = Wanted(str(world.store), str(world.folder / "acks"), world.seed, world.scale.steps)
    server = world.adds(Server.of_app("server", world.folder, wanted))
    await server.start()
    proxy = await world.proxy(calm_s=1.5)
    for transport, port in _SOME_OF_EACH:
        world.view(f"{transport}{'-far' if port else ''}", transport, "one", port=proxy.port if port else None)
    for number in range(world.scale.rounds):
        ids = [f"agent-{number}-{which}" for which in range(3)]
        for id in ids:
            world.truth.begins(id, "one")
            body = {"id": id, "channel": "one", "per_second": world.scale.per_second}
            status, answer = await ask(server.port, "POST", "/write", body)
            if status != 202:
                raise Failure(f"the app did not begin {id}: {answer}")
        viewer, goal = world.random.choice(world.viewers), world.random.randrange(1, 600)
        await world.until(
            lambda viewer=viewer, goal=goal, ids=ids: (  # type: ignore[misc]
                sum(sum(viewer.shown.lengths.get(id, ())) for id in ids) >= goal
            ),
            f"{goal} characters to be shown to {viewer.name}",
        )
        await server.kill()
        _read_acks(world, Path(wanted.acks))
        await server.start()
        await world.check_stored()
        stored = await world.stored("one")
        for id in ids:
            message, written = stored.get(id), world.truth.written[id]
            if message is None:
                continue  # its creation was not stored when the end came; what was shown is checked already
            if message["status"] not in ("interrupted", "complete"):
                raise Failure(f"{id} is {message['status']} after its writer's process was killed")
            written.status, written.is_over = message["status"], True
            if message["status"] == "interrupted":
                written.lengths = [len(part["text"]) for part in message.get("parts", []) if "text" in part] or [0]
            world.count(message["status"])
        for viewer in world.viewers:  # nobody looks at an answer that seems to go on
            await world.until(
                lambda viewer=viewer, ids=ids, stored=stored: all(  # type: ignore[misc]
                    viewer.checker.status(id) == stored[id]["status"] for id in ids if id in stored
                ),
                f"{viewer.name} to show that the answers were interrupted",
                timeout_s=10.0,
            )
        world.note(f"round {number}: {[stored.get(id, {}).get('status') for id in ids]}")
        world.count("kills")
    for id in [id for id in world.truth.written if id not in stored]:
        del world.truth.written[id]
    await world.finish()


def _read_acks(world: World, acks: Path) -> None:
    for line in acks.read_text().splitlines():
        told = json.loads(line)
        written = world.truth.written[told["id"]]
        if written.is_over:
            continue
        lengths = written.lengths
        written.lengths = [max(one, other) for one, other in zip(lengths, told["lengths"], strict=True)]
        written.status = told.get("status", "streaming" if written.status is None else written.status)


# -- the disk --------------------------------------------------------------------------------------------------


async def disk_full(world: World) -> None:
    """No more room for the file: writers are told to come back, readers read on; then there is room again."""
    mounted = _mount(world.folder / "small")
    if mounted is not None:
        world.store = mounted / "chaos.db"
        world.count("on a file system of its own")
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
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    await _cast(world, calm_s=None)
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        is_limit = mounted is None or number % 2 == 0
        room = world.random.randrange(0, 64 * 1024)
        _fill(server, None if is_limit else mounted, room)
        world.note(f"round {number}: {room} bytes are left, by {'a limit' if is_limit else 'a full file system'}")
        known, goal = len(world.truth.refusals), world.truth.characters + (1_000 if not is_limit else 10**9)
        # On a full file system the WAL has the room that it had, which may do for long; beyond a limit nothing does.
        await world.until(
            lambda known=known, goal=goal: (  # type: ignore[misc]
                len(world.truth.refusals) >= known + 3 or world.truth.characters >= goal
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
    codes = {refusal["code"] for refusal in world.truth.refusals}
    if codes != {"store_unavailable"}:
        raise Failure(f"writers were refused with {codes}")
    await world.finish()


async def _kill_on_full_disk(world: World, server: Server, *, is_limit: bool, room: int) -> None:
    """Kill, and start while it is still full: it serves, or says in one line why it does not."""
    await server.kill()
    before = len(server.log)
    await server.spawn()
    if is_limit:
        _fill(server, None, room)  # long before it has imported what opens the file
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
    """Leave `room` bytes: by a limit on the size of files, or by filling the file system."""
    if mounted is None:
        # Not beside the size of a file, since the WAL is begun again and again from its start. Its index has 32 KiB.
        limit = 40 * 1024 + room
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return
    with (mounted / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        free = os.statvfs(mounted)  # others take some of it meanwhile: then it is full all the same
        ballast.write(bytes(max(0, free.f_bavail * free.f_frsize - room)))


def _free(server: Server, mounted: Path | None) -> None:
    if mounted is not None:
        (mounted / "ballast").unlink()
    elif server.is_running:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _mount(place: Path) -> Path | None:
    """A small file system of its own, where that may be made; else the limit on file sizes must do."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "holdfast-chaos", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        done = False
    return place if done else None


def _unmount(mounted: Path) -> None:
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


# -- locks -----------------------------------------------------------------------------------------------------


async def locked_store(world: World) -> None:
    """Another program locks the database; a second server wants the file, and gets it when the first one dies."""
    acks = str(world.folder / "acks")
    wanted = Wanted(str(world.store), acks, world.seed, world.scale.steps, busy_s=0.4, lock_wait_s=0.2)
    first = world.adds(Server.of_app("first", world.folder, wanted))
    await first.start()
    proxy = await world.proxy()
    await world.produce("a", "one", port=proxy.port)
    await world.produce("b", "two", port=proxy.port)
    for transport, _ in _SOME_OF_EACH[:4]:
        world.view(transport, transport, "one", port=proxy.port)
    world.view("ws-two", "ws", "two", port=proxy.port)
    lazy = Wanted(**{**vars(wanted), "is_lazy": True})
    for number in range(world.scale.rounds):
        await world.until_each_writes()
        third = world.adds(Server.plain(f"third-{number}", world.folder, world.store), serves=False)
        await third.spawn()  # it waits a few seconds for the file
        for kind in ("write", "read"):
            await _lock(world, kind)
        second = world.adds(Server.of_app(f"heir-{number}", world.folder, lazy), serves=False)
        await second.spawn()
        await second.serves()  # it does not need the file for that
        await _check_in_use(second, third)
        await world.server.kill()
        world.adds(second)
        proxy.upstream = ("127.0.0.1", second.port)
        await world.until_each_writes()
        await world.check_stored()
        world.note(f"round {number}: {second.name} has taken over")
        world.count("successions")
    await world.finish()


async def _lock(world: World, kind: str) -> None:
    """Hold the database for a while, for writing or for reading."""
    said = asyncio.Event()
    arguments = ["-m", "chaos.locker", str(world.store), kind]
    log = world.folder / "locker.log"
    locker = Child("locker", arguments, log, report=lambda _: said.set(), takes_input=True)
    await locker.spawn()
    try:
        async with asyncio.timeout(world.scale.locked_s + 20.0):
            await said.wait()
        known = len(world.truth.refusals)
        if kind == "write":
            await world.until(lambda: len(world.truth.refusals) >= known + 2, "two refusals by a locked database")
            await world.check_stored()  # reading goes on
            wrong = [one for one in world.truth.refusals[known:] if one["code"] != "store_unavailable"]
            if wrong:
                raise Failure(f"a locked store was told as {wrong[0]}")
        await asyncio.sleep(world.scale.locked_s)  # the fault itself
        if kind == "read":
            await world.until_each_writes()  # a reader holds nobody up
            if len(world.truth.refusals) > known:
                raise Failure(f"a foreign reader made writers wait: {world.truth.refusals[known]}")
    finally:
        locker.close_input()
        await locker.ended()
        await locker.clean_up()
    await world.until_each_writes()
    world.note(f"the database was locked for {kind}")
    world.count(f"locks for {kind}")


async def _check_in_use(mounted: Server, served: Server) -> None:
    """The file is another's: a mounted hub answers 503, `serve` says so and ends."""
    status, answer = await mounted.get("/v1/channels/one")
    if status != 503 or answer["code"] != "store_in_use":
        raise Failure(f"a second server on the file answered {status} {answer}")
    code = await served.ended()
    if code != 1 or "is in use by process" not in served.log:
        raise Failure(f"a second `serve` on the file ended with {code}:\n{served.log}")


# -- SIGSTOP ---------------------------------------------------------------------------------------------------


async def stopped(world: World) -> None:
    """SIGSTOP of the server, of a viewer, of a producer; each goes on as if nothing had been."""
    patience_s = world.scale.stopped_s / 3
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    # Its lease is shorter than what the server is stopped for: whose writer could not be heard has not died.
    await world.produce("a", "one", timeout_s=patience_s, lease_s=5)
    mortal = await world.produce("b", "one", timeout_s=patience_s)
    for transport, _ in _SOME_OF_EACH[:4]:
        world.view(transport, transport, "one", silence_s=patience_s)
    watchers = [await world.watch(f"process-{one}", one, "one") for one in ("sse", "ws", "poll")]
    for number in range(world.scale.rounds):
        for victim in (server, world.random.choice(watchers), mortal):
            await world.until_each_writes()
            victim.signal(signal.SIGSTOP)
            world.note(f"round {number}: {victim.name} is stopped")
            await asyncio.sleep(world.scale.stopped_s)  # the fault itself
            if victim is not server:
                await world.check_stored()  # nobody waits for a stopped peer
            victim.signal(signal.SIGCONT)
            await world.until_each_writes()
            await world.check_stored()
            world.count("stops")
    await world.finish()


# -- the network -----------------------------------------------------------------------------------------------


async def network(world: World) -> None:
    """A bad network between all parties, each with its own: resets, stalls, throttles, black holes, refusals."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
    for name, channel in (("a", "one"), ("b", "one"), ("c", "two")):
        proxy = await world.proxy(calm_s=1.0)
        await world.produce(name, channel, port=proxy.port, timeout_s=1.0)
    for channel in ("one", "two"):
        for transport, _ in _SOME_OF_EACH[:4]:
            proxy = await world.proxy(calm_s=0.6)
            world.view(f"{transport}-{channel}", transport, channel, port=proxy.port, silence_s=1.5, flush_ms=0)
    for number in range(world.scale.rounds):
        await asyncio.sleep(world.scale.faults_s)  # the fault itself
        await world.check_stored()
        world.note(f"round {number}: {world.truth.characters} characters came through")
        await world.random.choice(world.viewers).reload()
    for fault, count in world.fault_model().items():
        world.count(fault, count)
    await world.finish()


# -- the clock -------------------------------------------------------------------------------------------------


async def clock_set_back(world: World) -> None:
    """The server's wall clock goes back an hour in mid-stream and across a restart, and forward again."""
    offset = world.folder / "clock"
    wrong_clock.set_offset(offset, 0.0)
    by = ["-P", wrong_clock.__file__, str(offset)]
    server = world.adds(Server.plain("server", world.folder, world.store, by=by))
    await server.start()
    world.counts_entries = False  # other messages are written here, too
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
            raise Failure(f"ids made by one process do not sort: {ids}")
        await world.check_stored()
        if world.scale.waits_for_deleted_text:
            await _until_gone(world, marker)
        if number % 2:
            await server.kill()
            hours -= 1
            wrong_clock.set_offset(offset, hours * HOUR_S)
            await server.start()
            await world.check_stored()
            ids = []  # another process knows nothing of the ids before; they sort by its clock
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
    """Two messages whose text goes into the same commits, so that rows of the file hold text of both."""
    for id in (doomed, lasting):
        await _must(world, "POST", _OTHERS, _streaming(id), status=201)
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            for id in (doomed, lasting):
                group.create_task(
                    _must(world, "POST", f"{_OTHERS}/{id}/append", {"text": marker if id == doomed else "-"})
                )


async def _created(world: World) -> str:
    answer = await _must(world, "POST", _OTHERS, {"text": "x"}, status=201)
    id: str = answer["message"]["id"]
    return id


async def _must(
    world: World, method: str, path: str, body: object | None = None, *, status: int = 0
) -> dict[str, dict[str, str]]:
    """A request that must have this status, or succeed."""
    got, answer = await ask(world.server.port, method, path, body)
    if got != status and (status or got >= 300):
        raise Failure(f"{method} {path} was answered with {got}: {answer}")
    return answer if isinstance(answer, dict) else {}


async def _check_order(world: World) -> None:
    """Messages stand in the order in which they were made, whatever the clock said."""
    written = list(world.truth.of("two"))  # of one producer
    stored = [id for id in reversed(await world.stored("two")) if id in written]
    expected = [id for id in written if id in stored]
    if stored != expected:
        raise Failure(f"the messages stand as {stored}, they were made as {expected}")


async def _until_gone(world: World, text: str) -> None:
    """Deleted text is gone from the disk within a minute, by a clock that nobody set."""
    begun_s = asyncio.get_running_loop().time()
    files = [path for path in world.folder.iterdir() if path.name.startswith(world.store.name)]
    while any(text.encode() in path.read_bytes() for path in files if path.exists()):
        spent_s = asyncio.get_running_loop().time() - begun_s
        if spent_s > 75.0:  # a minute, and housekeeping comes every few seconds
            raise Failure(f"deleted text can be read in the file after {spent_s:.0f} s")
        world.check()
        await asyncio.sleep(0.5)  # nobody says when it is gone from a disk
    spent_s = asyncio.get_running_loop().time() - begun_s
    world.note(f"deleted text was gone after {spent_s:.0f} s")
    world.count("deleted texts seen to go")


# -- agents elsewhere, and the people who talk with them -----------------------------------------------------------

AGENTS = 2


async def agents(world: World) -> None:
    """Agents elsewhere, in mid-turn: killed, stopped, cut off, asked to end, cancelled; none at all; no server."""
    world.counts_entries = False  # claims, and what agents join as commits allow
    world.truth.kind = "script"
    # An admin may take over what streams, and answer any command: with one, half of what is to hold would not be tried.
    acks = str(world.folder / "acks")
    wanted = Wanted(str(world.store), acks, world.seed, world.scale.steps, has_admins=False)
    server = world.adds(Server.of_app("server", world.folder, wanted))
    await server.start()
    proxy = await world.proxy(calm_s=1.5)
    talk = Conversation(world)
    for transport, is_far in (*_SOME_OF_EACH[:5], ("sse", False)):
        name = f"{transport}{'-far' if is_far else ''}"
        talk.watch(name, transport, CHANNELS[0], far=proxy.port if is_far else None)
    talk.watch("ws-two", "ws", CHANNELS[1])
    try:
        talk.begin()
        deck: list[Callable[[World, Conversation], Awaitable[None]]] = []
        for number in range(world.scale.rounds):
            while len(talk.agents) < AGENTS:
                await talk.hire()
            deck = deck or world.random.sample(_TO_AGENTS, len(_TO_AGENTS))
            strike = deck.pop()
            world.note(f"round {number}: {strike.__doc__}")
            for channel in (*CHANNELS, world.random.choice(CHANNELS)):
                await talk.ask(channel)
            await strike(world, talk)
            await talk.until_settled()
            await talk.until_all_know()
            world.count(strike.__name__.strip("_").replace("_", " "))
    finally:
        await talk.close()
    await _together(*(talk.dismiss(name) for name in list(talk.agents)))
    await talk.until_all_know()
    await talk.check()
    await world.finish()


async def _agent_killed(world: World, talk: Conversation) -> None:
    """`kill -9` of an agent in mid-turn; another has its turn, or a successor of its name."""
    question, id, piece = await talk.until_writing()
    is_cancelled, has_namesake = world.random.random() < 0.3, world.random.random() < 0.4
    await talk.kill(piece.who)
    seen = talk.until_interrupted(id, piece.attempt, GONE_S)
    if has_namesake:
        await _together(seen, talk.hire(piece.who))  # its presence may stay all the time
    else:
        await _together(seen, talk.until_gone(piece.who, GONE_S))
    if is_cancelled:
        await talk.until_answered(await talk.cancel(question))


async def _server_killed(world: World, talk: Conversation) -> None:
    """`kill -9` of the server in mid-turn: who had a turn goes on with it."""
    await talk.until_writing()
    talk.doubt(talk.unbegun())
    await world.server.kill()
    await asyncio.sleep(world.random.uniform(0.0, 0.5))  # nobody is in a hurry to start it again
    await world.server.start()
    await talk.check()
    await talk.until_seen(talk.agents, BACK_S)


async def _both_killed(world: World, talk: Conversation) -> None:
    """`kill -9` of the server and of an agent in mid-turn: nothing tells of its end but its turn's."""
    _, _, piece = await talk.until_writing()
    talk.doubt(talk.unbegun())
    await world.server.kill()
    await talk.kill(piece.who)
    await world.server.start()
    await talk.check()
    await talk.until_seen(talk.agents, BACK_S)


async def _agent_asked_to_end(world: World, talk: Conversation) -> None:
    """SIGTERM to an agent in mid-turn: it finishes its answer, or leaves it for another."""
    _, id, piece = await talk.until_writing()
    if talk.is_lasting(piece.who):
        await talk.dismiss(piece.who)
    else:
        await _together(talk.dismiss(piece.who), talk.until_interrupted(id, piece.attempt, 2 * GONE_S))


async def _agent_stopped(world: World, talk: Conversation) -> None:
    """SIGSTOP of an agent in mid-turn, for longer than it may be unheard; it wakes up, and another has its turn."""
    _, id, piece = await talk.until_writing()
    agent = talk.agents[piece.who]
    agent.signal(signal.SIGSTOP)
    world.note(f"{piece.who} is stopped")
    await _unheard(world, talk, id, piece)
    agent.signal(signal.SIGCONT)
    world.note(f"{piece.who} goes on")
    await talk.until_seen([piece.who], BACK_S)


async def _agent_cut_off(world: World, talk: Conversation) -> None:
    """An agent's network in mid-turn: its connection breaks and is there again, or all vanishes, and it writes on."""
    is_vanishing, pauses_s = world.random.random() < 0.5, [world.random.uniform(0.0, 1.0) for _ in range(2)]
    _, id, piece = await talk.until_writing()
    line, known = talk.lines[piece.who], talk.departures(piece.who)
    is_steady = talk.is_steady(piece.who)
    talk.doubt(talk.unbegun() if is_steady else talk.talk.open)
    if is_vanishing:
        line.black_hole()
        world.note(f"{piece.who} has no network")
        await _unheard(world, talk, id, piece)
        line.resume()
        world.note(f"{piece.who} has its network again")
    else:
        for pause_s in pauses_s[: 2 if is_steady else 1]:
            await line.cut()
            world.note(f"{piece.who} is cut off")
            await asyncio.sleep(pause_s)  # somewhere within its way back
        await talk.until_settled()
        if is_steady and talk.departures(piece.who) != known:
            raise Failure(f"a connection broke, and people were told that {piece.who} leaves")
    await talk.until_seen([piece.who], BACK_S)


async def _unheard(world: World, talk: Conversation, id: str, piece: Piece) -> None:
    """Nobody hears of an agent for the time of the fault, which may be too short for anybody to notice."""
    if world.scale.unheard_s <= VANISHED_S:
        await asyncio.sleep(world.scale.unheard_s)  # the fault itself
        return
    talk.doubt(talk.talk.open)
    await _together(
        asyncio.sleep(world.scale.unheard_s),  # the fault itself
        talk.until_gone(piece.who, VANISHED_S),
        talk.until_interrupted(id, piece.attempt, VANISHED_S),
    )


async def _turn_cancelled(world: World, talk: Conversation) -> None:
    """`cancel` from another device, twice with one id; now and then the server is killed before it is answered."""
    is_question, is_killed = world.random.random() < 0.5, world.random.random() < 0.5
    question, id, _ = await talk.until_writing()
    sent = await talk.cancel(question, target=question.id if is_question else id)
    if is_killed:
        world.note("the server is killed before it is answered, or just after")
        talk.doubt(talk.unbegun())
        await world.server.kill()
        await world.server.start()
    await talk.until_answered(sent)


async def _nobody_there(world: World, talk: Conversation) -> None:
    """No agent is left, and somebody asks, and stops it or waits; across a restart of the server, too."""
    names = list(talk.agents)
    for name in names:
        await talk.kill(name)
    await _together(*(talk.until_gone(name, GONE_S) for name in names))
    question = await talk.ask(world.random.choice(CHANNELS))
    if world.scale.alone_s > 5.0:
        await talk.until_signalled(question)
    if world.random.random() < 0.5:
        await world.server.kill()
        await world.server.start()
        await talk.check()
    if world.random.random() < 0.5:
        await talk.until_answered(await talk.cancel(question))
    for _ in range(AGENTS):
        await talk.hire()


_TO_AGENTS = (
    _agent_asked_to_end,
    _turn_cancelled,
    _both_killed,
    _agent_cut_off,
    _nobody_there,
    _agent_stopped,
    _server_killed,
    _agent_killed,
)


async def _together(*what: Coroutine[None, None, None] | Coroutine[None, None, str]) -> None:
    """All of it side by side. Raises the first Failure as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in what:
                group.create_task(one)
    except* Failure as failures:
        raise failures.exceptions[0] from None


# -- who plays -------------------------------------------------------------------------------------------------

# Each transport, past and behind the run's proxy.
_SOME_OF_EACH: tuple[tuple[Transport, bool], ...] = (
    ("ws", False),
    ("sse", True),
    ("eventsource", False),
    ("poll", False),
    ("ws", True),
    ("eventsource", True),
)


async def _cast(world: World, *, calm_s: float | None = 1.5, has_proxy: bool = True) -> None:
    """Three producers on two channels, and viewers of all kinds, half of them behind a proxy with fault_model."""
    far = (await world.proxy(calm_s=calm_s)).port if has_proxy else None
    writers_far = (await world.proxy(calm_s=calm_s)).port if has_proxy else None
    await world.produce("a", "one")
    await world.produce("b", "one", port=writers_far)
    await world.produce("c", "two")
    for transport, is_far in _SOME_OF_EACH:
        world.view(f"{transport}{'-far' if is_far else ''}", transport, "one", port=far if is_far else None)
    world.view("sse-two", "sse", "two", flush_ms=0)
    world.view("ws-two", "ws", "two", port=far, flush_ms=0)


SCENARIOS: dict[str, Scenario] = {
    "kill": kill_server,
    "producer": kill_producer,
    "agent": kill_agent,
    "disk": disk_full,
    "lock": locked_store,
    "stop": stopped,
    "network": network,
    "clock": clock_set_back,
    "agents": agents,
}
