"""Retention in a running hub: removed and remaining messages, and the views of clients."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proof.simulation.clock import SimClock
from tenuto.cli.main import main
from tenuto.cli.store_commands import due_in
from tenuto.core.errors import NotFound
from tenuto.core.events import ChannelAttached, MessageCreate, MessageUpdate
from tenuto.core.names import command_key
from tenuto.hub import HubCore
from tenuto.hub.clock import Clock
from tenuto.hub.keep import retention as retention_module
from tenuto.hub.keep.policies import Policies, Retention
from tenuto.hub.keep.retention import PAUSE_S, READ_FACTS, ROUND_S, STEP_BYTES, STEP_MESSAGES
from tenuto.stores.base import head_of
from tenuto.stores.memory import MemoryStore
from tenuto.stores.sqlite.verify import FileReader
from tests.hub import hubs
from tests.hub.test_turn_scheduler import Worker
from tests.hub.watching import Watcher
from tests.stores.files import run_from_outside
from tests.virtual import Watch, virtually

HOUR_S = 3600.0
DAY_MS = 24 * 3_600_000


def new_hub(rules: Mapping[str, str | Retention], store: Any = "memory://") -> HubCore:
    return hubs.new_hub(store, retention=rules)


async def ids(hub: HubCore, channel: str) -> list[str]:
    return [one.id for one in (await hub.history(channel, limit=200)).messages][::-1]


def removed(hub: HubCore) -> tuple[int, int]:
    stats = hub.stats()
    return stats["retention_messages"], stats["retention_channels"]


@virtually
async def test_messages_go_at_their_age_and_the_channel_with_the_last_one() -> None:
    hub = new_hub({"chat:*": "1h", "chat:kept": "9w"})
    for name in ("chat:1", "chat:kept", "other"):
        await hub.create(name, text="old", id="m1")
    await asyncio.sleep(0.5 * HOUR_S)
    await hub.create("chat:1", text="young", id="m2")
    watcher = Watcher(hub, "chat:1")
    await watcher.take()
    epoch = watcher.cursor.partition(":")[0] if watcher.cursor else ""
    await asyncio.sleep(0.4 * HOUR_S)
    assert await ids(hub, "chat:1") == ["m1", "m2"]
    await asyncio.sleep(0.2 * HOUR_S)
    assert await ids(hub, "chat:1") == ["m2"]
    with pytest.raises(NotFound):
        await hub.read("chat:1", "m1")
    assert await head_of(hub.store, "chat:1") == (epoch, 2, 1, 0)
    late = Watcher(hub, "chat:1", since=f"{epoch}:0")
    assert [type(one) for one in (await late.take()).events] == [ChannelAttached, MessageUpdate]
    assert [one.id for one in late.view.messages()] == ["m2"]
    await hub.create("chat:1", text="third", id="m3")
    batch = await watcher.take()  # it got no event of the removal
    assert [type(one) for one in batch.events] == [MessageCreate]
    await asyncio.sleep(1.2 * HOUR_S)
    head = await head_of(hub.store, "chat:1")
    assert (head.epoch, head.serial) == ("-", 0)
    assert head.lives > 0
    await watcher.until(lambda view: not view.messages())
    assert await ids(hub, "chat:kept") == await ids(hub, "other") == ["m1"]
    assert removed(hub) == (3, 1)
    assert hub.stats()["retention_bytes"] == len("old" + "young" + "third") + 3 * len('{"type":"text"}')
    await hub.create("chat:1", text="new life", id="m1")
    assert (await head_of(hub.store, "chat:1")).epoch not in ("-", epoch)


@virtually
async def test_streaming_and_waiting_messages_and_targets_of_open_commands_stay() -> None:
    hub = new_hub({"*": Retention(age="10m", idle="10m", messages=1, bytes=1)})
    await hub.start()
    worker = Worker()
    worker.pattern, worker.free = "*", 0  # user messages wait for it
    hub.runtime.scheduler.register(worker)
    await hub.create("c", text="old", id="old", role="assistant")
    await hub.create("c", text="waits", id="waits")
    async with hub.message("c", id="done") as done:
        await done.append("approve?")
    await hub.command("c", "approve", target="done", id="ask", expires_s=3 * HOUR_S)
    async with hub.message("c", id="stream") as writer:
        for _ in range(120):
            await writer.append("word ")
            await asyncio.sleep(60)
        assert await ids(hub, "c") == ["waits", "done", "stream"]
        assert (await hub.read("c", "stream"))[0].text == "word " * 120
        await hub.reply("c", "ask")
        await asyncio.sleep(0.5 * HOUR_S)
        await writer.append("end")
        assert await ids(hub, "c") == ["waits", "stream"]
    await asyncio.sleep(0.5 * HOUR_S)
    assert await ids(hub, "c") == ["waits"]
    assert command_key("ask") not in [one.id for one in (await hub.store.facts("c", after=0, limit=9)).facts]


@virtually
async def test_young_commands_before_messages_above_the_limit_do_not_keep_them() -> None:
    hub = new_hub({"*": Retention(messages=1)})
    for number in range(READ_FACTS):
        await hub.command("c", "mine", id=f"k{number}")
        await hub.reply("c", f"k{number}")
    for number in range(3):
        await hub.create("c", text="x", id=f"m{number}")
    await asyncio.sleep(HOUR_S)
    assert await ids(hub, "c") == ["m2"]


@virtually
async def test_a_clock_that_jumps_by_a_year_removes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hub = new_hub({"*": Retention(age="90d", messages=1)})
    clock = hub.clock
    assert isinstance(clock, SimClock)
    for number in range(3):
        await hub.create("c", text="x", id=f"m{number}")
    await hub.create("d", text="x", id="m0")
    await asyncio.sleep(ROUND_S + 30)
    clock.skew_ms = 365 * DAY_MS
    await hub.create("d", text="stored at a wrong time", id="m")
    await asyncio.sleep(2 * HOUR_S)
    assert await ids(hub, "c") == ["m0", "m1", "m2"]
    clock.skew_ms = 0
    await asyncio.sleep(ROUND_S)
    assert await ids(hub, "c") == ["m2"]
    assert await ids(hub, "d") == ["m"]
    await hub.close()
    assert [one.message.partition(",")[0] for one in caplog.records if "clock" in one.message] == [
        "the clock of this machine is not plausible: it has jumped",
        "the clock is plausible again",
    ]


@virtually
async def test_a_clock_far_from_the_newest_stored_time_is_reported_in_days(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    old = new_hub({}, store)
    await old.create("c", text="x", id="m")
    await old.close()
    hub = new_hub({"*": "1d"}, store)
    clock = hub.clock
    assert isinstance(clock, SimClock)
    clock.skew_ms = 8 * DAY_MS
    await hub.start()
    await asyncio.sleep(1)
    await hub.create("other", text="stored at a wrong time", id="m")
    await asyncio.sleep(HOUR_S)
    assert await ids(hub, "c") == ["m"]
    await hub.close()
    (warning,) = [one.message for one in caplog.records if "clock" in one.message]
    assert warning.startswith("the clock of this machine is 8.0 days after the newest stored time, so retention")


@virtually
async def test_steps_are_bounded_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub({"*": "10m"})
    prune, steps = hub.store.prune, list[tuple[float, int]]()

    async def noted(channel: str, *, epoch: str, versions: Mapping[str, int]) -> Any:
        steps.append((asyncio.get_running_loop().time(), len(versions)))
        return await prune(channel, epoch=epoch, versions=versions)

    monkeypatch.setattr(hub.store, "prune", noted)
    for number in range(100):
        await hub.create("small", text="x", id=f"m{number}")
        await hub.create(f"c:{number}", text="x", id="m")
    for number in range(4):
        await hub.create("large", text="x" * (STEP_BYTES // 2 + 1), id=f"m{number}")
    await asyncio.sleep(HOUR_S)
    assert removed(hub) == (204, 102)
    times = [at_s for at_s, _ in steps]
    assert max(count for _, count in steps) == STEP_MESSAGES
    assert len(times) >= 100 / STEP_MESSAGES + 100 + 4
    assert min(after - before for before, after in itertools.pairwise(times)) >= PAUSE_S * 0.999


@virtually
async def test_a_message_that_changes_before_removal_stays_and_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = new_hub({"*": "1h"})
    prune = hub.store.prune

    async def overtaken(channel: str, *, epoch: str, versions: Mapping[str, int]) -> Any:
        monkeypatch.undo()
        await hub.update(channel, "m1", text="changed")
        return await prune(channel, epoch=epoch, versions=versions)

    monkeypatch.setattr(hub.store, "prune", overtaken)
    for name in ("m1", "m2"):
        await hub.create("chat:1", text="old", id=name)
    await asyncio.sleep(1.2 * HOUR_S)
    assert await ids(hub, "chat:1") == ["m1"]
    assert removed(hub) == (1, 0)


async def test_a_damaged_channel_stays_and_the_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chat.db"
    old = HubCore(f"sqlite:///{path}", hooks_signals=False, drain_s=0.0, clock=Watch(-3 * DAY_MS))
    for name in "abcde":
        await old.create(name, text="x")
    await old.close()
    run_from_outside(path, "UPDATE channels SET crc = crc + 1 WHERE name IN ('b', 'd')")
    monkeypatch.setattr(retention_module, "PAUSE_S", 0.0)
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False, drain_s=0.0, retention={"*": "2d"})
    await hub.start()
    for _ in range(2):
        await hub.retainer._round(hub.runtime)
    assert removed(hub) == (3, 3)
    assert hub.stats()["retention_rounds"] == 2
    logged = [one.getMessage() for one in caplog.records if "retention" in one.getMessage()]
    assert len(logged) == 2  # one a round
    assert all(line.startswith("retention left out 2 channels that cannot be read") for line in logged)
    assert "channel 'b'" in logged[0]
    await hub.close()


@pytest.mark.parametrize("rule", [Retention(messages=3), Retention(bytes="4kB")])
async def test_a_count_that_is_damaged_upwards_removes_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Retention
) -> None:
    path = tmp_path / "chat.db"
    old = HubCore(f"sqlite:///{path}", hooks_signals=False, drain_s=0.0, clock=Watch(-3 * DAY_MS))
    for name in "abcd":
        await old.create("c", text=500 * "x", id=name)
    await old.close()
    run_from_outside(path, "UPDATE channels SET messages = messages + 1024, size_bytes = size_bytes + 1048576")
    monkeypatch.setattr(retention_module, "PAUSE_S", 0.0)
    hub = HubCore(f"sqlite:///{path}", hooks_signals=False, drain_s=0.0, retention={"*": rule})
    await hub.start()
    await hub.retainer._round(hub.runtime)
    assert await ids(hub, "c") == (["b", "c", "d"] if rule.messages else ["a", "b", "c", "d"])
    await hub.close()


async def test_a_dry_run_says_what_would_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.db"
    url = f"sqlite:///{path}"
    hub = HubCore(url, hooks_signals=False, drain_s=0.0, clock=Watch(-3 * DAY_MS))
    for name in ("chat:1", "chat:2", "log:1"):
        await hub.create(name, text="x" * 1_000)
    await hub.command("chat:2", "approve", target=None)

    async def run(*options: str) -> list[str]:
        done = await asyncio.to_thread(CliRunner().invoke, main, ["retention", "--dry-run", "--store", url, *options])
        return [line.strip() for line in done.output.splitlines()]

    size = 1_000 + len('{"type":"text"}')
    expected = [
        f"1          {size:,}  chat:1  (the whole channel)",
        f"1          {size:,}  chat:2",
        f"2 messages with {2 * size:,} bytes would go.",
    ]
    assert await run("--keep", "chat:*=2d", "--keep", "*=9w") == expected
    idle = due_in(FileReader(path), policies=Policies({"*": Retention(idle="2d")}), now_ms=Clock().now_ms())
    assert [one.channel async for one in idle] == ["chat:1", "log:1"]  # a command waits in the other one
    assert await run("--keep", "*=4d") == ["0 messages with 0 bytes would go."]
    assert len((await hub.archive.channels()).channels) == 3
    await hub.close()
    (tmp_path / "kept_chat.py").write_text(
        f"from tenuto import Hub\nhub = Hub({url!r}, hooks_signals=False, retention={{'chat:*': '2d'}})\n"
        "bare = Hub('memory://', hooks_signals=False)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert await run("--app", "kept_chat:hub") == expected
    assert "Error: --app kept_chat:bare has no hub with the setting" in (await run("--app", "kept_chat:bare"))[-1]
    for options in ((), ("--app", "kept_chat:hub", "--keep", "*=1d")):
        assert (await run(*options))[-1].startswith("Error: retention needs rules: give either --app")
    assert (await run("--keep", "chat"))[-1] == "Error: --keep must be PATTERN=AGE, such as chat:*=90d, got 'chat'"
