"""A store that is compacted by processes that kill themselves, each at another point.

`python -m tests.stores.compacting FILE`: one process after the other compacts the file and dies before its n-th
operation on files, until one does not die. After each, a new process opens the store and compares it with its state
before. At the end it prints how often processes died, how many left an unfinished copy, and how many different files
there were. It forks, so it runs no thread itself.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tenuto.stores.base import Head, head_of
from tenuto.stores.sqlite.compact import compact
from tests.stores.contract import Chat, append, create, emptied, finish, texts
from tests.stores.files import opened

TEXT = "0123456789" * 1_000
EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.chmod", "sqlite3.connect")
HANGS_S = 20  # after this time a process counts as hanging


async def fill(path: Path) -> None:
    """Leave a file that is mostly free, with a finished message, a streaming one, and entries of both in the log."""
    async with opened(path) as store:
        for number in range(8):
            await Chat(store, f"gone{number}", "e2").do(*(create(f"m{n}", TEXT) for n in range(10)))
        for number in range(8):
            await emptied(store, f"gone{number}", used_up=["used"], until_ms=2**50)
        chat = Chat(store)
        await chat.do_each(create("m0", streaming=True), append("m0", TEXT), append("m0", TEXT), finish("m0"))
        await chat.do(documents=["m0"])
        await chat.do_each(create("m1", "begin ", streaming=True), append("m1", "middle "), append("m1", TEXT))
        await store.note({"kept": b"value"})
        await store.tidy(0)


async def check(path: Path) -> None:
    """Raise AssertionError unless the store has all that `fill` put into it, in the same epochs."""
    async with opened(path) as store:
        assert await texts(store, "c", "m0", "m1") == [TEXT * 2, "begin middle " + TEXT]
        assert (await store.messages("gone0", ["used"]))[1].keys() == {"used"}
        assert await store.notes("kept") == {"kept": b"value"}
        assert await head_of(store, "c") == Head("e1", 7)
        assert (await head_of(store, "gone0")).lives == 2**50
    assert list(path.parent.glob("*.partial")) == []


def compact_until(path: Path, number: int) -> None:
    """Compact the file, and end this process before its operation `number` on files."""
    count = 0

    def watch(event: str, _arguments: object) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    compact(path)


def run(job: Callable[[], object]) -> bool:
    """Run `job` in a process of its own; returns whether it was killed. Raises AssertionError if it failed."""
    child = os.fork()
    if not child:
        signal.alarm(HANGS_S)
        job()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, status
    return False


def main(path: Path) -> None:
    run(lambda: asyncio.run(fill(path)))
    inodes, unfinished, number = {path.stat().st_ino}, 0, 1
    while run(partial(compact_until, path, number)):
        inodes.add(path.stat().st_ino)
        unfinished += len(list(path.parent.glob("*.partial")))
        run(lambda: asyncio.run(check(path)))
        number += 1
    run(lambda: asyncio.run(check(path)))
    print(number - 1, unfinished, len(inodes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
