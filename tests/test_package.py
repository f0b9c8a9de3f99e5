"""What `import holdfast` gives and loads.

Layer: tests.

Each look is a process of its own, since what this one has loaded says nothing.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import holdfast

SERVER = ("starlette", "uvicorn", "sqlite3", "holdfast.hub", "holdfast.transports", "holdfast.stores")


def run(program: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.strip()


def imported_for_type_checkers() -> dict[str, str]:
    tree = ast.parse(Path(str(holdfast.__file__)).read_text())
    imports = [one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) and one.module != "typing"]
    return {alias.name: str(one.module) for one in imports for alias in one.names if alias.name != "import_module"}


def test_what_type_checkers_see_is_what_there_is() -> None:
    seen = imported_for_type_checkers()
    assert sorted(seen) == sorted(holdfast.__all__)
    assert [name for name in seen if getattr(holdfast, name) is not getattr(import_module(seen[name]), name)] == []
    assert set(dir(holdfast)) >= set(holdfast.__all__)


def test_a_name_that_there_is_not_is_told_as_ever() -> None:
    with pytest.raises(AttributeError, match="module 'holdfast' has no attribute 'Hubb'"):
        _ = holdfast.Hubb  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "program",
    [
        "import holdfast",
        "from holdfast.client import Client, SyncClient; Client('http://127.0.0.1:1')",
        "from holdfast import Turn; from holdfast.client import Client\n"
        "async def bot(turn: Turn): ...\n"
        "Client('http://127.0.0.1:1').agent('chat:*')(bot)",
    ],
)
def test_a_client_loads_no_server(program: str) -> None:
    loaded = run(f"{program}\nimport sys; print([name for name in {SERVER} if name in sys.modules])")
    assert loaded == "[]"


@pytest.mark.parametrize("missing", ["websockets", "httpx2"])
def test_a_client_without_its_extra_says_what_to_install(missing: str) -> None:
    program = (
        f"import asyncio, sys; sys.modules[{missing!r}] = None\n"
        "from holdfast.client import Client\n"
        "async def main():\n"
        "    async with Client('http://127.0.0.1:1') as client: await client.read('c', 'm')\n"
        "try: asyncio.run(main())\n"
        "except Exception as error: print(error)"
    )
    assert run(program) == f"this needs {missing}: pip install 'holdfast[client]'"
