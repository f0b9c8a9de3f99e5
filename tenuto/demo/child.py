"""The children of the demo's supervisor: the server, and agents in processes of their own.

Layer: demo.

`python -m tenuto.demo.child` reads its task, one line of JSON, from standard input, and ends when that input does: then
the supervisor is gone, however it ended. Later lines to the server are names of agents whose processes have ended. The
server writes lines that begin with READY or CRASH. No other program reads these lines.
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

__all__ = ["AGENTS", "CRASH", "READY", "AgentStart", "ServerStart", "is_of_interest"]

AGENTS = ("guide~1", "guide~2")  # names of the agents; they share one client id, so their answers have one author
READY = b"tenuto-demo ready "  # and the owner's link, if there is one
CRASH = b"tenuto-demo crash "  # and the name of the agent that the supervisor must kill
KILL_S = 0.05  # pause before the server kills itself, in which the response is sent
CONNECT_S = 60.0  # long, because the server may start later than its agents
SLOTS = 1_000  # limit of answers that one agent writes at a time


class ServerStart(Struct, frozen=True, kw_only=True, tag="server"):
    """The task of the server. `guest_key` is given where other machines are let in."""

    descriptor: int  # file descriptor of the listening socket
    address: str
    store: str
    is_first: bool  # True: the agents of an earlier run are gone
    agent_token: str
    guest_key: str | None


class AgentStart(Struct, frozen=True, kw_only=True, tag="agent"):
    """The task of an agent."""

    url: str
    name: str
    token: str | None  # None: the server has no verifier


async def _until_parent_ends(receive: Callable[[str], object]) -> None:
    """Pass on the lines of standard input, and end this process with it, at once: all stored text is safe."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        receive(line.decode().strip())
    os._exit(0)


def _write(kind: bytes, text: str) -> None:
    os.write(sys.stdout.fileno(), kind + text.encode() + b"\n")  # short enough for one write to a pipe


def is_of_interest(record: logging.LogRecord) -> bool:
    """Return whether a log line is of interest to the person at the terminal.

    While no server serves, connections wait, and browsers give some of them up. The next server refuses those, since
    it cannot see their user any more; no peer is left to be refused.
    """
    return "socket is closed already" not in record.getMessage()


def _serve(start: ServerStart) -> None:
    from tenuto.demo.app import Controls, build
    from tenuto.demo.guests import Guests
    from tenuto.serving import adopt, run

    logging.getLogger("tenuto.transports").addFilter(is_of_interest)
    guests = None
    if start.guest_key is not None:
        guests = Guests(start.address, key=start.guest_key, agent_token=start.agent_token)
    controls = Controls(
        kill=lambda: asyncio.get_running_loop().call_later(KILL_S, os.kill, os.getpid(), signal.SIGKILL),
        crash=lambda agent: _write(CRASH, agent),
    )
    app = build(start.store, controls=controls, guests=guests)
    if start.is_first:
        app.state.hub.on_start(lambda: [app.state.lose_agent(name) for name in AGENTS])

    def begin() -> None:
        _write(READY, guests.invite() if guests is not None and start.is_first else "")
        app.state.hub.start_background(_until_parent_ends(app.state.lose_agent))

    if not run(app, app.state.hub, adopt(start.descriptor), started=begin, log_level="warning"):
        sys.exit(1)


async def _work(start: AgentStart) -> None:
    """Answer questions until the supervisor ends this process."""
    from tenuto.client import Client
    from tenuto.demo.guide import CHANNELS, Guide
    from tenuto.demo.model import model_in

    model = model_in(os.environ)
    if model is not None:
        assert model.client  # imported before the first question
    client = Client(start.url, token=start.token, client_id="guide", connect_s=CONNECT_S)
    # A model cannot continue in the middle of a sentence, so after a crash another call writes another answer.
    client.agent(CHANNELS, name=start.name, on_crash="restart" if model else "continue", slots=SLOTS)(
        Guide(client, model).answer
    )
    watching = asyncio.ensure_future(_until_parent_ends(lambda line: None))
    try:
        await client.run(drain_s=None)
    finally:
        watching.cancel()


def main() -> None:
    """Carry out the task in the first line of standard input."""
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(sys.stdin.fileno(), 65_536)
        if not piece:
            sys.exit(0)  # the supervisor is gone
        line += piece
    start = msgspec.json.decode(line, type=ServerStart | AgentStart)
    try:
        if isinstance(start, ServerStart):
            _serve(start)
        else:
            logging.getLogger("tenuto.client").setLevel(logging.ERROR)  # the supervisor reports restarts of the server
            asyncio.run(_work(start))
    except TenutoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
