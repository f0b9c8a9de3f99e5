"""Access control: the one place that decides, for all transports, whether a request may proceed.

Layer: transports.

Two questions are answered here. Who sends a request: the app's verifier says so, or, without one, the request must come
plainly from this machine. May this caller do it: origins, tickets, capabilities (`operations`), rates, and the rules
that look into a request, such as roles. Whose message a request is about is decided later, by `core.decide`.

Closed by default: any web page can reach a loopback port, and any proxy makes the whole world look like loopback. So
without a verifier only programs and pages of this machine and user are accepted, and no request that came through a
proxy. Every rule is part of `docs/protocol.md`, section 10; loosening one needs a decision record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from msgspec.structs import replace

from holdfast.core.cursor import parse_cursor
from holdfast.core.errors import (
    Busy,
    Draining,
    Forbidden,
    HoldfastError,
    InvalidName,
    NoVerifier,
    Unauthenticated,
    shown,
)
from holdfast.core.model import Part
from holdfast.core.names import check_channel, check_id
from holdfast.core.requests import Caller, CreateMessage, UpdateMessage
from holdfast.hub.hub import HubCore
from holdfast.hub.identity import Expired, Identity, Scope, claimed_identity
from holdfast.hub.origins import is_loopback, parse_host, parse_origin
from holdfast.hub.presence import check_member, check_signal
from holdfast.hub.results import Result
from holdfast.hub.tickets import Ticket
from holdfast.transports.codec import unexpected
from holdfast.transports.operations import BY_NAME, Operation
from holdfast.transports.query import Query
from holdfast.transports.refusals import refusals
from holdfast.transports.server_connection import mark_known
from holdfast.transports.socket_owner import foreign_owner

logger = logging.getLogger("holdfast.transports")

VERIFY_TIMEOUT_S = 10.0  # for the app's verifier, which may query a database while the caller waits
MAX_TOKEN_BYTES = 8 * 1024  # of a token in a frame; the server itself bounds headers
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CREDENTIAL_HEADERS = (b"authorization", b"cookie")
# Headers with which proxies, content networks and tunnels pass on where a request came from.
_FORWARDING = frozenset(
    (
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
_OLD_HTTP = ("0.9", "1.0")  # nginx and other proxies request with these by default; browsers and clients do not
_OWN_SITE = ("same-origin", "none")  # `Sec-Fetch-Site` of a page of this very address, and of a typed address
_REMEDY = "Set Hub(authenticate=...) to verify callers, or authenticate=allow_everyone to accept every caller."
# Parts that only writers create: a tool call or a source that a user typed would look like the agent's.
_WRITER_PARTS = ("tool", "source")


# Who sends a request


async def check_peer(hub: HubCore, scope: Scope) -> None:
    """Raise NoVerifier if the hub has no verifier and the request does not plainly come from its machine and user.

    Raises Forbidden for a name that is not this machine's where the hub accepts every caller on loopback, and Busy if
    the peer's user cannot be looked up now. Logs refusals.
    """
    try:
        if hub.authenticate is None:
            _check_own_machine(hub, scope)
            reason = await foreign_owner(scope)
            if reason is not None:
                raise _not_ours(reason)
        elif hub.requires_own_host:
            _check_own_host(hub, scope)
    except (NoVerifier, Forbidden) as error:
        refusals.log(peer_of(scope), error)
        raise


async def identify(hub: HubCore, scope: Scope) -> Identity:
    """Return the identity behind a request that has passed `check_peer`.

    Raises Unauthenticated, Forbidden, InvalidName, TooMany, Busy.
    """
    identity = await known_identity(hub, scope)
    if identity is None:
        raise Unauthenticated("the request carries no credentials that this hub accepts")
    return identity


async def known_identity(hub: HubCore, scope: Scope) -> Identity | None:
    """Do as `identify`, but return None for a request without credentials, or with credentials unknown to the app."""
    verify = hub.authenticate
    if verify is None:
        claimed = claimed_identity(scope)
        check_id(claimed.client_id, "a client id")
        mark_known(scope)
        return claimed
    check_origin(hub, scope)
    identity = await _verified(partial(verify, scope))
    if identity is not None:
        check_identity(hub, identity)
        mark_known(scope)
        hub.rates.request(identity, peer_of(scope))
    return identity


async def identity_by_token(hub: HubCore, scope: Scope, token: str) -> Identity:
    """Return the identity that `token`, sent by a socket of `scope`, stands for.

    A verifier with a method `verify_token` is called with the token. Any other verifier is called with the socket's
    scope, the token as its `Authorization`, and without the cookies: only the token counts. Raises Unauthenticated,
    Expired, Busy, InvalidName.
    """
    verify = hub.authenticate
    if verify is None:
        raise Unauthenticated("this hub has no verifier and accepts no tokens")
    if not token.isascii() or not token.isprintable() or len(token) > MAX_TOKEN_BYTES:
        raise Unauthenticated(f"a token is printable ASCII text of at most {MAX_TOKEN_BYTES} characters")
    by_token: Callable[[str], Awaitable[Identity | None]] | None = getattr(verify, "verify_token", None)
    if by_token is not None:
        identity = await _verified(partial(by_token, token))
    else:
        others = [(name, value) for name, value in scope["headers"] if name.lower() not in _CREDENTIAL_HEADERS]
        headers = [*others, (b"authorization", b"Bearer " + token.encode())]
        identity = await _verified(partial(verify, {**scope, "headers": headers}))
    if identity is None:
        raise Unauthenticated("the hub's verifier does not accept this token")
    check_identity(hub, identity)
    return identity


def check_identity(hub: HubCore, identity: Identity) -> None:
    """Raise InvalidName for an invalid client id, and Expired for an identity that has expired already."""
    if identity.client_id is not None and "~" in check_id(identity.client_id, "a client id"):
        raise InvalidName(
            f"client id {identity.client_id!r} contains ~, which separates a client id from the suffix of a member"
        )
    if identity.is_expired(hub.clock.now_ms()):
        raise Expired("the identity behind this request has expired")


async def _verified(verify: Callable[[], Awaitable[Identity | None]]) -> Identity | None:
    """Return the verifier's result. A HoldfastError passes; any other exception is logged and not sent to the peer."""
    try:
        async with asyncio.timeout(VERIFY_TIMEOUT_S):
            return _checked(await _awaitable(verify()))
    except HoldfastError:
        raise
    except TimeoutError:
        raise Busy(f"authentication timed out after {VERIFY_TIMEOUT_S:.0f} s") from None
    except Exception:
        logger.exception("the verifier failed")
        raise unexpected() from None


