"""A soak: ten minutes of the whole load at once (`bench/plan.py`), without growth and without loss.

The file holds ten thousand conversations at the beginning. They fill caches that would otherwise grow during the soak:
SQLite's page cache of 16 MB, and the store's knowledge of the 10,000 most recently used channels. About fifty
conversations stream at any time, each in a channel of its own. They begin and end; viewers come, are disconnected,
resume and go, by SSE and WebSocket. The server's memory is read every second; its slope is that of a line fitted to the
second half.

A closed connection is a reference cycle (asyncio's transport and uvicorn's protocol refer to each other, and so to our
objects), and the garbage collector under `serve` runs rarely. Until it has run a few times, memory grows by closed
connections. The report lists the times of its runs beside the slope. At the end all viewers have gone, and the server
must have released their resources: feeds, channels, writers, tasks, threads and open files are counted before and
after, as are Python's memory blocks.
"""

import contextlib
import statistics
import time
from types import TracebackType
from typing import Any

from bench import plan
from bench.common import Options, Row, Served, Void, client_load, kept, late, load_client, served, used
from bench.proc import BenchError, Child, cpu_s, raise_file_limit, rss_bytes
from bench.tokens import known_text

_LIVE = 50
_LIMIT_KB_PER_MIN = 512.0
_JUDGED_S = 300.0  # a shorter soak has a slope but no verdict: it would only show the caches
_WARM_UP = 0.5
_STEP_S = 1.0
_OLD = 10_000  # conversations in the file before the soak
_OLD_CHARACTERS = 2_000  # number of characters of each of these conversations
_IDLE_S = 10.0  # time after which an idle channel leaves the server's memory
_AFTER_S = 20.0  # time after the end of the last conversation in which viewers must have received it
_FILL_S = 120.0
_RELEASE_S = 45.0
_TIMEOUT_S = 45.0


def run(options: Options) -> list[Row]:
    return soak(options, seconds=options.soak_s, live=_LIVE)


def soak(
    options: Options,
    *,
    seconds: float,
    live: int,
    lasts_s: tuple[float, float] = plan.LASTS_S,
    idle_s: float = _IDLE_S,
    old: int = _OLD,
) -> list[Row]:
    """Return the rows. Raises `Void` if a viewer received something wrong, or the store holds it."""
    raise_file_limit(live * 10 + 200)
    planned: dict[str, Any] = {"seconds": seconds, "live": live, "lasts_s": lasts_s}
    conversations = plan.conversations(**planned)
    with kept(options) as database, served(database, idle_s=idle_s) as server, load_client() as load:
        server.child.request("fill", count=old, characters=_OLD_CHARACTERS, reply_in_s=_FILL_S)
        before = _settled(server)
        blocks = [server.child.request("blocks")["blocks"]]
        started_s = time.monotonic() + 0.5
        server.child.request("soak", started_s=started_s, planned=planned)
        with Watch(server.child, load) as watch:
            visit = {"port": server.port, "started_s": started_s, "planned": planned}
            seen, samples = _visit_all(server, load, watch, visit)
            client = client_load({"cpu_s": watch.client_s, "seconds": watch.seconds})
            server.child.request("soaked")
            for conversation in conversations:
                _check_stored(server, conversation)
            after = _released(server, before)
            blocks.append(server.child.request("blocks")["blocks"])
    viewers_note = f"{seen['viewers']:,} viewers in {seen['connections']:,} connections, {seen['resumes']:,} resumes"
    return [
        *_memory(samples, seconds, watch.collected_s),
        Row("  conversations, all stored and shown as written", f"{len(conversations):,}", "all", True, viewers_note),
        Row(
            "  resources still held after all have gone, beyond those before",
            _beyond(before, after) or "none",
            "none",
            not _beyond(before, after),
            note=f"before {before}, after {after}",
        ),
        Row(
            "  Python's memory blocks, change from before the first conversation",
            f"{blocks[1] - blocks[0]:+,} ({(blocks[1] - blocks[0]) / blocks[0]:+.1%})",
            raw=(f"{blocks[0]:,} before, {blocks[1]:,} after",),
        ),
        Row(
            "  CPU of the server",
            f"{watch.server_s / seconds:.0%} of its core",
            note=f"{late(watch.lag_ms)}; load client used {client:.0%} of its core",
        ),
    ]


