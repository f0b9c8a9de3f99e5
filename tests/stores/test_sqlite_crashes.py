"""The content of the file after the process, or the machine, went down at the worst moment."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenuto.core.errors import StoreUnusable
from tenuto.stores.base import Committed, head_of
from tenuto.stores.sqlite import file as sqlite_file
from tenuto.stores.sqlite.backup import keep_wal
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, append, create, texts
from tests.stores.files import PATIENCE_S, lock, opened, read, wal, write
from tests.stores.writing import MESSAGES


def write_and_be_killed(path: Path, commits: int, *, synchronous: str = "full") -> int:
    """Let a process write and kill it in the middle; returns the last serial that was acknowledged."""
    boot_id = path.with_name("boot_id")
    boot_id.write_text("boot-1")
    arguments = [sys.executable, "-m", "tests.stores.writing", str(path), synchronous, str(boot_id)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        serials = [int(process.stdout.readline()) for _ in range(commits)]
        process.send_signal(signal.SIGKILL)
        serials += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait(PATIENCE_S)
    return serials[-1]


def words(serial: int) -> list[str]:
    """Return the texts of `writing` when the channel is at `serial`."""
    return [
        "".join(f"{number} " for number in range(4, serial + 1) if number % 3 == index)
        for index in range(len(MESSAGES))
    ]


async def test_committed_entries_survive_kill_9(path: Path) -> None:
    acknowledged = await asyncio.to_thread(write_and_be_killed, path, 50)
    async with opened(path) as store:
        head = await head_of(store, "c")
        assert (head.epoch, head.serial >= acknowledged) == ("e1", True)
        rows = [append("m1", "x" * size) for size in range(1, 9)]  # of the sizes of those in the log
        await Chat(store, "other").do_each(create("m1", streaming=True), *rows)
        assert await texts(store, "c", *MESSAGES) == words(head.serial)


async def test_wal_cut_at_any_byte_restores_a_whole_prefix(path: Path, tmp_path: Path) -> None:
    after: dict[int, dict[str, str]] = {0: {}}  # for each serial the texts of the messages
    async with opened(path) as store:
        chat = Chat(store)
        for serial in range(1, 60):
            message_id = f"m{serial // 20}"
            if message_id not in chat.state.messages:
                await chat.do(create(message_id, streaming=True))
            else:
                due = [message_id] if serial % 5 == 0 else []
                await chat.do(append(message_id, f"{serial} " * (1 + serial % 9)), documents=due)
            after[serial] = {one.id: one.message().text for one in chat.state.messages.values()}
        frames, kept, locked = read(wal(path)), read(path), read(lock(path))
    random.seed(4)
    found = set()
    for cut in [0, len(frames), *random.sample(range(len(frames)), 30)]:
        copy = tmp_path / f"cut-{cut}" / "chat.db"
        write(copy, kept)
        write(wal(copy), frames[:cut])
        write(lock(copy), locked)
        async with opened(copy) as store:
            serial = (await head_of(store, "c")).serial
            found.add(serial)
            assert await texts(store, "c", *after[serial]) == list(after[serial].values())
    assert {0, 59} < found
    assert len(found) > 10


@pytest.mark.parametrize(
    ("synchronous", "is_killed", "boot", "keeps_epochs"),
    [
        ("normal", True, "boot-2", False),
        ("normal", True, "boot-1", True),
        ("normal", False, "boot-2", True),
        ("full", True, "boot-2", True),
    ],
)
async def test_epochs_end_where_acknowledged_entries_may_be_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: str, is_killed: bool, boot: str, keeps_epochs: bool
) -> None:
    await asyncio.to_thread(write_and_be_killed, path, 5, synchronous=synchronous)
    monkeypatch.setattr(sqlite_file, "BOOT_ID", path.with_name("boot_id"))
    if not is_killed:
        async with opened(path, synchronous=synchronous):
            pass
    path.with_name("boot_id").write_text(boot)
    async with opened(path) as store:
        assert ((await head_of(store, "c")).epoch == "e1") == keeps_epochs


# -- restored backups --------------------------------------------------------------------------------------------------


def put_back(path: Path, backup: bytes) -> None:
    """Make `backup` the file's content; it keeps its inode."""
    inode = path.stat().st_ino
    write(path, backup)
    wal(path).unlink(missing_ok=True)
    assert path.stat().st_ino == inode


