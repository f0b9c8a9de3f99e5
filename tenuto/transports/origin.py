"""Where a request comes from: its page's origin, its Host, and whether it was sent on this machine.

Layer: transports. `access` explains the rules; the app and `access` apply these checks before they ask for credentials.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenuto.core.errors import Forbidden, NoVerifier, shown
from tenuto.hub.access.hosts import is_loopback, parse_host, parse_origin
from tenuto.hub.access.identity import Scope
from tenuto.hub.access.visitors import VisitorVerifier
from tenuto.hub.hub import HubCore
from tenuto.transports.codec import refusals
from tenuto.transports.headers import header, headers_of, is_operator, peer_of
from tenuto.transports.server_connection import foreign_owner

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Headers by which proxies, content delivery networks and tunnels state where a request came from.
_FORWARDING = frozenset(
    (
        b"akamai-origin-hop",
        b"cdn-loop",  # RFC 8586
        b"client-ip",
        b"do-connecting-ip",
        b"fastly-client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"forwarded-for",
        b"proxy-client-ip",
        b"true-client-ip",
        b"via",
        b"wl-proxy-client-ip",
        b"x-appengine-user-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-coming-from",
        b"x-host",
        b"x-http-client-ip",
        b"x-nf-client-connection-ip",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-original-url",
        b"x-originating-ip",
        b"x-proxyuser-ip",
        b"x-real-ip",
        b"x-remote-addr",
        b"x-remote-ip",
        b"x-rewrite-url",
        b"x-scheme",
        b"x-varnish",
    )
)
_FORWARDING_PREFIXES = (
    b"cf-",
    b"cloudfront-",
    b"tailscale-",
    b"x-amz-cf-",
    b"x-arr-",
    b"x-azure-",
    b"x-envoy-",
    b"x-forwarded",
    b"x-vercel-",
)
# by default nginx and other proxies send requests in these versions; browsers and other clients do not
_OLD_HTTP = ("0.9", "1.0")
# values of `Sec-Fetch-Site` for a page of this same origin, and for an address that the user typed
_OWN_SITE = ("same-origin", "none")
_REMEDY = (
    "Set Hub(authenticate=visitors()) to give each visitor chats of their own, or authenticate=... to verify callers; "
    "authenticate=allow_everyone lets every caller read and write."
)


async def check_peer(hub: HubCore, scope: Scope) -> None:
    """Raise NoVerifier if the hub has no verifier and the request does not plainly come from its machine and user.

    Raises Forbidden for a `Host` that is not this machine, if the hub accepts every caller on loopback, and Busy if the
    peer's user cannot be looked up now. Logs refusals.
    """
    if is_operator(scope):
        return
    try:
        if hub.authenticate is None:
            _check_own_machine(hub, scope)
        elif hub.requires_own_host:
            _check_own_host(hub, scope)
    except (NoVerifier, Forbidden) as error:
        refusals.log(peer_of(scope), error)
        raise
    if hub.authenticate is None:
        await _check_own_user(scope)


async def _check_own_user(scope: Scope) -> None:
    """Raise NoVerifier if the peer's socket belongs to another user. Only the log names the accounts."""
    reason = await foreign_owner(scope)
    if reason is not None:
        refusals.log(peer_of(scope), _not_ours(reason))
        raise _not_ours(
            "the peer's socket does not belong to the user that runs this server, or it is closed already (the log of "
            "the server has the details)"
        )


def is_by_cookie(hub: HubCore, scope: Scope) -> bool:
    """Return whether credentials that a browser adds by itself, for any page, may identify the caller.

    These are cookies, and `Authorization` of other schemes than `Bearer`, which counts in the request of a page. A
    request with a bearer token is not identified by them: a foreign page can add one only with permission. Neither is
    one to a verifier that reads no cookies (`reads_cookies`); an app's own verifier is assumed to read them.
    """
    if not getattr(hub.authenticate, "reads_cookies", True):
        return False
    authorization = header(scope, b"authorization")
    if authorization is None:
        return header(scope, b"cookie") is not None
    is_token = authorization[:7].lower() == "bearer "
    return not is_token and (header(scope, b"cookie") is not None or header(scope, b"origin") is not None)


