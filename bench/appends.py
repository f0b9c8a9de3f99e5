"""Durable appends per second beside the usual design: an SSE endpoint with one Redis XADD per token.

On both sides, 500 producers run in the server's process. Each awaits the storage of its token before it makes the next,
as a producer must if no shown token may be lost. SQLite with `synchronous=FULL` runs against an append-only file with
`appendfsync always`: both survive a power cut. Two more variants have no budget: 20 tokens at a time, and both sides
with settings that can lose the last second or moments (`everysec`, `NORMAL`). The main figures have no viewers. This
favours both sides: in the usual design each viewer has a Redis connection and receives every token separately, and
without viewers Tenuto puts eight times as many rows into a commit. So the rate is measured once more with one viewer.

Time is the CPU time of the whole process tree, redis-server included, all on one core. Then every conversation is read
back through its resume endpoint and compared with the tokens that were acknowledged as stored. A missing, additional or
changed token makes the run void. At the end, a page of 2,000 tokens is loaded and resumed on both.
"""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import Options, Row, check, load_client, number, spread
from bench.pages import page_rows
from bench.peers.ours import Ours, ours
from bench.peers.xadd import Xadd, xadd
from bench.proc import BenchError, Child, cpu_s, raise_file_limit

__all__ = ["FULL", "QUICK", "Appending", "Round", "Sizes", "alternate", "measure", "raw", "run", "verify"]

_LIMIT = 5.0
_AT_ONCE = 20  # number of tokens of one await, in the pipelined variant
_TIMEOUT_S = 60.0
_FILES_PER_PRODUCER = 3  # a viewer, a connection to Redis, and one spare

Appending = Ours | Xadd


@dataclass(frozen=True, kw_only=True)
class Sizes:
    producers: int = 500
    rounds: int = 3
    seconds: float = 4.0
    warm_s: float = 0.5  # time of work before the counters start
    pages: int = 10  # number of loads of the page of 2,000 tokens, for each kind of load
    page_tokens: int = 2_000


FULL = Sizes()
QUICK = Sizes(rounds=2, seconds=1.0, pages=3)


class Round(NamedTuple):
    tokens_per_s: float
    us_per_token: float
    redis_us_per_token: float
    wait_ms: list[float]  # time until a token is durable: median and p99
    fewest: int  # number of tokens of the slowest producer

    def __str__(self) -> str:
        redis = f", {self.redis_us_per_token:.1f} of them Redis's" if self.redis_us_per_token else ""
        return (
            f"{self.tokens_per_s:,.0f} tokens/s, {self.us_per_token:.1f} µs each{redis}; waits p50 "
            f"{self.wait_ms[0]:.1f} ms, p99 {self.wait_ms[1]:.1f} ms; slowest producer {self.fewest:,} tokens"
        )


def run(options: Options) -> Iterator[Row]:
    return measure(options.directory, QUICK if options.is_quick else FULL)


def _try_xadd(folder: Path) -> None:
    """Start the Redis system once, to see whether it works."""
    with xadd(folder, "always", pool=1):
        pass


PEERS = {"XADD per token": _try_xadd}


def _files(sizes: Sizes) -> int:
    return sizes.producers * _FILES_PER_PRODUCER + 200


def measure(directory: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield all rows, with databases and Redis's files below `directory`."""
    raise_file_limit(_files(sizes))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory)))
        for name in ("always", "everysec"):
            (folder / name).mkdir()
        systems: dict[str, Appending] = {
            "Tenuto, FULL": stack.enter_context(ours(folder / "full.db")),
            "XADD, AOF always": stack.enter_context(xadd(folder / "always", "always")),
            "Tenuto, NORMAL": stack.enter_context(ours(folder / "normal.db", synchronous="normal")),
            "XADD, AOF everysec": stack.enter_context(xadd(folder / "everysec", "everysec")),
        }
        client = stack.enter_context(load_client())
        compared = {name: systems[name] for name in ("Tenuto, FULL", "XADD, AOF always")}
        full, always = compared.values()
        yield from _each_rows(alternate(systems, client, sizes, at_once=1), sizes, always.version)
        yield _watched_row(alternate(compared, client, sizes, at_once=1, watched=1))
        yield from _many_rows(alternate(systems, client, sizes, at_once=_AT_ONCE))
        yield from page_rows([full, always], tokens=sizes.page_tokens, rounds=sizes.pages)


def alternate(
    systems: Mapping[str, Appending], client: Child, sizes: Sizes, *, at_once: int, watched: int = 0
) -> dict[str, list[Round]]:
    """Run rounds of all systems in turn, because a noisy machine drifts. `watched` conversations have a viewer."""
    rounds: dict[str, list[Round]] = {name: [] for name in systems}
    for n in range(sizes.rounds):
        for name, system in systems.items():
            tag = f"{at_once}-{watched}-{n}"
            rounds[name].append(_round(system, client, sizes, at_once=at_once, watched=watched, tag=tag))
    return rounds


