"""The supervisor: the parent of the demo's server and agents, which starts each again after a crash.

Layer: demo.

It holds the listening socket, so a browser that connects while the server is dead waits for the next one. The agents
outlive the server: they connect again and write on. All children end with it, because they read from its pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from importlib.util import find_spec

import msgspec
from msgspec.structs import replace

from tenuto.core.errors import LocalError
from tenuto.demo.child import CRASH, READY, ChildTask
from tenuto.demo.guide import AGENTS
from tenuto.server.serving import address_of, is_local

PAUSE_S = 1.0  # least time between two starts of a child
MOST_FAILED_STARTS, END_S = 3, 1.5  # limits of starts in a row that fail, and of the time that children have to end


def supervise(
    listening: socket.socket,
    store: str,
    *,
    is_lan: bool,
    started: Callable[[str | None], object],
    echo: Callable[[str], object],
) -> int:
    """Serve the demo on `listening` until a signal ends it, and return that signal.

    `started` is called with the owner's link, if there is one, when the first server serves. `echo` gets a line for
    each restart. Raises LocalError if a package is missing, or if the server does not start.
    """
    missing = [package for package in ("httpx2", "websockets") if find_spec(package) is None]
    if missing:
        raise LocalError(f'the demo needs the package {missing[0]}: {sys.executable} -m pip install "tenuto[demo]"')
    key = secrets.token_urlsafe(32) if is_lan else None
    task = ChildTask(address=address_of(listening), store=store, descriptor=listening.fileno(), guest_key=key)
    return asyncio.run(_Supervisor(task, started, echo).run())


def network_address() -> str:
    """Return the address of this machine in its network. Raises LocalError without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        # This sends no packet: the kernel only chooses the address to send from, to one of no machine (RFC 5737).
        probe.connect(("192.0.2.1", 9))
        address: str = probe.getsockname()[0]
        if not is_local(address):
            return address
    raise LocalError("--lan found no network on this machine; connect it, or name its address with --host")


class _Supervisor:
    """One run of the demo; `started` and `echo` are as of `supervise`."""

    def __init__(self, task: ChildTask, started: Callable[[str | None], object], echo: Callable[[str], object]) -> None:
        self._task = task  # of the server; that of an agent has its name, too
        self._started, self._echo = started, echo
        self._server: Process | None = None
        self._agents: dict[str, Process] = {}
        self._ended_by: int | None = None
        self._ending = asyncio.Event()

    async def run(self) -> int:
        """Keep the children running. See `supervise`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._end, number)
        serving = asyncio.ensure_future(self._keep_server())
        others = [asyncio.ensure_future(self._keep_agent(name)) for name in AGENTS]
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
        self._ending.set()
        await self._end_children()
        if serving.done():
            serving.result()  # raises the reason why it could not start
        for task in (serving, *others, ending):
            task.cancel()  # `asyncio.run` waits for its end
        return self._ended_by or 0

    def _end(self, number: int) -> None:
        self._ended_by = self._ended_by or number
        self._ending.set()

    async def _end_children(self) -> None:
        """Let the server notify its viewers before it ends. Agents are killed: the store has all their state."""
        running = [one for one in (self._server, *self._agents.values()) if one is not None]
        for one in running:
            _signal(one, signal.SIGTERM if one is self._server else signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await asyncio.gather(*(one.wait() for one in running))
        for one in running:
            _signal(one, signal.SIGKILL)
            await one.wait()

    async def _keep_server(self) -> None:
        """Start the server, and start it again after each crash. Raises LocalError."""
        failed, is_first, died_s = 0, True, None
        while True:
            began_s = time.monotonic()
            self._server = await _begin(replace(self._task, is_first=is_first))
            is_ready = await self._read_lines(self._server, died_s)
            status = await self._server.wait()
            if self._ending.is_set():
                return
            failed = 0 if is_ready else failed + 1
            # If the first start fails, the server has printed the reason, and another start would fail, too.
            if failed and (is_first or failed == MOST_FAILED_STARTS):
                raise LocalError(f"the demo's server did not start (exit status {status}); its output is above")
            is_first = False
            died_s = time.monotonic() if is_ready else died_s
            await asyncio.sleep(max(0.0, began_s + PAUSE_S - time.monotonic()))

    async def _read_lines(self, server: Process, died_s: float | None) -> bool:
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
                _signal(self._agents[line.removeprefix(CRASH).decode().strip()], signal.SIGKILL)
            else:
                self._echo(line.decode(errors="replace").rstrip())  # a library has printed it
        return is_ready

    async def _keep_agent(self, name: str) -> None:
        while not self._ending.is_set():
            began_s = time.monotonic()
            self._agents[name] = agent = await _begin(replace(self._task, agent=name))
            status = await agent.wait()
            if self._ending.is_set():
                return
            if self._server is not None:
                _send(self._server, name.encode())  # the server gives the agent's turns to the other one
            if status == -signal.SIGKILL:
                self._echo(f"Agent {name} killed (process {agent.pid}); the other agent continues its answers.")
            await asyncio.sleep(max(0.0, began_s + PAUSE_S - time.monotonic()))


async def _begin(task: ChildTask) -> Process:
    """Start a child. In a process group of its own it does not get the terminal's Ctrl-C: the supervisor ends it."""
    command = (sys.executable, "-m", "tenuto.demo.child")
    fds = () if task.agent else (task.descriptor,)
    child = await asyncio.create_subprocess_exec(
        *command, stdin=PIPE, stdout=PIPE if fds else None, pass_fds=fds, process_group=0
    )
    _send(child, msgspec.json.encode(task))
    return child


def _send(child: Process, line: bytes) -> None:
    """Write a line to a child, unless the child has ended."""
    assert child.stdin is not None
    child.stdin.write(line + b"\n")  # short, so that no wait is needed


def _signal(child: Process, number: int) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)
