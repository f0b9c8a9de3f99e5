"""The demo's server, as a child of the supervisor.

Layer: demo.

The supervisor passes on the listening socket, so the port stays the same after a crash. `python -m
tenuto.demo.server` is the process; `Parent` is the supervisor, as this process sees it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time

from tenuto.app import Hub
from tenuto.core.errors import TenutoError
from tenuto.demo.app import build
from tenuto.demo.control import Crash, Crashed, Ready, ServerStart, encode, read_start, until_parent_ends
from tenuto.demo.guests import Guests
from tenuto.serving import adopt, run

__all__ = ["Parent", "is_of_interest"]

KILL_S = 0.05  # pause before the process kills itself, in which the response is sent


class Parent:
    """The supervisor of this process. See `tenuto.demo.app.Supervision`."""

    def __init__(self, start: ServerStart) -> None:
        self.starts = start.starts
        self._died_at_s = start.died_at_s
        self._down_s: float | None = None
        # for each agent that is being killed, a future for its process id
        self._waiting: dict[str, asyncio.Future[int | None]] = {}

    @property
    def down_s(self) -> float | None:
        """Return how long no server served before this one; None for the first."""
        if self._down_s is None and self._died_at_s is not None:
            self._down_s = time.monotonic() - self._died_at_s
        return self._down_s

    def begin(self, hub: Hub, invite: str | None) -> None:
        """Report that this process serves, and follow the supervisor."""
        _write(Ready(self.down_s, invite))
        hub.start_background(until_parent_ends(Crashed, self._receive))

    def kill_server(self) -> None:
        """Kill this process with SIGKILL, as `kill -9` would."""
        asyncio.get_running_loop().call_later(KILL_S, os.kill, os.getpid(), signal.SIGKILL)

    async def kill_agent(self, agent: str) -> int | None:
        """Kill an agent with SIGKILL; return its process id when it is dead, or None if it does not run."""
        waiting = self._waiting.get(agent)
        if waiting is None:
            waiting = self._waiting[agent] = asyncio.get_running_loop().create_future()
            _write(Crash(agent))
        return await asyncio.shield(waiting)

    def _receive(self, crashed: Crashed) -> None:
        waiting = self._waiting.pop(crashed.agent, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(crashed.pid)


def is_of_interest(record: logging.LogRecord) -> bool:
    """Return whether a log line is of interest to the person at the terminal.

    While no server serves, connections wait, and browsers give some of them up. The next server refuses those, since
    it cannot see their user any more; no peer is left to be refused.
    """
    return "socket is closed already" not in record.getMessage()


def _write(line: Ready | Crash) -> None:
    os.write(sys.stdout.fileno(), encode(line))  # short enough for one write to a pipe


def main() -> None:
    """Serve as the supervisor has asked for."""
    start = read_start(ServerStart)
    parent = Parent(start)
    logging.getLogger("tenuto.transports").addFilter(is_of_interest)
    guests = None
    if start.guest_key is not None:
        guests = Guests(start.address, key=start.guest_key, agent_token=start.agent_token)
    try:
        app = build(start.store, supervision=parent, guests=guests)
        hub: Hub = app.state.hub
        invite = guests.invite() if guests is not None and start.starts == 1 else None
        is_started = run(
            app, hub, adopt(start.descriptor), started=lambda: parent.begin(hub, invite), log_level="warning"
        )
    except TenutoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    if not is_started:
        sys.exit(1)


if __name__ == "__main__":
    main()
