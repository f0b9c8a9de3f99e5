"""The scenario in which backups are made during load, and the server or the command is killed at random moments.

Layer: chaos.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from proof.chaos.processes import Child, Server, ask
from proof.chaos.world import Failure, World
from proof.oracle.acknowledged import AcknowledgedMessage
from tenuto import Hub
from tenuto.stores.sqlite.verify import verify

__all__ = ["backups"]

BALLAST = 40  # messages that make a copy last long enough to be killed
BALLAST_CHARACTERS = 200_000
MB_PER_S = (20, 200)  # the copy of 8 MB takes from 0.04 to 0.4 s
START_S = 0.5  # about the time until the command has reached the server
COMMAND_S = 60.0
PAGE = 200

Json = dict[str, Any]


async def backups(world: World) -> None:
    """Backups during load, and `kill -9` of the server or the command; each backup is whole and has all stored text."""
    server = world.adds(Server.plain("server", world.folder, world.store))
    await server.start()
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
    arguments = [
        "-m",
        "tenuto",
        "backup",
        str(target),
        "--mb-per-s",
        str(speed),
        "--store",
        f"sqlite:///{world.store}",
    ]
    command = Child(target.name, arguments, world.folder / "backup.log")
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
        await _until_gone(world, target.with_name(f"{target.name}.partial"))
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


async def _until_gone(world: World, partial: Path) -> None:
    await world.until(lambda: not partial.exists(), f"{partial} to be renamed or removed")


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
