"""Backups and retention of large stores while conversations stream: `python -m bench.keeping [PARTS]`.

They are not part of `make bench`, because they write files of gigabytes: `make keeping` runs them. Appends are durable
(SQLite FULL): 100 conversations in the hub's process, each with 25 appends a second that wait until they are stored.

- `backup`: fills a store of each size of `--mb`, and makes a backup at 50 MB/s; of a small store several in a row.
  Appends before, during and after it are compared. Then the backup is checked like `tenuto verify` does, and opened:
  each running answer must be a prefix of its text with all that was stored at the beginning, and old messages must be
  equal.
- `deletes`: deletes 400 of 500 channels in a row. Appends before, meanwhile and after it are compared.
- `retention`: fills a store with `--messages` messages of 100 days ago, by direct commits, and removes them by `90d`.
  Appends are compared with and without it, at its own pace, which is at most 80 messages a second. Then it runs without
  pauses until the last message is gone.
- `soak`: `--days` days (180) of 500 messages each, one start of the hub a day, which keeps them for `--kept` days (90):
  rows, bytes and memory on the last day are compared with those of the third day after the first on which messages go.

At the end a table compares the figures with their limits: the p99 of appends is at most twice that of the quiet time,
no backup begins again, and the WAL stays below 8 MB. The exit status is 1 if one is OVER, if a text is wrong, if
messages stay, or if the soak grows. The ratio of two p99 depends on the disk and on other programs: repeat a run that
is OVER.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

from bench import report
from bench.common import Row
from bench.proc import rss_bytes
from tenuto import Hub, MessageWriter
from tenuto.core.document import Document
from tenuto.core.ops import Entry
from tenuto.core.records import MessageRecord, imported
from tenuto.core.retention import DAY_MS
from tenuto.hub.clock import Clock
from tenuto.hub.keep import retention
from tenuto.server.serving import settle_collector
from tenuto.stores.base import Committed, Write
from tenuto.stores.sqlite import store as sqlite
from tenuto.stores.sqlite.backup import copy
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.stores.sqlite.verify import verify

_CONVERSATIONS = 100
_APPENDS_PER_S = 25
_PIECE = 8  # characters of an append: its number
_OLD_CHARACTERS = 8_000
_OLD_CHANNELS = 500
_DELETED_CHANNELS = 400
_SOAK_CHANNELS = 20
_AT_ONCE = 200
_MB_PER_S = 50.0
_WAL_MB = 8.0
_P99_RATIO = 2.0
_COMPARED = 1_000  # old messages that are read from the backup
_SMALL_CHARACTERS = 100
_SOAK_MESSAGES = 500
_SETTLED_DAYS = 3  # after the first day on which messages go; an empty channel goes a day later
_GROWTH = 1.1
_IN_A_COMMIT = 5_000
_PARTS = ("backup", "deletes", "retention", "soak")

_failures: list[str] = []
_rows: list[Row] = []


class ShiftedClock(Clock):
    """The clock of some days ago."""

    def __init__(self, days: float) -> None:
        super().__init__()
        self._days = days

    def now_ms(self) -> int:
        return super().now_ms() - int(self._days * DAY_MS)


class Load:
    """Running conversations. `waits_ms` are the times until an append was durable."""

    def __init__(self, writers: list[MessageWriter]) -> None:
        self.writers = writers
        self.stored = [0] * len(writers)  # appends of each conversation that are durable
        self.waits_ms: list[float] = []
        self._is_over = False

    async def run(self) -> None:
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for n in range(len(self.writers)):
                group.create_task(self._stream(n, begun_s + n / len(self.writers) / _APPENDS_PER_S))

    async def _stream(self, n: int, begun_s: float) -> None:
        writer, number = self.writers[n], 0
        while not self._is_over:
            due_s = begun_s + number / _APPENDS_PER_S
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            called_s = time.monotonic()
            await writer.append(f"{self.stored[n]:0{_PIECE}}")
            await writer.flush()
            self.stored[n] += 1
            self.waits_ms.append((time.monotonic() - called_s) * 1000)
            number += 1

    def end(self) -> None:
        self._is_over = True

    async def during(self, job: Callable[[], Awaitable[object]]) -> list[float]:
        """Return the sorted times of the appends that end while `job` runs."""
        self.waits_ms.clear()
        await job()
        return sorted(self.waits_ms)

    async def quiet(self, seconds: float) -> list[float]:
        return await self.during(lambda: asyncio.sleep(seconds))


@contextlib.asynccontextmanager
async def loaded(hub: Hub) -> AsyncIterator[Load]:
    """Run the conversations on `hub`."""
    async with contextlib.AsyncExitStack() as stack:
        names = [f"live:{n}" for n in range(_CONVERSATIONS)]
        load = Load([await stack.enter_async_context(hub.message(name)) for name in names])
        running = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(1.0)
            yield load
        finally:
            load.end()
            await running


async def backups(folder: Path, *, mb: int, seconds: float) -> None:
    """Measure a backup of a store of about `mb` MB."""
    path, target = folder / "keeping.db", folder / "keeping.backup"
    count = max(_CONVERSATIONS, mb * 1_000_000 // (_OLD_CHARACTERS + 900))  # 900: rows, indexes and the rest of slots
    hub = Hub(f"sqlite:///{path}")
    filled_s = await _fill(hub, "old", count, _OLD_CHARACTERS)
    settle_collector()
    largest = [0]
    with _counted_steps() as steps:
        async with loaded(hub) as load:
            watching = asyncio.create_task(_watch_size(Path(f"{path}-wal"), largest))
            size = path.stat().st_size
            quiet_s = min(max(seconds / 4, size / 1e6 / _MB_PER_S), seconds)
            before = await load.quiet(quiet_s)
            rounds = max(1, round(quiet_s * _MB_PER_S * 1e6 / size))
            at_begin = list(load.stored)
            begun_s = time.monotonic()

            async def back_up() -> None:
                for _ in range(rounds):
                    target.unlink(missing_ok=True)
                    at_begin[:] = load.stored
                    await hub.backup(target, mb_per_s=_MB_PER_S)

            busy = await load.during(back_up)
            took_s = (time.monotonic() - begun_s) / rounds
            at_end = list(load.stored)
            watching.cancel()
            after = await load.quiet(quiet_s)
    await hub.close()
    print(f"{rounds} x backup of {size / 1e6:,.0f} MB ({count:,} messages, filled in {filled_s:.0f} s): {took_s:.1f} s")
    name = f"backup of {mb:,} MB"
    _show(name, before, busy, after)
    pages = rounds * target.stat().st_size // 4096
    most = pages // 64 + 2 * rounds
    _rows.append(Row(f"{name}: steps", f"{steps():,}", f"at most {most:,}, or it began again", steps() <= most))
    wal_mb = largest[0] / 1e6
    _rows.append(Row(f"{name}: largest WAL", f"{wal_mb:.1f} MB", f"at most {_WAL_MB:.0f} MB", wal_mb <= _WAL_MB))
    begun_s = time.monotonic()
    for line in verify(target):
        _check(False, f"backup of {mb} MB: {line}")
    verified_s = time.monotonic() - begun_s
    opened = Hub(f"sqlite:///{target}")
    for n, (least, most) in enumerate(zip(at_begin, at_end, strict=True)):
        (message,) = (await opened.history(f"live:{n}")).messages
        text = message.text
        whole = "".join(f"{number:0{_PIECE}}" for number in range(most + 1))
        _check(
            whole.startswith(text) and len(text) >= least * _PIECE,
            f"the answer in live:{n} is wrong, or has {len(text)} characters in the backup of {least * _PIECE} stored",
        )
    for n in range(0, count, max(1, count // _COMPARED)):
        message, _ = await opened.read(_channel_of("old", n, count), f"m{n}")
        _check(message.text == _text(n, _OLD_CHARACTERS), f"message m{n} differs in the backup of {mb} MB")
    await opened.close()
    print(f"  verified in {verified_s:.1f} s; all answers are prefixes, old messages equal", flush=True)


async def deletes(folder: Path, *, count: int, seconds: float) -> None:
    """Measure appends while most channels are deleted in a row."""
    hub = Hub(f"sqlite:///{folder / 'deletes.db'}")
    await _fill(hub, "old", count, _OLD_CHARACTERS)
    settle_collector()

    async def delete() -> None:
        for n in range(_DELETED_CHANNELS):
            await hub.delete_channel(f"old:{n}")

    async with loaded(hub) as load:
        before = await load.quiet(seconds)
        begun_s = time.monotonic()
        busy = await load.during(delete)
        took_s = time.monotonic() - begun_s
        after = await load.quiet(seconds)
    await hub.close()
    print(f"{_DELETED_CHANNELS} channels with {count // _OLD_CHANNELS} messages of 8 kB, deleted in {took_s:.1f} s")
    _show(f"{_DELETED_CHANNELS} deletes", before, busy, after)


async def retained(folder: Path, *, count: int, seconds: float) -> None:
    """Measure the removal of `count` messages."""
    path = folder / "retained.db"
    filled_s = await _store_old(path, count, ShiftedClock(100))
    now = Hub(f"sqlite:///{path}")
    await now.create("live:now", text="the clock is right")  # otherwise its first round would not trust the clock
    await now.close()
    print(f"{count:,} messages of 100 days ago, {path.stat().st_size / 1e6:,.0f} MB, filled in {filled_s:.0f} s")
    retention.ROUND_S = 2 * seconds + 2.0  # the first round begins after the quiet time
    hub = Hub(f"sqlite:///{path}", retention={"old:*": "90d"})
    await hub.start()
    settle_collector()
    async with loaded(hub) as load:
        before = await load.quiet(2 * seconds)
        await _until(lambda: hub.stats()["retention_messages"] > 0)
        first = hub.stats()["retention_messages"]
        busy = await load.during(lambda: asyncio.sleep(2 * seconds))
        gone = hub.stats()["retention_messages"] - first
        print(f"retention at its own pace: {gone / 2 / seconds:.0f} messages a second, {2 * seconds:.0f} s")
        _show(f"retention of {count:,} messages", before, busy, [])
    with _without_pauses():  # and without conversations, which would take most of the core
        begun_s, memory = time.monotonic(), rss_bytes(os.getpid())
        await _until(lambda: hub.stats()["retention_rounds"] > 0)
        took_s = time.monotonic() - begun_s
    stats = hub.stats()
    rate = (stats["retention_messages"] - first - gone) / took_s
    print(
        f"  without pauses: {rate:,.0f} messages a second until all {stats['retention_messages']:,} were gone;", end=" "
    )
    print(f"memory {memory / 1e6:.0f} → {rss_bytes(os.getpid()) / 1e6:.0f} MB", flush=True)
    _check(stats["retention_messages"] == count, f"{stats['retention_messages']:,} of {count:,} messages are gone")
    await hub.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        (left,) = db.execute(
            "SELECT count(*) FROM documents WHERE channel NOT IN (SELECT id FROM channels WHERE name LIKE 'live:%')"
        ).fetchone()
    _check(not left, f"{left} rows of removed messages are left")


async def soak(folder: Path, *, days: int, kept: int) -> None:
    """Check that rows, bytes and memory stay the same when as many messages go as come."""
    first = kept + _SETTLED_DAYS
    if days < first + 2:  # otherwise it would compare a day with itself
        raise SystemExit(f"--days must be {first + 2} or more with --kept {kept}, got {days}")
    path = folder / "soak.db"
    sizes: list[tuple[int, int, int]] = []
    for day in range(days):
        hub = Hub(f"sqlite:///{path}", retention={"*": f"{kept}d"}, clock=ShiftedClock(days - day))
        await _fill(hub, f"day:{day}", _SOAK_MESSAGES, _SMALL_CHARACTERS, channels=_SOAK_CHANNELS)
        with _without_pauses():
            await hub.retainer._round(hub.runtime)
        await hub.close()
        gc.collect()
        with contextlib.closing(sqlite3.connect(path)) as db:
            (rows,) = db.execute("SELECT (SELECT count(*) FROM documents) + (SELECT count(*) FROM texts)").fetchone()
        sizes.append((rows, path.stat().st_size, rss_bytes(os.getpid())))
    shown = [
        f"{one[0]:,} rows, {one[1] / 1e6:.1f} MB, memory {one[2] / 1e6:.0f} MB" for one in (sizes[first], sizes[-1])
    ]
    print(f"soak of {days} days by {kept}d: day {first} {shown[0]}; day {days - 1} {shown[1]}", flush=True)
    for what, before, after in zip(("rows", "bytes", "memory"), sizes[first], sizes[-1], strict=True):
        _check(after <= before * _GROWTH, f"{what} grew in the soak, from {before:,} to {after:,}")


async def _store_old(path: Path, count: int, clock: Clock) -> float:
    """Store `count` small messages of the time of `clock`, and return the seconds that it took."""
    begun_s = time.monotonic()
    store = SqliteStore(path)
    await store.open()
    serials: dict[str, int] = {}
    epochs: dict[str, str] = {}
    for start in range(0, count, _IN_A_COMMIT):
        writes: dict[str, tuple[list[Entry], list[Document]]] = {}
        for n in range(start, min(start + _IN_A_COMMIT, count)):
            channel, at_ms = _channel_of("old", n, count), clock.now_ms()
            serials[channel] = serials.get(channel, 0) + 1
            record = MessageRecord(
                id=f"m{n}",
                role="user",
                status="complete",
                parts=[{"type": "text", "text": _text(n, _SMALL_CHARACTERS)}],
                created_at=at_ms,
                updated_at=at_ms,
            )
            made = imported(record, serials[channel], at_ms)
            entries, documents = writes.setdefault(channel, ([], []))
            entries += made.entries
            documents.append(made.document)
        results = await store.commit(
            [
                Write(
                    channel=channel,
                    epoch=epochs.setdefault(channel, clock.new_epoch()),
                    expected=entries[0].serial - 1,
                    entries=entries,
                    documents=documents,
                )
                for channel, (entries, documents) in writes.items()
            ]
        )
        assert all(isinstance(one, Committed) for one in results), results
    await store.close()
    return time.monotonic() - begun_s


async def _fill(hub: Hub, prefix: str, count: int, characters: int, *, channels: int = _OLD_CHANNELS) -> float:
    """Store `count` messages, and return the seconds that it took."""
    begun_s = time.monotonic()
    await hub.start()
    for start in range(0, count, _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, count))
        await asyncio.gather(
            *(
                hub.create(_channel_of(prefix, n, count, channels), id=f"m{n}", text=_text(n, characters))
                for n in numbers
            )
        )
    return time.monotonic() - begun_s


def _channel_of(prefix: str, n: int, count: int, channels: int = _OLD_CHANNELS) -> str:
    """Return the channel of message `n`: neighbours share one, so that few channels are in memory at once."""
    return f"{prefix}:{n * channels // count}"


def _text(n: int, characters: int) -> str:
    return f"{n:010}" * (characters // 10)


@contextlib.contextmanager
def _counted_steps() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the number of steps of all copies."""
    steps = 0

    def counting(db: sqlite3.Connection, partial: Path, *, bytes_per_s: float, pause: Callable[[float], bool]) -> None:
        def counted(seconds: float) -> bool:
            nonlocal steps
            steps += 1
            return pause(seconds)

        copy(db, partial, bytes_per_s=bytes_per_s, pause=counted)

    with mock.patch.object(sqlite, "copy", counting):
        yield lambda: steps


