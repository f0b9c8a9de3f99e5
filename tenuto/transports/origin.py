"""Where a request comes from: its page's origin, its Host, and whether it was sent on this machine.

Layer: transports. `access` explains the rules; the app and `access` apply these checks before they ask for credentials.

On a machine with several users a loopback connection may come from another user's process. The system names the owner
of a socket (`foreign_owner`), on Linux by netlink.

`tenuto serve` bounds connections whose peers are unknown (`tenuto.server.connections`). It puts an object into the ASGI
scope, which travels through middleware, and the transports call it when a verifier has identified the peer
(`ServerConnection`). Under any other server the scope has no such object, and each such call has no effect.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from tenuto.core.errors import Busy, Forbidden, NoVerifier, shown
from tenuto.hub.access.hosts import is_loopback, parse_host, parse_origin
from tenuto.hub.access.identity import Scope, header, headers_of
from tenuto.hub.access.visitors import VisitorVerifier
from tenuto.hub.hub import HubCore
from tenuto.transports.codec import is_operator, peer_of, refusals

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# Headers by which proxies, content delivery networks and tunnels state where a request came from: these, and each whose
# name says that it has an address, or a forwarded request.
_FORWARDING = frozenset(
    (
        b"akamai-origin-hop",
        b"cdn-loop",  # RFC 8586
        b"via",
        b"x-coming-from",
        b"x-host",
        b"x-original-host",
        b"x-original-url",
        b"x-remote-addr",
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


def check_peer(hub: HubCore, scope: Scope) -> None:
    """Raise NoVerifier if the hub has no verifier and the request does not plainly come from its machine and user.

    Raises Forbidden for a `Host` that is not this machine, if the hub accepts every caller on loopback, and Busy if the
    peer's user cannot be looked up now. Logs refusals.
    """
    if is_operator(scope):
        return
    with refusals.logged(scope):
        if hub.authenticate is None:
            _check_own_machine(hub, scope)
        elif hub.requires_own_host and not _is_own_host(scope, hub.public_origin):
            # any web page can make its domain name resolve to a loopback address, and is then of the hub's origin
            raise Forbidden(
                f"{_wrong_host(scope, 'The')}, because this hub accepts callers of this machine only. Behind a proxy, "
                "set the address of its pages with Hub(public_origin=...) or --public-origin."
            )
    if hub.authenticate is None and (reason := foreign_owner(scope)) is not None:
        refusals.log(peer_of(scope), _not_ours(reason))  # only the log names the accounts
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

    These are WebSockets, which CORS does not guard, and changes by a cookie or a visitor. A request by a cookie without
    `Origin` is refused, too, unless `Sec-Fetch-Site` is `same-origin`: browsers name the origin of every change.
    """
    by_cookie = is_by_cookie(hub, scope)
    is_checked = by_cookie or _becomes_visitor(hub, scope)
    if scope["type"] != "websocket" and (not is_checked or scope["method"] in SAFE_METHODS):
        return
    origins = headers_of(scope, b"origin")
    with refusals.logged(scope):
        for origin in origins:
            # `*` accepts the requests of every page, but not with the cookies of the user who views the page
            if not (_is_known_page(hub, scope, origin) or ("*" in hub.allowed_origins and not by_cookie)):
                raise Forbidden(
                    f"the page's origin {shown(origin)} is neither this server's nor in allowed_origins. "
                    f"{_origin_remedy(origin) or 'Open the page from an allowed address.'}"
                )
        if by_cookie and not origins and header(scope, b"sec-fetch-site") != "same-origin":
            raise Forbidden(
                "a change that a cookie authenticates needs the header Origin of an allowed page, and this request has "
                "none; send Origin, or authenticate with a token"
            )


def is_by_star(hub: HubCore, scope: Scope) -> bool:
    """Return whether only `*` allows the page of a request with cookies: then they do not identify the caller."""
    if hub.authenticate is None or "*" not in hub.allowed_origins or not is_by_cookie(hub, scope):
        return False
    return not all(_is_known_page(hub, scope, origin) for origin in headers_of(scope, b"origin"))


def _is_known_page(hub: HubCore, scope: Scope, origin: str) -> bool:
    return origin in hub.allowed_origins or is_own_origin(hub, scope, origin)


def _becomes_visitor(hub: HubCore, scope: Scope) -> bool:
    """Return whether the hub makes the caller a visitor, as whom a foreign page must not ask questions, either."""
    authorization = header(scope, b"authorization") or ""
    return isinstance(hub.authenticate, VisitorVerifier) and authorization[:7].lower() != "bearer "


def refusal_of_get(hub: HubCore, scope: Scope) -> Forbidden | None:
    """Return the error of a change by a page of another origin in a GET route (`check_origin`: by other methods)."""
    if scope["type"] != "http" or scope.get("method") not in SAFE_METHODS:
        return None
    return refusal_of_page(hub, scope) if is_by_cookie(hub, scope) or _becomes_visitor(hub, scope) else None


