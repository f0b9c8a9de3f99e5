"""Who asks: an identity as the server knows it, never as the request claims.

Layer: hub.

Every operation of every transport is checked against an identity: a client id and what it may do, by
channel pattern. Names of capabilities are part of the protocol (`docs/security.md`); new ones are welcome, none gets
another meaning. Nothing here knows how an identity was found out: `tokens`, `tickets` and the app's own callback do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs

from msgspec import Struct
from msgspec.structs import force_setattr

from holdfast.core.errors import Forbidden, LocalError, Unauthenticated
from holdfast.core.names import check_id
from holdfast.core.requests import Caller
from holdfast.hub.patterns import check_pattern, matches

CAPABILITIES = frozenset(
    ("subscribe", "history", "publish", "append", "presence", "command", "agent", "admin"),
)
# Whoever holds one of these serves others, and is trusted with more than a person can type.
TRUSTED = frozenset(("append", "agent", "admin"))
EVERYWHERE = "*"
_SUB = "{sub}"

Grants = Mapping[str, frozenset[str]]  # capabilities by channel pattern
Scope = dict[str, Any]  # an ASGI connection scope
Authenticate = Callable[[Scope], Awaitable["Identity | None"]]


class Expired(Unauthenticated):
    """Somebody was known behind this, and it is over: with a new token it goes on."""


class Identity(Struct, frozen=True, kw_only=True):
    """Somebody, what they may do, and until when.

    `grants` are capabilities by channel pattern; `{sub}` in a pattern is the client id. Without `grants` the
    `capabilities` (all, if none are named) hold on every channel. Raises LocalError where a pattern or a capability is
    none, InvalidName where `{sub}` would be filled in by what is no id.
    """

    client_id: str | None = None
    capabilities: frozenset[str] = CAPABILITIES
    grants: Grants | None = None
    expires_at_ms: int | None = None  # milliseconds since 1970; None: as long as the connection lasts

    def __post_init__(self) -> None:
        if self.grants is None:
            check_capabilities(self.capabilities, EVERYWHERE)
            return
        filled: dict[str, frozenset[str]] = {}
        for pattern, capabilities in self.grants.items():
            name = fill_pattern(pattern, self.client_id)
            filled[name] = filled.get(name, frozenset()) | check_capabilities(capabilities, pattern)
        force_setattr(self, "grants", filled)
        # What is granted by pattern is not granted everywhere, whatever the default says.
        force_setattr(self, "capabilities", filled.get(EVERYWHERE, frozenset()))

    def has(self, capability: str, channel: str) -> bool:
        """Is `capability` granted on `channel`?"""
        if capability in self.capabilities:
            return True
        grants = self.grants
        if grants is None:
            return False
        return any(capability in granted and matches(pattern, channel) for pattern, granted in grants.items())

    def has_everywhere(self, capability: str) -> bool:
        """Is `capability` granted on all channels?"""
        return capability in self.capabilities

    def check(self, capability: str, channel: str) -> None:
        """Raises Forbidden unless this identity holds `capability` on `channel`."""
        if not self.has(capability, channel):
            raise Forbidden(f"this needs the capability {capability!r}")

    def has_pattern(self, capability: str, pattern: str) -> bool:
        """Is `capability` granted, by one grant, on every channel that falls under `pattern`?"""
        if capability in self.capabilities:
            return True
        grants = self.grants or {}
        # What falls under a pattern begins as it does, so a grant that has its stem has them all.
        return any(
            capability in granted and (known == pattern or matches(known, pattern)) for known, granted in grants.items()
        )

    def check_pattern(self, capability: str, pattern: str) -> None:
        """Raises Forbidden unless this identity holds `capability` on every channel that `pattern` names."""
        if not self.has_pattern(capability, pattern):
            raise Forbidden(f"this needs the capability {capability!r} on all that the pattern names")

    def includes(self, other: Identity) -> bool:
        """Is everything granted that `other` is granted?"""
        granted = {EVERYWHERE: other.capabilities, **(other.grants or {})}
        return all(self.has_pattern(one, pattern) for pattern, names in granted.items() for one in names)

    def caller(self, channel: str | None = None) -> Caller:
        """This identity as the one who asks something of `channel`; of no channel, with what it may do on all."""
        has = self.has_everywhere if channel is None else _on(self, channel)
        return Caller(
            id=self.client_id,
            is_admin=has("admin"),
            may_read=has("subscribe") or has("history"),
            may_write=has("append"),
        )

    @property
    def is_trusted(self) -> bool:
        """Does it serve others, so that no rates are counted? One such capability, wherever it holds, says so."""
        granted = self.capabilities.union(*(self.grants or {}).values())
        return not granted.isdisjoint(TRUSTED)

    def is_expired(self, now_ms: int) -> bool:
        """Is it over?"""
        return self.expires_at_ms is not None and now_ms >= self.expires_at_ms


def _on(identity: Identity, channel: str) -> Callable[[str], bool]:
    return lambda capability: identity.has(capability, channel)


def check_capabilities(names: Iterable[str], pattern: str) -> frozenset[str]:
    """Return `names` as a set; raises LocalError where one is no capability. A newer one must not be half believed."""
    granted = frozenset(names)
    unknown = sorted(str(name)[:50] for name in granted - CAPABILITIES)
    if unknown:
        raise LocalError(
            f"{', '.join(map(repr, unknown))} on {pattern!r}: no such capability; there are "
            f"{', '.join(sorted(CAPABILITIES))}"
        )
    return granted


def fill_pattern(pattern: str, client_id: str | None) -> str:
    """`pattern` with `{sub}` filled in. Raises LocalError where it is no pattern, InvalidName where the id is none.

    A star directly after `{sub}` is refused, as after any other letter: an id may end in what a star may follow.
    """
    check_pattern(pattern.replace(_SUB, "x"))
    rest = pattern.replace(_SUB, "")
    if "{" in rest or "}" in rest:
        raise LocalError(f"pattern {pattern!r}: only {_SUB} is filled in")
    if _SUB not in pattern:
        return pattern
    return pattern.replace(_SUB, check_id(client_id, "a client id"))


def claimed_identity(scope: Scope) -> Identity:
    """The identity of a peer that is let in unverified: `?client=`, else anonymous."""
    claimed = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client", ["anonymous"])[0]
    return Identity(client_id=claimed[:64] or "anonymous")


async def allow_everyone(scope: Scope) -> Identity:
    """An `authenticate` that lets everybody in with every capability: for tests, and for networks you trust."""
    return claimed_identity(scope)
