"""Processes that serve, and a view that is followed until the end of an answer.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from proof.chaos.processes import free_port
from tenuto.client import ChannelView
from tenuto.core.model import Message
from tests.processes import Process

FOLLOW_S = 120.0  # many times what an example takes: with the other tests beside it, it has a fraction of a core


class Node(Process):
    """A process that serves."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.hub = f"{self.url}/tenuto"
        super().__init__(["-m", *arguments, "--port", str(self.port)], log)

    def is_listening(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port)).close()
        return True


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