def refusal_of_page(hub: HubCore, scope: Scope) -> Forbidden | None:
    """Return the error if a page of another origin asks in a route of the app, or a browser prefetches.

    `check_origin` lets GET pass, which changes no channel of the hub; there it makes the app call its model.
    """
    origin, sites = header(scope, b"origin"), headers_of(scope, b"sec-fetch-site")
    is_other = any(site not in _OWN_SITE for site in sites)
    if not sites and origin is not None and scope["method"] in SAFE_METHODS:  # over plain http browsers name no site
        is_other = not is_own_origin(hub, scope, origin)
    # `*` as in `check_origin`; a request without `Origin`, such as that for an image, names no page that it admits
    by_star = origin is not None and "*" in hub.allowed_origins and not is_by_cookie(hub, scope)
    is_admitted = by_star or origin in hub.allowed_origins
    if not is_admitted and (is_other or "prefetch" in (header(scope, b"sec-purpose") or "")):
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
    if host is None or page is None or (page.scheme == "http" and _is_encrypted(scope)):  # see `is_own_origin`
        return False
    return page.is_at(host)


def _is_encrypted(scope: Scope) -> bool:
    """Return whether the request came to this server or its proxy over https.

    A forged header of a proxy can make a page foreign, but never this server's.
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
    other_sites = [site for site in headers_of(scope, b"sec-fetch-site") if site not in _OWN_SITE]
    if other_sites and not foreign:  # a page of an allowed origin is of another site, too
        raise _not_ours(
            f"a page of another origin sent the request (Sec-Fetch-Site: {shown(other_sites[0])})",
            "Open the address itself, or list the page's origin in Hub(allowed_origins=[...]).",
        )


def _is_own_host(scope: Scope, public_origin: str | None = None) -> bool:
    """Return whether the one Host header names this machine, or the host of `public_origin`, with any port."""
    hosts = headers_of(scope, b"host")
    host = parse_host(hosts[0]) if len(hosts) == 1 else None
    page = parse_origin(public_origin) if public_origin is not None else None
    return host is not None and (host.is_local or (page is not None and page.host == host.name))


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
        is_about_peer = low.endswith(b"-ip") or b"forwarded" in low
        if is_about_peer or low in _FORWARDING or low.startswith(_FORWARDING_PREFIXES):
            return shown(low.decode("latin-1"))
    return None


EXTENSION = "tenuto.server"


class ServerConnection(Protocol):
    """The interface of a connection in `tenuto serve`."""

    def known(self) -> None:
        """Lift the bounds on unknown peers, because a verifier has identified this one."""

    def expect_introduction(self, timeout_s: float) -> None:
        """Bound an unknown peer, which has `timeout_s` seconds to authenticate."""

    def verifier_began(self, limit: asyncio.Timeout) -> None:
        """Count an unknown peer until `verifier_ended`. End `limit`, the time of the verifier, if the peer is gone."""

    def verifier_ended(self) -> None:
        """Note that the verifier has ended, whatever its result."""


def mark_known(scope: Mapping[str, Any]) -> None:
    """Inform the server that a verifier has identified the peer of this request or socket."""
    connection = connection_of(scope)
    if connection is not None:
        connection.known()


def expect_introduction(scope: Mapping[str, Any], timeout_s: float) -> bool:
    """Inform the server that the peer of this socket is unknown and has `timeout_s` seconds to authenticate.

    Call it before the socket is accepted. Return whether the server limits the number of such sockets.
    """
    connection = connection_of(scope)
    if connection is not None:
        connection.expect_introduction(timeout_s)
    return connection is not None


def connection_of(scope: Mapping[str, Any]) -> ServerConnection | None:
    """Return the connection of this request or socket, one object as long as it is open; None under another server."""
    server = (scope.get("extensions") or {}).get(EXTENSION)
    return server["connection"] if server is not None else None


Address = IPv4Address | IPv6Address

_SOCK_DIAG = 4  # the netlink family NETLINK_SOCK_DIAG, for which the module `socket` has no name
_BY_FAMILY, _ERROR, _REQUEST = 20, 2, 1  # message types SOCK_DIAG_BY_FAMILY and NLMSG_ERROR, and flag NLM_F_REQUEST
_HEADER = struct.Struct("=IHHII")  # header of each message: length, type, flags, sequence number, port
_FILTER = struct.Struct("=BBBBI")  # filter of the request: family, protocol, extensions, padding, states
_STATE = struct.Struct("=BBBB")  # beginning of the response: family, state, timer, retransmits
# ends of the connection in request and response: source port, destination port, source, destination
_PAIR = struct.Struct(">HH16s16s")
_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # end of the request: any interface, no cookie
_OWNER = struct.Struct("=IIIII")  # end of the response: timer, bytes to read, bytes to write, user, inode
_OWNER_AT = _HEADER.size + _STATE.size + _PAIR.size + len(_COOKIE)
_EVERY_STATE = 0xFFFFFFFF
_ROOT = 0
# Errors that mean a shortage, which a peer may cause. They must not look like a system that does not provide the owner.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class SocketOwner(NamedTuple):
    """The user that owns a socket, and its inode. The inode is 0 once no process has the socket open."""

    uid: int
    inode: int


class Pair(NamedTuple):
    """The two ends of a connection. The peer's end comes first, as in the entry of the peer's socket."""

    address: Address
    port: int
    remote: Address
    remote_port: int


def foreign_owner(scope: Scope) -> str | None:
    """Return why the peer's socket does not belong to this process's user or to root; None if it does.

    Also returns None if the system or the server does not provide this. Raises Busy if descriptors or memory are short.
    """
    if not sys.platform.startswith("linux"):
        return None
    connection = connection_of(scope)
    if connection is not None and connection in _owned:
        return None
    reason = _objection_to_peer(scope)
    if reason is None and connection is not None:
        _owned.add(connection)
    return reason


# Connections to whose peers there is no objection; only if the server shows which request came over which connection.
_owned: WeakSet[Any] = WeakSet()


def _objection_to_peer(scope: Scope) -> str | None:
    """Return why the owner of the peer's socket is foreign; None also if the system shows no owners. Raises Busy."""
    pair = pair_of(scope)
    try:
        if pair is None or not _knows_owners():
            return None
        return objection(owner_of(pair), os.geteuid())
    except OSError as error:
        raise Busy(f"the owner of the peer's socket cannot be looked up: {error.strerror}; try again") from None


