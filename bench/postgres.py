"""PostgreSQL as the store: durable appends, its own time and WAL, latency, and viewers at another process.

PostgreSQL has its default settings, with its files in the directory of the run. For appends it shares the server's
core, as Redis does in the reference. In the rows of latency and of two processes both processes share the server's
core, and PostgreSQL may use both cores, because two cores are too few for each to have its own: the figure is the CPU
time of the processes. All viewers' texts are compared with the sent ones.
"""

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import appends
from bench.common import (
    FINISHED,
    Options,
    Row,
    Served,
    attempt,
    check,
    client_load,
    load_client,
    number,
    raw_line,
    served,
    spread,
)
from bench.conversations import TOKENS_PER_S, Run, measure
from bench.needs import SERVER, Needs
from bench.peers.load import peer_load
from bench.peers.ours import ours_on_postgres
from bench.peers.redis_server import redis_server
from bench.peers.system import program
from bench.peers.xadd import xadd
from bench.proc import BenchError, Child, NotInstalled, cpu_s, raise_file_limit
from bench.tokens import WIDTH
from proof.chaos.postgres_server import PROGRAMS, Postgres, running_postgres

_TIMEOUT_S = 30.0
_PRODUCERS = 64  # of the row with the time of PostgreSQL: each is a channel of a commit
_CONVERSATIONS = 500
_NOTICES = {"NOTIFY": (5, 25), "a bus": (5, 25), "no notices": (1_100, 1_100)}  # limits of extra delay, p50 and p99


class Sizes(NamedTuple):
    """The sizes of a run."""

    rounds: int
    seconds: float
    conversations: int  # of the row of latency, and of two processes under full load
    channels: int  # of the other rows of two processes; the rows of delay have a twentieth of them


FULL = Sizes(rounds=3, seconds=5.0, conversations=_CONVERSATIONS, channels=400)
QUICK = Sizes(rounds=1, seconds=2.0, conversations=100, channels=100)


def run(options: Options) -> Iterator[Row]:
    sizes, of_appends = (QUICK, appends.QUICK) if options.is_quick else (FULL, appends.FULL)
    yield from attempt("durable appends on PostgreSQL", functools.partial(durable, options, of_appends))
    yield from attempt("PostgreSQL per entry", functools.partial(entries, options, sizes))
    with running_postgres(options.directory) as postgres:
        yield from attempt("latency on PostgreSQL", functools.partial(latency, postgres, options, sizes))
        yield from delays(postgres, options, sizes)
        yield from attempt("two processes", functools.partial(costs, postgres, sizes))


def needs(options: Options) -> Needs:
    return Needs(
        seconds=75 if options.is_quick else 320,
        files=2 * _CONVERSATIONS + 100,
        disk_mb=2_000,
        packages=(*SERVER, "asyncpg", "redis"),
        peers={"PostgreSQL": check_postgres},
        parts={"redis-server": lambda _: check_redis()},
    )


def check_postgres(folder: Path) -> None:
    if not (PROGRAMS / "initdb").exists():
        raise NotInstalled("PostgreSQL is missing (Debian: apt-get install postgresql)")
    try:
        with running_postgres(folder.parent):
            pass
    except AssertionError as error:  # the account of PostgreSQL must be able to reach the folder
        raise BenchError(f"PostgreSQL does not start in {folder.parent}: {error}") from None


def check_redis() -> None:
    try:
        program("redis-server", "redis-server")
    except BenchError as error:
        raise NotInstalled(str(error)) from None


def durable(options: Options, sizes: appends.Sizes) -> Iterator[Row]:
    """Compare awaited appends with XADD on a file that is synced at each of them."""
    check_redis()
    raise_file_limit(sizes.producers * 3 + 200)
    with folder_in(options) as folder, contextlib.ExitStack() as stack:
        (folder / "redis").mkdir()
        system, _ = stack.enter_context(ours_on_postgres(options.directory))
        redis = stack.enter_context(xadd(folder / "redis", "always"))
        systems: dict[str, appends.Appending] = {"Tenuto": system, "XADD": redis}
        rounds = appends.alternate(systems, stack.enter_context(peer_load()), sizes, at_once=1)
    ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(*rounds.values(), strict=True)]
    costs_ = [other.us_per_token / one.us_per_token for one, other in zip(*rounds.values(), strict=True)]
    yield Row(
        f"durable appends, {sizes.producers} producers that await each token: PostgreSQL against XADD, AOF always",
        spread(ratios, "×"),
        "2 ×",
        statistics.median(ratios) >= 2,
        f"tokens per second of CPU: {spread(costs_, '×')}",
        raw=appends.raw(rounds),
    )


