"""A process that opens a store, writes one entry and closes it, but kills itself at one point of it.

`python -m tests.stores.dying FILE WRITE MOMENT`: it dies before or after (MOMENT) the lock file gets marks for the
WRITE-th time. The first and second time it is opening the store, the third and fourth it is closing it. It prints
"stored" once its entry is stored.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from tenuto.stores.base import Committed
from tenuto.stores.sqlite.lock import FileLock
from tenuto.stores.sqlite.store import SqliteStore
from tests.stores.contract import Chat, create


def die_at(write: int, moment: str) -> None:
    keep, written = FileLock.keep, 0

    def keep_or_die(lock: FileLock, *entries: str) -> None:
        nonlocal written
        written += 1
        if (written, moment) == (write, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        keep(lock, *entries)
        if (written, moment) == (write, "after"):
            os.kill(os.getpid(), signal.SIGKILL)

    FileLock.keep = keep_or_die  # type: ignore[method-assign]


async def main(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    assert isinstance(await Chat(store, "other").do(create("m1", "x")), Committed)
    print("stored", flush=True)
    await store.close()


if __name__ == "__main__":
    die_at(int(sys.argv[2]), sys.argv[3])
    asyncio.run(main(Path(sys.argv[1])))
