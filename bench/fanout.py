"""One channel, a thousand viewers: CPU per delivery, as a ratio to a bare server that writes the same bytes.

Rounds of the two alternate, since a noisy machine drifts; each bare round replays what a viewer of our round before it
got, at the same times. A delivery is one batch to one viewer. Our CPU includes the producer, the store and everything
else our process did meanwhile.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import Options, Row, Served, check, load_client, served
from bench.proc import SERVER_CORE, Child, cpu_s, raise_file_limit

_VIEWERS = 1_000
_TOKENS_PER_S = 50
_LIMIT = 1.6
_TIMEOUT_S = 30.0


class _Round(NamedTuple):
    us_per_delivery: float
    deliveries: int
    bytes: int
    client_load: float
    seconds: float


def run(options: Options) -> list[Row]:
    raise_file_limit(_VIEWERS + 100)
    rounds, seconds = (3, 2.0) if options.is_quick else (3, 5.0)
    ours: list[_Round] = []
    bare: list[_Round] = []
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        served(Path(directory) / "fanout.db") as server,
        Child("bench.baseline", core=SERVER_CORE) as baseline,
        load_client() as load,
    ):
        port = baseline.read(timeout_s=10)["port"]
        for n in range(rounds):
            one, sent, recording = _ours(server, load, f"bench:fanout-{n}", seconds)
            ours.append(one)
            baseline.ask("load", **recording)
            bare.append(_bare(baseline, port, load, sent))
    return _rows(ours, bare)


def _rows(ours: list[_Round], bare: list[_Round]) -> list[Row]:
    ratios = [one.us_per_delivery / other.us_per_delivery for one, other in zip(ours, bare, strict=True)]
    median = statistics.median(ratios)
    client = max(one.client_load for one in [*ours, *bare])
    return [
        Row(
            f"fan-out to {_VIEWERS:,} SSE viewers: CPU per delivery against a bare server",
            f"{median:.2f} × ({min(ratios):.2f}–{max(ratios):.2f}, {len(ratios)} rounds)",
            f"{_LIMIT} ×",
            median <= _LIMIT,
        ),
        Row(
            "  CPU per delivery, ours and bare",
            f"{_median(ours):.1f} µs, {_median(bare):.1f} µs",
            note=f"{ours[-1].deliveries / ours[-1].seconds:,.0f} and {bare[-1].deliveries / bare[-1].seconds:,.0f} "
            f"deliveries/s of {ours[-1].bytes / ours[-1].deliveries:.0f} B; load client used {client:.0%} of its core",
        ),
    ]


def _median(rounds: list[_Round]) -> float:
    return statistics.median(one.us_per_delivery for one in rounds)


def _ours(server: Served, load: Child, channel: str, seconds: float) -> tuple[_Round, dict[str, Any], dict[str, Any]]:
    """A round of ours, with what was sent and what the first viewer got of it."""
    channels = [channel] * _VIEWERS
    load.ask("record")
    load.ask("connect", kind="sse", port=server.port, channels=channels, timeout_s=_TIMEOUT_S)
    load.ask("capture")
    before_s = cpu_s(server.child.pid)
    count = int(seconds * _TOKENS_PER_S)
    sent = server.child.ask("produce", channels=[channel], count=count, tokens_per_s=_TOKENS_PER_S)["messages"]
    drained = load.ask("drain", timeout_s=_TIMEOUT_S)
    used_s = cpu_s(server.child.pid) - before_s
    one = _finish(load, drained, used_s, sent, server.port)
    recording = load.ask("recording")
    load.ask("close")
    return one, sent, recording


def _bare(baseline: Child, port: int, load: Child, sent: dict[str, Any]) -> _Round:
    load.ask("connect", kind="sse", port=port, channels=list(sent) * _VIEWERS, timeout_s=_TIMEOUT_S)
    load.ask("capture")
    before_s = cpu_s(baseline.pid)
    baseline.ask("play")
    drained = load.ask("drain", timeout_s=_TIMEOUT_S)
    one = _finish(load, drained, cpu_s(baseline.pid) - before_s, sent, None)
    load.ask("close")
    return one


def _finish(load: Child, drained: dict[str, Any], used_s: float, sent: dict[str, Any], port: int | None) -> _Round:
    decoded = load.ask("decode")
    check(decoded, load.ask("compare", sent=sent, port=port), drained)
    return _Round(
        us_per_delivery=used_s / decoded["deliveries"] * 1e6,
        deliveries=decoded["deliveries"],
        bytes=decoded["bytes"],
        client_load=drained["cpu_s"] / drained["seconds"],
        seconds=drained["seconds"],
    )
