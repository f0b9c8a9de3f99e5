"""Backups of an open store, and what a start does with them."""

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tenuto.app import Hub
from tenuto.core.errors import LocalError, StoreInUse, StoreUnavailable, StoreUnusable
from tenuto.stores.base import Committed, head_of
from tenuto.stores.sqlite import backup as sqlite_backup
from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.backup import keep_wal, restore
from tenuto.stores.sqlite.file import BACKUP, read_mark
from tenuto.stores.sqlite.store import SqliteStore, StoreThread
from tests.stores.contract import Chat, append, create, texts
from tests.stores.files import (
    PATIENCE_S,
    cli,
    lock,
    modes,
    on_disk,
    opened,
    read,
    run_from_outside,
    run_on_thread,
    wal,
    write,
)
from tests.stores.test_sqlite_crashes import write_and_be_killed
from tests.stores.writing import MESSAGES

SPEED = 10_000.0  # MB per second: no pause between steps


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "one.db"


async def made(path: Path, target: Path) -> None:
    """Make a backup of the store when its channel "c" is at e1:1."""
    async with opened(path) as store:
        await Chat(store).do(create("m0", "backed up"))
        await store.backup(target, mb_per_s=SPEED)


@pytest.mark.parametrize(("has_lock", "has_shm"), [(True, True), (False, False)])
async def test_backup_copied_over_the_file_of_a_killed_process_is_not_mixed_with_its_wal(
    path: Path, target: Path, has_lock: bool, has_shm: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await made(path.with_name("other.db"), target)
    await asyncio.to_thread(write_and_be_killed, path, 40)
    shutil.copyfile(target, path)
    if not has_lock:
        lock(path).unlink()
    if not has_shm:
        path.with_name("chat.db-shm").unlink()
    async with opened(path) as store:
        assert await texts(store, "c", "m0", *MESSAGES) == ["backed up", "backed up"]
        assert (await head_of(store, "c")).epoch != "e1"
    assert ", of the file that it replaced, is now " in caplog.text
    assert len(list(path.parent.glob("chat.db-wal.foreign-*"))) == 1
    assert run_from_outside(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(
    ("command", "expected"),
    [("channels", "c\n"), ("verify", "no damage found"), ("restore {path}", "is now the content")],
)
async def test_commands_mix_no_copied_backup_with_a_wal(path: Path, target: Path, command: str, expected: str) -> None:
    await made(path.with_name("old.db"), target)
    async with opened(path) as store:
        for number in range(20):
            await Chat(store, f"lost{number}").do(create("m0", "lost " * 500))
        await run_on_thread(store, "UPDATE channels SET crc = crc + 1")  # so that `verify` shows the -wal, too
        frames, locked = read(wal(path)), read(lock(path))
    for file, data in ((path, read(target)), (wal(path), frames), (lock(path), locked)):
        write(file, data)
    place = path.with_name("restored.db") if command.startswith("restore") else path
    words = [word.format(path=path) for word in command.split()]
    done = await asyncio.to_thread(cli, *words, store=place)
    assert (done.exit_code, "lost" in done.output) == (0, False), done.output
    assert expected in done.output
    assert read(wal(path)) == frames
    async with opened(place) as store:
        assert await store.channels(after=None, limit=100) == ["c"]


@pytest.mark.parametrize("kept_bytes", [4096 * 5, 4096], ids=["life", "no_life"])
async def test_incomplete_copy_of_a_backup_is_not_mixed_with_a_wal(path: Path, target: Path, kept_bytes: int) -> None:
    await made(path.with_name("other.db"), target)
    await asyncio.to_thread(write_and_be_killed, path, 40)
    frames, copied = read(wal(path)), read(target)[:kept_bytes]
    write(path, copied)
    with pytest.raises(StoreUnusable, match=r"the file is damaged|cannot be read\).*BACKUP.*restore --keep-wal"):
        await SqliteStore(path).open()
    assert read(path) == copied
    assert [read(one) for one in path.parent.glob("chat.db-wal*")] == [frames]


async def test_file_torn_by_a_crash_is_repaired_by_its_wal_once_that_is_kept(path: Path) -> None:
    async with opened(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM documents").fetchone()
        async with opened(path) as store:
            await Chat(store).do(create("m1", "x"))
            main, frames, locked = read(path), read(wal(path)), read(lock(path))
    write(path, main[:4096] + bytes(4096) + main[8192:])  # a crash within a checkpoint tore the page of `life`
    write(wal(path), frames)
    write(lock(path), locked)
    with pytest.raises(StoreUnusable, match=r"the file itself cannot be read\).*BACKUP.*restore --keep-wal"):
        await SqliteStore(path).open()
    keep_wal(path)
    async with opened(path) as store:
        assert await texts(store, "c", "m1") == ["x"]


async def test_own_wal_is_known_although_a_reader_blocked_each_checkpoint(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store, "a").do(create("m1", "x"))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM documents").fetchone()
        for channel in "bc":
            async with opened(path) as store:
                await Chat(store, channel).do(create("m1", "y"))
        copies = [(one.name, read(one)) for one in path.parent.iterdir() if not one.name.endswith("-shm")]
    moved = path.parent / "moved"
    for name, data in copies:
        write(moved / name, data)
    async with opened(moved / path.name) as store:
        assert [await texts(store, channel, "m1") for channel in "abc"] == [["x"], ["y"], ["y"]]
    assert not list(moved.glob("*foreign*"))


async def test_missing_lock_file_beside_a_wal_stops_the_start_and_names_both_commands(path: Path) -> None:
    serial = await asyncio.to_thread(write_and_be_killed, path, 5)
    lock(path).unlink()
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=r"its lock file is missing.*tenuto restore BACKUP.*restore --keep-wal"):
            await SqliteStore(path).open()
    keep_wal(path)
    async with opened(path) as store:
        assert (await head_of(store, "c")).serial >= serial
        assert (await head_of(store, "c")).epoch != "e1"


async def test_backup_during_commits_holds_a_prefix_and_stops_none(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, count = StoreThread.serve, 0

    def serve_some(self: StoreThread, seconds: float) -> bool:
        while count < 5:  # however slow the disk is
            if not serve(self, 0.01):
                return False
        return serve(self, 0.0)

    monkeypatch.setattr(StoreThread, "serve", serve_some)
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do(create("old", "x" * 400_000), create("m1", streaming=True))
        backing = asyncio.create_task(store.backup(target, mb_per_s=SPEED))
        while not backing.done():
            assert isinstance(await chat.do(append("m1", f"{count} ")), Committed)
            count += 1
        await backing
        whole = "".join(f"{number} " for number in range(count))
    assert count > 3
    assert modes(target) == {"one.db": 0o600}
    async with opened(target) as store:
        (old, new) = await texts(store, "c", "old", "m1")
        assert old == "x" * 400_000
        assert whole.startswith(new)


async def test_backup_is_marked_and_on_the_disk_before_it_has_its_name(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool, bool]] = []

    def sync(place: Path) -> None:
        is_marked = place.is_file() and read_mark(place).startswith(BACKUP)
        synced.append((place, is_marked, target.exists()))

    monkeypatch.setattr(sqlite_backup, "sync", sync)
    await made(path, target)
    assert synced[-2:] == [(target.with_name("one.db.partial"), True, False), (target.parent, False, True)]


async def test_store_that_closes_stops_its_backup(path: Path, target: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await Chat(store).do(create("m1", "x" * 1_000_000))
    backing = asyncio.create_task(store.backup(target, mb_per_s=0.001))  # it would take a quarter of an hour
    await asyncio.sleep(0)  # the backup begins
    await head_of(store, "c")
    await store.close()
    with pytest.raises(StoreUnavailable, match="the store closes"):
        await backing
    assert list(target.parent.iterdir()) == []
    async with opened(path) as again:
        assert await texts(again, "c", "m1") == ["x" * 1_000_000]


async def test_sync_that_fails_during_the_copy_ends_the_backup(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, has_failed, steps = [OSError(errno.EIO, "Input/output error")], threading.Event(), list[float]()

    async def keep_synced(*arguments: Any) -> None:
        try:
            await sqlite_backup.keep_synced(*arguments)
        finally:
            has_failed.set()

    def serve(self: StoreThread, seconds: float) -> bool:
        steps.append(seconds)
        return has_failed.wait(PATIENCE_S)

    def sync(file: Path) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(sqlite_backup, "sync", sync)
    monkeypatch.setattr(sqlite, "keep_synced", keep_synced)
    monkeypatch.setattr(StoreThread, "serve", serve)
    async with opened(path) as store:
        await Chat(store).do(create("m1", "x" * 1_000_000))
        with pytest.raises(StoreUnavailable, match="Input/output error; check the disk"):
            await store.backup(target, mb_per_s=SPEED)
    assert (len(steps), list(target.parent.iterdir())) == (1, [])


async def test_targets_that_cannot_be_written_are_refused(path: Path, target: Path, store: SqliteStore) -> None:
    await store.backup(target, mb_per_s=SPEED)
    before = await asyncio.to_thread(on_disk, target)
    path.with_name("two.db.partial").symlink_to(path)
    for wrong, why in (
        (target, "exists already"),
        (path, "is a file of the store itself"),
        (path.with_name("chat.db-wal"), "is a file of the store itself"),
        (path.with_name("chat.db.ctl"), "is a file of the store itself"),
        (path.parent / "nowhere" / "x.db", "there is no directory"),
        (path.with_name("x" * 300), "is not possible: File name too long; name another file"),
        (path.with_name("two.db"), "is a file of the store itself; name another file"),  # by its unfinished file
    ):
        with pytest.raises(LocalError, match=why):
            await store.backup(wrong, mb_per_s=SPEED)
    assert await asyncio.to_thread(on_disk, target) == before
    other = target.with_name("two.db")
    both = await asyncio.gather(*(store.backup(other, mb_per_s=SPEED) for _ in range(2)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in both) == ["LocalError", "NoneType"]


# -- restore ---------------------------------------------------------------------------------------------------------


async def test_restore_keeps_the_replaced_file_with_its_wal(path: Path, target: Path) -> None:
    await made(path.with_name("other.db"), target)
    serial = await asyncio.to_thread(write_and_be_killed, path, 20)
    kept, _ = restore(target, path)
    assert kept is not None
    assert [name for name in modes(path) if name in ("chat.db-wal", "chat.db-shm")] == []
    async with opened(path) as store:
        assert await texts(store, "c", "m0") == ["backed up"]
        assert (await head_of(store, "c")).epoch != "e1"
    keep_wal(kept)
    async with opened(kept) as store:
        assert (await head_of(store, "c")).serial >= serial


async def test_restore_that_ends_before_its_last_step_leaves_the_store_with_its_wal(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(path.with_name("other.db"), target)
    serial = await asyncio.to_thread(write_and_be_killed, path, 20)

    def die(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            restore(target, path)
    async with opened(path) as store:
        head = await head_of(store, "c")
        assert (head.epoch, head.serial >= serial) == ("e1", True)


@pytest.mark.parametrize("has_file", [True, False], ids=["file", "no_file"])
def test_restored_file_has_the_mode_and_owner_of_the_replaced_one(path: Path, target: Path, has_file: bool) -> None:
    asyncio.run(made(path, target))
    user = 4_711 if os.geteuid() == 0 else os.geteuid()
    if has_file:
        path.chmod(0o640)
        os.chown(path, user, -1)
    else:
        path.unlink()
        lock(path).unlink()
        os.chown(path.parent, user, -1)
    restore(target, path)
    assert lock(path).stat().st_uid == user
    assert (path.stat().st_mode & 0o777, path.stat().st_uid) == (0o640 if has_file else 0o600, user)


async def test_restore_while_the_store_is_open_is_refused(path: Path, target: Path) -> None:
    await made(path, target)
    async with opened(path) as store:
        with pytest.raises(StoreInUse):
            restore(target, path)
        assert await texts(store, "c", "m0") == ["backed up"]


@pytest.mark.parametrize("kind", ["half", "foreign", "newer", "text", "damaged", "described"])
async def test_file_that_is_not_a_whole_backup_is_not_restored(path: Path, target: Path, kind: str) -> None:
    await made(path, target)
    before = read(path)
    match kind:
        case "half":
            write(target, read(target)[: 4096 * 5])
        case "foreign":
            write(target, b"")
            run_from_outside(target, "CREATE TABLE orders (id INTEGER)")
        case "newer":
            run_from_outside(target, "PRAGMA user_version = 99")
        case "text":
            write(target, b"Dear diary, " * 1_000)
        case "damaged":
            write(target, read(target)[:8192] + os.urandom(4096) + read(target)[12288:])
        case "described":  # its numbers are no longer those of the slots
            write(target, read(target).replace(b"log (id INTEGER", b"log (ie INTEGER"))
    with pytest.raises(StoreUnusable, match=f"^backup {target} "):
        restore(target, path)
    assert read(path) == before
    assert not list(path.parent.glob("*before-restore*"))
    assert not list(path.parent.glob("*.partial"))


def test_commands_make_a_backup_and_restore_it(path: Path, target: Path) -> None:
    async def fill(text: str) -> None:
        hub = Hub(f"sqlite:///{path}", hooks_signals=False)
        await hub.create("c", text=text)
        if text == "served":
            await hub.backup(target.with_name("served.db"))
        await hub.close()

    def run(*arguments: str, store: Path = path) -> str:
        result = cli(*arguments, store=store)
        return f"{result.exit_code}: {result.output}"

    asyncio.run(fill("kept"))
    assert run("backup", str(target)).startswith(f"0: {target} is a backup of {path}")
    asyncio.run(fill("lost"))
    asyncio.run(fill("served"))
    write(path.with_name("chat.db-journal"), b"of the replaced file")
    assert f"{path} is now the content of {target}" in run("restore", str(target))
    assert not list(path.parent.glob("chat.db-journal"))
    for file, count in ((path, 1), (target.with_name("served.db"), 3)):
        assert run_from_outside(file, "SELECT count(*) FROM documents") == [(count,)]
    long, file = path.with_name("x" * 300), str(target)
    for arguments, store, expected in (
        (("backup", f"{file}2", "--mb-per-s", "nan"), path, "mb_per_s must be a number above 0"),
        (("restore",), path, "needs either a BACKUP or --keep-wal"),
        (("restore", "--keep-wal"), path, "has no -wal beside it"),
        (("restore", str(long)), path, "cannot be used: File name too long; check its name"),
        (("restore", file), path.parent, "is not a file; name the file of the store"),
        (("channels",), long, "cannot be used: File name too long; check its name"),
    ):
        assert expected in run(*arguments, store=store)
    write(target, read(target).replace(b"kept", b"kepd", 1))
    assert f"{target}: 1 damaged, all else is whole; an earlier backup may have" in run("restore", file)


async def test_store_in_memory_has_no_backup(target: Path) -> None:
    hub = Hub("memory://", hooks_signals=False)
    with pytest.raises(LocalError, match="a memory store has no backup; use a store in a file"):
        await hub.backup(target)
    await hub.close()
