"""The door: who is let in.

Layer: transports.

Closed by default: any web page can reach a loopback port, and any proxy makes the whole world
look like loopback. So without a verifier only this machine's own programs and pages come in, and nobody through a
proxy. With a verifier it alone says who somebody is; here only origins are checked. Every rule is one of
`docs/protocol.md`, "The door"; loosening one needs a decision record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from holdfast.core.errors import Busy, Forbidden, HoldfastError, InvalidName, NoVerifier, Unauthenticated
from holdfast.core.names import check_id
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Expired, Identity, Scope, claimed_identity
from holdfast.transports.codec import unexpected

logger = logging.getLogger("holdfast.transports")

VERIFY_TIMEOUT_S = 10.0  # for the app's verifier; it may ask a database, and somebody waits
HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_TOKEN_BYTES = 8 * 1024  # of a token in a frame; in headers the server has its own bound
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_WHO = (b"authorization", b"cookie")
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


def check_local_only(hub: HubCore, scope: Scope) -> None:
    """Raises NoVerifier where there is no verifier and the peer is not plainly on this machine."""
    if hub.authenticate is None:
        reason = not_local(scope, hub.allowed_origins)
        if reason:
            raise NoVerifier(f"This hub has no verifier and so answers only on its own machine: {reason}. {_OPEN_IT}")


async def identify(hub: HubCore, scope: Scope) -> Identity:
    """Who asks; the door was passed before. Raises Unauthenticated, Forbidden, InvalidName, TooMany, Busy."""
    identity = await known_identity(hub, scope)
    if identity is None:
        raise Unauthenticated("nobody is known behind this request")
    return identity


async def known_identity(hub: HubCore, scope: Scope) -> Identity | None:
    """As `identify`; None where the request says nothing of who asks, or nothing that the app knows."""
    verify = hub.authenticate
    if verify is None:
        claimed = claimed_identity(scope)
        check_id(claimed.client_id, "a client id")
        return claimed
    check_origin(scope, hub.allowed_origins, is_by_cookie=is_by_cookie(hub, scope))
    identity = await _verified(partial(verify, scope))
    if identity is not None:
        check_identity(hub, identity)
        hub.rates.request(identity, peer_of(scope))
    return identity


async def identity_by_token(hub: HubCore, scope: Scope, token: str) -> Identity:
    """Whom `token` names, that a socket of `scope` sent. Raises Unauthenticated, Expired, Busy, InvalidName.

    A verifier with a method `verify_token` is asked so; any other gets the socket's scope with the token as its
    `Authorization`, and without the cookies: it is the token that is to be judged.
    """
    verify = hub.authenticate
    if verify is None:
        raise Unauthenticated("this hub knows no tokens")
    if not token.isascii() or not token.isprintable() or len(token) > MAX_TOKEN_BYTES:
        raise Unauthenticated("this is no token")
    by_token: Callable[[str], Awaitable[Identity | None]] | None = getattr(verify, "verify_token", None)
    if by_token is not None:
        identity = await _verified(partial(by_token, token))
    else:
        others = [(name, value) for name, value in scope["headers"] if name.lower() not in _WHO]
        headers = [*others, (b"authorization", b"Bearer " + token.encode())]
        identity = await _verified(partial(verify, {**scope, "headers": headers}))
    if identity is None:
        raise Unauthenticated("nobody is known behind this token")
    check_identity(hub, identity)
    return identity


def check_identity(hub: HubCore, identity: Identity) -> None:
    """Raises InvalidName, or Expired where it is over already."""
    if identity.client_id is not None and "~" in check_id(identity.client_id, "a client id"):
        raise InvalidName("a client id has no ~: it sets the suffix apart by which a client's members differ")
    if identity.is_expired(hub.clock.now_ms()):
        raise Expired("this identity has expired")


async def _verified(ask: Callable[[], Awaitable[Identity | None]]) -> Identity | None:
    """What a verifier says. Raises what it raises of ours; whatever else goes wrong there is not told."""
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            return await ask()
    except HoldfastError:
        raise
    except TimeoutError:
        raise Busy("it could not be found out in time who asks") from None
    except Exception:
        logger.exception("the verifier failed")
        raise unexpected() from None


def is_by_cookie(hub: HubCore, scope: Scope) -> bool:
    """May it be a cookie that says who asks, which a browser sends unasked, whichever page wants the request?

    An `Authorization` header says no: a foreign page can add none without being allowed to. So does a verifier that
    reads no cookies (`reads_cookies`); of the app's own we do not know.
    """
    if not getattr(hub.authenticate, "reads_cookies", True):
        return False
    return header(scope, b"cookie") is not None and header(scope, b"authorization") is None


def check_origin(scope: Scope, allowed: Sequence[str], *, is_by_cookie: bool) -> None:
    """Raises Forbidden where a foreign page asks for what a browser would do for it unasked.

    That is a WebSocket, which no CORS guards, and a change carried by cookies. The latter has to come from a page that
    is known, and where nothing says which page it was, from none: browsers name the origin of every change.
    """
    is_socket = scope["type"] == "websocket"
    if not is_socket and (not is_by_cookie or scope["method"] in SAFE_METHODS):
        return
    origins = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"origin"]
    # A star lets everybody's pages ask, but not with the cookies of whoever looks at them.
    named = [one for one in allowed if one != "*"] if is_by_cookie else allowed
    for origin in origins:
        if not is_allowed_origin(scope, origin, named):
            raise Forbidden(f"the origin {origin[:200]!r} is not one of the hub's allowed_origins")
    if is_by_cookie and not origins and header(scope, b"sec-fetch-site") != "same-origin":
        raise Forbidden("with a cookie, a change needs an Origin that is known; without one, use a token")


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
        # What we are asked over may be plain where a proxy does the encryption; the other way round it is foreign.
        if page.scheme == "http" and scope.get("scheme") in ("https", "wss"):
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


def peer_of(scope: Scope) -> str:
    """The address of the peer, as the server sees it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


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
