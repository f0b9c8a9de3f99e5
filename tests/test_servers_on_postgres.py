"""Other servers than `holdfast serve` run several processes on one PostgreSQL store, one after the other or at once.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest

from tests.postgres import needs_postgres, running_postgres
from tests.transports.test_shutdown import START_S, Running, running

pytestmark = needs_postgres

APP = """
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from holdfast import Hub, allow_everyone


async def pid(request):
    return PlainTextResponse(str(os.getpid()))


hub = Hub({url!r}, authenticate=allow_everyone, drain_s=0.5)
app = Starlette(routes=[Route("/pid", pid)])
hub.install(app, "/holdfast")
"""
UVICORN = ["-m", "uvicorn", "--app-dir", ".", "--port", "{port}"]
GUNICORN = ["-m", "gunicorn", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", "127.0.0.1:{port}"]
MESSAGES = "/holdfast/v1/channels/c/messages"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server.url


async def processes(server: Running, is_all: Callable[[set[int]], bool]) -> set[int]:
    """Return the processes that respond and have the message `m`, once `is_all` holds for them."""
    found: set[int] = set()
    async with asyncio.timeout(3 * START_S):
        while not is_all(found):
            base_url = f"http://127.0.0.1:{server.port}"
            async with httpx2.AsyncClient(trust_env=False, base_url=base_url) as http:  # one connection, one process
                try:
                    pid = int((await http.get("/pid")).text)
                    stored = await http.get(f"{MESSAGES}/m")
                except httpx2.TransportError:
                    await asyncio.sleep(0.05)  # between two tries to reach a process that is starting
                    continue
            if stored.status_code == 404:
                async with httpx2.AsyncClient(trust_env=False, base_url=base_url) as http:
                    assert (await http.post(MESSAGES, json={"id": "m", "text": "kept"})).status_code == 201
                continue
            assert (stored.status_code, stored.json()["message"]["parts"][0]["text"]) == (200, "kept")
            found.add(pid)
    return found


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([*UVICORN, "--workers", "2"], id="uvicorn"),
        pytest.param(
            [*GUNICORN, "--workers", "2"],
            id="gunicorn",
            marks=pytest.mark.skipif(
                find_spec("gunicorn") is None or find_spec("uvicorn_worker") is None, reason="gunicorn is not installed"
            ),
        ),
    ],
)
async def test_workers_of_a_server_share_the_store_and_a_dead_one_is_replaced(
    command: list[str], url: str, tmp_path: Path
) -> None:
    (tmp_path / "shared.py").write_text(APP.format(url=f"{url}?schema={'g' if 'gunicorn' in command else 'u'}"))
    async with running(tmp_path, command, "shared:app") as server:
        first = await processes(server, lambda found: len(found) == 2)
        killed = first.pop()
        os.kill(killed, signal.SIGKILL)
        after = await processes(server, lambda found: len(found - {killed}) == 2)
        assert first < after


async def test_a_server_that_reloads_serves_what_was_stored_before(url: str, tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(APP.format(url=f"{url}?schema=reloads"))
    async with running(tmp_path, [*UVICORN, "--reload"], "shared:app") as server:
        (before,) = await processes(server, lambda found: len(found) == 1)
        (after,) = {before}
        async with asyncio.timeout(START_S):
            while after == before:
                (tmp_path / "shared.py").touch()  # the first look of the reloader only notes the time
                (after,) = await processes(server, lambda found: len(found) == 1)
        assert "ERROR" not in server.output
