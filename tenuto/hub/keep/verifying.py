"""The check of a served store, in a process beside the hub.

Layer: hub.

The check reads the whole file and computes each checksum, which in this process would delay every commit.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.stores.sqlite import verify as sqlite_verify

LINE_BYTES = 1024 * 1024  # far above the longest line


async def damage_in(path: Path) -> AsyncGenerator[str]:
    """Yield one line for each damaged part of the store in `path`. Raises StoreUnusable, LocalError.

    The process of the check ends with this generator. The errors name the file without its folder: peers see them.
    """
    folders = os.pathsep.join(one for one in sys.path if one)  # the same modules as in this process
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", sqlite_verify.__name__, str(path)),
            env={**os.environ, "PYTHONPATH": folders},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
    except OSError as error:
        raise LocalError(
            f"process that verifies {path.name} cannot be started ({error.strerror}); run tenuto verify"
        ) from None
    try:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            damage = msgspec.json.decode(line, type=str | None)
            if damage is None:
                return
            yield damage
        raise StoreUnusable(f"process that verifies {path.name} ended with status {await process.wait()}; see the log")
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()  # also reads what is left, because a full pipe would never close
