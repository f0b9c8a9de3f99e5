"""Authorisation, implemented independently: the rights in a token, and the capabilities that an operation needs.

Layer: fuzz.

This module does not use the product. It decodes and verifies tokens and matches channels by its own code. The needs
come from the table `tests/transports/permissions.py`, which the permission matrix and `docs/security.md` share. They
are an upper bound of the granted capabilities; rules about ownership of messages apply in addition, and other tests
check them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any

from proof.simulation.clock import START_MS
from tests.transports.permissions import ANY, EVERY_CHANNEL, LISTED, OPEN_FRAMES, OPEN_PATHS, OPERATIONS, Operation

CAPABILITIES = ("subscribe", "history", "publish", "append", "presence", "command", "agent", "admin")
SECRET = b"a secret of the fuzzer's hubs, long enough"
AUDIENCE = "chat"
COOKIE = "token"
LEEWAY_S = 10.0
START_S = START_MS / 1000  # the wall clock at the beginning of virtual time
EVERYWHERE = "*"  # used in place of a channel's name: all channels
_NAME = re.compile(r"[A-Za-z0-9_.:@=+-]{1,64}\Z")
Json = Any


@dataclass(frozen=True)
class Rights:
    """A caller, its capabilities by channel pattern, and the virtual time at which they end, leeway included."""

    sub: str
    grants: tuple[tuple[str, frozenset[str]], ...]
    ends_s: float

    def has(self, capability: str, channel: str) -> bool:
        """Return whether one grant has the capability on `channel`, on all of a pattern, or on `EVERYWHERE`."""
        return any(capability in granted and _covers(pattern, channel) for pattern, granted in self.grants)

    def has_all(self, capabilities: frozenset[str], channel: str) -> bool:
        return all(self.has(one, channel) for one in capabilities)

    def may_see(self, channel: str) -> bool:
        """Return whether the caller may see any event of the channel."""
        return self.has("subscribe", channel) or self.has("history", channel)

    def narrowed(self, channel: str, capabilities: frozenset[str]) -> Rights:
        """Return the same caller with these capabilities on one channel, as far as it held them."""
        kept = frozenset(one for one in capabilities if self.has(one, channel))
        return Rights(self.sub, ((channel, kept),), self.ends_s)


def _covers(pattern: str, channel: str) -> bool:
    if pattern.endswith("*"):
        return channel.startswith(pattern[:-1])
    return pattern == channel


def rights_in(text: str, now_s: float) -> Rights | None:
    """Return the rights in a token presented at `now_s`, or None if it must be refused."""
    body, _, signature = text.rpartition(".")
    header_text, _, claims_text = body.partition(".")
    if not text.isascii() or decoded(signature) != hmac.digest(SECRET, body.encode(), hashlib.sha256):
        return None
    try:
        header, claims = json.loads(decoded(header_text)), json.loads(decoded(claims_text))
    except ValueError:
        return None
    if not isinstance(claims, dict) or header != {"alg": "HS256", "typ": "JWT"}:
        return None
    return _rights_of(claims, now_s)


def _rights_of(claims: dict[str, Json], now_s: float) -> Rights | None:
    sub, ends, begins = claims.get("sub"), _time(claims.get("exp")), _time(claims.get("nbf"))
    audience = claims.get("aud")
    if not isinstance(sub, str) or not _NAME.match(sub) or sub in (".", ".."):
        return None
    if AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        return None
    now = START_S + now_s
    if ends is None or now >= ends + LEEWAY_S:
        return None
    if claims.get("nbf") is not None and (begins is None or now < begins - LEEWAY_S):
        return None
    grants = _grants(claims.get("tenuto"), sub)
    return Rights(sub, grants, ends + LEEWAY_S - START_S) if grants is not None else None


def _time(value: Json) -> float | None:
    is_time = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 2**43
    return float(value) if is_time else None


def _grants(claim: Json, sub: str) -> tuple[tuple[str, frozenset[str]], ...] | None:
    """Return capabilities by pattern. If one pattern or capability is invalid, the whole claim is: return None."""
    found = []
    if claim is not None and (not isinstance(claim, dict) or len(claim) > 200):
        return None
    for pattern, names in (claim or {}).items():
        stem = pattern[:-1] if pattern.endswith("*") else pattern
        is_pattern = "*" not in stem and (stem == pattern or not stem or stem[-1] in ":/.")
        if not is_pattern or re.search("[{}]", pattern.replace("{sub}", "")):
            return None
        if not isinstance(names, list) or any(name not in CAPABILITIES for name in names if isinstance(name, str)):
            return None
        if not all(isinstance(name, str) for name in names):
            return None
        found.append((pattern.replace("{sub}", sub), frozenset(names)))
    return tuple(found)


def token_of(claims: dict[str, Json]) -> str:
    """Return `claims` as a correctly signed token."""
    body = ".".join(_text(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{body}.{_text(hmac.digest(SECRET, body.encode(), hashlib.sha256))}"


def decoded(text: str) -> bytes:
    """Decode URL-safe base64 leniently; b"" if it is invalid."""
    try:
        return base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        return b""


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# The needs of operations


@dataclass(frozen=True)
class Needs:
    """The needs of an operation on a channel. `is_all`: no other rule applies."""

    capabilities: frozenset[str]
    channel: str  # a channel, a pattern, or EVERYWHERE
    is_all: bool = False


def _route(http: str) -> tuple[str, re.Pattern[str]]:
    """Return the method of an operation and a pattern of its path. The pattern's only group is the channel."""
    method, path = http.split(" ")
    path = path.replace("/parts/0", "/parts/[^/]+").replace("{id}", "[^/]+").replace("{channel}", "([^/]+)")
    return method, re.compile(path)