async def epoch(path: Path) -> str:
    async with opened(path) as store:
        return (await head_of(store, "c")).epoch


@pytest.fixture
async def backup(path: Path) -> bytes:
    """The content of the closed file when channel "c" was at e1:1."""
    async with opened(path) as store:
        await Chat(store).do(create("m1", "x"))
    return read(path)


async def write_more(path: Path) -> None:
    async with opened(path) as store:
        assert await Chat(store, "other").do(create("m1", "x")) == Committed(1)


async def test_restored_backup_begins_epochs_once(path: Path, backup: bytes, caplog: pytest.LogCaptureFixture) -> None:
    await write_more(path)
    put_back(path, backup)
    assert (new := await epoch(path)) != "e1"
    assert "begins new epochs for all channels: the file is a restored backup" in caplog.text
    assert await epoch(path) == new
    write(path, b"")
    await write_more(path)
    assert caplog.messages[-1] == f"new store file {path}, although its lock file exists: was a former one removed?"


async def test_copy_of_a_running_file_restored_with_its_wal_is_refused_until_the_wal_is_kept(
    path: Path, backup: bytes
) -> None:
    async with opened(path) as store:
        await Chat(store, "other").do(create("m1", "x"))
        kept, frames = read(path), read(wal(path))
        assert frames
    put_back(path, kept)
    write(wal(path), frames)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=r"restore BACKUP --store .*chat\.db`; if not, keep the -wal by"):
            await SqliteStore(path).open()
        assert (read(path), read(wal(path))) == (kept, frames)
    keep_wal(path)
    async with opened(path) as store:
        assert (await head_of(store, "other")).serial == 1
        assert (await head_of(store, "other")).epoch != "e1"
        assert (await head_of(store, "c")).epoch != "e1"


async def test_backup_of_the_last_state_keeps_epochs(path: Path, backup: bytes) -> None:
    put_back(path, backup)
    assert await epoch(path) == "e1"


@pytest.mark.parametrize("left", [None, b"", b"\x00" * 60], ids=["removed", "emptied", "zeroed"])
async def test_a_lock_file_that_was_lost_begins_new_epochs_once(path: Path, backup: bytes, left: bytes | None) -> None:
    lock(path).unlink()
    if left is not None:
        write(lock(path), left)
    new = await epoch(path)
    assert new != "e1"
    assert await epoch(path) == new


MOMENTS = [(write, moment) for write in (1, 2, 3, 4) for moment in ("before", "after")]


def open_and_die(path: Path, write: int, moment: str) -> bool:
    """Run a process that is killed at that point of opening or closing; returns whether it had stored an entry."""
    arguments = [sys.executable, "-m", "tests.stores.dying", str(path), str(write), moment]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout in ("", "stored\n")
    return bool(done.stdout)


@pytest.mark.parametrize(("write_number", "moment"), MOMENTS)
async def test_kill_9_while_opening_or_closing_keeps_epochs_and_misses_no_backup(
    path: Path, backup: bytes, write_number: int, moment: str
) -> None:
    is_stored = await asyncio.to_thread(open_and_die, path, write_number, moment)
    assert is_stored == (write_number > 2)
    locked = read(lock(path))
    assert await epoch(path) == "e1"
    put_back(path, backup)
    write(lock(path), locked)
    assert await epoch(path) != "e1" or not is_stored


@pytest.mark.parametrize("restore", [put_back, lambda path, _: lock(path).unlink()], ids=["put_back", "no_lock"])
async def test_kill_9_does_not_hide_a_restored_backup(
    path: Path, backup: bytes, restore: Callable[[Path, bytes], None]
) -> None:
    await write_more(path)
    restore(path, backup)
    await asyncio.to_thread(open_and_die, path, 1, "after")
    assert await epoch(path) != "e1"


async def test_many_crashes_do_not_make_the_lock_file_grow(path: Path, backup: bytes) -> None:
    sizes = set()
    for _ in range(2):
        await asyncio.to_thread(open_and_die, path, 1, "after")
        sizes.add(len(lock(path).read_text().splitlines()[1]))
    assert len(sizes) == 1
