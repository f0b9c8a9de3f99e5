"""The SQLite store keeps every promise, and those that only a file can break: crashes, locks, full disks, deletion."""

import asyncio
import contextlib
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from holdfast.core.document import restore
from holdfast.core.errors import LocalError, StoreInUse, StoreUnavailable, StoreUnusable
from holdfast.core.state import ChannelState
from holdfast.stores import sqlite, sqlite_engine, sqlite_file
from holdfast.stores.base import Committed, CommitUnknown, Head, Write
from holdfast.stores.sqlite import SqliteStore
from holdfast.stores.sqlite_engine import Engine
from holdfast.testing import StoreContract
from holdfast.testing.contract import MINUTE_MS, Chat, append, create, delete, edit, finish, put_part, texts
from tests.stores.writing import MESSAGES

PATIENCE_S = 20


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        async with opened(tmp_path / "chat.db") as store:
            yield store


@contextlib.asynccontextmanager
async def opened(path: Path, **settings: object) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, **settings)  # type: ignore[arg-type]
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path, busy_s=0.1) as store:
        yield store


async def on_thread(store: SqliteStore, sql: str) -> list[tuple[object, ...]]:
    """Run a statement on the store's own connection."""
    return await store._ask(lambda engine: engine._file.db.execute(sql).fetchall())


