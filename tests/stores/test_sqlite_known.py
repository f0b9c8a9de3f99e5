"""Which backups a store knows, also those on disks that are away."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.backup import finish
from tenuto.stores.sqlite.known import known_backups, noted
from tenuto.stores.sqlite.store import SqliteStore


def after(*backups: Path) -> dict[str, bytes]:
    """Return the notes after backups to these paths."""
    notes: dict[str, bytes] = {}
    for number, path in enumerate(backups):
        for name, value in noted(path, number, notes).items():
            if value is None:
                del notes[name]
            else:
                notes[name] = value
    return notes


def test_backups_that_were_removed_leave_the_notes_and_those_on_disks_that_are_away_stay(tmp_path: Path) -> None:
    kept, removed, away = tmp_path / "kept.db", tmp_path / "removed.db", tmp_path / "mounted" / "away.db"
    unreachable = tmp_path / ("x" * 300)  # the system raises an error for this name, as for a folder without rights
    away.parent.mkdir()
    for path in (kept, removed, away):
        path.touch()
    before = after(unreachable, removed, away)
    removed.unlink()
    away.unlink()  # an empty folder, as that of a disk that is not mounted
    notes = {**before, **noted(kept, 9, before)}
    assert [name.rpartition("/")[2].removesuffix(".db") for name, value in notes.items() if value is not None] == [
        "x" * 300,
        "away",
        "kept",
    ]
    away.touch()
    (tmp_path / "chat.db-wal.foreign-0a1b2c3d").touch()
    (tmp_path / "chat.db-wal").touch()
    found = known_backups(tmp_path / "chat.db", {name: value for name, value in notes.items() if value is not None})
    assert [one.path.name for one in found] == ["x" * 300, "away.db", "kept.db", "chat.db-wal.foreign-0a1b2c3d"]


async def test_a_backup_is_noted_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "chat.db")
    found: list[Path] = []

    def finish_and_look(partial: Path, target: Path) -> None:
        """Finish the backup, and read the notes as a process that starts after a crash here would."""
        finish(partial, target)
        with contextlib.closing(sqlite3.connect(store.path)) as db:
            notes = dict(db.execute("SELECT name, value FROM notes"))
        found.extend(one.path for one in known_backups(store.path, notes))

    monkeypatch.setattr(sqlite, "finish", finish_and_look)
    await store.open()
    await store.backup(tmp_path / "one.db", mb_per_s=1000)
    await store.close()
    assert found == [tmp_path / "one.db"]


async def test_a_backup_that_gets_its_name_during_the_next_one_stays_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path / "chat.db")
    loop = asyncio.get_running_loop()

    def finish_late(partial: Path, target: Path) -> None:
        """Finish the first backup after the second."""
        if target.name == "one.db":
            asyncio.run_coroutine_threadsafe(store.backup(tmp_path / "two.db", mb_per_s=1000), loop).result()
        finish(partial, target)

    monkeypatch.setattr(sqlite, "finish", finish_late)
    await store.open()
    await store.backup(tmp_path / "one.db", mb_per_s=1000)
    assert {one.path.name for one in await store.backups()} == {"one.db", "two.db"}
    await store.close()
