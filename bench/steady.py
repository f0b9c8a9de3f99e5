"""Five hundred conversations with one viewer each at ten tokens per second: a load that leaves the core time to spare.

On a saturated core a cheaper token means more and smaller commits, so its CPU time stays the same. Here it shows. The
producers run in the server's process; their CPU time is measured alone, in the same round, and subtracted in a row of
its own.
"""

import statistics
from collections.abc import Iterator, Sequence

from bench.common import Options, Row, number, spread
from bench.conversations import Run, measure
from bench.needs import Needs

_CONVERSATIONS = 500
_TOKENS_PER_S = 10
_LIMIT_US = 91  # half of the CPU time before commits had a pace
_LIMIT_COMMITS = 820  # half of the commits before
_ALONE_S = 2.0


def run(options: Options) -> Iterator[Row]:
    rounds, seconds = (1, 2.0) if options.is_quick else (3, 5.0)
    yield from steady(options, _CONVERSATIONS, rounds=rounds, seconds=seconds, alone_s=_ALONE_S)


def needs(options: Options) -> Needs:
    return Needs(seconds=8 if options.is_quick else 36, files=_CONVERSATIONS + 100, disk_mb=50)


def steady(options: Options, conversations: int, *, rounds: int, seconds: float, alone_s: float) -> list[Row]:
    """Return the rows of so many conversations, each round on a server of its own. Raises `Void`."""
    runs = [
        measure(options, conversations, seconds=seconds, viewers=1, tokens_per_s=_TOKENS_PER_S, alone_s=alone_s)
        for _ in range(rounds)
    ]
    return _rows(runs)


def _rows(runs: Sequence[Run]) -> list[Row]:
    used_us = [run.us_per_token for run in runs]
    commits = [run.commits_per_s for run in runs]
    p50 = statistics.median(run.latency_ms[0] for run in runs)
    p99 = statistics.median(run.latency_ms[1] for run in runs)
    return [
        Row(
            f"{runs[0].conversations} × 1 at {_TOKENS_PER_S} tokens/s, SSE: CPU per token",
            spread(used_us, "µs"),
            f"{_LIMIT_US} µs",
            statistics.median(used_us) <= _LIMIT_US,
            note=f"latency p50 {number(p50)} ms, p99 {number(p99)} ms",
            raw=tuple(str(run) for run in runs),
        ),
        Row(
            "  without the producers, measured alone",
            spread([run.us_per_token - run.producers_us for run in runs], "µs"),
            note=f"the producers alone: {spread([run.producers_us for run in runs], 'µs')} per token",
        ),
        Row(
            "  commits per second",
            spread(commits),
            f"{_LIMIT_COMMITS:,}",
            statistics.median(commits) <= _LIMIT_COMMITS,
        ),
    ]
