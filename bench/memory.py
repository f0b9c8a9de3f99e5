"""What an idle viewer costs in the server's memory: the slope between a thousand viewers and five thousand.

All on one channel, and each on a channel of its own. A viewer is idle when nothing is written; its connection is open
and its feed waits. What the kernel holds for a socket is not in it.
"""

import time
from collections.abc import Iterator

from bench.common import Options, Row, kept, load_client, served
from bench.proc import BenchError, Child, raise_file_limit, rss_bytes

_LIMITS_KB = {"sse": 15, "websocket": 25}
_TIMEOUT_S = 60.0


def run(options: Options) -> Iterator[Row]:
    few, many = (500, 1_500) if options.is_quick else (1_000, 5_000)
    for has_own_channels in (False,) if options.is_quick else (False, True):
        for kind in _LIMITS_KB:
            yield per_viewer(options, kind, few, many, has_own_channels=has_own_channels)


def per_viewer(options: Options, kind: str, few: int, many: int, *, has_own_channels: bool) -> Row:
    """One row: kind, and whether each has a channel of its own."""
    raise_file_limit(many + 100)
    channels = [f"bench:{n if has_own_channels else 0}" for n in range(many)]
    with kept(options) as database, served(database) as server, load_client() as load:
        sizes = []
        for more in (channels[:few], channels[few:]):
            load.ask(
                "connect", kind=kind, channels=more, timeout_s=_TIMEOUT_S, answer_in_s=_TIMEOUT_S + 5, **server.address
            )
            sizes.append(_settled_rss(server.child))
    per_viewer_kb = (sizes[1] - sizes[0]) / (many - few) / 1000
    what = f"memory per idle viewer of {many:,}, {'SSE' if kind == 'sse' else 'WebSocket'}, "
    measured, raw = f"{per_viewer_kb:.1f} KB", (f"{few:,} viewers: {sizes[0]:,} B, {many:,} viewers: {sizes[1]:,} B",)
    if has_own_channels:
        return Row(what + "each on a channel of its own", measured, raw=raw)
    limit = _LIMITS_KB[kind]
    return Row(what + "all on one channel", measured, f"{limit} KB", per_viewer_kb <= limit, raw=raw)


def _settled_rss(child: Child) -> int:
    """Resident memory once it no longer changes."""
    size = rss_bytes(child.pid)
    for _ in range(20):
        time.sleep(0.3)
        before, size = size, rss_bytes(child.pid)
        if abs(size - before) < 64 * 1024:
            return size
    raise BenchError("the server's memory does not come to rest")
