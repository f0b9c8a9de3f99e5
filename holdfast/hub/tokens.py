"""Tokens: who somebody is, as a JWT signed by whoever may say so.

You are in `hub`, above `keys`. A verifier is an `authenticate` for a hub: it reads a token from a request's header, or
from a cookie if it was told which, never from a URL, and gives an identity or refuses. `docs/security.md` describes the
claims; which ones are required may not be loosened. Tokens, and what they are signed with, are in no error, log or
repr: of a token that cannot be believed nothing is repeated but why.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jwt

from holdfast.core.errors import HoldfastError, LocalError, Unauthenticated
from holdfast.core.names import check_id
from holdfast.hub.identity import Expired, Identity, Scope
from holdfast.hub.keys import ALGORITHMS, Key, KeySet, public_keys, secret_key

MAX_TOKEN_BYTES = 8 * 1024  # servers take as much of one header at most
MAX_PATTERNS = 200  # in one token; each operation may look at all of them
LEEWAY_S = 10.0  # clocks of servers that are kept in time differ by less
_MAX_TIME_S = 2**43  # beyond this, milliseconds are no whole numbers for browsers
_CLAIM = "holdfast"
# Only the signature: the claims are checked here, on the clock that was given.
_SIGNATURE_ONLY: Any = {
    "verify_signature": True,
    "enforce_minimum_key_length": True,
    **{f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")},
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
    """An `authenticate` for `Hub` that believes tokens signed with what is given; several are for rotation.

    `secret` is shared with whoever signs (HS256 from 32 bytes on, HS384 from 48, HS512 from 64); `public_key` is PEM, a
    JWK or a JWK set; `jwks_url` is where the issuer publishes its keys. `algorithms` narrows what they may be used for.
    A token must name one of `audience`, and one of `issuer` if there is any. `cookie` is the name of a cookie that may
    carry it. Raises LocalError where none of this would ever let anybody in.
    """
    keys = [secret_key(one) for one in _listed(secret, str | bytes)]
    keys += [key for one in _listed(public_key, str | bytes | dict) for key in public_keys(one)]
    if not keys and jwks_url is None:
        raise LocalError("jwt_verifier needs a secret, a public_key or a jwks_url")
    if algorithms is not None:
        unknown = sorted(set(algorithms) - ALGORITHMS)
        if unknown:
            raise LocalError(f"algorithms: {', '.join(unknown)} is none of {', '.join(sorted(ALGORITHMS))}")
        keys = [key._replace(algorithms=key.algorithms & set(algorithms)) for key in keys]
        if jwks_url is None and not any(key.algorithms for key in keys):
            raise LocalError(f"algorithms: no key that was given is for {', '.join(algorithms)}")
    audiences = _named(audience, "audience")
    if not audiences:
        raise LocalError("a token is for somebody: name the audience")
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
        raise LocalError(f"the {what} is empty")
    return names


class JwtVerifier:
    """Says who asks, by a token. Made by `jwt_verifier`."""

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
        """May a browser bring the token unasked? Then the door looks where requests come from."""
        return self.cookie is not None

    @property
    def ticket_keys(self) -> list[bytes]:
        """What tickets may be signed with, so that they outlive the process; none where there is no secret."""
        secrets = [key.material for key in self._keys if isinstance(key.material, bytes)]
        return [hmac.digest(one, b"holdfast tickets", "sha256") for one in secrets]

    async def __call__(self, scope: Scope) -> Identity | None:
        """Who asks; None where the request carries no token. Raises Unauthenticated, Expired, Busy."""
        token = self._token_of(scope)
        return await self.verify_token(token) if token is not None else None

    async def verify_token(self, token: str) -> Identity:
        """Whom `token` names. Raises Unauthenticated, Expired, and Busy where its key cannot be had for now."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"a token has at most {MAX_TOKEN_BYTES} bytes")
        return self._identity_of(await self._believed(token))

    def _token_of(self, scope: Scope) -> str | None:
        values: list[str] = [
            value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"
        ]
        if len(values) > 1:
            raise Unauthenticated("there is more than one Authorization header")
        if values:
            scheme, _, token = values[0].strip().partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise Unauthenticated("the Authorization header is no Bearer token")
            return token.strip()
        return _cookie_of(scope, self.cookie) if self.cookie is not None else None

    async def _believed(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature is right."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("this is no token") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Unauthenticated("the token is signed in a way that is not accepted")
        # A key of ours need not have the name that the token gives it; one of a set has it.
        candidates = [key for key in self._keys if key.kid is None or kid is None or key.kid == kid]
        claims = _claims_by(candidates, algorithm, token)
        if claims is None and self._key_set is not None:
            claims = _claims_by(await self._key_set.keys(kid), algorithm, token)
        if claims is None:
            raise Unauthenticated("the token is signed with no key that is known here")
        return claims

    def _identity_of(self, claims: dict[str, Any]) -> Identity:
        expires_s = _time(claims, "exp")
        if expires_s is None:
            raise Unauthenticated("the token has no exp: one that never ends is not accepted")
        now_s = self._now_s()
        if now_s >= expires_s + self._leeway_s:
            raise Expired("the token has expired")
        begins_s = _time(claims, "nbf")
        if begins_s is not None and now_s < begins_s - self._leeway_s:
            raise Unauthenticated("the token is not valid yet")
        if not self._audiences & _texts(claims.get("aud")):
            raise Unauthenticated("the token is for another audience")
        issuer = claims.get("iss")
        if self._issuers is not None and not (isinstance(issuer, str) and issuer in self._issuers):
            raise Unauthenticated("the token is of another issuer")
        try:
            return Identity(
                client_id=check_id(claims.get("sub"), "the sub of a token"),
                grants=_grants(claims.get(_CLAIM)),
                expires_at_ms=math.ceil((expires_s + self._leeway_s) * 1000),
            )
        except HoldfastError as error:  # signed and wrong: whoever makes the tokens wants to know why
            raise Unauthenticated(f"the token: {error}") from None


def _claims_by(keys: Iterable[Key], algorithm: str, token: str) -> dict[str, Any] | None:
    """The claims, if one of `keys` signed them; None if none did. Raises Unauthenticated where they are no claims."""
    for key in keys:
        if algorithm not in key.algorithms:
            continue
        try:
            claims: dict[str, Any] = jwt.decode(
                token, key=key.material, algorithms=[algorithm], options=_SIGNATURE_ONLY
            )
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
            continue
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated("this is no token") from None
        return claims
    return None


def _time(claims: dict[str, Any], name: str) -> float | None:
    """A time in seconds since 1970. Raises Unauthenticated where it is none."""
    value = claims.get(name)
    if value is None:
        return None
    # bool is an int, JSON's NaN a float, and an int may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME_S:
        raise Unauthenticated(f"the token's {name} is no time")
    return float(value)


def _texts(value: Any) -> frozenset[str]:
    """One text or a list of them."""
    listed = value if isinstance(value, list) else [value]
    return frozenset(one for one in listed if isinstance(one, str))


def _grants(claim: Any) -> dict[str, frozenset[str]]:
    """The claim `holdfast`: capabilities by pattern. Without one nothing is granted. Raises LocalError."""
    if claim is None:
        return {}
    if not isinstance(claim, dict) or len(claim) > MAX_PATTERNS:
        raise LocalError(f"its claim {_CLAIM!r} is an object with at most {MAX_PATTERNS} patterns")
    for pattern, capabilities in claim.items():
        if not isinstance(capabilities, list) or not all(isinstance(one, str) for one in capabilities):
            raise LocalError(f"what it grants on {pattern[:100]!r} is no list of capabilities")
    return {pattern: frozenset(capabilities) for pattern, capabilities in claim.items()}


def _cookie_of(scope: Scope, name: str) -> str | None:
    """The value of a cookie; None if there is none."""
    for header, value in scope["headers"]:
        if header.lower() != b"cookie":
            continue
        for pair in value.decode("latin-1").split(";"):
            known, _, text = pair.strip().partition("=")
            if known == name and text:
                found: str = text.strip('"')
                return found
    return None
