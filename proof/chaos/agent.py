"""An agent as a separate process, written like the agent of an application: `Client(…).agent`.

    python -m proof.chaos.agent '{"url": "http://127.0.0.1:8000", "name": "bot-1", …}'

Layer: chaos.

It answers with a `Script`, so that each token names its writer, and prints the acknowledged requests. The client
handles SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass

from proof.chaos.producer import say
from proof.oracle.plans import Piece, Script
from tenuto.agents.turn import OnCrash, Turn
from tenuto.client import Client

FLUSHED_EVERY = 5  # number of pieces between two flushes


@dataclass(frozen=True)
class AgentOrders:
    """The settings of an agent; JSON on its command line."""

    url: str
    name: str
    pattern: str
    seed: int
    steps: int  # number of steps of each answer
    per_second: float
    on_crash: OnCrash
    drain_s: float


async def run(orders: AgentOrders) -> None:
    """Answer questions until the client ends."""
    client = Client(orders.url, client_id=orders.name)

    @client.agent(orders.pattern, on_crash=orders.on_crash)
    async def respond(turn: Turn) -> None:
        await answer(turn, orders)

    say("ready")
    await client.run(drain_s=orders.drain_s)


async def answer(turn: Turn, orders: AgentOrders) -> None:
    """Answer a question, and report each acknowledgement."""
    async with turn.reply() as message:
        script = Script(orders.seed, message.id, steps=orders.steps)
        previous = turn.previous
        is_taken_over = previous is not None and previous.id == message.id
        is_continued = is_taken_over and orders.on_crash == "continue"
        begun = len(script.pieces(previous.text)) if previous is not None and is_continued else 0
        report = {"id": message.id, "channel": turn.channel, "attempt": turn.attempt}
        say("begins", **report, length=message.length, supersedes=is_taken_over and not is_continued)
        for number in range(begun, orders.steps):
            await asyncio.sleep(1 / orders.per_second)  # the pace of a model
            await message.append(script.text(Piece(number, turn.attempt, orders.name)))
            if number % FLUSHED_EVERY == 0:
                await message.flush()
                say("stored", **report, length=message.length)
    say("over", **report, length=message.length)


if __name__ == "__main__":
    asyncio.run(run(AgentOrders(**json.loads(sys.argv[1]))))
