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

from bench import appends, storm
from bench.common import TIMEOUT_S, Options, Row, Served, attempt, connect, drain, judge, load_client, number, served
from bench.conversations import TOKENS_PER_S
from bench.peers.system import ours_on_postgres, redis_server
from bench.peers.xadd import xadd
from bench.proc import BenchError, Child, cpu_s, raise_file_limit
from proof.chaos.engines import PROGRAMS, Postgres, running_postgres

_CONVERSATIONS = 500
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
    after_s: float = 10.0  # how long an answer of another process streams after that


FULL = Sizes(rounds=3, seconds=5.0, conversations=_CONVERSATIONS, channels=400)
QUICK = Sizes(rounds=1, seconds=2.0, conversations=100, channels=100)


def run(options: Options) -> Iterator[Row]:
    if not (PROGRAMS / "initdb").exists():
        raise BenchError("PostgreSQL is missing (Debian: apt-get install postgresql)")
    sizes, of_appends = (QUICK, appends.QUICK) if options.is_quick else (FULL, appends.FULL)
    yield from attempt("durable appends on PostgreSQL", functools.partial(durable, options, of_appends))
    with running_postgres(options.directory) as postgres:
        yield from delays(postgres, options, sizes)
        yield from attempt("two processes", functools.partial(costs, postgres, sizes))
        yield from attempt("viewers of a killed process", functools.partial(storms, postgres, sizes))


def durable(options: Options, sizes: appends.Sizes) -> Iterator[Row]:
    """Compare awaited appends with XADD on a file that is synced at each of them."""
    raise_file_limit(sizes.producers * 3 + 200)
    with tempfile.TemporaryDirectory(dir=options.directory) as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "redis").mkdir()
        system = stack.enter_context(ours_on_postgres(options.directory))
        redis = stack.enter_context(xadd(folder / "redis", "always"))
        systems: dict[str, appends.Appending] = {"Tenuto": system, "XADD": redis}
        rounds = appends.alternate(systems, stack.enter_context(load_client()), sizes, at_once=1)
    ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(*rounds.values(), strict=True)]
    what = f"durable appends, {sizes.producers} producers that await each token: PostgreSQL against XADD, AOF always"
    yield Row.judged(what, ratios, "×", 2, is_least=True)


class Group(NamedTuple):
    """Viewers of `channels` at `server`, by a load client of their own."""

    load: Child
    server: Served
    channels: list[str]


def stream(
    groups: Sequence[Group], writers: Sequence[tuple[Served, list[str]]], *, per_s: float, seconds: float
) -> list[dict[str, Any]]:
    """Have the producers of `writers` stream answers to all viewers. Return the results of each group's load client."""
    for load, server, channels in groups:
        connect(load, "sse", channels, server.address)
    for group in groups:
        group.load.request("capture")
    sent: dict[str, Any] = {}
    for server, channels in writers:
        server.child.send("produce", channels=channels, count=int(seconds * per_s), tokens_per_s=per_s)
    for server, _ in writers:
        produced = server.child.read(timeout_s=seconds + 45)
        sent |= produced["messages"]
    drained = [drain(group.load) for group in groups]
    found = []
    for group, each in zip(groups, drained, strict=True):
        own = {channel: sent[channel] for channel in group.channels}
        found.append(judge(group.load, each, own, group.server.address))
        group.load.request("close")
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
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.directory)))
        own: tuple[str, ...] = ("--mute",) if how == "no notices" else ()
        if how == "a bus":
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
        what = f"extra delay of a viewer at another process, {how}: {name}" if not at else f"  {name}"
        yield Row.judged(what, [other[at] - own_ms[at] for own_ms, other in rounds], "ms", limits[at])


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
            what = f"{channels} × {per_s:g} tokens/s × 2 viewers: CPU per delivered token, two processes against one, "
            note = f"{number(statistics.median(found[writers]))} and {number(statistics.median(found[1]))} µs"
            yield Row.judged(what + names[writers], ratios, "×", limit, note=note)


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
    viewers: list[int]  # at each of the other processes


def storms(postgres: Postgres, sizes: Sizes) -> Iterator[Row]:
    """Kill one of three processes, with all viewers. Raises `Void` if one got a new start or a wrong text."""
    raise_file_limit(sizes.viewers + 100)
    times = [_killed(f"{postgres.url}?schema=storm_{seed}", sizes, seed) for seed in range(sizes.rounds)]
    yield Row.judged(
        f"storm: {sizes.viewers:,} viewers of one of three processes, half by SSE and half by WebSocket, from its "
        "kill -9 to the last one live at the other two",
        [each.live_s for each in times],
        "s",
        storm.LIMIT_S,
        by=max,
        note=", ".join(f"{' and '.join(map(str, each.viewers))} viewers" for each in times),
    )
    what = "  until another process continues the answer of the killed one"
    yield Row.judged(what, [each.adopted_s for each in times], "s", _ADOPTED_S, by=max)


def _killed(url: str, sizes: Sizes, seed: int) -> _Storm:
    """Run one kill. Half of the viewers watch an answer of the killed process, half one of another process."""
    count = int((sizes.before_s + sizes.after_s) * storm.TOKENS_PER_S)
    texts = {f"bench:storm-{n}": (2 * seed + n, count) for n in range(2)}
    with contextlib.ExitStack() as stack:
        killed, *others = (stack.enter_context(served(url)) for _ in range(3))
        load = stack.enter_context(load_client())
        for kind in ("sse", "websocket"):
            connect(load, kind, [channel for channel in texts for _ in range(sizes.viewers // 4)], killed.address)
        storm.begin([killed, others[0]], texts)
        load.request("read_for", seconds=sizes.before_s)
        killed_s = storm.kill(load, killed, others)
        live_s = storm.come_back(load, others[0], texts)
        left = _stored_text(others[0], next(iter(texts)))
        viewers = [other.child.request("stats")["feeds"] for other in others]
        load.request("capture")
        adopted_s = _went_on(others[0], next(iter(texts)), left)
        storm.end(load, others, texts)
    return _Storm(live_s - killed_s, adopted_s - killed_s, viewers)


def _stored_text(server: Served, channel: str) -> str:
    message = server.call("GET", f"{channel}/messages/{storm.MESSAGE}")["message"]
    return "".join(part["text"] for part in message["parts"])


def _went_on(server: Served, channel: str, text: str) -> float:
    """Return when the answer was longer than `text`, which the killed process has left."""
    until_s = time.monotonic() + TIMEOUT_S
    while _stored_text(server, channel) == text:
        if time.monotonic() > until_s:
            raise BenchError(f"the answer of the killed process did not go on within {TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    return time.monotonic()
