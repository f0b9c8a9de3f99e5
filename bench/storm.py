"""A storm: a thousand viewers of a streaming answer, whose server is killed with `kill -9` and started again.

Each viewer dials again with its cursor, after up to half a second of jitter as a client does, and repeats until the
server listens. The agent dies with its server and continues its message after the restart (`hub.adopt`). The time
counts from the kill: it includes the end of the old process, the start of the new one, reading the file, and a thousand
resumes. All viewers must resume, and all must have the whole text in the end, which is known beforehand.
"""

import functools
import hashlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.common import (
    FINISHED,
    NAMES,
    Options,
    Row,
    Served,
    attempt,
    check,
    client_load,
    kept,
    load_client,
    served,
    spread,
    void,
)
from bench.proc import raise_file_limit
from bench.tokens import WIDTH, known_text

_VIEWERS = 1_000
_LIMIT_S = 5.0
_JITTER_S = 0.5
_AFTER_S = _LIMIT_S + 1  # how long the answer streams after the restart: beyond the last viewer's return
_TIMEOUT_S = 30.0
_CHANNEL, _MESSAGE = "bench:storm", "answer"
_TOKENS_PER_S = 50


class _Round(NamedTuple):
    up_s: float  # time from the kill until the new server listened
    live_s: float  # time from the kill until the last viewer was live
    burst_load: float  # load of the load client from the kill until the last viewer was live
    steady_load: float  # load of the load client after that, while the answer streamed

    def __str__(self) -> str:
        return (
            f"listening {self.up_s:.2f} s after the kill, all live {self.live_s:.2f} s; load client used "
            f"{self.burst_load:.0%} of its core until then and {self.steady_load:.0%} after"
        )


def run(options: Options) -> Iterator[Row]:
    how = {"viewers": _VIEWERS, "rounds": 1 if options.is_quick else 3}
    for kind, name in NAMES.items():
        yield from attempt(f"storm, {name}", functools.partial(storm, options, kind, **how))


def storm(
    options: Options, kind: str, *, viewers: int, rounds: int, before_s: float = 2.0, after_s: float = _AFTER_S
) -> list[Row]:
    """Return the rows of one transport. Raises `Void` if a viewer got a new start or a wrong text."""
    raise_file_limit(viewers + 100)
    times = [_round(options, kind, viewers, seed, before_s, after_s) for seed in range(rounds)]
    worst_s = max(each.live_s for each in times)
    return [
        Row(
            f"storm: {viewers:,} {NAMES[kind]} viewers, from kill -9 of the server to the last one live",
            spread([each.live_s for each in times], "s"),
            f"{_LIMIT_S:g} s",
            worst_s <= _LIMIT_S,
            note="every viewer resumed from its cursor and received the whole text",
            raw=tuple(str(each) for each in times),
        ),
        Row(
            "  of it until the new server listens, and from then to the last one",
            f"{spread([each.up_s for each in times], 's')}, {spread([each.live_s - each.up_s for each in times], 's')}",
        ),
    ]


def _round(options: Options, kind: str, viewers: int, seed: int, before_s: float, after_s: float) -> _Round:
    """Run one kill. The load client's own time counts while it dials a thousand times, which is a burst."""
    count = int((before_s + after_s) * _TOKENS_PER_S)
    with kept(options) as database, load_client() as load:
        with served(database) as server:
            port = server.port
            message: dict[str, Any] = {"channel": _CHANNEL, "id": _MESSAGE, "seed": seed, "count": count}
            load.request("connect", kind=kind, channels=[_CHANNEL] * viewers, timeout_s=_TIMEOUT_S, **server.address)
            server.child.request("stream", **message, tokens_per_s=_TOKENS_PER_S)
            load.request("pass", seconds=before_s)
            killed_s = time.monotonic()
            server.child.kill()
            load.send("come_back", within_s=_JITTER_S, timeout_s=_TIMEOUT_S, **server.address)
        with served(database, port=port) as server:
            listening_s = time.monotonic()
            back = load.read(timeout_s=_TIMEOUT_S + 5)
            _check_back(back, server, viewers)
            load.request("capture")
            drained = load.request("drain", timeout_s=_TIMEOUT_S, last=FINISHED)
            lag_ms = server.child.request("lag")["lag_ms"]  # if the producer has failed, that explains short texts
            text = known_text(seed, count)
            sent = {"id": _MESSAGE, "length": count * WIDTH, "sha256": hashlib.sha256(text.encode()).hexdigest()}
            decoded = load.request("decode")
            compared = load.request("compare", sent={_CHANNEL: sent}, **server.address)
            check(decoded, compared, drained, lag_ms=lag_ms)
    return _Round(
        up_s=listening_s - killed_s,
        live_s=back["attached_s"][-1] - killed_s,
        burst_load=back["cpu_s"] / back["seconds"],
        steady_load=client_load(drained),
    )


def _check_back(back: dict[str, Any], server: Served, viewers: int) -> None:
    """Raise `Void` unless all have resumed from their cursors while the answer still streamed."""
    status = server.call("GET", f"{_CHANNEL}/messages/{_MESSAGE}")["message"]["status"]
    if back["new_starts"]:
        what = f"{back['new_starts']} of {viewers} viewers got a new start instead of a resume"
    elif status != "streaming":
        what = f"the answer was {status} when the viewers were back, so they did not resume a stream"
    else:
        return
    raise void(what, back, lag_ms=server.child.request("lag")["lag_ms"])
