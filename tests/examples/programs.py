"""Load the example programs and serve them.

Layer: tests.

`load` imports an example from its file, since `examples` is not a package. Each test gets a module of its own, whose
store is in the test's folder and whose model does not wait between tokens.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from django.conf import settings
from django.urls import clear_url_caches
from django.utils.functional import empty
from starlette.testclient import TestClient

from tenuto.server.serving import address_of, listen, server

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
PROCESSES = ("agent_elsewhere",)  # they run no server: `test_agents` starts them
PAGELESS = ("mcp_task",)  # they serve programs: `test_mcp_task`
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in PROCESSES + PAGELESS)


def blocks(page: str, language: str = "python") -> list[str]:
    """Return the programs in `language` on a page of the repository."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def load(name: str) -> ModuleType:
    """Return the program as a newly imported module."""
    forget_django()
    module_name = f"examples.{name}"
    spec = importlib.util.spec_from_file_location(module_name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    if hasattr(module, "PACE_S"):
        module.PACE_S = 0.001
    return module


def forget_django() -> None:
    """Reset the global settings of Django, which would refuse a second program."""
    settings._wrapped = empty
    clear_url_caches()


def client_of(app: Any, **options: Any) -> TestClient:
    """Return a client with an address of this machine, since a hub without a verifier refuses others."""
    return TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1), **options)


@asynccontextmanager
async def served(program: ModuleType, pace_s: float = 0.01) -> AsyncIterator[str]:
    """Serve a program in this process, so that a test sets the pace of its model, and yield its address."""
    program.PACE_S = pace_s  # type: ignore[attr-defined]
    async with served_app(getattr(program, "application", None) or program.app) as address:
        yield address


@asynccontextmanager
async def served_app(app: Any) -> AsyncIterator[str]:
    """Serve an app in this process, and yield its address."""
    listening = listen("127.0.0.1", 0)
    running = server(app)
    serving = asyncio.create_task(running.serve(sockets=[listening]))
    try:
        yield address_of(listening)
    finally:
        running.should_exit = True
        await serving
