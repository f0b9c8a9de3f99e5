"""The memory of an idle viewer in the server: the slope between one thousand and five thousand viewers.

Measured with all on one channel, and with each on a channel of its own. A viewer is idle if its channel has no writes;
its connection is open and its feed waits. The kernel's memory for a socket is not included.
"""

import time
from collections.abc import Iterator

from bench.common import NAMES, Options, Row, connect, kept, load_client, served
from bench.proc import BenchError, Child, raise_file_limit, rss_bytes

_LIMITS_KB = {"sse": 13, "websocket": 17}
_FEW, _MANY = 1_000, 5_000
_QUICK_FEW, _QUICK_MANY = 500, 1_500


def run(options: Options) -> Iterator[Row]:
    if options.is_quick:
        yield from memory(options, _QUICK_FEW, _QUICK_MANY, rounds=1, has_own_channels=False)
    else:
        yield from memory(options, _FEW, _MANY, rounds=3, has_own_channels=False)
        yield from memory(options, _FEW, _MANY, rounds=3, has_own_channels=True)


def memory(options: Options, few: int, many: int, *, rounds: int, has_own_channels: bool) -> list[Row]:
    """Return the rows of both transports, each round on a server of its own. Only a shared channel has a budget."""
    per_viewer_kb: dict[str, list[float]] = {kind: [] for kind in _LIMITS_KB}
    for _ in range(rounds):
        for kind, each in per_viewer_kb.items():
            each.append(_round(options, kind, few, many, has_own_channels=has_own_channels))
    where, limits = ("each on a channel of its own", {}) if has_own_channels else ("all on one channel", _LIMITS_KB)
    return [
        Row.judged(f"memory per idle viewer of {many:,}, {NAMES[kind]}, {where}", each, "KB", limits.get(kind))
        for kind, each in per_viewer_kb.items()
    ]


def _round(options: Options, kind: str, few: int, many: int, *, has_own_channels: bool) -> float:
    raise_file_limit(many + 100)
    channels = [f"bench:{n if has_own_channels else 0}" for n in range(many)]
    with kept(options) as database, served(database) as server, load_client() as load:
        sizes = []
        for more in (channels[:few], channels[few:]):
            connect(load, kind, more, server.address)
            sizes.append(_settled_rss(server.child))
        if ended := load.request("read_for", seconds=0)["ended"]:
            raise BenchError(f"{ended} of {many} viewers were disconnected: the rest give no figure")
    return (sizes[1] - sizes[0]) / (many - few) / 1000


def _settled_rss(child: Child) -> int:
    """Return the resident memory once it no longer changes."""
    size = rss_bytes(child.pid)
    for _ in range(20):
        time.sleep(0.3)
        before, size = size, rss_bytes(child.pid)
        if abs(size - before) < 64 * 1024:
            return size
    raise BenchError("the server's memory does not settle")
