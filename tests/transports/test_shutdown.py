"""Real servers that shut down while streams are open: they end at once, and viewers see an incomplete stream.

Servers wait for open responses (measured: for ever), so every one of these would hang without the hub's signal hook.
In `make test-long`, each server gets each signal and app; otherwise a few cases stand for them.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from proof.chaos.processes import free_port
from proof.wirecheck import SseViewer, WsViewer
from tests.conftest import rest_in_long
from tests.nginx import needs_nginx, nginx
from tests.processes import python

APP = """
from starlette.applications import Starlette
from starlette.routing import Mount

from tenuto.app import Hub

hub = Hub("memory://", drain_s=0.5)
app = Starlette(routes=[Mount("/mounted", hub)])
"""
START_S = 60.0  # time in which an interpreter and a server start on a busy machine
END_S = 30.0  # time limit for the end; without the hub's hook the process would never end

SERVERS = {
    "uvicorn": ["-m", "uvicorn", "--app-dir", ".", "--port", "{port}"],
    "uvicorn-h11": ["-m", "uvicorn", "--app-dir", ".", "--http", "h11", "--loop", "asyncio", "--port", "{port}"],
    "granian": ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"],
}


SERVE = ["-m", "tenuto", "serve", "--port", "{port}", "--app"]

FORCED = """
import asyncio, os, signal, sys, time
from tenuto.app import Hub
from tenuto.server.serving import listen, run

hub = Hub("memory://", drain_s=0.0)


async def go_on_for_ever():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


def started():
    if sys.argv[1] == "blocks":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    hub.start_task(go_on_for_ever())
    os.kill(os.getpid(), signal.SIGTERM)


run(hub, hub, listen("127.0.0.1", 0), started=started, force_s=0.5)
"""


EMBEDDED = """
import asyncio, sys
import uvicorn
from tenuto.app import Hub
from tenuto.stores.memory import MemoryStore


class Store(MemoryStore):
    async def close(self):
        await asyncio.sleep(0.01 if sys.argv[2] == "once" else 60)
        print("closed", flush=True)


hub = Hub(Store(), drain_s=0.0)


async def main():
    await hub.start()
    server = uvicorn.Server(uvicorn.Config(hub, port=int(sys.argv[1]), lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    if sys.argv[2] == "again":
        hub.hook_signals()
    await serving


asyncio.run(main())
"""


SILENT = """
import asyncio

from tenuto.app import Hub
from tenuto.stores.memory import MemoryStore


class Silent(MemoryStore):
    async def page(self, *arguments, **fields):
        print("waiting", flush=True)
        await asyncio.Event().wait()

    heads = commit = page


hub = Hub(Silent(), drain_s=0.0)
"""


ENDPOINT = """
import asyncio

from starlette.applications import Starlette
from starlette.routing import Route

from tenuto.app import Hub

hub = Hub("sqlite:///chat.db", drain_s=1.0)


async def model():
    yield "one "
    await asyncio.Event().wait()


async def chat(request):
    return hub.stream_response("chat:1", model, prompt=request.query_params["q"], style="data")


app = Starlette(routes=[Route("/chat", chat)])
hub.install(app, "/tenuto")
"""


class Running:
    """A server process with the app above."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def text_at(self, path: str) -> str:
        """Return the text of a GET, once the server responds."""
        deadline_s = time.monotonic() + START_S
        async with httpx2.AsyncClient(trust_env=False, timeout=START_S) as http:
            while time.monotonic() < deadline_s:
                try:
                    return (await http.get(f"http://127.0.0.1:{self.port}{path}")).text
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # between two tries to reach a process that is starting
        raise AssertionError(f"the server did not respond:\n{self.output}")


@asynccontextmanager
async def running(
    folder: Path, command: list[str], app: str, *, listener: socket.socket | None = None, port: int | None = None
) -> AsyncIterator[Running]:
    """Run a server in `folder`, on `port`, a free one, or `listener`, whose descriptor is `{0}` in the command."""
    (folder / "served.py").write_text(APP)
    port = listener.getsockname()[1] if listener is not None else port or free_port()
    shared = [] if listener is None else [listener.fileno()]
    arguments = [one.format(*shared, port=port) for one in command]
    log = folder / "server.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            app,
            cwd=folder,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", "")))},
            start_new_session=True,
            pass_fds=shared,
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
        SseViewer(host, port, "c", prefix=prefix, headers={"Tenuto-Client": "py/1"}) as ours,
        WsViewer(host, port, "c", prefix=prefix) as socket,
        WsViewer(host, port, "d", prefix=prefix) as other,
    ):
        viewers = (plain, ours, socket, other)
        for viewer in viewers:
            await viewer.until_attached(timeout_s=START_S)
        yield viewers


APPS = (("served:hub", ""), ("served:app", "/mounted"))
ENDS = [  # each server with each signal, and each app with each signal
    (name, *APPS[(turn + number) % 2], (signal.SIGTERM, signal.SIGINT)[number])
    for turn, name in enumerate(SERVERS)
    for number in range(2)
]


@pytest.mark.parametrize(("name", "app", "prefix", "number"), rest_in_long(ENDS))
async def test_a_server_with_open_streams_ends_at_once(
    tmp_path: Path, name: str, app: str, prefix: str, number: signal.Signals
) -> None:
    async with running(tmp_path, SERVERS[name], app) as server:
        await server.text_at(f"{prefix}/healthz")
        async with watched(server, prefix) as (plain, ours, socket, other):
            server.process.send_signal(number)
            async with asyncio.timeout(END_S):
                await server.process.wait()
            for viewer in (plain, ours, socket, other):
                await viewer.until(lambda viewer=viewer: viewer.is_over)  # type: ignore[misc]
                # An end that looked complete would be a violation of kind "ended".
                assert viewer.checker.violations == []
            assert plain.session.bye == "draining"
            assert 1000 <= (plain.session.parser.retry_ms or 0) <= 3000
            assert ours.session.bye is None
            for one in (socket, other):
                # the worker of granian gets the signal, too, and may end sockets before the hub has sent `bye`
                if name != "granian":
                    assert one.session.bye is not None
                    assert (one.session.bye["reason"], one.session.close_code) == ("draining", 1012)
                    assert 1000 <= one.session.bye["retry_ms"] <= 3000
        assert "Traceback" not in server.output
        assert "ERROR" not in server.output


@pytest.mark.parametrize("hooks", ["once", "again"])
async def test_process_whose_hub_has_started_before_its_server_ends_by_the_signal(tmp_path: Path, hooks: str) -> None:
    (tmp_path / "embedded.py").write_text(EMBEDDED)
    async with running(tmp_path, ["embedded.py", "{port}"], hooks) as server:
        await server.text_at("/healthz")
        await end(server)
    assert server.process.returncode == -signal.SIGTERM, server.output  # as uvicorn without a hub
    assert ("closed" in server.output) == (hooks == "once")  # the signal came again, while the program ended


HANGS_UP = pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="runs under nohup")


