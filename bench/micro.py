"""Small measurements for development of the hub: `python -m bench.micro [appends] [viewers] [--dir D] [--rounds N]`.

They are not part of `make bench`. They measure CPU time, or time on a clock that advances only with CPU time and waits,
so two versions can be compared on a busy machine. Run both versions in turn, with the other version's folder first on
PYTHONPATH, and compare medians.

- `appends`: durable appends on SQLite FULL, 500 producers that await each token, and 20 at a time.
- `viewers`: 500 conversations of 50 tokens per second with two viewers each, in the process and without sockets. The
  store is in memory and takes as long as SQLite. The result is how late tokens are shown, for several batch sizes.
"""

import argparse
import asyncio
import contextlib
import selectors
import statistics
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from tenuto import Hub
from tenuto.core.events import MessageAppend
from tenuto.hub import committer
from tenuto.hub.feed import Feed
from tenuto.server.serving import settle_collector
from tenuto.stores.base import Committed, Conflict, Write
from tenuto.stores.memory import MemoryStore
from tenuto.stores.sqlite.store import SqliteStore

_PRODUCERS = 500
_ROUNDS_OF_TOKENS = 60
_ROW_SIZES = (64, 128, 256)
_CONVERSATIONS = 500
_VIEWERS = 2
_TOKENS_PER_S = 50.0
_SECONDS = 2.0
_STAMP = 10  # number of characters of a token, which holds its append time
# The further cost of a delivery and of a commit, which is not measured here, on the machine of `docs/benchmarks.md`.
_SEND_S = 10e-6
_COMMIT_S = 100e-6
_ROW_S = 7e-6
_SYNC_S = 0.002


async def appends(directory: Path, at_once: int) -> float:
    """Return the microseconds of CPU, of all threads, for each appended and awaited token."""
    hub = Hub(SqliteStore(directory / "micro.db"))
    await hub.start()
    settle_collector()
    async with contextlib.AsyncExitStack() as stack:
        names = [f"bench:{n}" for n in range(_PRODUCERS)]
        writers = [await stack.enter_async_context(hub.message(name)) for name in names]

        async def all_grow(rounds: int) -> None:
            async def one(n: int) -> None:
                for _ in range(rounds):
                    for _ in range(at_once):
                        await writers[n].append("token")
                    await writers[n].flush()

            async with asyncio.TaskGroup() as group:
                for n in range(_PRODUCERS):
                    group.create_task(one(n))

        await all_grow(5)  # build lazy objects before the counters start
        rounds = max(5, _ROUNDS_OF_TOKENS // at_once)
        used_s = time.process_time()
        await all_grow(rounds)
        used_s = time.process_time() - used_s
    await hub.close()
    return used_s / (_PRODUCERS * at_once * rounds) * 1e6


class CpuClock(selectors.SelectSelector):
    """A loop's selector and clock. Time is the CPU time of its thread plus its waits, which it skips."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._skipped_s = 0.0

    def spend(self, seconds: float) -> None:
        """Advance the clock as if another process used the core for so long."""
        self._skipped_s += seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self._skipped_s += timeout
        self.now_s = time.thread_time() + self._skipped_s
        return ready


class CpuLoop(asyncio.SelectorEventLoop):
    """An event loop on such a clock."""

    def __init__(self, clock: CpuClock) -> None:
        self.clock = clock
        super().__init__(clock)

    def time(self) -> float:
        return self.clock.now_s


class SlowStore(MemoryStore):
    """A store in memory with SQLite's cost in CPU time and in disk time."""

    def __init__(self, clock: CpuClock) -> None:
        super().__init__()
        self._clock = clock

    async def commit(self, writes: Sequence[Write]) -> list[Committed | Conflict]:
        self._clock.spend(_COMMIT_S + _ROW_S * sum(len(write.entries) for write in writes))
        await asyncio.sleep(_SYNC_S)
        return await super().commit(writes)


class Viewer:
    """A viewer that takes its events when it is notified, and notes the age of each token."""

    feed: Feed

    def __init__(self, clock: CpuClock, into: "array[float]") -> None:
        self._clock = clock
        self._into = into

    def wake(self) -> None:
        batch = self.feed.take()
        if batch is None:
            return
        assert batch.sse
        self._clock.spend(_SEND_S)
        for event in batch.events:
            if isinstance(event, MessageAppend):
                stamps = [event.text[at : at + _STAMP] for at in range(0, len(event.text), _STAMP)]
                self._into.extend(self._clock.now_s - float(stamp) for stamp in stamps)


async def viewers(clock: CpuClock) -> tuple[float, list[float]]:
    """Return the microseconds of the loop's CPU for each token, and how late tokens were shown, sorted."""
    hub = Hub(SlowStore(clock))
    await hub.start()
    settle_collector()
    late_s = array("d")
    async with contextlib.AsyncExitStack() as stack:
        names = [f"bench:{n}" for n in range(_CONVERSATIONS)]
        writers = [await stack.enter_async_context(hub.message(name)) for name in names]
        for name in names * _VIEWERS:
            viewer = Viewer(clock, late_s)
            viewer.feed = await hub.attach(name, None, history=0, flush_ms=40, wake=viewer.wake)
            viewer.feed.take()

        async def all_stream(seconds: float) -> None:
            begun_s = clock.now_s

            async def one(n: int) -> None:
                for number in range(int(seconds * _TOKENS_PER_S)):
                    due_s = begun_s + (n / _CONVERSATIONS + number) / _TOKENS_PER_S
                    await asyncio.sleep(max(0.0, due_s - clock.now_s))
                    await writers[n].append(f"{clock.now_s:0{_STAMP}.5f}")

            async with asyncio.TaskGroup() as group:
                for n in range(_CONVERSATIONS):
                    group.create_task(one(n))

        await all_stream(0.5)
        del late_s[:]
        used_s = time.thread_time()
        await all_stream(_SECONDS)
        used_s = time.thread_time() - used_s
    await hub.close()
    return used_s / (_CONVERSATIONS * _TOKENS_PER_S * _SECONDS) * 1e6, sorted(late_s)


def _show_appends(directory: Path, rounds: int) -> None:
    for at_once in (1, 20):
        costs = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=directory) as folder:
                costs.append(asyncio.run(appends(Path(folder), at_once)))
        print(f"appends, {at_once} at once: {_spread(costs)} µs of CPU per token", flush=True)


def _show_viewers(rounds: int) -> None:
    present = committer.MAX_ROWS
    for rows in _ROW_SIZES:
        costs, tails_ms = [], []
        committer.MAX_ROWS = rows
        for _ in range(rounds):
            clock = CpuClock()
            with asyncio.Runner(loop_factory=lambda clock=clock: CpuLoop(clock)) as runner:  # type: ignore[misc]
                cost, late_s = runner.run(viewers(clock))
            costs.append(cost)
            tails_ms.append(late_s[int(len(late_s) * 0.99)] * 1000)
        print(f"viewers, {rows} rows: p99 {_spread(tails_ms)} ms, {_spread(costs)} µs of CPU per token", flush=True)
    committer.MAX_ROWS = present


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("appends", "viewers", []), default=[])
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.what or "appends" in arguments.what:
        _show_appends(arguments.dir, arguments.rounds)
    if not arguments.what or "viewers" in arguments.what:
        _show_viewers(arguments.rounds)


if __name__ == "__main__":
    _main()