def entries(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Measure what PostgreSQL itself does for each entry, with 64 channels in most commits."""
    us_per_entry, wal = [], []
    with ours_on_postgres(options.directory) as (system, postgres), peer_load() as client:
        channels = [f"bench:entry-{n}" for n in range(_PRODUCERS)]
        system.child.request("begin", channels=channels)
        tokens = system.child.request("append", seconds=0.5, at_once=1)["tokens"]
        for _ in range(sizes.rounds):
            before, used_s = _wal_bytes(postgres), cpu_s(postgres.pid)
            done = system.child.request("append", seconds=sizes.seconds, at_once=1, reply_in_s=sizes.seconds + 60)
            made, tokens = done["tokens"] - tokens, done["tokens"]
            us_per_entry.append((cpu_s(postgres.pid) - used_s) / made * 1e6)
            wal.append((_wal_bytes(postgres) - before) / (made * WIDTH))
        sent = system.child.request("finish", reply_in_s=_TIMEOUT_S)["messages"]
        appends.verify(system, client, channels, sent)
    what = f"CPU of PostgreSQL per entry, {_PRODUCERS} producers that await each token"
    yield Row(what, spread(us_per_entry, "µs"), "15 µs", statistics.median(us_per_entry) <= 15)
    note = f"a token has {WIDTH} bytes of text"
    yield Row("  WAL per byte of text", spread(wal, "×"), "30 ×", statistics.median(wal) <= 30, note)


def latency(postgres: Postgres, options: Options, sizes: Sizes) -> Iterator[Row]:
    """Compare the latency of streamed answers with that on SQLite."""
    runs: list[tuple[Run, Run]] = []
    for n in range(sizes.rounds):
        url = f"{postgres.url}?schema=latency{n}"
        one = measure(options, sizes.conversations, seconds=sizes.seconds, store=url)
        runs.append((one, measure(options, sizes.conversations, seconds=sizes.seconds)))
    ratios = [one.latency_ms[1] / other.latency_ms[1] for one, other in runs]
    p99s = [spread([run.latency_ms[1] for run in each], "ms") for each in zip(*runs, strict=True)]
    used = [spread([run.us_per_token for run in each], "µs") for each in zip(*runs, strict=True)]
    yield Row(
        f"{sizes.conversations} × {TOKENS_PER_S} tokens/s × 2 viewers: latency p99, PostgreSQL against SQLite",
        spread(ratios, "×"),
        "1.5 ×",
        statistics.median(ratios) <= 1.5,
        f"p99 {p99s[0]} and {p99s[1]}; CPU of the server per delivered token {used[0]} and {used[1]}",
        raw=tuple(f"{name}: {one}" for pair in runs for name, one in zip(("PostgreSQL", "SQLite"), pair, strict=True)),
    )


class Group(NamedTuple):
    """Viewers of `channels` at `server`, by a load client of their own."""

    load: Child
    server: Served
    channels: list[str]


def stream(
    groups: Sequence[Group],
    writers: Sequence[tuple[Served, list[str]]],
    *,
    per_s: float,
    seconds: float,
    meter: contextlib.AbstractContextManager[object] | None = None,
) -> list[dict[str, Any]]:
    """Have the producers of `writers` stream answers to all viewers. Return the results of each group's load client.

    `meter` is entered while they stream.
    """
    for load, server, channels in groups:
        load.request("connect", kind="sse", channels=channels, timeout_s=_TIMEOUT_S, **server.address)
    for group in groups:
        group.load.request("capture")
    sent: dict[str, Any] = {}
    late_ms = []
    with meter or contextlib.nullcontext():
        for server, channels in writers:
            server.child.send("produce", channels=channels, count=int(seconds * per_s), tokens_per_s=per_s)
        for server, _ in writers:
            produced = server.child.read(timeout_s=seconds + 45)
            sent |= produced["messages"]
            late_ms.append(produced["lag_ms"])
    drained = [group.load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED) for group in groups]
    found = []
    for group, each in zip(groups, drained, strict=True):
        decoded = group.load.request("decode")
        own = {channel: sent[channel] for channel in group.channels}
        check(decoded, group.load.request("compare", sent=own, **group.server.address), each, lag_ms=max(late_ms))
        client_load(each)
        group.load.request("close")
        found.append(decoded)
    return found


def delays(postgres: Postgres, options: Options, sizes: Sizes) -> Iterator[Row]:
    """Measure how much later than at the writer's process a token arrives at a viewer of another one."""
    for how in _NOTICES:
        yield from attempt(
            f"viewers at another process, {how}", functools.partial(_delay, postgres, options, sizes, how)
        )


def _delay(postgres: Postgres, options: Options, sizes: Sizes, how: str) -> Iterator[Row]:
    rounds, limits = [], _NOTICES[how]
    url = f"{postgres.url}?schema={how.replace(' ', '_').lower()}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(folder_in(options))
        own: tuple[str, ...] = ("--mute",) if how == "no notices" else ()
        if how == "a bus":
            check_redis()
            redis = stack.enter_context(redis_server(folder, "everysec"))
            own = ("--bus", f"redis://127.0.0.1:{redis.port}")
        here, there = (stack.enter_context(served(url, *own)) for _ in range(2))
        near, far = (stack.enter_context(load_client()) for _ in range(2))
        for n in range(sizes.rounds):
            channels = [f"bench:{n}-{channel}" for channel in range(max(1, sizes.channels // 20))]
            groups = [Group(near, here, channels), Group(far, there, channels)]
            both = stream(groups, [(here, channels)], per_s=20, seconds=sizes.seconds)
            rounds.append([each["latency_ms"] for each in both])
    for at, name in enumerate(("p50", "p99")):
        extra = [other[at] - own_ms[at] for own_ms, other in rounds]
        yield Row(
            f"extra delay of a viewer at another process, {how}: {name}" if not at else f"  {name}",
            spread(extra, "ms"),
            f"{limits[at]:,} ms",
            statistics.median(extra) <= limits[at],
            raw=tuple(raw_line(near_ms=own_ms[at], far_ms=other[at]) for own_ms, other in rounds),
        )


def costs(postgres: Postgres, sizes: Sizes) -> Iterator[Row]:
    """Compare the CPU time of two processes per delivered token with that of one: under full load, and with much less.

    One core is too few for all viewers at another process under full load.
    """
    shapes: Sequence[tuple[int, float, dict[int, float | None]]] = (
        (sizes.conversations, float(TOKENS_PER_S), {2: 1.1}),
        (sizes.channels, 10.0, {2: None, 0: 1.8}),
    )
    names = {2: "viewers with the writer", 0: "all viewers at the other process"}
    for channels, per_s, limits in shapes:
        found: dict[int, list[float]] = {writers: [] for writers in (1, *limits)}
        for n in range(sizes.rounds):
            for writers, used in found.items():
                url = f"{postgres.url}?schema=cost{writers}_{per_s:.0f}_{n}"
                used.append(_cost(url, channels, per_s, sizes.seconds, writers))
        for writers, limit in limits.items():
            ratios = [each / alone for each, alone in zip(found[writers], found[1], strict=True)]
            yield Row(
                f"{channels} × {per_s:g} tokens/s × 2 viewers: CPU per delivered token, two processes against one, "
                f"{names[writers]}",
                spread(ratios, "×"),
                f"{limit} ×" if limit else "",
                statistics.median(ratios) <= limit if limit else None,
                f"{number(statistics.median(found[writers]))} and {number(statistics.median(found[1]))} µs",
            )


def _cost(url: str, count: int, per_s: float, seconds: float, writers: int) -> float:
    """Return the CPU time per delivered token, in µs, of `count` answers of `writers` processes, each with two viewers.

    With 0 writers one process has all producers, and another one all viewers.
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(url)) for _ in range(writers or 2)]
        channels = [f"bench:{n}" for n in range(count)]
        each = [channels[n::2] for n in range(2)] if writers == 2 else [channels]
        at = servers[1:] if not writers else servers
        groups = [
            Group(stack.enter_context(load_client()), server, own * 2) for server, own in zip(at, each, strict=True)
        ]
        before_s = sum(cpu_s(server.child.pid) for server in servers)
        decoded = stream(groups, list(zip(servers, each, strict=False)), per_s=per_s, seconds=seconds)
        used_s = sum(cpu_s(server.child.pid) for server in servers) - before_s
    return used_s / sum(int(one["tokens"]) for one in decoded) * 1e6


def _wal_bytes(postgres: Postgres) -> int:
    return int(postgres.sql("SELECT pg_current_wal_lsn() - '0/0'"))


@contextlib.contextmanager
def folder_in(options: Options) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        yield Path(name)