def check_origin(hub: HubCore, scope: Scope) -> None:
    """Raise Forbidden, and log it, if a foreign page sends a request that a browser sends without permission.

    These are WebSockets, which CORS does not guard, and changes carried by cookies. A change carried by cookies must
    come from a known page. One without an `Origin` is refused too, because browsers name the origin of every change.
    """
    by_cookie = is_by_cookie(hub, scope)
    is_checked = by_cookie or _becomes_visitor(hub, scope)
    if scope["type"] != "websocket" and (not is_checked or scope["method"] in SAFE_METHODS):
        return
    origins = headers_of(scope, b"origin")
    try:
        for origin in origins:
            if not is_own_origin(hub, scope, origin) and not _is_allowed(hub, origin, by_cookie=by_cookie):
                raise Forbidden(
                    f"the page's origin {shown(origin)} is neither this server's nor in allowed_origins. "
                    f"{_origin_remedy(origin) or 'Open the page from an allowed address.'}"
                )
        if by_cookie and not origins and header(scope, b"sec-fetch-site") != "same-origin":
            raise Forbidden(
                "a change that a cookie authenticates needs the header Origin of an allowed page, and this request has "
                "none; send Origin, or authenticate with a token"
            )
    except Forbidden as error:
        refusals.log(peer_of(scope), error)
        raise


def _becomes_visitor(hub: HubCore, scope: Scope) -> bool:
    """Return whether the hub makes the caller a visitor, as whom a foreign page must not ask questions, either."""
    authorization = header(scope, b"authorization") or ""
    return isinstance(hub.authenticate, VisitorVerifier) and authorization[:7].lower() != "bearer "


def _is_allowed(hub: HubCore, origin: str, *, by_cookie: bool) -> bool:
    # `*` accepts the requests of every page, but not with the cookies of the user who views the page.
    return origin in hub.allowed_origins or ("*" in hub.allowed_origins and not by_cookie)


def refusal_of_get(hub: HubCore, scope: Scope) -> Forbidden | None:
    """Return the error for a change in a GET route of the app by a page of another origin, as `check_origin` raises it
    for other methods.
    """
    if scope["type"] != "http" or scope.get("method") not in SAFE_METHODS:
        return None
    return refusal_of_page(hub, scope) if is_by_cookie(hub, scope) or _becomes_visitor(hub, scope) else None


def refusal_of_page(hub: HubCore, scope: Scope) -> Forbidden | None:
    """Return the error if a page of another origin asks in a route of the app, or a browser prefetches.

    `check_origin` lets GET pass, which changes no channel of the hub; there it makes the app call its model.
    """
    origin = header(scope, b"origin")
    is_other = any(site not in _OWN_SITE for site in headers_of(scope, b"sec-fetch-site"))
    is_prefetch = "prefetch" in (header(scope, b"sec-purpose") or "")
    if (is_other or is_prefetch) and origin not in hub.allowed_origins:
        return Forbidden("a page of another origin sent this question; list its origin in Hub(allowed_origins=[...])")
    return None


def is_own_origin(hub: HubCore, scope: Scope, origin: str) -> bool:
    """Return whether `origin` is that of this server's own pages.

    That is the hub's `public_origin`. Without that setting it is the host and port that the request was sent to, except
    that two kinds of pages are foreign: an http page, if the request came to this server or its proxy over https, and
    a page that the browser calls another site (Chromium does not name the site of a WebSocket).
    """
    if hub.public_origin is not None:
        return origin == hub.public_origin
    is_other_site = any(site not in _OWN_SITE for site in headers_of(scope, b"sec-fetch-site"))
    return _is_same_host(scope, origin) and not is_other_site


def _is_same_host(scope: Scope, origin: str) -> bool:
    hosts = headers_of(scope, b"host")
    host, page = parse_host(hosts[0]) if len(hosts) == 1 else None, parse_origin(origin)
    if host is None or page is None or (page.scheme == "http" and _is_encrypted(scope)):
        return False
    return page.is_at(host)