def _awaitable(result: object) -> Awaitable[object]:
    if not isinstance(result, Awaitable):
        raise TypeError(f"authenticate must be an async function, it returned a value of type {type(result).__name__}")
    return result


def _checked(identity: object) -> Identity | None:
    if identity is not None and not isinstance(identity, Identity):
        raise TypeError(f"authenticate must return an Identity or None, got a value of type {type(identity).__name__}")
    return identity


# From where


def is_by_cookie(hub: HubCore, scope: Scope) -> bool:
    """Return whether a cookie may identify the caller: a browser adds cookies to the requests of any page.

    With an `Authorization` header it does not: a foreign page can only add one with permission. Nor with a verifier
    that reads no cookies (`reads_cookies`); an app's own verifier is assumed to read them.
    """
    if not getattr(hub.authenticate, "reads_cookies", True):
        return False
    return header(scope, b"cookie") is not None and header(scope, b"authorization") is None


def check_origin(hub: HubCore, scope: Scope) -> None:
    """Raise Forbidden, and log it, if a foreign page sends a request that a browser sends without permission.

    These are WebSockets, which CORS does not guard, and changes carried by cookies. A change carried by cookies must
    come from a known page. One without an `Origin` is refused too, because browsers name the origin of every change.
    """
    by_cookie = is_by_cookie(hub, scope)
    if scope["type"] != "websocket" and (not by_cookie or scope["method"] in SAFE_METHODS):
        return
    origins = headers_of(scope, b"origin")
    try:
        for origin in origins:
            if not _is_own_origin(hub, scope, origin) and not _is_allowed(hub, origin, by_cookie=by_cookie):
                raise Forbidden(
                    f"the page's origin {shown(origin)} is neither this server's nor in allowed_origins. "
                    f"{_origin_remedy(origin) or 'Open the page from an address that is.'}"
                )
        if by_cookie and not origins and header(scope, b"sec-fetch-site") != "same-origin":
            raise Forbidden("a change with a cookie needs a known Origin; to send none, authenticate with a token")
    except Forbidden as error:
        refusals.log(peer_of(scope), error)
        raise


