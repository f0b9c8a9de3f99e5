"""Files that earlier schemas wrote open, whole, also when their migration is killed."""

import asyncio
import gzip
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tenuto.core.document import restored
from tenuto.core.errors import StoreUnavailable
from tenuto.stores.base import head_of
from tenuto.stores.sqlite.documents import Documents
from tenuto.stores.sqlite.file import SCHEMA
from tenuto.stores.sqlite.store import OPEN_TIMEOUT_S, SqliteStore
from tenuto.stores.sqlite.verify import verify
from tenuto.testing.contract import Chat, append, create, delete, texts
from tests.stores.files import PATIENCE_S, on_disk, opened, run_from_outside, write
from tests.stores.old_schemas import content

FILES = Path(__file__).parent / "files"
# The long form kills the migration before each of its statements, the short form before some.
EVERY = 1 if os.environ.get("TENUTO_STORES") == "long" else 45
SCHEMAS = range(1, SCHEMA + 1)


def released(schema: int) -> Path:
    return FILES / f"schema-{schema}.db.gz"


def unpacked(schema: int) -> bytes:
    return gzip.decompress(released(schema).read_bytes())


def expected(schema: int) -> dict[str, Any]:
    found = json.loads(released(schema).with_suffix("").with_suffix(".json").read_text())
    assert found["schema"] == schema
    return dict(found["channels"])


async def assert_whole(store: SqliteStore, schema: int) -> None:
    """Check that the store returns the same messages as the code of that schema."""
    channels = expected(schema)
    found = json.loads(json.dumps(await content(store, sorted(channels))))
    assert found == channels
    summaries = await store.summaries(["*"], after=None, limit=100)
    assert [(one.channel, one.messages) for one in summaries] == [
        (name, len(channels[name]["page"])) for name in sorted(channels)
    ]
    assert {(one.created_ms, one.updated_ms) for one in summaries} == {(1_000, 1_000)}
    assert list(verify(store.path)) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.db"


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_file_of_every_schema_is_migrated_and_whole(path: Path, schema: int) -> None:
    write(path, unpacked(schema))
    assert run_from_outside(path, "PRAGMA user_version") == [(schema,)]
    for _ in range(2):
        async with opened(path) as store:
            await assert_whole(store, schema)
    assert run_from_outside(path, "PRAGMA user_version") == [(SCHEMA,)]
    assert run_from_outside(path, "PRAGMA integrity_check") == [("ok",)]
    assert_before(path, schema)


def assert_before(path: Path, schema: int) -> None:
    """Check the backup from before the migration: it is whole, has the old schema, and the mark of a backup."""
    before = path.with_name(f"chat.db.before-{SCHEMA}")
    assert before.exists() is (schema < SCHEMA)
    if before.exists():
        assert before.stat().st_mode & 0o777 == 0o600
        assert run_from_outside(before, "PRAGMA user_version") == [(schema,)]
        assert run_from_outside(before, "PRAGMA integrity_check") == [("ok",)]
        assert run_from_outside(before, "SELECT inode LIKE 'backup %' FROM life") == [(1,)]


async def test_migration_backup_opens_and_begins_new_epochs(path: Path) -> None:
    write(path, unpacked(3))
    async with opened(path) as store:
        epoch = (await head_of(store, "served")).epoch
    path.with_name(f"chat.db.before-{SCHEMA}").rename(path.with_name("old.db"))
    async with opened(path.with_name("old.db")) as store:
        assert (await head_of(store, "served")).epoch != epoch
        assert await store.open_channels()


