"""Calls by which a transport informs `tenuto serve` about the peer of a connection.

Layer: transports.

`tenuto serve` bounds connections whose peers are unknown (`tenuto.server.connections`). It puts an object into the ASGI
scope, which travels through middleware, and the transports call it when a verifier has identified the peer. Under any
other server the scope has no such object, and each call here has no effect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

EXTENSION = "tenuto.server"


class ServerConnection(Protocol):
    """The interface of a connection in `tenuto serve`."""

    def known(self) -> None:
        """Lift the bounds on unknown peers, because a verifier has identified this one."""

    def verify(self, limit: asyncio.Timeout) -> None:
        """Count an unknown peer until `verified`, because a verifier runs for it. End `limit` if the peer is gone."""

    def verified(self) -> None:
        """Note that the verifier has ended, whatever its result."""


class ServerSocket(ServerConnection, Protocol):
    """The interface of a WebSocket in `tenuto serve`."""

    def expect_introduction(self, timeout_s: float) -> None:
        """Keep the bounds for unknown peers until the peer authenticates, at most `timeout_s` seconds."""


def mark_known(scope: Mapping[str, Any]) -> None:
    """Inform the server that a verifier has identified the peer of this request or socket."""
    server = _server_of(scope)
    if server is not None:
        server["connection"].known()


def expect_introduction(scope: Mapping[str, Any], timeout_s: float) -> bool:
    """Inform the server that the peer of this socket is unknown and has `timeout_s` seconds to authenticate.

    Call it before the socket is accepted. Return whether the server limits the number of such sockets.
    """
    server = _server_of(scope)
    if server is None:
        return False
    server["connection"].expect_introduction(timeout_s)
    return True


def connection_of(scope: Mapping[str, Any]) -> ServerConnection | None:
    """Return the connection of this request or socket, one object as long as it is open; None under another server."""
    server = _server_of(scope)
    return server["connection"] if server is not None else None


def _server_of(scope: Mapping[str, Any]) -> Any:
    extensions = scope.get("extensions")
    return extensions.get(EXTENSION) if extensions else None
