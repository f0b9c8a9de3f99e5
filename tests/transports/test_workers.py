"""Several workers of one server on one store file: one serves, the others refuse at once and say why.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from typing import Any

import httpx2

from tests.conftest import in_long
from tests.transports.test_shutdown import START_S, running

APP = """
from starlette.applications import Starlette
from starlette.routing import Mount

from tenuto import Hub

app = Starlette(routes=[Mount("/mounted", Hub("sqlite:///chat.db"))])
"""
AT_ONCE_S = 4.0  # less than the wait of 5 s for a process that is about to end
REFUSED = (
    r"the store is in use by process \d+ \([\w.]+\): it is another worker of this server: run one worker "
    r"\(--workers 1\), or use a postgresql:// store, which several processes may share"
)
TRIES = 400  # number of tries; the kernel gives the connection of each to either worker


@in_long
async def test_a_second_worker_refuses_at_once_and_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(APP)
    command = ["-m", "uvicorn", "--app-dir", ".", "--workers", "2", "--port", "{port}"]
    async with running(tmp_path, command, "workers:app") as server:
        await server.text_at("/mounted/healthz")
        base_url = f"http://127.0.0.1:{server.port}/mounted"
        seen: dict[int, tuple[Any, int, Any]] = {}
        async with asyncio.timeout(START_S * 3):
            for _ in range(TRIES):
                # One connection, and so one worker, for both requests.
                async with httpx2.AsyncClient(trust_env=False, base_url=base_url, timeout=START_S) as http:
                    began_s = time.monotonic()
                    response = await http.get("/v1/channels/c")
                    if response.status_code == 503 and time.monotonic() - began_s >= AT_ONCE_S:
                        continue  # the machine is busy, or the worker waits for the other one in each try
                    ready = await http.get("/readyz")
                seen[response.status_code] = (response.json(), ready.status_code, ready.json())
                if seen.keys() == {200, 503}:
                    break
        assert seen[200][1:] == (200, {"status": "ready"}), server.output
        refused, *readiness = seen[503]
        assert refused["code"] == "store_in_use"
        assert re.fullmatch(REFUSED, refused["detail"])
        assert readiness[0] == 503
        assert re.fullmatch(REFUSED, readiness[1]["detail"])
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_S):
            await server.process.wait()
