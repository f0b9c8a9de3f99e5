"""Who may do what, written once more: what a token says, and which operation needs which capability.

Layer: tests.fuzz.

Nothing here asks the product: a token is read, believed and matched with channels by code of
its own, and `needs_of_request` and `needs_of_frame` are a table that `test_fuzz` compares with the one of
`tests.transports.permissions`, and so with `docs/security.md`. What is said here is what may be granted at most; whose
a message is comes on top, and is the business of others.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import Any

from simulation.clock import START_MS

CAPABILITIES = ("subscribe", "history", "publish", "append", "presence", "command", "agent", "admin")
SECRET = b"a secret of the fuzzer's hubs, long enough"
AUDIENCE = "chat"
COOKIE = "token"
LEEWAY_S = 10.0
START_S = START_MS / 1000  # what the wall clock says when virtual time begins
EVERYWHERE = "*"  # instead of a channel: all of them
_NAME = re.compile(r"[A-Za-z0-9_.:@=+-]{1,64}\Z")
Json = Any


@dataclass(frozen=True)
class Rights:
    """Somebody, what they may do by channel pattern, and until when (in virtual time, leeway and all)."""

    sub: str
    grants: tuple[tuple[str, frozenset[str]], ...]
    ends_s: float

    def has(self, capability: str, channel: str) -> bool:
        """May they, on `channel`; on a pattern (or `EVERYWHERE`), on all that it names, by one grant?"""
        return any(capability in granted and _covers(pattern, channel) for pattern, granted in self.grants)

    def has_all(self, capabilities: frozenset[str], channel: str) -> bool:
        return all(self.has(one, channel) for one in capabilities)

    def may_see(self, channel: str) -> bool:
        """May they be shown anything of it?"""
        return self.has("subscribe", channel) or self.has("history", channel)

    def narrowed(self, channel: str, capabilities: frozenset[str]) -> Rights:
        """The same somebody with these rights on one channel, as far as they had them."""
        kept = frozenset(one for one in capabilities if self.has(one, channel))
        return Rights(self.sub, ((channel, kept),), self.ends_s)


def _covers(pattern: str, channel: str) -> bool:
    if pattern.endswith("*"):
        return channel.startswith(pattern[:-1])
    return pattern == channel


def rights_in(text: str, now_s: float) -> Rights | None:
    """What a token grants that is shown at `now_s`; None where it is to be refused."""
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
    grants = _grants(claims.get("holdfast"), sub)
    return Rights(sub, grants, ends + LEEWAY_S - START_S) if grants is not None else None


def _time(value: Json) -> float | None:
    is_time = not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value <= 2**43
    return float(value) if is_time else None


def _grants(claim: Json, sub: str) -> tuple[tuple[str, frozenset[str]], ...] | None:
    """Capabilities by pattern; None where one pattern or capability is none: then nothing of it is believed."""
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
    """`claims`, signed as they should be."""
    body = ".".join(_text(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{body}.{_text(hmac.digest(SECRET, body.encode(), hashlib.sha256))}"


def decoded(text: str) -> bytes:
    """URL-safe base64 as lenient readers have it; b"" where it is none."""
    try:
        return base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    except ValueError:
        return b""


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# What operations need


@dataclass(frozen=True)
class Needs:
    """An operation: what it needs, where, and whether those capabilities are all that it needs."""

    capabilities: frozenset[str]
    channel: str  # or a pattern, or EVERYWHERE
    is_all: bool = False


_CHANNEL = re.compile(r"/v1/channels/([^/]+)(/.*)?\Z", re.S)
# By method and what follows the channel. HEAD is judged as GET. With a star: what is asked is anybody's to ask.
_HTTP: tuple[tuple[str, str, str], ...] = (
    ("GET", "", "history *"),
    ("DELETE", "", "admin *"),
    ("GET", "/messages", "history *"),
    ("POST", "/messages", "publish *"),
    ("GET", "/messages/[^/]+", "history *"),
    ("PATCH", "/messages/[^/]+", "publish"),
    ("DELETE", "/messages/[^/]+", "publish"),
    ("POST", "/messages/[^/]+/(append|finish|lease|takeover)", "append"),
    ("PUT", "/messages/[^/]+/parts/[^/]+", "append"),
    ("GET", "/messages/[^/]+/events", "subscribe history *"),
    ("GET", "/events", "subscribe *"),
    ("GET", "/poll", "subscribe *"),
    ("POST", "/commands", "command"),
    ("POST", "/commands/[^/]+/reply", "command"),
    ("GET", "/presence", "subscribe *"),
    ("PUT", "/presence/[^/]+", "presence"),
    ("DELETE", "/presence/[^/]+", "presence"),
    ("POST", "/signals", "presence"),
)
_FRAMES = {
    "attach": "subscribe *",
    "history": "history *",
    "create": "publish *",
    "append": "append",
    "part": "append",
    "finish": "append",
    "lease": "append",
    "takeover": "append",
    "update": "publish",
    "delete": "publish",
    "command": "command",
    "reply": "command",
    "presence": "presence",
    "signal": "presence",
    "turn.renew": "agent",
    "turn.take": "agent",
    "turn.done": "agent",
}
FREE_FRAMES = ("auth", "detach", "pong")  # `auth` is judged by what it shows
NOTHING = frozenset[str]()


def needs_of_request(method: str, path: str, body: Json, *, is_here: bool = True) -> Needs | None:
    """What a request needs to succeed; None: nobody succeeds with it. `path` is decoded, `is_here`: on loopback."""
    method = "GET" if method == "HEAD" else method
    if method == "OPTIONS" or path in ("/healthz", "/readyz") or path.startswith("/web"):
        return Needs(NOTHING, EVERYWHERE)
    if path == "/metrics":
        return Needs(NOTHING if is_here else frozenset({"admin"}), EVERYWHERE)
    if path == "/v1/tickets" and method == "POST":
        channel = body.get("channel") if isinstance(body, dict) else None
        return Needs(frozenset({"subscribe"}), channel, is_all=True) if isinstance(channel, str) else None
    found = _CHANNEL.match(path)
    if found is None:
        return None
    rest = found[2] or ""
    for known, pattern, needed in _HTTP:
        if known == method and re.fullmatch(pattern, rest):
            return _needs(needed, found[1], body, is_create=rest == "/messages" and method == "POST")
    return None


def needs_of_frame(frame: dict[str, Json]) -> Needs | None:
    """What a frame needs to be answered with `ok`; None where nobody is answered so."""
    kind = frame.get("type")
    if kind in FREE_FRAMES:
        return Needs(NOTHING, EVERYWHERE)
    if kind == "work":
        pattern = frame.get("pattern")
        if frame.get("slots") == 0:
            return Needs(NOTHING, EVERYWHERE)
        needed = frozenset({"agent", "subscribe", "append"})
        return Needs(needed, pattern) if isinstance(pattern, str) else None
    if not isinstance(kind, str) or kind not in _FRAMES or not isinstance(frame.get("channel"), str):
        return None
    return _needs(_FRAMES[kind], frame["channel"], frame, is_create=kind == "create")


def _needs(needed: str, channel: str, body: Json, *, is_create: bool) -> Needs:
    names = needed.split()
    capabilities = frozenset(names) - {"*"}
    fields = body if isinstance(body, dict) else {}
    parts = fields.get("parts")
    kinds = [one.get("type") for one in parts if isinstance(one, dict)] if isinstance(parts, list) else []
    if "publish" in capabilities and ("tool" in kinds or "source" in kinds):
        capabilities |= {"append"}
    if is_create and (fields.get("role", "user") != "user" or fields.get("status", "complete") == "streaming"):
        capabilities |= {"append"}
    return Needs(capabilities, channel, is_all="*" in names)
