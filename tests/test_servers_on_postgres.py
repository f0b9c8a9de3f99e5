"""Several processes of a server on one PostgreSQL store: workers, one after the other, and two behind a proxy.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import httpx2
import pytest

from proof.wirecheck import Checker, SseViewer, WsViewer
from tenuto.client import Client
from tenuto.core.events import ChannelAttached
from tenuto.core.model import Message
from tenuto.core.view import View
from tests.caddy import caddy_of_the_docs, needs_caddy
from tests.conftest import in_long, rest_in_long
from tests.examples.nodes import Node
from tests.nginx import needs_nginx, nginx_of_the_docs
from tests.postgres import Postgres, needs_postgres
from tests.processes import PATIENCE_S, request
from tests.redis_server import needs_redis, running_redis
from tests.transports.test_shutdown import START_S, Running, running

pytestmark = needs_postgres
needs_gunicorn = pytest.mark.skipif(
    find_spec("gunicorn") is None or find_spec("uvicorn_worker") is None, reason="gunicorn is not installed"
)

APP = """
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenuto import Hub, allow_everyone


async def pid(request):
    return PlainTextResponse(str(os.getpid()))


hub = Hub({url!r}, authenticate=allow_everyone, drain_s=0.5)
app = Starlette(routes=[Route("/pid", pid)])
hub.install(app, "/tenuto")
"""
AGENT = """
import asyncio


@hub.agent("chat:*", on_crash="continue")
async def answer(turn):
    async with turn.reply() as message:
        await message.append(f"{turn.attempt}:{os.getpid()} ")
        while turn.attempt == 1:
            await message.append("on ")
            await asyncio.sleep(0.02)
"""
VIEWER = """

async def view():
    async for _ in hub.subscribe("c").batches():
        pass


viewers = []


async def received(request):
    viewers.extend(() if viewers else [hub.start_task(view())])
    await hub.signal("c", "typing")
    return PlainTextResponse(f"{os.getpid()} {hub.stats()['bus_received']}")