class Watch:
    """Observes a running soak; if it fails, its row has the last observations.

    A missing text may be a loss, or the effect of an overloaded machine.
    """

    def __init__(self, server: Child, load: Child) -> None:
        self._server, self._load = server, load
        self._began_s = time.monotonic()
        self._began = cpu_s(server.pid), cpu_s(load.pid)
        self.lag_ms: list[float] = []  # lateness of the producers; empty before the first reading
        self.collected_s: list[float] = []  # when the garbage collector was seen to have examined the older generations
        self.seconds = self.server_s = self.client_s = 0.0

    def request(self) -> None:
        """Request the lateness; the server replies while other processes are queried."""
        with contextlib.suppress(BenchError):  # `look` reports the error
            self._server.send("lag")

    def look(self) -> None:
        """Take the reply. Raises `BenchError` if a producer has failed, and OSError if the server has died."""
        self.lag_ms = self._server.read(timeout_s=_TIMEOUT_S)["lag_ms"]
        self.server_s, self.client_s = (
            cpu_s(child.pid) - before for child, before in zip((self._server, self._load), self._began, strict=True)
        )
        self.seconds = time.monotonic() - self._began_s

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, (BenchError, OSError)):
            error.add_note(str(self))

    def __str__(self) -> str:
        if not self.lag_ms:
            return "no observation of the producers yet"
        return (
            f"last observation: {late(self.lag_ms)}; the load client used {used(self.client_s, self.seconds)}, "
            f"the server {used(self.server_s, self.seconds)}"
        )


def _visit_all(
    server: Served, load: Child, watch: Watch, visit: dict[str, Any]
) -> tuple[dict[str, Any], list[tuple[float, int]]]:
    """Run all visits. Return the load client's counters, and the server's memory over time."""
    samples: list[tuple[float, int]] = []
    started_s, seconds = visit["started_s"], visit["planned"]["seconds"]
    collections = server.child.request("collections")["collections"]
    while True:
        watch.request()
        seen = load.request("visit", until_s=time.monotonic() + _STEP_S, **visit)
        if seen["wrong"]:
            wrong = Void(f"{seen['wrong']} visits failed, e.g. {seen['example']}")
            try:
                watch.look()
            except (BenchError, OSError) as error:  # an error of the server may be the cause of the failed visits
                wrong.add_note(f"and {error}")
            raise wrong
        watch.look()
        now_s = time.monotonic() - started_s
        if now_s <= seconds:
            samples.append((now_s, rss_bytes(server.child.pid)))
            collections, before = server.child.request("collections")["collections"], collections
            if collections != before:
                watch.collected_s.append(now_s)
        elif not seen["left"]:
            return seen, samples
        elif now_s > seconds + _AFTER_S:
            raise BenchError(f"{seen['left']} visits have not ended {_AFTER_S} s after the last conversation")


def slope(samples: list[tuple[float, int]]) -> float:
    """Return bytes per second: the slope of the best-fitting line."""
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


def _memory(samples: list[tuple[float, int]], seconds: float, collected_s: list[float]) -> list[Row]:
    warm = [sample for sample in samples if sample[0] >= seconds * _WARM_UP]
    if len(warm) < 3:
        raise BenchError(f"{seconds:g} s are too short for a slope")
    kb_per_min = slope(warm) * 60 / 1000
    is_judged = seconds >= _JUDGED_S
    times = {"at first": samples[0], "at half time": warm[0], "at the end": warm[-1]}
    sizes = ", ".join(f"{size / 1e6:.1f} MB {when}" for when, (_, size) in times.items())
    collected = ", ".join(f"{at_s:.0f}" for at_s in collected_s)
    return [
        Row(
            f"soak of {seconds / 60:.3g} min: growth of the server's memory in the second half",
            f"{kb_per_min:+,.0f} KB/min",
            f"{_LIMIT_KB_PER_MIN:g} KB/min" if is_judged else "",
            kb_per_min <= _LIMIT_KB_PER_MIN if is_judged else None,
            note=f"{sizes}; the garbage collector examined older generations "
            + (f"at {collected} s" if collected else "never"),
            raw=(f"MB every {_STEP_S:g} s: " + " ".join(f"{size / 1e6:.1f}" for _, size in samples),),
        )
    ]


def _check_stored(server: Served, conversation: plan.Conversation) -> None:
    message = server.call("GET", f"{conversation.channel}/messages/{plan.MESSAGE}")["message"]
    text = "".join(part["text"] for part in message["parts"])
    if (message["status"], text) != ("complete", known_text(conversation.seed, conversation.tokens)):
        raise Void(
            f"{conversation.channel} is stored as {message['status']} with {len(text)} characters, or other text"
        )


def _settled(server: Served) -> dict[str, Any]:
    """Return the resources of an idle server after its first reply, so that lazily opened ones count as its own."""
    server.call("GET", "bench:nothing")
    held = _released(server, {"channels": 0, "feeds": 0, "writers": 0, "waiting": 0})
    if held["channels"]:
        raise BenchError(f"{held['channels']} idle channels have not left memory in {_RELEASE_S:g} s")
    return held


def _released(server: Served, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the held resources once they are no more than `wanted`, or after a timeout."""
    until_s = time.monotonic() + _RELEASE_S
    while _beyond(wanted, held := server.child.request("held")) and time.monotonic() < until_s:
        time.sleep(0.5)  # the housekeeping of the server's process takes some time
    last: dict[str, Any] = held
    return last


def _beyond(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(f"{after[name] - before[name]} {name}" for name in before if after[name] > before[name])
