"""An agent in a process of its own: it answers over the network, and may be killed at any moment.

Layer: demo.

The supervisor starts two of these. Each takes questions like an agent on another machine, with the guide's handler. If
one dies in mid-answer, the other continues at the end of the stored text. They outlive the server: their text waits
until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from importlib.util import find_spec

from tenuto.agents.turn import OnCrash
from tenuto.client import Client
from tenuto.core.errors import TenutoError
from tenuto.demo.control import (
    AGENTS,
    CHANNELS,
    IN_SERVER,
    UNAVAILABLE,
    AgentStart,
    Restarted,
    read_start,
    until_parent_ends,
)
from tenuto.demo.guide import Guide
from tenuto.demo.model import model_in

# far more slots than the agent in the server has, because the scheduler prefers the worker with the most free slots
SLOTS = 1_000
CONNECT_S = 60.0  # long, because the server may start later than its agents


async def work(start: AgentStart) -> None:
    """Answer questions until the supervisor ends this process."""
    model = model_in(os.environ)
    client = Client(start.url, token=start.token, client_id=IN_SERVER, connect_s=CONNECT_S)
    guide = Guide(client, model, details={"pid": os.getpid()})
    on_crash: OnCrash = "continue" if model is None else "restart"
    client.agent(CHANNELS, name=start.name, on_crash=on_crash, slots=SLOTS)(guide.answer)
    listening = asyncio.ensure_future(until_parent_ends(Restarted, lambda _: guide.server_restarted()))
    try:
        await client.run(drain_s=None)
    finally:
        listening.cancel()


def main() -> None:
    """Run the agent that the supervisor has asked for."""
    start = read_start(AgentStart)
    logging.getLogger("tenuto.client").setLevel(logging.ERROR)  # the supervisor reports each restart of the server
    # the packages that the client needs
    missing = [package for package in ("httpx2", "websockets") if find_spec(package) is None]
    if missing:
        if start.name == AGENTS[0]:
            print(
                f"No agent runs in a process of its own, since {missing[0]} is missing; install Tenuto with [demo], "
                "as its README shows. The server answers itself.",
                file=sys.stderr,
            )
        sys.exit(UNAVAILABLE)
    try:
        asyncio.run(work(start))
    except TenutoError as error:
        print(f"The agent {start.name} has ended: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
