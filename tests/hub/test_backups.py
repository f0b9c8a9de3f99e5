"""Scheduled backups of a hub."""

import asyncio
import logging
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tenuto import Hub
from tenuto.cli.main import main
from tenuto.core.errors import LocalError
from tenuto.hub.keep import backups
from tenuto.hub.keep.backups import RETRY_S, BackupSchedule
from tests.processes import serving
from tests.stores.files import PATIENCE_S, run_from_outside

HOUR_S = 3600.0


class Clock:
    """A clock for the schedule alone. A test lets time pass, and waits until the schedule waits again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.wall_s = 1_800_000_000.0
        self._waits: asyncio.Queue[float] = asyncio.Queue()
        self._go_on = asyncio.Event()
        fake = SimpleNamespace(
            monotonic=lambda: self.now_s,
            time=lambda: self.wall_s,
            gmtime=lambda: time.gmtime(self.wall_s),
            strftime=time.strftime,
        )
        monkeypatch.setattr(backups, "time", fake)
        monkeypatch.setattr(BackupSchedule, "_wait", lambda _, seconds: self._wait(seconds))

    async def _wait(self, seconds: float) -> None:
        self._waits.put_nowait(seconds)
        await self._go_on.wait()
        self._go_on.clear()

    async def wait_of_schedule(self, *, after_s: float = 0.0) -> float:
        """Let `after_s` seconds pass, and return the next wait of the schedule."""
        if after_s:
            self.now_s += after_s
            self.wall_s += after_s
            self._go_on.set()
        async with asyncio.timeout(PATIENCE_S):
            return await self._waits.get()


def new_hub(folder: Path) -> Hub:
    folder.mkdir(exist_ok=True)
    return Hub(f"sqlite:///{folder / 'chat.db'}", hooks_signals=False)


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


async def test_schedule_keeps_the_newest_backups_although_the_clock_is_set_back(
    tmp_path: Path, folder: Path, clock: Clock
) -> None:
    others = ["chat-000001-20261122T024000Z.db.old", "chat-1.db", "chats-000001-20261122T024000Z.db", "other.partial"]
    for name in others:
        (folder / name).write_text("mine")
    (folder / "chat-000009-20261122T024000Z.db").mkdir()
    (folder / "chat-000003-20261122T024000Z.db.partial").write_text("of a killed process")
    hub = new_hub(tmp_path / "x")
    BackupSchedule(hub, folder, every="1h", keep=2)
    await hub.create("c", text="kept")
    assert await clock.wait_of_schedule() == HOUR_S
    clock.wall_s -= 366 * 86400
    for number in (2, 3, 4):
        assert await clock.wait_of_schedule(after_s=HOUR_S) == HOUR_S
        made = sorted(set(names(folder)) - {*others, "chat-000009-20261122T024000Z.db", "chat-backups.lock"})
        assert [name[:12] for name in made] == [f"chat-{number - 1:06d}-", f"chat-{number:06d}-"]
    assert run_from_outside(folder / made[-1], "SELECT mark LIKE 'backup-%' FROM life") == [(1,)]
    assert set(others) < set(names(folder))
    assert hub.stats()["store_failed_backups"] == 0
    assert hub.stats()["store_backup_age_s"] < PATIENCE_S
    await hub.close()

    os.utime(folder / made[-1], (clock.wall_s - 600, clock.wall_s - 600))
    again = new_hub(tmp_path / "x")
    BackupSchedule(again, folder, every="1h", keep=2)
    await again.start()
    assert await clock.wait_of_schedule() == HOUR_S - 600
    assert 600 <= again.stats()["store_backup_age_s"] < 600 + PATIENCE_S
    await again.close()


async def test_failing_backup_is_logged_counted_and_tried_again_while_the_hub_serves(
    tmp_path: Path, folder: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    os.rmdir(folder)
    hub = new_hub(tmp_path / "x")
    BackupSchedule(hub, folder)
    await hub.start()
    assert await clock.wait_of_schedule() == RETRY_S
    assert "No such file or directory" in caplog.records[-1].getMessage()
    assert "store_backup_age_s" not in hub.stats()
    os.mkdir(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
        assert await clock.wait_of_schedule(after_s=RETRY_S) == RETRY_S
    assert "free bytes, and has 7" in caplog.records[-1].getMessage()
    assert [one.levelno for one in caplog.records] == [logging.ERROR] * 2
    assert hub.stats()["store_failed_backups"] == 2
    await hub.create("c", text="served")
    assert await clock.wait_of_schedule(after_s=RETRY_S) == HOUR_S
    assert [name[:12] for name in names(folder)] == ["chat-000001-", "chat-backups"]
    assert "store_backup_age_s" in hub.stats()
    await hub.close()


async def test_second_server_with_a_store_of_that_name_is_kept_from_the_folder(
    tmp_path: Path, folder: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    hubs = [new_hub(tmp_path / name) for name in "xy"]
    for hub, wait_s in zip(hubs, (HOUR_S, RETRY_S), strict=True):
        BackupSchedule(hub, folder)
        await hub.start()
        assert await clock.wait_of_schedule() == wait_s
    assert f"another server holds {folder / 'chat-backups.lock'}" in caplog.text
    assert len(names(folder)) == 2
    for hub in hubs:
        await hub.close()


@pytest.mark.parametrize(
    ("store", "settings", "why"),
    [
        ("memory://", {}, "a memory store has no backup"),
        ("sqlite:///x.db", {"every": "1 hour"}, "must be a number and s, m, h, d or w"),
        ("sqlite:///x.db", {"every": "0h"}, "got '0h'"),
        ("sqlite:///x.db", {"keep": 0}, "must be a whole number, 1 or more, got 0"),
    ],
)
def test_wrong_settings_are_refused(store: str, settings: dict[str, str], why: str) -> None:
    with pytest.raises(LocalError, match=why):
        BackupSchedule(Hub(store, hooks_signals=False), Path("x"), **settings)  # type: ignore[arg-type]


def test_served_hub_makes_backups_and_removes_old_ones(tmp_path: Path, folder: Path) -> None:
    options = ("--backup-dir", str(folder), "--backup-every", "1s", "--backup-keep", "1", "--retention", "*=9d")
    with serving("serve", tmp_path, *options) as server:
        server.until(lambda: any(name.startswith("test-000002-") for name in names(folder)))
        server.until(lambda: not any(name.startswith("test-000001-") for name in names(folder)))
        assert "tenuto_store_failed_backups 0\n" in server.get("/metrics")[1]
        assert "tenuto_retention_rounds 0\n" in server.get("/metrics")[1]


def test_served_hub_with_a_missing_folder_does_not_start(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["serve", "--backup-dir", str(tmp_path / "gone"), "--port", "0"])
    assert (ran.exit_code, f"--backup-dir {tmp_path / 'gone'} does not exist; create it" in ran.output) == (1, True)
