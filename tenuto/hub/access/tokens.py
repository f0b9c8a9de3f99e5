"""Tokens: JSON Web Tokens (RFC 7519) that name a client and its capabilities.

Layer: hub, above `keys`.

A verifier is an `authenticate` for a hub: it reads a token from a request's header, or from a configured cookie, never
from a URL, and returns an identity or refuses. `docs/security.md` describes the claims; no claim that is required may
become optional. No error, log line or repr contains a token or a signing key: a refusal states the reason only.
"""

from __future__ import annotations

import base64
import hmac
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jwt

from tenuto.core.errors import LocalError, TenutoError, Unauthenticated, shown
from tenuto.core.names import check_id
from tenuto.hub.access.identity import Expired, Identity, Scope
from tenuto.hub.access.keys import ALGORITHMS, Key, KeySet, public_keys, secret_key

MAX_TOKEN_BYTES = 8 * 1024  # limit of a token; servers accept at most this much in one header
MAX_PATTERNS = 200  # limit of patterns in one token, since each operation may search all of them
LEEWAY_S = 10.0  # tolerated difference between the clocks of the issuer and this server
_MAX_TIME_S = 2**43  # later times are refused: browsers cannot represent their milliseconds as whole numbers
_CLAIM = "tenuto"
# PyJWT decodes a token whose signature `_is_signed` has verified. This module checks the header, and the claims against
# the verifier's own clock.
_DECODE_ONLY: Any = {
    f"verify_{check}": False for check in ("signature", "exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}


def jwt_verifier(
    *,
    audience: str | Sequence[str],
    secret: str | bytes | Sequence[str | bytes] = (),
    public_key: str | bytes | dict[str, Any] | Sequence[str | bytes | dict[str, Any]] = (),
    jwks_url: str | None = None,
    issuer: str | Sequence[str] | None = None,
    algorithms: Sequence[str] | None = None,
    cookie: str | None = None,
    leeway_s: float = LEEWAY_S,
    now_s: Callable[[], float] = time.time,
) -> JwtVerifier:
    """Return an `authenticate` for `Hub` that accepts tokens signed with one of these keys; give several to rotate.

    `secret` is shared with the signer (HS256 from 32 bytes on, HS384 from 48, HS512 from 64); `public_key` is PEM, a
    JWK or a JWK set; `jwks_url` is the address at which the issuer publishes its keys. `algorithms` restricts their
    use. A token must name one of `audience`, and one of `issuer` if given. `cookie` is the name of a cookie that may
    carry the token. Raises LocalError for arguments that would refuse every token.
    """
    keys = [secret_key(one) for one in _listed(secret, str | bytes)]
    keys += [key for one in _listed(public_key, str | bytes | dict) for key in public_keys(one)]
    if not keys and jwks_url is None:
        raise LocalError("jwt_verifier needs a secret, a public_key or a jwks_url, got none of them")
    if algorithms is not None:
        unknown = sorted(set(algorithms) - ALGORITHMS)
        if unknown:
            raise LocalError(
                f"algorithms must be among {', '.join(sorted(ALGORITHMS))}, got {shown(', '.join(unknown))}"
            )
        keys = [key._replace(algorithms=key.algorithms & set(algorithms)) for key in keys]
        if jwks_url is None and not any(key.algorithms for key in keys):
            raise LocalError(f"algorithms {', '.join(algorithms)} match no key that was given; give a key of that type")
    audiences = _named(audience, "audience")
    if not audiences:
        raise LocalError("audience must name at least one audience, got none")
    return JwtVerifier(
        keys=keys,
        key_set=KeySet(jwks_url) if jwks_url is not None else None,
        audiences=audiences,
        issuers=_named(issuer, "issuer") if issuer is not None else None,
        algorithms=frozenset(algorithms) if algorithms is not None else ALGORITHMS,
        cookie=cookie,
        leeway_s=leeway_s,
        now_s=now_s,
    )


def _listed(given: Any, one: Any) -> list[Any]:
    return [given] if isinstance(given, one) else list(given)


def _named(given: str | Iterable[str], what: str) -> frozenset[str]:
    names = frozenset([given] if isinstance(given, str) else given)
    if "" in names:
        raise LocalError(f"{what} must be a name, got an empty string")
    return names


class JwtVerifier:
    """Authenticates callers by their tokens; made by `jwt_verifier`."""

    def __init__(
        self,
        *,
        keys: Sequence[Key],
        key_set: KeySet | None,
        audiences: frozenset[str],
        issuers: frozenset[str] | None,
        algorithms: frozenset[str],
        cookie: str | None,
        leeway_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self.cookie = cookie
        self._keys = keys
        self._key_set = key_set
        self._audiences = audiences
        self._issuers = issuers
        self._algorithms = algorithms
        self._leeway_s = leeway_s
        self._now_s = now_s

    def __repr__(self) -> str:
        return f"JwtVerifier(audience={sorted(self._audiences)}, cookie={self.cookie!r})"

    @property
    def reads_cookies(self) -> bool:
        """Return whether browsers send the token by themselves (in a cookie).

        If so, access control checks the origin.
        """
        return self.cookie is not None

    @property
    def ticket_keys(self) -> list[bytes]:
        """Return keys for signing tickets, so that tickets outlive the process; empty without a secret.

        The keys depend on audience and issuer, as the accepted tokens do, because another service may share the secret.
        """
        secrets = [key.material for key in self._keys if isinstance(key.material, bytes)]
        issuers = None if self._issuers is None else sorted(self._issuers)
        purpose = json.dumps(["tenuto tickets", sorted(self._audiences), issuers]).encode()
        return [hmac.digest(one, purpose, "sha256") for one in secrets]

    async def __call__(self, scope: Scope) -> Identity | None:
        """Return the caller's identity; None without a token. Raises Unauthenticated, Expired, Busy."""
        token = self._token_of(scope)
        return await self.verify_token(token) if token is not None else None

    async def verify_token(self, token: str) -> Identity:
        """Return the identity that `token` names.

        Raises Unauthenticated, Expired, or Busy if the key cannot be fetched.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(
                f"token has {len(token)} bytes, the limit is {MAX_TOKEN_BYTES}; put fewer claims into it"
            )
        return self._identity_of(await self._verified_claims(token))

    def _token_of(self, scope: Scope) -> str | None:
        values: list[str] = [
            value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"
        ]
        if len(values) > 1:
            raise Unauthenticated(f"request has {len(values)} Authorization headers; send exactly one")
        if values:
            scheme, _, token = values[0].strip().partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise Unauthenticated(f"Authorization header must be 'Bearer <token>', got the scheme {shown(scheme)}")
            return token.strip()
        return _cookie_of(scope, self.cookie) if self.cookie is not None else None

    async def _verified_claims(self, token: str) -> dict[str, Any]:
        """Return the claims of `token` after its signature was verified. Raises Unauthenticated."""
        header = _header_of(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header:  # RFC 7515, 4.1.11: refuse, since PyJWT accepts extensions that this module does not know
            raise Unauthenticated(
                f"token must have no header crit, got {shown(header['crit'])}: this server knows no critical extension"
            )
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Unauthenticated(
                f"token algorithm {shown(algorithm)} is not accepted, expected {_names(self._algorithms)}"
            )
        # A configured key may lack the `kid` that the token names; a key in a published set always has it.
        candidates = [key for key in self._keys if key.kid is None or kid is None or key.kid == kid]
        claims = _claims_by(candidates, algorithm, token)
        if claims is None and self._key_set is not None:
            claims = _claims_by(await self._key_set.keys(kid), algorithm, token)
        if claims is None:
            raise Unauthenticated("token signature matches no key of this server; check the keys of its verifier")
        return claims

    def _identity_of(self, claims: dict[str, Any]) -> Identity:
        expires_s = _time(claims, "exp")
        if expires_s is None:
            raise Unauthenticated("token has no claim exp; a token must expire")
        now_s = self._now_s()
        if now_s >= expires_s + self._leeway_s:
            raise Expired("token has expired; renew it")
        begins_s = _time(claims, "nbf")
        if begins_s is not None and now_s < begins_s - self._leeway_s:
            raise Unauthenticated("token is not valid yet: its claim nbf is in the future")
        if not self._audiences & _texts(claims.get("aud")):
            raise Unauthenticated(
                f"token has another audience: claim aud is {shown(claims.get('aud'))}, "
                f"expected {_names(self._audiences)}"
            )
        issuer = claims.get("iss")
        if self._issuers is not None and not (isinstance(issuer, str) and issuer in self._issuers):
            raise Unauthenticated(
                f"token has another issuer: claim iss is {shown(issuer)}, expected {_names(self._issuers)}"
            )
        try:
            return Identity(
                client_id=check_id(claims.get("sub"), "claim sub"),
                grants=_grants(claims.get(_CLAIM)),
                expires_at_ms=math.ceil((expires_s + self._leeway_s) * 1000),
            )
        except TenutoError as error:  # the reason helps the developer who signs such tokens
            raise Unauthenticated(f"token has an invalid claim: {error}") from None


def _malformed() -> Unauthenticated:
    return Unauthenticated("token is malformed: it must be a signed JWT")


def _header_of(token: str) -> dict[str, Any]:
    """Return the header of a token whose signature is not verified yet. Raises Unauthenticated if it is malformed."""
    encoded = token.partition(".")[0]
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, RecursionError):
        raise _malformed() from None
    if not isinstance(header, dict) or not isinstance(header.get("kid"), str | None):
        raise _malformed()
    return header


def _claims_by(keys: Iterable[Key], algorithm: str, token: str) -> dict[str, Any] | None:
    """Return the claims if one of `keys` has signed them, else None. Raises Unauthenticated if they are malformed."""
    try:
        if not any(algorithm in key.algorithms and _is_signed(token, algorithm, key) for key in keys):
            return None
        claims: dict[str, Any] = jwt.decode(token, options=_DECODE_ONLY)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise _malformed() from None
    return claims


def _is_signed(token: str, algorithm: str, key: Key) -> bool:
    """Return whether `key`, which may verify `algorithm`, has signed `token`. Raises ValueError if it is malformed.

    PyJWT's own order is to decode the claims first, at four times the cost for a forged token of 4 KB.
    """
    signed, _, encoded = token.rpartition(".")
    signature = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    return jwt.get_algorithm_by_name(algorithm).verify(signed.encode(), key.material, signature)


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return the claim `name`, seconds since 1970, or None. Raises Unauthenticated for any other value."""
    value = claims.get(name)
    if value is None:
        return None
    # Check exactly: in Python a bool is an int, JSON may contain NaN, and an int may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME_S:
        raise Unauthenticated(f"token claim {name} must be a number of seconds since 1970, got {shown(value)}")
    return float(value)


def _names(names: Iterable[str]) -> str:
    """Return the list `names` as text for an error message."""
    return " or ".join(map(repr, sorted(names)))


def _texts(value: Any) -> frozenset[str]:
    """Return as a set a claim that is a string or a list of strings."""
    listed = value if isinstance(value, list) else [value]
    return frozenset(one for one in listed if isinstance(one, str))


def _grants(claim: Any) -> dict[str, frozenset[str]]:
    """Return the claim `tenuto`: capabilities by pattern; empty if it is missing.

    Raises LocalError if it is invalid.
    """
    if claim is None:
        return {}
    if not isinstance(claim, dict) or len(claim) > MAX_PATTERNS:
        raise LocalError(f"claim {_CLAIM!r} must be an object with at most {MAX_PATTERNS} patterns, got {shown(claim)}")
    for pattern, capabilities in claim.items():
        if not isinstance(capabilities, list) or not all(isinstance(one, str) for one in capabilities):
            raise LocalError(f"grant on {shown(pattern)} must be a list of capabilities, got {shown(capabilities)}")
    return {pattern: frozenset(capabilities) for pattern, capabilities in claim.items()}


def _cookie_of(scope: Scope, name: str) -> str | None:
    """Return the value of the cookie `name`, or None."""
    for header, value in scope["headers"]:
        if header.lower() != b"cookie":
            continue
        for pair in value.decode("latin-1").split(";"):
            known, _, text = pair.strip(" \t").partition("=")
            if known == name and text:
                found: str = text.strip('"')
                return found
    return None
