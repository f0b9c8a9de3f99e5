"""Several processes on one PostgreSQL: the cost of notices, of many channels, and the viewers of a killed process.

Two cores are too few for the processes of these rows. The servers under test share one of them, load clients and
listening nodes the other, and PostgreSQL and Redis may use both. So the figures are CPU times, except for the time
until the viewers of a killed process are live again. All viewers' texts are compared with the sent ones.
"""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
from bench.needs import SERVER, Needs
from bench.peers.redis_server import RedisServer, redis_server
from bench.postgres import Group, check_postgres, check_redis, folder_in, stream
from bench.proc import CLIENT_CORE, BenchError, Child, cpu_s, raise_file_limit
from bench.tokens import known_text, summary
from proof.chaos.postgres_server import Postgres, running_postgres

_TIMEOUT_S = 60.0
_BEGIN_S = 180.0  # for 10,000 messages at two processes on one core
_WAYS = ("NOTIFY", "a bus")
_CONNECTIONS = "300"  # of PostgreSQL, whose default of 100 is too low for 32 nodes
_STREAMS = 64  # conversations while nodes listen
_STREAM_TOKENS_PER_S = 10
_PROBE = "bench:probe"
_SPREAD_TOKENS_PER_S = 200  # of all channels; with ten channels, a flush window still has one token of each at most
_SETTLE_S = 1.0
_FLAT = 1.3
_STORM_S = 5.0
_JITTER_S = 0.5
_STORM_TOKENS_PER_S = 50
_ADOPTED_S = 6.0
_POLL_S = 0.05


class Sizes(NamedTuple):
    """The sizes of a run."""

    rounds: int
    listening: Sequence[int]  # numbers of nodes
    seconds: float  # of each of their rounds
    channels: Sequence[int]
    channel_rounds: int
    channel_s: float
    # until then a process that has started looks twice for answers of ended ones, and reads the entries of the others
    begun_s: float
    viewers: int  # of the killed process
    before_s: float = 2.0  # time before it is killed
    after_s: float = 2 * _STORM_S  # how long an answer of another process streams after that


LONG = Sizes(3, (2, 8, 32), 3.0, (10, 1_000, 10_000), 2, 10.0, 12.0, 1_000)
FULL = Sizes(2, (2, 8), 3.0, (10, 1_000), 2, 5.0, 10.0, 1_000)  # a whole run of all benchmarks has five minutes for it
QUICK = Sizes(1, (2, 8), 1.0, (10, 500), 1, 3.0, 10.0, 1_000)


def _sizes(options: Options) -> Sizes:
    return QUICK if options.is_quick else LONG if options.is_long else FULL


def run(options: Options) -> Iterator[Row]:
    sizes = _sizes(options)
    with running_postgres(options.directory) as postgres:
        yield from attempt("viewers of a killed process", functools.partial(storm, postgres, sizes))
        yield from attempt("many channels", functools.partial(channels, postgres, sizes))
    yield from attempt("listening nodes", functools.partial(listening, options, sizes))


def needs(options: Options) -> Needs:
    return Needs(
        seconds=100 if options.is_quick else 640 if options.is_long else 210,
        files=_files(_sizes(options)),
        disk_mb=1_000,
        packages=(*SERVER, "asyncpg", "redis"),
        peers={"PostgreSQL": check_postgres},
        parts={"redis-server": lambda _: check_redis()},
    )


