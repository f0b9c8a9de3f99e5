"""The load client for all systems: `bench.load` with the peers' wire formats.

Run as a child. Sockets, epoll, capture and comparison are the same code for every system. Only the session that parses
the bytes differs, and parsing happens after the capture.
"""

import contextlib
import select
import socket
from collections.abc import Iterator
from typing import cast

from bench.load import Connection, Load
from bench.peers.viewers import KINDS, TextChecker, open_session
from bench.proc import CLIENT_CORE, Child
from proof.wirecheck import Checker, Session

__all__ = ["OURS", "PeerLoad", "peer_load"]

OURS = {"ours-sse": "sse", "ours-ws": "websocket"}
_HOST = "127.0.0.1"


class PeerLoad(Load):
    """The load client, with viewers of the peers beside ours."""

    def _open(self, kind: str, port: int, channel: str) -> Connection:
        if kind not in KINDS:
            return super()._open(OURS.get(kind, kind), port, channel)
        checker = TextChecker(channel, self._latencies)
        session = open_session(kind, checker, host=f"{_HOST}:{port}")
        sock = socket.create_connection((_HOST, port), timeout=10)
        sock.setblocking(False)
        # Both have all attributes that `Load` uses.
        connection = Connection(sock, cast("Session", session), cast("Checker", checker))
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        connection.send()
        return connection


@contextlib.contextmanager
def peer_load() -> Iterator[Child]:
    """Run the load client on its own core."""
    with Child("bench.peers.load", core=CLIENT_CORE) as child:
        yield child


if __name__ == "__main__":
    PeerLoad().run()
