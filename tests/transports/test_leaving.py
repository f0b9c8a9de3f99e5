"""Real servers that are told to end while streams are open: they end at once, and viewers know that it was no end.

Servers wait for open responses (measured: for ever), so every one of these would hang without the hub's signal hook.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from holdfast.testing.rawviewer import SseViewer, WsViewer
from tests.processes import free_port

APP = """
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from holdfast.app import Hub


async def pid(request):
    return PlainTextResponse(str(os.getpid()))


hub = Hub("memory://", drain_s=0.5)
app = Starlette(routes=[Route("/pid", pid), Mount("/mounted", hub)])
"""
START_S = 20.0  # an interpreter and a server on a busy machine
END_S = 4.0  # what is looked for is an end at all: a hang is a hang for ever

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--app-dir", ".", "--port", "{port}"],
    "uvicorn-h11": ["-m", "uvicorn", "--app-dir", ".", "--http", "h11", "--loop", "asyncio", "--port", "{port}"],
    "granian": ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"],
}


class Running:
    """A server process with the app above."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def answer(self, path: str) -> str:
        """The text of a GET, as soon as there is one."""
        deadline_s = time.monotonic() + START_S
        async with httpx2.AsyncClient(trust_env=False) as http:
            while time.monotonic() < deadline_s:
                try:
                    return (await http.get(f"http://127.0.0.1:{self.port}{path}")).text
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # between two tries to reach a process that is starting
        raise AssertionError(f"the server did not answer:\n{self.output}")


@asynccontextmanager
async def running(folder: Path, command: list[str], app: str) -> AsyncIterator[Running]:
    (folder / "served.py").write_text(APP)
    port = free_port()
    arguments = [one.format(port=port) for one in command]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            app,
            cwd=folder,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(folder)},
            start_new_session=True,
        )
    server = Running(process, port, log)
    try:
        yield server
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@asynccontextmanager
async def watched(server: Running, prefix: str) -> AsyncIterator[tuple[SseViewer, SseViewer, WsViewer, WsViewer]]:
    """An EventSource, one of our clients, a socket with a channel, and one on another channel."""
    host, port = "127.0.0.1", server.port
    async with (
        SseViewer(host, port, "c", prefix=prefix) as plain,
        SseViewer(host, port, "c", prefix=prefix, headers={"Holdfast-Client": "py/1"}) as ours,
        WsViewer(host, port, "c", prefix=prefix) as socket,
        WsViewer(host, port, "d", prefix=prefix) as other,
    ):
        viewers = (plain, ours, socket, other)
        for viewer in viewers:
            await viewer.until_attached(timeout_s=START_S)
        yield viewers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("app", "prefix"), [("served:hub", ""), ("served:app", "/mounted")])
@pytest.mark.parametrize("name", list(SERVERS))
async def test_a_server_with_open_streams_ends_at_once(
    tmp_path: Path, name: str, app: str, prefix: str, number: signal.Signals
) -> None:
    async with running(tmp_path, SERVERS[name], app) as server:
        await server.answer(f"{prefix}/healthz")
        async with watched(server, prefix) as (plain, ours, socket, other):
            server.process.send_signal(number)
            async with asyncio.timeout(END_S):
                await server.process.wait()
            for viewer in (plain, ours, socket, other):
                await viewer.until(lambda viewer=viewer: viewer.is_over)  # type: ignore[misc]
                # An end that looked complete would be a violation of kind "ended".
                assert viewer.checker.violations == []
            assert plain.session.bye == "draining"
            assert ours.session.bye is None
            for one in (socket, other):
                if name != "granian":  # it hears the signal too, and may drop sockets before we have said goodbye
                    assert one.session.bye is not None
                    assert one.session.bye["reason"] == "draining"
        assert "Traceback" not in server.output


async def test_a_reload_does_not_hang_on_an_open_stream(tmp_path: Path) -> None:
    command = ["-m", "uvicorn", "--app-dir", ".", "--reload", "--port", "{port}"]
    async with running(tmp_path, command, "served:app") as server:
        before = await server.answer("/pid")
        async with watched(server, "/mounted") as viewers:
            async with asyncio.timeout(START_S):
                while (after := await server.answer("/pid")) == before:
                    (tmp_path / "served.py").touch()  # the first look of the reloader only notes the time
                    await asyncio.sleep(0.05)  # between two looks at another process
            for viewer in viewers:
                await viewer.until(lambda viewer=viewer: viewer.is_over)  # type: ignore[misc]
                await viewer.reconnect()
                await viewer.until_attached()
                assert viewer.checker.violations == []
        assert after.isdigit()