def _files(sizes: Sizes) -> int:
    return max(sizes.viewers, *(count // 2 for count in sizes.channels)) + 100


class Meter:
    """Measures the CPU time of each of some processes while it is entered."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._before: list[float] = []
        self.used_s: list[float] = []

    def __enter__(self) -> None:
        self._before = [cpu_s(pid) for pid in self._pids]

    def __exit__(self, *_: object) -> None:
        self.used_s = [cpu_s(pid) - before for pid, before in zip(self._pids, self._before, strict=True)]


# Listening nodes ----------------------------------------------------------------------------------------------------


def listening(options: Options, sizes: Sizes) -> Iterator[Row]:
    """Measure the CPU time of PostgreSQL and Redis per commit while other nodes listen."""
    check_redis()
    raise_file_limit(_files(sizes))
    found: dict[str, dict[int, list[float]]] = {how: {count: [] for count in sizes.listening} for how in _WAYS}
    raw = []
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(options.directory, max_connections=_CONNECTIONS))
        redis = stack.enter_context(redis_server(stack.enter_context(folder_in(options)), "everysec"))
        for n, count, how in itertools.product(range(sizes.rounds), sizes.listening, _WAYS):
            url = f"{postgres.url}?schema={how.replace(' ', '_').lower()}_{count}_{n}"
            one = _listened(url, postgres, redis, how, count, sizes.seconds)
            found[how][count].append(one.us_per_commit)
            raw.append(f"{how}, {count} nodes: {one}")
    counts = ", ".join(map(str, sizes.listening))
    for how, of in found.items():
        yield Row(
            f"CPU of PostgreSQL and Redis per commit, {counts} listening nodes, {how}",
            "; ".join(spread(used, "µs") for used in of.values()),
            note=f"{_STREAMS} conversations × {_STREAM_TOKENS_PER_S} tokens/s at one process; listening nodes are "
            "stores in one process that apply no notice; on the bus each channel is followed by one of them",
            raw=tuple(line for line in raw if line.startswith(how)),
        )
    median = {how: {count: statistics.median(used) for count, used in of.items()} for how, of in found.items()}
    needed = next((count for count in sizes.listening if median["a bus"][count] < median["NOTIFY"][count]), None)
    yield Row(
        "  a bus takes less CPU time from",
        f"{needed} listening nodes" if needed is not None else f"more than {sizes.listening[-1]} listening nodes",
        note=f"two cores are too few for {sizes.listening[-1]} processes, so the figures are CPU times of the engines",
    )


class _Listened(NamedTuple):
    commits: int
    postgres_s: float
    redis_s: float
    received: list[int]  # by each node

    @property
    def us_per_commit(self) -> float:
        return (self.postgres_s + self.redis_s) / self.commits * 1e6

    def __str__(self) -> str:
        return raw_line(
            commits=self.commits,
            postgres_us=self.postgres_s / self.commits * 1e6,
            redis_us=self.redis_s / self.commits * 1e6,
            notices_per_node=statistics.mean(self.received),
        )


def _listened(url: str, postgres: Postgres, redis: RedisServer, how: str, count: int, seconds: float) -> _Listened:
    """Stream conversations while `count` nodes listen."""
    own = ("--bus", f"redis://127.0.0.1:{redis.port}") if how == "a bus" else ()
    channels = [f"bench:{n}" for n in range(_STREAMS)]
    meter = Meter(postgres.pid, redis.server_pid)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(url, *own))
        load = stack.enter_context(load_client())
        nodes = stack.enter_context(Child("bench.listeners", url, *own, core=CLIENT_CORE))
        nodes.read(timeout_s=20)
        nodes.request("listen", count=count, channels=channels, each=[_PROBE])
        _reach_all(server, nodes, load)
        before, commits = _received(nodes), _commits(server)
        group, writer = Group(load, server, channels), (server, channels)
        stream([group], [writer], per_s=_STREAM_TOKENS_PER_S, seconds=seconds, meter=meter)
        commits = _commits(server) - commits
        received = [after - at_first for after, at_first in zip(_received(nodes), before, strict=True)]
    if not min(received):
        raise BenchError(f"notices arrived at {sum(map(bool, received))} of {count} nodes: the rest cost no time")
    postgres_s, redis_s = meter.used_s
    return _Listened(commits, postgres_s, redis_s, received)


def _reach_all(server: Served, nodes: Child, load: Child) -> None:
    """Write until each node has received a notice: the server sends them once it knows that other nodes live."""
    until_s = time.monotonic() + _TIMEOUT_S
    while not min(_received(nodes)):
        if time.monotonic() > until_s:
            raise BenchError(f"no notice arrived at a node within {_TIMEOUT_S:g} s: {_received(nodes)}")
        server.child.request("produce", channels=[_PROBE], count=1, tokens_per_s=100)
        load.request("pass", seconds=0.1)


def _received(nodes: Child) -> list[int]:
    found: list[int] = nodes.request("received")["received"]
    return found


def _commits(server: Served) -> int:
    return int(server.child.request("stats")["commits"])


# Many channels ------------------------------------------------------------------------------------------------------


class _Cost(NamedTuple):
    """The CPU time of a round."""

    us_per_token: float  # of both processes, beyond that without tokens
    postgres_us: float  # the same of PostgreSQL
    idle_ms: float  # of both processes in a second without tokens
    postgres_idle_ms: float
    tokens: int
    commits: int
    deliveries: int  # batches for viewers; fewer than tokens if some were joined


def channels(postgres: Postgres, sizes: Sizes) -> Iterator[Row]:
    """Compare the CPU time of two processes per token with few and with many channels, at the same rate in all."""
    raise_file_limit(_files(sizes))
    found: dict[int, list[_Cost]] = {count: [] for count in sizes.channels}
    for n in range(sizes.channel_rounds):
        for count, costs in found.items():
            costs.append(_of_channels(f"{postgres.url}?schema=channels_{count}_{n}", postgres, count, sizes))
    rounds = list(zip(*found.values(), strict=True))
    ratios = [max(one.us_per_token for one in each) / min(one.us_per_token for one in each) for each in rounds]

    def listed(name: str, unit: str) -> str:
        return ", ".join(
            f"{count:,}: {number(statistics.median(getattr(one, name) for one in costs))} {unit}"
            for count, costs in found.items()
        )

    yield Row(
        f"{sizes.channels[0]} to {sizes.channels[-1]:,} channels with one viewer each, all at the other of two "
        "processes: CPU of both per token, highest against lowest",
        spread(ratios, "×"),
        f"{_FLAT} ×",
        statistics.median(ratios) <= _FLAT,
        f"{_SPREAD_TOKENS_PER_S} tokens/s in all, without the CPU time that the same seconds take without tokens\n"
        + listed("us_per_token", "µs"),
        raw=tuple(
            raw_line(channels=count, **one._asdict()) for each in rounds for count, one in zip(found, each, strict=True)
        ),
    )
    yield Row("  CPU of PostgreSQL per token", listed("postgres_us", "µs"))
    yield Row(
        "  CPU of both processes in a second without tokens",
        listed("idle_ms", "ms"),
        note="they read the heads of all channels once in a second; PostgreSQL takes for it "
        + listed("postgres_idle_ms", "ms"),
    )


def _of_channels(url: str, postgres: Postgres, count: int, sizes: Sizes) -> _Cost:
    """Have each process write to half of the channels, whose viewers are at the other one."""
    names, seconds = [f"bench:{n}" for n in range(count)], sizes.channel_s
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(served(url)) for _ in range(2)]
        groups = [Group(stack.enter_context(load_client()), servers[n], names[n::2]) for n in range(2)]
        for load, server, own in groups:
            wanted: dict[str, Any] = {"kind": "sse", "channels": own, "timeout_s": _TIMEOUT_S}
            load.request("connect", **wanted, reply_in_s=_TIMEOUT_S + 5, **server.address)
        groups[0].load.request("pass", seconds=sizes.begun_s)
        writers = [other.child for other in reversed(servers)]
        for writer, group in zip(writers, groups, strict=True):
            writer.send("begin", channels=group.channels)
        for writer in writers:
            writer.read(timeout_s=_BEGIN_S)
        for group in groups:
            _await_first_tokens(group)
        groups[0].load.request("pass", seconds=_SETTLE_S)
        for group in groups:
            group.load.request("capture")
        busy, idle = (Meter(postgres.pid, *(writer.pid for writer in writers)) for _ in range(2))
        commits = sum(map(_commits, servers))
        with busy:
            for writer in writers:
                writer.send("spread", tokens_per_s=_SPREAD_TOKENS_PER_S / 2, seconds=seconds)
            produced = [writer.read(timeout_s=seconds + _TIMEOUT_S) for writer in writers]
        commits = sum(map(_commits, servers)) - commits
        deliveries = _compare(groups, writers, lag_ms=max(one["lag_ms"] for one in produced))
        groups[0].load.request("pass", seconds=_SETTLE_S)
        with idle:
            groups[0].load.request("pass", seconds=seconds, reply_in_s=seconds + _TIMEOUT_S)
    tokens = sum(one["tokens"] for one in produced)
    postgres_s, own_s = busy.used_s[0] - idle.used_s[0], sum(busy.used_s[1:]) - sum(idle.used_s[1:])
    if own_s <= 0:
        raise BenchError(f"{tokens} tokens took no more CPU time than the same {seconds:g} s without tokens")
    return _Cost(
        us_per_token=own_s / tokens * 1e6,
        postgres_us=postgres_s / tokens * 1e6,
        idle_ms=sum(idle.used_s[1:]) / seconds * 1000,
        postgres_idle_ms=idle.used_s[0] / seconds * 1000,
        tokens=tokens,
        commits=commits,
        deliveries=deliveries,
    )


def _await_first_tokens(group: Group) -> None:
    """Wait until each viewer has its first token: a channel that begins at another process is read from the store."""
    until_s = time.monotonic() + _TIMEOUT_S
    while (arrived := group.load.request("decode")["tokens"]) < len(group.channels):
        if time.monotonic() > until_s:
            raise BenchError(f"{arrived} of {len(group.channels)} viewers have a first token after {_TIMEOUT_S:g} s")
        group.load.request("pass", seconds=0.2)


def _compare(groups: Sequence[Group], writers: Sequence[Child], *, lag_ms: list[float]) -> int:
    """End the messages, compare them with each view, and return the number of deliveries. Raises `Void`."""
    for writer in writers:
        writer.send("finish")
    sent = [writer.read(timeout_s=_TIMEOUT_S)["messages"] for writer in writers]
    drain: dict[str, Any] = {"timeout_s": _TIMEOUT_S, "last": FINISHED, "quiet_s": 0.0}
    drained = [group.load.request("drain", reply_in_s=_TIMEOUT_S + 5, **drain) for group in groups]
    deliveries = 0
    for group, messages, each in zip(groups, sent, drained, strict=True):
        decoded = group.load.request("decode", reply_in_s=_TIMEOUT_S)
        compared = group.load.request("compare", sent=messages, reply_in_s=_TIMEOUT_S, **group.server.address)
        check(decoded, compared, each, lag_ms=lag_ms)
        client_load(each)
        deliveries += decoded["deliveries"]
    return deliveries


# Viewers of a killed process ----------------------------------------------------------------------------------------


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
    raise_file_limit(_files(sizes))
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
