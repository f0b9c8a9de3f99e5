"""CPU per delivery, as a ratio to a bare server that writes the same bytes at the same times.

The shapes: one channel with a thousand viewers, a hundred with ten, a thousand with one; SSE and WebSocket; under
`tenuto serve` and mounted under granian. Rounds alternate, because a noisy machine drifts: our server, then the bare
server with the bytes that our viewers received; then our other server, and the bare one again. A delivery is one batch
to one viewer. Our CPU time is that of the whole process, with producers, store and all other work. So with many
channels the ratio shows the cost of a conversation, not of a write. The producers' time is measured alone, in each
round, and subtracted in a row of its own.
"""

import contextlib
import functools
import importlib.util
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import (
    FINISHED,
    NAMES,
    Options,
    Row,
    Served,
    attempt,
    check,
    client_load,
    failed,
    kept,
    load_client,
    producers_us,
    raw_line,
    served,
    spread,
)
from bench.proc import SERVER_CORE, BenchError, Child, cpu_s, raise_file_limit

_ALONE_S = 2.0  # how long the producers work alone, for each round
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Shape:
    """How many channels, viewers of each, and tokens in each."""

    channels: int
    viewers: int
    tokens_per_s: float
    limits: Mapping[tuple[str, str], float] = field(default_factory=dict)  # budgets of the ratio, by kind and server
    p50_limit_ms: float | None = None  # budget of the time from append to viewer, for SSE under `serve`

    @property
    def connections(self) -> int:
        return self.channels * self.viewers

    def __str__(self) -> str:
        return f"{self.channels:,} × {self.viewers:,}"


# With one channel per viewer, tokens are further apart, so that one core can deliver them: 10,000 per second, each
# stored, and each a delivery.
SHAPES = (
    Shape(1, 1_000, 50, {("sse", "serve"): 1.6, ("websocket", "serve"): 2.05, ("sse", "granian"): 2.8}),
    Shape(100, 10, 50, {("sse", "serve"): 3.2, ("websocket", "serve"): 3.9}),
    Shape(1_000, 1, 10, {("sse", "serve"): 6.5}, p50_limit_ms=6),
)


class _Round(NamedTuple):
    us_per_delivery: float
    producers_us: float  # the part of the producers, measured alone; 0 for the bare server
    p50_ms: float  # from the append of a token to its arrival; of the bare server without meaning
    deliveries: int
    bytes: int
    client_load: float
    seconds: float
    lag_ms: float | None  # lateness of the producers (p99); None for the bare server


def run(options: Options) -> Iterator[Row]:
    rounds, seconds = (1, 2.0) if options.is_quick else (3, 5.0)
    unders = ["serve"]
    try:
        _check_granian()
        unders.append("granian")
    except BenchError as error:
        yield failed("fan-out, mounted under granian", error)
    how: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "unders": tuple(unders)}
    for shape in SHAPES:
        for kind, name in NAMES.items():
            yield from attempt(
                f"fan-out {shape} {name}", functools.partial(matrix, options, shape, kinds=(kind,), **how)
            )


def _check_granian(_: Path | None = None) -> None:
    for package in ("granian", "starlette"):
        if importlib.util.find_spec(package) is None:
            raise BenchError(f"the Python package {package} is missing")


PARTS = {"mounted under granian": _check_granian}


def matrix(
    options: Options,
    shape: Shape,
    *,
    rounds: int,
    seconds: float,
    kinds: tuple[str, ...] = ("sse", "websocket"),
    unders: tuple[str, ...] = ("serve", "granian"),
) -> Iterator[Row]:
    """Return the rows of one shape."""
    raise_file_limit(shape.connections + 100)
    for kind in kinds:
        pairs: dict[str, list[tuple[_Round, _Round]]] = {under: [] for under in unders}
        with contextlib.ExitStack() as stack:
            servers = {
                under: stack.enter_context(served(stack.enter_context(kept(options)), under=under)) for under in unders
            }
            baseline = stack.enter_context(Child("bench.baseline", core=SERVER_CORE))
            bare = Served(baseline, **baseline.read(timeout_s=10))
            load = stack.enter_context(load_client())
            for n in range(rounds):
                channels = [f"bench:{kind}-{n}-{channel}" for channel in range(shape.channels)]
                for under, server in servers.items():
                    pairs[under].append(_pair(server, bare, load, kind, channels, shape, seconds))
        for under in unders:
            yield from _rows(shape, kind, under, pairs[under])