@contextlib.contextmanager
def _without_pauses() -> Iterator[None]:
    with mock.patch.multiple(retention, PAUSE_S=0.0, READ_PAUSE_S=0.0):
        yield


async def _until(is_true: Callable[[], bool]) -> None:
    while not is_true():  # noqa: ASYNC110 - the hub's counters have no event
        await asyncio.sleep(0.1)


async def _watch_size(path: Path, largest: list[int]) -> None:
    while True:
        largest[0] = max(largest[0], os.path.getsize(path))  # noqa: ASYNC240
        await asyncio.sleep(0.05)


def _show(name: str, before: list[float], busy: list[float], after: list[float]) -> None:
    for what, waits in (("before", before), ("during", busy), ("after", after)):
        if waits:
            p50, p99 = (waits[int(len(waits) * share)] for share in (0.5, 0.99))
            print(
                f"  {what}: {len(waits):,} appends, durable after p50 {p50:.1f}, p99 {p99:.1f}, max {waits[-1]:.1f} ms"
            )
    quiet = sorted(before + after)
    ratio = busy[int(len(busy) * 0.99)] / quiet[int(len(quiet) * 0.99)]
    limit = f"at most {_P99_RATIO:.1f} x"
    _rows.append(Row(f"{name}: p99 of appends", f"{ratio:.2f} x the quiet one", limit, ratio <= _P99_RATIO))


