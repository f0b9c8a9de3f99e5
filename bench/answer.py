"""The CPU time of one whole answer: its question, its turn, its 500 tokens at fifty per second, and one viewer by SSE.

A hundred answers stream at once, begun over one second, on SQLite FULL. The time is that of the server's whole process.
Every view is compared with the sent text and with the stored message.

Run as a child with a database: the server, with an agent that answers the questions.
"""

import asyncio
import contextlib
import hashlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.common import Options, Row, check, client_load, kept, load_client, producers_us, spread
from bench.control import reply, serve_requests
from bench.needs import SERVER, Needs
from bench.proc import SERVER_CORE, Child, cpu_s
from bench.tokens import token

_ANSWERS = 100
_TOKENS = 500
_TOKENS_PER_S = 50
_TIMEOUT_S = 30.0
_ALONE_S = 2.0


class _Round(NamedTuple):
    ms: float
    producers_ms: float
    client_load: float

    def __str__(self) -> str:
        return (
            f"{self.ms:.2f} ms an answer, {self.producers_ms:.2f} ms of it the producers'; "
            f"load client {self.client_load:.0%} of its core"
        )


def run(options: Options) -> Iterator[Row]:
    rounds, tokens = (1, 100) if options.is_quick else (3, _TOKENS)
    yield from answers(options, count=_ANSWERS, tokens=tokens, rounds=rounds)


def needs(options: Options) -> Needs:
    return Needs(seconds=8 if options.is_quick else 50, files=_ANSWERS + 100, disk_mb=50, packages=SERVER)


def answers(options: Options, *, count: int, tokens: int, rounds: int) -> list[Row]:
    """Return the rows of `count` answers at once, each round on a server of its own. Raises `Void`."""
    found = [_round(options, count, tokens) for _ in range(rounds)]
    what = f"one answer of {tokens} tokens with its question, turn and one viewer: CPU"
    return [
        Row(
            what,
            spread([one.ms for one in found], "ms"),
            note=f"{count} at once, {_TOKENS_PER_S} tokens/s each",
            raw=tuple(str(one) for one in found),
        ),
        Row(
            "  without the producers, measured alone",
            spread([one.ms - one.producers_ms for one in found], "ms"),
            note=f"the producers alone: {spread([one.producers_ms for one in found], 'ms')}",
        ),
    ]


def _round(options: Options, count: int, tokens: int) -> _Round:
    channels = [f"bench:{n}" for n in range(count)]
    with (
        kept(options) as database,
        Child("bench.answer", str(database.absolute()), core=SERVER_CORE) as child,
        load_client() as load,
    ):
        address = child.read(timeout_s=20)
        alone_s = min(_ALONE_S, tokens / _TOKENS_PER_S)
        alone_us = producers_us(child, channels=channels, tokens_per_s=_TOKENS_PER_S, seconds=alone_s)
        load.request("connect", kind="sse", channels=channels, timeout_s=_TIMEOUT_S, **address)
        load.request("capture")
        used_s = cpu_s(child.pid)
        asked = child.request("ask", channels=channels, count=tokens, reply_in_s=tokens / _TOKENS_PER_S + 45)
        drained = load.request("drain", timeout_s=_TIMEOUT_S)  # the turn's end follows the message's
        used_s = cpu_s(child.pid) - used_s
        decoded = load.request("decode")
        compared = load.request("compare", sent=asked["messages"], **address)
        check(decoded, compared, drained, lag_ms=asked["lag_ms"])
    return _Round(used_s / count * 1000, alone_us * tokens / 1000, client_load(drained))


async def _main(database: str) -> None:
    from bench.server import Producers, Written, start_server
    from tenuto import Hub, Turn

    hub = Hub(f"sqlite:///{database}")
    producers = Producers(hub)
    messages: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    over: dict[str, asyncio.Event] = {}

    @hub.agent("bench:*", slots=_ANSWERS)
    async def agent(turn: Turn) -> None:
        sent: list[str] = []

        async def append(message: Written, _: int, __: float) -> None:
            sent.append(token())
            await message.append(sent[-1])

        async with turn.reply() as message:
            await producers.on_schedule(message, range(counts[turn.channel]), time.monotonic(), _TOKENS_PER_S, append)
        producers.lateness.ended(message)
        text = "".join(sent)
        messages[turn.channel] = {
            "id": message.id,
            "length": len(text),
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        over[turn.channel].set()

    async def ask(*, channels: list[str], count: int) -> dict[str, Any]:
        """Ask a question in each channel, spread over a second. Reply when all answers are stored."""

        async def one(n: int, channel: str) -> None:
            counts[channel], over[channel] = count, asyncio.Event()
            await asyncio.sleep(n / len(channels))
            await hub.create(channel, text="?")
            await over[channel].wait()

        async with asyncio.TaskGroup() as group:
            for n, channel in enumerate(channels):
                group.create_task(one(n, channel))
        return {"messages": messages} | await producers.lag()

    async with contextlib.AsyncExitStack() as stack:
        reply(port=await stack.enter_async_context(start_server(hub)))
        await serve_requests({"produce": producers.produce, "ask": ask})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