def objection(owner: SocketOwner | None, uid: int) -> str | None:
    """Return why a socket of `owner` does not belong to the user `uid` or to root; None if it does."""
    if owner is None or (owner.uid == _ROOT and not owner.inode):  # a closed socket looks like root's
        return "the peer's socket is closed already, or not of this machine, so its user is unknown"
    if owner.uid in (_ROOT, uid):
        return None
    return f"the peer's socket belongs to the user {_name(owner.uid)}, expected {_name(uid)}, which runs this server"


def pair_of(scope: Scope) -> Pair | None:
    """Return the ends of the connection behind a request; None if the server does not provide addresses and ports."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or not isinstance(server[1], int) or not isinstance(client[1], int):
        return None
    try:
        address, remote = _plain(ip_address(client[0])), _plain(ip_address(server[0]))
    except ValueError:
        return None
    if remote.is_unspecified:  # the server gives the address that it listens on instead of the connection's
        remote = address
    if address.version != remote.version:  # not the ends of one connection
        return None
    return Pair(address, client[1], remote, server[1])


def _plain(address: Address) -> Address:
    """Return an IPv4 address that is written as IPv6 in its plain form."""
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _name(uid: int) -> str:
    import pwd  # imported here: the module does not exist on every system, and this code only runs on Linux

    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


@lru_cache
def _knows_owners() -> bool:
    """Return whether netlink knows a socket of this process. Raises OSError for a shortage."""
    try:
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            own.listen(1)
            owner = owner_of(Pair(IPv4Address("127.0.0.1"), own.getsockname()[1], IPv4Address(0), 0))
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
        return False
    return owner is not None and owner.uid == os.geteuid() and owner.inode != 0


def owner_of(pair: Pair) -> SocketOwner | None:
    """Return the owner of the socket with these ends, from sock_diag. Raises OSError."""
    family = socket.AF_INET if pair.address.version == 4 else socket.AF_INET6
    ends = _ends(pair, pair.address.version)
    body = _FILTER.pack(family, socket.IPPROTO_TCP, 0, 0, _EVERY_STATE) + ends + _COOKIE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as netlink:
        netlink.setblocking(False)  # no waiting: the kernel has responded when `send` returns
        netlink.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 0, 0) + body)
        reply = netlink.recv(4096)
    kind = _HEADER.unpack_from(reply)[1]
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", reply, _HEADER.size)
        if -code in _SHORTAGES:
            raise OSError(-code, os.strerror(-code))
        return None  # ENOENT means that there is no such socket
    # If no connection has these ends, the kernel looks for a listening socket.
    if kind != _BY_FAMILY or reply[_HEADER.size + _STATE.size :][: _PAIR.size] not in (ends, _ends(pair, 6)):
        return None
    *_, uid, inode = _OWNER.unpack_from(reply, _OWNER_AT)
    return SocketOwner(uid, inode)


def _ends(pair: Pair, version: int) -> bytes:
    """Return the two ends in the form of sock_diag. A connection of IPv4 may have an IPv6 socket at either end."""
    prefix = b"\0" * 10 + b"\xff\xff" if version != pair.address.version else b""  # of an IPv4 address in IPv6
    return _PAIR.pack(pair.port, pair.remote_port, prefix + pair.address.packed, prefix + pair.remote.packed)