def _pair(
    server: Served, bare: Served, load: Child, kind: str, channels: list[str], shape: Shape, seconds: float
) -> tuple[_Round, _Round]:
    """Run a round of our server, and one of the bare server with the bytes that its viewers received."""
    alone_us = producers_us(
        server.child, channels=channels, tokens_per_s=shape.tokens_per_s, seconds=min(_ALONE_S, seconds)
    )
    connect: dict[str, Any] = {"kind": kind, "channels": channels * shape.viewers, "timeout_s": _TIMEOUT_S}
    load.request("record")
    load.request("connect", **connect, **server.address)
    count = int(seconds * shape.tokens_per_s)
    produced, used_s, drained = _run(
        server, load, "produce", channels=channels, count=count, tokens_per_s=shape.tokens_per_s
    )
    ours = _checked(load, drained, used_s, produced, server, alone_s=alone_us * count * len(channels) / 1e6)
    recording = load.request("recording")
    load.request("close")

    bare.child.request("load", **recording)
    load.request("connect", **connect, **bare.address)
    _, used_s, drained = _run(bare, load, "play")
    theirs = _checked(load, drained, used_s, produced, None)
    load.request("close")
    return ours, theirs


def _run(server: Served, load: Child, do: str, **fields: Any) -> tuple[dict[str, Any], float, dict[str, Any]]:
    """Have a server do `do` during a capture. Return its reply, its CPU time, and the load client's result."""
    load.request("capture")
    before_s = cpu_s(server.child.pid)
    reply = server.child.request(do, **fields)
    drained = load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
    return reply, cpu_s(server.child.pid) - before_s, drained


def _checked(
    load: Child,
    drained: dict[str, Any],
    used_s: float,
    produced: dict[str, Any],
    server: Served | None,
    *,
    alone_s: float = 0.0,
) -> _Round:
    """Run a round of our server, or, without `server`, of the bare one."""
    decoded = load.request("decode")
    stored_at = {"port": None} if server is None else server.address
    lag_ms = produced["lag_ms"] if server is not None else None  # the bare server has no producers
    check(decoded, load.request("compare", sent=produced["messages"], **stored_at), drained, lag_ms=lag_ms)
    return _Round(
        us_per_delivery=used_s / decoded["deliveries"] * 1e6,
        producers_us=alone_s / decoded["deliveries"] * 1e6,
        p50_ms=decoded["latency_ms"][0],
        deliveries=decoded["deliveries"],
        bytes=decoded["bytes"],
        client_load=client_load(drained),
        seconds=drained["seconds"],
        lag_ms=lag_ms[1] if lag_ms is not None else None,
    )


def _rows(shape: Shape, kind: str, under: str, pairs: list[tuple[_Round, _Round]]) -> list[Row]:
    ratios = [ours.us_per_delivery / bare.us_per_delivery for ours, bare in pairs]
    less = [(ours.us_per_delivery - ours.producers_us) / bare.us_per_delivery for ours, bare in pairs]
    limit = shape.limits.get((kind, under))
    ours, bare = pairs[-1]
    what = f"fan-out {shape} {NAMES[kind]}, {'tenuto serve' if under == 'serve' else 'mounted under granian'}"
    rows = [
        Row(
            f"{what}: CPU per delivery against a bare server",
            spread(ratios, "×"),
            f"{limit} ×" if limit is not None else "",
            statistics.median(ratios) <= limit if limit is not None else None,
            raw=tuple(f"ours {raw_line(**a._asdict())}, bare {raw_line(**b._asdict())}" for a, b in pairs),
        ),
        Row(
            "  without the producers, measured alone",
            spread(less, "×"),
            note=f"the producers alone: {spread([a.producers_us for a, _ in pairs], 'µs')} per delivery",
        ),
        Row(
            "  CPU per delivery, ours and bare",
            ", ".join(spread([each.us_per_delivery for each in side], "µs") for side in zip(*pairs, strict=True)),
            note=f"{shape.tokens_per_s:g} tokens/s a channel; {ours.deliveries / ours.seconds:,.0f} and "
            f"{bare.deliveries / bare.seconds:,.0f} deliveries/s of {ours.bytes / ours.deliveries:.0f} B; producers "
            f"late by {max(a.lag_ms or 0 for a, _ in pairs):.0f} ms (p99); load client used "
            f"{max(each.client_load for pair in pairs for each in pair):.0%} of its core",
        ),
    ]
    if shape.p50_limit_ms is not None and (kind, under) == ("sse", "serve"):
        p50s_ms = [ours.p50_ms for ours, _ in pairs]
        is_met = statistics.median(p50s_ms) <= shape.p50_limit_ms
        rows.append(Row("  p50 of a token", spread(p50s_ms, "ms"), f"{shape.p50_limit_ms:g} ms", is_met))
    return rows
