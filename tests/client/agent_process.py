"""An agent in a process of its own, for tests that end it.

Layer: tests. `python -m tests.client.agent_process URL DRAIN_S` writes a word and then waits until it is steered, or
for an approval that its message asks for.
"""

from __future__ import annotations

import asyncio
import sys

from tenuto.agents.turn import Turn
from tenuto.client import Client


async def main(url: str, drain_s: str) -> None:
    client = Client(url, client_id="bot")

    @client.agent("chat:*")
    async def agent(turn: Turn) -> None:
        async with turn.reply() as message:
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
    asyncio.run(main(*sys.argv[1:]))
