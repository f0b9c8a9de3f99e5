"""The lines of JSON between the demo's processes: the supervisor, its server, and its agents.

Layer: demo.

The supervisor writes to the standard input of its children, the server writes back to its standard output. A child ends
when its standard input does: then the supervisor is gone, however it ended. No other program reads these lines.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

__all__ = [
    "AGENTS",
    "CHANNELS",
    "IN_SERVER",
    "UNAVAILABLE",
    "AgentStart",
    "Crash",
    "Crashed",
    "Ready",
    "Restarted",
    "ServerStart",
    "encode",
    "read_start",
    "until_parent_ends",
]

CHANNELS = "demo:*"  # pattern of the channels that the agents serve
IN_SERVER = "guide"  # name of the agent in the server's process, which answers while no other agent is connected
AGENTS = (
    "guide~1",
    "guide~2",
)  # names of the agents in processes of their own; they share one client id, so that their answers have one author
UNAVAILABLE = 3  # exit status of an agent that cannot run in this installation

_LONGEST_LINE = 65_536


class ServerStart(Struct, frozen=True, kw_only=True):
    """The first line to the server. `guest_key` is given where other machines are let in."""

    descriptor: int  # file descriptor of the listening socket
    address: str
    store: str
    starts: int  # number of servers that the supervisor has started, including this one
    died_at_s: float | None  # when the previous server died, on the monotonic clock, which all processes share
    agent_token: str
    guest_key: str | None


class AgentStart(Struct, frozen=True, kw_only=True):
    """The first line to an agent."""

    url: str
    name: str
    token: str | None  # None: the server has no verifier


class Restarted(Struct, frozen=True, tag="restarted"):
    """A line to the agents: the server was killed, and another one serves now."""


class Ready(Struct, frozen=True, tag="ready"):
    """A line from the server: it serves, `down_s` seconds after the previous server died.

    `invite` is the owner's link.
    """

    down_s: float | None
    invite: str | None


class Crash(Struct, frozen=True, tag="crash"):
    """A line from the server, which requests that the supervisor kills this agent."""

    agent: str


class Crashed(Struct, frozen=True, tag="crashed"):
    """A line to the server: the agent has ended. `pid` is None if it did not run."""

    agent: str
    pid: int | None


S = TypeVar("S")


def encode(line: Struct) -> bytes:
    """Return `line` for a pipe."""
    return msgspec.json.encode(line) + b"\n"


def read_start(kind: type[S]) -> S:
    """Return the first line of standard input. The supervisor writes no other line before it has a response."""
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(sys.stdin.fileno(), _LONGEST_LINE)
        if not piece:
            os._exit(0)  # the supervisor is gone
        data += piece
    return msgspec.json.decode(data, type=kind)


async def until_parent_ends(kinds: Any, receive: Callable[[Any], object]) -> None:
    """Pass on the lines of standard input, each of one of `kinds`. End this process when the input ends.

    The process ends at once: stored text is safe, and a successor needs the port and the store.
    """
    decoder = msgspec.json.Decoder(kinds)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        receive(decoder.decode(line))
    os._exit(0)