# The table lists variants of an operation after it, so the reversed order keeps the operation itself.
_ROUTES = {_route(one.http): one for one in reversed(OPERATIONS) if one.http is not None}
_FRAMES = {one.frame: one for one in reversed(OPERATIONS) if one.frame is not None}
_NONE = frozenset[str]()


def needs_of_request(method: str, path: str, body: Json) -> Needs | None:
    """Return the needs of a request, or None if it can never succeed. `path` is decoded."""
    method = "GET" if method == "HEAD" else method
    if method == "OPTIONS" or path in OPEN_PATHS or path.startswith("/web"):
        return Needs(_NONE, EVERYWHERE)
    for (known, pattern), operation in _ROUTES.items():
        if known != method or (found := pattern.fullmatch(path)) is None:
            continue
        if operation.whose == EVERY_CHANNEL:
            return Needs(frozenset(operation.needs), EVERYWHERE)
        if operation.whose == LISTED:
            return Needs(_NONE, EVERYWHERE)
        channel = found[1] if found.groups() else body.get("channel") if isinstance(body, dict) else None
        return _needs(operation, channel, body) if isinstance(channel, str) else None
    return None


def needs_of_frame(frame: dict[str, Json]) -> Needs | None:
    """Return the needs of a frame, or None if its reply can never be `ok`."""
    kind = frame.get("type")
    if kind in OPEN_FRAMES or (kind == "work" and frame.get("slots") == 0):
        return Needs(_NONE, EVERYWHERE)
    if not isinstance(kind, str) or kind not in _FRAMES:
        return None
    channel = frame.get("pattern" if kind == "work" else "channel")
    return _needs(_FRAMES[kind], channel, frame) if isinstance(channel, str) else None


def _needs(operation: Operation, channel: str, body: Json) -> Needs:
    capabilities = frozenset(operation.needs)
    fields = body if isinstance(body, dict) else {}
    parts = fields.get("parts")
    kinds = [one.get("type") for one in parts if isinstance(one, dict)] if isinstance(parts, list) else []
    if "publish" in capabilities and ("tool" in kinds or "source" in kinds):
        capabilities |= {"append"}
    is_create = operation.frame == "create"
    if is_create and (fields.get("role", "user") != "user" or fields.get("status", "complete") == "streaming"):
        capabilities |= {"append"}
    return Needs(capabilities, channel, is_all=operation.whose == ANY)
