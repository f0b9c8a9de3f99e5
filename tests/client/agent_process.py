"""An agent in a process of its own, for tests that kill it: `python -m tests.client.agent_process URL NAME [ON_CRASH]`.

You are in `tests`. It says a word and then nothing more, unless its name is `second`: then it ends its answers.
"""

from __future__ import annotations

import asyncio
import sys

from holdfast.agents.turn import Turn
from holdfast.client import Client


async def main(url: str, name: str, on_crash: str) -> None:
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
            await asyncio.Event().wait()

    await client.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
