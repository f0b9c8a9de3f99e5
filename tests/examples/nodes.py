"""Processes that serve.

Layer: tests.
"""

from __future__ import annotations

import socket
from pathlib import Path

from proof.chaos.processes import free_port
from tests.processes import Process


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