def _is_allowed(hub: HubCore, origin: str, *, by_cookie: bool) -> bool:
    # A star accepts the requests of every page, but not with the cookies of the user who looks at the page.
    return origin in hub.allowed_origins or ("*" in hub.allowed_origins and not by_cookie)


def _is_own_origin(hub: HubCore, scope: Scope, origin: str) -> bool:
    """Return whether `origin` is the page's address of this server itself.

    That is the hub's `public_origin`. Without that setting it is the host and port that the request was sent to. Then
    a plain page is foreign if this server, or a proxy that says so, was reached over https. A browser knows both
    schemes: a page that it calls another site is foreign, too. (Chromium does not name the site of a WebSocket.)
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
    """Return whether the page was reached over https. A proxy's word can make a page foreign, never known."""
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
            f"a page of another address sent it (Sec-Fetch-Site: {shown(others[0])})",
            "Open the address itself, or list the page's origin in Hub(allowed_origins=[...]).",
        )


def _check_own_host(hub: HubCore, scope: Scope) -> None:
    """Raise Forbidden unless the Host is this machine's own, or that of `public_origin`.

    Any web page can let a name of its own point at a loopback address, and is then of the same origin as the hub.
    """
    if not _is_own_host(scope, hub.public_origin):
        raise Forbidden(
            f"This hub accepts every caller of this machine: {_wrong_host(scope)}. Behind a proxy, set the address of "
            "its pages with Hub(public_origin=...) or --public-origin."
        )


def _is_own_host(scope: Scope, public_origin: str | None = None) -> bool:
    hosts = headers_of(scope, b"host")
    host = parse_host(hosts[0]) if len(hosts) == 1 else None
    if host is None or host.is_local:
        return host is not None
    page = parse_origin(public_origin) if public_origin is not None else None
    return page is not None and page.is_at(host)


def _wrong_host(scope: Scope) -> str:
    """Return why the Host header is not this machine's own, for a message."""
    hosts = headers_of(scope, b"host")
    given = " and ".join(map(shown, hosts[:2])) or "missing"
    return f"the Host header is {given}, expected localhost, 127.0.0.1 or [::1]"


def _not_ours(reason: str, remedy: str | None = None) -> NoVerifier:
    return NoVerifier(
        f"This hub has no verifier and answers only requests of its own machine and user: {reason}. {remedy or _REMEDY}"
    )


def _origin_remedy(origin: str) -> str | None:
    """Return how to allow the pages of `origin`; None for a text that is not the origin of pages."""
    if parse_origin(origin) is None:
        return None
    return f'If the page is yours, set Hub(allowed_origins=["{origin}"]), or start with --allowed-origin {origin}.'


# What they may do


def check_operation(identity: Identity, operation: Operation, channel: str) -> None:
    """Raise Forbidden unless `identity` holds every capability that `operation` needs on `channel`."""
    for capability in operation.needs:
        identity.check(capability, channel)


def check_create(request: CreateMessage, identity: Identity, channel: str) -> None:
    """Raise Forbidden if creating this message needs `append` besides `publish`, and `identity` lacks it."""
    if request.role != "user" or request.status == "streaming" or _has_writer_parts(request.parts):
        identity.check("append", channel)


def check_update(request: UpdateMessage, identity: Identity, channel: str) -> None:
    """Raise Forbidden if the new parts of the message need `append` besides `publish`, and `identity` lacks it."""
    if _has_writer_parts(request.parts):
        identity.check("append", channel)


def _has_writer_parts(parts: list[Part] | None) -> bool:
    return any(part.get("type") in _WRITER_PARTS for part in parts or ())  # of any type: parts are not validated yet


