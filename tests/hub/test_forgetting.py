"""The removal of one person: removed and remaining data, and the receipt, also of a process that was killed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from proof.simulation.clock import START_MS, SimClock, VirtualLoop
from tenuto.core.document import Stored, restore_command
from tenuto.core.errors import Busy, Held, InvalidName, NotFound
from tenuto.core.events import ChannelAttached
from tenuto.core.names import command_key
from tenuto.core.requests import Caller, CreateMessage
from tenuto.hub import HubCore
from tenuto.hub.clock import Clock
from tenuto.hub.keep import archive as archive_module
from tenuto.hub.keep import forgetting as forgetting_module
from tenuto.hub.keep.forgetting import NOTE, Forgetting, Receipt, direct, intended
from tenuto.stores.base import Head, Pruned
from tenuto.stores.memory import MemoryStore
from tenuto.stores.sqlite.store import SqliteStore
from tests.hub.watching import PATIENCE_S, Watcher
from tests.stores.files import on_disk, opened
from tests.stores.forgetting import CALLS, CHANNELS, fill
from tests.virtual import virtually

ANN, BOB = Caller(id="ann"), Caller(id="bob")
FILES = Path(__file__).parents[1] / "stores" / "files"


async def say(hub: HubCore, channel: str, message_id: str, author: str, *, role: str = "user") -> None:
    await hub.create(channel, id=message_id, text=f"words of {author}", author=author, role=role)


async def ids(hub: HubCore, channel: str) -> list[str]:
    return [one.id for one in (await hub.store.facts(channel, after=0, limit=99)).facts]


def ids_sum(*pairs: tuple[str, str]) -> str:
    total = sum(int.from_bytes(hashlib.sha256(f"{channel} {one}".encode()).digest()) for channel, one in pairs)
    return f"{total % 2**256:064x}"


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

    receipt = await hub.archive.forget("ann")
    assert (receipt.messages, receipt.commands, receipt.channels, receipt.unreadable) == (4, 2, 0, 0)
    assert receipt.client_sha256 == hashlib.sha256(b"ann").hexdigest()
    gone = ("m1", "gone", "s", command_key("by-ann"), command_key("replied"))
    assert receipt.ids_sum == ids_sum(*(("chat:1", one) for one in gone), ("chat:2", "m1"))
    assert receipt.begun_ms <= (receipt.clean_ms or 0) <= receipt.ended_ms
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
    assert await hub.store.notes(NOTE) == {}

    assert await hub.archive.forget("ann") == receipt
    await say(hub, "chat:1", "later", "ann")
    assert (await hub.archive.forget("ann")).ids_sum == ids_sum(("chat:1", "later"))
    assert (await hub.archive.forget("nobody")).messages == 0


async def test_with_channels_those_go_in_which_no_other_person_wrote(hub: HubCore) -> None:
    for channel in ("own", "shared", "unnamed"):
        await say(hub, channel, "m1", "ann")
        await say(hub, channel, "m2", "agent", role="assistant")
    await say(hub, "shared", "m3", "bob")
    await hub.create("unnamed", id="m3", text="by an unknown person")
    await say(hub, "other", "m1", "bob")
    await hub.ask("own", "s", CreateMessage(role="assistant", status="streaming"), Caller(id="agent"))
    receipt = await hub.archive.forget("ann", channels=True)
    assert (receipt.messages, receipt.channels) == (5, 1)
    assert await hub.store.channels(after=None, limit=9) == ["other", "shared", "unnamed"]
    assert await ids(hub, "shared") == ["m2", "m3"]
    assert receipt.ids_sum == ids_sum(("own", "m1"), ("own", "m2"), ("own", "s"), ("shared", "m1"), ("unnamed", "m1"))


class _Counting(MemoryStore):
    """A store that counts the messages that were read."""

    read = 0

    async def messages(self, channel: str, ids: Sequence[str]) -> tuple[Head, dict[str, Stored]]:
        self.read += len(ids)
        return await super().messages(channel, ids)


@pytest.mark.parametrize("late", ["ann", "bob"])
async def test_a_channel_is_closed_only_while_its_last_messages_are_read(late: str) -> None:
    store = _Counting()
    hub = HubCore(store, hooks_signals=False)
    for number in range(70):
        await say(hub, "chat:1", f"m{number}", "ann")
    reads = []

    async def rewrite(channel: str, write: Callable[[], Awaitable[bool]]) -> bool:
        if not reads:  # the channel was read, and is not closed yet
            await say(hub, "chat:1", "late", late)
        before = store.read
        done = await write()
        reads.append(store.read - before)
        return done

    receipt = await Forgetting(store, "ann", Clock(), rewrite, tidies=True).run(channels=True)
    left = await ids(hub, "chat:1")
    await hub.close()
    assert reads[0] == 1
    gone = [f"m{number}" for number in range(70)] + ["late"] * (late == "ann")
    assert left == ["late"] * (late == "bob")
    assert (receipt.messages, receipt.channels) == (len(gone), late == "ann")
    assert receipt.ids_sum == ids_sum(*(("chat:1", one) for one in gone))


async def test_a_hold_refuses_before_anything_goes(hub: HubCore) -> None:
    for channel in ("a", "b", "c"):
        await say(hub, channel, "m1", "ann" if channel != "c" else "bob")
        if channel != "a":
            await hub.archive.hold(channel, "case 17")
    with pytest.raises(Held, match=r"channel 'b' is held and has messages of the person; release it first"):
        await hub.archive.forget("ann")
    assert [await ids(hub, channel) for channel in "abc"] == [["m1"]] * 3
    await hub.archive.release("b")
    assert (await hub.archive.forget("ann")).messages == 2
    assert await ids(hub, "c") == ["m1"]


@pytest.mark.parametrize("channels", [False, True])
async def test_a_hold_that_comes_during_a_removal_stops_it_there(
    hub: HubCore, channels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(hub, "a", "m1", "ann")
    await say(hub, "b", "m1", "ann")
    step = "delete_channel" if channels else "prune"
    remove = getattr(hub.store, step)

    async def remove_and_hold(channel: str, **arguments: object) -> object:
        done = await remove(channel, **arguments)
        if channel == "a":
            await hub.archive.hold("b", "case 17")
        return done

    monkeypatch.setattr(hub.store, step, remove_and_hold)
    with pytest.raises(Held, match="channel 'b' is held"):
        await hub.archive.forget("ann", channels=channels)
    assert (await ids(hub, "a"), await ids(hub, "b")) == ([], ["m1"])
    await hub.archive.release("b")
    receipt = await hub.archive.forget("ann", channels=channels)
    assert (receipt.messages, receipt.channels) == (2, 2 * channels)


@pytest.mark.parametrize("client_id", ["*", "", "a b", "x" * 65, "chat:*", "..", "ann\n"])
async def test_an_invalid_client_id_is_refused_and_removes_no_message(hub: HubCore, client_id: str) -> None:
    await say(hub, "a", "m1", "ann")
    with pytest.raises(InvalidName, match="a client id must be 1-64 characters"):
        await hub.archive.forget(client_id)
    assert await ids(hub, "a") == ["m1"]


async def test_words_of_the_person_are_in_no_file_when_the_receipt_says_so(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False)
    for number in range(40):
        await say(hub, f"chat:{number % 3}", f"m{number}", "zoe-4711" if number % 2 else "bob")
    assert b"words of zoe-4711" in on_disk(path)
    receipt = await hub.archive.forget("zoe-4711")
    data = on_disk(path)
    assert (b"words of zoe" in data, b"words of bob" in data) == (False, True)
    assert (receipt.messages, receipt.clean_ms is not None) == (20, True)
    await hub.close()
    assert b"zoe-4711" not in on_disk(path)


async def test_a_receipt_names_older_backups_that_exist(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False)
    await say(hub, "a", "m1", "ann")
    store = hub.store
    assert isinstance(store, SqliteStore)
    for name in ("one.db", "two.db"):
        await store.backup(tmp_path / name, mb_per_s=1000)
    (tmp_path / "two.db").unlink()
    (tmp_path / "chat.db.before-restore-1").write_bytes(b"before a restore")
    older = [str(tmp_path / "one.db"), str(tmp_path / "chat.db.before-restore-1")]
    receipt = await hub.archive.forget("ann")
    assert receipt.older_backups == older
    await store.backup(tmp_path / "three.db", mb_per_s=1000)
    (tmp_path / "one.db").unlink()
    assert await hub.archive.forget("ann") == replace(receipt, older_backups=older[1:])
    await hub.close()


async def test_a_removal_that_was_cut_off_goes_on_after_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = HubCore(f"sqlite:///{tmp_path}/chat.db", hooks_signals=False)
    monkeypatch.setattr(archive_module, "RESUME_S", 0.0)
    await say(hub, "a", "m1", "ann")
    store = hub.store
    commit = store.commit
    reached = asyncio.Event()

    async def stuck(writes: object) -> object:
        reached.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(store, "commit", stuck)
    running = asyncio.create_task(hub.archive.forget("ann"))
    await reached.wait()
    running.cancel()
    await asyncio.wait([running])
    monkeypatch.setattr(store, "commit", commit)
    assert await intended(store) == ["ann"]
    await hub.close()
    await hub.start()
    async with asyncio.timeout(PATIENCE_S):
        while await intended(store):  # noqa: ASYNC110  # the note is all that shows the end
            await asyncio.sleep(0)
    assert await ids(hub, "a") == []
    assert (await hub.archive.forget("ann")).messages == 1
    await hub.close()


async def test_a_removal_killed_in_each_kind_of_its_steps_gives_one_whole_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting_module, "WIPE_PAUSE_S", 0.0)
    source = tmp_path / "chat.db"
    async with opened(source) as store:
        await fill(store)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "tests.stores.forgetting", str(source), str(tmp_path), "40", "17"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    deaths = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(deaths) == 40
    for channels in (False, True):
        calls = {one["call"] for one in deaths if one["channels"] is channels}
        assert calls == {*CALLS} - (set() if channels else {"heads", "delete_channel"})
        left = {f"own:{n}": ["m1"] for n in range(CHANNELS) if not channels}
        left |= {f"shared:{n}": ["m1"] for n in range(CHANNELS)}
        stopped = 0
        receipts: set[tuple[object, ...]] = set()
        for death in (one for one in deaths if one["channels"] is channels):
            path = tmp_path / str(death["number"]) / "chat.db"
            async with opened(path) as store:
                stopped += bool(await intended(store))
                receipt = await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=channels)
                found = {name: (await store.facts(name, after=0, limit=99)).facts for name in left}
                assert await store.channels(after=None, limit=99) == sorted(left)
                assert {name: [one.id for one in facts] for name, facts in found.items()} == left
                assert receipt.clean_ms is not None
                again = await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=channels)
                assert again == receipt
            assert b"words of ann" not in on_disk(path)
            receipts.add(whole(receipt))
        gone = removed() if channels else [one for one in removed() if not one[0].startswith("own") or one[1] == "m0"]
        counts = (3 if channels else 2) * CHANNELS, CHANNELS, CHANNELS if channels else 0
        assert receipts == {(*counts, ids_sum(*gone))}
        assert stopped > 10


def whole(receipt: Receipt) -> tuple[object, ...]:
    return receipt.messages, receipt.commands, receipt.channels, receipt.ids_sum


def removed() -> list[tuple[str, str]]:
    pairs = []
    for number in range(CHANNELS):
        pairs += [(f"own:{number}", "m0"), (f"own:{number}", "m1")]
        pairs += [(f"shared:{number}", "m0"), (f"shared:{number}", command_key("c"))]
    return pairs


class _Shared(MemoryStore):
    """A store that several hubs may have open. Its first removal waits for `gate`."""

    is_exclusive = False
    name = "postgresql"

    def __init__(self) -> None:
        super().__init__(now_ms=lambda: START_MS + int(asyncio.get_running_loop().time() * 1000))
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def prune(self, channel: str, *, epoch: str, versions: Mapping[str, int]) -> Pruned:
        if not self.reached.is_set():
            self.reached.set()
            await self.gate.wait()
        return await super().prune(channel, epoch=epoch, versions=versions)


def shared_hub(store: _Shared, number: int = 1) -> HubCore:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return HubCore(store, hooks_signals=False, clock=SimClock(loop, Random(number)))


async def removing(store: _Shared) -> tuple[HubCore, asyncio.Task[Receipt]]:
    """Return a hub, and its removal of a person that waits after the first of three messages."""
    hub = shared_hub(store)
    for channel in "abc":
        await say(hub, channel, "m", "ann")
    running = asyncio.create_task(hub.archive.forget("ann"))
    await store.reached.wait()
    return hub, running


ALL_OF_ANN = (3, 0, 0, ids_sum(("a", "m"), ("b", "m"), ("c", "m")))


@virtually
async def test_one_process_of_a_store_at_a_time_removes_a_person() -> None:
    store = _Shared()
    first, running = await removing(store)
    second = shared_hub(store, 2)
    await second.start()
    await asyncio.sleep(archive_module.RESUME_S + 1)  # it leaves the removal to the living process
    with pytest.raises(Busy, match="'ann' runs in another process"):
        await second.archive.forget("ann")
    running.cancel()
    await asyncio.wait([running])
    store.gate.set()
    await asyncio.sleep(1)
    assert whole(await second.archive.forget("ann")) == ALL_OF_ANN
    await first.close()
    await second.close()


class _Twice(_Shared):
    """A store whose first two notes begin together; the second is stored when the first removal has begun a step."""

    def __init__(self) -> None:
        super().__init__()
        self.notes_begun, self.both = 0, asyncio.Event()

    async def note(
        self, values: Mapping[str, bytes | None], *, expected: Mapping[str, bytes | None] | None = None
    ) -> bool:
        if any(name.startswith(NOTE) for name in values):
            self.notes_begun += 1
            if self.notes_begun == 1:
                await self.both.wait()
            elif self.notes_begun == 2:
                self.both.set()
                await self.reached.wait()
        return await super().note(values, expected=expected)


@virtually
async def test_of_two_processes_that_begin_a_removal_together_one_goes_on_and_counts_all_messages() -> None:
    store = _Twice()
    hubs = [shared_hub(store, number) for number in (1, 2)]
    for channel in "abc":
        await say(hubs[0], channel, "m", "ann")
    running = [asyncio.create_task(hub.archive.forget("ann")) for hub in hubs]
    with pytest.raises(Busy, match="'ann' was taken by another process"):
        await next(asyncio.as_completed(running))
    store.gate.set()
    receipts = [one for one in await asyncio.gather(*running, return_exceptions=True) if isinstance(one, Receipt)]
    assert [whole(one) for one in receipts] == [ALL_OF_ANN]
    for hub in hubs:
        await hub.close()


@virtually
async def test_a_removal_of_a_process_that_has_ended_goes_on_when_that_is_certain() -> None:
    store = _Shared()
    left = {"has_channels": False, "begun_ms": 1, "done": [1, 0, 0, ids_sum(("gone", "m"))], "step": None}
    await store.note({f"{NOTE}ann": json.dumps(left).encode()})  # of a release that did not name its node
    await store.note({f"{NOTE}bob": json.dumps(left | {"node": "ended"}).encode()})
    store.reached.set()
    hub = shared_hub(store)
    for author in ("ann", "bob"):
        await say(hub, "a", f"of-{author}", author)
    assert (await hub.archive.forget("ann")).messages == 2
    with pytest.raises(Busy):
        await hub.archive.forget("bob")
    await asyncio.sleep(5)
    assert (await hub.archive.forget("bob")).messages == 2
    await hub.close()


@virtually
async def test_a_process_that_was_held_up_does_not_go_on_with_a_removal_that_another_one_has_ended() -> None:
    store = _Shared()
    first, running = await removing(store)
    receipt = await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=False)
    store.gate.set()
    with pytest.raises(Busy, match="'ann' was taken by another process"):
        await running
    assert await first.archive.forget("ann") == receipt
    assert whole(receipt) == ALL_OF_ANN
    await first.close()


async def test_a_damaged_channel_does_not_keep_the_others_from_being_emptied(tmp_path: Path) -> None:
    hub = HubCore(f"sqlite:///{tmp_path / 'chat.db'}", hooks_signals=False)
    for name in ("a", "b", "c"):
        await say(hub, name, "m", "ann")
    await hub.close()
    with closing(sqlite3.connect(tmp_path / "chat.db")) as db, db:
        db.execute("UPDATE channels SET crc = crc + 1 WHERE name = 'b'")
    receipt = await hub.archive.forget("ann")
    assert (receipt.messages, receipt.unreadable) == (2, 1)
    assert await ids(hub, "c") == []
    await hub.close()


async def test_a_receipt_becomes_clean_when_the_reader_that_blocked_it_has_gone(
    hub: HubCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(hub, "chat:1", "m", "ann")
    is_clean = False

    async def wipe() -> bool:
        return is_clean

    monkeypatch.setattr(hub.store, "wipe", wipe)
    monkeypatch.setattr(forgetting_module, "WIPE_TRIES", 1)
    monkeypatch.setattr(forgetting_module, "WIPE_PAUSE_S", 0)
    blocked = await hub.archive.forget("ann")
    is_clean = True
    again = await hub.archive.forget("ann")
    assert (blocked.clean_ms, again.messages, again.clean_ms is None) == (None, 1, False)


async def test_removal_does_not_wait_for_open_messages_to_become_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting_module, "WIPE_PAUSE_S", 0)  # so all tries together are shorter than OLD_MS
    path = tmp_path / "chat.db"
    path.write_bytes(gzip.decompress((FILES / "schema-1.db.gz").read_bytes()))
    async with opened(path) as store:
        assert store.stats()["pinned"]
        receipt = await Forgetting(store, "ann", Clock(), direct, tidies=True).run(channels=False)
    assert receipt.clean_ms is not None
