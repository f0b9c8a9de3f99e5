"""Tenuto beside nchan: the same tokens, at the same times, to the same viewers.

Both run in one go, in turn, on one core. One load client on the other core drives both and compares every
token of every viewer with the sent ones. The measure is the server's CPU time per delivered *token*, not per write: a
system that joins the tokens of 40 ms writes less often, and shows a token up to 40 ms later. The latencies are listed
too.

Do not conclude more than this: the peers promise less than Tenuto (`System.promises`), so a ratio shows
the cost of the promises, not the quality of a peer. Another process publishes to the peers over HTTP, and its time is
not counted. Tenuto's producers and its store are counted; a second row leaves out the producers, whose time is measured
alone in each round.
"""

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.common import (
    CLIENT_LIMIT,
    NAMES,
    Options,
    Row,
    check,
    client_load,
    failed,
    load_client,
    number,
    producers_us,
    spread,
    void,
)
from bench.peers.nchan import nchan
from bench.peers.ours import Ours, ours
from bench.peers.system import System
from bench.proc import BenchError, Child, raise_file_limit

__all__ = ["Shape", "Sizes", "measure", "run"]

_TIMEOUT_S = 60.0
_OVERRUN_S = 0.5  # a system that is later than this at the end did not keep up
_FILES_TO_SPARE = 400
_ALONE_S = 2.0  # how long the producers of Tenuto work alone, for each round
_LESS = {"SSE": 1.0, "WebSocket": 1.0}  # Tenuto must cost less where it joins tokens for many viewers


@dataclass(frozen=True)
class Shape:
    """How many channels, viewers of each, and tokens in each."""

    channels: int
    viewers: int
    tokens_per_s: float
    limits: Mapping[str, float] = field(default_factory=dict)  # budgets against nchan in memory, by the kind of viewer
    limit_without: float | None = None  # the budget for SSE without the producers

    @property
    def connections(self) -> int:
        return self.channels * self.viewers

    def __str__(self) -> str:
        return f"{self.channels:,} × {self.viewers:,} at {self.tokens_per_s:g} tokens/s"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    # With a thousand channels of one viewer each, tokens are further apart, so that one core can deliver them.
    shapes: tuple[Shape, ...] = (
        Shape(1, 1_000, 50, _LESS),
        Shape(100, 10, 50, _LESS),
        Shape(200, 1, 50, {"SSE": 1.25, "WebSocket": 1}, limit_without=1.05),
        Shape(1_000, 1, 10, {"SSE": 1.7}),
    )
    rounds: int = 3
    seconds: float = 5.0


FULL = Sizes()
QUICK = Sizes(
    shapes=(
        Shape(1, 300, 50, _LESS),
        Shape(30, 10, 50, _LESS),
        Shape(50, 1, 50, {"SSE": 1.25, "WebSocket": 1}, limit_without=1.05),
        Shape(200, 1, 10, {"SSE": 1.7}),
    ),
    rounds=2,
    seconds=1.5,
)

Start = Callable[[Path, int], AbstractContextManager[System]]
"""Start a system that keeps its files in a folder and serves so many connections."""

SYSTEMS: dict[str, Start] = {
    "Tenuto": lambda folder, _: ours(folder / "beside.db"),
    "nchan": lambda _, connections: nchan(connections=connections),
}
# the kinds of a peer's viewers that compare with ours
_LIKE = {"nchan-sse": "sse", "nchan-ws": "websocket"}


class _Round(NamedTuple):
    us_per_token: float
    producers_us: float  # the part of Tenuto's producers, measured alone; 0 for other systems
    overrun_s: float  # time from the due time of the last token to the arrival of the last token
    frames_per_token: float
    bytes_per_token: float
    latency_ms: list[float]
    server_load: float
    client_load: float
    # CPU time of the publisher over HTTP, which shares the load client's core; Tenuto has producers in its process
    publisher_load: float
    lag_ms: float  # lateness of the producers (p99)

    def __str__(self) -> str:
        return (
            f"{self.us_per_token:.2f} µs, {self.frames_per_token:.2f} frames and {self.bytes_per_token:.0f} B per "
            f"token; latency p50 {self.latency_ms[0]:.1f}, p99 {self.latency_ms[1]:.1f} ms; server "
            f"{self.server_load:.0%} of its core, client {self.client_load:.0%}{self._core()}; producers late by "
            f"{self.lag_ms:.1f} ms (p99)"
        )

    @property
    def core_load(self) -> float:
        """Return the load of the load client's core, publisher included."""
        return self.client_load + self.publisher_load

    def _core(self) -> str:
        return f", publisher {self.publisher_load:.0%}" if self.publisher_load else ""