def check_work(identity: Identity, pattern: str) -> None:
    """Raise Forbidden unless `identity` may take turns of all channels that `pattern` covers."""
    for capability in BY_NAME["work"].needs:
        identity.check_pattern(capability, pattern)


async def check_metrics(hub: HubCore, scope: Scope) -> None:
    """Raise Forbidden unless the caller is `admin` of all channels, or the hub has no verifier."""
    if hub.authenticate is not None and not all(
        map((await identify(hub, scope)).has_everywhere, BY_NAME["metrics"].needs)
    ):
        raise Forbidden("/metrics needs the capability 'admin' on all channels where the hub has a verifier")


def member_of(identity: Identity, member: str | None) -> str:
    """Return the id of a member of this client, by default the client id. Raises Forbidden, InvalidName."""
    return check_member(member or identity.client_id or "anonymous", identity.client_id)


def count_signal(hub: HubCore, identity: Identity, name: str) -> None:
    """Count a signal of this client. Raises TooMany, and Forbidden for a name that only the server uses."""
    hub.rates.signal(identity)
    check_signal(name)


def caller_of(hub: HubCore, identity: Identity, channel: str) -> Caller:
    """Return `identity` as the caller of a request for `channel`, with the rate of new channels applied."""
    caller = identity.caller(channel)
    return caller if hub.rates.may_begin(identity) else replace(caller, may_begin=False)


def count_new_channel(hub: HubCore, identity: Identity, result: Result) -> None:
    """Count a channel of this client if the stored request was its first entry."""
    if result.created and result.serial == 1:
        hub.rates.began(identity)


def describe_caller(hub: HubCore, identity: Identity, channel: str | None = None) -> dict[str, Any]:
    """Return what a client learns about itself: its id, its capabilities on `channel`, and when its identity expires.

    `expires_s` counts from now: the clocks of clients are often wrong.
    """
    about: dict[str, Any] = {} if identity.client_id is None else {"id": identity.client_id}
    if channel is not None:
        about["can"] = identity.capabilities_on(channel)
    if identity.expires_at_ms is not None:
        about["expires_s"] = max(0, identity.expires_at_ms - hub.clock.now_ms()) / 1000
    return about


# Who may follow a channel


async def check_serving(hub: HubCore) -> None:
    """Start the hub, and raise Draining if it shuts down: a draining hub refuses before any other check."""
    await hub.start()
    if hub.is_draining:
        raise Draining("this server is shutting down; connect to another server, or to this one after its restart")


async def admit_stream(
    hub: HubCore, scope: Scope, query: Query, channel: str, operation: Operation
) -> tuple[Identity, Ticket | None]:
    """Return the identity for a stream of `channel`, by a ticket (returned too) or as for every request.

    Raises Draining, InvalidName, Unauthenticated, Expired, Forbidden and the errors of `identify`.
    """
    await check_serving(hub)
    text = query.text("ticket")
    ticket: Ticket | None = None
    if text is None:
        identity = await identify(hub, scope)
        check_channel(channel)
    else:
        ticket = hub.tickets.read(text, check_channel(channel), parse_cursor(header(scope, b"last-event-id")))
        identity = ticket.identity()
        mark_known(scope)
    check_operation(identity, operation, channel)
    return identity, ticket


async def admit_poll(hub: HubCore, scope: Scope, channel: str) -> Identity:
    """Return the identity for a long poll of `channel`. Tickets do not count: a client that polls can send a header."""
    await check_serving(hub)
    identity = await identify(hub, scope)
    check_operation(identity, BY_NAME["poll"], check_channel(channel))
    return identity


def allowed_history(identity: Identity, channel: str, requested: int | None) -> int | None:
    """Return how many finished messages a new start shows: none to a caller without `history`."""
    return requested if identity.has("history", channel) else 0


# Headers and addresses


def peer_of(scope: Scope) -> str:
    """Return the address of the peer, as the server sees it."""
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


def _forwarding_header(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the first header that only a proxy adds, for a message; None if there is none."""
    for name, _ in headers:
        low = name.lower()
        if low in _FORWARDING or low.startswith(_FORWARDING_PREFIXES):
            return shown(low.decode("latin-1"))
    return None