def _check(is_right: bool, what: str) -> None:
    if not is_right:
        _failures.append(what)
        print(f"FAILED: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=(*_PARTS, []), default=[])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--mb", type=int, nargs="+", default=[10, 400])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--deleted", type=int, default=45_000, help="messages before the deletes")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--days", type=int, default=180)
    parser.add_argument("--kept", type=int, default=90)
    arguments = parser.parse_args()
    jobs: dict[str, list[Callable[[Path], Coroutine[None, None, None]]]] = {
        "backup": [partial(backups, mb=mb, seconds=arguments.seconds) for mb in arguments.mb],
        "deletes": [partial(deletes, count=arguments.deleted, seconds=arguments.seconds)],
        "retention": [partial(retained, count=arguments.messages, seconds=arguments.seconds)],
        "soak": [partial(soak, days=arguments.days, kept=arguments.kept)],
    }
    for name in arguments.what or _PARTS:
        for job in jobs[name]:
            with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
                asyncio.run(job(Path(folder)))
    return _end()


def _end() -> int:
    """Print the table, and return the exit status."""
    over = sum(row.is_met is False for row in _rows)
    print("\n".join([*report.text(_rows), f"{over} over their limits, {len(_failures)} failed"]))
    return 1 if over or _failures else 0


if __name__ == "__main__":
    sys.exit(main())
