"""Identities: the caller as the server knows it, never as the request claims.

Layer: hub.

Each operation of each transport is checked against an identity: a client id and its capabilities by channel pattern.
The names of capabilities are part of the protocol (`docs/security.md`): new ones may be added, and none changes its
meaning. `tokens`, `tickets` and the app's own callback authenticate a caller and make its identity.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from tenuto.core.errors import Forbidden, LocalError, Unauthenticated, shown
from tenuto.core.names import check_id, check_pattern, matches
from tenuto.core.requests import Caller

CAPABILITIES = frozenset(("subscribe", "history", "publish", "append", "presence", "command", "agent", "admin"))
_IN_ORDER = tuple(sorted(CAPABILITIES))  # sorted once, because each attach uses the list
# A client with one of these serves other clients, and may send more than a person can type.
TRUSTED = frozenset(("append", "agent", "admin"))
EVERYWHERE = "*"
_SUB = "{sub}"

Grants = Mapping[str, frozenset[str]]  # a type: capabilities by channel pattern
Scope = dict[str, Any]  # a type: the scope of an ASGI connection
Authenticate = Callable[[Scope], Awaitable["Identity | None"]]


class Expired(Unauthenticated):
    """The identity behind a request has expired; with a new token the client can continue."""


class Identity(Struct, frozen=True, kw_only=True):
    """A client id, its capabilities, and when they end.

    `grants` are capabilities by channel pattern; `{sub}` in a pattern is the client id. Without `grants` the
    `capabilities` (by default all) hold on every channel. Raises LocalError for an invalid pattern or an unknown
    capability, InvalidName if `{sub}` would be filled with an invalid id.
    """

    client_id: str | None = None
    capabilities: frozenset[str] = CAPABILITIES
    grants: Grants | None = None
    may_list: bool = True  # False: the list of channels is refused, so that a channel's name is what opens it
    expires_at_ms: int | None = None  # milliseconds since 1970; None: the identity holds as long as the connection

    def __post_init__(self) -> None:
        if isinstance(self.client_id, str):
            force_setattr(self, "client_id", str.__str__(self.client_id))  # no store encodes a subclass
        if self.grants is None:
            force_setattr(self, "capabilities", check_capabilities(self.capabilities, EVERYWHERE))
            return
        filled: dict[str, frozenset[str]] = {}
        for pattern, capabilities in self.grants.items():
            name = fill_pattern(pattern, self.client_id)
            filled[name] = filled.get(name, frozenset()) | check_capabilities(capabilities, pattern)
        force_setattr(self, "grants", filled)
        # If only grants are given, `capabilities` must not keep its default, which would hold on every channel.
        force_setattr(self, "capabilities", filled.get(EVERYWHERE, frozenset()))

    def has(self, capability: str, channel: str) -> bool:
        """Return whether `capability` is granted on `channel`, or by one grant on all channels of a pattern.

        Those begin with its stem (the text before `*`), so a grant that covers the stem covers them all.
        """
        return capability in self.capabilities or any(
            capability in granted and matches(pattern, channel) for pattern, granted in (self.grants or {}).items()
        )

    def capabilities_on(self, channel: str) -> list[str]:
        """Return the capabilities that are granted on `channel`, in alphabetical order."""
        known = (names for pattern, names in (self.grants or {}).items() if matches(pattern, channel))
        granted = self.capabilities.union(*known)
        return [one for one in _IN_ORDER if one in granted]

    def check(self, capability: str, channel: str) -> None:
        """Raise Forbidden unless this identity holds `capability` on `channel`, or on all channels of a pattern."""
        if not self.has(capability, channel):
            where = "all channels of" if channel.endswith("*") else "channel"
            raise Forbidden(f"{self._name()} needs the capability {capability!r} on {where} {shown(channel)}")

    def patterns(self, *capabilities: str) -> list[str]:
        """Return the patterns of channels on which one of `capabilities` is granted, for a list of channels.

        Raises Forbidden if the identity has no such pattern, and without `may_list`.
        """
        if not self.may_list:
            raise Forbidden(f"{self._name()} may not list channels; give it an identity that `authenticate` returns")
        if not self.capabilities.isdisjoint(capabilities):
            return [EVERYWHERE]
        found = [pattern for pattern, granted in (self.grants or {}).items() if not granted.isdisjoint(capabilities)]
        if not found:
            names = " or ".join(map(repr, capabilities))
            raise Forbidden(f"{self._name()} needs the capability {names} on a channel")
        return found

    def includes(self, other: Identity) -> bool:
        """Return whether this identity has each capability of `other`, on the same channels or more."""
        granted = {EVERYWHERE: other.capabilities, **(other.grants or {})}
        return all(self.has(one, pattern) for pattern, names in granted.items() for one in names)

    def _name(self) -> str:
        """Return the name of this client for error messages."""
        return f"client {shown(self.client_id)}" if self.client_id is not None else "a client without an id"

    def caller(self, channel: str) -> Caller:
        """Return the caller for a request on `channel`."""
        granted = self.capabilities_on(channel)
        is_admin, may_read = "admin" in granted, "subscribe" in granted or "history" in granted
        return Caller(id=self.client_id, is_admin=is_admin, may_read=may_read, may_write="append" in granted)

    @property
    def is_trusted(self) -> bool:
        """Return whether the client serves others (`append`, `agent` or `admin` on a channel), without rate limits."""
        granted = (self.capabilities, *(self.grants or {}).values())
        return not all(map(TRUSTED.isdisjoint, granted))

    def is_expired(self, now_ms: int) -> bool:
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms


def check_capabilities(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return `names` as a set.

    Raises LocalError for an unknown name, since an unknown capability could not be enforced.
    """
    granted = frozenset(names)
    if unknown := sorted(str(name)[:50] for name in granted - CAPABILITIES):
        raise LocalError(
            f"grant on {pattern!r} names the unknown capabilities {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(sorted(CAPABILITIES))}"
        )
    return granted


