"""PostgreSQL as the store: durable appends, viewers at another process, and those of a killed one.

PostgreSQL has its default settings, with its files in the directory of the run. For appends it shares the server's
core, as Redis does in the reference. In the rows of several processes these share the server's core, and PostgreSQL may
use both cores, because two cores are too few for each to have its own: the figure is the CPU time of the processes, or
the time until the viewers of a killed process are live again. All viewers' texts are compared with the sent ones.
"""

import contextlib
import functools
import statistics
import tempfile
import time
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
    void,
)
from bench.conversations import TOKENS_PER_S
from bench.peers.ours import ours_on_postgres
from bench.peers.redis_server import redis_server
from bench.peers.system import program
from bench.peers.xadd import xadd
from bench.proc import BenchError, Child, NotInstalled, cpu_s, raise_file_limit
from bench.tokens import known_text, summary
from proof.chaos.postgres_server import PROGRAMS, Postgres, running_postgres

_TIMEOUT_S = 60.0
_CONVERSATIONS = 500
_STORM_S = 5.0
_JITTER_S = 0.5
_STORM_TOKENS_PER_S = 50
_ADOPTED_S = 6.0
_POLL_S = 0.05
_NOTICES = {"NOTIFY": (5, 25), "a bus": (5, 25), "no notices": (1_100, 1_100)}  # limits of extra delay, p50 and p99


class Sizes(NamedTuple):
    """The sizes of a run."""

    rounds: int
    seconds: float
    conversations: int  # of two processes under full load
    channels: int  # of the other rows of two processes; the rows of delay have a twentieth of them
    viewers: int = 1_000  # of the killed process
    before_s: float = 2.0  # time before it is killed
    after_s: float = 2 * _STORM_S  # how long an answer of another process streams after that


FULL = Sizes(rounds=3, seconds=5.0, conversations=_CONVERSATIONS, channels=400)
QUICK = Sizes(rounds=1, seconds=2.0, conversations=100, channels=100)


def run(options: Options) -> Iterator[Row]:
    sizes, of_appends = (QUICK, appends.QUICK) if options.is_quick else (FULL, appends.FULL)
    yield from attempt("durable appends on PostgreSQL", functools.partial(durable, options, of_appends))
    with running_postgres(options.directory) as postgres:
        yield from delays(postgres, options, sizes)
        yield from attempt("two processes", functools.partial(costs, postgres, sizes))
        yield from attempt("viewers of a killed process", functools.partial(storm, postgres, sizes))


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


PEERS = {"PostgreSQL": check_postgres}
PARTS = {"redis-server": lambda _: check_redis()}


def durable(options: Options, sizes: appends.Sizes) -> Iterator[Row]:
    """Compare awaited appends with XADD on a file that is synced at each of them."""
    check_redis()
    raise_file_limit(sizes.producers * 3 + 200)
    with folder_in(options) as folder, contextlib.ExitStack() as stack:
        (folder / "redis").mkdir()
        system = stack.enter_context(ours_on_postgres(options.directory))
        redis = stack.enter_context(xadd(folder / "redis", "always"))
        systems: dict[str, appends.Appending] = {"Tenuto": system, "XADD": redis}
        rounds = appends.alternate(systems, stack.enter_context(load_client()), sizes, at_once=1)
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
) -> list[dict[str, Any]]:
    """Have the producers of `writers` stream answers to all viewers. Return the results of each group's load client."""
    for load, server, channels in groups:
        load.request("connect", kind="sse", channels=channels, timeout_s=_TIMEOUT_S, **server.address)
    for group in groups:
        group.load.request("capture")
    sent: dict[str, Any] = {}
    late_ms = []
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


class _Storm(NamedTuple):
    live_s: float  # time from the kill until the last viewer was live
    adopted_s: float  # time from the kill until another process continued the answer of the killed one
    burst_load: float
    steady_load: float
    viewers: list[int]  # at each of the other processes

    def __str__(self) -> str:
        return (
            f"all live {self.live_s:.2f} s after the kill, {' and '.join(map(str, self.viewers))} viewers; the answer "
            f"went on after {self.adopted_s:.2f} s; load client used {self.burst_load:.0%} of its core until all were "
            f"live and {self.steady_load:.0%} after"
        )


