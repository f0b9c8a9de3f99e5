"""The server of `tests.interop.long.server` as a process, for tests that kill it and start it again.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.interop.pages import MAJOR
from tests.processes import python

START_S = 20


@asynccontextmanager
async def served(folder: Path, port: int) -> AsyncIterator[Process]:
    """Run the server, with its store in `folder`, from when it accepts connections until the block ends."""
    serve = ("-m", "tenuto", "serve", "--app", "tests.interop.long.server:app", "--port", str(port))
    environ = {"TENUTO_FOLDER": str(folder), "TENUTO_AI_MAJOR": str(MAJOR)}
    async with python(*serve, **environ) as server:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)  # between two tries to connect to a process that is starting
        yield server
