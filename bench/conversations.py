"""Five hundred concurrent conversations: whether every token is delivered, how late, and the cost for the disk.

Every conversation streams 50 tokens per second to two viewers. SQLite with `synchronous=FULL` stores all of them.
Producers, hub, store and sockets share one core. Each token carries the time of its append, so the latency is that of
each token at each viewer. Afterwards every view is compared with the stored message and with the sent text.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from bench.common import (
    FINISHED,
    Options,
    Row,
    Served,
    check,
    client_load,
    kept,
    load_client,
    served,
    spread,
)
from bench.proc import BenchError, cpu_s, disk_write_bytes, raise_file_limit
from bench.tokens import WIDTH

_CONVERSATIONS = 500
_VIEWERS = 2
TOKENS_PER_S = 50
_P99_LIMIT_MS = 80
_DISK_LIMIT = 100
_TIMEOUT_S = 30.0


class _Gauges(NamedTuple):
    """The counters of the server and its core."""

    stats: dict[str, int]
    written_bytes: int
    cpu_s: float

    @classmethod
    def read(cls, server: Served) -> Self:
        pid = server.child.pid
        return cls(server.child.request("stats"), disk_write_bytes(pid), cpu_s(pid))


class Run(NamedTuple):
    """One run: the delivered tokens, their latency, and the used resources."""

    conversations: int
    tokens: int
    latency_ms: list[float]  # p50, p99, p99.9
    lag_ms: float  # lateness of the producers (p99)
    seconds: float
    deliveries: int
    server_s: float
    client_load: float
    before: _Gauges
    at_rest: _Gauges

    @property
    def text_bytes(self) -> int:
        """Return the bytes of the appended text."""
        return self.tokens // _VIEWERS * WIDTH

    def __str__(self) -> str:
        p50, p99, p999 = self.latency_ms
        return (
            f"{self.conversations} conversations: p50 {p50:.0f}, p99 {p99:.0f}, p99.9 {p999:.0f} ms; producers late by "
            f"{self.lag_ms:.0f} ms (p99); server {self.server_s / self.seconds:.0%} of its core, "
            f"load client {self.client_load:.0%} of its; "
            f"{self.deliveries / self.seconds:,.0f} deliveries/s"
        )


def run(options: Options) -> list[Row]:
    rounds, seconds = (1, 4.0) if options.is_quick else (3, 10.0)
    return rows([measure(options, _CONVERSATIONS, seconds=seconds) for _ in range(rounds)])


def measure(
    options: Options, conversations: int, *, seconds: float, is_dated_when_due: bool = False, skip_s: float = 0.0
) -> Run:
    """Run so many conversations once, on a new SQLite file.

    Raises `Void`, and `BenchError` if the run could not end in time. Tokens of the first `skip_s` have no latency; all
    texts are compared.
    """
    raise_file_limit(conversations * _VIEWERS + 100)
    channels = [f"bench:{n}" for n in range(conversations)]
    with kept(options) as database, served(database) as server, load_client() as load:
        load.request("connect", kind="sse", channels=channels * _VIEWERS, timeout_s=_TIMEOUT_S, **server.address)
        load.request("capture")
        before = _Gauges.read(server)
        count = int(seconds * TOKENS_PER_S)
        produced = server.child.request(
            "produce",
            channels=channels,
            count=count,
            tokens_per_s=TOKENS_PER_S,
            is_dated_when_due=is_dated_when_due,
            reply_in_s=seconds + 45,
        )
        drained = load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
        after = _Gauges.read(server)
        decoded = load.request("decode", skip_s=skip_s)
        compared = load.request("compare", sent=produced["messages"], **server.address)
        check(decoded, compared, drained, lag_ms=produced["lag_ms"])
        expected = count * conversations * _VIEWERS
        if not skip_s and decoded["tokens"] != expected:
            raise BenchError(f"{decoded['tokens']} of {expected} tokens have a latency, although all texts are correct")
        # Again after the comparison: by now the store has also written its deferred pages.
        at_rest = _Gauges.read(server)
    used_s = after.cpu_s - before.cpu_s
    return Run(
        conversations=conversations,
        tokens=expected,
        latency_ms=decoded["latency_ms"],
        lag_ms=produced["lag_ms"][1],
        seconds=drained["seconds"],
        deliveries=decoded["deliveries"],
        server_s=used_s,
        client_load=client_load(drained),
        before=before,
        at_rest=at_rest,
    )


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of equal rounds, each on a server of its own."""
    p99 = statistics.median(run.latency_ms[1] for run in runs)
    tokens = sum(run.tokens for run in runs)
    return [
        Row(
            f"{runs[0].conversations} conversations × {TOKENS_PER_S} tokens/s × {_VIEWERS} viewers: latency p99",
            _ms(runs, lambda run: run.latency_ms[1]),
            f"{_P99_LIMIT_MS} ms",
            p99 < _P99_LIMIT_MS,
            raw=tuple(str(run) for run in runs),
        ),
        Row("  p50", _ms(runs, lambda run: run.latency_ms[0])),
        Row("  p99.9", _ms(runs, lambda run: run.latency_ms[2])),
        Row("  delivered and compared", f"{tokens:,} tokens", "all", True),
        *_storage([_Stored.read(run) for run in runs]),
    ]


def _ms(runs: Sequence[Run], of: Callable[[Run], float]) -> str:
    return spread([of(run) for run in runs], "ms")


class _Stored(NamedTuple):
    """The bytes that one run passed to the store, and those that reached the disk."""

    text_bytes: int
    row_bytes: int
    commits: int
    entries: int
    written_bytes: int

    @classmethod
    def read(cls, run: Run) -> Self:
        stats = {key: value - run.before.stats.get(key, 0) for key, value in run.at_rest.stats.items()}
        return cls(
            text_bytes=run.text_bytes,
            row_bytes=stats["store_row_bytes"],
            commits=stats["commits"],
            entries=stats["entries"],
            written_bytes=run.at_rest.written_bytes - run.before.written_bytes,
        )

    @property
    def of_limit(self) -> float:
        # Joining reduces a message's ops in one commit to one entry: one for each commit and message, plus one where a
        # part is opened or the message ends.
        return self.row_bytes / (3 * self.text_bytes + 20 * self.entries)

    def __str__(self) -> str:
        return (
            f"{self.row_bytes:,} B of rows and {self.written_bytes:,} B on disk for {self.text_bytes:,} B of text; "
            f"{self.commits:,} commits of {self.entries / self.commits:.0f} entries"
        )


def _storage(runs: Sequence[_Stored]) -> list[Row]:
    of_limit = [run.of_limit for run in runs]
    of_text = [run.row_bytes / run.text_bytes for run in runs]
    handed = Row(
        "  bytes of rows passed to the store, of 3 × text + 20 B per commit and message",
        spread(of_limit, "×"),
        "1 ×",
        max(of_limit) <= 1,
        f"{spread(of_text, '×')} the text",
        raw=tuple(str(run) for run in runs),
    )
    what = "  bytes written to disk per byte streamed"
    if not all(run.written_bytes for run in runs):
        note = "no bytes were written to a disk: choose a directory on a disk with --dir"
        return [handed, Row(what, "not measured", note=note, has_failed=True)]
    times = [run.written_bytes / run.text_bytes for run in runs]
    return [handed, Row(what, spread(times, "×"), f"{_DISK_LIMIT} ×", max(times) <= _DISK_LIMIT)]
