"""Socket.IO on Node.js, from npm, with connection state recovery (its memory adapter), over WebSocket only.

Producers run in the server's process, as ours do. It recovers a session that it still remembers, for two minutes and
while the process lives. A new viewer receives no earlier messages; the application must provide them. So late joiners
are not measured for it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from bench.peers.packages import SOCKET_IO, node_packages
from bench.peers.system import GROWING_TOKENS_PER_S, System, program
from bench.proc import SERVER_CORE, Child

__all__ = ["SocketIo", "socketio"]


class SocketIo(System):
    name = "socket.io, recovery on"
    kinds: ClassVar[tuple[str, ...]] = ("socketio",)
    resuming: ClassVar[tuple[str, ...]] = ("socketio",)
    keeps_history = False
    promises = "keeps packets in memory for two minutes for sessions it knows; no history; one frame per token"

    def __init__(self, port: int, child: Child, version: str) -> None:
        super().__init__(port, (child.pid,))
        self._version = version
        self._child = child
        self._grown: dict[str, str] = {}

    @property
    def version(self) -> str:
        return self._version

    def produce(self, *, channels: list[str], count: int, tokens_per_s: float) -> Any:
        wanted = {"channels": channels, "count": count, "tokens_per_s": tokens_per_s}
        return self._child.request("produce", reply_in_s=60 + count / tokens_per_s, **wanted)

    def grow(self, channel: str, count: int) -> str:
        wanted: dict[str, Any] = {
            "channels": [channel],
            "count": count,
            "tokens_per_s": GROWING_TOKENS_PER_S,
            "returns_texts": True,
        }
        self._grown[channel] = self._grown.get(channel, "") + self._child.request("produce", **wanted)["texts"][channel]
        return self._grown[channel]


@contextlib.contextmanager
def socketio() -> Iterator[SocketIo]:
    """Start a Socket.IO server on a free port. Raises `BenchError` if it is missing or does not start."""
    node = program("node", "nodejs npm")
    packages = node_packages(*SOCKET_IO)
    script = Path(__file__).with_name("socketio_server.mjs")
    with Child("bench.peers.run", "become", node, str(script), str(packages), core=SERVER_CORE) as child:
        started = child.read(timeout_s=20)
        yield SocketIo(started["port"], child, f"socket.io {started['version']}, Node.js {started['node']}")
