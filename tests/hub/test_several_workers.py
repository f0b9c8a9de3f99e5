"""A hub on a store for one process names the mistake if its server runs several workers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from proof.chaos.processes import free_port
from tests.conftest import IS_LONG
from tests.processes import Process, listening, request

# The wrapper has no attribute that leads to the app, so `tenuto serve` does not find the hub.
APP = """
from starlette.applications import Starlette

from tenuto import Hub, allow_everyone

inner = Starlette()
Hub("memory://", authenticate=allow_everyone, drain_s=0).install(inner, "/tenuto")


async def app(scope, receive, send):
    await inner(scope, receive, send)
"""
UVICORN = ("-m", "uvicorn", "--app-dir", ".", "wrapped:app", "--port")
GUNICORN = ("-m", "gunicorn", "wrapped:app", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind")
SERVE = ("-m", "tenuto", "serve", "--app", "wrapped:app", "--port")
needs_gunicorn = pytest.mark.skipif(
    find_spec("gunicorn") is None or find_spec("uvicorn_worker") is None, reason="gunicorn is not installed"
)


def output_of(folder: Path, server: Sequence[str], *options: str) -> str:
    """Return the output of a server up to its first response of the hub."""
    (folder / "wrapped.py").write_text(APP)
    port = free_port()
    address = f"127.0.0.1:{port}" if server is GUNICORN else str(port)
    process = Process([*server, address, *options], folder / "log", folder=folder)
    with listening(process, port):  # ends the server by a signal: a killed one leaves its workers behind
        process.until(lambda: request(port, "GET", "/tenuto/readyz")[0] == 200)
    return process.output


SERVERS = [SERVE, UVICORN, pytest.param(GUNICORN, marks=needs_gunicorn)]


@pytest.mark.parametrize("server", SERVERS if IS_LONG else SERVERS[:1])
def test_hub_on_a_memory_store_warns_if_its_server_runs_several_workers(tmp_path: Path, server: Sequence[str]) -> None:
    warning = "this server runs 2 workers, and a memory store serves one process"
    assert warning in output_of(tmp_path, server, "--workers", "2")


OPTIONS = [("--reload", "--workers", "2"), ("--workers", "1"), ("--reload",)]


@pytest.mark.parametrize("options", OPTIONS if IS_LONG else OPTIONS[:1], ids=" ".join)
def test_hub_in_the_only_worker_of_its_server_does_not_warn(tmp_path: Path, options: Sequence[str]) -> None:
    assert "workers, and a memory store" not in output_of(tmp_path, UVICORN, *options)
