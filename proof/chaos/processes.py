"""Real processes: servers, producers and others, which are started, stopped, killed and started again.

Layer: chaos.

All of them listen on loopback only. A process is ended by its own id. The output of a server is its log in the folder
of the run; all other processes print reports, one JSON object per line.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proof.wirecheck import Response

START_S = 60.0  # a machine with little memory reads each module from its disk again
END_S = 20.0
ASK_S = 10.0
LATE_S = 0.5  # longest wait of an event loop without a line in the report
# Browsers refuse 10,080; the system gives those from 32,768 on to outgoing connections.
_ports = iter(random.SystemRandom().sample(range(10_081, 32_768), 22_000))
# A process locks byte N of this file for its port N. Its folder is the same for all, whatever their TMPDIR.
_book = os.open(f"/tmp/tenuto-ports-{os.geteuid()}", os.O_RDWR | os.O_CREAT, 0o600)

Json = dict[str, Any]
Report = Callable[[Json], None]


class Failure(Exception):
    """A rule is broken. `account` describes the run."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.account = detail


async def say_when_late(say: Callable[[str], None]) -> None:
    """Say how late the event loop is, each time that its machine or its work delays it by more than `LATE_S`."""
    while True:
        due_s = time.monotonic() + LATE_S
        await asyncio.sleep(LATE_S)  # the measure
        if (late_s := time.monotonic() - due_s) > LATE_S:
            say(f"the event loop of this process was {late_s:.1f} s late")


def short(value: object) -> str:
    """Return the value as text, without its middle if it is long."""
    shown = repr(value)
    return shown if len(shown) <= 400 else f"{shown[:250]} … {shown[-100:]}"


def free_port() -> int:
    """Return a free loopback port, which no other process gets while this one runs. Raises OSError."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            fcntl.lockf(_book, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            return port
    raise OSError("no port is free")


async def ask(port: int, method: str, path: str, body: object | None = None, headers: str = "") -> tuple[int, Any]:
    """Send one request on its own connection; return status and decoded body. Raises OSError, also without a whole
    response, and WireError."""
    data = json.dumps(body).encode() if body is not None else b""
    if body is not None:
        headers += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n"
    response, content = Response(), b""
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode("latin-1") + data)
                while not response.is_complete:
                    if not (data := await reader.read(64 * 1024)):
                        raise OSError(f"{method} {path} was cut: {content[-80:]!r}")
                    content += response.receive(data)
            finally:
                writer.transport.abort()
    except TimeoutError:
        raise OSError(f"{method} {path} got no response in {ASK_S} s") from None
    return response.status, json.loads(content) if content[:1] in b"{[" and content else content.decode()


class Child:
    """A child process. With `report` its output is read line by line; otherwise it goes to `log`, as its errors do."""

    def __init__(
        self, name: str, arguments: list[str], log: Path, *, report: Report | None = None, takes_input: bool = False,
        program: str = sys.executable,
    ) -> None:  # fmt: skip
        self.name = name
        self._program = program
        self._arguments = arguments
        self._log = log
        self._report = report
        self._takes_input = takes_input
        self.environment: dict[str, str] = {}  # variables that are added to the environment of this process
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def spawn(self) -> None:
        """Start the process, and return before it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                self._program,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE if self._takes_input else asyncio.subprocess.DEVNULL,
                stdout=log if self._report is None else asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **self.environment},
                limit=64 * 1024 * 1024,  # a report of all that a viewer shows is one line
            )
        if self._report is not None:
            self._reader = asyncio.get_running_loop().create_task(self._read(self._report))

    async def _read(self, report: Report) -> None:
        assert self.process.stdout is not None
        while (line := await self.process.stdout.readline()).endswith(b"\n"):
            if line.startswith(b"{"):  # otherwise a line of `tenuto serve`
                report(json.loads(line))

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send_line(self, line: str) -> None:
        """Write a line to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self, timeout_s: float = END_S) -> int:
        """Wait for the end and the last report; return the exit status. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            code = await self.process.wait()
            if self._reader is not None:
                await self._reader
        return code

    async def kill(self) -> None:
        """End the process as `kill -9` does; return when it has ended."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def clean_up(self) -> None:
        """End the process in any state, and free its resources."""
        if self.is_running:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)


class Server(Child):
    """A server on its own port, which stays the same after each start, and on the file of the run.

    `arguments` are those of Python, up to the `serve` command; `prefix` is the path of the hub.
    """

    def __init__(
        self, name: str, folder: Path, store: Path, *, arguments: list[str], prefix: str = "",
        report: Report | None = None,
    ) -> None:  # fmt: skip
        self.port = free_port()
        self.prefix = prefix
        self.store = store
        super().__init__(name, [*arguments, "--port", str(self.port)], folder / f"{name}.log", report=report)

    @property
    def nodes(self) -> list[Server]:
        """Return the processes that serve the hub."""
        return [self]

    @classmethod
    def plain(cls, name: str, folder: Path, store: Path) -> Server:
        """Return `tenuto serve`."""
        return cls(name, folder, store, arguments=["-m", "tenuto", "serve", "--store", f"sqlite:///{store}"])

    @classmethod
    def of_app(cls, name: str, folder: Path, store: Path, orders: object, **more: Any) -> Server:
        """Return `tenuto serve --app` with the app of `proof.chaos.app`, whose settings are `orders`."""
        arguments = ["-m", "tenuto", "serve", "--app", "proof.chaos.app:app"]
        server = cls(name, folder, store, arguments=arguments, prefix="/tenuto", **more)
        server.environment = {"TENUTO_CHAOS": json.dumps(orders)}
        return server

    async def start(self) -> None:
        """Start, and wait until it serves. Raises AssertionError if it does not."""
        await self.spawn()
        await self.serves()

    async def serves(self) -> None:
        """Wait until it responds. Raises AssertionError if it ends or takes too long."""
        deadline_s = asyncio.get_running_loop().time() + START_S
        while asyncio.get_running_loop().time() < deadline_s and self.is_running:
            with contextlib.suppress(OSError):
                if (await ask(self.port, "GET", self.prefix + "/healthz"))[0] == 200:
                    return
            await asyncio.sleep(0.01)  # pause before the next try to connect
        self.signal(signal.SIGABRT)  # the process prints where it hangs
        await self.ended()
        raise AssertionError(f"{self.name} did not start within {START_S} s:\n{self.log[-4_000:]}")

    async def get(self, path: str) -> tuple[int, Any]:
        """Send a GET to its hub."""
        return await ask(self.port, "GET", self.prefix + path)
