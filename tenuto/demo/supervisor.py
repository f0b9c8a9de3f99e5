"""The supervisor: the parent of the demo's server and agents, which starts each again after a crash.

Layer: demo.

It holds the listening socket, so a browser that connects while the server is dead waits for the next one instead of
being refused. The agents outlive the server: they connect again and write on. All children end with the supervisor,
however it ends, because they read from its pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

import msgspec
from msgspec import Struct

from tenuto.core.errors import LocalError
from tenuto.demo.control import (
    AGENTS,
    UNAVAILABLE,
    AgentStart,
    Crash,
    Crashed,
    Ready,
    Restarted,
    ServerStart,
    encode,
)
from tenuto.serving import address_of, is_local

__all__ = ["MOST_RESTARTS", "network_address", "supervise"]

MOST_RESTARTS = 20  # limit of restarts of one child within RESTARTS_S; a person may press the demo's button that often
RESTARTS_S = 60.0
MOST_FAILED_STARTS = 3  # limit of starts in a row that fail
END_S = 1.5  # time that the children have to end; then they are killed

Echo = Callable[[str], object]


def supervise(
    listening: socket.socket, store: str, *, is_lan: bool, started: Callable[[str | None], object], echo: Echo
) -> int:
    """Serve the demo on `listening` until a signal ends it; return that signal, or 0 if the server ended by itself.

    `started` is called with the owner's link, if there is one, when the first server serves. `echo` gets a line for
    each restart. Raises LocalError if the server does not start, or dies too often.
    """
    return asyncio.run(_Supervisor(listening, store, is_lan=is_lan, started=started, echo=echo).run())


def network_address() -> str:
    """Return the address of this machine in its network. Raises LocalError without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # Connecting a datagram socket sends no packet: the kernel only chooses the address to send from. The other
        # address is one that no machine has (RFC 5737).
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        if not is_local(address):
            return address
    raise LocalError("--lan found no network on this machine; connect it, or name its address with --host")