def run(options: Options) -> Iterator[Row]:
    return measure(options.directory, QUICK if options.is_quick else FULL)


def _try(name: str, folder: Path) -> None:
    """Start a system once, to see whether it works."""
    with SYSTEMS[name](folder, 10):
        pass


PARTS = {name: functools.partial(_try, name) for name in SYSTEMS if name != "Tenuto"}


def _most(sizes: Sizes) -> int:
    """Return the largest number of concurrent viewers."""
    return max(shape.connections for shape in sizes.shapes)


def measure(directory: Path, sizes: Sizes, systems: dict[str, Start] = SYSTEMS) -> Iterator[Row]:
    """Yield all rows. A system that does not start has a failed row with the reason; the others are measured."""
    most = _most(sizes)
    raise_file_limit(most + _FILES_TO_SPARE)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_folder(directory))
        running: dict[str, System] = {}
        for name, start in systems.items():
            try:
                running[name] = stack.enter_context(start(_made(folder, name), most))
            except (BenchError, OSError) as error:
                yield failed(f"beside {name}", error)
        yield Row("systems measured in turn", f"{len(running)} systems", note=_promises(running.values()))
        client = stack.enter_context(load_client())
        for n, shape in enumerate(sizes.shapes):
            yield from _fan_out(list(running.values()), client, shape, sizes, tag=f"shape-{n}")


def _promises(systems: Iterable[System]) -> str:
    return "\n".join(
        f"{system.name}{f' ({system.version})' if system.version else ''}: {system.promises}" for system in systems
    )


def _fan_out(systems: Sequence[System], client: Child, shape: Shape, sizes: Sizes, *, tag: str) -> list[Row]:
    """Run rounds of all systems and kinds of viewers in turn. A void round gives a row with the reason, no figure."""
    rounds: dict[tuple[System, str], list[_Round]] = {(system, kind): [] for system in systems for kind in system.kinds}
    without: dict[tuple[System, str], Row] = {}
    for n in range(sizes.rounds):
        for system, kind in rounds:
            if (system, kind) in without:
                continue
            try:
                one = _round(system, kind, client, shape, sizes.seconds, tag=f"{tag}-{kind}-{n}")
            except (BenchError, OSError) as error:  # OSError: the system has died, so its CPU time cannot be read
                without[system, kind] = failed(f"  {shape}: {system.name}, {_name(kind)}", error)
                with contextlib.suppress(BenchError):  # this system may be the one that has ended
                    client.request("close")
            else:
                rounds[system, kind].append(one)
    rows = [
        without.get((system, kind)) or _row(f"  {shape}: {system.name}, {_name(kind)}", each)
        for (system, kind), each in rounds.items()
    ]
    whole = {key: each for key, each in rounds.items() if key not in without}
    return [*_ratio_rows(whole, shape), *rows]


def _round(system: System, kind: str, client: Child, shape: Shape, seconds: float, *, tag: str) -> _Round:
    channels = [f"bench:{tag}-{n}" for n in range(shape.channels)]
    count = max(1, int(seconds * shape.tokens_per_s))
    alone_us = 0.0
    if isinstance(system, Ours):
        rate: dict[str, float] = {"tokens_per_s": shape.tokens_per_s, "seconds": min(_ALONE_S, seconds)}
        alone_us = producers_us(system.child, channels=channels, **rate) / shape.viewers
    client.request(
        "connect", kind=kind, port=system.port, channels=channels * shape.viewers, timeout_s=_TIMEOUT_S, reply_in_s=90
    )
    client.request("capture")
    before_s, publisher_s = system.cpu_s(), system.client_core_s()
    produced = system.produce(channels=channels, count=count, tokens_per_s=shape.tokens_per_s)
    drained = client.request("drain", timeout_s=_TIMEOUT_S, reply_in_s=90)
    used_s = system.cpu_s() - before_s
    publisher_s = system.client_core_s() - publisher_s
    decoded = client.request("decode", reply_in_s=90)
    stored_at = system.port if isinstance(system, Ours) else None
    compared = client.request("compare", sent=produced["messages"], port=stored_at, reply_in_s=90)
    check(decoded, compared, drained, lag_ms=produced["lag_ms"])
    tokens = count * shape.connections
    if decoded["tokens"] != tokens:
        what = f"{decoded['tokens']:,} tokens were delivered, and {tokens:,} sent, although all texts are correct"
        raise void(what, drained, lag_ms=produced["lag_ms"])
    client.request("close")
    return _Round(
        us_per_token=used_s / tokens * 1e6,
        producers_us=alone_us,
        overrun_s=drained["seconds"] - count / shape.tokens_per_s,
        frames_per_token=decoded["deliveries"] / tokens,
        bytes_per_token=decoded["bytes"] / tokens,
        latency_ms=decoded["latency_ms"],
        server_load=used_s / drained["seconds"],
        client_load=client_load(drained),
        publisher_load=publisher_s / drained["seconds"],
        lag_ms=produced["lag_ms"][1],
    )


