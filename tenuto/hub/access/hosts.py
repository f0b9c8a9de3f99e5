"""Hosts and origins, parsed exactly.

Layer: hub.

A `Host` header and an `Origin` header decide whether a page belongs to this server, so they are compared only after a
parse that accepts the whole text or none of it. A general URL parser is not enough: it finds the host `::1` in
`[::1]evil`, and it accepts a user name before the host. Browsers send both headers in one normal form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from tenuto.core.errors import LocalError, shown

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_CHARACTERS = 300  # longer text is refused before it is parsed; a host name has at most 253 characters
_PORTS = {"http": 80, "https": 443}
_SOCKETS = ("ws", "wss")  # the origin of a page's WebSocket is the page's own
_HOST = re.compile(r"(?:\[([0-9a-f:.]{2,45})\]|([a-z0-9_][a-z0-9_.-]*))(?::([0-9]{1,5}))?", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_EXAMPLE = '"https://app.example"'


class Host(NamedTuple):
    """A host in lower case (an IPv6 address without brackets), and its port if it is given."""

    name: str
    port: int | None

    @property
    def is_local(self) -> bool:
        """Return whether the host is a name or address of this machine's loopback interface."""
        return self.name in LOCAL_HOSTS


class Origin(NamedTuple):
    """The scheme, host and port of a page. The port is the scheme's default if none is given."""

    scheme: str
    host: str
    port: int | None  # None: a scheme of an app, which has no default port

    def is_at(self, host: Host) -> bool:
        """Return whether `host`, the header of a request, names the host and port of this page."""
        default = _PORTS.get(self.scheme)
        return default is not None and (self.host, self.port) == (host.name, host.port or default)


def parse_host(text: str) -> Host | None:
    """Return the host and port in a `Host` header; None if the header is malformed."""
    found = _HOST.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if found is None:
        return None
    address, name, port = found.groups()
    number = int(port) if port is not None else None
    if number is not None and not 0 < number < 65536:
        return None
    if address is None:
        return Host(name.lower(), number)
    try:
        return Host(str(IPv6Address(address)), number)
    except ValueError:
        return None


def parse_origin(text: str) -> Origin | None:
    """Return the origin if `text` is one as a whole; None for any other text, such as `null`."""
    scheme, separator, rest = text.partition("://")
    host = parse_host(rest) if separator and _SCHEME.fullmatch(scheme) else None
    if host is None:
        return None
    return Origin(scheme, host.name, host.port or _PORTS.get(scheme))


def is_loopback(address: Any) -> bool:
    """Return whether `address` is a loopback address, of IPv4, of IPv6, or of IPv4 within IPv6."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return bool((mapped or ip).is_loopback)


def address_group(address: str) -> str:
    """Return the group as which a peer is counted: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in address:
        return address
    try:
        ip = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or IPv6Network((int(ip) >> 64 << 64, 64)))


def check_allowed_origins(given: Iterable[str]) -> tuple[str, ...]:
    """Return the setting `allowed_origins` as a tuple.

    Raises LocalError for an entry that no page can have as its origin.
    """
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        kind = "the string" if isinstance(given, str) else f"an object of type {type(given).__name__}:"
        raise LocalError(f"allowed_origins must be a list of origins such as {_EXAMPLE}, got {kind} {shown(given)}")
    origins = tuple(given)
    for one in origins:
        if one != "*":
            _check_origin(one, f"allowed_origins must hold origins such as {_EXAMPLE}")
    return origins


def check_public_origin(given: str | None) -> str | None:
    """Return the setting `public_origin`. Raises LocalError unless it is None or an origin with http or https."""
    if given is None:
        return None
    origin = _check_origin(given, 'public_origin must be an origin such as "https://chat.example"')
    if origin.scheme not in _PORTS:
        raise LocalError(f"public_origin must begin with http:// or https://, got {shown(given)}")
    return given


def _check_origin(given: object, expected: str) -> Origin:
    """Return the origin `given`, in the form of browsers. Raises LocalError, which begins with `expected`."""
    origin = parse_origin(given) if isinstance(given, str) else None
    if origin is None or given != _normal(origin) or origin.scheme in _SOCKETS:
        raise LocalError(f"{expected}, got {shown(given)}")
    return origin


def _normal(origin: Origin) -> str:
    """Return `origin` as browsers send it: without a port that is the scheme's default."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    port = "" if origin.port in (None, _PORTS.get(origin.scheme)) else f":{origin.port}"
    return f"{origin.scheme}://{host}{port}"
