"""Pages of the AI SDK, or clients of AG-UI, in a Node.js process, which a test tells what to do.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("ai_sdk_page.mjs")
# `TENUTO_AI` names another folder of the package, for the matrix of scripts/test_interop.
PACKAGE = Path(os.environ.get("TENUTO_AI") or ROOT / "node_modules" / "ai")
MAJOR = int(json.loads((PACKAGE / "package.json").read_text())["version"].split(".")[0]) if PACKAGE.is_dir() else 7
IS_STRICT = bool(os.environ.get("TENUTO_AI_STRICT"))  # the release refuses fields that it does not know
PATIENCE_S = 60.0


class Pages:
    """The process, with pages by name."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    async def __call__(self, page: str, action: str, **options: Any) -> Any:
        """Carry out an action of a page, and return the page's state."""
        call = json.dumps({"page": page, "action": action, **options}).encode() + b"\n"
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await asyncio.to_thread(self._result, call)
        except BaseException:
            end(self._process)  # so that no later test reads the result of this call
            raise
        assert line, "the process of the pages has ended"
        return json.loads(line)

    def _result(self, call: bytes) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(call)
        self._process.stdin.flush()
        return self._process.stdout.readline()


@asynccontextmanager
async def pages_at(url: str, script: Path = SCRIPT, package: Path = PACKAGE) -> AsyncIterator[Pages]:
    """Have pages at `url` until the block ends.

    `script` gets the module of `package`, and the address. Pages of the AI SDK share a process, because its start takes
    longer than most tests; their requests end with the block.
    """
    if script != SCRIPT:
        process = start(script, package, url)
        try:
            yield Pages(process)
        finally:
            end(process)
        return
    if _shared(package).poll() is not None:
        _shared.cache_clear()
    pages = Pages(_shared(package))
    await pages("", "begin", url=url)
    try:
        yield pages
    finally:
        if _shared(package).poll() is None:
            await pages("", "begin")


@cache
def _shared(package: Path) -> subprocess.Popen[bytes]:
    process = start(SCRIPT, package)
    atexit.register(end, process)
    return process


def start(script: Path, package: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start Node.js with a script, which reads calls."""
    node = os.environ.get("TENUTO_NODE") or shutil.which("node")
    assert node is not None, "no Node.js: install Debian's package nodejs"
    assert package.is_dir(), f"the package {package} is not there: npm install"
    manifest = json.loads((package / "package.json").read_text())
    command = [node, str(script), str(package / (manifest.get("module") or manifest["main"])), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(BrokenPipeError):  # of a call that the process has not read
        process.communicate()


def text_of(state: Any) -> str:
    """Return the text of a page's last message."""
    return "".join(part["text"] for part in state["messages"][-1]["parts"] if part["type"] == "text")
