"""The highest rate that one core delivers: conversations of 50 tokens per second, two viewers each, p99 below 100 ms.

The number of conversations is searched, each try on a server of its own. Latency counts here from the due time of a
token, not from its append: producers that cannot keep up are late for their viewers, and that ends the search. A rate
passes if it passes in two of at most three rounds. In all rounds every token must arrive and be correct. The next
higher rate that was tried has failed.
"""

import functools
from collections.abc import Callable, Iterator

from bench import conversations
from bench.common import Options, Row, attempt, spread
from bench.conversations import P99_LIMIT_MS
from bench.needs import Needs
from bench.proc import BenchError

_FIRST = 500
_LASTS_S, _QUICK_S = 8.0, 4.0
_STEP = 1.3  # factor from one try to the next, until one rate has passed and one has failed
_EXACT = 0.05  # share of the rate: the precision at which the search ends
_MAJORITY = 2  # rounds, of at most three: one round that the machine disturbed does not decide
_TRIES = 12
_ROW = f"highest rate with p99 below {P99_LIMIT_MS} ms, 2 viewers of each conversation, all delivered"


def run(options: Options) -> Iterator[Row]:
    seconds, exact = (_QUICK_S, _STEP) if options.is_quick else (_LASTS_S, _EXACT)
    return attempt(_ROW, functools.partial(search, options, first=_FIRST, seconds=seconds, exact=exact))


def needs(options: Options) -> Needs:
    return Needs(seconds=30 if options.is_quick else 250, files=4 * _FIRST + 100, disk_mb=100)


def search(options: Options, *, first: int, seconds: float, exact: float, limit_ms: float = P99_LIMIT_MS) -> list[Row]:
    """Return the row of the search, with every try in its raw lines.

    Raises `Void`. Raises `BenchError` if no rate passes, or a try cannot be measured: beyond the capacity of the load
    client, the server's capacity is unknown. The error contains the earlier tries.
    """
    runs: list[conversations.Run] = []

    def passes(count: int) -> bool:
        good: list[bool] = []
        while max(good.count(True), good.count(False)) < _MAJORITY:
            try:
                runs.append(conversations.measure(options, count, seconds=seconds, is_dated_when_due=True))
            except (BenchError, OSError) as error:
                before = [str(run) for run in runs] or ["none"]
                error.add_note("\n".join([f"in a try of {count} conversations; before it:", *before]))
                raise
            good.append(runs[-1].latency_ms[1] < limit_ms)
        return good.count(True) == _MAJORITY

    best, failed = highest(passes, first=first, exact=exact)
    p99s_ms = [run.latency_ms[1] for run in runs if run.conversations == best]
    return [
        Row(
            _ROW,
            f"{best * conversations.TOKENS_PER_S:,} tokens/s",
            note=f"{best} conversations × {conversations.TOKENS_PER_S} tokens/s: p99 {spread(p99s_ms, 'ms')} from when "
            f"each was due; {failed} conversations failed",
            raw=tuple(str(run) for run in runs),
        )
    ]


def highest(passes: Callable[[int], bool], *, first: int, exact: float) -> tuple[int, int]:
    """Return the highest number that passes, and the lowest known to fail, at most `exact` (a share) above it."""
    best, failed, count = 0, 0, first
    for _ in range(_TRIES):
        if passes(count):
            best = count
        else:
            failed = count
        if best and failed:
            if failed <= best * (1 + exact):
                return best, failed
            count = (best + failed) // 2
        elif best:
            count = int(best * _STEP)
        else:
            count = int(failed / _STEP)
        if not count:
            raise BenchError("no rate passes")
    if not (best and failed):
        raise BenchError(f"the search did not end: {best} conversations pass, {failed or 'none'} fail")
    return best, failed
