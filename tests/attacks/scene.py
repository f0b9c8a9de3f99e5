"""The scene of an attack: a server process, a client that works meanwhile, and viewers that check each byte it sends.

Layer: tests.

The server runs `tenuto serve` with a verifier. The bystander appends to a message and measures each request. Two
strict viewers of `wirecheck` follow it, by SSE and by WebSocket. The attack runs in a process of its own, so that it
does not delay the measurements.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from proof.wirecheck import SseViewer, WsViewer, encode_frame
from tenuto.portal import Portal
from tests.attacks.attacker import HANDSHAKE
from tests.processes import Process, Server

IS_LONG = os.environ.get("TENUTO_ATTACKS") == "long"
ATTACK_S = 15.0 if IS_LONG else 2.0
QUIET_REQUESTS = 60
# The median on an idle machine. With a smaller one as the measure, chance would decide.
QUIET_S = 0.004
PAUSE_S = 0.005
# Objects that a server makes once, at its first sockets, stay in memory (2.7 MiB). They are no effect of the attack.
WARMING_SOCKETS = 20
# Requests of the bystander during an attack of two seconds or more. Fewer are a stall, whatever their median is.
LEAST_REQUESTS = 5
REQUESTS = 500  # requests of the bystander on one connection: nginx and hypercorn end a connection after 1,000
PATIENCE_S = 30.0
SECRET = "a secret of the tests, with more than 32 bytes"
AUDIENCE = "attacks"
MIB = 1024 * 1024
PERSON = ["subscribe", "history", "publish", "presence", "command"]
CHANNEL = "bystander"


def token(client: str, capabilities: list[str], channels: str = "*") -> str:
    """Return a token that the server accepts."""
    claims = {"sub": client, "aud": AUDIENCE, "exp": time.time() + 3600, "tenuto": {channels: capabilities}}
    return jwt.encode(claims, SECRET, algorithm="HS256")


class Bystander:
    """A client that appends small texts to the message `m` of a channel, and the requests that it has sent."""

    def __init__(self, port: int, channel: str, bearer: str) -> None:
        self.port = port
        self.text = ""
        self._path = f"/v1/channels/{channel}/messages"
        self._bearer = bearer

    def loop_cpu_s(self) -> float:
        """Return the CPU time of the server's event loop, where it is measured."""
        return 0.0

    async def begin(self) -> None:
        """Begin the message."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        begun = {"id": "m", "role": "assistant", "status": "streaming"}
        assert (await ask(reader, writer, "POST", self._path, begun, self._bearer))[0] == 201
        writer.close()

    async def append_until(self, is_over: Callable[[], bool], *, most: int | None = None) -> list[Request]:
        """Append small texts, one after another, until `is_over`; return the requests."""
        requests: list[Request] = []
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            while not is_over() and (most is None or len(requests) < most):
                began_s, began_cpu_s = time.monotonic(), self.loop_cpu_s()
                body = {"text": f"{len(self.text)} ", "at": len(self.text)}
                status, response = await ask(reader, writer, "POST", f"{self._path}/m/append", body, self._bearer)
                assert status == 200, response
                self.text += str(body["text"])
                requests.append(Request(began_s, time.monotonic() - began_s, self.loop_cpu_s() - began_cpu_s))
                if len(requests) % REQUESTS == 0:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                await asyncio.sleep(PAUSE_S)  # more text would make the server grow by itself
        finally:
            writer.close()
        return requests


class Scene(Bystander):
    """A server under attack, and the clients that must not notice."""

    def __init__(self, server: Process, port: int, pid: int) -> None:
        """Attack `port`, which may be that of a proxy, and measure the process `pid`."""
        super().__init__(port, CHANNEL, writer_token())
        self.server = server
        self.pid = pid
        self.attack_times_s = (0.0, 0.0)  # of the last attack: when it was under way, and its end at the latest

    # The server's memory

    def memory_bytes(self) -> int:
        """Return the resident memory of the server."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Return the most resident memory since `reset_peak`."""
        return self._status("VmHWM")

    def reset_peak(self) -> None:
        """Begin a new measurement of the peak."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    async def until_memory_is_back(self, before_bytes: int) -> float:
        """Return after how many seconds resident memory is within 15 % of `before_bytes`. Raises TimeoutError."""
        began_s = time.monotonic()
        while self.memory_bytes() > before_bytes * 1.15:
            if time.monotonic() > began_s + PATIENCE_S:
                raise TimeoutError(f"{self.memory_bytes() / MIB:.1f} MiB, {before_bytes / MIB:.1f} before")
            await asyncio.sleep(0.1)  # polls, because the operating system reports no change
        return time.monotonic() - began_s

    def descriptors(self) -> int:
        """Return how many files the server has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def most_descriptors(self, until: asyncio.Future[Any]) -> int:
        """Return by how many the server's open files grow at most until `until` is done."""
        before = most = self.descriptors()
        while not until.done():
            most = max(most, self.descriptors())
            await asyncio.sleep(0.02)  # polls, because the operating system reports no change
        return most - before

    def loop_cpu_s(self) -> float:
        """Return the CPU time of the server's main thread, which runs its event loop."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def _status(self, field: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    # The attack

    async def attack(self, name: str, under_way: asyncio.Event, **options: Any) -> dict[str, Any]:
        """Run an attack of `attacker` in a process of its own and return its report."""
        arguments = [name, json.dumps({"port": self.port, "seconds": ATTACK_S, **options})]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.attacks.attacker", *arguments, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(ATTACK_S + 2 * PATIENCE_S):
                under_way_s, until_s = (await process.stdout.readline()).removeprefix(b"under way ").split()
                self.attack_times_s = (float(under_way_s), float(until_s))
                under_way.set()
                report: dict[str, Any] = json.loads(await process.stdout.read())
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return report


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    method: str,
    path: str,
    body: Any = None,
    bearer: str | None = None,
) -> tuple[int, Any]:
    """Send one request on an open connection; return the status and the decoded body."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    if body is not None:
        head += "Content-Type: application/json\r\n"
    if bearer:
        head += f"Authorization: Bearer {bearer}\r\n"
    writer.write(head.encode() + b"\r\n" + data)
    async with asyncio.timeout(PATIENCE_S):
        response = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", response)
        content = await reader.readexactly(int(length[1])) if length else b""
    return int(response[9:12]), json.loads(content) if content else None