class _Restarts:
    """Counts the restarts of one child."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._times_s: deque[float] = deque(maxlen=MOST_RESTARTS)

    def count(self) -> bool:
        """Count a restart; return whether there were too many within RESTARTS_S."""
        now_s = self._now_s()
        is_too_many = len(self._times_s) == MOST_RESTARTS and now_s - self._times_s[0] < RESTARTS_S
        self._times_s.append(now_s)
        return is_too_many


class _Supervisor:
    """One run of the demo."""

    def __init__(
        self, listening: socket.socket, store: str, *, is_lan: bool, started: Callable[[str | None], object], echo: Echo
    ) -> None:
        self._listening = listening
        self._address = address_of(listening)
        self._store = store
        self._started = started
        self._echo = echo
        self._agent_token = secrets.token_urlsafe(24)
        self._guest_key = secrets.token_urlsafe(32) if is_lan else None
        self._server: asyncio.subprocess.Process | None = None
        self._agents: dict[str, asyncio.subprocess.Process] = {}
        self._signal: int | None = None
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Keep the children running. See `supervise`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        keeping = [
            asyncio.ensure_future(self._keep_server()),
            *(asyncio.ensure_future(self._keep_agent(name)) for name in AGENTS),
        ]
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            # If an agent cannot run, the demo goes on without it; if the server cannot run, the demo ends.
            await asyncio.wait([keeping[0], ending], return_when=asyncio.FIRST_COMPLETED)
            if keeping[0].done():
                keeping[0].result()
        finally:
            self._ending.set()
            await self._end_children()
            for task in (*keeping, ending):
                task.cancel()
            await asyncio.gather(*keeping, ending, return_exceptions=True)
        return self._signal or 0

    def _end(self, number: int) -> None:
        self._signal = self._signal or number
        self._ending.set()

    async def _end_children(self) -> None:
        """Let the server notify its viewers before it ends. Agents are killed: the store has all their state."""
        running = [one for one in (self._server, *self._agents.values()) if one is not None and one.returncode is None]
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                one.send_signal(signal.SIGTERM if one is self._server else signal.SIGKILL)
        ended = [asyncio.ensure_future(one.wait()) for one in running]
        if ended:
            await asyncio.wait(ended, timeout=END_S)
        for one in running:
            if one.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    one.kill()
        await asyncio.gather(*ended)

    # -- the server --------------------------------------------------------------------------------------------

    async def _keep_server(self) -> None:
        """Start the server, and start it again after each crash. Raises LocalError."""
        restarts = _Restarts()
        died_at_s: float | None = None
        failed, starts, cause = 0, 0, ""
        while True:
            starts += 1
            start = ServerStart(
                descriptor=self._listening.fileno(),
                address=self._address,
                store=self._store,
                starts=starts,
                died_at_s=died_at_s,
                agent_token=self._agent_token,
                guest_key=self._guest_key,
            )
            self._server = await _begin("tenuto.demo.server", start, pass_fds=(self._listening.fileno(),))
            is_ready = await self._listen_to(self._server, cause)
            status = await self._server.wait()
            if self._ending.is_set():
                return
            failed = 0 if is_ready else failed + 1
            # If the first start fails, the server has printed the reason, and another start would fail, too.
            if failed and (starts == 1 or failed == MOST_FAILED_STARTS):
                raise LocalError(f"the demo's server did not start ({_cause(status)}); its output is above")
            if restarts.count():
                raise LocalError(
                    f"the demo's server died {MOST_RESTARTS} times within {RESTARTS_S:.0f} s "
                    f"(the last time: {_cause(status)}); its output is above"
                )
            if is_ready:
                died_at_s, cause = time.monotonic(), _cause(status)

    async def _listen_to(self, server: asyncio.subprocess.Process, cause: str) -> bool:
        """Carry out the lines of the server until it ends. Return whether it has served."""
        assert server.stdout is not None
        is_ready = False
        async for line in server.stdout:
            try:
                message = _from_server.decode(line)
            except msgspec.DecodeError:
                sys.stdout.buffer.write(line)  # not a line of JSON: a library has printed it
                sys.stdout.flush()
                continue
            match message:
                case Ready(down_s=down_s, invite=invite):
                    is_ready = True
                    if down_s is None:
                        self._started(invite)
                        continue
                    self._echo(f"Server restarted after {down_s:.1f} s ({cause}).")
                    for agent in self._agents.values():
                        await _send(agent, Restarted())
                case Crash():
                    await _send(server, Crashed(message.agent, await self._crash(message.agent)))
        return is_ready

    # -- the agents --------------------------------------------------------------------------------------------

    async def _keep_agent(self, name: str) -> None:
        restarts = _Restarts()
        while not self._ending.is_set():
            start = AgentStart(
                url=f"{self._address}/tenuto", name=name, token=self._agent_token if self._guest_key else None
            )
            self._agents[name] = agent = await _begin("tenuto.demo.worker", start)
            status = await agent.wait()
            if self._ending.is_set() or status == UNAVAILABLE:
                return
            if restarts.count():
                self._echo(f"The agent {name} died too often and is not started again; the others answer.")
                return

    async def _crash(self, name: str) -> int | None:
        """Kill an agent with SIGKILL, and return its process id when it is dead; None if it does not run."""
        agent = self._agents.get(name)
        if agent is None or agent.returncode is not None:
            return None
        with contextlib.suppress(ProcessLookupError):
            agent.kill()
        await agent.wait()
        self._echo(f"Agent {name} killed (process {agent.pid}); another agent continues its answer.")
        return agent.pid


_from_server: msgspec.json.Decoder[Ready | Crash] = msgspec.json.Decoder(Ready | Crash)


async def _begin(module: str, start: Struct, *, pass_fds: tuple[int, ...] = ()) -> asyncio.subprocess.Process:
    """Start a child. In a process group of its own it does not get the terminal's Ctrl-C: the supervisor ends it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if pass_fds else None,
        pass_fds=pass_fds,
        process_group=0,
    )
    await _send(child, start)
    return child


async def _send(child: asyncio.subprocess.Process, line: Struct) -> None:
    """Write a line to a child, unless the child has ended."""
    assert child.stdin is not None
    with contextlib.suppress(ConnectionError):
        child.stdin.write(encode(line))
        await child.stdin.drain()


def _cause(status: int) -> str:
    """Return in a word how a process with this exit status ended."""
    if status == -signal.SIGKILL:
        return "killed"
    return f"by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
