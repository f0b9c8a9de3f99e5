"""Five hundred concurrent conversations: whether every token is delivered, how late, and the cost for the disk.

Every conversation streams 50 tokens per second to two viewers. SQLite with `synchronous=FULL` stores all of them.
Producers, hub, store and sockets share one core. Each token carries the time of its append, so the latency is that of
each token at each viewer. Afterwards every view is compared with the stored message and with the sent text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.common import Options, Row, Served, capture, connect, judge, kept, load_client, served, spread
from bench.proc import BenchError, disk_write_bytes, raise_file_limit
from bench.tokens import WIDTH

_CONVERSATIONS = 500
_VIEWERS = 2
TOKENS_PER_S = 50
_P99_LIMIT_MS = 80
_DISK_LIMIT = 100


class Run(NamedTuple):
    """One run: the delivered tokens, their latency, and the bytes that the store took and that reached the disk."""

    conversations: int
    tokens: int
    latency_ms: list[float]  # p50, p99, p99.9
    row_bytes: int
    entries: int
    written_bytes: int

    @property
    def text_bytes(self) -> int:
        """Return the bytes of the appended text."""
        return self.tokens // _VIEWERS * WIDTH

    @property
    def of_limit(self) -> float:
        """Return the bytes of rows as a multiple of their limit.

        Joining reduces a message's ops in one commit to one entry: one for each commit and message, plus one where a
        part is opened or the message ends.
        """
        return self.row_bytes / (3 * self.text_bytes + 20 * self.entries)


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
    count = int(seconds * TOKENS_PER_S)
    wanted: dict[str, Any] = {"channels": channels, "count": count, "tokens_per_s": TOKENS_PER_S}
    wanted |= {"is_dated_when_due": is_dated_when_due, "reply_in_s": seconds + 45}
    with kept(options) as database, served(database) as server, load_client() as load:
        connect(load, "sse", channels * _VIEWERS, server.address)
        before = _stored(server)
        produced, drained, _ = capture(load, server.child.pid, lambda: server.child.request("produce", **wanted))
        decoded = judge(load, drained, produced["messages"], server.address, skip_s=skip_s)
        expected = count * conversations * _VIEWERS
        if not skip_s and decoded["tokens"] != expected:
            raise BenchError(f"{decoded['tokens']} of {expected} tokens have a latency, although all texts are correct")
        # After the comparison: by now the store has also written its deferred pages.
        stored = [after - one for after, one in zip(_stored(server), before, strict=True)]
    return Run(conversations, expected, decoded["latency_ms"], *stored)


def _stored(server: Served) -> list[int]:
    """Return the bytes of rows and the entries so far, and the bytes that reached the disk."""
    stats = server.child.request("stats")
    return [stats.get("store_row_bytes", 0), stats.get("entries", 0), disk_write_bytes(server.child.pid)]


def rows(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of equal rounds, each on a server of its own."""
    p50s, p99s, p999s = ([run.latency_ms[n] for run in runs] for n in range(3))
    times = [run.written_bytes / run.text_bytes for run in runs]
    what, written = f"{runs[0].conversations} conversations", "  bytes written to disk per byte streamed"
    rows_of = "  bytes of rows passed to the store, of 3 × text + 20 B per commit and message"
    note = "no bytes were written to a disk: choose a directory on a disk with --dir"
    return [
        Row.judged(f"{what} × {TOKENS_PER_S} tokens/s × {_VIEWERS} viewers: latency p99", p99s, "ms", _P99_LIMIT_MS),
        Row("  p50", spread(p50s, "ms")),
        Row("  p99.9", spread(p999s, "ms")),
        Row("  delivered and compared", f"{sum(run.tokens for run in runs):,} tokens", "all", True),
        Row.judged(rows_of, [run.of_limit for run in runs], "×", 1, by=max),
        Row.judged(written, times, "×", _DISK_LIMIT, by=max)
        if all(times)
        else Row(written, "not measured", note=note, has_failed=True),
    ]