async def test_migration_without_room_names_needed_and_free_bytes_and_changes_no_byte(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, unpacked(3))
    size = len(unpacked(3))
    free = [2 * size - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(StoreUnavailable, match=rf"needs {3 * size:,} free bytes, and has .*--no-migration-backup"):
        await SqliteStore(path).open()
    with pytest.raises(
        StoreUnavailable, match=rf"needs {2 * size:,} free bytes, and has {free[0]:,}; free some space$"
    ):
        await SqliteStore(path, migration_backup=False).open()
    assert run_from_outside(path, "PRAGMA user_version") == [(3,)]
    free[0] += 1
    store = SqliteStore(path, migration_backup=False)
    await store.open()
    await store.close()
    assert not list(path.parent.glob("*before*"))


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_migrated_file_takes_new_text_and_loses_what_was_deleted(path: Path, schema: int) -> None:
    write(path, unpacked(schema))
    async with opened(path) as store:
        assert len(await store.open_channels()) >= 4
        chat = Chat(store, "new")
        await chat.do_each(create("m1", "x" * 9_000, streaming=True), append("m1", "y" * 9_000))
        assert await texts(store, "new", "m1") == ["x" * 9_000 + "y" * 9_000]
        _, used_up = await store.messages("gone:0", ["m-1", "m-2"])
        assert sorted(used_up) == ["m-1", "m-2"]
    async with opened(path) as store:
        assert await texts(store, "new", "m1") == ["x" * 9_000 + "y" * 9_000]
        await store.tidy(0)
    assert run_from_outside(path, "SELECT count(*) FROM channels WHERE name IS NULL") == [(0,)]
    for file in path.parent.glob("*before*"):
        file.unlink()  # the backup that was made before the migration
    assert b"SECRET" not in on_disk(path)


async def test_data_of_a_migrated_command_leaves_with_its_target(path: Path) -> None:
    """In schema 2 the data was in the heads of documents, and documents had no target."""
    write(path, unpacked(2))
    pieces = "SELECT count(*) FROM pieces JOIN documents ON id = document WHERE message = '!c-replied' AND blob > 0"
    async with opened(path) as store:
        chat = Chat(store, "served")
        changes = await store.changes("served", after=0, limit=10)
        chat.state.epoch, chat.state.serial = changes.head.epoch, changes.head.serial
        chat.state.insert(restored(changes.messages or ()))
        assert run_from_outside(path, pieces) == [(1,)]
        await chat.do(delete("u-waiting"), documents=["u-waiting"])
        assert run_from_outside(path, pieces) == [(0,)]
        assert (await store.messages("served", ["!c-replied"]))[1]["!c-replied"].segments == []
        assert store.stats()["damaged"] == 0


async def test_migration_has_no_time_limit(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, unpacked(3))
    ((count,),) = run_from_outside(path, "SELECT count(*) FROM documents")
    begun, go_on = threading.Event(), threading.Event()
    add_sums = Documents.add_sums

    def add_sums_later(documents: Documents, unreadable: Collection[int]) -> None:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        add_sums(documents, unreadable)

    monkeypatch.setattr(Documents, "add_sums", add_sums_later)
    store, loop = SqliteStore(path), asyncio.get_running_loop()
    opening = asyncio.create_task(store.open())
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    now_s = loop.time
    monkeypatch.setattr(loop, "time", lambda: now_s() + 2 * OPEN_TIMEOUT_S)
    await asyncio.sleep(0.001)  # all timers that are due run before this one
    go_on.set()
    await opening
    await assert_whole(store, 3)
    await store.close()
    assert f"migration from schema 3 to {SCHEMA} begins; it reads all {count} messages and commands" in caplog.text


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_migration_killed_before_any_statement_is_done_by_the_next_start(tmp_path: Path, schema: int) -> None:
    arguments = [sys.executable, "-m", "tests.stores.migrating", str(released(schema)), str(tmp_path), str(EVERY)]
    ran = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=PATIENCE_S * 30, check=False
    )
    assert ran.returncode == 0, ran.stderr
    last = int(ran.stdout)
    assert last > 15
    for statement in range(1, last + 1, EVERY):
        path = tmp_path / str(statement) / "chat.db"
        if path.with_name(f"chat.db.before-{SCHEMA}").exists():
            assert_before(path, schema)
        async with opened(path) as store:
            await assert_whole(store, schema)
        assert_before(path, schema)
        assert not list(path.parent.glob("*.partial"))