def _round(system: Appending, client: Child, sizes: Sizes, *, at_once: int, tag: str, watched: int = 0) -> Round:
    channels = [f"bench:append-{tag}-{n}" for n in range(sizes.producers)]
    child = system.child
    child.request("begin", channels=channels)
    # Open connections and build lazy objects before the counters start.
    before = child.request("append", seconds=sizes.warm_s, at_once=at_once)["tokens"]
    if watched:
        viewers: dict[str, Any] = {"kind": system.kinds[0], "port": system.port, "channels": channels[:watched]}
        client.request("connect", **viewers, timeout_s=_TIMEOUT_S)
    used_s, redis_s = system.cpu_s(), _redis_s(system)
    done = child.request("append", seconds=sizes.seconds, at_once=at_once, reply_in_s=sizes.seconds + _TIMEOUT_S)
    used_s, redis_s = system.cpu_s() - used_s, _redis_s(system) - redis_s
    # counted since its start, because a short round may change only pages that are already dirty
    if not system.written_bytes():
        raise BenchError("no bytes were written to a disk: choose a directory on a disk with --dir")
    tokens = done["tokens"] - before
    sent = child.request("finish", reply_in_s=_TIMEOUT_S)["messages"]
    verify(system, client, channels, sent)
    return Round(
        tokens_per_s=tokens / done["seconds"],
        us_per_token=used_s / tokens * 1e6,
        redis_us_per_token=redis_s / tokens * 1e6,
        wait_ms=done["wait_ms"],
        fewest=done["fewest"],
    )


def _redis_s(system: Appending) -> float:
    return cpu_s(system.pids[1]) if isinstance(system, Xadd) else 0.0


def verify(system: Appending, client: Child, channels: list[str], sent: dict[str, object]) -> None:
    """Read every conversation back from its beginning. Raises `Void` unless it equals the acknowledged tokens.

    A viewer of the capture is still connected, and must show the same text.
    """
    client.request("connect", kind=system.kinds[0], port=system.port, channels=channels, timeout_s=_TIMEOUT_S)
    drained = client.request("drain", timeout_s=_TIMEOUT_S, reply_in_s=_TIMEOUT_S + 10)
    decoded = client.request("decode", reply_in_s=_TIMEOUT_S)
    stored_at = system.port if isinstance(system, Ours) else None
    check(decoded, client.request("compare", sent=sent, port=stored_at, reply_in_s=_TIMEOUT_S), drained)
    client.request("close")


def _ratios(rounds: dict[str, list[Round]]) -> list[float]:
    full, always = rounds["Tenuto, FULL"], rounds["XADD, AOF always"]
    return [one.tokens_per_s / other.tokens_per_s for one, other in zip(full, always, strict=True)]


def _each_rows(rounds: dict[str, list[Round]], sizes: Sizes, version: str) -> list[Row]:
    full, always = rounds["Tenuto, FULL"], rounds["XADD, AOF always"]
    ratios = _ratios(rounds)
    median = statistics.median(ratios)
    what = f"durable appends, {sizes.producers} producers that await each token: SQLite FULL against XADD, AOF always"
    costs = [other.us_per_token / one.us_per_token for one, other in zip(full, always, strict=True)]
    note = f"tokens per second of CPU, which a noisy machine disturbs less: {spread(costs, '×')}\n{version}"
    return [
        Row(what, spread(ratios, "×"), f"{_LIMIT:.0f} ×", median >= _LIMIT, note, raw=raw(rounds)),
        *(_row(f"  {name}", each) for name, each in rounds.items()),
    ]


def _watched_row(rounds: dict[str, list[Round]]) -> Row:
    ratios = _ratios(rounds)
    is_met = statistics.median(ratios) >= _LIMIT
    what = "  the same while one of the conversations has a viewer"
    return Row(what, spread(ratios, "×"), f"{_LIMIT:.0f} ×", is_met, raw=raw(rounds))


def _many_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    what = f"the same, {_AT_ONCE} tokens at a time (XADD: one pipeline)"
    return [
        Row(what, spread(_ratios(rounds), "×"), raw=raw(rounds)),
        *(_row(f"  {name}", each) for name, each in rounds.items()),
    ]


def _row(what: str, rounds: Sequence[Round]) -> Row:
    rates = [each.tokens_per_s for each in rounds]
    costs = [each.us_per_token for each in rounds]
    waits = statistics.median(each.wait_ms[1] for each in rounds)
    return Row(
        what,
        f"{number(statistics.median(rates))}/s ({number(min(rates))}–{number(max(rates))})",
        note=f"{number(statistics.median(costs))} µs of CPU per token ({number(min(costs))}–{number(max(costs))}); "
        f"durable after {number(waits)} ms (p99)",
    )


def raw(rounds: dict[str, list[Round]]) -> tuple[str, ...]:
    return tuple(f"{name}, round {n + 1}: {each}" for name, all in rounds.items() for n, each in enumerate(all))