_writer_token = ""


def writer_token() -> str:
    """Return the token of the bystander, which may write."""
    global _writer_token
    _writer_token = _writer_token or token("bystander", ["subscribe", "history", "publish", "append"])
    return _writer_token


@contextlib.asynccontextmanager
async def scene(folder: Path, *options: str, by: tuple[str, ...] = ("-m", "tenuto")) -> AsyncIterator[Scene]:
    """A server with a verifier that has served a little, so that its memory is that of a working server."""
    secret = folder / "secret"
    secret.write_text(SECRET)
    # Without a sync for each commit: the bystander is to measure the server, and not the disk.
    store = f"sqlite:///{folder}/attacked.db?synchronous=normal"
    verifier = ("--jwt-secret-file", str(secret), "--jwt-audience", AUDIENCE)
    with Server("serve", folder, "--store", store, *verifier, *options, by=by) as server:
        one = Scene(server, server.port, server.running.pid)
        await one.begin()
        for number in range(WARMING_SOCKETS):
            assert await introduces_itself(one, f"early-{number}")
        yield one
        assert "Traceback" not in server.output, server.output[-3_000:]


@contextlib.asynccontextmanager
async def watched(
    port: int, channel: str, bearer: str, text: Callable[[], str], prefix: str = ""
) -> AsyncIterator[None]:
    """Strict viewers of the message `m`. At the end they have seen all of `text`, without a gap or a false end."""
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    options: dict[str, Any] = {"headers": headers, "prefix": prefix}
    # `flush_ms` keeps the number of events, and so the viewers' own work, small.
    async with (
        SseViewer("127.0.0.1", port, channel, query={"flush_ms": "250"}, **options) as by_sse,
        WsViewer("127.0.0.1", port, channel, attach_fields={"flush_ms": 250}, **options) as by_socket,
    ):
        viewers = (by_sse, by_socket)
        for viewer in viewers:
            await viewer.until_attached(PATIENCE_S)
        yield
        for viewer in viewers:
            await viewer.until(lambda: viewer.checker.text("m") == text(), PATIENCE_S)  # noqa: B023
            assert viewer.checker.violations == [], viewer.checker.violations
            assert viewer.checker.status("m") == "streaming"
            assert (viewer.connections, viewer.is_over) == (1, False)


@contextlib.contextmanager
def bystander(port: int, bearer: str = "") -> Iterator[None]:
    """A client that writes beside the block, and its `watched` viewers, in a thread: attacks may block this one."""
    portal, begun, over = Portal("bystander"), threading.Event(), asyncio.Event()
    loop = portal.start()
    running = asyncio.run_coroutine_threadsafe(_stand_by(port, bearer, begun, over), loop)
    running.add_done_callback(lambda _: begun.set())  # also if it fails
    try:
        begun.wait(PATIENCE_S)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        try:
            running.result(2 * PATIENCE_S)
        finally:
            portal.stop(lambda: asyncio.sleep(0), PATIENCE_S)  # no client is left to close


async def _stand_by(port: int, bearer: str, begun: threading.Event, over: asyncio.Event) -> None:
    """Append to a message of a channel of its own until `over`, and once more."""
    channel = f"bystander-{secrets.token_hex(8)}"
    one = Bystander(port, channel, bearer)
    await one.begin()
    async with watched(port, channel, bearer, lambda: one.text):
        begun.set()
        await one.append_until(over.is_set)
        await one.append_until(lambda: False, most=1)