def _name(kind: str) -> str:
    return NAMES[_LIKE.get(kind, kind)]


def _ratio_rows(rounds: dict[tuple[System, str], list[_Round]], shape: Shape) -> list[Row]:
    """Return our ratio to each peer that has viewers of the same kind."""
    mine = {kind: each for (system, kind), each in rounds.items() if isinstance(system, Ours)}
    rows = []
    for (system, kind), theirs in rounds.items():
        if isinstance(system, Ours) or _LIKE[kind] not in mine:
            continue
        ours, viewers = mine[_LIKE[kind]], _name(kind)
        ratios = [one.us_per_token / other.us_per_token for one, other in zip(ours, theirs, strict=True)]
        what = f"{shape}, {viewers}: CPU per delivered token, against {system.name}"
        rows.append(_ratio_row(what, ratios, shape.limits.get(viewers)))
        if system.has_publisher:
            less = [
                (one.us_per_token - one.producers_us) / other.us_per_token
                for one, other in zip(ours, theirs, strict=True)
            ]
            limit = shape.limit_without if viewers == "SSE" else None
            producers = f"the producers alone: {spread([one.producers_us for one in ours], 'µs')} per token"
            rows.append(_ratio_row("  without our producers, measured alone", less, limit, note=producers))
    return rows


def _ratio_row(what: str, ratios: Sequence[float], limit: float | None, *, note: str = "") -> Row:
    is_met = statistics.median(ratios) <= limit if limit is not None else None
    return Row(what, spread(ratios, "×"), f"{limit:g} ×" if limit is not None else "", is_met, note)


def _row(what: str, rounds: Sequence[_Round]) -> Row:
    def median(values: Iterator[float]) -> str:
        return number(statistics.median(values))

    return Row(
        what,
        spread([each.us_per_token for each in rounds], "µs"),
        note=f"{median(each.frames_per_token for each in rounds)} frames, "
        f"{median(each.bytes_per_token for each in rounds)} B per token; latency p50 "
        f"{median(each.latency_ms[0] for each in rounds)} ms, p99 {median(each.latency_ms[1] for each in rounds)} ms; "
        f"server {statistics.median(each.server_load for each in rounds):.0%} of its core, load client "
        f"{max(each.client_load for each in rounds):.0%} of its" + _full(rounds) + _overrun(rounds),
        raw=tuple(f"round {n + 1}: {each}" for n, each in enumerate(rounds)),
    )


def _full(rounds: Sequence[_Round]) -> str:
    """Return a note if the load client's core was full. The server's CPU time is still its own."""
    core = statistics.median(each.core_load for each in rounds)
    if core <= CLIENT_LIMIT:
        return ""
    publisher = max(each.publisher_load for each in rounds)
    beside = f", which it shared with a publisher that used {publisher:.0%}" if publisher else ""
    return f"{beside}, and which was full: latencies include its waits"


def _overrun(rounds: Sequence[_Round]) -> str:
    """Return a note if a system could not keep up: its latencies are then those of a growing queue."""
    overrun_s = statistics.median(each.overrun_s for each in rounds)
    return f"; it did not keep up: the last token arrived {overrun_s:.1f} s late" if overrun_s > _OVERRUN_S else ""


@contextlib.contextmanager
def _folder(directory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        yield Path(folder)


def _made(folder: Path, name: str) -> Path:
    path = folder / name.replace(" ", "-")
    path.mkdir()
    return path
