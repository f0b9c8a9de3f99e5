"""The door: who is let in.

You are in `transports`. Closed by default: any web page can reach a loopback port, and any proxy makes the whole world
look like loopback. So without a verifier only this machine's own programs and pages come in, and nobody through a
proxy. With a verifier it alone says who somebody is; here only origins are checked. Every rule is one of
`docs/protocol.md`, "The door"; loosening one needs a decision record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from holdfast.core.errors import Busy, Forbidden, HoldfastError, NoVerifier, Unauthenticated
from holdfast.core.names import check_id
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Identity, Scope, claimed_identity
from holdfast.transports.codec import unexpected

logger = logging.getLogger("holdfast.transports")

VERIFY_TIMEOUT_S = 10.0  # for the app's verifier; it may ask a database, and somebody waits
HOSTS = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_FORWARDING = frozenset(
    (
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-original-host",
        b"x-original-forwarded-for",
        b"x-envoy-external-address",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
    )
)
_OPEN_IT = "Set Hub(authenticate=...) to say who may come in, or authenticate=allow_everyone to let everybody in."


def check_closed_door(hub: HubCore, scope: Scope) -> None:
    """Raises NoVerifier where there is no verifier and the peer is not plainly on this machine."""
    if hub.authenticate is None:
        reason = not_local(scope, hub.allowed_origins)
        if reason:
            raise NoVerifier(f"This hub has no verifier and so answers only on its own machine: {reason}. {_OPEN_IT}")


async def identify(hub: HubCore, scope: Scope) -> Identity:
    """Who asks; the door was passed before. Raises Unauthenticated, Forbidden, InvalidName."""
    if hub.authenticate is None:
        identity: Identity | None = claimed_identity(scope)
    else:
        check_origin(scope, hub.allowed_origins)
        identity = await _verified(hub, scope)
    if identity is None:
        raise Unauthenticated("nobody is known behind this request")
    if identity.client_id is not None:
        check_id(identity.client_id, "a client id")
    return identity


async def _verified(hub: HubCore, scope: Scope) -> Identity | None:
    assert hub.authenticate is not None
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            return await hub.authenticate(scope)
    except HoldfastError:
        raise
    except TimeoutError:
        raise Busy("it could not be found out in time who asks") from None
    except Exception:
        logger.exception("the verifier failed")
        raise unexpected() from None


def check_origin(scope: Scope, allowed: Sequence[str]) -> None:
    """Raises Forbidden where a page of a foreign origin asks for what a browser would do for it unasked.

    That is a WebSocket, which no CORS guards, and a change carried by cookies.
    """
    is_write = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
    if not is_write:
        return
    origin = header(scope, b"origin")
    if origin is None or is_allowed_origin(scope, origin, allowed):
        return
    if scope["type"] == "websocket" or header(scope, b"cookie") is not None:
        raise Forbidden(f"the origin {origin[:200]!r} is not one of the hub's allowed_origins")


def is_allowed_origin(scope: Scope, origin: str, allowed: Sequence[str]) -> bool:
    """Is `origin` the host that was asked, or one that was allowed?"""
    return "*" in allowed or origin in allowed or is_same_host(scope, origin)


def is_same_host(scope: Scope, origin: str) -> bool:
    """Does `origin` name the host and port that this request was sent to?"""
    host = header(scope, b"host")
    if host is None:
        return False
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        default = {"http": 80, "https": 443}.get(page.scheme)
        if default is None or not page.hostname:
            return False
        return (page.hostname, page.port or default) == (asked.hostname, asked.port or default)
    except ValueError:
        return False


def not_local(scope: Scope, allowed: Sequence[str] = ()) -> str | None:
    """Why this request is not plainly from a program or page of this machine; None if it is.

    Origins in `allowed` were named by whoever runs the hub; `*` names none.
    """
    client = scope.get("client")
    if not client or not _is_loopback(client[0]):
        return "the peer is not on loopback"
    hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
    if len(hosts) != 1 or _host_name(hosts[0].decode("latin-1")) not in HOSTS:
        return "the Host is not localhost"
    forwarding = _forwarding_header(scope["headers"])
    if forwarding:
        return f"the header {forwarding} says that a proxy stands between"
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"origin"]
    if any(origin not in allowed and not is_same_host(scope, origin) for origin in origins):
        return "the Origin is another one"
    return None


def header(scope: Scope, name: bytes) -> str | None:
    """The first header `name` (lower case), or None."""
    for known, value in scope["headers"]:
        if known.lower() == name:
            text: str = value.decode("latin-1")
            return text
    return None


def _is_loopback(address: Any) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def _host_name(host: str) -> str | None:
    try:
        split = urlsplit(f"//{host}")
        split.port  # noqa: B018 - raises where it is no number
    except ValueError:
        return None
    if split.path or split.query or split.fragment or "@" in host:
        return None
    return split.hostname


def _forwarding_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    for name, _ in headers:
        low = name.lower()
        if low in _FORWARDING or low.startswith(b"x-forwarded"):
            return low.decode("latin-1")
    return None
