"""Several workers of one server on one store file: one serves, the others refuse at once and say why.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.transports.test_shutdown import START_S, running

APP = """
from starlette.applications import Starlette
from starlette.routing import Mount

from holdfast import Hub

app = Starlette(routes=[Mount("/mounted", Hub("sqlite:///chat.db"))])
"""
TRIES = 400  # number of tries; the kernel gives the connection of each to either worker


async def test_a_second_worker_refuses_at_once_and_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(APP)
    command = ["-m", "uvicorn", "--app-dir", ".", "--workers", "2", "--port", "{port}"]
    async with running(tmp_path, command, "workers:app") as server:
        await server.text_at("/mounted/healthz")
        seen: dict[int, Any] = {}
        async with asyncio.timeout(START_S * 3):
            for _ in range(TRIES):
                began_s = time.monotonic()
                async with httpx2.AsyncClient(trust_env=False) as http:
                    response = await http.get(f"http://127.0.0.1:{server.port}/mounted/readyz")
                if response.status_code == 503:
                    assert time.monotonic() - began_s < 4  # without the wait of 5 s for the other process
                seen[response.status_code] = response.json()
                if seen.keys() == {200, 503}:
                    break
        assert seen[200] == {"status": "ready"}, server.output
        assert seen[503]["code"] == "store_in_use"
        assert seen[503]["detail"].startswith("the store is in use by process ")
        assert "run one worker" in seen[503]["detail"]
        assert str(tmp_path) not in seen[503]["detail"]
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_S):
            await server.process.wait()
