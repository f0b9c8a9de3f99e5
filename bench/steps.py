"""What a step of a turn costs, beside a durable append of the same turn: one process, SQLite FULL.

A step is two commits, its beginning and its result, each with a row of its own; an append is one commit to the log.
Measured is the CPU time of the process for steps and for appends, one after the other, each waiting for its commit.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bench.common import Options, Row, Void, kept
from bench.proc import SERVER_CORE, Child, serve_requests

if TYPE_CHECKING:
    from tenuto import Turn

_EACH = 200
_LIMIT = 1.2


def run(options: Options) -> Iterator[Row]:
    """Yield the row. Raises `Void` if a step did not return its result."""
    ratios, costs = [], []
    for _ in range(1 if options.is_quick else 5):
        with kept(options) as database, Child("bench.steps", core=SERVER_CORE) as child:
            found = child.request("steps", database=str(database), each=_EACH // 10 if options.is_quick else _EACH)
        if found["wrong"]:
            raise Void(f"steps: {found['wrong']} steps returned another result")
        ratios.append(found["step_us"] / found["append_us"])
        costs.append(found["step_us"])
    note = f"a step takes {min(costs):.0f} µs at least"
    yield Row.judged("steps: CPU of a step, against a durable append", ratios, "×", _LIMIT, note=note)


async def _steps(database: str, each: int) -> dict[str, Any]:
    from tenuto import Hub, Turn

    hub = Hub(f"sqlite:///{database}", hooks_signals=False)
    taken: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    @hub.agent("chat:*")
    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
            await _take(turn, message, each)  # to warm up
            taken.set_result(await _take(turn, message, each))

    await hub.create("chat:1", text="?")
    found = await taken
    await hub.close()
    return found


async def _take(turn: "Turn", message: Any, each: int) -> dict[str, Any]:
    before_s = time.process_time()
    first = int(before_s * 1e9)  # no name is used twice
    results = [await turn.step(f"step {number}", int, number) for number in range(first, first + each)]
    between_s = time.process_time()
    for _ in range(each):
        await message.append("word ")
        await message.flush()
    after_s = time.process_time()
    return {
        "step_us": (between_s - before_s) / each * 1e6,
        "append_us": (after_s - between_s) / each * 1e6,
        "wrong": sum(result != first + number for number, result in enumerate(results)),
    }


if __name__ == "__main__":
    asyncio.run(serve_requests({"steps": _steps}))
