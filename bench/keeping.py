"""Appends beside backups, deletions and retention of large stores: `python -m bench.keeping [PARTS]`, `make keeping`.

They are not part of `make bench`, because they write files of gigabytes. Appends are durable (SQLite FULL): 100
conversations in the hub's process, each with 25 appends a second that wait until they are stored.

- `backup`: fills a store of each size of `--mb`, and makes a backup at 50 MB/s; of a small store several in a row.
- `deletes`: deletes 400 of 500 channels in a row.
- `retention`: removes `--messages` messages of 100 days ago by `90d`, first at its own pace, which is at most 80
  messages a second, and then without pauses until the last one is gone.

The p99 of appends may be at most twice that of the quiet time, and the WAL of a store in backup stays below 8 MB. The
exit status is 1 if one is OVER, or if messages stay. The ratio of two p99 depends on the disk and on other programs:
repeat a run that is OVER. The chaos scenario `backup` proves that backups are whole.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any
from unittest import mock

from bench import report
from bench.common import Row
from tenuto import Hub, MessageWriter
from tenuto.core.retention import DAY_MS
from tenuto.hub.clock import Clock
from tenuto.hub.keep import retention
from tenuto.server.serving import settle_collector

_CONVERSATIONS = 100
_APPENDS_PER_S = 25
_OLD_CHARACTERS = 8_000
_SMALL_CHARACTERS = 100
_OLD_CHANNELS = 500
_DELETED_CHANNELS = 400
_AT_ONCE = 200
_MB_PER_S = 50.0
_WAL_MB = 8.0
_P99_RATIO = 2.0
_PARTS = ("backup", "deletes", "retention")


class PastClock(Clock):
    """The clock of 100 days ago."""

    def now_ms(self) -> int:
        return super().now_ms() - 100 * DAY_MS


class Appends:
    """Running conversations on a hub. `waits_ms` are the times until an append was durable."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.waits_ms: list[float] = []

    async def beside(
        self, name: str, job: Callable[[], Awaitable[str]], quiet_s: float, until: Callable[[], bool] | None = None
    ) -> Row:
        """Append in the quiet, then beside `job`, which returns a note, and in the quiet again. Return the p99 beside
        it as a ratio to that of the quiet. A job of the hub itself has begun once `until` is true, and goes on.
        """
        settle_collector()
        async with contextlib.AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(self._hub.message(f"live:{n}")) for n in range(_CONVERSATIONS)]
            begun_s = time.monotonic()
            streams = [
                asyncio.create_task(self._stream(writer, begun_s + n / _CONVERSATIONS / _APPENDS_PER_S))
                for n, writer in enumerate(writers)
            ]
            await asyncio.sleep(1.0)
            self.waits_ms.clear()
            await asyncio.sleep(quiet_s)
            quiet, self.waits_ms = self.waits_ms, []
            if until is not None:
                await _until(until)
            self.waits_ms.clear()
            note = await job()
            busy, self.waits_ms = self.waits_ms, []
            await asyncio.sleep(quiet_s if until is None else 0.0)
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        return _p99(name, quiet + self.waits_ms, busy, note)

    async def _stream(self, writer: MessageWriter, due_s: float) -> None:
        while True:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            called_s = time.monotonic()
            await writer.append("8 chars.")
            await writer.flush()
            self.waits_ms.append((time.monotonic() - called_s) * 1000)
            due_s += 1 / _APPENDS_PER_S


