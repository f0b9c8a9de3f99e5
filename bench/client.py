"""What the load client itself costs: a thousand connections to the bare server, 25 frames a second each.

Not a benchmark of ours: it shows that the client is not what the others measure. Needs no server of ours.
"""

import hashlib
import json
from typing import Any

from bench.common import Options, Row, check, load_client
from bench.proc import SERVER_CORE, Child, cpu_s, raise_file_limit

_VIEWERS = 1_000
_FRAMES_PER_S = 25
_CHANNEL = "bench:client"
_TEXT = "0123456789"  # in each frame: two tokens, what 40 ms at 50 tokens a second bring


def run(options: Options) -> list[Row]:
    raise_file_limit(_VIEWERS + 100)
    count = int((2.0 if options.is_quick else 6.0) * _FRAMES_PER_S)
    with Child("bench.baseline", core=SERVER_CORE) as baseline, load_client() as load:
        port = baseline.read(timeout_s=10)["port"]
        baseline.ask("load", before="retry: 2000\n\n" + _event(_attached(), "e:0"), batches=_batches(count))
        load.ask("connect", kind="sse", port=port, channels=[_CHANNEL] * _VIEWERS, timeout_s=30)
        load.ask("capture")
        before_s = cpu_s(baseline.pid)
        baseline.ask("play")
        drained = load.ask("drain", timeout_s=30)
        bare_s = cpu_s(baseline.pid) - before_s
        decoded = load.ask("decode")
        text = _TEXT * count
        sent = {_CHANNEL: {"id": "m", "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}}
        check(decoded, load.ask("compare", sent=sent, port=None), drained)
    deliveries = decoded["deliveries"]
    return [
        Row(
            f"load client: {_VIEWERS:,} viewers × {_FRAMES_PER_S} frames/s",
            f"{drained['cpu_s'] / drained['seconds']:.0%} of its core",
            note=f"{drained['cpu_s'] / deliveries * 1e6:.1f} µs per frame read; the bare server spent "
            f"{bare_s / deliveries * 1e6:.1f} µs on each; {deliveries:,} frames, all compared",
        )
    ]


def _batches(count: int) -> list[tuple[float, str]]:
    """`count` frames, the first of which creates the message, at their times."""
    part = {"type": "text", "text": _TEXT}
    message = {"id": "m", "role": "assistant", "status": "streaming", "parts": [part], "created": 1, "version": 1}
    events: list[dict[str, Any]] = [{"type": "message.create", "serial": 1, "message": message}]
    for n in range(1, count):
        event = {"type": "message.append", "serial": n + 1, "id": "m", "part": 0, "at": n * len(_TEXT), "text": _TEXT}
        events.append(event)
    return [(n / _FRAMES_PER_S, _event(event, f"e:{event['serial']}")) for n, event in enumerate(events)]


def _attached() -> dict[str, Any]:
    return {"type": "channel.attached", "channel": _CHANNEL, "epoch": "e", "serial": 0, "resumed": False, "more": False}


def _event(event: dict[str, Any], cursor: str) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\nid: {cursor}\n\n"
