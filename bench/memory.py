"""What an idle viewer costs in the server's memory: the slope between a thousand viewers and three thousand."""

import tempfile
import time
from pathlib import Path

from bench.common import Options, Row, load_client, served
from bench.proc import BenchError, Child, raise_file_limit, rss_bytes

_LIMITS_KB = {"sse": 15, "websocket": 25}
_TIMEOUT_S = 30.0


def run(options: Options) -> list[Row]:
    few, many = (500, 1_500) if options.is_quick else (1_000, 3_000)
    raise_file_limit(many + 100)
    rows = [_row(options, kind, few, many, has_own_channels=False) for kind in _LIMITS_KB]
    if not options.is_quick:
        rows += [_row(options, kind, few, many, has_own_channels=True) for kind in _LIMITS_KB]
    return rows


def _row(options: Options, kind: str, few: int, many: int, *, has_own_channels: bool) -> Row:
    channels = [f"bench:{n if has_own_channels else 0}" for n in range(many)]
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        served(Path(directory) / "memory.db") as server,
        load_client() as load,
    ):
        sizes = []
        for more in (channels[:few], channels[few:]):
            load.ask("connect", kind=kind, port=server.port, channels=more, timeout_s=_TIMEOUT_S)
            sizes.append(_settled_rss(server.child))
    per_viewer_kb = (sizes[1] - sizes[0]) / (many - few) / 1000
    what = f"memory per idle viewer, {'SSE' if kind == 'sse' else 'WebSocket'}, "
    if has_own_channels:
        return Row(what + "each on a channel of its own", f"{per_viewer_kb:.1f} KB")
    limit = _LIMITS_KB[kind]
    return Row(what + "all on one channel", f"{per_viewer_kb:.1f} KB", f"{limit} KB", per_viewer_kb <= limit)


def _settled_rss(child: Child) -> int:
    """Resident memory once it no longer changes."""
    size = rss_bytes(child.pid)
    for _ in range(20):
        time.sleep(0.3)
        before, size = size, rss_bytes(child.pid)
        if abs(size - before) < 64 * 1024:
            return size
    raise BenchError("the server's memory does not come to rest")
