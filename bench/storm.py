"""A storm: a thousand viewers of a streaming answer, whose server is killed with `kill -9` and started again.

Each viewer dials again with its cursor, after up to half a second of jitter as a client does, and repeats until the
server listens. The agent dies with its server and continues its message after the restart (`hub.adopt`). The time
counts from the kill: it includes the end of the old process, the start of the new one, reading the file, and a thousand
resumes. All viewers must resume, and all must have the whole text in the end, which is known beforehand.
"""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.common import (
    NAMES,
    TIMEOUT_S,
    Options,
    Row,
    Served,
    attempt,
    connect,
    drain,
    judge,
    kept,
    load_client,
    served,
    spread,
    void,
)
from bench.proc import Child, raise_file_limit
from bench.tokens import known_text, summary

LIMIT_S = 2.0
_VIEWERS = 1_000
_JITTER_S = 0.5
_AFTER_S = 6.0  # how long the answer streams after the restart: beyond the last viewer's return
_CHANNEL = "bench:storm"
MESSAGE = "answer"
TOKENS_PER_S = 50


class _Round(NamedTuple):
    up_s: float  # time from the kill until the new server listened
    live_s: float  # time from the kill until the last viewer was live


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
    what = f"storm: {viewers:,} {NAMES[kind]} viewers, from kill -9 of the server to the last one live"
    up, live = (spread(values, "s") for values in ([one.up_s for one in times], [o.live_s - o.up_s for o in times]))
    return [
        Row.judged(what, [one.live_s for one in times], "s", LIMIT_S, by=max),
        Row("  of it until the new server listens, and from then to the last one", f"{up}, {live}"),
    ]


def _round(options: Options, kind: str, viewers: int, seed: int, before_s: float, after_s: float) -> _Round:
    """Run one kill. The load client's own time counts while it dials a thousand times, which is a burst."""
    texts = {_CHANNEL: (seed, int((before_s + after_s) * TOKENS_PER_S))}
    with kept(options) as database, load_client() as load:
        with served(database) as server:
            port = server.port
            connect(load, kind, [_CHANNEL] * viewers, server.address)
            begin([server], texts)
            load.request("read_for", seconds=before_s)
            killed_s = kill(load, server, [server])
        with served(database, port=port) as server:
            listening_s = time.monotonic()
            live_s = come_back(load, server, texts)
            load.request("capture")
            end(load, [server], texts)
    return _Round(listening_s - killed_s, live_s - killed_s)


def begin(servers: Sequence[Served], texts: Mapping[str, tuple[int, int]]) -> None:
    """Have each of `servers` stream the answer to one of the channels of `texts`, each with a seed and a length."""
    for server, (channel, (seed, count)) in zip(servers, texts.items(), strict=True):
        message: dict[str, Any] = {"channel": channel, "id": MESSAGE, "seed": seed, "count": count}
        server.child.request("stream", **message, tokens_per_s=TOKENS_PER_S)


def kill(load: Child, server: Served, others: Sequence[Served]) -> float:
    """Kill `server`, and have its viewers dial `others` in turn. Return when it was killed."""
    killed_s = time.monotonic()
    server.child.kill()
    ports = [other.port for other in others]
    load.send("come_back", within_s=_JITTER_S, timeout_s=TIMEOUT_S, ports=ports, prefix=server.prefix)
    return killed_s


def come_back(load: Child, server: Served, texts: Mapping[str, tuple[int, int]]) -> float:
    """Return when the last viewer is live. Raises `Void` unless all have resumed while the answers still streamed."""
    back = load.read(timeout_s=TIMEOUT_S + 5)
    stati = [server.call("GET", f"{channel}/messages/{MESSAGE}")["message"]["status"] for channel in texts]
    if back["new_starts"]:
        what = f"{back['new_starts']} viewers got a new start instead of a resume"
    elif {*stati} != {"streaming"}:
        what = f"the answers were {stati} when the viewers were back, so they did not resume a stream"
    else:
        return float(back["attached_s"][-1])
    raise void(what, back)


def end(load: Child, servers: Sequence[Served], texts: Mapping[str, tuple[int, int]]) -> None:
    """Check that all viewers, which are captured, and the store have the whole texts. Raises `Void`."""
    drained = drain(load)
    for server in servers:
        server.child.request("check")  # a failed producer explains short texts
    sent = {channel: summary(known_text(*of), MESSAGE) for channel, of in texts.items()}
    judge(load, drained, sent, servers[0].address)
