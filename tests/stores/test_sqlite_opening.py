"""The files that the SQLite store opens, and its errors for those that it refuses."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.msgpack import encode

from tenuto.core.errors import StoreInUse, StoreUnavailable, StoreUnusable
from tenuto.stores.base import Committed, head_of
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.slots import sealed
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, create, put_part
from tests.stores.files import PATIENCE_S, modes, no_thread_left, opened, read, run_from_outside, run_on_thread, write


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the store open, and writes until it is killed."""
    arguments = [sys.executable, "-m", "tests.stores.writing", str(path), "full", os.devnull]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        yield process
        process.kill()


async def test_store_waits_for_its_holder_and_takes_no_second_name(holder: subprocess.Popen[str], path: Path) -> None:
    store = SqliteStore(path, lock_wait_s=0.3)
    began_s = time.monotonic()
    with pytest.raises(StoreInUse, match=rf"chat\.db is in use by process {holder.pid} \(writing\.py\): stop it, or"):
        await store.open()
    assert time.monotonic() - began_s >= 0.3
    store._lock_wait_s = 600.0
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreInUse):
            await store.open()
    path.with_name("link.db").hardlink_to(path)
    with pytest.raises(StoreInUse, match=r"link\.db is in use by another process: it has a second name, such as"):
        await SqliteStore(path.with_name("link.db")).open()
    holder.kill()
    holder.wait()
    async with opened(path):
        assert run_from_outside(path, "PRAGMA integrity_check") == [("ok",)]  # no second name has changed the file


async def test_second_store_waits_for_the_first_to_close(path: Path) -> None:
    first, second = SqliteStore(path), SqliteStore(path, lock_wait_s=PATIENCE_S)
    await first.open()
    opening = asyncio.create_task(second.open())
    await head_of(first, "c")
    assert not opening.done()
    await first.close()
    await opening
    await second.close()


async def test_every_path_to_the_file_has_the_same_lock(store: SqliteStore, path: Path) -> None:
    path.with_name("link.db").symlink_to(path)
    with pytest.raises(StoreInUse, match=r"db is in use by this process: another Hub .* close it first"):
        await SqliteStore(path.with_name("link.db"), lock_wait_s=0).open()


async def test_cancelled_open_releases_lock_and_thread(path: Path) -> None:
    async with opened(path) as store:
        opening = asyncio.create_task(SqliteStore(path, lock_wait_s=PATIENCE_S).open())
        await head_of(store, "c")
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    await no_thread_left()
    async with opened(path, lock_wait_s=0):
        pass


def write_log(path: Path, data: bytes) -> None:
    """Write `data` into each row of the log."""
    run_from_outside(path, "UPDATE log SET body = ?", sealed((1,), data, 64))


def lose_a_piece(path: Path, order: str) -> None:
    """Empty the first or the last row of an operation that has several."""
    rows = f"SELECT id, body FROM log WHERE length(body) > 3000 ORDER BY id {order}"
    slot, body = run_from_outside(path, rows)[0]
    run_from_outside(path, "UPDATE log SET body = ? WHERE id = ?", sealed((slot,), b"", len(body)), slot)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: write(path, read(path)[: 5 * 4096]), "the file is damaged; run `tenuto verify`.* or restore a"),
        (lambda path: run_from_outside(path, "PRAGMA user_version = 0"), f"it has schema 0, and this .* {SCHEMA}; use"),
        (lambda path: run_from_outside(path, "PRAGMA user_version = 99"), f"schema 99, and this .* {SCHEMA}; use that"),
        (lambda path: write_log(path, b"\xc1" * 10), "slot 1 cannot be read"),
        (lambda path: write_log(path, encode([[1, 2, 0, encode([99, ""])]])), "operation that this Tenuto does not"),
        (lambda path: lose_a_piece(path, "ASC"), "the log is damaged"),
        (lambda path: lose_a_piece(path, "DESC"), "the log is damaged"),
    ],
)
async def test_file_that_cannot_be_used_is_refused_and_not_locked(
    path: Path, spoil: Callable[[Path], object], expected: str
) -> None:
    async with opened(path) as store:
        await Chat(store).do(create("m1", "x" * 100_000), create("m2", streaming=True))
        await Chat(store).do(put_part("m2", 0, {"type": "text", "text": "x" * 9_000}))
        chat = Chat(store, "d")
        await chat.do_each(create("m1", streaming=True), put_part("m1", 0, {"type": "text", "text": "x" * 9_000}))
    spoil(path)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=expected):
            await SqliteStore(path, lock_wait_s=0).open()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat.db", "a database of another program"),
        ("a b?c#d%20.db", "a database of another program"),
        ("diary.txt", "the file is not a database"),
    ],
)
async def test_file_of_another_program_is_unchanged_and_gets_no_lock_file(path: Path, name: str, expected: str) -> None:
    path = path.with_name(name)
    if name == "diary.txt":
        write(path, b"Dear diary, " * 1_000)
    else:
        run_from_outside(path, "CREATE TABLE orders (id INTEGER)")
        run_from_outside(path, "PRAGMA journal_mode = WAL")
    before = read(path)
    with pytest.raises(StoreUnusable, match=expected):
        await SqliteStore(path).open()
    assert read(path) == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("folder", "is a directory or a device; name a file"),
        ("pipe", "is a directory or a device; name a file"),
        ("nowhere/chat.db", "there is no directory .*nowhere; create it"),
    ],
)
async def test_path_of_no_file_is_refused_and_gets_no_lock_file(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreUnavailable, match=expected):
        await SqliteStore(tmp_path / name).open()
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


