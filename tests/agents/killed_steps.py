"""A process with an agent of several steps over SQLite, killed by SIGKILL before the n-th line that its handler runs.

Layer: tests.

`python -m tests.agents.killed_steps FOLDER` forks one child for each life of a hub. A chain of lives shares a file:
each is killed a line later than the one before, and the last lives on. Each step writes what it does to a journal.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tenuto import Hub
from tenuto.agents.turn import Turn

LIVES = 5  # of one turn, as many as it has attempts
LINES = 40  # more than the handler and its functions run


def note(journal: Path, *words: object) -> None:
    """Append a line to the journal; a write survives the death of its process."""
    with journal.open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


async def work(journal: Path, name: str, *words: object) -> list[str]:
    note(journal, "begins", name, *words)
    await asyncio.sleep(0)
    result = [name]
    note(journal, "ends", name)
    return result


async def handle(journal: Path, done: asyncio.Event, turn: Turn) -> None:
    note(journal, "attempt", turn.attempt)
    found = await turn.step("search", work, journal, "search")
    note(journal, "has", "search")
    left, right = await asyncio.gather(
        turn.step("left", work, journal, "left"),
        turn.step("right", work, journal, "right"),
    )
    note(journal, "has", "left")
    note(journal, "has", "right")
    await turn.sleep("nap", 0.01)
    paid = await turn.step("pay", work, journal, "pay", turn.step_key("pay"))
    note(journal, "has", "pay")
    async with turn.reply() as message:
        await message.append(" ".join(found + left + right + paid))
    await turn.step("bill", work, journal, "bill")
    note(journal, "has", "bill")
    done.set()


def killed_at(line: int) -> Any:
    """Return a trace function that kills this process before the `line`-th line of the handler and its functions."""
    left = itertools.count(line, -1)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code not in (handle.__code__, work.__code__):
            return None
        if event == "line" and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


async def live(folder: Path, line: int | None) -> None:
    """Run a hub until the turn of its one question has ended."""
    hub, done = Hub(f"sqlite:///{folder}/hub.db", hooks_signals=False), asyncio.Event()
    hub.agent("chat:*", name="bot")(partial(handle, folder / "journal", done))
    if line is not None:
        sys.settrace(killed_at(line))
    await hub.create("chat:1", id="m1", text="?")
    await done.wait()
    _, *answers = (await hub.history("chat:1")).messages[::-1]
    note(folder / "journal", *("answer", answers[0].status, answers[0].text, len(answers)))
    await hub.close()


def main(folder: Path) -> None:
    """Run all chains."""
    for first in range(0, LINES, LIVES - 1):
        chain = folder / str(first)
        chain.mkdir()
        for line in (*range(first, first + LIVES - 1), None):
            child = os.fork()
            if not child:
                asyncio.run(live(chain, line))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if status == 0:
                break  # the handler has fewer lines
            assert os.WTERMSIG(status) == signal.SIGKILL, status


if __name__ == "__main__":
    main(Path(sys.argv[1]))
