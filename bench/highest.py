"""The highest rate that one core delivers: conversations of 50 tokens per second, two viewers each, p99 below 100 ms.

The number of conversations is searched, each try on a server of its own. Latency counts here from the due time of a
token, not from its append: producers that cannot keep up are late for their viewers, and that ends the search. A rate
passes if it passes in two of at most three rounds. In all rounds every token must arrive and be correct. The next
higher rate that was tried has failed.

Then the server gets more than that: 1.5 and 2.5 times as many conversations. Latency counts from the append again,
because late producers are the expected effect of an overload. The tokens of the first two seconds, in which all answers
are created, have no latency; all texts are compared.
"""

import functools
from collections.abc import Callable, Iterator

from bench import conversations
from bench.common import Options, Row, attempt, spread
from bench.proc import BenchError

_FIRST = 500
_P99_LIMIT_MS = 100
_LIMIT_PER_S = 36_000
_LASTS_S, _QUICK_S = 8.0, 4.0
_OVERLOADS = (1.5, 2.5)
_OVERLOAD_S, _QUICK_OVERLOAD_S = 6.0, 3.5
_OVERLOAD_ROUNDS = 3
_SKIP_S = 2.0
_TAIL_LIMIT = 2.5  # p99 of p50
_STEP = 1.3  # factor from one try to the next, until one rate has passed and one has failed
_EXACT = 0.05  # share of the rate: the precision at which the search ends
_MAJORITY = 2  # rounds, of at most three: one round that the machine disturbed does not decide
_TRIES = 12
_ROW = f"highest rate with p99 below {_P99_LIMIT_MS} ms, 2 viewers of each conversation, all delivered"


def run(options: Options) -> Iterator[Row]:
    seconds, exact = (_QUICK_S, _STEP) if options.is_quick else (_LASTS_S, _EXACT)
    best = 0

    def rate() -> Iterator[Row]:
        nonlocal best
        best, row = search(options, first=_FIRST, seconds=seconds, exact=exact)
        yield row

    yield from attempt(_ROW, rate)
    seconds, rounds = (_QUICK_OVERLOAD_S, 1) if options.is_quick else (_OVERLOAD_S, _OVERLOAD_ROUNDS)
    for factor in _OVERLOADS if best else ():
        measure = functools.partial(overload, options, best, factor, seconds=seconds, rounds=rounds, skip_s=_SKIP_S)
        yield from attempt(f"overload, {factor:g} × the highest rate", measure)


def search(
    options: Options, *, first: int, seconds: float, exact: float, limit_ms: float = _P99_LIMIT_MS
) -> tuple[int, Row]:
    """Return the highest number of conversations, and the row of the search.

    Raises `Void`. Raises `BenchError` if no rate passes, or a try cannot be measured: beyond the capacity of the load
    client, the server's capacity is unknown.
    """
    runs: list[conversations.Run] = []

    def passes(count: int) -> bool:
        good: list[bool] = []
        while max(good.count(True), good.count(False)) < _MAJORITY:
            try:
                runs.append(conversations.measure(options, count, seconds=seconds, is_dated_when_due=True))
            except (BenchError, OSError) as error:
                error.add_note(f"in a try of {count} conversations")
                raise
            good.append(runs[-1].latency_ms[1] < limit_ms)
        return good.count(True) == _MAJORITY

    best, failed = highest(passes, first=first, exact=exact)
    p99s_ms = [run.latency_ms[1] for run in runs if run.conversations == best]
    per_s = best * conversations.TOKENS_PER_S
    return best, Row(
        _ROW,
        f"{per_s:,} tokens/s",
        f"{_LIMIT_PER_S:,} tokens/s",
        per_s >= _LIMIT_PER_S,
        note=f"{best} conversations × {conversations.TOKENS_PER_S} tokens/s: p99 {spread(p99s_ms, 'ms')} from when "
        f"each was due; {failed} conversations failed",
    )


def overload(
    options: Options, best: int, factor: float, *, seconds: float, rounds: int, skip_s: float
) -> Iterator[Row]:
    """Yield the row of `factor` times as many conversations as the highest rate has. Raises `Void`."""
    count = int(best * factor)
    runs = [conversations.measure(options, count, seconds=seconds, skip_s=skip_s) for _ in range(rounds)]
    p50, p99 = (spread([run.latency_ms[n] for run in runs], "ms") for n in (0, 1))
    yield Row.judged(
        f"overload, {factor:g} × the highest rate, after the first {skip_s:g} s: p99 against p50",
        [run.latency_ms[1] / run.latency_ms[0] for run in runs],
        "×",
        _TAIL_LIMIT,
        note=f"{count} conversations × {conversations.TOKENS_PER_S} tokens/s, all texts compared: p50 {p50}, p99 {p99}",
    )


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