@pytest.mark.parametrize("is_database", [False, True])
async def test_empty_file_becomes_a_store(path: Path, is_database: bool) -> None:
    write(path, b"")
    if is_database:
        run_from_outside(path, "VACUUM")
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)


@pytest.mark.parametrize(
    "statement", ["CREATE INDEX mine ON documents (size_bytes)", """CREATE TABLE "a""b" (x PRIMARY KEY)"""]
)
async def test_further_index_or_table_of_another_program_is_ignored(path: Path, statement: str) -> None:
    async with opened(path):
        pass
    run_from_outside(path, statement)
    async with opened(path) as store:
        assert await store.channels(after=None, limit=1) == []


async def test_missing_index_is_named_with_the_statement_that_creates_it(path: Path) -> None:
    async with opened(path):
        pass
    run_from_outside(path, "DROP INDEX documents_open")
    with pytest.raises(StoreUnusable) as refused:
        await SqliteStore(path).open()
    found = re.fullmatch(
        r".* cannot be read: it has no index 'documents_open' \(if another program dropped it, run the SQL (.*)\); "
        "restore a backup",
        str(refused.value),
    )
    assert found, refused.value
    run_from_outside(path, found[1])
    async with opened(path):
        pass


@pytest.mark.parametrize(("setting", "level"), [("normal", 1), ("full", 2), ("extra", 3)])
async def test_synchronous_is_set_as_configured(path: Path, setting: str, level: int) -> None:
    async with opened(path, synchronous=setting) as store:
        assert await run_on_thread(store, "PRAGMA synchronous") == [(level,)]


OPEN = """
import asyncio, os, sys
from tenuto.core.errors import StoreUnavailable
from tenuto.stores.sqlite.store import SqliteStore
if os.geteuid() == 0:
    os.setuid(65534)  # file modes do not bind root
try:
    asyncio.run(SqliteStore(sys.argv[1]).open())
except StoreUnavailable as error:
    print(error)
from tenuto.stores.sqlite.verify import Path, main
main(Path(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("folder_mode", "expected"),
    [
        (0o555, "chat.db.lock cannot be written (Permission denied); the directory and the files in it must be"),
        (0o777, "it cannot be written; file and directory must be writable for this user"),
        (0o700, "cannot be used (Permission denied); run as its owner"),
    ],
)
async def test_file_or_folder_that_may_not_be_written_is_named(folder_mode: int, expected: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # which other users may enter
        path = Path(folder) / "chat.db"
        async with opened(path) as store:
            await Chat(store).do(create("m1", "a"))
        path.chmod(0o444)
        path.with_name("chat.db.lock").chmod(0o666 if folder_mode == 0o777 else 0o444)
        path.parent.chmod(folder_mode)
        arguments = [sys.executable, "-c", OPEN, str(path)]
        done = await asyncio.to_thread(
            subprocess.run, arguments, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        path.parent.chmod(0o755)
    assert expected in done.stdout, done.stderr
    assert "restore a backup" not in done.stdout, done.stderr


@pytest.fixture
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous_umask")
async def test_new_files_are_for_the_user_of_the_server_alone(path: Path) -> None:
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)
        assert modes(path) == dict.fromkeys(("chat.db", "chat.db-wal", "chat.db-shm", "chat.db.lock"), 0o600)


@pytest.mark.usefixtures("generous_umask")
async def test_existing_files_keep_their_mode(path: Path) -> None:
    async with opened(path):
        pass
    os.chmod(path, 0o640)
    os.chmod(f"{path}.lock", 0o660)
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)
        files = dict.fromkeys(("chat.db", "chat.db-wal", "chat.db-shm"), 0o640)
        assert modes(path) == {**files, "chat.db.lock": 0o660}
