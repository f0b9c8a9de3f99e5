"""A soak: ten minutes of the whole load at once, without growth and without loss.

The file holds ten thousand conversations at the beginning. They fill caches that would otherwise grow during the soak:
SQLite's page cache of 16 MB, and the store's knowledge of the 10,000 most recently used channels. About fifty
conversations stream at any time, each in a channel of its own. They begin and end; viewers come, are disconnected,
resume and go, by SSE and WebSocket. The server's memory is read every second; its slope is that of a line fitted to the
second half.

A closed connection is a reference cycle (asyncio's transport and uvicorn's protocol refer to each other, and so to our
objects), and the garbage collector under `serve` runs rarely. Until it has run a few times, memory grows by closed
connections. At the end all viewers have gone, and the server must have released their resources: feeds, channels,
writers, tasks, threads and open files are counted before and after, as are Python's memory blocks.

All events are planned with their times from a seed: conversations begin at a steady pace, stream for a while and end.
Viewers come and go, by SSE and WebSocket, are disconnected, and resume with their cursors. Times are seconds since the
beginning of the soak.
"""

import asyncio
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

from bench.common import CLIENT_LIMIT, Options, Row, Served, Void, kept, served
from bench.peers.system import on_core
from bench.proc import CLIENT_CORE, BenchError, cpu_s, raise_file_limit, rss_bytes
from bench.tokens import known_text
from proof.wirecheck import SseViewer, WsViewer

MESSAGE = "answer"  # the id of each conversation's message
TOKENS_PER_S = 20
LASTS_S = (2.0, 20.0)  # minimum and maximum of the time from the first token of a conversation to its last
_VIEWERS = (1, 4)
_AWAY_S = 2.0  # maximum time between a cut and the reconnect


@dataclass(frozen=True)
class Visit:
    """One viewer's stay. `cuts` are pairs of times: of the disconnect and of the reconnect."""

    kind: str
    arrives_s: float
    leaves_s: float | None  # None: it stays until it shows the whole answer
    cuts: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Conversation:
    """One answer in a channel of its own; its text is that of `seed`."""

    seed: int
    starts_s: float
    tokens: int
    visits: tuple[Visit, ...]

    @property
    def channel(self) -> str:
        return f"bench:soak-{self.seed}"


def conversations(
    *, seconds: float, live: int, lasts_s: tuple[float, float] = LASTS_S, seed: int = 1
) -> list[Conversation]:
    """Return conversations that end within `seconds`, of which about `live` stream at any time."""
    random_ = random.Random(seed)
    found: list[Conversation] = []
    starts_s = 0.0
    while (starts_s := starts_s + sum(lasts_s) / 2 / live) < seconds:
        length_s = random_.uniform(*lasts_s)
        visits = tuple(_drawn_visit(random_, starts_s, length_s) for _ in range(random_.randint(*_VIEWERS)))
        if starts_s + length_s < seconds:
            found.append(Conversation(len(found), starts_s, int(length_s * TOKENS_PER_S), visits))
    return found


def _drawn_visit(random_: random.Random, starts_s: float, lasts_s: float) -> Visit:
    """Return a visit: some begin before the first token, some late, some after the end; a third end early."""
    arrives_s = starts_s + random_.uniform(-0.1, 1.1) * lasts_s
    ends_s = max(arrives_s, starts_s + lasts_s)
    leaves_s = random_.uniform(arrives_s, ends_s) if random_.random() < 1 / 3 else None
    until_s = ends_s if leaves_s is None else leaves_s
    cuts: list[tuple[float, float]] = []
    while random_.random() < 0.5 and (not cuts or cuts[-1][1] < until_s):  # at the end, it comes for the rest
        cut_s = random_.uniform(cuts[-1][1] if cuts else arrives_s, until_s)
        cuts.append((cut_s, cut_s + random_.uniform(0, _AWAY_S)))
    return Visit(random_.choice(("sse", "websocket")), max(0.0, arrives_s), leaves_s, tuple(cuts))


_LIVE = 50
_LIMIT_KB_PER_MIN = 512.0
_JUDGED_S = 300.0  # a shorter soak has a slope but no verdict: it would only show the caches
_WARM_UP = 0.5
_STEP_S = 1.0
_OLD = 10_000  # conversations in the file before the soak
_OLD_CHARACTERS = 2_000  # number of characters of each of these conversations
_IDLE_S = 10.0  # time after which an idle channel leaves the server's memory
_PATIENCE_S = 15.0  # time after the end of a conversation in which viewers must show all of it
_FILL_S = 120.0
_RELEASE_S = 45.0

Samples = list[tuple[float, int]]  # times, and the server's memory then


def run(options: Options) -> list[Row]:
    return soak(options, seconds=options.soak_s, live=_LIVE)


