"""The target `tokens`: the verification of a caller's token.

Layer: fuzz.

An input is a token in its parts (`header`, `claims`, `sign`: right, wrong, none, or the signature itself), or `raw`,
and the header line that carries it (`line`: the text before the token). Either it is refused as unauthenticated, or it
is signed with the secret, for this audience, not expired, and has a subject. `_check` implements these rules
independently.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from random import Random
from typing import Any

from proof.fuzz import mutate
from proof.fuzz.engine import Finding
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.world import as_dict, as_text, blame
from tenuto.core.errors import Unauthenticated
from tenuto.hub.access.identity import Identity
from tenuto.hub.access.tokens import jwt_verifier

SECRET = b"a secret of this target, 32 bytes"
NOW_S = 1_750_000_000
AUDIENCE = "chat"
LEEWAY_S = 10
HEADER: dict[str, Json] = {"alg": "HS256", "typ": "JWT"}
CLAIMS: dict[str, Json] = {"sub": "ada", "aud": "chat", "exp": NOW_S + 60, "tenuto": {"chat:*": ["subscribe"]}}
WORDS: list[Json] = [
    "alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "cty", "HS256", "HS512", "none", "None",
    "RS256", "ES256",
    "sub", "aud", "exp", "nbf", "iat", "iss", "tenuto", "subscribe", "admin", "*", "chat:*", "{sub}", "chat",
    NOW_S, NOW_S - 11, NOW_S + 11, float(NOW_S), 1e400, True, None, "ada", "..", ["chat", 1], {"chat": ["admin"]},
    ["b64"],
]  # fmt: skip
RAW = ["", ".", "..", "...", "a.b.c", "e30.e30.", "e30.e30.e30", "eyJhbGciOiJub25lIn0.e30.", "bnVsbA.e30.e30",
       "W10.e30.x", "é.é.é", "=.=.=", "e30", "x" * 9_000, "e30." * 2_000]  # fmt: skip
LINES = ["Bearer ", "bearer ", "Bearer  ", "Basic ", "", "Bearer", "Bearer\t", "BEARER x "]


class Tokens:
    """Presents tokens to a verifier."""

    name = "tokens"
    cpu_s = 1.0
    is_guided = False

    def __init__(self) -> None:
        self._verifier = jwt_verifier(
            secret=SECRET, audience=AUDIENCE, cookie="token", leeway_s=LEEWAY_S, now_s=lambda: NOW_S
        )
        self._loop = asyncio.new_event_loop()

    def seeds(self) -> list[Json]:
        """Return a valid token, tokens with one fault, and texts that are not tokens."""
        good = {"header": HEADER, "claims": CLAIMS, "sign": "right"}
        found: list[Json] = [good, {**good, "sign": "wrong"}, {**good, "sign": "none"}, {**good, "cookie": True}]
        found += [{**good, "claims": {**CLAIMS, name: word}} for name in CLAIMS for word in WORDS]
        found += [
            {**good, "header": {**HEADER, name: word}} for name in ("alg", "kid", "crit", "b64") for word in WORDS
        ]
        found += [{"raw": raw, "line": line} for raw in RAW for line in LINES[:3]]
        return found

    def generate(self, draw: Random) -> Json:
        """Return a new input."""
        return {"header": HEADER, "claims": mutate.value(draw, CLAIMS, WORDS), "sign": "right"}

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a part of the token."""
        new = mutate.copied(as_dict(old))
        match draw.randrange(7):
            case 0:
                new["line"] = draw.choice(LINES)
            case 1:
                new["sign"] = draw.choice(("right", "wrong", "none", "", "=", "x" * 43))
            case 2:
                new["raw"] = mutate.text(draw, self._token(new), RAW)
            case 3:
                new.pop("raw", None)
                new["header"] = mutate.value(draw, new.get("header", HEADER), WORDS)
            case 4:
                new["cookie"] = draw.random() < 0.5
            case _:
                new.pop("raw", None)
                new["claims"] = mutate.value(draw, new.get("claims", CLAIMS), WORDS)
        return new

    def run(self, given: Json) -> None:
        """Verify the token. Raises Finding."""
        known = as_dict(given)
        token = self._token(known)
        line = b"token=" if known.get("cookie") is True else to_bytes(as_text(known.get("line"), "Bearer "))
        name = b"cookie" if known.get("cookie") is True else b"authorization"
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(name, line + to_bytes(token))]}
        try:
            identity = self._loop.run_until_complete(self._verifier(scope))
        except Unauthenticated:
            return
        except Exception as error:
            raise Finding(f"raised {blame(error)}: {error!r} for {token[:200]!r}") from error
        if identity is not None:
            _check(identity, line.decode("latin-1") + to_bytes(token).decode("latin-1"))

    def close(self) -> None:
        """Close the event loop."""
        self._loop.close()

    def _token(self, known: dict[str, Any]) -> str:
        if "raw" in known:
            return as_text(known["raw"], "")
        body = f"{_encoded(known.get('header', HEADER))}.{_encoded(known.get('claims', CLAIMS))}"
        sign = as_text(known.get("sign"), "right")
        if sign == "none":
            return f"{body}."
        if sign not in ("right", "wrong"):
            return f"{body}.{sign}"
        key = SECRET if sign == "right" else b"some other secret, also long enough"
        return f"{body}.{_base64(hmac.digest(key, body.encode(), hashlib.sha256))}"


def _check(identity: Identity, text: str) -> None:
    """Check that an accepted token satisfies all rules. Raises Finding."""
    token = text.rpartition(" ")[2].rpartition("token=")[2].partition(";")[0].strip()
    body, _, signature = token.rpartition(".")
    if signature.rstrip("=") != _base64(hmac.digest(SECRET, body.encode("latin-1"), hashlib.sha256)):
        raise Finding(f"forged: {identity} by {token[:300]!r}")
    header, claims = (json.loads(base64.urlsafe_b64decode(one + "==")) for one in body.split("."))
    audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    is_for_us = header["alg"] == "HS256" and "crit" not in header and AUDIENCE in audience
    is_now = (claims.get("nbf") or 0) - LEEWAY_S <= NOW_S < claims["exp"] + LEEWAY_S
    if not (is_for_us and is_now and claims["sub"] == identity.client_id):
        raise Finding(f"accepted: {identity} by {header} {claims}")


def _encoded(value: Json) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