async def backups(folder: Path, *, mb: int, seconds: float) -> list[Row]:
    """Return the rows of a backup of a store of about `mb` MB."""
    path, target = folder / "keeping.db", folder / "keeping.backup"
    count = max(_CONVERSATIONS, mb * 1_000_000 // (_OLD_CHARACTERS + 900))  # 900: rows, indexes and the rest of slots
    hub = Hub(f"sqlite:///{path}")
    await _fill(hub, count, _OLD_CHARACTERS)
    size, largest = path.stat().st_size, [0]
    quiet_s = min(max(seconds / 4, size / 1e6 / _MB_PER_S), seconds)
    rounds = max(1, round(quiet_s * _MB_PER_S * 1e6 / size))

    async def back_up() -> str:
        begun_s = time.monotonic()
        for _ in range(rounds):
            target.unlink(missing_ok=True)
            await hub.backup(target, mb_per_s=_MB_PER_S)
        took_s = (time.monotonic() - begun_s) / rounds
        return f"{rounds} of {size / 1e6:,.0f} MB ({count:,} messages), each in {took_s:.1f} s"

    watching = asyncio.create_task(_watch_size(Path(f"{path}-wal"), largest))
    row = await Appends(hub).beside(f"backup of {mb:,} MB", back_up, quiet_s)
    watching.cancel()
    await hub.close()
    wal_mb = largest[0] / 1e6
    what = f"backup of {mb:,} MB: largest WAL"
    return [row, Row(what, f"{wal_mb:.1f} MB", f"at most {_WAL_MB:.0f} MB", wal_mb <= _WAL_MB)]


async def deletes(folder: Path, *, count: int, seconds: float) -> list[Row]:
    """Return the row of appends while most channels are deleted in a row."""
    hub = Hub(f"sqlite:///{folder / 'deletes.db'}")
    await _fill(hub, count, _OLD_CHARACTERS)

    async def delete() -> str:
        begun_s = time.monotonic()
        for n in range(_DELETED_CHANNELS):
            await hub.delete_channel(f"old:{n}")
        return f"with {count // _OLD_CHANNELS} messages of 8 kB each, in {time.monotonic() - begun_s:.1f} s"

    row = await Appends(hub).beside(f"{_DELETED_CHANNELS} deletes", delete, seconds)
    await hub.close()
    return [row]


async def retained(folder: Path, *, count: int, seconds: float) -> list[Row]:
    """Return the rows of the removal of `count` messages."""
    url = f"sqlite:///{folder / 'retained.db'}"
    past = Hub(url, clock=PastClock())
    await _fill(past, count, _SMALL_CHARACTERS)
    await past.close()
    now = Hub(url)
    await now.create("live:now", text="the clock is right")  # otherwise its first round would not trust the clock
    await now.close()
    retention.ROUND_S = 2 * seconds + 2.0  # the first round begins after the quiet time
    hub = Hub(url, retention={"old:*": "90d"})
    await hub.start()

    def gone() -> int:
        return hub.stats()["retention_messages"]

    async def remove() -> str:
        first = gone()
        await asyncio.sleep(2 * seconds)
        return f"{(gone() - first) / 2 / seconds:.0f} messages a second"

    row = await Appends(hub).beside(f"retention of {count:,} messages", remove, 2 * seconds, lambda: gone() > 0)
    with mock.patch.multiple(retention, PAUSE_S=0.0, READ_PAUSE_S=0.0):
        left, begun_s = count - gone(), time.monotonic()
        await _until(lambda: hub.stats()["retention_rounds"] > 0)
        note = f"without pauses and appends {left / (time.monotonic() - begun_s):,.0f} a second"
    removed = gone()
    await hub.close()
    return [row, Row("messages removed by retention", f"{removed:,}", f"{count:,}", removed == count, note)]


async def _fill(hub: Hub, count: int, characters: int) -> None:
    """Store `count` messages. Neighbours share a channel, so that few channels are in memory at once."""
    await hub.start()
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, count))
        channels = [f"old:{n * _OLD_CHANNELS // count}" for n in numbers]
        await asyncio.gather(*(hub.create(channel, text="0123456789" * (characters // 10)) for channel in channels))


async def _until(is_true: Callable[[], bool]) -> None:
    while not is_true():  # noqa: ASYNC110 - the hub's counters have no event
        await asyncio.sleep(0.1)


async def _watch_size(path: Path, largest: list[int]) -> None:
    while True:
        largest[0] = max(largest[0], os.path.getsize(path))  # noqa: ASYNC240
        await asyncio.sleep(0.05)


def _p99(name: str, quiet: list[float], busy: list[float], note: str) -> Row:
    """Return the row of the p99 of appends against the quiet time, with both in its note."""
    busy_ms, quiet_ms = (sorted(waits)[int(len(waits) * 0.99)] for waits in (busy, quiet))
    ratio, limit = busy_ms / quiet_ms, f"at most {_P99_RATIO:.1f} x"
    note += f"; p99 {busy_ms:.1f} ms, {quiet_ms:.1f} ms in the quiet time"
    return Row(f"{name}: p99 of appends", f"{ratio:.2f} x the quiet one", limit, ratio <= _P99_RATIO, note)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=(*_PARTS, []), default=[])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--mb", type=int, nargs="+", default=[10, 400])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--deleted", type=int, default=45_000, help="messages before the deletes")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    jobs: dict[str, Callable[[Path], Coroutine[Any, Any, list[Row]]]] = {
        f"backup {mb}": functools.partial(backups, mb=mb, seconds=arguments.seconds) for mb in arguments.mb
    }
    jobs["deletes"] = functools.partial(deletes, count=arguments.deleted, seconds=arguments.seconds)
    jobs["retention"] = functools.partial(retained, count=arguments.messages, seconds=arguments.seconds)
    rows: list[Row] = []
    for name, job in jobs.items():
        if name.partition(" ")[0] in (arguments.what or _PARTS):
            with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
                rows += asyncio.run(job(Path(folder)))
    over = sum(row.is_met is False for row in rows)
    print("\n".join([*report.text(rows), f"{over} over their limits"]))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
