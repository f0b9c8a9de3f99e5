"""The highest rate: how many conversations of 50 tokens a second one core brings to two viewers each, p99 below 100 ms.

The number of conversations is searched for, each try on a server of its own. Latency counts here from when a token was
due, not from when it was appended: producers that cannot keep up are late for their viewers, and that ends the
search. A rate is passed when everything came and was right in each of the rounds that it was tried. Beyond the rate
that is found lies one that was tried and failed.
"""

from collections.abc import Callable

from bench import conversations
from bench.common import Options, Row
from bench.conversations import P99_LIMIT_MS
from bench.proc import BenchError

_FIRST = 500
_STEP = 1.3  # from try to try, until there is a rate that passes and one that fails
_EXACT = 0.05  # of the rate: where the search ends
_ROUNDS = 2
_TRIES = 12


def run(options: Options) -> list[Row]:
    seconds, exact = (4.0, _STEP) if options.is_quick else (8.0, _EXACT)
    return search(options, first=_FIRST, seconds=seconds, exact=exact, limit_ms=P99_LIMIT_MS)


def search(options: Options, *, first: int, seconds: float, exact: float, limit_ms: float) -> list[Row]:
    """The row of the search, with every try in its raw lines. Raises `Void`, and `BenchError` when nothing passes."""
    lines: list[str] = []
    passed_ms = 0.0

    def passes(count: int) -> bool:
        nonlocal passed_ms
        worst_ms = 0.0
        for _ in range(_ROUNDS):
            run = conversations.measure(options, count, seconds=seconds, is_dated_when_due=True)
            lines.append(str(run))
            worst_ms = max(worst_ms, run.latency_ms[1])
            if worst_ms >= limit_ms:
                return False
        passed_ms = worst_ms
        return True

    best, failed = highest(passes, first=first, exact=exact)
    rate = best * conversations.TOKENS_PER_S
    return [
        Row(
            f"highest rate with p99 below {limit_ms:.0f} ms, 2 viewers of each conversation, all delivered",
            f"{rate:,} tokens/s",
            note=f"{best} conversations × {conversations.TOKENS_PER_S} tokens/s: p99 {passed_ms:.0f} ms from when each "
            f"was due, in the worse of {_ROUNDS} rounds; {failed} conversations failed",
            raw=tuple(lines),
        )
    ]


def highest(passes: Callable[[int], bool], *, first: int, exact: float) -> tuple[int, int]:
    """The highest number that passes, and the lowest known to fail, at most `exact` (a share) above it."""
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
