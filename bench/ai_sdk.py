"""CPU per delivered token of a viewer with the AI SDK, as a ratio to a viewer of our own SSE.

Both kinds follow answers at fifty tokens per second, in rounds that alternate. The server is an app with the hub and
`AISDK`, on SQLite FULL, anew for each round. The time is that of the whole process. Each text is compared with the one
that was sent.

Run as a child with a database: the server, with answers that grow on request.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench.common import Options, Row, capture, connect, judge, kept, load_client
from bench.proc import SERVER_CORE, Child, raise_file_limit, reply, serve_requests
from bench.tokens import summary, token

_VIEWERS = 200
_TOKENS_PER_S = 50
_LIMIT = 1.5
_MOUNTED_AT = "/tenuto"


def run(options: Options) -> list[Row]:
    rounds, seconds = (1, 2.0) if options.is_quick else (5, 2.5)
    return [viewers(options, channels=1, each=_VIEWERS, rounds=rounds, seconds=seconds)]


def viewers(options: Options, *, channels: int, each: int, rounds: int, seconds: float) -> Row:
    """Return the row of so many turns with `each` viewers. Raises `Void`."""
    raise_file_limit(channels * each + 100)
    pairs = [[_cost(options, kind, channels, each, seconds) for kind in ("ai-sdk", "sse")] for _ in range(rounds)]
    what = f"{channels} × {each} viewers with the AI SDK: CPU per delivered token against our own SSE"
    return Row.judged(what, [one / ours for one, ours in pairs], "×", _LIMIT)


def _cost(options: Options, kind: str, channels: int, each: int, seconds: float) -> float:
    """Return the CPU time per delivered token, in µs."""
    with streaming(options, kind, [f"bench:{n}" for n in range(channels)], each) as (child, load, address):
        grown, drained, used_s = capture(
            load, child.pid, lambda: child.request("grow", seconds=seconds, reply_in_s=seconds + 45), last=None
        )
        if kind == "ai-sdk":
            drained["ended"] = 0  # the server ends a response when its turn is over
        judge(load, drained, grown["messages"], address)
    tokens: int = sum(one["length"] for one in grown["messages"].values()) // len(token()) * each
    return used_s / tokens * 1e6


@contextlib.contextmanager
def streaming(
    options: Options, kind: str, names: list[str], each: int
) -> Iterator[tuple[Child, Child, dict[str, Any]]]:
    """Yield the app, the load client and the app's address, with an answer and its viewers in each channel."""
    with (
        kept(options) as database,
        Child("bench.ai_sdk", str(database.absolute()), core=SERVER_CORE) as child,
        load_client() as load,
    ):
        address = {**child.read(timeout_s=20), "prefix": _MOUNTED_AT}
        child.request("begin", channels=names)
        connect(load, kind, names * each, address)
        yield child, load, address


async def _main(database: str) -> None:
    from starlette.applications import Starlette

    from bench.server import Producers, Written, start_app
    from tenuto import Hub, MessageWriter, Turn
    from tenuto.interop import AISDK, OpenAI

    hub, app = Hub(f"sqlite:///{database}"), Starlette()
    hub.install(app, _MOUNTED_AT)
    AISDK(hub, channel="bench:{id}").install(app, "/api/chat")
    OpenAI(hub).install(app, "/v1")  # for bench.photos
    producers, answers = Producers(hub), contextlib.AsyncExitStack()
    writers: dict[str, MessageWriter] = {}
    sent: dict[str, list[str]] = {}

    @hub.agent("photo:*", name="bot")
    async def bot(turn: Turn) -> None:
        async with turn.reply() as message:
            await message.append(f"{len(await turn.history())} messages")

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

        now_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for n, channel in enumerate(writers):
                group.create_task(one(channel, now_s + n / len(writers) / _TOKENS_PER_S))
        await answers.aclose()
        messages = {channel: summary("".join(pieces), writers[channel].id) for channel, pieces in sent.items()}
        return {"messages": messages}

    async with start_app(app) as port:
        reply(port=port)
        await serve_requests({"begin": begin, "grow": grow})


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
