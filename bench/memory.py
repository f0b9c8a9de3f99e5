"""The memory of an idle viewer in the server: the slope between one thousand and five thousand viewers.

Measured with all on one channel, and with each on a channel of its own. A viewer is idle if its channel has no writes;
its connection is open and its feed waits. The kernel's memory for a socket is not included.
"""

import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench.common import NAMES, Options, Row, kept, load_client, served, spread
from bench.proc import BenchError, Child, raise_file_limit, rss_bytes

_LIMITS_KB = {"sse": 15, "websocket": 17}
_FEW, _MANY = 1_000, 5_000
_QUICK_FEW, _QUICK_MANY = 500, 1_500
_TIMEOUT_S = 60.0


class _Round(NamedTuple):
    few: int
    many: int
    sizes: tuple[int, int]  # sizes of the server, with few and with many viewers

    @property
    def per_viewer_kb(self) -> float:
        return (self.sizes[1] - self.sizes[0]) / (self.many - self.few) / 1000

    def __str__(self) -> str:
        return f"{self.few:,} viewers: {self.sizes[0]:,} B, {self.many:,} viewers: {self.sizes[1]:,} B"


def run(options: Options) -> Iterator[Row]:
    if options.is_quick:
        yield from memory(options, _QUICK_FEW, _QUICK_MANY, rounds=1, has_own_channels=False)
    else:
        yield from memory(options, _FEW, _MANY, rounds=3, has_own_channels=False)
        yield from memory(options, _FEW, _MANY, rounds=3, has_own_channels=True)


def memory(options: Options, few: int, many: int, *, rounds: int, has_own_channels: bool) -> list[Row]:
    """Return the rows of both transports, each round on a server of its own. Only a shared channel has a budget."""
    found: dict[str, list[_Round]] = {kind: [] for kind in _LIMITS_KB}
    for _ in range(rounds):
        for kind, each in found.items():
            each.append(_round(options, kind, few, many, has_own_channels=has_own_channels))
    where = "each on a channel of its own" if has_own_channels else "all on one channel"
    rows = []
    for kind, each in found.items():
        per_viewer_kb = [one.per_viewer_kb for one in each]
        limit = None if has_own_channels else _LIMITS_KB[kind]
        rows.append(
            Row(
                f"memory per idle viewer of {many:,}, {NAMES[kind]}, {where}",
                spread(per_viewer_kb, "KB"),
                f"{limit} KB" if limit is not None else "",
                statistics.median(per_viewer_kb) <= limit if limit is not None else None,
                raw=tuple(str(one) for one in each),
            )
        )
    return rows


def _round(options: Options, kind: str, few: int, many: int, *, has_own_channels: bool) -> _Round:
    raise_file_limit(many + 100)
    channels = [f"bench:{n if has_own_channels else 0}" for n in range(many)]
    with kept(options) as database, served(database) as server, load_client() as load:
        sizes = []
        for more in (channels[:few], channels[few:]):
            load.request(
                "connect", kind=kind, channels=more, timeout_s=_TIMEOUT_S, reply_in_s=_TIMEOUT_S + 5, **server.address
            )
            sizes.append(_settled_rss(server.child))
        if ended := load.request("pass", seconds=0)["ended"]:
            raise BenchError(f"{ended} of {many} viewers were disconnected: the rest give no figure")
    return _Round(few, many, (sizes[0], sizes[1]))


def _settled_rss(child: Child) -> int:
    """Return the resident memory once it no longer changes."""
    size = rss_bytes(child.pid)
    for _ in range(20):
        time.sleep(0.3)
        before, size = size, rss_bytes(child.pid)
        if abs(size - before) < 64 * 1024:
            return size
    raise BenchError("the server's memory does not settle")