async def introduces_itself(one: Scene, client: str, address: str = "127.0.0.1", headers: str = "") -> bool:
    """Return whether a new socket, from a loopback address, gets in with a token in its first frame."""
    auth = json.dumps({"type": "auth", "ref": 1, "token": token(client, PERSON)})
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port, local_addr=(address, 0))
            try:
                writer.write(f"{HANDSHAKE}{headers}\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
                writer.write(encode_frame(1, auth.encode(), mask=b"mask"))
                await reader.readuntil(b'{"type":"ok","ref":1')
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        print(f"{client} did not get in: {error!r}")  # for the report of a failed test
        return False
    return True


@dataclass(frozen=True)
class Request:
    """One request of the bystander."""

    began_s: float
    took_s: float
    cpu_s: float  # CPU time of the server's event loop meanwhile

    def falls_between(self, from_s: float, to_s: float) -> bool:
        """Return whether a part of the request falls between two times."""
        return from_s - self.took_s < self.began_s < to_s


class TooSlow(AssertionError):
    """A time was longer than its bound. The other work of a machine can cause it, so the attack is run again."""


@dataclass(frozen=True)
class Outcome:
    """The effect of an attack: its own report, the growth of the server, and the bystander's median.

    The median of CPU times is that of the requests while the attack was under way: an attack delays requests, so those
    before and after it may be the majority. A crowd is under way when its connections are open (decision 0082).
    """

    report: dict[str, Any]
    before_bytes: int
    growth_bytes: int
    quiet_s: float
    median_s: float  # also of requests while the attack began and ended
    quiet_cpu_s: float  # CPU time of the server's event loop during a request of the bystander, as a median
    median_cpu_s: float
    requests: int  # requests of the bystander while the attack was under way
    worst_s: float
    descriptors: int  # the most that the server had open, beyond those before
    beside: Any  # the result of the other clients

    def check(self, most_growth_bytes: int, most_cpu_s: float | None = None) -> None:
        """Check the growth of the server, and that the bystander's median stays below three times its quiet value.

        During the attack it is the median of CPU times, with the bound `most_cpu_s` if there is one.
        """
        self.check_with_cpu_time(most_growth_bytes, most_cpu_s)
        self._check_time(self.median_s < 3 * max(self.quiet_s, QUIET_S))

    def check_with_cpu_time(self, most_growth_bytes: int, most_cpu_s: float | None = None) -> None:
        """Check the same in CPU time alone, for attacks whose process takes the CPU from the server and the bystander.

        The CPU time of the event loop during a request is the work that stands in front of it, and does not depend on
        the other work of the machine. With `most_cpu_s` this is the bound of the median.
        """
        assert self.growth_bytes <= most_growth_bytes, self.growth_bytes / MIB
        self._check_time(self.requests >= LEAST_REQUESTS)
        self._check_time(self.median_cpu_s < (most_cpu_s or 3 * max(self.quiet_cpu_s, QUIET_S)))

    def check_limited(self) -> None:
        """Check that the first responses hold a refusal by rate, for attacks that a slow server never lets reach it."""
        self._check_time("HTTP/1.1 429" in self.report["first"])

    def _check_time(self, is_met: bool) -> None:
        if not is_met:
            raise TooSlow(self)


async def run(one: Scene, name: str, *, beside: Callable[[], Awaitable[Any]] | None = None, **options: Any) -> Outcome:
    """Run an attack beside the bystander and its viewers, and `beside` once the attack is under way."""

    async def others() -> Any:
        await under_way.wait()
        return await beside() if beside is not None else None

    under_way = asyncio.Event()
    async with watched(one.port, CHANNEL, writer_token(), lambda: one.text):
        quiet = await one.append_until(lambda: False, most=QUIET_REQUESTS)
        before_bytes = one.memory_bytes()
        one.reset_peak()
        async with asyncio.TaskGroup() as tasks:
            attack = tasks.create_task(one.attack(name, under_way, **options))
            descriptors = tasks.create_task(one.most_descriptors(attack))
            result = tasks.create_task(others())
            requests = await one.append_until(attack.done)
        growth_bytes = one.peak_bytes() - before_bytes
    under_way_s, until_s = one.attack_times_s
    during = [request for request in requests if request.falls_between(under_way_s, until_s)]
    assert during, f"no request of the bystander during the attack {name}: {attack.result()}"
    outcome = Outcome(
        attack.result(),
        before_bytes,
        growth_bytes,
        statistics.median(request.took_s for request in quiet),
        statistics.median(request.took_s for request in requests),
        statistics.median(request.cpu_s for request in quiet),
        statistics.median(request.cpu_s for request in during),
        len(during),
        max(request.took_s for request in during),
        descriptors.result(),
        result.result(),
    )
    print(
        f"{name}: +{growth_bytes / MIB:.1f} MiB on {before_bytes / MIB:.1f}; bystander "
        f"{1000 * outcome.median_s:.1f} ms, quiet {1000 * outcome.quiet_s:.1f} ms; {len(during)} requests during the "
        f"attack, worst {1000 * outcome.worst_s:.0f} ms, CPU {1000 * outcome.median_cpu_s:.1f} ms, quiet "
        f"{1000 * outcome.quiet_cpu_s:.1f} ms; {outcome.descriptors} more files; {outcome.report}"
    )
    return outcome
