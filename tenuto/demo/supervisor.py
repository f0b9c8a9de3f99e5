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
from importlib.util import find_spec

import msgspec

from tenuto.core.errors import LocalError
from tenuto.demo.child import AGENTS, CRASH, READY, AgentStart, ServerStart
from tenuto.serving import address_of, is_local

__all__ = ["MOST_RESTARTS", "RESTARTS_S", "network_address", "supervise"]

MOST_RESTARTS = 20  # limit of restarts of one child within RESTARTS_S; a person may press the demo's button that often
RESTARTS_S = 60.0
MOST_FAILED_STARTS = 3  # limit of starts in a row that fail
END_S = 1.5  # time that the children have to end; then they are killed

Child = asyncio.subprocess.Process
Echo = Callable[[str], object]


def supervise(
    listening: socket.socket, store: str, *, is_lan: bool, started: Callable[[str | None], object], echo: Echo
) -> int:
    """Serve the demo on `listening` until a signal ends it; return that signal, or 0 if the server ended by itself.

    `started` is called with the owner's link, if there is one, when the first server serves. `echo` gets a line for
    each restart. Raises LocalError if a package is missing, or if the server does not start or dies too often.
    """
    missing = [package for package in ("httpx2", "websockets") if find_spec(package) is None]
    if missing:
        raise LocalError(f'the demo needs the package {missing[0]}: {sys.executable} -m pip install "tenuto[demo]"')
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
        self._server: Child | None = None
        self._agents: dict[str, Child] = {}
        self._signal: int | None = None
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Keep the children running. See `supervise`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        serving = asyncio.ensure_future(self._keep_server())
        others = [asyncio.ensure_future(self._keep_agent(name)) for name in AGENTS]
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            # If an agent cannot run, the demo goes on without it; if the server cannot run, the demo ends.
            await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            self._ending.set()
            await self._end_children()
            for task in (serving, *others, ending):
                task.cancel()
            await asyncio.gather(serving, *others, ending, return_exceptions=True)
        return self._signal or 0

    def _end(self, number: int) -> None:
        self._signal = self._signal or number
        self._ending.set()

    async def _end_children(self) -> None:
        """Let the server notify its viewers before it ends. Agents are killed: the store has all their state."""
        running = [one for one in (self._server, *self._agents.values()) if one is not None and one.returncode is None]
        for one in running:
            _signal(one, signal.SIGTERM if one is self._server else signal.SIGKILL)
        ended = [asyncio.ensure_future(one.wait()) for one in running]
        if ended:
            await asyncio.wait(ended, timeout=END_S)
        for one in running:
            _signal(one, signal.SIGKILL)
        await asyncio.gather(*ended)

    # -- the server

    async def _keep_server(self) -> None:
        """Start the server, and start it again after each crash. Raises LocalError."""
        restarts = _Restarts()
        failed, is_first, died_s = 0, True, None
        while True:
            start = ServerStart(
                descriptor=self._listening.fileno(),
                address=self._address,
                store=self._store,
                is_first=is_first,
                agent_token=self._agent_token,
                guest_key=self._guest_key,
            )
            self._server = await _begin(start, pass_fds=(start.descriptor,))
            is_ready = await self._read_lines(self._server, died_s)
            status = await self._server.wait()
            if self._ending.is_set():
                return
            failed = 0 if is_ready else failed + 1
            # If the first start fails, the server has printed the reason, and another start would fail, too.
            if failed and (is_first or failed == MOST_FAILED_STARTS):
                raise LocalError(f"the demo's server did not start (exit status {status}); its output is above")
            if restarts.count():
                raise LocalError(
                    f"the demo's server died {MOST_RESTARTS} times within {RESTARTS_S:.0f} s "
                    f"(exit status {status}); its output is above"
                )
            is_first = False
            died_s = time.monotonic() if is_ready else died_s

    async def _read_lines(self, server: Child, died_s: float | None) -> bool:
        """Carry out the lines of the server until it ends. Return whether it has served."""
        assert server.stdout is not None
        is_ready = False
        async for line in server.stdout:
            if line.startswith(READY):
                is_ready = True
                if died_s is None:
                    self._started(line.removeprefix(READY).decode().strip() or None)
                else:
                    self._echo(f"Server restarted after {time.monotonic() - died_s:.1f} s.")
            elif line.startswith(CRASH):
                agent = self._agents.get(line.removeprefix(CRASH).decode().strip())
                if agent is not None:
                    _signal(agent, signal.SIGKILL)
            else:
                sys.stdout.buffer.write(line)  # a library has printed it
                sys.stdout.flush()
        return is_ready

    # -- the agents

    async def _keep_agent(self, name: str) -> None:
        restarts = _Restarts()
        token = self._agent_token if self._guest_key else None
        while not self._ending.is_set():
            self._agents[name] = agent = await _begin(AgentStart(url=f"{self._address}/tenuto", name=name, token=token))
            status = await agent.wait()
            if self._ending.is_set():
                return
            if self._server is not None:
                await _send(self._server, name.encode())  # the server gives the agent's turns to the other one
            if status == -signal.SIGKILL:
                self._echo(f"Agent {name} killed (process {agent.pid}); the other agent continues its answers.")
            if restarts.count():
                self._echo(f"The agent {name} died too often and is not started again; the other one answers.")
                return


async def _begin(start: ServerStart | AgentStart, *, pass_fds: tuple[int, ...] = ()) -> Child:
    """Start a child. In a process group of its own it does not get the terminal's Ctrl-C: the supervisor ends it."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tenuto.demo.child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if pass_fds else None,
        pass_fds=pass_fds,
        process_group=0,
    )
    await _send(child, msgspec.json.encode(start))
    return child


async def _send(child: Child, line: bytes) -> None:
    """Write a line to a child, unless the child has ended."""
    assert child.stdin is not None
    with contextlib.suppress(ConnectionError):
        child.stdin.write(line + b"\n")
        await child.stdin.drain()


def _signal(child: Child, number: int) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)
