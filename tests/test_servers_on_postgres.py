"""Other servers than `tenuto serve` run several processes on one PostgreSQL store, one after the other or at once.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import httpx2
import pytest

from tenuto.client import Client
from tenuto.core.events import ChannelAttached
from tenuto.core.model import Message
from tenuto.core.view import View
from tests.conftest import in_long, rest_in_long
from tests.postgres import Postgres, needs_postgres
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
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # between two tries to reach a process that is starting
                    continue
            if stored.status_code == 404:
                async with httpx2.AsyncClient(trust_env=False, base_url=base_url, timeout=START_S) as http:
                    assert (await http.post(MESSAGES, json={"id": "m", "text": "kept"})).status_code == 201
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
    (tmp_path / "shared.py").write_text(
        APP.format(url=f"{postgres.url}?schema={'g' if 'gunicorn' in command else 'u'}")
    )
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
