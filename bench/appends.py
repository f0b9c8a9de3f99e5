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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.common import TIMEOUT_S, Options, Row, connect, drain, judge, load_client, number, spread
from bench.pages import page_rows
from bench.peers.system import Ours, ours
from bench.peers.xadd import Xadd, xadd
from bench.proc import BenchError, Child, raise_file_limit

_LIMIT = 5.0
_AT_ONCE = 20  # number of tokens of one await, in the pipelined variant
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


def run(options: Options) -> Iterator[Row]:
    return measure(options.directory, QUICK if options.is_quick else FULL)


def measure(directory: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield all rows, with databases and Redis's files below `directory`."""
    raise_file_limit(sizes.producers * _FILES_PER_PRODUCER + 200)
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
        yield from _each_rows(alternate(systems, client, sizes, at_once=1), sizes)
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
        connect(client, system.kinds[0], channels[:watched], {"port": system.port})
    used_s = system.cpu_s()
    done = child.request("append", seconds=sizes.seconds, at_once=at_once, reply_in_s=sizes.seconds + TIMEOUT_S)
    used_s = system.cpu_s() - used_s
    # counted since its start, because a short round may change only pages that are already dirty
    if not system.written_bytes():
        raise BenchError("no bytes were written to a disk: choose a directory on a disk with --dir")
    tokens = done["tokens"] - before
    sent = child.request("finish", reply_in_s=TIMEOUT_S)["messages"]
    verify(system, client, channels, sent)
    return Round(tokens / done["seconds"], used_s / tokens * 1e6)


def verify(system: Appending, client: Child, channels: list[str], sent: dict[str, object]) -> None:
    """Read every conversation back from its beginning. Raises `Void` unless it equals the acknowledged tokens.

    A viewer of the capture is still connected, and must show the same text.
    """
    connect(client, system.kinds[0], channels, {"port": system.port})
    drained = drain(client, None)
    judge(client, drained, sent, {"port": system.port} if isinstance(system, Ours) else None, is_steady=False)
    client.request("close")


def _ratios(rounds: dict[str, list[Round]]) -> list[float]:
    full, always = rounds["Tenuto, FULL"], rounds["XADD, AOF always"]
    return [one.tokens_per_s / other.tokens_per_s for one, other in zip(full, always, strict=True)]


def _each_rows(rounds: dict[str, list[Round]], sizes: Sizes) -> list[Row]:
    what = f"durable appends, {sizes.producers} producers that await each token: SQLite FULL against XADD, AOF always"
    ratios = _ratios(rounds)
    return [Row.judged(what, ratios, "×", _LIMIT, is_least=True), *_rates(rounds)]


def _watched_row(rounds: dict[str, list[Round]]) -> Row:
    what = "  the same while one of the conversations has a viewer"
    return Row.judged(what, _ratios(rounds), "×", _LIMIT, is_least=True)


def _many_rows(rounds: dict[str, list[Round]]) -> list[Row]:
    what = f"the same, {_AT_ONCE} tokens at a time (XADD: one pipeline)"
    return [Row(what, spread(_ratios(rounds), "×")), *_rates(rounds)]


def _rates(rounds: dict[str, list[Round]]) -> Iterator[Row]:
    for name, each in rounds.items():
        rates = [one.tokens_per_s for one in each]
        yield Row(
            f"  {name}",
            f"{number(statistics.median(rates))}/s ({number(min(rates))}–{number(max(rates))})",
            note=f"{spread([one.us_per_token for one in each], 'µs')} of CPU per token",
        )
