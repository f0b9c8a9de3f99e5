"""Pages of the AI SDK, or clients of AG-UI, in a Node.js process, which a test tells what to do.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("ai_sdk_page.mjs")
# `TENUTO_AI` names another folder of the package, for the matrix of scripts/test_interop.
PACKAGE = Path(os.environ.get("TENUTO_AI") or ROOT / "node_modules" / "ai")
VERSION = str(json.loads((PACKAGE / "package.json").read_text())["version"]) if PACKAGE.is_dir() else ""
MAJOR = int(VERSION.partition(".")[0] or 7)
IS_STRICT = bool(os.environ.get("TENUTO_AI_STRICT"))  # the release refuses fields that it does not know
PATIENCE_S = 60.0


class Pages:
    """The process, with pages by name."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, page: str, action: str, **options: Any) -> Any:
        """Carry out an action of a page, and return the page's state."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"page": page, "action": action, **options}).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            line = await self._process.stdout.readline()
        assert line, "the process of the pages has ended"
        return json.loads(line)


@asynccontextmanager
async def pages_at(url: str, script: Path = SCRIPT, package: Path = PACKAGE) -> AsyncIterator[Pages]:
    """Run the process until the block ends. `script` gets the module of `package`, and the address."""
    node = os.environ.get("TENUTO_NODE") or shutil.which("node")
    assert node is not None, "no Node.js: install Debian's package nodejs"
    entry = _entry(package)
    process = await asyncio.create_subprocess_exec(
        node,
        script,
        package / entry,
        url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 * 1024 * 1024,
    )
    try:
        yield Pages(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


def _entry(package: Path) -> str:
    assert package.is_dir(), f"the package {package} is not there: npm install"
    manifest = json.loads((package / "package.json").read_text())
    return str(manifest.get("module") or manifest["main"])


def text_of(state: Any) -> str:
    """Return the text of a page's last message."""
    return "".join(part["text"] for part in state["messages"][-1]["parts"] if part["type"] == "text")
