"""The processes of the demo: the server, the agents, and a supervisor that starts each again after a crash.

Layer: demo.

The supervisor holds the listening socket, so a browser that connects while the server is dead waits for the next one.
The agents outlive the server: they connect again and write on. A child is `python -m tenuto.demo.supervisor`: it reads
its task, one line of JSON, from standard input, and ends when that input does: then the supervisor is gone. Later lines
to the server are names of agents whose processes have ended. The server writes lines that begin with READY or CRASH.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tenuto.core.errors import LocalError, TenutoError
from tenuto.demo.guide import AGENTS, CHANNELS, Guide, model_in

READY = b"tenuto-demo ready "  # and the owner's link, if there is one
CRASH = b"tenuto-demo crash "  # and the name of the agent that the supervisor must kill
KILL_S = 0.05  # pause before the server kills itself, in which the response is sent
CONNECT_S, SLOTS = 60.0, 1_000  # limits of an agent: of the wait for its server, and of its answers at a time
PAUSE_S = 1.0  # least time between two starts of a child
MOST_FAILED_STARTS, END_S = 3, 1.5  # limits of starts in a row that fail, and of the time that children have to end


class ChildTask(Struct, frozen=True, kw_only=True):
    """The task of a child. `guest_key` is given where other machines are let in: then the server has a verifier."""

    address: str
    store: str
    guest_key: str | None
    agent: str = ""  # name of the agent; the server has none
    descriptor: int = 0  # file descriptor of the server's listening socket
    is_first: bool = False  # True: the agents of an earlier run are gone


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
    from tenuto.server.serving import address_of  # imported here: agents need no server

    missing = [package for package in ("httpx2", "websockets") if find_spec(package) is None]
    if missing:
        raise LocalError(f'the demo needs the package {missing[0]}: {sys.executable} -m pip install "tenuto[demo]"')
    key = secrets.token_urlsafe(32) if is_lan else None
    task = ChildTask(address=address_of(listening), store=store, descriptor=listening.fileno(), guest_key=key)
    return asyncio.run(_Supervisor(task, started, echo).run())


def network_address() -> str:
    """Return the address of this machine in its network. Raises LocalError without a network."""
    from tenuto.server.serving import is_local

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
        failed, died_s = 0, None
        while True:
            began_s = time.monotonic()
            self._server = await _begin(replace(self._task, is_first=died_s is None))
            is_ready = await self._read_lines(self._server, died_s)
            status = await self._server.wait()
            if self._ending.is_set():
                return
            failed = 0 if is_ready else failed + 1
            # If the first start fails, the server has printed the reason, and another start would fail, too.
            if failed and (died_s is None or failed == MOST_FAILED_STARTS):
                raise LocalError(f"the demo's server did not start (exit status {status}); its output is above")
            died_s = time.monotonic() if is_ready else died_s
            await asyncio.sleep(max(0.0, began_s + PAUSE_S - time.monotonic()))

    async def _read_lines(self, server: Process, died_s: float | None) -> bool:
        """Carry out the lines of the server until it ends. Return whether it has served.

        `died_s`: when the server before it died; None for the first one, whose first line may have the owner's link.
        """
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
            try:
                self._agents[name] = agent = await _begin(replace(self._task, agent=name))
            except OSError as error:  # for example too many processes
                self._echo(f"Agent {name} could not be started, and is tried again: {error}")
                await asyncio.sleep(PAUSE_S)
                continue
            status = await agent.wait()
            if self._ending.is_set():
                return
            while self._server is None or self._server.returncode is not None:  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)  # the next server needs the name
            _send(self._server, name.encode())  # the server gives the agent's turns to the other one
            if status == -signal.SIGKILL:
                self._echo(f"Agent {name} killed (process {agent.pid}); the other agent continues its answers.")
            await asyncio.sleep(max(0.0, began_s + PAUSE_S - time.monotonic()))


async def _begin(task: ChildTask) -> Process:
    """Start a child. In a process group of its own it does not get the terminal's Ctrl-C: the supervisor ends it."""
    command = (sys.executable, "-m", "tenuto.demo.supervisor")
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


# The children


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
    from tenuto.demo.app import Controls, build, lose_agent
    from tenuto.demo.guests import Guests
    from tenuto.server.serving import adopt, run

    logging.getLogger("tenuto.transports").addFilter(is_of_interest)
    guests = Guests(start.address, key=start.guest_key) if start.guest_key is not None else None
    controls = Controls(
        kill=lambda: asyncio.get_running_loop().call_later(KILL_S, os.kill, os.getpid(), signal.SIGKILL),
        crash=lambda agent: os.write(sys.stdout.fileno(), CRASH + agent.encode() + b"\n"),
    )
    app = build(start.store, controls=controls, guests=guests)
    lose = partial(lose_agent, app.state.hub)
    if start.is_first:
        app.state.hub.on_start(lambda: [lose(name) for name in AGENTS])  # those of an earlier demo are gone

    def begin() -> None:
        invite = guests.invite() if guests is not None and start.is_first else ""
        os.write(sys.stdout.fileno(), READY + invite.encode() + b"\n")
        app.state.hub.start_background(_until_parent_ends(lose))

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
