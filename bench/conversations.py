"""Five hundred conversations at once: is everything delivered, how late, and what does it cost the disk?

Every conversation streams 50 tokens a second to two viewers, all of it stored by SQLite with `synchronous=FULL`;
producers, hub, store and sockets share one core. Each token says when it was appended, so latency is that of each
token at each viewer. Afterwards every view is held against the stored message and against what was sent.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple, Self

from bench.common import Options, Row, Served, check, load_client, number, served
from bench.proc import SERVER_CORE, BenchError, busy_s, cpu_s, disk_write_bytes, raise_file_limit
from bench.tokens import WIDTH

_CONVERSATIONS = 500
_VIEWERS = 2
_TOKENS_PER_S = 50
_P99_LIMIT_MS = 100
_DISK_LIMIT = 100
_TIMEOUT_S = 30.0


class _Gauges(NamedTuple):
    """What the server and its core have done so far."""

    stats: dict[str, int]
    written_bytes: int
    cpu_s: float
    core_s: float  # by whomever

    @classmethod
    def read(cls, server: Served) -> Self:
        pid = server.child.pid
        return cls(server.child.ask("stats"), disk_write_bytes(pid), cpu_s(pid), busy_s(SERVER_CORE))


def run(options: Options) -> list[Row]:
    raise_file_limit(_CONVERSATIONS * _VIEWERS + 100)
    seconds = 4.0 if options.is_quick else 10.0
    channels = [f"bench:{n}" for n in range(_CONVERSATIONS)]
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        served(Path(directory) / "conversations.db") as server,
        load_client() as load,
    ):
        load.ask("connect", kind="sse", port=server.port, channels=channels * _VIEWERS, timeout_s=_TIMEOUT_S)
        load.ask("capture")
        before = _Gauges.read(server)
        count = int(seconds * _TOKENS_PER_S)
        produced = server.child.ask("produce", channels=channels, count=count, tokens_per_s=_TOKENS_PER_S)
        drained = load.ask("drain", timeout_s=_TIMEOUT_S)
        after = _Gauges.read(server)
        decoded = load.ask("decode")
        check(decoded, load.ask("compare", sent=produced["messages"], port=server.port), drained)
        expected = count * _CONVERSATIONS * _VIEWERS
        if decoded["tokens"] != expected:
            raise BenchError(f"{decoded['tokens']} of {expected} tokens have a latency, though all texts are right")
        # Once more after the comparison: by now the store has also written back what it had put off.
        at_rest = _Gauges.read(server)
    seconds = drained["seconds"]
    used_s = after.cpu_s - before.cpu_s
    others_s = max(0.0, after.core_s - before.core_s - used_s)
    note = (
        f"server {used_s / seconds:.0%} of its core (others {others_s / seconds:.0%}), load client "
        f"{drained['cpu_s'] / seconds:.0%} of its; {decoded['deliveries'] / seconds:,.0f} deliveries/s; "
        f"producers late by {produced['lag_ms'][1]:.0f} ms (p99)"
    )
    p50, p99, p999 = decoded["latency_ms"]
    return [
        Row(
            f"{_CONVERSATIONS} conversations × {_TOKENS_PER_S} tokens/s × {_VIEWERS} viewers: latency p99",
            f"{p99:.0f} ms",
            f"{_P99_LIMIT_MS} ms",
            p99 < _P99_LIMIT_MS,
            note,
        ),
        Row("  p50, p99.9", f"{p50:.0f} ms, {p999:.0f} ms"),
        Row("  delivered and compared", f"{decoded['tokens']:,} tokens", "all", True),
        *_storage(before, at_rest, count * _CONVERSATIONS * WIDTH),
    ]


def _storage(before: _Gauges, after: _Gauges, text_bytes: int) -> list[Row]:
    stats = {key: value - before.stats.get(key, 0) for key, value in after.stats.items()}
    written = after.written_bytes - before.written_bytes
    # An entry is what joining left of a message's ops in one commit: one for each commit and message, and one more
    # where a part is opened or the message ends.
    limit = 3 * text_bytes + 20 * stats["entries"]
    rows = Row(
        "  bytes of rows handed to the store, of 3 × text + 20 B per commit and message",
        f"{stats['store_row_bytes'] / limit:.2f} ×",
        "1 ×",
        stats["store_row_bytes"] <= limit,
        f"{stats['store_row_bytes'] / text_bytes:.2f} × the text of {text_bytes:,} B; {stats['commits']:,} commits "
        f"of {stats['entries'] / stats['commits']:.0f} entries",
    )
    what = "  bytes written to disk per byte streamed"
    if not written:
        note = "nothing was written to a disk: choose a directory on one with --dir"
        return [rows, Row(what, "not measured", note=note, has_failed=True)]
    times = written / text_bytes
    return [rows, Row(what, f"{number(times)} ×", f"{_DISK_LIMIT} ×", times <= _DISK_LIMIT)]
