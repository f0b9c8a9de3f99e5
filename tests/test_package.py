"""The public names of `import tenuto`, and the modules that it loads.

Layer: tests.

Tests of loaded modules start a new process, because the test process has loaded most modules already.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tenuto

SERVER = ("starlette", "uvicorn", "sqlite3", "tenuto.hub", "tenuto.transports", "tenuto.stores")


def run(program: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.strip()


def test_names_for_type_checkers_are_the_public_names() -> None:
    tree = ast.parse(Path(str(tenuto.__file__)).read_text())
    imports = [one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and one.module != "typing"]
    found = {alias.name: str(one.module) for one in imports for alias in one.names if alias.name != "import_module"}
    assert sorted(found) == sorted(tenuto.__all__)
    assert [name for name in found if getattr(tenuto, name) is not getattr(import_module(found[name]), name)] == []
    assert set(dir(tenuto)) >= set(tenuto.__all__)


def test_unknown_name_raises_the_usual_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tenuto' has no attribute 'Hubb'"):
        _ = tenuto.Hubb  # type: ignore[attr-defined]


def test_client_loads_no_module_of_a_server() -> None:
    program = (
        "from tenuto import Turn; from tenuto.client import Client\n"
        "async def bot(turn: Turn): ...\n"
        "Client('http://127.0.0.1:1').agent('chat:*')(bot)\n"
    )
    assert run(f"{program}import sys; print([name for name in {SERVER} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("missing", ["websockets", "httpx2"])
def test_client_without_its_extra_names_the_extra_to_install(missing: str) -> None:
    program = (
        f"import asyncio, sys; sys.modules[{missing!r}] = None\n"
        "from tenuto.client import Client\n"
        "async def main():\n"
        "    async with Client('http://127.0.0.1:1') as client: await client.read('c', 'm')\n"
        "try: asyncio.run(main())\n"
        "except Exception as error: print(error)"
    )
    assert run(program) == f"Client needs the package {missing}; install Tenuto with [client], as its README shows"


def test_command_without_its_extra_names_the_extra_to_install() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from tenuto.cli.main import main"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    expected = "Error: tenuto needs the package uvicorn; install Tenuto with [serve], as its README shows\n"
    assert (ran.returncode, ran.stderr) == (1, expected)
