"""Tenuto beside nchan: the same tokens, at the same times, to the same viewers.

Both run in one go, in turn, on one core. One load client on the other core drives both and compares every
token of every viewer with the sent ones. The measure is the server's CPU time per delivered *token*, not per write: a
system that joins the tokens of 40 ms writes less often, and shows a token up to 40 ms later.

Do not conclude more than this: the peers promise less than Tenuto, so a ratio shows the cost of the promises, not the
quality of a peer. Another process publishes to the peers over HTTP, and its time is
not counted. Tenuto's producers and its store are counted; a second row leaves out the producers, whose time is measured
alone in each round.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import NAMES, Options, Row, connect, drain, failed, judge, load_client, producers_us, void
from bench.peers.nchan import nchan
from bench.peers.system import Ours, System, ours
from bench.proc import BenchError, Child, raise_file_limit

_FILES_TO_SPARE = 400
_ALONE_S = 2.0  # how long the producers of Tenuto work alone, for each round
_LIMIT = 1.25  # the budget against nchan in memory


@dataclass(frozen=True)
class Shape:
    """How many channels, viewers of each, and tokens in each."""

    channels: int
    viewers: int
    tokens_per_s: float
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
        Shape(1, 1_000, 50),
        Shape(100, 10, 50),
        Shape(200, 1, 50, limit_without=1.05),
        Shape(1_000, 1, 10),
    )
    rounds: int = 3
    seconds: float = 5.0


FULL = Sizes()
QUICK = Sizes(
    shapes=(Shape(1, 300, 50), Shape(30, 10, 50), Shape(50, 1, 50, limit_without=1.05), Shape(200, 1, 10)),
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


def run(options: Options) -> Iterator[Row]:
    return measure(options.directory, QUICK if options.is_quick else FULL)


def measure(directory: Path, sizes: Sizes, systems: dict[str, Start] = SYSTEMS) -> Iterator[Row]:
    """Yield all rows. A system that does not start has a failed row with the reason; the others are measured."""
    most = max(shape.connections for shape in sizes.shapes)
    raise_file_limit(most + _FILES_TO_SPARE)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        running: list[System] = []
        for name, start in systems.items():
            (folder / name).mkdir()
            try:
                running.append(stack.enter_context(start(folder / name, most)))
            except (BenchError, OSError) as error:
                yield failed(f"beside {name}", error)
        client = stack.enter_context(load_client())
        for n, shape in enumerate(sizes.shapes):
            yield from _fan_out(running, client, shape, sizes, tag=f"shape-{n}")


def _fan_out(systems: Sequence[System], client: Child, shape: Shape, sizes: Sizes, *, tag: str) -> list[Row]:
    """Run rounds of all systems and kinds of viewers in turn. A void round gives a row with the reason, no figure."""
    rounds: dict[tuple[System, str], list[_Round]] = {(system, kind): [] for system in systems for kind in system.kinds}
    rows: dict[tuple[System, str], Row] = {}
    for n in range(sizes.rounds):
        for system, kind in rounds:
            if (system, kind) in rows:
                continue
            try:
                one = _round(system, kind, client, shape, sizes.seconds, tag=f"{tag}-{kind}-{n}")
            except (BenchError, OSError) as error:  # OSError: the system has died, so its CPU time cannot be read
                rows[system, kind] = failed(f"  {shape}: {system.name}, {_name(kind)}", error)
                with contextlib.suppress(BenchError):  # this system may be the one that has ended
                    client.request("close")
            else:
                rounds[system, kind].append(one)
    whole = {key: each for key, each in rounds.items() if key not in rows}
    return [*_ratio_rows(whole, shape), *rows.values()]


def _round(system: System, kind: str, client: Child, shape: Shape, seconds: float, *, tag: str) -> _Round:
    channels = [f"bench:{tag}-{n}" for n in range(shape.channels)]
    count = max(1, int(seconds * shape.tokens_per_s))
    alone_us = 0.0
    if isinstance(system, Ours):
        rate: dict[str, float] = {"tokens_per_s": shape.tokens_per_s, "seconds": min(_ALONE_S, seconds)}
        alone_us = producers_us(system.child, channels=channels, **rate) / shape.viewers
    address: dict[str, Any] = {"port": system.port}
    connect(client, kind, channels * shape.viewers, address)
    client.request("capture")
    before_s = system.cpu_s()
    produced = system.produce(channels=channels, count=count, tokens_per_s=shape.tokens_per_s)
    drained = drain(client, None)
    used_s = system.cpu_s() - before_s
    decoded = judge(client, drained, produced["messages"], address if isinstance(system, Ours) else None)
    tokens = count * shape.connections
    if decoded["tokens"] != tokens:
        what = f"{decoded['tokens']:,} tokens were delivered, and {tokens:,} sent, although all texts are correct"
        raise void(what, drained)
    client.request("close")
    return _Round(used_s / tokens * 1e6, alone_us)


def _name(kind: str) -> str:
    return NAMES[_LIKE.get(kind, kind)]


def _ratio_rows(rounds: dict[tuple[System, str], list[_Round]], shape: Shape) -> Iterator[Row]:
    """Yield our ratio to each peer that has viewers of the same kind."""
    mine = {kind: each for (system, kind), each in rounds.items() if isinstance(system, Ours)}
    for (system, kind), theirs in rounds.items():
        if isinstance(system, Ours) or _LIKE[kind] not in mine:
            continue
        viewers, pairs = _name(kind), list(zip(mine[_LIKE[kind]], theirs, strict=True))
        ratios = [one.us_per_token / other.us_per_token for one, other in pairs]
        what = f"{shape}, {viewers}: CPU per delivered token, against {system.name}"
        yield Row.judged(what, ratios, "×", _LIMIT)
        less = [(one.us_per_token - one.producers_us) / other.us_per_token for one, other in pairs]
        if viewers == "SSE" and shape.limit_without is not None:
            yield Row.judged("  without our producers, measured alone", less, "×", shape.limit_without)
