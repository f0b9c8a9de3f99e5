"""A burst: 700 questions at the same moment, beside 300 answers that stream ten tokens per second to one viewer each.

Each question is stored, its turn is claimed, and an agent in the same process answers it with twenty tokens at twenty
per second, on SQLite FULL. The measure is the p99 of the running answers' tokens that are appended from the moment of
the questions until the first token of every new answer is stored, against their p99 in the seconds before, in the same
round. The new answers have no viewers, so the row shows the cost of their beginning.

Every view is compared with the sent text and with the stored message. Every new answer is read back, and must exist
once.

Run as a child with a database: the server, with the producers and the agent.
"""

import asyncio
import contextlib
import sys
import time
from typing import Any, NamedTuple

from bench.common import TIMEOUT_S, Options, Row, Void, capture, connect, judge, kept, load_client, number, spread
from bench.proc import SERVER_CORE, BenchError, Child, raise_file_limit, reply, serve_requests
from bench.turns import answer, is_right

_QUESTIONS = 700
_TOKENS_PER_S = 10
_SHORTEST_S = 0.5  # a small burst ends too soon to have a p99
_SETTLES_S = 0.5  # the first tokens of the running answers have no latency: all are created then
_LIMIT = 1.5
_TIMEOUT_S = 30.0


class _Round(NamedTuple):
    before_ms: list[float]  # p50, p99, p99.9 of the running answers
    during_ms: list[float]
    seconds: float  # from the questions until the first token of every new answer is stored


def run(options: Options) -> list[Row]:
    if options.is_quick:
        return bursts(options, running=60, questions=100, rounds=1, before_s=1.5, after_s=4.0)
    return bursts(options, running=300, questions=_QUESTIONS, rounds=3, before_s=3.0, after_s=8.0)  # its longest time


def bursts(
    options: Options, *, running: int, questions: int, rounds: int, before_s: float, after_s: float
) -> list[Row]:
    """Return the rows of so many questions beside running answers, each round on a server of its own. Raises `Void`."""
    found = [_round(options, running, questions, before_s, after_s) for _ in range(rounds)]
    what = f"{questions} questions at once beside {running} running answers: p99 of their tokens, against before"
    seconds = [one.seconds for one in found]
    compared = f"{number(questions * len(found))} new answers compared, each stored once"
    return [
        Row.judged(what, [one.during_ms[1] / one.before_ms[1] for one in found], "×", _LIMIT),
        Row("  p99 during the burst", spread([one.during_ms[1] for one in found], "ms")),
        Row("  until the first token of every new answer is stored", spread(seconds, "s"), note=compared),
    ]


def _round(options: Options, running: int, questions: int, before_s: float, after_s: float) -> _Round:
    raise_file_limit(running + 100)
    channels = [f"bench:{n}" for n in range(running)]
    wanted: dict[str, Any] = {"channels": channels, "questions": questions, "before_s": before_s, "after_s": after_s}
    with (
        kept(options) as database,
        Child("bench.burst", str(database.absolute()), core=SERVER_CORE) as child,
        load_client() as load,
    ):
        address = child.read(timeout_s=20)
        connect(load, "sse", channels, address)
        begun_s = time.monotonic()
        burst, drained, _ = capture(
            load, child.pid, lambda: child.request("burst", reply_in_s=before_s + after_s + TIMEOUT_S, **wanted)
        )
        asked_s, over_s = burst["asked_s"], burst["over_s"]
        windows = [(begun_s + min(_SETTLES_S, before_s / 2), asked_s), (asked_s, max(over_s, asked_s + _SHORTEST_S))]
        decoded = judge(load, drained, burst["messages"], address, windows=windows)
    if burst["wrong"]:
        raise Void(f"burst: {burst['wrong']}")
    before_ms, during_ms = decoded["windows_ms"]
    if not (before_ms and during_ms):
        raise BenchError("no running answer had a token before the burst, or during it")
    return _Round(before_ms, during_ms, over_s - asked_s)


async def _main(database: str) -> None:
    from bench.server import Producers, start_server
    from tenuto import Hub, Turn

    hub = Hub(f"sqlite:///{database}")
    producers = Producers(hub)
    begun: set[str] = set()
    ended: set[str] = set()
    moved = asyncio.Event()

    @hub.agent("new:*", slots=_QUESTIONS)
    async def agent(turn: Turn) -> None:
        def first_stored() -> None:
            begun.add(turn.channel)
            moved.set()

        await answer(turn, first_stored)
        ended.add(turn.channel)
        moved.set()

    async def until_all(channels: list[str], those: set[str]) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            while len(those) < len(channels):
                moved.clear()
                await moved.wait()

    async def burst(*, channels: list[str], questions: int, before_s: float, after_s: float) -> dict[str, Any]:
        """Stream an answer into each channel. After `before_s`, ask so many questions in other channels at once.

        Reply when all answers are stored.
        """
        count = int((before_s + after_s) * _TOKENS_PER_S)
        streaming = asyncio.create_task(producers.produce(channels=channels, count=count, tokens_per_s=_TOKENS_PER_S))
        await asyncio.sleep(before_s)
        new = [f"new:{n}" for n in range(questions)]
        asked_s = time.monotonic()
        await asyncio.gather(*(hub.create(channel, text="?") for channel in new))
        await until_all(new, begun)
        over_s = time.monotonic()
        if streaming.done():
            raise BenchError(f"the burst took longer than the {after_s:g} s for which the answers beside it stream")
        produced = await streaming
        await until_all(new, ended)
        wrong = [channel for channel in new if not await is_right(hub, channel)]
        return produced | {
            "asked_s": asked_s,
            "over_s": over_s,
            "wrong": f"{len(wrong)} new answers, {wrong[0]} among them, are wrong" if wrong else "",
        }

    async with contextlib.AsyncExitStack() as stack:
        reply(port=await stack.enter_async_context(start_server(hub)))
        await serve_requests({"burst": burst})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