def _is_encrypted(scope: Scope) -> bool:
    """Return whether the page was reached over https.

    A proxy's header can make a page foreign, but never this server's.
    """
    forwarded = ",".join(headers_of(scope, b"x-forwarded-proto")).lower()
    return scope.get("scheme") in ("https", "wss") or "https" in forwarded or "wss" in forwarded


def _check_own_machine(hub: HubCore, scope: Scope) -> None:
    """Raise NoVerifier unless the request plainly comes from a program or page of this machine.

    The operator of the hub has listed the origins in `allowed_origins`; `*` allows none here.
    """
    peer = peer_of(scope)
    if not is_loopback(peer):
        raise _not_ours(f"the peer's address {shown(peer) if peer else '(unknown)'} is not a loopback address")
    if not _is_own_host(scope):
        raise _not_ours(_wrong_host(scope))
    version = scope.get("http_version")
    if version in _OLD_HTTP:
        raise _not_ours(f"a request of HTTP/{version} comes from a proxy such as nginx")
    forwarding = _forwarding_header(scope["headers"])
    if forwarding:
        raise _not_ours(f"the header {forwarding} shows that a proxy forwarded the request")
    foreign = [origin for origin in headers_of(scope, b"origin") if not _is_same_host(scope, origin)]
    for origin in foreign:
        if origin not in hub.allowed_origins:
            raise _not_ours(
                f"the page's origin {shown(origin)} is another host or port and is not in allowed_origins",
                _origin_remedy(origin),
            )
    others = [site for site in headers_of(scope, b"sec-fetch-site") if site not in _OWN_SITE]
    if others and not foreign:
        raise _not_ours(
            f"a page of another origin sent the request (Sec-Fetch-Site: {shown(others[0])})",
            "Open the address itself, or list the page's origin in Hub(allowed_origins=[...]).",
        )


def _check_own_host(hub: HubCore, scope: Scope) -> None:
    """Raise Forbidden unless the Host is this machine's own, or that of `public_origin`.

    Any web page can make its domain name resolve to a loopback address, and is then of the same origin as the hub.
    """
    if not _is_own_host(scope, hub.public_origin):
        raise Forbidden(
            f"{_wrong_host(scope, 'The')}, because this hub accepts callers of this machine only. Behind a proxy, set "
            "the address of its pages with Hub(public_origin=...) or --public-origin."
        )


def _is_own_host(scope: Scope, public_origin: str | None = None) -> bool:
    hosts = headers_of(scope, b"host")
    host = parse_host(hosts[0]) if len(hosts) == 1 else None
    if host is None or host.is_local:
        return host is not None
    page = parse_origin(public_origin) if public_origin is not None else None
    return page is not None and page.is_at(host)


def _wrong_host(scope: Scope, article: str = "the") -> str:
    """Return why the Host header does not name this machine, for an error message."""
    hosts = headers_of(scope, b"host")
    given = " and ".join(map(shown, hosts[:2])) or "missing"
    return f"{article} Host header is {given}, expected localhost, 127.0.0.1 or [::1]"


def _not_ours(reason: str, remedy: str | None = None) -> NoVerifier:
    return NoVerifier(
        f"This hub has no verifier and accepts only requests of its own machine and user: {reason}. {remedy or _REMEDY}"
    )


def _origin_remedy(origin: str) -> str | None:
    """Return the advice how to allow pages of `origin`; None if that is not an origin of pages."""
    if parse_origin(origin) is None:
        return None
    return f'If the page is yours, set Hub(allowed_origins=["{origin}"]), or start with --allowed-origin {origin}.'


def _forwarding_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the first header that only a proxy adds, for an error message; None if there is none."""
    for name, _ in headers:
        low = name.lower()
        if low in _FORWARDING or low.startswith(_FORWARDING_PREFIXES):
            return shown(low.decode("latin-1"))
    return None