def fill_pattern(pattern: str, client_id: str | None) -> str:
    """Return `pattern` with `{sub}` filled in. Raises LocalError for an invalid pattern, InvalidName for an invalid id.

    A `*` directly after `{sub}` is refused, as after any other letter, since an id may end in `:`, `/` or `.`.
    """
    check_pattern(pattern.replace(_SUB, "x"))
    rest = pattern.replace(_SUB, "")
    if "{" in rest or "}" in rest:
        raise LocalError(f"pattern {pattern!r} holds braces other than {_SUB}; only {_SUB} is filled in")
    if _SUB not in pattern:
        return pattern
    return pattern.replace(_SUB, check_id(client_id, "a client id"))


def header(scope: Scope, name: bytes) -> str | None:
    """Return the first header `name` (lower case), or None."""
    return next(iter(headers_of(scope, name)), None)


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """Return the values of all headers `name` (lower case)."""
    return [value.decode("latin-1") for known, value in scope["headers"] if known.lower() == name]


def cookies_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the names and values of all cookies of a request."""
    pairs = (pair for value in headers_of(scope, b"cookie") for pair in value.split(";"))
    # other white space is part of a name, which a neighbouring host could set
    return [(name, value) for name, _, value in (pair.strip(" \t").partition("=") for pair in pairs)]


def claimed_identity(scope: Scope) -> Identity:
    """Return the identity of an unverified peer: `?client=`, else `anonymous`."""
    claimed = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client", ["anonymous"])[0]
    return Identity(client_id=claimed[:64] or "anonymous")


async def allow_everyone(scope: Scope) -> Identity:
    """Let all callers read and write, without a check: an `authenticate` for tests and for trusted networks.

    They have all capabilities but `admin`, and do not list channels.
    """
    return replace(claimed_identity(scope), capabilities=CAPABILITIES - {"admin"}, may_list=False)
