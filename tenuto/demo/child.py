"""The children of the demo's supervisor: the server, and agents in processes of their own.

Layer: demo.

`python -m tenuto.demo.child` reads its task, one line of JSON, from standard input, and ends when that input does: then
the supervisor is gone. Later lines to the server are names of agents whose processes have ended. The server writes
lines that begin with READY or CRASH.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

import msgspec
from msgspec import Struct

from tenuto.core.errors import TenutoError
from tenuto.demo.guide import AGENTS, CHANNELS, Guide, model_in

READY = b"tenuto-demo ready "  # and the owner's link, if there is one
CRASH = b"tenuto-demo crash "  # and the name of the agent that the supervisor must kill
KILL_S = 0.05  # pause before the server kills itself, in which the response is sent
CONNECT_S, SLOTS = 60.0, 1_000  # limits of an agent: of the wait for its server, and of its answers at a time


class ChildTask(Struct, frozen=True, kw_only=True):
    """The task of a child. `guest_key` is given where other machines are let in: then the server has a verifier."""

    address: str
    store: str
    guest_key: str | None
    agent: str = ""  # name of the agent; the server has none
    descriptor: int = 0  # file descriptor of the server's listening socket
    is_first: bool = False  # True: the agents of an earlier run are gone


async def _until_parent_ends(receive: Callable[[str], object]) -> None:
    """Pass on the lines of standard input, and end this process with it, at once: all stored text is safe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        receive(line.decode().strip())
    os._exit(0)


def is_of_interest(record: logging.LogRecord) -> bool:
    """Return whether a log line is of interest: not about connections that waited and were given up."""
    return "socket is closed already" not in record.getMessage()


def _serve(start: ChildTask) -> None:
    from tenuto.demo.app import Controls, build
    from tenuto.demo.guests import Guests
    from tenuto.server.serving import adopt, run

    logging.getLogger("tenuto.transports").addFilter(is_of_interest)
    guests = Guests(start.address, key=start.guest_key) if start.guest_key is not None else None
    controls = Controls(
        kill=lambda: asyncio.get_running_loop().call_later(KILL_S, os.kill, os.getpid(), signal.SIGKILL),
        crash=lambda agent: os.write(sys.stdout.fileno(), CRASH + agent.encode() + b"\n"),
    )
    app = build(start.store, controls=controls, guests=guests)
    if start.is_first:
        app.state.hub.on_start(lambda: [app.state.lose_agent(name) for name in AGENTS])

    def begin() -> None:
        invite = guests.invite() if guests is not None and start.is_first else ""
        os.write(sys.stdout.fileno(), READY + invite.encode() + b"\n")
        app.state.hub.start_background(_until_parent_ends(app.state.lose_agent))

    sys.exit(not run(app, app.state.hub, adopt(start.descriptor), started=begin, log_level="warning"))


async def _work(start: ChildTask) -> None:
    from tenuto.client import Client
    from tenuto.demo.guests import agent_token

    model = model_in(os.environ)
    assert model is None or model.client  # imported before the first question
    token = agent_token(start.guest_key) if start.guest_key is not None else None
    client = Client(f"{start.address}/tenuto", token=token, client_id="guide", connect_s=CONNECT_S)
    # A model cannot continue in the middle of a sentence, so after a crash another call writes another answer.
    serve = client.agent(CHANNELS, name=start.agent, on_crash="restart" if model else "continue", slots=SLOTS)
    serve(Guide(client, model).answer)
    watching = asyncio.ensure_future(_until_parent_ends(lambda line: None))
    await client.run(drain_s=None)
    watching.cancel()


def main() -> None:
    """Carry out the task in the first line of standard input."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stdin:  # a buffer would take later lines, too
        line = stdin.readline() or sys.exit(0)  # without a line, the supervisor is gone
    start = msgspec.json.decode(line, type=ChildTask)
    try:
        if not start.agent:
            _serve(start)
        else:
            logging.getLogger("tenuto.client").setLevel(logging.ERROR)  # the supervisor reports restarts of the server
            asyncio.run(_work(start))
    except TenutoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
