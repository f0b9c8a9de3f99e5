"""The cost of the load client itself: a thousand connections to the bare server, 25 frames per second each.

Not a benchmark of Tenuto: it shows that the load client does not distort the others. It needs no Tenuto server.
"""

import hashlib
import json
from typing import Any

from bench.common import Options, Row, check, client_load, load_client
from bench.proc import SERVER_CORE, Child, cpu_s, raise_file_limit

Json = dict[str, Any]
CHANNEL = "bench:client"

_VIEWERS = 1_000
_FRAMES_PER_S = 25
_TEXT = "0123456789"  # text of each frame: two tokens, as many as arrive within 40 ms at 50 tokens per second


def run(options: Options) -> list[Row]:
    count = int((2.0 if options.is_quick else 6.0) * _FRAMES_PER_S)
    return [_row(kind, name, count) for kind, name in (("sse", "SSE"), ("websocket", "WebSocket"))]


def _row(kind: str, name: str, count: int) -> Row:
    drained, decoded, bare_s = replay(*recording(kind, count), viewers=_VIEWERS)
    deliveries = decoded["deliveries"]
    return Row(
        f"load client: {_VIEWERS:,} {name} viewers × {_FRAMES_PER_S} frames/s",
        f"{client_load(drained):.0%} of its core",
        note=f"{drained['cpu_s'] / deliveries * 1e6:.1f} µs per frame read; the bare server spent "
        f"{bare_s / deliveries * 1e6:.1f} µs on each; {deliveries:,} frames, all compared",
    )


def replay(recorded: Json, sent: Json, *, viewers: int) -> tuple[Json, Json, float]:
    """Play a recording by the bare server to `viewers` viewers. Return `drained`, `decoded`, its CPU. Raises `Void`."""
    raise_file_limit(viewers + 100)
    with Child("bench.baseline", core=SERVER_CORE) as baseline, load_client() as load:
        port = baseline.read(timeout_s=10)["port"]
        baseline.request("load", **recorded)
        load.request("connect", kind=recorded["kind"], port=port, channels=[CHANNEL] * viewers, timeout_s=30)
        load.request("capture")
        before_s = cpu_s(baseline.pid)
        baseline.request("play")
        drained = load.request("drain", timeout_s=30)
        bare_s = cpu_s(baseline.pid) - before_s
        decoded = load.request("decode")
        check(decoded, load.request("compare", sent=sent, port=None), drained)
    return drained, decoded, bare_s


def recording(kind: str, count: int, frames_per_s: float = _FRAMES_PER_S) -> tuple[Json, Json]:
    """Return the bytes for a viewer of a message in `count` frames, and the sent text to compare with."""
    part = {"type": "text", "text": _TEXT}
    message = {"id": "m", "role": "assistant", "status": "streaming", "parts": [part], "created": 1, "version": 1}
    events: list[Json] = [{"type": "message.create", "serial": 1, "message": message}]
    for n in range(1, count):
        event = {"type": "message.append", "serial": n + 1, "id": "m", "part": 0, "at": n * len(_TEXT), "text": _TEXT}
        events.append(event)
    attached = {"type": "channel.attached", "channel": CHANNEL, "epoch": "e", "serial": 0, "resumed": False}
    batch = _event if kind == "sse" else _frame
    before = ("retry: 2000\n\n" if kind == "sse" else "") + batch(attached, "e:0")
    batches = [(n / frames_per_s, batch(event, f"e:{event['serial']}")) for n, event in enumerate(events)]
    text = _TEXT * count
    sent = {"id": "m", "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {"kind": kind, "channels": {CHANNEL: {"before": before, "batches": batches}}}, {CHANNEL: sent}


def _event(event: Json, cursor: str) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\nid: {cursor}\n\n"


def _frame(event: Json, cursor: str) -> str:
    """Return an unmasked text frame of 126 bytes or more (RFC 6455, 5.2), as latin-1."""
    payload = json.dumps({"type": "events", "channel": CHANNEL, "cursor": cursor, "events": [event]}).encode()
    assert 126 <= len(payload) < 1 << 16
    return (b"\x81\x7e" + len(payload).to_bytes(2) + payload).decode("latin-1")
