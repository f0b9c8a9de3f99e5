"""The removal of one person: removed and remaining data, also by a process that was killed."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from tenuto.core.document import restore_command
from tenuto.core.errors import NotFound, StoreUnavailable
from tenuto.core.events import ChannelAttached
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, CreateMessage
from tenuto.hub import HubCore
from tenuto.hub.clock import Clock
from tenuto.hub.keep import forgetting as forgetting_module
from tenuto.hub.keep.forgetting import Forgetting, Forgotten
from tests.hub.hubs import new_hub
from tests.hub.watching import Watcher
from tests.stores.files import on_disk, opened
from tests.stores.forgetting import CALLS, CHANNELS, fill
from tests.virtual import virtually

ANN, BOB = Caller(id="ann"), Caller(id="bob")
FILES = Path(__file__).parents[1] / "stores" / "files"


async def say(hub: HubCore, channel: str, message_id: str, author: str, *, role: str = "user") -> None:
    await hub.create(channel, id=message_id, text=f"words of {author}", author=author, role=role)


async def ids(hub: HubCore, channel: str) -> list[str]:
    return [one.id for one in (await hub.store.facts(channel, after=0, limit=99)).facts]


async def test_the_messages_and_commands_of_a_person_go_and_others_stay(hub: HubCore) -> None:
    await say(hub, "chat:1", "m1", "ann")
    await say(hub, "chat:1", "m2", "bob")
    await say(hub, "chat:1", "m3", "agent", role="assistant")
    await say(hub, "chat:1", "m4", "annie")
    await say(hub, "chat:1", "gone", "ann")
    await hub.delete("chat:1", "gone")
    await say(hub, "chat:2", "m1", "ann~phone", role="assistant")
    await hub.ask("chat:1", "s", CreateMessage(role="assistant", status="streaming"), ANN)
    await hub.command("chat:1", "approve", id="by-bob", target="m1", by="bob")
    await hub.command("chat:1", "approve", id="by-ann", target="m3", data="words of ann", by="ann")
    await hub.command("chat:1", "approve", id="replied", target="m3", by="bob")
    await hub.reply("chat:1", "replied", data="words of ann", by="ann")
    watcher = Watcher(hub, "chat:1")
    await watcher.take()

    assert await hub.archive.forget("ann") == Forgotten(messages=4, commands=2, channels=0, unreadable=0, is_clean=True)
    assert sorted(await ids(hub, "chat:1")) == [command_key("by-bob"), "m2", "m3", "m4"]
    assert await ids(hub, "chat:2") == []
    (about,) = (await hub.store.messages("chat:1", [command_key("by-bob")]))[1].values()
    reply = restore_command(about).reply
    assert reply is not None
    assert reply.error["code"] == "deleted"
    with pytest.raises(NotFound):
        await hub.read("chat:1", "m1")
    attached = (await watcher.take()).events[0]
    assert isinstance(attached, ChannelAttached)
    assert not attached.resumed
    assert sorted(one.id for one in watcher.view.messages()) == ["m2", "m3", "m4"]

    assert (await hub.archive.forget("ann")).messages == 0
    await say(hub, "chat:1", "later", "ann")
    assert (await hub.archive.forget("ann")).messages == 1
    assert (await hub.archive.forget("nobody")).messages == 0


@virtually
async def test_viewers_see_a_removal_after_which_the_channel_could_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub()
    await say(hub, "chat:1", "m1", "ann")
    await say(hub, "chat:1", "m2", "bob")
    watcher = Watcher(hub, "chat:1")
    await watcher.take()

    async def forget(person: str) -> None:
        with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
            patch.setattr(hub.store, "changes", AsyncMock(side_effect=StoreUnavailable("the disk is away")))
            await hub.archive.forget(person)

    await forget("ann")
    other = Watcher(hub, "chat:1")
    await other.take()
    assert [one.id for one in other.view.messages()] == ["m2"]
    assert [one.id for one in await watcher.until(lambda view: len(view.messages()) == 1)] == ["m2"]
    await forget("bob")  # the hub reads the channel again by itself
    await watcher.until(lambda view: not view.messages())


@pytest.mark.parametrize("late", ["ann", "bob"])
async def test_channel_is_closed_while_its_last_messages_are_read(late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = HubCore("memory://", hooks_signals=False)
    messages = AsyncMock(wraps=hub.store.messages)
    monkeypatch.setattr(hub.store, "messages", messages)
    for number in range(70):
        await say(hub, "chat:1", f"m{number}", "ann")
    reads = list[int]()  # the numbers of messages that were read in each rewrite

    async def rewrite(channel: str, write: Callable[[], Awaitable[bool]]) -> bool:
        if not reads:  # the channel was read, and is not closed yet
            await say(hub, "chat:1", "late", late)
        messages.reset_mock()
        done = await write()
        reads.append(sum(len(call.args[1]) for call in messages.await_args_list))
        return done

    found = await Forgetting(hub.store, "ann", Clock(), rewrite).run(channels=True)
    left = await ids(hub, "chat:1")
    await hub.close()
    assert (reads[0], left) == (1, ["late"] * (late == "bob"))
    assert (found.messages, found.channels) == (70 + (late == "ann"), late == "ann")


async def test_a_removal_killed_in_each_kind_of_its_steps_is_ended_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting_module, "WIPE_PAUSE_S", 0.0)
    source = tmp_path / "chat.db"
    async with opened(source) as store:
        await fill(store)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.stores.forgetting", str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) > 30
    for channels in (False, True):
        calls = {one["call"] for one in deaths if one["channels"] is channels}
        assert calls == {*CALLS} - (set() if channels else {"heads", "delete_channel"})
        left = {f"own:{n}": ["m1"] for n in range(CHANNELS) if not channels}
        left |= {f"shared:{n}": ["m1"] for n in range(CHANNELS)}
        for death in (one for one in deaths if one["channels"] is channels):
            path = tmp_path / str(death["number"]) / "chat.db"
            async with opened(path) as store:
                done = await Forgetting(store, "ann", Clock()).run(channels=channels)
                found = {name: (await store.facts(name, after=0, limit=99)).facts for name in left}
                assert await store.channels(after=None, limit=99) == sorted(left)
                assert {name: [one.id for one in facts] for name, facts in found.items()} == left
                assert done.is_clean
            assert b"words of ann" not in on_disk(path)


async def test_a_damaged_channel_does_not_keep_the_others_from_being_emptied(tmp_path: Path) -> None:
    hub = HubCore(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False)
    for name in ("a", "b", "c"):
        await say(hub, name, "m", "ann")
    await hub.close()
    with closing(sqlite3.connect(tmp_path / "chat.db")) as db, db:
        db.execute("UPDATE channels SET crc = crc + 1 WHERE name = 'b'")
    done = await hub.archive.forget("ann")
    assert (done.messages, done.unreadable) == (2, 1)
    assert await ids(hub, "c") == []
    await hub.close()


async def test_removal_waits_for_no_open_message_to_become_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting_module, "WIPE_PAUSE_S", 0)  # so all tries together are shorter than OLD_MS
    path = tmp_path / "chat.db"
    path.write_bytes(gzip.decompress((FILES / "schema-1.db.gz").read_bytes()))
    async with opened(path) as store:
        assert store.stats()["pinned"]
        done = await Forgetting(store, "ann", Clock()).run(channels=False)
    assert done.is_clean
