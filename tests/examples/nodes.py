"""Two server processes for each example, on one PostgreSQL store.

Layer: tests.

An app of one process becomes that of several by one changed line, the address of its store. So `shared` copies an
example, changes this line alone, and uvicorn runs the copy.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from proof.chaos.processes import free_port
from tenuto.client import ChannelView
from tenuto.core.model import Message
from tests.examples.programs import FOLDER
from tests.processes import Process

START_S = 60.0  # with the other tests beside it, a process has a fraction of a core
FOLLOW_S = 120.0  # many times what the longest example takes, a job of ten seconds, for the same reason


class Node(Process):
    """A process that serves."""

    def __init__(self, arguments: list[str], store: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.hub = f"{self.url}/tenuto"
        self.store = store
        super().__init__(["-m", *arguments, "--port", str(self.port)], log)

    def is_listening(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True


def shared(name: str, url: str, folder: Path) -> list[str]:
    """Copy the example `name` with the store `url`, and return the command that runs the copy. One line differs."""
    text, count = re.subn(r'\bHub\("[^"]+"', f'Hub("{url}"', (FOLDER / f"{name}.py").read_text())
    assert count == 1, name
    copy = folder / f"{name}.py"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text)
    return ["uvicorn", "--app-dir", str(copy.parent), f"{copy.stem}:{'application' if name == 'django_app' else 'app'}"]


@asynccontextmanager
async def two_nodes(name: str, url: str, folder: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Run two processes of an example, which begin at the same moment, in a schema of their own."""
    flat = name.replace("/", "_")
    store = f"{url}?schema={flat}"
    command = shared(name, store, folder)
    here, there = nodes = [Node(command, store, folder / f"{flat}.{number}.log") for number in range(2)]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.callback(node.clean_up)
            node.start()
        for node in nodes:
            await asyncio.to_thread(node.until, node.is_listening, patience_s=START_S)
        try:
            yield here, there
        except BaseException as error:
            for node in nodes:
                error.add_note(f"{node.url}:\n{node.output}")
            raise


async def until(view: ChannelView, is_true: Callable[[list[Message]], bool]) -> list[Message]:
    """Follow `view` until its messages satisfy `is_true`, and return them."""
    async with asyncio.timeout(FOLLOW_S):
        if not is_true(view.messages):
            async for _ in view:
                if is_true(view.messages):
                    break
    return view.messages


def is_over(messages: list[Message]) -> bool:
    """Return whether the newest message is an answer that has ended."""
    return bool(messages) and messages[-1].role == "assistant" and messages[-1].status != "streaming"
