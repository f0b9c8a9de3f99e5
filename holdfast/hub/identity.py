"""Who asks: an identity as the server knows it, never as the request claims.

You are in `hub`. Every operation of every transport passes an identity and is checked against it. Today whoever is
let in may do everything; capabilities per channel pattern come with the verifiers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from holdfast.core.errors import Forbidden
from holdfast.core.requests import Asker

CAPABILITIES = frozenset(
    ("subscribe", "history", "publish", "append", "presence", "command", "agent", "admin"),
)

Scope = dict[str, Any]  # an ASGI connection scope
Authenticate = Callable[[Scope], Awaitable["Identity | None"]]


class Identity(Struct, frozen=True, kw_only=True):
    """Somebody, and what they may do."""

    client_id: str | None = None
    capabilities: frozenset[str] = CAPABILITIES

    def check(self, capability: str, channel: str) -> None:
        """Raises Forbidden unless this identity holds `capability` on `channel`."""
        if capability not in self.capabilities:
            raise Forbidden(f"this needs the capability {capability!r}")

    def asker(self) -> Asker:
        """This identity as the one who asks."""
        return Asker(id=self.client_id)


def claimed_identity(scope: Scope) -> Identity:
    """The identity of a peer that is let in unverified: `?client=`, else anonymous."""
    from urllib.parse import parse_qs

    claimed = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client", ["anonymous"])[0]
    return Identity(client_id=claimed[:64] or "anonymous")


async def allow_everyone(scope: Scope) -> Identity:
    """An `authenticate` that lets everybody in with every capability: for tests, and for networks you trust."""
    return claimed_identity(scope)
