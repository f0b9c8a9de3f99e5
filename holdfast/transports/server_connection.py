"""What a transport tells the server process about the peer of a connection, under our own `serve`.

Layer: transports.

`holdfast serve` bounds connections whose peers are unknown (`holdfast.connections`). It puts an object into the ASGI
scope, which travels through middleware, and the transports call it when a verifier has identified the peer. Under any
other server the scope has no such object, and each call here has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

EXTENSION = "holdfast.server"


class ServerConnection(Protocol):
    """A connection as its server sees it."""

    def known(self) -> None:
        """Lift the bounds on unknown peers: a verifier has identified this one."""


class ServerSocket(ServerConnection, Protocol):
    """A WebSocket as its server sees it."""

    def expect_introduction(self, timeout_s: float) -> None:
        """Keep the bounds on unknown peers beyond the handshake, for at most `timeout_s` seconds until `known`."""


def mark_known(scope: Mapping[str, Any]) -> None:
    """Note that a verifier has identified the peer of this request or socket."""
    server = _server_of(scope)
    if server is not None:
        server["connection"].known()


def expect_introduction(scope: Mapping[str, Any], timeout_s: float) -> bool:
    """Note that the peer of this socket is unknown and has `timeout_s` seconds. Call it before the socket is accepted.

    Return whether the server bounds the number of such sockets.
    """
    server = _server_of(scope)
    if server is None:
        return False
    server["connection"].expect_introduction(timeout_s)
    return True


def connection_of(scope: Mapping[str, Any]) -> ServerConnection | None:
    """Return the connection of this request or socket, one object for its whole life; None under another server."""
    server = _server_of(scope)
    return server["connection"] if server is not None else None


def _server_of(scope: Mapping[str, Any]) -> Any:
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None