def storm(postgres: Postgres, sizes: Sizes) -> Iterator[Row]:
    """Kill one of three processes, with all viewers. Raises `Void` if one got a new start or a wrong text."""
    raise_file_limit(sizes.viewers + 100)
    times = [_killed(f"{postgres.url}?schema=storm_{seed}", sizes, seed) for seed in range(sizes.rounds)]
    yield Row(
        f"storm: {sizes.viewers:,} viewers of one of three processes, half by SSE and half by WebSocket, from its "
        "kill -9 to the last one live at the other two",
        spread([each.live_s for each in times], "s"),
        f"{_STORM_S:g} s",
        max(each.live_s for each in times) <= _STORM_S,
        note="every viewer resumed from its cursor and received the whole text; all processes share two cores",
        raw=tuple(str(each) for each in times),
    )
    yield Row(
        "  until another process continues the answer of the killed one",
        spread([each.adopted_s for each in times], "s"),
        f"{_ADOPTED_S:g} s",
        max(each.adopted_s for each in times) <= _ADOPTED_S,
    )


def _killed(url: str, sizes: Sizes, seed: int) -> _Storm:
    """Run one kill. Half of the viewers watch an answer of the killed process, half one of another process."""
    count = int((sizes.before_s + sizes.after_s) * _STORM_TOKENS_PER_S)
    texts = {f"bench:storm-{n}": known_text(2 * seed + n, count) for n in range(2)}
    with contextlib.ExitStack() as stack:
        killed, *others = (stack.enter_context(served(url)) for _ in range(3))
        load = stack.enter_context(load_client())
        for kind in ("sse", "websocket"):
            watched = [channel for channel in texts for _ in range(sizes.viewers // 4)]
            load.request("connect", kind=kind, channels=watched, timeout_s=_TIMEOUT_S, **killed.address)
        for n, (channel, server) in enumerate(zip(texts, (killed, others[0]), strict=True)):
            message: dict[str, Any] = {"channel": channel, "id": "answer", "seed": 2 * seed + n, "count": count}
            server.child.request("stream", **message, tokens_per_s=_STORM_TOKENS_PER_S)
        load.request("pass", seconds=sizes.before_s)
        killed_s = time.monotonic()
        killed.child.kill()
        ports: dict[str, Any] = {**others[0].address, "others": [others[1].port]}
        load.send("come_back", within_s=_JITTER_S, timeout_s=_TIMEOUT_S, **ports)
        back = load.read(timeout_s=_TIMEOUT_S + 5)
        left = _stored_text(others[0], next(iter(texts)))
        if back["new_starts"]:
            raise void(f"{back['new_starts']} viewers got a new start instead of a resume", back)
        for channel in texts:
            if (status := _stored(others[0], channel)["status"]) != "streaming":
                raise void(f"the answer in {channel} was {status} when the viewers were back", back)
        viewers = [other.child.request("stats")["feeds"] for other in others]
        load.request("capture")
        adopted_s = _went_on(others[0], next(iter(texts)), left) - killed_s
        drained = load.request("drain", timeout_s=_TIMEOUT_S, reply_in_s=_TIMEOUT_S + 5, last=FINISHED)
        lag_ms = [other.child.request("lag")["lag_ms"] for other in others]  # a failed producer explains short texts
        sent = {channel: summary(text, "answer") for channel, text in texts.items()}
        decoded = load.request("decode", reply_in_s=_TIMEOUT_S)
        check(decoded, load.request("compare", sent=sent, **others[0].address), drained, lag_ms=max(lag_ms))
    return _Storm(
        live_s=back["attached_s"][-1] - killed_s,
        adopted_s=adopted_s,
        burst_load=back["cpu_s"] / back["seconds"],
        steady_load=client_load(drained),
        viewers=viewers,
    )


def _stored(server: Served, channel: str) -> dict[str, Any]:
    message: dict[str, Any] = server.call("GET", f"{channel}/messages/answer")["message"]
    return message


def _stored_text(server: Served, channel: str) -> str:
    return "".join(part["text"] for part in _stored(server, channel)["parts"])


def _went_on(server: Served, channel: str, text: str) -> float:
    """Return when the answer was longer than `text`, which the killed process has left."""
    until_s = time.monotonic() + _TIMEOUT_S
    while _stored_text(server, channel) == text:
        if time.monotonic() > until_s:
            raise BenchError(f"the answer of the killed process did not go on within {_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    return time.monotonic()


@contextlib.contextmanager
def folder_in(options: Options) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        yield Path(name)
