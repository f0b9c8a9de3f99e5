"""CPU per delivered token of a viewer with the AI SDK, as a ratio to a viewer of our own SSE.

Both kinds follow answers at fifty tokens per second, in rounds that alternate. The server is an app with the hub and
`AISDK`, on SQLite FULL, anew for each round. The time is that of the whole process. Each text is compared with the one
that was sent.

Run as a child with a database: the server, with answers that grow on request.
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.common import Options, Row, check, client_load, kept, load_client, raw_line, spread
from bench.proc import SERVER_CORE, Child, cpu_s, raise_file_limit, reply, serve_requests
from bench.tokens import summary, token

_VIEWERS = 200
_TOKENS_PER_S = 50
_LIMIT = 1.5
_TIMEOUT_S = 30.0
_MOUNTED_AT = "/tenuto"


class _Round(NamedTuple):
    us_per_token: float
    deliveries: int
    client_load: float


def run(options: Options) -> Iterator[Row]:
    rounds, seconds = (1, 2.0) if options.is_quick else (5, 2.5)
    yield viewers(options, channels=1, each=_VIEWERS, rounds=rounds, seconds=seconds)


def viewers(options: Options, *, channels: int, each: int, rounds: int, seconds: float) -> Row:
    """Return the row of so many turns with `each` viewers. Raises `Void`."""
    raise_file_limit(channels * each + 100)
    pairs = [[_round(options, kind, channels, each, seconds) for kind in ("ai-sdk", "sse")] for _ in range(rounds)]
    ratios = [one.us_per_token / ours.us_per_token for one, ours in pairs]
    sides = [spread([side.us_per_token for side in one], "µs") for one in zip(*pairs, strict=True)]
    loads = [one.client_load for pair in pairs for one in pair]
    return Row(
        f"{channels} × {each} viewers with the AI SDK: CPU per delivered token against our own SSE",
        spread(ratios, "×"),
        f"{_LIMIT} ×",
        statistics.median(ratios) <= _LIMIT,
        note=f"{sides[0]} and {sides[1]} per token; load client used {max(loads):.0%} of its core",
        raw=tuple(f"AI SDK {raw_line(**one._asdict())}, SSE {raw_line(**ours._asdict())}" for one, ours in pairs),
    )


def _round(options: Options, kind: str, channels: int, each: int, seconds: float) -> _Round:
    names = [f"bench:{n}" for n in range(channels)]
    with (
        kept(options) as database,
        Child("bench.ai_sdk", str(database.absolute()), core=SERVER_CORE) as child,
        load_client() as load,
    ):
        address = {**child.read(timeout_s=20), "prefix": _MOUNTED_AT}
        child.request("begin", channels=names)
        load.request("connect", kind=kind, channels=names * each, timeout_s=_TIMEOUT_S, **address)
        load.request("capture")
        used_s = cpu_s(child.pid)
        grown = child.request("grow", seconds=seconds, reply_in_s=seconds + 45)
        drained = load.request("drain", timeout_s=_TIMEOUT_S)
        used_s = cpu_s(child.pid) - used_s
        decoded = load.request("decode")
        if kind == "ai-sdk":
            drained["ended"] = 0  # the server ends a response when its turn is over
        check(decoded, load.request("compare", sent=grown["messages"], **address), drained, lag_ms=grown["lag_ms"])
    tokens = sum(one["length"] for one in grown["messages"].values()) // len(token()) * each
    return _Round(used_s / tokens * 1e6, decoded["deliveries"], client_load(drained))


async def _main(database: str) -> None:
    from starlette.applications import Starlette

    from bench.server import Producers, Written, start_app
    from tenuto import Hub, MessageWriter
    from tenuto.interop import AISDK

    hub, app = Hub(f"sqlite:///{database}"), Starlette()
    hub.install(app, _MOUNTED_AT)
    AISDK(hub, channel="bench:{id}").install(app, "/api/chat")
    producers, answers = Producers(hub), contextlib.AsyncExitStack()
    writers: dict[str, MessageWriter] = {}
    sent: dict[str, list[str]] = {}

    async def begin(*, channels: list[str]) -> dict[str, Any]:
        """Begin an answer in each channel, to a question of its own."""
        for channel in channels:
            question = await hub.create(channel, text="?", starts_turn=False)
            writers[channel] = await answers.enter_async_context(hub.message(channel, reply_to=question.id))
            sent[channel] = [token()]
            await writers[channel].append(sent[channel][0])
            await writers[channel].flush()
        return {}

    async def grow(*, seconds: float) -> dict[str, Any]:
        """Stream the answers to their ends."""

        async def one(channel: str, first_s: float) -> None:
            async def append(message: Written, _: int, __: float) -> None:
                sent[channel].append(token())
                await message.append(sent[channel][-1])

            count = range(int(seconds * _TOKENS_PER_S))
            await producers.on_schedule(writers[channel], count, first_s, _TOKENS_PER_S, append)
            producers.lateness.ended(writers[channel])

        now_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for n, channel in enumerate(writers):
                group.create_task(one(channel, now_s + n / len(writers) / _TOKENS_PER_S))
        await answers.aclose()
        messages = {channel: summary("".join(pieces), writers[channel].id) for channel, pieces in sent.items()}
        return {"messages": messages} | await producers.lag()

    async with start_app(app) as port:
        reply(port=port)
        await serve_requests({"begin": begin, "grow": grow})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
