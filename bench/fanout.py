"""CPU per delivery, as a ratio to a bare server that writes the same bytes at the same times.

The shapes: one channel with a thousand viewers, a hundred with ten, a thousand with one; SSE and WebSocket; under
`tenuto serve` and mounted under granian. Rounds alternate, because a noisy machine drifts: our server, then the bare
server with the bytes that our viewers received; then our other server, and the bare one again. A delivery is one batch
to one viewer. Our CPU time is that of the whole process, with producers, store and all other work. So with many
channels the ratio shows the cost of a conversation, not of a write.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.common import NAMES, Options, Row, Served, attempt, capture, connect, judge, kept, load_client, served
from bench.proc import SERVER_CORE, Child, raise_file_limit


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
    ours_us: float  # CPU time per delivery
    bare_us: float
    p50_ms: float  # from the append of a token to its arrival


def run(options: Options) -> Iterator[Row]:
    rounds, seconds = (1, 2.0) if options.is_quick else (3, 5.0)
    how: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "unders": ("serve", "granian")}
    for shape in SHAPES:
        for kind, name in NAMES.items():
            yield from attempt(f"fan-out {shape} {name}", functools.partial(matrix, options, shape, kind, **how))


def matrix(
    options: Options, shape: Shape, kind: str, *, rounds: int, seconds: float, unders: tuple[str, ...]
) -> Iterator[Row]:
    """Yield the rows of one shape and one kind of viewers."""
    raise_file_limit(shape.connections + 100)
    found: dict[str, list[_Round]] = {under: [] for under in unders}
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
                found[under].append(_round(server, bare, load, kind, channels, shape, seconds))
    for under in unders:
        yield from _rows(shape, kind, under, found[under])


def _round(
    server: Served, bare: Served, load: Child, kind: str, channels: list[str], shape: Shape, seconds: float
) -> _Round:
    """Run a round of our server, and one of the bare server with the bytes that its viewers received."""
    load.request("record")
    connect(load, kind, channels * shape.viewers, server.address)
    count = int(seconds * shape.tokens_per_s)
    wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": shape.tokens_per_s}
    produced, drained, ours_s = capture(load, server.child.pid, lambda: server.child.request("produce", **wanted))
    ours = judge(load, drained, produced["messages"], server.address)
    recording = load.request("recording")
    load.request("close")

    bare.child.request("load", **recording)
    connect(load, kind, channels * shape.viewers, bare.address)
    _, drained, bare_s = capture(load, bare.child.pid, lambda: bare.child.request("play"))
    theirs = judge(load, drained, produced["messages"], None)
    load.request("close")
    ours_us, bare_us = ours_s / ours["deliveries"] * 1e6, bare_s / theirs["deliveries"] * 1e6
    return _Round(ours_us, bare_us, ours["latency_ms"][0])


def _rows(shape: Shape, kind: str, under: str, rounds: list[_Round]) -> Iterator[Row]:
    what = f"fan-out {shape} {NAMES[kind]}, {'tenuto serve' if under == 'serve' else 'mounted under granian'}"
    ratios = [one.ours_us / one.bare_us for one in rounds]
    limit = shape.limits.get((kind, under))
    yield Row.judged(f"{what}: CPU per delivery against a bare server", ratios, "×", limit)
    if (kind, under) == ("sse", "serve") and shape.p50_limit_ms is not None:
        yield Row.judged("  p50 of a token", [one.p50_ms for one in rounds], "ms", shape.p50_limit_ms)
