"""An agent in a process of its own, for tests that end it.

Layer: tests. `python -m tests.client.agent_process URL NAME ON_CRASH DRAIN_S` writes a word and then waits until it is
steered, or for an approval that its message asks for; if its name is `second`, it ends its answers at once.
"""

from __future__ import annotations

import asyncio
import sys

from tenuto.agents.turn import Turn
from tenuto.client import Client


async def main(url: str, name: str, on_crash: str, drain_s: str) -> None:
    client = Client(url, client_id=name)

    @client.agent("chat:*", on_crash=on_crash)  # type: ignore[arg-type]
    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
            if name == "second":
                await message.append("whole")
                return
            await message.append("half ")
            await message.flush()
            print("working", flush=True)
            if turn.text == "approve":
                await turn.ask("approve")
            while not await turn.steered():  # noqa: ASYNC110 - the handler has no event for this state
                await asyncio.sleep(0.05)
            await message.append("and the rest")

    await client.run(drain_s=float(drain_s))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