app.routes.append(Route("/received", received))
"""
UVICORN = ["-m", "uvicorn", "--app-dir", ".", "--port", "{port}"]
GUNICORN = ["-m", "gunicorn", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", "127.0.0.1:{port}"]
ON_SOCKET = (
    "import socket, sys, uvicorn as u; u.Server(u.Config(sys.argv[2])).run([socket.socket(fileno=int(sys.argv[1]))])"
)
MESSAGES = "/tenuto/v1/channels/c/messages"


async def processes(server: Running, is_all: Callable[[set[int]], bool]) -> set[int]:
    """Return the processes that respond and have the message `m`, once `is_all` holds for them."""
    found: set[int] = set()
    async with asyncio.timeout(3 * START_S):
        while not is_all(found):
            base_url = f"http://127.0.0.1:{server.port}"
            # one connection, one process
            async with httpx2.AsyncClient(trust_env=False, base_url=base_url, timeout=START_S) as http:
                try:
                    pid = int((await http.get("/pid")).text)
                    stored = await http.get(f"{MESSAGES}/m")
                    if stored.status_code == 404:
                        assert (await http.post(MESSAGES, json={"id": "m", "text": "kept"})).status_code == 201
                        continue
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # between two tries to reach a process that is starting
                    continue
            assert (stored.status_code, stored.json()["message"]["parts"][0]["text"]) == (200, "kept")
            found.add(pid)
    return found


WORKERS = [
    pytest.param([*UVICORN, "--workers", "2"], id="uvicorn"),
    pytest.param([*GUNICORN, "--workers", "2"], id="gunicorn", marks=needs_gunicorn),
]


@pytest.mark.parametrize("command", rest_in_long(WORKERS))
async def test_workers_of_a_server_share_the_store_and_a_dead_one_is_replaced(
    command: list[str], postgres: Postgres, tmp_path: Path
) -> None:
    url = f"{postgres.url}?schema={'g' if 'gunicorn' in command else 'u'}"
    (tmp_path / "shared.py").write_text(APP.format(url=url))
    async with running(tmp_path, command, "shared:app") as server:
        first = await processes(server, lambda found: len(found) == 2)
        killed = first.pop()
        os.kill(killed, signal.SIGKILL)
        after = await processes(server, lambda found: len(found - {killed}) == 2)
        assert first < after


@needs_gunicorn
@needs_redis
async def test_workers_that_a_server_forks_after_it_has_made_the_hub_receive_the_notices_of_one_another(
    postgres: Postgres, tmp_path: Path
) -> None:
    received: dict[int, int] = {}
    with running_redis() as redis:
        app = APP.format(url=f"{postgres.url}?schema=forked").replace("drain_s=0.5", f"drain_s=0.5, bus={redis.url!r}")
        (tmp_path / "shared.py").write_text(app + VIEWER)
        async with running(tmp_path, [*GUNICORN, "--workers", "2", "--preload"], "shared:app") as server:
            async with asyncio.timeout(3 * START_S):
                while sum(map(bool, received.values())) < 2:
                    pid, count = map(int, (await server.text_at("/received")).split())
                    received[pid] = count
            names = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE application_name LIKE 'tenuto on %'"
            db = await asyncpg.connect(postgres.url)
            shown = {int(name.rpartition(" ")[2]) for (name,) in await db.fetch(names)}
            await db.close()
            assert shown >= set(received)


SUCCESSIONS = [
    ("overlap", ["-c", ON_SOCKET, "{0}"]),
    ("reload", [*UVICORN, "--reload"]),
    pytest.param("sighup", [*GUNICORN, "--workers", "1"], marks=needs_gunicorn),
]


@in_long
@pytest.mark.parametrize(("kind", "command"), SUCCESSIONS)
async def test_an_answer_and_its_viewer_continue_in_the_next_process(
    kind: str, command: list[str], postgres: Postgres, tmp_path: Path
) -> None:
    app = tmp_path / "shared.py"
    app.write_text(APP.format(url=f"{postgres.url}?schema={kind}") + AGENT)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0))) if kind == "overlap" else None
        server = await stack.enter_async_context(running(tmp_path, command, "shared:app", listener=listener))
        (old,) = await processes(server, lambda found: len(found) == 1)
        client = await stack.enter_async_context(Client(f"http://127.0.0.1:{server.port}/tenuto"))
        batches = await stack.enter_async_context(aclosing(client.subscribe("chat:1").batches()))
        view = View()

        async def until(is_so: Callable[[Message], bool]) -> Message:
            async with asyncio.timeout(3 * START_S):
                while not (answers := [one for one in view.messages() if one.reply_to]) or not is_so(answers[0]):
                    batch = await anext(batches)
                    begins = any(isinstance(one, ChannelAttached) and not one.resumed for one in batch.events)
                    assert view.cursor is None or not begins
                    view.receive(batch)
            return answers[0]

        await client.create("chat:1", id="q", role="user", text="?")
        await until(lambda answer: len(answer.text) > 50)
        if kind == "overlap":  # the old process drains while the next one serves
            await stack.enter_async_context(running(tmp_path, command, "shared:app", listener=listener))
            await processes(server, lambda found: len(found) == 2)
            server.process.terminate()
        elif kind == "reload":
            while "Reloading" not in server.output:
                app.touch()  # the first look of the reloader only notes the time
                await processes(server, lambda found: len(found) == 1)
        else:
            server.process.send_signal(signal.SIGHUP)
        answer = await until(lambda answer: answer.status == "complete")
        found = re.fullmatch(rf"1:{old} (?:on )+2:(\d+) ", answer.text)
        assert found is not None, answer.text
        assert found[1] != str(old)
        assert "ERROR" not in server.output


# Two processes behind a proxy ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    """Run a process with an agent, and one without."""
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        here, there = (
            Node(["tests.shared_app", postgres.url, part], folder / f"{part}.log") for part in ("agent", "root")
        )
        for node in (here, there):  # the second process learns of the agent at its start
            port = stack.enter_context(node).port
            node.until(lambda port=port: request(port, "GET", "/tenuto/readyz")[0] == 200)  # type: ignore[misc]
        yield here, there


async def shows(viewer: WsViewer | SseViewer, answer: str) -> None:
    """Wait until `viewer` shows further text of an answer."""
    before = len(viewer.checker.text(answer))
    await viewer.until(lambda: len(viewer.checker.text(answer)) > before + 10, PATIENCE_S)


@pytest.mark.parametrize(
    "is_nginx",
    [pytest.param(True, marks=needs_nginx, id="two nginx"), pytest.param(False, marks=needs_caddy, id="caddy")],
)
async def test_two_processes_behind_a_proxy_serve_each_other_on_each_transport(
    nodes: tuple[Node, Node], tmp_path: Path, is_nginx: bool
) -> None:
    ports = {f"127.0.0.1:{node.port}" for node in nodes}
    name = f"chat:{'nginx' if is_nginx else 'caddy'}"
    prefix, channel = "/chat/tenuto", f"/v1/channels/{name}"
    each = [node.port for node in nodes]
    # The page's nginx believes the address that a trusted proxy before it sends. Its Caddy trusts none.
    client = "203.0.113.9" if is_nginx else "127.0.0.1"
    with nginx_of_the_docs(tmp_path, *each, is_two=True) if is_nginx else caddy_of_the_docs(tmp_path, *each) as port:
        async with AsyncExitStack() as stack:
            http = await stack.enter_async_context(
                httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/chat", trust_env=False, timeout=PATIENCE_S)
            )
            for _ in ports:  # the proxy takes the processes in turn
                response = await http.get("/seen", headers={"x-forwarded-for": "203.0.113.9"})
                path = "/chat/seen" if response.headers["x-node"] == f"127.0.0.1:{nodes[1].port}" else "/seen"
                host = "127.0.0.1" if is_nginx else f"127.0.0.1:{port}"  # nginx leaves the port out
                assert response.json() == [f"http://{host}{path}", client]

            where = ("127.0.0.1", port, name)
            sockets = [WsViewer(*where, prefix=prefix) for _ in ports]
            streams = [SseViewer(*where, prefix=prefix) for _ in ports]
            viewers: list[WsViewer | SseViewer] = [*sockets, *streams]
            for viewer in viewers:
                await stack.enter_async_context(viewer)
                await viewer.until_attached(PATIENCE_S)
            served = [viewer.session.response.headers["x-node"] for viewer in viewers]
            assert set(served[:2]) == set(served[2:]) == ports

            asked = {"id": "q", "role": "user", "text": "?"}
            assert (await http.post(f"/tenuto{channel}/messages", json=asked)).status_code == 201
            await viewers[0].until(lambda: "q" in viewers[0].checker.messages, PATIENCE_S)
            await viewers[0].until(lambda: len(viewers[0].checker.messages) == 2, PATIENCE_S)
            answer = next(one for one in viewers[0].checker.messages if one != "q")
            for viewer in viewers:
                await shows(viewer, answer)

            polls = Checker(name)
            polled: set[str] = set()
            async with asyncio.timeout(PATIENCE_S):
                while polled != ports:
                    since = {"since": polls.cursor} if polls.cursor is not None else {}
                    polls.begin(polls.cursor, is_poll=True)
                    response = await http.get(f"/tenuto{channel}/poll", params=since)
                    batch = response.json()
                    polls.take(batch["events"], batch["cursor"])
                    if any(one["type"] == "message.append" for one in batch["events"]):
                        polled.add(response.headers["x-node"])
            assert polls.violations == []

            while (await http.get("/seen")).headers["x-node"] != f"127.0.0.1:{nodes[0].port}":
                pass
            stop = await http.post(f"/tenuto{channel}/commands", json={"name": "cancel", "target": answer})
            assert (stop.status_code, stop.headers["x-node"]) == (201, f"127.0.0.1:{nodes[1].port}")
            await asyncio.to_thread(nodes[0].until, lambda: f"model of {name} closed" in nodes[0].output)
            for viewer in viewers:
                await viewer.until(lambda one=viewer: one.checker.status(answer) == "cancelled", PATIENCE_S)
                assert viewer.checker.violations == []
