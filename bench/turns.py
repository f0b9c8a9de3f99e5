"""A thousand conversations that an agent answers at once, in one process, on SQLite FULL.

All questions are created at the same moment. Each turn is claimed (stored) before its handler runs, and each answer has
twenty tokens at twenty per second. Measured are the time from the call of `create()` to the running handler and to the
first stored token, and the CPU time of the whole process per turn. Every answer is read back and compared, and must
exist once: a missing, doubled or wrong answer makes the run void.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bench.common import Options, Row, Void, kept, number, spread
from bench.proc import SERVER_CORE, Child, serve_requests

if TYPE_CHECKING:
    from tenuto import Turn


_CONVERSATIONS = 1_000
_TOKENS = 20
_TOKENS_PER_S = 20
_TIMEOUT_S = 120.0


def run(options: Options) -> Iterator[Row]:
    conversations = 100 if options.is_quick else _CONVERSATIONS
    yield from turns(options, conversations=conversations, rounds=1 if options.is_quick else 3)


def turns(options: Options, *, conversations: int, rounds: int) -> list[Row]:
    """Return the rows. Raises `Void` if an answer is missing, doubled or wrong."""
    found = []
    for _ in range(rounds):
        with kept(options) as database, Child("bench.turns", core=SERVER_CORE) as child:
            fields = {"database": str(database), "conversations": conversations}
            found.append(child.request("turns", reply_in_s=_TIMEOUT_S, **fields))
    for one in found:
        if one["wrong"]:
            raise Void(f"turns: {one['wrong']}")
    what = f"turns: {conversations:,} conversations started at once, one process, SQLite FULL"
    return [
        Row(f"{what}: until the handler runs, p50", spread([one["begun_p50_ms"] for one in found], "ms")),
        Row("  until the handler runs, p99", spread([one["begun_p99_ms"] for one in found], "ms")),
        Row("  until the first token is stored, p99", spread([one["token_p99_ms"] for one in found], "ms")),
        Row(
            f"  CPU per turn of {_TOKENS} tokens, with its question, claim and end",
            spread([one["cpu_us"] for one in found], "µs"),
            note=f"{number(conversations * len(found))} answers compared, each stored once",
        ),
    ]


async def _turns(database: str, conversations: int) -> dict[str, Any]:
    from tenuto import Hub, Turn

    hub = Hub(f"sqlite:///{database}", hooks_signals=False)
    sent_s: dict[str, float] = {}
    begun_ms: list[float] = []
    token_ms: list[float] = []

    @hub.agent("chat:*", slots=conversations)
    async def agent(turn: Turn) -> None:
        begun_ms.append((time.perf_counter() - sent_s[turn.channel]) * 1000)
        await answer(turn, lambda: token_ms.append((time.perf_counter() - sent_s[turn.channel]) * 1000))

    await hub.start()
    cpu_s = time.process_time()

    async def start(channel: str) -> None:
        sent_s[channel] = time.perf_counter()
        await hub.create(channel, text="?")

    channels = [f"chat:{number}" for number in range(conversations)]
    await asyncio.gather(*(start(channel) for channel in channels))
    async with asyncio.timeout(_TIMEOUT_S - 10):
        while (  # noqa: ASYNC110 - no event is set when the last claim ends
            hub.stats()["turns_running"] or hub.stats()["turns_waiting"] or len(token_ms) < conversations
        ):
            await asyncio.sleep(0.05)
    cpu_s = time.process_time() - cpu_s
    wrong = [channel for channel in channels if not await is_right(hub, channel)]
    await hub.close()
    return {
        "begun_p50_ms": statistics.median(begun_ms),
        "begun_p99_ms": _p99(begun_ms),
        "token_p99_ms": _p99(token_ms),
        "cpu_us": cpu_s / conversations * 1e6,
        "wrong": f"{len(wrong)} conversations, {wrong[0]} among them, have a wrong answer" if wrong else "",
    }


async def answer(turn: "Turn", first_stored: Callable[[], None]) -> None:
    """Write the answer of a turn, and call `first_stored` when its first token is stored."""
    async with turn.reply() as message:
        await message.append(f"{turn.channel} 0 ")
        await message.flush()
        first_stored()
        for token in range(1, _TOKENS):
            await asyncio.sleep(1 / _TOKENS_PER_S)
            await message.append(f"{token} ")


async def is_right(hub: Any, channel: str) -> bool:
    """Return whether the channel holds the question and its whole answer, each once."""
    messages = (await hub.history(channel)).messages
    text = f"{channel} " + "".join(f"{token} " for token in range(_TOKENS))
    return [(one.role, one.status, one.text) for one in messages] == [
        ("assistant", "complete", text),
        ("user", "complete", "?"),
    ]


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


if __name__ == "__main__":
    asyncio.run(serve_requests({"turns": _turns}))