@pytest.mark.parametrize(("number", "status"), [(2, 0), pytest.param(signal.SIGHUP, -signal.SIGTERM, marks=HANGS_UP)])
async def test_serve_ends_at_ctrl_c_and_with_its_terminal(tmp_path: Path, number: int, status: int) -> None:
    async with running(tmp_path, SERVE, "served:hub") as server:
        await server.text_at("/healthz")
        server.process.send_signal(number)
        async with asyncio.timeout(END_S):
            assert await server.process.wait() == status, server.output


async def test_second_ctrl_c_ends_serve_without_a_traceback(tmp_path: Path) -> None:
    head = "POST /v1/channels/c/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with running(tmp_path, SERVE, "served:hub") as server:
        await server.text_at("/healthz")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(f"{head}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        assert b"100 Continue" in await reader.readline()  # the request waits for its body
        async with asyncio.timeout(END_S):
            server.process.send_signal(signal.SIGINT)
            while "Shutting down" not in server.output:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the log of a process gives no notification
            server.process.send_signal(signal.SIGINT)
            await server.process.wait()
        writer.close()
        assert "Traceback" not in server.output


async def read_as_a_browser(url: str, blocks: list[list[str]]) -> int:
    """Reconnect as an EventSource, until a status other than 200 stops it for good; return that status.

    Add the lines of each response, without the ids, to `blocks`.
    """
    last_id = ""
    async with httpx2.AsyncClient(trust_env=False, timeout=START_S) as http:
        while True:
            headers = {"accept": "text/event-stream", "last-event-id": last_id}
            with suppress(httpx2.TransportError):
                async with http.stream("GET", url, headers=headers) as response:
                    if response.status_code != 200:
                        return response.status_code
                    assert response.headers["content-type"].startswith("text/event-stream")
                    blocks.append([])
                    async for line in response.aiter_lines():
                        if line.startswith("id: "):
                            last_id = line.removeprefix("id: ")
                        elif line:
                            blocks[-1].append(line)
            await asyncio.sleep(0.02)  # `retry`


SSE_PAGE = (Path(__file__).parents[2] / "docs" / "sse-endpoint.md").read_text()


@needs_nginx
async def test_eventsource_of_an_endpoint_survives_a_restart_behind_nginx(tmp_path: Path) -> None:
    (tmp_path / "endpoint.py").write_text(ENDPOINT)
    port = free_port()
    (block,) = re.findall(r"```nginx\n(.*?)```", SSE_PAGE, re.DOTALL)
    assert "retry: 2000" in block
    block = block.replace("retry: 2000", "retry: 777")  # which the hub never sends
    location = f"proxy_pass http://hub; proxy_buffering off; }} {block} location /none {{"
    with nginx(tmp_path, port, location) as shown:
        async with running(tmp_path, SERVE, "endpoint:app", port=port) as server:
            await server.text_at("/tenuto/healthz")
            blocks: list[list[str]] = []
            reading = asyncio.ensure_future(read_as_a_browser(f"http://127.0.0.1:{shown}/chat?q=why", blocks))
            async with asyncio.timeout(START_S):
                while blocks != [["data: one "]]:  # noqa: ASYNC110 - a response sets no event
                    await asyncio.sleep(0.01)
            await end(server)
        async with running(tmp_path, SERVE, "endpoint:app", port=port) as server:
            async with asyncio.timeout(START_S):
                assert await reading == 204  # the answer is complete
            answer = await server.text_at("/chat?q=")
    first, *draining, rest = blocks
    assert first == ["data: one "]
    assert draining  # it has come again during the drain
    assert all(len(block) == 1 and block[0].startswith("retry: ") for block in draining)
    assert ["retry: 777"] in draining  # of nginx, while no server runs
    assert rest == ["event: interrupted", "data: ", "data: [DONE]"]
    assert answer == "data: one \n\nevent: interrupted\ndata: \n\ndata: [DONE]\n\n"
    assert "Traceback" not in server.output
    assert "ERROR" not in server.output


WAITS = [SERVE, [*SERVERS["uvicorn"], "--timeout-graceful-shutdown", "2"]]


@pytest.mark.parametrize("command", rest_in_long(WAITS))
async def test_request_that_waits_for_the_store_has_a_response_at_the_end_of_a_drain(
    tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "silent.py").write_text(SILENT)
    async with running(tmp_path, command, "silent:hub") as server:
        await server.text_at("/healthz")
        address = f"http://127.0.0.1:{server.port}"
        async with httpx2.AsyncClient(trust_env=False, timeout=START_S) as http:
            channel = f"{address}/v1/channels/c"
            read = (http.get(path) for path in (f"{channel}/messages", channel, f"{address}/readyz"))
            written = http.post(f"{channel}/messages", json={"text": "?"})
            asked = [asyncio.ensure_future(one) for one in (*read, written)]
            async with asyncio.timeout(START_S):
                while server.output.count("waiting") < len(asked):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # between two looks at another process
            await end(server)
            for response in await asyncio.gather(*asked):
                assert (response.status_code, response.json()["code"]) == (503, "draining")
                assert int(response.headers["retry-after"]) > 0
        assert "Traceback" not in server.output
        assert "ERROR" not in server.output


# Peers and handlers that delay shutdown


async def end(server: Running) -> None:
    server.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(END_S):
        await server.process.wait()


STALLS = [
    (command, *APPS[(turn + number) % 2], kind)
    for turn, command in enumerate((SERVE, SERVERS["uvicorn"]))
    for number, kind in enumerate((WsViewer, SseViewer))
]


@pytest.mark.parametrize(("command", "app", "prefix", "kind"), rest_in_long(STALLS))
async def test_shutdown_does_not_wait_for_a_stalled_viewer(
    tmp_path: Path, command: list[str], app: str, prefix: str, kind: type[SseViewer | WsViewer]
) -> None:
    async with running(tmp_path, command, app) as server:
        await server.text_at(f"{prefix}/healthz")
        async with kind("127.0.0.1", server.port, "c", prefix=prefix, receive_buffer_bytes=4096) as viewer:
            await viewer.until_attached(timeout_s=START_S)
            viewer.stall()
            url = f"http://127.0.0.1:{server.port}{prefix}/v1/channels/c/messages"
            async with httpx2.AsyncClient(trust_env=False, timeout=START_S) as http:
                for _ in range(16):  # more text than the kernel buffers for a stalled peer
                    assert (await http.post(url, json={"text": "x" * 500_000})).status_code == 201
            await end(server)
        assert "Traceback" not in server.output


@pytest.mark.parametrize("how", ["blocks", "is deaf"])
async def test_serve_is_ended_by_force_if_code_blocks_or_ignores_cancellation(tmp_path: Path, how: str) -> None:
    script = tmp_path / "forced.py"
    script.write_text(FORCED)
    async with python(str(script), how) as process, asyncio.timeout(START_S):
        _, errors = await process.communicate()
    assert process.returncode == 1, errors
    assert b"most recent call first" in errors  # it prints the stacks of all threads
