"""Headers of a request, and the address of its peer.

Layer: transports.
"""

from __future__ import annotations

from tenuto.hub.access.identity import Scope


def peer_of(scope: Scope) -> str:
    """Return the address of the peer as the server sees it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header `name` (lower case), or None."""
    for known, value in scope["headers"]:
        if known.lower() == name:
            text: str = value.decode("latin-1")
            return text
    return None


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """Return the values of all headers `name` (lower case)."""
    return [value.decode("latin-1") for known, value in scope["headers"] if known.lower() == name]
