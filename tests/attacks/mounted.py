"""A hub under another server than `tenuto serve`, alone or behind nginx with the settings of `docs/deployment.md`.

Layer: tests.

The server has one process with the hub. The program that supervises it, if there is one, has no memory to speak of, so
the scene reads the memory of the largest process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proof.chaos.engines import DEPLOYMENT
from proof.chaos.processes import free_port
from tests.attacks.scene import AUDIENCE, SECRET, Scene
from tests.nginx import nginx_of_the_docs
from tests.processes import Process, request

HYPERCORN = os.environ.get("TENUTO_HYPERCORN") or shutil.which("hypercorn")  # its program, in any environment

_APP = """
import asyncio
from starlette.applications import Starlette
from starlette.routing import Mount
from tenuto import Hub
from tenuto.hub.access.tokens import jwt_verifier
verifier = jwt_verifier(secret={secret!r}, audience={audience!r})
hub = Hub({store!r}, authenticate=verifier)

async def slow_verifier(scope):
    # as one that queries a database for a token that it has not seen, and finds none
    if (b"authorization", b"Bearer slow") in scope["headers"]:
        await asyncio.sleep(9)
    return await verifier(scope)

slow_hub = Hub({store!r}, authenticate=slow_verifier)

app = Starlette(routes=[Mount("/", app=hub)])
"""


# the options for sockets that the docs give uvicorn
(SOCKET_OPTIONS,) = re.findall(r"^- uvicorn needs `([^`]+)`", DEPLOYMENT.read_text(), re.MULTILINE)
_UVICORN = ["-m", "uvicorn", "--port", "{port}", "--no-access-log"]
_GRANIAN = ["-m", "granian", "--interface", "asgi", "--http", "1", "--http1-header-read-timeout", "10000"]
SERVERS = {
    "uvicorn-httptools": [*_UVICORN, "--http", "httptools", "served:app"],
    "uvicorn-h11": [*_UVICORN, "--http", "h11", "served:app"],
    "uvicorn-sockets": [*_UVICORN, *SOCKET_OPTIONS.split(), "served:app"],
    "granian": [*_GRANIAN, "--backlog", "4096", "--port", "{port}", "served:app"],
    "tenuto": ["-m", "tenuto", "serve", "--port", "{port}", "--app", "served:slow_hub"],
    "hypercorn": ["-w", "0", "-b", "127.0.0.1:{port}", "served:app"],
}


class MountedServer(Process):
    """A server process with a mounted hub that has a verifier."""

    def __init__(self, name: str, folder: Path) -> None:
        self.port = free_port()
        # Without a sync for each commit, as in the scene of `tenuto serve`.
        store = f"sqlite:///{folder}/attacked.db?synchronous=normal"
        (folder / "served.py").write_text(_APP.format(store=store, secret=SECRET, audience=AUDIENCE))
        self._working_folder = folder
        arguments = [one.format(port=self.port) for one in SERVERS[name]]
        program = sys.executable
        if name == "hypercorn":
            if HYPERCORN is None:
                pytest.skip("hypercorn is not installed: set TENUTO_HYPERCORN to its program")
            program = HYPERCORN
        elif importlib.util.find_spec(arguments[1]) is None:
            pytest.skip(f"{arguments[1]} is not installed")
        super().__init__(arguments, folder / "mounted.log", program=program)

    def start(self) -> None:
        """Start the server in its folder, and wait until it serves."""
        with contextlib.chdir(self._working_folder):
            super().start()
        self.until(lambda: request(self.port, "GET", "/healthz")[0] == 200)

    @property
    def pid_of_hub(self) -> int:
        """Return the largest process of the server."""
        own = self.running.pid
        return max((own, *self._children()), key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))

    def clean_up(self) -> None:
        """Kill the server and its children: granian waits for open streams, and its worker outlives a killed parent."""
        is_running = self._process is not None and self._process.poll() is None
        children = self._children() if is_running else []
        super().clean_up()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _children(self) -> list[int]:
        own = self.running.pid
        return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


@contextlib.asynccontextmanager
async def mounted_scene(folder: Path, name: str, *, is_behind_nginx: bool) -> AsyncIterator[Scene]:
    """A mounted hub that has served a little, as `scene` has it for `tenuto serve`."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(MountedServer(name, folder))
        port = server.port
        if is_behind_nginx:
            port = stack.enter_context(nginx_of_the_docs(folder, server.port))
        one = Scene(server, port=port, pid=server.pid_of_hub)
        await one.begin()
        yield one
