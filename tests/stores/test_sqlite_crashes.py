"""What is left in the file after the process, or the machine, went down at the worst moment."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.stores import sqlite_file
from holdfast.stores.base import Head
from holdfast.testing.contract import Chat, append, create, texts
from tests.stores.files import PATIENCE_S, opened, read, wal, write
from tests.stores.writing import MESSAGES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


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
    """What the messages of `writing` say when the channel is at `serial`."""
    return [
        "".join(f"{number} " for number in range(4, serial + 1) if number % 3 == index)
        for index in range(len(MESSAGES))
    ]


async def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    for commits in (20, 35, 50):
        acknowledged = await asyncio.to_thread(write_and_be_killed, path, commits)
        async with opened(path) as store:
            head = await store.head("c")
            assert head.serial >= acknowledged
            assert head.epoch == "e1"
            assert await texts(store, "c", *MESSAGES) == words(head.serial)


async def test_a_wal_cut_anywhere_gives_back_a_whole_prefix(path: Path, tmp_path: Path) -> None:
    after: dict[int, dict[str, str]] = {0: {}}  # what was there at each serial
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
        frames, kept = read(wal(path)), read(path)
    random.seed(4)
    found = set()
    for cut in [0, len(frames), *random.sample(range(len(frames)), 30)]:
        copy = tmp_path / f"cut-{cut}" / "chat.db"
        write(copy, kept)
        write(wal(copy), frames[:cut])
        async with opened(copy) as store:
            serial = (await store.head("c")).serial
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
        assert ((await store.head("c")).epoch == "e1") == keeps_epochs


async def test_all_channels_of_a_copied_file_begin_a_new_epoch_once(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store, "a").do(create("m1", "x"))
        await Chat(store, "b").do(create("m2", "y"))
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    async with opened(copy) as store:
        heads = [await store.head(channel) for channel in "ab"]
        assert [head.serial for head in heads] == [1, 1]
        assert len({"e1", *(head.epoch for head in heads)}) == 3
        assert await texts(store, "a", "m1") == ["x"]
    async with opened(copy) as store:
        assert [await store.head(channel) for channel in "ab"] == heads
    async with opened(path) as store:
        assert await store.head("a") == Head("e1", 1)
