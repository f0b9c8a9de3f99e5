"""Slow readers: what one, and ten, viewers that do not read cost the two hundred that do, and the server.

An answer of a megabyte streams in twenty seconds. The slow ones attach like all others and then read nothing until it
has ended; then they read on, and what they get then, together with what had gone into the buffers of the kernel, is
counted. Each number of slow readers has a server of its own, since memory that was once had is not given back.
"""

from collections.abc import Iterator
from typing import NamedTuple

from bench.common import FINISHED, Options, Row, check, kept, load_client, number, raw_line, served
from bench.proc import BenchError, raise_file_limit, rss_bytes

_READERS = 200
_SLOW = (1, 10)
_PIECE = 1_000  # characters an append
_PIECES_PER_S = 50
_ANSWER = 1_000_000  # characters
_TIMEOUT_S = 30.0
_CHANNEL = "bench:slow"
_NAMES = {"sse": "SSE", "websocket": "WebSocket"}


class _Run(NamedTuple):
    slow: int
    p50_ms: float
    p99_ms: float
    grown_bytes: int  # the server's memory, from when all were attached to when all was written
    most_bytes: int  # that one of the slow ones got
    lag_ms: float


def run(options: Options) -> Iterator[Row]:
    for kind in _NAMES:
        yield from slow(options, kind, readers=_READERS, answer=_ANSWER // 4 if options.is_quick else _ANSWER)


def slow(options: Options, kind: str, *, readers: int, answer: int, slow_ones: tuple[int, ...] = _SLOW) -> list[Row]:
    """The rows of one transport."""
    alone = _run(options, kind, readers, 0, answer)
    others = [_run(options, kind, readers, count, answer) for count in slow_ones]
    rows = [
        Row(
            f"p99 of {readers} {_NAMES[kind]} readers of {answer / 1e6:g} MB beside {one.slow} that "
            f"{'does' if one.slow == 1 else 'do'} not read",
            f"{one.p99_ms:.0f} ms ({one.p99_ms / alone.p99_ms:.2f} × without)",
            note=f"without: {alone.p99_ms:.0f} ms; the server grew by {one.grown_bytes / 1e6:.1f} MB (without by "
            f"{alone.grown_bytes / 1e6:.1f})",
            raw=(raw_line(**alone._asdict()), raw_line(**one._asdict())),
        )
        for one in others
    ]
    most = max(one.most_bytes for one in others)
    limit = int(answer * 1.05) + 128 * 1024
    rows.append(
        Row("  bytes such a reader gets in all when it reads on", f"{number(most)} B", f"{limit:,} B", most <= limit)
    )
    return rows


def _run(options: Options, kind: str, readers: int, slow: int, answer: int) -> _Run:
    raise_file_limit(readers + slow + 100)
    with kept(options) as database, served(database) as server, load_client() as load:
        channels = [_CHANNEL] * (readers + slow)
        load.ask("connect", kind=kind, channels=channels, timeout_s=_TIMEOUT_S, piece=_PIECE, **server.address)
        load.ask("capture")
        load.ask("stall", count=slow)
        before = rss_bytes(server.child.pid)
        count = answer // _PIECE
        produced = server.child.ask(
            "produce",
            channels=[_CHANNEL],
            count=count,
            tokens_per_s=_PIECES_PER_S,
            piece=_PIECE,
            answer_in_s=count / _PIECES_PER_S + 30,
        )
        drained = load.ask("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
        grown = rss_bytes(server.child.pid) - before
        if slow:
            load.ask("read_on")
            drained = load.ask("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
        decoded = load.ask("decode")
        check(decoded, load.ask("compare", sent=produced["messages"], **server.address), drained)
        if decoded["tokens"] != count * readers:
            raise BenchError(
                f"{decoded['tokens']} of {count * readers} tokens have a latency, though all texts are right"
            )
    p50, p99, _ = decoded["latency_ms"]
    return _Run(slow, p50, p99, grown, max(decoded["stalled_bytes"], default=0), produced["lag_ms"][1])