def on_disk(path: Path) -> bytes:
    """Everything that stands in the files of a store."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


# -- crashes -----------------------------------------------------------------------------------------------------


class Writer:
    """The process `writing`."""

    def __init__(self, path: Path, *, synchronous: str = "full", boot: str = "boot-1") -> None:
        self._boot_id = path.with_name("boot_id")
        self._boot_id.write_text(boot)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.stores.writing", str(path), synchronous, str(self._boot_id)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill_after(self, commits: int) -> int:
        """Kill it in the middle of its work; returns the last serial that was acknowledged."""
        assert self._process.stdout is not None
        for _ in range(commits):
            assert self._process.stdout.readline()
        self._process.send_signal(signal.SIGKILL)
        rest = self._process.stdout.read().split()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)
        return int(rest[-1]) if rest else commits


def words_of(serial: int) -> dict[str, str]:
    """What the messages of `writing` say when the channel is at `serial`."""
    return {
        message_id: "".join(f"{number} " for number in range(4, serial + 1) if number % 3 == index)
        for index, message_id in enumerate(MESSAGES)
    }


async def test_what_was_acknowledged_survives_kill_9(path: Path) -> None:
    for commits in (20, 35, 50):
        acknowledged = await asyncio.to_thread(lambda count=commits: Writer(path).kill_after(count))
        async with opened(path) as store:
            head = await store.head("c")
            assert head.serial >= acknowledged
            assert head.epoch == "e1"
            assert await texts(store, "c", *MESSAGES) == list(words_of(head.serial).values())


async def test_a_wal_cut_anywhere_gives_back_a_whole_prefix(path: Path, tmp_path: Path) -> None:
    """As after a power cut: all that is lost is lost from the end."""
    after: dict[int, ChannelState] = {}
    async with opened(path, lock_wait_s=0) as store:
        chat = Chat(store)
        after[0] = chat.state
        for serial in range(1, 60):
            if serial % 20 == 1:
                await chat.do(create(f"m{serial // 20}", streaming=True))
            else:
                message_id = f"m{serial // 20}"
                await chat.do(append(message_id, f"{serial} " * (serial % 9)), documents=[message_id] * (serial % 5 == 0))
            after[chat.state.serial] = chat.state
        wal = Path(f"{path}-wal").read_bytes()
        kept = path.read_bytes()
    random.seed(4)
    found = set()
    for cut in [0, len(wal), *random.sample(range(len(wal)), 30)]:
        copy = tmp_path / f"cut-{cut}" / "chat.db"
        copy.parent.mkdir()
        copy.write_bytes(kept)
        Path(f"{copy}-wal").write_bytes(wal[:cut])
        async with opened(copy) as store:
            serial = (await store.head("c")).serial
            found.add(serial)
            truth = after[serial].messages
            assert await texts(store, "c", *truth) == [message.message().text for message in truth.values()]
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
    await asyncio.to_thread(lambda: Writer(path, synchronous=synchronous).kill_after(5))
    monkeypatch.setattr(sqlite_file, "BOOT_ID", path.with_name("boot_id"))
    if not is_killed:
        async with opened(path, synchronous=synchronous):
            pass
    path.with_name("boot_id").write_text(boot)
    async with opened(path, synchronous=synchronous) as store:
        assert ((await store.head("c")).epoch == "e1") == keeps_epochs


async def test_all_channels_of_a_copied_file_begin_a_new_epoch_once(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        await Chat(store, "a").do(create("m1", "x"))
        await Chat(store, "b").do(create("m2", "y"))
    copy = tmp_path / "copy.db"
    shutil.copy(path, copy)
    async with opened(copy) as store:
        heads = [await store.head(channel) for channel in "ab"]
        assert [head.serial for head in heads] == [1, 1]
        assert "e1" not in {head.epoch for head in heads}
        assert await texts(store, "a", "m1") == ["x"]
    async with opened(copy) as store:
        assert [await store.head(channel) for channel in "ab"] == heads
    async with opened(path) as store:
        assert await store.head("a") == Head("e1", 1)


# -- who may open it ---------------------------------------------------------------------------------------------


async def test_a_second_store_on_the_file_is_refused_and_told_by_whom(store: SqliteStore, path: Path) -> None:
    program = Path(sys.argv[0]).name
    with pytest.raises(StoreInUse, match=rf"chat\.db is in use by process \d+ \({program}\)\. Stop it"):
        await SqliteStore(path, lock_wait_s=0.05).open()
    assert await store.head("c") == Head("-", 0)


async def test_a_second_store_waits_for_the_first_to_leave(path: Path) -> None:
    first, second = SqliteStore(path), SqliteStore(path, lock_wait_s=PATIENCE_S)
    await first.open()
    opening = asyncio.create_task(second.open())
    await first.head("c")
    assert not opening.done()
    await first.close()
    await opening
    await second.close()


async def test_the_lock_is_the_same_by_every_path_to_the_file(store: SqliteStore, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    with pytest.raises(StoreInUse):
        await SqliteStore(tmp_path / "link.db", lock_wait_s=0).open()


async def test_an_open_that_is_cancelled_lets_go_of_everything(path: Path) -> None:
    async with opened(path):
        opening = asyncio.create_task(SqliteStore(path, lock_wait_s=PATIENCE_S).open())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    async with opened(path):
        pass
    await no_thread_left()


async def test_a_newer_schema_is_refused_with_both_versions(path: Path) -> None:
    async with opened(path):
        pass
    change(path, "PRAGMA user_version = 7")
    with pytest.raises(StoreUnusable, match=r"schema 7, this one knows up to 1\. Upgrade Holdfast"):
        await SqliteStore(path).open()


async def test_a_database_of_something_else_is_refused_and_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE orders (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="a database of something else"):
        await SqliteStore(path).open()
    assert path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("Dear diary, " * 1_000)
    with pytest.raises(StoreUnusable, match="this is no database"):
        await SqliteStore(path).open()
    assert path.read_text() == "Dear diary, " * 1_000


async def test_an_empty_file_is_taken(path: Path) -> None:
    path.touch()
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)


async def test_a_torn_file_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store).do(create("m1", "x" * 100_000))
    path.write_bytes(path.read_bytes()[: 5 * 4096])
    with pytest.raises(StoreUnusable, match="the file is damaged; restore a backup"):
        await SqliteStore(path).open()


async def test_a_damaged_log_is_refused(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do_each(create("m1", streaming=True), append("m1", "a"))
    change(path, "UPDATE log SET body = x'0005c1c1c1c1c1'")
    with pytest.raises(StoreUnusable, match="the log is damaged"):
        await SqliteStore(path).open()


async def test_an_unknown_operation_in_the_log_is_refused(path: Path) -> None:
    async with opened(path) as store:
        chat = Chat(store)
        await chat.do_each(create("m1", streaming=True), finish("m1"))
    # [[1, 2, 0, <bin: [99, ""]>]]: an operation with a tag nobody knows.
    change(path, "UPDATE log SET body = x'000a919401020 0c4039263a0'".replace(" ", ""))
    with pytest.raises(StoreUnusable, match="does not know"):
        await SqliteStore(path).open()


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="there is no directory .*nowhere; create it"):
        await SqliteStore(tmp_path / "nowhere" / "chat.db").open()


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "chat.db").mkdir()
    with pytest.raises(StoreUnavailable, match="it cannot be opened; is it a file"):
        await SqliteStore(tmp_path / "chat.db").open()


OPEN_AND_SAY = """
import asyncio, sys
from holdfast.core.errors import StoreUnavailable
from holdfast.stores.sqlite import SqliteStore
try:
    asyncio.run(SqliteStore(sys.argv[1]).open())
except StoreUnavailable as error:
    print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that also another user may read."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def open_as_nobody(path: Path) -> str:
    """What opening says to a user who may not write (root may always)."""
    user = 65534 if Path("/proc").stat().st_uid == 0 and is_root() else None
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_SAY, str(path)], user=user, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.stdout + done.stderr


def is_root() -> bool:
    import os

    return os.geteuid() == 0
