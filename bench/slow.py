"""Slow readers: the cost of one, and of ten, viewers that do not read, for two hundred that do, and for the server.

An answer of one megabyte streams in ten seconds. The slow viewers attach like all others and then read no bytes until
it has ended. Then they read on, and the bytes that they get, including those in the kernel's buffers, are counted. Each
number of slow readers has a server of its own, because Python does not return freed memory.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.common import (
    NAMES,
    Options,
    Row,
    attempt,
    capture,
    client_load,
    connect,
    drain,
    judge,
    kept,
    load_client,
    served,
    spread,
)
from bench.proc import BenchError, raise_file_limit

_READERS = 200
_SLOW = (1, 10)
_PIECE = 1_000  # number of characters of one append
_PIECES_PER_S = 100
_ANSWER = 1_000_000  # number of characters of the answer
_CHANNEL = "bench:slow"


class _Run(NamedTuple):
    p99_ms: float
    most_bytes: int  # bytes of the slow viewer that got the most


def run(options: Options) -> Iterator[Row]:
    answer, rounds = (_ANSWER // 4, 1) if options.is_quick else (_ANSWER, 3)
    how: dict[str, Any] = {"readers": _READERS, "answer": answer, "rounds": rounds}
    for kind, name in NAMES.items():
        yield from attempt(f"slow readers, {name}", functools.partial(slow, options, kind, **how))


def slow(
    options: Options, kind: str, *, readers: int, answer: int, rounds: int, slow_ones: tuple[int, ...] = _SLOW
) -> Iterator[Row]:
    """Yield the rows of one transport. The numbers of slow readers alternate, zero included."""
    runs: dict[int, list[_Run]] = {count: [] for count in (0, *slow_ones)}
    for _ in range(rounds):
        for count, each in runs.items():
            each.append(_run(options, kind, readers, count, answer))
    p99s = {count: [one.p99_ms for one in each] for count, each in runs.items()}
    yield Row(f"p99 of {readers} {NAMES[kind]} readers of {answer / 1e6:g} MB", spread(p99s[0], "ms"))
    for count in slow_ones:
        ratios = spread([one / other for one, other in zip(p99s[count], p99s[0], strict=True)], "×")
        yield Row(
            f"  beside {count} that {'does' if count == 1 else 'do'} not read",
            f"{spread(p99s[count], 'ms')}, against none {ratios}",
        )
    most = [max(one.most_bytes for one in same) for same in zip(*runs.values(), strict=True)]
    limit = int(answer * 1.05) + 128 * 1024
    yield Row(
        "  bytes in all for such a reader, once it reads on", spread(most, "B"), f"{limit:,} B", max(most) <= limit
    )


def _run(options: Options, kind: str, readers: int, slow: int, answer: int) -> _Run:
    raise_file_limit(readers + slow + 100)
    count = answer // _PIECE
    wanted: dict[str, Any] = {"channels": [_CHANNEL], "count": count, "tokens_per_s": _PIECES_PER_S, "piece": _PIECE}
    with kept(options) as database, served(database) as server, load_client() as load:
        connect(load, kind, [_CHANNEL] * (readers + slow), server.address, piece=_PIECE)
        load.request("stall", count=slow)
        produced, drained, _ = capture(
            load,
            server.child.pid,
            lambda: server.child.request("produce", reply_in_s=count / _PIECES_PER_S + 30, **wanted),
        )
        client_load(drained)  # before they read on, since each then reads a megabyte at once
        if slow:
            load.request("read_on")
            drained = drain(load)
        decoded = judge(load, drained, produced["messages"], server.address, is_steady=False)
    if decoded["tokens"] != count * readers:
        raise BenchError(
            f"{decoded['tokens']} of {count * readers} tokens have a latency, although all texts are correct"
        )
    return _Run(decoded["latency_ms"][1], max(decoded["stalled_bytes"], default=0))
