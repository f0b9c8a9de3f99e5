"""Slow readers: the cost of one, and of ten, viewers that do not read, for two hundred that do, and for the server.

An answer of one megabyte streams in ten seconds. The slow viewers attach like all others and then read no bytes until
it has ended. Then they read on, and the bytes that they get, including those in the kernel's buffers, are counted. Each
number of slow readers has a server of its own, because Python does not return freed memory.
"""

import functools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.common import (
    FINISHED,
    NAMES,
    Options,
    Row,
    attempt,
    check,
    client_load,
    kept,
    load_client,
    raw_line,
    served,
    spread,
)
from bench.proc import BenchError, raise_file_limit, rss_bytes

_READERS = 200
_SLOW = (1, 10)
_PIECE = 1_000  # number of characters of one append
_PIECES_PER_S = 100
_ANSWER = 1_000_000  # number of characters of the answer
_TIMEOUT_S = 30.0
_CHANNEL = "bench:slow"


class _Run(NamedTuple):
    slow: int
    p50_ms: float
    p99_ms: float
    grown_bytes: int  # growth of the server's memory, from when all were attached to when all was written
    most_bytes: int  # bytes of the slow viewer that got the most
    lag_ms: float
    client_load: float


def run(options: Options) -> Iterator[Row]:
    answer, rounds = (_ANSWER // 4, 1) if options.is_quick else (_ANSWER, 3)
    how: dict[str, Any] = {"readers": _READERS, "answer": answer, "rounds": rounds}
    for kind, name in NAMES.items():
        yield from attempt(f"slow readers, {name}", functools.partial(slow, options, kind, **how))


def slow(
    options: Options, kind: str, *, readers: int, answer: int, rounds: int, slow_ones: tuple[int, ...] = _SLOW
) -> list[Row]:
    """Return the rows of one transport. The numbers of slow readers alternate, zero included."""
    runs: dict[int, list[_Run]] = {count: [] for count in (0, *slow_ones)}
    for _ in range(rounds):
        for count, each in runs.items():
            each.append(_run(options, kind, readers, count, answer))
    alone = runs[0]
    rows = [
        Row(f"p99 of {readers} {NAMES[kind]} readers of {answer / 1e6:g} MB", _p99(alone), raw=_raw(alone)),
        *(_beside(alone, runs[count], count) for count in slow_ones),
    ]
    most = [max(runs[count][n].most_bytes for count in slow_ones) for n in range(rounds)]
    limit = int(answer * 1.05) + 128 * 1024
    what = "  bytes in all for such a reader, once it reads on"
    rows.append(Row(what, spread(most, "B"), f"{limit:,} B", max(most) <= limit))
    return rows


def _beside(alone: Sequence[_Run], beside: Sequence[_Run], count: int) -> Row:
    ratios = [one.p99_ms / other.p99_ms for one, other in zip(beside, alone, strict=True)]
    grown_mb, without_mb = (statistics.median(one.grown_bytes for one in each) / 1e6 for each in (beside, alone))
    return Row(
        f"  beside {count} that {'does' if count == 1 else 'do'} not read",
        f"{_p99(beside)}, against none {spread(ratios, '×')}",
        note=f"the server grew by {grown_mb:.1f} MB (without by {without_mb:.1f})",
        raw=_raw(beside),
    )


def _p99(runs: Sequence[_Run]) -> str:
    return spread([one.p99_ms for one in runs], "ms")


def _raw(runs: Sequence[_Run]) -> tuple[str, ...]:
    return tuple(raw_line(**one._asdict()) for one in runs)


def _run(options: Options, kind: str, readers: int, slow: int, answer: int) -> _Run:
    raise_file_limit(readers + slow + 100)
    with kept(options) as database, served(database) as server, load_client() as load:
        channels = [_CHANNEL] * (readers + slow)
        load.request("connect", kind=kind, channels=channels, timeout_s=_TIMEOUT_S, piece=_PIECE, **server.address)
        load.request("capture")
        load.request("stall", count=slow)
        before = rss_bytes(server.child.pid)
        count = answer // _PIECE
        produced = server.child.request(
            "produce",
            channels=[_CHANNEL],
            count=count,
            tokens_per_s=_PIECES_PER_S,
            piece=_PIECE,
            reply_in_s=count / _PIECES_PER_S + 30,
        )
        drained = load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
        grown = rss_bytes(server.child.pid) - before
        load_share = client_load(drained)  # before they read on, since each then reads a megabyte at once
        if slow:
            load.request("read_on")
            drained = load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
        decoded = load.request("decode")
        compared = load.request("compare", sent=produced["messages"], **server.address)
        check(decoded, compared, drained, lag_ms=produced["lag_ms"])
        if decoded["tokens"] != count * readers:
            raise BenchError(
                f"{decoded['tokens']} of {count * readers} tokens have a latency, although all texts are correct"
            )
    p50, p99, _ = decoded["latency_ms"]
    return _Run(slow, p50, p99, grown, max(decoded["stalled_bytes"], default=0), produced["lag_ms"][1], load_share)
