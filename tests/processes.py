"""Real processes for tests: servers and producers that a test starts, kills and starts again.

Layer: tests.

Each server listens on loopback, on a port that was free. A test ends a process by its process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

from proof.chaos.processes import free_port

PATIENCE_S = 60.0


class Process:
    """A child process of the tests. Its output goes to a file, for the message of a failed test."""

    def __init__(
        self, arguments: list[str], log: Path, *, program: str = sys.executable, folder: Path | None = None
    ) -> None:
        self._arguments = [program, *arguments]
        self._log = log
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments, stdout=log, stderr=subprocess.STDOUT, env={**os.environ}, cwd=self._folder
            )

    def __enter__(self) -> Self:
        """Start the process, which ends with the block."""
        try:
            self.start()
        except BaseException:
            self.clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.clean_up()

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def until(self, is_ready: Callable[[], bool], *, patience_s: float = PATIENCE_S) -> None:
        """Wait until `is_ready` holds; it may fail to connect meanwhile. Raises AssertionError with the output."""
        deadline_s = time.monotonic() + patience_s
        while time.monotonic() < deadline_s and self.running.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if is_ready():
                    return
            time.sleep(0.02)  # between two attempts to connect to a process that is starting
        raise AssertionError(f"the process did not start:\n{self.output}")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.running.send_signal(number)
        return self.running.wait(PATIENCE_S)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        return self.running.wait(PATIENCE_S * 3)

    def clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(PATIENCE_S)

    @property
    def output(self) -> str:
        return self._log.read_text()


class Server(Process):
    """`tenuto demo` or `tenuto serve`, on the same port after each start."""

    def __init__(
        self, command: str, folder: Path, *options: str, by: tuple[str, ...] = ("-m", "tenuto"), host: str = "127.0.0.1"
    ) -> None:
        """Prepare the command. `by` are the arguments of Python that run `tenuto`."""
        self.port = free_port()
        self.host = host
        self.store = folder / "test.db"
        place = ["--port", str(self.port), "--store", f"sqlite:///{self.store}"]
        place += ["--host", host] if host != "127.0.0.1" else []
        super().__init__([*by, command, *place, *options], folder / "server.log")

    @property
    def hub(self) -> str:
        """Return the path prefix of the hub."""
        return "/tenuto" if "demo" in self._arguments else ""

    def start(self) -> None:
        """Start the server, and wait until it serves."""
        super().start()
        self.until(lambda: self.get(f"{self.hub}/healthz")[0] == 200)

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON of a GET."""
        return request(self.port, "GET", path, host=self.host)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """Return status and JSON of a POST."""
        return request(self.port, "POST", path, body, host=self.host)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait until the port is free too, since the demo has children, and return the exit code."""
        code = super().end(number)
        deadline_s = time.monotonic() + PATIENCE_S
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline_s:
                socket.create_connection((self.host, self.port), PATIENCE_S).close()
                time.sleep(0.01)  # between two attempts to connect to a process that is ending
        return code

    def message(self, channel: str, message_id: str) -> dict[str, Any]:
        """Return the stored message."""
        status, response = self.get(f"{self.hub}/v1/channels/{channel}/messages/{message_id}")
        assert status == 200, response
        found: dict[str, Any] = response["message"]
        return found


def request(
    port: int,
    method: str,
    path: str,
    body: object | None = None,
    *,
    host: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Send a request to a server on this machine; return status and decoded body."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        headers = {**({"content-type": "application/json"} if body is not None else {}), **(headers or {})}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        data = response.read()
        is_json = "json" in (response.getheader("content-type") or "")
        return response.status, json.loads(data) if is_json and data else data.decode()
    finally:
        connection.close()


@contextlib.contextmanager
def listening(process: Process, port: int, *, end: signal.Signals = signal.SIGTERM) -> Iterator[int]:
    """Run a process, and end it with the signal `end`; gives `port`, once the process listens on it."""

    def is_listening() -> bool:
        socket.create_connection(("127.0.0.1", port)).close()
        return True

    process.start()
    try:
        process.until(is_listening)
        yield port
    finally:
        process.end(end)


@contextlib.contextmanager
def serving(command: str, folder: Path, *options: str, host: str = "127.0.0.1") -> Iterator[Server]:
    """Run a server until the block ends."""
    with Server(command, folder, *options, host=host) as server:
        yield server


@contextlib.asynccontextmanager
async def python(*arguments: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python with pipes for its output; kill it at the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environ}
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a message's text parts."""
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")
