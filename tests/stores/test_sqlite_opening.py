"""The files that the SQLite store opens, and its errors for those that it refuses."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tenuto.cli.main import main
from tenuto.core.errors import LocalError, StoreInUse, StoreUnavailable, StoreUnusable
from tenuto.stores.base import Committed, Head, head_of
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.slots import sealed
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, append, create, finish, put_part
from tests.stores.files import PATIENCE_S, no_thread_left, opened, read, run_from_outside, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    async with opened(path) as store:
        yield store


async def test_second_store_of_this_process_is_refused_as_such(store: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreInUse, match=r"chat\.db is in use by this process: another Hub .* close it first"):
        await SqliteStore(path, lock_wait_s=0.05).open()
    assert await head_of(store, "c") == Head("-", 0)


HOLD = """
import asyncio, sys
from tenuto.stores.sqlite.store import SqliteStore

async def main():
    await SqliteStore(sys.argv[1]).open()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def holder(path: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the store open, until its stdin ends."""
    (tmp_path / "hold.py").write_text(HOLD)
    arguments = [sys.executable, str(tmp_path / "hold.py"), str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


async def test_store_of_another_process_is_refused_with_the_holder(holder: subprocess.Popen[str], path: Path) -> None:
    with pytest.raises(StoreInUse, match=rf"chat\.db is in use by process {holder.pid} \(hold\.py\): stop it, or"):
        await SqliteStore(path, lock_wait_s=0).open()


async def test_a_store_waits_for_the_holder_once(holder: subprocess.Popen[str], path: Path) -> None:
    store = SqliteStore(path, lock_wait_s=0.3)
    began_s = time.monotonic()
    with pytest.raises(StoreInUse):
        await store.open()
    assert time.monotonic() - began_s >= 0.3
    store._lock_wait_s = 600.0
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreInUse):
            await store.open()
    holder.communicate()  # the other process ends
    await store.open()
    await store.close()


WORKER = """
import asyncio, multiprocessing, sys, time
from tenuto.core.errors import StoreInUse
from tenuto.stores.sqlite.store import SqliteStore

async def hold(path, opened, end):
    await SqliteStore(path).open()
    opened.set()
    await asyncio.to_thread(end.wait)

async def refused(path):
    began_s = time.monotonic()
    try:
        await SqliteStore(path, lock_wait_s=60).open()
    except StoreInUse as error:
        print(time.monotonic() - began_s < 40, error.detail, flush=True)

def worker(path, opened, end):
    asyncio.run(refused(path) if opened.is_set() else hold(path, opened, end))
    end.set()

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    opened, end = spawn.Event(), spawn.Event()
    first, second = (spawn.Process(target=worker, args=(sys.argv[1], opened, end)) for _ in range(2))
    first.start()
    opened.wait()
    second.start()
    second.join()
    first.join()
"""


def test_another_worker_of_the_same_server_is_refused_at_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKER)
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "workers.py"), str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S * 6,
    )
    assert ran.stdout.startswith("True store file"), ran.stderr
    assert (
        "it is another worker of this server: run one worker (--workers 1), or use a postgresql:// store" in ran.stdout
    )


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
    with pytest.raises(StoreInUse):
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


async def test_a_store_that_could_not_be_opened_can_be_opened_later(path: Path) -> None:
    waiting = SqliteStore(path, lock_wait_s=0)
    async with opened(path):
        with pytest.raises(StoreInUse):
            await waiting.open()
    await waiting.open()
    assert await head_of(waiting, "c") == Head("-", 0)
    await waiting.close()


@pytest.mark.parametrize("schema", [0, SCHEMA + 1])
async def test_unknown_schema_is_refused_with_both_numbers(path: Path, schema: int) -> None:
    async with opened(path):
        pass
    run_from_outside(path, f"PRAGMA user_version = {schema}")
    with pytest.raises(StoreUnusable, match=rf"it has schema {schema}, and this one knows {SCHEMA}; use that version"):
        await SqliteStore(path).open()
    # in a thread: the command runs an event loop of its own
    ran = await asyncio.to_thread(CliRunner().invoke, main, ["channels", "--store", f"sqlite:///{path}"])
    (line,) = ran.output.splitlines()
    assert f"it has schema {schema}, and this one knows {SCHEMA}" in line


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


async def test_database_of_another_program_is_refused_and_unchanged(path: Path) -> None:
    run_from_outside(path, "CREATE TABLE orders (id INTEGER)")
    before = read(path)
    with pytest.raises(StoreUnusable, match="a database of another program"):
        await SqliteStore(path).open()
    assert read(path) == before
    assert list(path.parent.iterdir()) == [path]


async def test_file_that_is_not_a_database_is_refused_and_unchanged(path: Path) -> None:
    write(path, b"Dear diary, " * 1_000)
    with pytest.raises(StoreUnusable, match="the file is not a database"):
        await SqliteStore(path).open()
    assert read(path) == b"Dear diary, " * 1_000
    assert list(path.parent.iterdir()) == [path]


async def test_database_of_another_program_whose_name_needs_quoting_gets_no_lock_file(path: Path) -> None:
    path = path.with_name("a b?c#d%20.db")
    run_from_outside(path, "CREATE TABLE orders (id INTEGER)")
    run_from_outside(path, "PRAGMA journal_mode = WAL")
    with pytest.raises(StoreUnusable, match="a database of another program"):
        await SqliteStore(path).open()
    assert list(path.parent.iterdir()) == [path]


async def test_store_without_its_lock_file_is_opened(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store).do(create("m1", "a"))
    path.with_name(f"{path.name}.lock").unlink()
    async with opened(path) as store:
        assert (await head_of(store, "c")).serial == 1


async def test_empty_database_of_another_program_becomes_a_store(path: Path) -> None:
    run_from_outside(path, "VACUUM")
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)


async def test_empty_file_becomes_a_store(path: Path) -> None:
    write(path, b"")
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)


async def test_a_torn_file_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store).do(create("m1", "x" * 100_000))
    write(path, read(path)[: 5 * 4096])
    with pytest.raises(StoreUnusable, match=r"the file is damaged; run `tenuto verify`.* or restore a backup"):
        await SqliteStore(path).open()


async def test_a_log_that_cannot_be_read_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store).do_each(create("m1", streaming=True), append("m1", "a"))
    run_from_outside(path, "UPDATE log SET body = ?", sealed(1, b"\xc1" * 10))
    with pytest.raises(StoreUnusable, match="the log is damaged: slot 1 cannot be read"):
        await SqliteStore(path).open()


async def test_a_log_with_an_unknown_operation_is_refused(path: Path) -> None:
    async with opened(path) as store:
        await Chat(store).do_each(create("m1", streaming=True), finish("m1"))
    unknown = msgspec.msgpack.encode([[1, 2, 0, msgspec.msgpack.encode([99, ""])]])
    run_from_outside(path, "UPDATE log SET body = ?", sealed(1, unknown))
    with pytest.raises(StoreUnusable, match="an operation that this Tenuto does not know"):
        await SqliteStore(path).open()


@pytest.mark.parametrize("missing", ["first", "last"])
async def test_a_log_without_a_piece_of_an_operation_is_called_damaged(path: Path, missing: str) -> None:
    async with opened(path) as store:
        await Chat(store).do_each(
            create("m1", streaming=True), put_part("m1", 0, {"type": "text", "text": "x" * 9_000})
        )
    rows = run_from_outside(path, "SELECT id, body FROM log WHERE length(body) > 3000 ORDER BY id")
    assert len(rows) > 1
    slot, body = rows[0 if missing == "first" else -1]
    run_from_outside(path, "UPDATE log SET body = ? WHERE id = ?", sealed(slot, bytes(len(body) - 4)), slot)
    with pytest.raises(StoreUnusable, match="the log is damaged") as refused:
        await SqliteStore(path).open()
    assert "pgrade" not in str(refused.value)


async def test_a_refused_file_is_not_locked(path: Path) -> None:
    write(path, b"no database" * 100)
    with pytest.raises(StoreUnusable):
        await SqliteStore(path).open()
    write(path, b"")
    async with opened(path, lock_wait_s=0):
        pass


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"there is no directory .*nowhere; create it"):
        await SqliteStore(tmp_path / "nowhere" / "chat.db").open()


def test_invalid_settings_are_refused(path: Path) -> None:
    with pytest.raises(LocalError, match="synchronous must be 'normal', 'full' or 'extra', got 'off'"):
        SqliteStore(path, synchronous="off")
    with pytest.raises(LocalError, match="for a store in memory use memory://"):
        SqliteStore(":memory:")


@pytest.mark.parametrize(("setting", "level"), [("normal", 1), ("full", 2), ("extra", 3)])
async def test_synchronous_is_set_as_configured(path: Path, setting: str, level: int) -> None:
    async with opened(path, synchronous=setting) as store:
        assert await store._run(lambda engine: engine._file.db.execute("PRAGMA synchronous").fetchone()) == (level,)


# -- files that may not be written -------------------------------------------------------------------------------

SAY_WHY = """
import asyncio, os, sys
from tenuto.core.errors import StoreUnavailable
from tenuto.stores.sqlite.store import SqliteStore
if os.geteuid() == 0:
    os.setuid(65534)  # file modes do not bind root
try:
    asyncio.run(SqliteStore(sys.argv[1]).open())
except StoreUnavailable as error:
    print(error)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a file in a directory that other users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "chat.db"
        Path(folder).chmod(0o755)


def open_as_somebody(path: Path) -> str:
    """Return the error that a user who is not root gets."""
    done = subprocess.run(
        [sys.executable, "-c", SAY_WHY, str(path)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stderr == ""
    return done.stdout


def test_a_directory_that_may_not_be_written_is_refused(shared: Path) -> None:
    shared.parent.chmod(0o555)
    message = open_as_somebody(shared)
    assert "chat.db.lock cannot be written (Permission denied); the directory and the files in it must be" in message


def test_a_file_that_may_not_be_written_is_refused(shared: Path) -> None:
    async def make() -> None:
        async with opened(shared) as store:
            await Chat(store).do(create("m1", "a"))

    asyncio.run(make())
    shared.parent.chmod(0o777)
    shared.with_name("chat.db.lock").chmod(0o666)
    shared.chmod(0o444)
    assert "it cannot be written; file and directory must be writable for this user" in open_as_somebody(shared)


def modes(path: Path) -> dict[str, int]:
    """Return the modes of the store's files."""
    return {one.name.removeprefix(path.name): one.stat().st_mode & 0o777 for one in path.parent.glob(f"{path.name}*")}


@pytest.fixture
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("generous_umask")
async def test_new_files_are_for_the_user_of_the_server_alone(path: Path) -> None:
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)
        assert modes(path) == {"": 0o600, "-wal": 0o600, "-shm": 0o600, ".lock": 0o600}


@pytest.mark.usefixtures("generous_umask")
async def test_existing_files_keep_their_mode(path: Path) -> None:
    async with opened(path):
        pass
    os.chmod(path, 0o640)
    os.chmod(f"{path}.lock", 0o660)
    async with opened(path) as store:
        assert await Chat(store).do(create("m1", "a")) == Committed(1)
        assert modes(path) == {"": 0o640, "-wal": 0o640, "-shm": 0o640, ".lock": 0o660}


@pytest.mark.parametrize("name", ["folder", "pipe"])
async def test_path_of_no_file_is_refused_and_gets_no_lock_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreUnavailable, match="is a directory or a device; name a file"):
        await SqliteStore(tmp_path / name).open()
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
