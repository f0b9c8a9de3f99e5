"""Compaction of a SQLite file, also by processes that are killed."""

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tenuto.core.errors import StoreInUse, StoreUnavailable
from tenuto.stores.sqlite import compact as sqlite_compact
from tenuto.stores.sqlite import engine as sqlite_engine
from tenuto.stores.sqlite.backup import PAGE_BYTES
from tenuto.stores.sqlite.compact import compact
from tenuto.stores.sqlite.verify import verify
from tests.stores.compacting import TEXT, check, fill
from tests.stores.contract import Chat, append, create, emptied, finish, texts
from tests.stores.files import PATIENCE_S, cli, opened, read, run_from_outside, run_on_thread, write


def test_compacted_file_has_its_messages_and_epochs_without_its_free_slots(path: Path) -> None:
    async def write_more() -> None:
        async with opened(path) as store:
            chat = Chat(store, "new")
            await chat.do_each(create("m1", streaming=True), append("m1", TEXT), finish("m1"))
            assert await texts(store, "new", "m1") == [TEXT]

    asyncio.run(fill(path))
    assert "bytes are free; tenuto compact gives them back" in cli("verify", store=path).output
    before, after = compact(path)
    assert cli("verify", store=path).output == f"{path}: no damage found\n"
    assert (after, path.stat().st_mode & 0o777) == (path.stat().st_size, 0o600)
    assert after < before / 4
    assert list(verify(path)) == []
    assert run_from_outside(path, "SELECT count(*) FROM free") == [(0,)]
    asyncio.run(check(path))
    asyncio.run(write_more())
    path.chmod(0o640)
    assert compact(path)[1] <= after + 2 * len(TEXT)
    assert path.stat().st_mode & 0o777 == 0o640
    asyncio.run(check(path))
    assert sorted(one.name for one in path.parent.iterdir()) == ["chat.db", "chat.db.lock"]


def test_killed_compaction_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.stores.compacting", str(path)],
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    killed, unfinished, files = map(int, done.stdout.split())
    assert killed > 20
    assert unfinished > 7
    assert files > 1  # some died after the new file was in place


async def test_open_store_is_not_compacted(path: Path) -> None:
    async with opened(path):
        with pytest.raises(StoreInUse):
            await asyncio.to_thread(compact, path)
        result = cli("compact", store=path)
    assert (result.exit_code, "cannot be compacted while a process has it open" in result.output) == (1, True)
    result = cli("compact", store=path)
    assert (result.exit_code, f"{path} had " in result.output) == (0, True)
    result = cli("compact", store=path.with_name("other.db"))
    assert (result.exit_code, "does not exist; name the store" in result.output) == (1, True)


def test_file_that_another_program_reads_is_not_compacted(path: Path) -> None:
    asyncio.run(fill(path))
    before = read(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM documents").fetchone()
        with pytest.raises(StoreUnavailable, match="another process reads or has just used it"):
            compact(path)
        assert len(read(path)) == len(before)
    assert compact(path)[1] < len(before)
    asyncio.run(check(path))


def test_copy_that_differs_from_the_file_does_not_replace_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(fill(path))
    inode, seal, calls = path.stat().st_ino, sqlite_compact.sealed, iter(range(1_000))
    monkeypatch.setattr(
        sqlite_compact, "sealed", lambda place, data, room: seal(place, data[::-1] if next(calls) == 0 else data, room)
    )
    with pytest.raises(StoreUnavailable, match="other rows in its table log"):
        compact(path)
    assert (path.stat().st_ino, list(path.parent.glob("*.partial"))) == (inode, [])


def test_copy_is_on_the_disk_before_it_replaces_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(fill(path))
    inode = path.stat().st_ino
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(sqlite_compact, "sync", lambda place: synced.append((place.name, path.stat().st_ino == inode)))
    compact(path)
    folder = path.parent.name
    assert synced == [("chat.db.compact.partial", True), (folder, True), (folder, False)]


@pytest.mark.parametrize(
    ("change", "is_mended"),
    [
        ("UPDATE channels SET messages = 7 WHERE name = 'chat:1'", True),
        ("UPDATE channels SET messages = 7, size_bytes = x'00' WHERE name = 'chat:1'", True),
        ("lose the row of m2", False),
        ("UPDATE documents SET deleted = 1 WHERE message = 'm2'", False),
    ],
)
def test_compaction_counts_anew_unless_messages_may_be_lost(
    path: Path, change: str, is_mended: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def write_messages() -> None:
        async with opened(path) as store:
            await Chat(store, "chat:1").do(create("m1", "one"), create("m2", "two"))

    def run(*words: str) -> str:
        return cli(*words, store=path).output

    asyncio.run(write_messages())
    whole = run("export", "chat:1")
    if change.startswith("lose"):
        ((root,),) = run_from_outside(path, "SELECT rootpage FROM sqlite_master WHERE name = 'documents'")
        data = bytearray(read(path))
        data[PAGE_BYTES * (root - 1) + 4] -= 1  # the number of rows on the page
        write(path, bytes(data))
    else:
        run_from_outside(path, change)
        line = "its count of messages or bytes is wrong; if none of its messages is named, run `tenuto compact`"
        assert line in run("verify")
    assert "run `tenuto verify`" in run("export", "chat:1")
    before = run("verify")
    compact(path)
    assert (run("export", "chat:1") == whole) == is_mended
    assert ("no damage found" in run("verify")) == is_mended
    assert is_mended or "restore a backup" in before
    assert ("channel 'chat:1' had the counts of 7 messages" in caplog.text) == is_mended


async def test_free_space_is_counted_and_reported_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_engine, "WORTH_BYTES", 100_000)
    async with opened(path) as store:
        for number in range(4):
            await Chat(store, f"c{number}").do(*(create(f"m{n}", TEXT) for n in range(10)))
        for number in range(3):
            await emptied(store, f"c{number}")
        for _ in range(2):
            await store.tidy(0)
        stats = store.stats()
        await Chat(store, "new").do(create("m", TEXT))
        await store.tidy(0)
        used = store.stats()["free_bytes"]
        (counted,) = await run_on_thread(store, "SELECT sum(room) FROM free")
    assert len([one for one in caplog.messages if "`tenuto compact` gives them back" in one]) == 1
    assert 300_000 < stats["free_bytes"] <= stats["file_bytes"] < 600_000
    assert stats["free_bytes"] - used == pytest.approx(len(TEXT), abs=1_000)
    assert used == pytest.approx(counted[0], abs=20_000)
    async with opened(path) as store:
        assert store.stats()["free_bytes"] == pytest.approx(used, abs=20_000)