def soak(
    options: Options,
    *,
    seconds: float,
    live: int,
    lasts_s: tuple[float, float] = LASTS_S,
    idle_s: float = _IDLE_S,
    old: int = _OLD,
) -> list[Row]:
    """Return the rows. Raises `Void` if a viewer received something wrong, or the store holds it."""
    raise_file_limit(live * 10 + 200)
    planned = conversations(seconds=seconds, live=live, lasts_s=lasts_s)
    with kept(options) as database, served(database, idle_s=idle_s) as server:
        server.child.request("fill", count=old, characters=_OLD_CHARACTERS, reply_in_s=_FILL_S)
        before = _settled(server)
        blocks = [server.child.request("blocks")["blocks"]]
        started_s, before_s = time.monotonic() + 0.5, cpu_s(server.child.pid)
        with on_core(CLIENT_CORE):
            samples, viewers = asyncio.run(_visit_all(server, planned, started_s, seconds))
        used_s = cpu_s(server.child.pid) - before_s
        for conversation in planned:
            _check_stored(server, conversation)
        after = _released(server, before)
        blocks.append(server.child.request("blocks")["blocks"])
    left = _beyond(before, after)
    change = f"{blocks[1] - blocks[0]:+,} ({(blocks[1] - blocks[0]) / blocks[0]:+.1%})"
    return [
        _memory(samples, seconds),
        Row("  conversations, all stored and shown as written", f"{len(planned):,}", "all", True, viewers),
        Row("  resources still held after all have gone, beyond those before", left or "none", "none", not left),
        Row("  Python's memory blocks, change from before the first conversation", change),
        Row("  CPU of the server", f"{used_s / seconds:.0%} of its core"),
    ]


async def _visit_all(
    server: Served, planned: list[Conversation], started_s: float, seconds: float
) -> tuple[Samples, str]:
    """Run all visits. Return the server's memory over time, and the number of viewers. Raises the first failure."""
    client_s = time.process_time()
    visits = [
        asyncio.create_task(_visit(server.port, started_s, conversation, visit))
        for conversation in planned
        for visit in conversation.visits
    ]
    writing = [asyncio.create_task(_write(server, started_s, conversation)) for conversation in planned]
    running, samples = {*visits, *writing}, Samples()
    try:
        while running:
            done, running = await asyncio.wait(running, timeout=_STEP_S, return_when=asyncio.FIRST_EXCEPTION)
            for one in done:
                one.result()
            server.child.request("check")  # fails if a producer has failed
            if (now_s := time.monotonic() - started_s) <= seconds:
                samples.append((now_s, rss_bytes(server.child.pid)))
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)  # each closes its connection
    if (load := (time.process_time() - client_s) / seconds) > CLIENT_LIMIT:
        raise BenchError(f"the viewers used {load:.0%} of their core, so the figure would be theirs")
    resumes = sum(one.result() for one in visits)
    return samples, f"{len(visits):,} viewers, {resumes:,} resumes; they used {load:.0%} of their core"


async def _write(server: Served, started_s: float, conversation: Conversation) -> int:
    """Have the server stream a conversation from its planned time on."""
    await asyncio.sleep(max(0.0, started_s + conversation.starts_s - time.monotonic()))
    message: dict[str, Any] = {"channel": conversation.channel, "id": MESSAGE, "seed": conversation.seed}
    server.child.request("stream", **message, count=conversation.tokens, tokens_per_s=TOKENS_PER_S)
    return 0


async def _visit(port: int, started_s: float, conversation: Conversation, visit: Visit) -> int:
    """Follow a conversation as planned. Return the number of resumes. Raises `Void` unless it shows what is written.

    A viewer that leaves early must show a beginning of the text, a viewer that stays all of it.
    """

    async def until(at_s: float) -> None:
        await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))

    viewer = (SseViewer if visit.kind == "sse" else WsViewer)("127.0.0.1", port, conversation.channel)
    checker, channel, text = viewer.checker, conversation.channel, known_text(conversation.seed, conversation.tokens)
    await until(visit.arrives_s)
    async with viewer:
        for cut_s, back_s in visit.cuts:
            await until(cut_s)
            if viewer.is_over:
                raise Void(f"the server ended a connection on {channel}")
            await viewer.close()
            await until(back_s)
            await viewer.reconnect()
        if visit.leaves_s is not None:
            await until(visit.leaves_s)
        else:
            late_s = max(time.monotonic(), started_s + conversation.starts_s + conversation.tokens / TOKENS_PER_S)
            try:
                await viewer.until(
                    lambda: checker.status(MESSAGE) == "complete", late_s + _PATIENCE_S - time.monotonic()
                )
            except TimeoutError as error:
                raise Void(f"{channel} is not shown to its end: {error}") from None
    shown = checker.text(MESSAGE)
    if checker.violations:
        raise Void(f"{channel}: {checker.violations[0]}")
    if not text.startswith(shown) or (visit.leaves_s is None and shown != text):
        raise Void(f"{channel}: {len(shown)} of {len(text)} characters are shown at the end, or other text")
    if checker.new_starts > 1:
        raise Void(f"{channel}: a reconnect was a new start")
    return checker.resumes


def slope(samples: Samples) -> float:
    """Return bytes per second: the slope of the best-fitting line."""
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


def _memory(samples: Samples, seconds: float) -> Row:
    warm = [sample for sample in samples if sample[0] >= seconds * _WARM_UP]
    if len(warm) < 3:
        raise BenchError(f"{seconds:g} s are too short for a slope")
    kb_per_min = slope(warm) * 60 / 1000
    is_judged = seconds >= _JUDGED_S
    times = {"at first": samples[0], "at half time": warm[0], "at the end": warm[-1]}
    return Row(
        f"soak of {seconds / 60:.3g} min: growth of the server's memory in the second half",
        f"{kb_per_min:+,.0f} KB/min",
        f"{_LIMIT_KB_PER_MIN:g} KB/min" if is_judged else "",
        kb_per_min <= _LIMIT_KB_PER_MIN if is_judged else None,
        note=", ".join(f"{size / 1e6:.1f} MB {when}" for when, (_, size) in times.items()),
    )


def _check_stored(server: Served, conversation: Conversation) -> None:
    message = server.call("GET", f"{conversation.channel}/messages/{MESSAGE}")["message"]
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
