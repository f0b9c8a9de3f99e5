"""Tokens: JSON Web Tokens (RFC 7519) that name a client and its capabilities, and the keys that verify them.

Layer: hub.

A verifier is an `authenticate` for a hub: it reads a token from a request's header, or from a configured cookie, never
from a URL, and returns an identity or refuses. `docs/security.md` describes the claims; no claim that is required may
become optional. No error, log line or repr contains a token or a signing key: a refusal states the reason only.

Each key is bound to its algorithms. That makes algorithm confusion impossible: a public key never serves as an HMAC
secret, whichever algorithm a token's header names, and no key has the algorithm `none`. Safe to change: how keys are
fetched and kept. Not safe: a key that verifies an algorithm of another type.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt
from jwt.algorithms import HMACAlgorithm, get_default_algorithms

from tenuto.core.errors import Busy, LocalError, TenutoError, Unauthenticated, shown, shown_url
from tenuto.core.names import check_id
from tenuto.hub.access.hosts import LOCAL_HOSTS
from tenuto.hub.access.identity import Expired, Identity, Scope, cookies_of, headers_of

logger = logging.getLogger("tenuto.hub")

# Minimum length of a secret in bytes: that of the hash (RFC 7518, 3.2).
HMAC_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ALGORITHMS = frozenset((*HMAC_BYTES, *RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), "EdDSA"))
MIN_RSA_BITS = 2048

MAX_SET_BYTES = 2**20
MAX_KEYS = 100  # limit of keys in one set; issuers publish two or three
FETCH_TIMEOUT_S = 5.0  # longest time of a whole fetch; access control waits 10 s for a verifier
FRESH_S = 600.0  # age after which the key set is fetched again, because the issuer may have revoked a key
STALE_S = 3600.0  # how long the keys are accepted while the issuer cannot be reached; then every token is refused
COOLDOWN_S = 30.0  # least time between two fetches, even if many tokens name unknown keys


class Key(NamedTuple):
    """One key, its id `kid` if it has one, and the algorithms for which it may verify tokens."""

    kid: str | None
    algorithms: frozenset[str]
    material: Any  # bytes of a secret, or a public key of the package `cryptography`, which is optional

    def __repr__(self) -> str:
        return f"Key(kid={self.kid!r}, algorithms={sorted(self.algorithms)})"


def secret_key(secret: str | bytes) -> Key:
    """Return the key of a shared secret. Raises LocalError if it is too short, or is a public key by mistake."""
    material = secret.encode() if isinstance(secret, str) else secret
    if len(material) < min(HMAC_BYTES.values()):
        raise LocalError(
            f"secret has {len(material)} bytes, expected at least 32 bytes; make one with: openssl rand -base64 48"
        )
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(material)
    except jwt.PyJWTError:
        # A public key is not secret: anyone who has it could sign tokens.
        raise LocalError("secret holds a public key; pass it as public_key instead") from None
    return Key(None, frozenset(name for name, size in HMAC_BYTES.items() if len(material) >= size), material)


def public_keys(given: str | bytes | dict[str, Any]) -> list[Key]:
    """Return the keys of a PEM, a JWK or a JWK set. Raises LocalError if none of them could verify a token."""
    check_cryptography()
    if isinstance(given, str | bytes):
        text = given.decode(errors="replace") if isinstance(given, bytes) else given
        if not text.lstrip().startswith("{"):
            return [_pem_key(text)]
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            raise LocalError("public_key is neither PEM nor valid JSON; give PEM, a JWK or a JWK set") from None
    found = keys_of_set(given if "keys" in given else {"keys": [given]})
    if not found:
        raise LocalError("public_key holds no public key that could verify a token; give PEM, a JWK or a JWK set")
    return found


def keys_of_set(given: Any) -> list[Key]:
    """Return the usable keys of a JWK set and ignore the others (RFC 7517, 5). Raises LocalError for another object."""
    listed = given.get("keys") if isinstance(given, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise LocalError(f"JWK set must be an object with a list `keys` of at most {MAX_KEYS} keys, got {shown(given)}")
    return [key for one in listed if (key := _jwk_key(one)) is not None]


def check_cryptography() -> None:
    """Raise LocalError unless the package for public keys (`cryptography`) is installed."""
    if "RS256" not in get_default_algorithms():
        raise LocalError("public keys need the package cryptography; install Tenuto with [jwt], as its README shows")


def _pem_key(text: str) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if "PRIVATE KEY" in text:
        raise LocalError("public_key holds a private key; give the public key, and keep this one off this server")
    try:
        material = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise LocalError("public_key is not PEM (-----BEGIN PUBLIC KEY-----); give PEM, a JWK or a JWK set") from None
    algorithms = _algorithms_of(material)
    if not algorithms:
        raise LocalError(
            "public_key has an unsupported type; use RSA with at least 2048 bits, P-256, P-384, P-521 or Ed25519"
        )
    return Key(None, algorithms, material)


def _jwk_key(one: Any) -> Key | None:
    """Return the key of a JWK; None if it is not public, not for verification, or of an unknown type."""
    if not isinstance(one, dict) or "d" in one or one.get("use", "sig") != "sig":
        return None
    purposes = one.get("key_ops", ["verify"])
    kid = one.get("kid")
    if not isinstance(purposes, list) or "verify" not in purposes or not isinstance(kid, str | None):
        return None
    try:
        material: Any = jwt.PyJWK(one).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, NotImplementedError):  # the last for "alg": "none"
        return None
    algorithms = _algorithms_of(material)  # none for the type "oct": a secret must not be among public keys
    if "alg" in one:
        algorithms &= {str(one["alg"])}
    return Key(kid, algorithms, material) if algorithms else None


def _algorithms_of(material: Any) -> frozenset[str]:
    """Return the algorithms that a public key may be used for, judged by the key's type alone."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    match material:
        case rsa.RSAPublicKey() if material.key_size >= MIN_RSA_BITS:
            return frozenset(RSA_ALGORITHMS)
        case ec.EllipticCurvePublicKey() if material.curve.name in CURVE_ALGORITHMS:
            return frozenset((CURVE_ALGORITHMS[material.curve.name],))
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return frozenset(("EdDSA",))
        case _:
            return frozenset()


def _meant(keys: Sequence[Key], kid: str | None) -> list[Key]:
    """Return the keys that may be meant by `kid`; a key may lack one (RFC 7517, section 4.5), and so may a token."""
    return [key for key in keys if kid is None or key.kid in (None, kid)]


class KeySet:
    """The keys that an issuer publishes at a URL, fetched on demand and kept for `FRESH_S`.

    It runs one fetch at a time, in a thread, at most one each `COOLDOWN_S`. Used from one event loop at a time.
    """

    def __init__(self, url: str, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """Raise LocalError unless `url` is https, or http on this machine."""
        check_cryptography()
        parts = urlsplit(url)
        is_plain = parts.scheme == "http" and parts.hostname in LOCAL_HOSTS
        if not parts.hostname or not (parts.scheme == "https" or is_plain):
            raise LocalError(f"jwks_url must be an https URL (http only on this machine), got {shown_url(url)}")
        self.url = url
        self._monotonic_s = monotonic_s
        self._keys: list[Key] = []  # those of the last fetch that worked
        self._fetched_at_s = self._tried_at_s = -math.inf  # time of the last fetch that worked, and of the last one
        self._fetching: asyncio.Task[None] | None = None  # the last fetch, which may still run

    async def keys(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that may have signed a token that names `kid`. Raises Busy if the set is unavailable."""
        if self._age_s() > FRESH_S:
            fetching = self._fetch()
            # The known keys serve while the fetch runs; but older ones, as after a pause, may have been revoked.
            if fetching is not None and self._age_s() > FRESH_S + COOLDOWN_S:
                # all callers wait for the same fetch; cancelling one of them does not cancel it
                await asyncio.shield(fetching)
        if self._age_s() > STALE_S:
            raise Busy(f"keys at {shown_url(self.url)} cannot be fetched at present; try again")
        found = _meant(self._keys, kid)
        # the issuer may have a new key: fetch once more
        if not found and kid is not None and (fetching := self._fetch()) is not None:
            await asyncio.shield(fetching)
            found = _meant(self._keys, kid)
        return found

    def _age_s(self) -> float:
        return self._monotonic_s() - self._fetched_at_s

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the running fetch, or start one; None during the cooldown. The returned task never raises."""
        loop = asyncio.get_running_loop()
        if self._fetching is None or self._fetching.done() or self._fetching.get_loop() is not loop:
            now_s = self._monotonic_s()
            if now_s - self._tried_at_s < COOLDOWN_S:
                return None
            self._tried_at_s = now_s
            self._fetching = loop.create_task(self._fetch_once())
        return self._fetching

    async def _fetch_once(self) -> None:
        """Fetch the set. If that fails, log the reason and keep the known keys."""
        try:
            self._keys = await asyncio.wait_for(asyncio.to_thread(fetch_set, self.url), FETCH_TIMEOUT_S)
        except LocalError as error:
            logger.warning("keys at %s cannot be used: %s", shown_url(self.url), error)
        except Exception as error:
            logger.warning("keys at %s cannot be fetched: %s", shown_url(self.url), type(error).__name__)
        else:
            self._fetched_at_s = self._monotonic_s()


def fetch_set(url: str) -> list[Key]:
    """Fetch a JWK set, without redirects; blocks. Raises OSError or HTTPException, or LocalError for what is no set."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()):
        opener.add_handler(handler)
    with opener.open(url, timeout=FETCH_TIMEOUT_S) as response:
        text, status = response.read(MAX_SET_BYTES + 1), response.status
    if status != 200 or len(text) > MAX_SET_BYTES:
        found = f"status {status}" if status != 200 else f"more than {MAX_SET_BYTES} bytes"
        raise LocalError(f"JWKS endpoint {shown_url(url)} responded with {found}; check jwks_url")
    try:
        return keys_of_set(json.loads(text))
    except (ValueError, RecursionError):
        raise LocalError(f"JWKS endpoint {shown_url(url)} did not respond with JSON; check jwks_url") from None


MAX_TOKEN_BYTES = 8 * 1024  # limit of a token; servers accept at most this much in one header
MAX_PATTERNS = 200  # limit of patterns in one token, since each operation may search all of them
LEEWAY_S = 10.0  # tolerated difference between the clocks of the issuer and this server
_MAX_TIME_S = 2**43  # later times are refused: browsers cannot represent their milliseconds as whole numbers
_CLAIM = "tenuto"
# PyJWT verifies the signature; this module checks the claims, against the verifier's own clock.
_SIGNATURE_ONLY: Any = {f"verify_{check}": False for check in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


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
        if unknown := sorted(set(algorithms) - ALGORITHMS):
            known = ", ".join(sorted(ALGORITHMS))
            raise LocalError(f"algorithms must be among {known}, got {shown(', '.join(unknown))}")
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
    """Return the names in the argument `what` of `jwt_verifier`. Raises LocalError for an empty one."""
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
        self.reads_cookies = cookie is not None  # browsers send it by themselves, so access control checks the origin
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
        """Return the token in the header, else in the cookie, or None. Raises Unauthenticated for another header."""
        values = headers_of(scope, b"authorization")
        if len(values) > 1:
            raise Unauthenticated(f"request has {len(values)} Authorization headers; send exactly one")
        if values:
            scheme, _, token = values[0].strip().partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                # without its value: a token that was sent alone stands in place of the scheme
                raise Unauthenticated("Authorization header must be 'Bearer <token>'; it has another form, or no token")
            return token.strip()
        return next((value.strip('"') for name, value in cookies_of(scope) if name == self.cookie and value), None)

    async def _verified_claims(self, token: str) -> dict[str, Any]:
        """Return the claims of `token` after its signature was verified. Raises Unauthenticated, or Busy as `keys`."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError) as error:
            raise _malformed(error) from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header:  # PyJWT accepts the extension b64, which no token here may use
            raise Unauthenticated(f"token must have no header crit, got {shown(header['crit'])}")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise Unauthenticated(
                f"token algorithm {shown(algorithm)} is not accepted, expected {_any_of(self._algorithms)}"
            )
        claims = _claims_by(_meant(self._keys, kid), algorithm, token)
        if claims is None and self._key_set is not None:
            claims = _claims_by(await self._key_set.keys(kid), algorithm, token)
        if claims is None:
            raise Unauthenticated("token signature matches no key of this server; check the keys of its verifier")
        return claims

    def _identity_of(self, claims: dict[str, Any]) -> Identity:
        """Return the identity in the claims of a verified token. Raises Unauthenticated, Expired."""
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
                f"expected {_any_of(self._audiences)}"
            )
        issuer = claims.get("iss")
        if self._issuers is not None and not (isinstance(issuer, str) and issuer in self._issuers):
            raise Unauthenticated(
                f"token has another issuer: claim iss is {shown(issuer)}, expected {_any_of(self._issuers)}"
            )
        try:
            return Identity(
                client_id=check_id(claims.get("sub"), "claim sub"),
                grants=_grants(claims.get(_CLAIM)),
                expires_at_ms=math.ceil((expires_s + self._leeway_s) * 1000),
            )
        except TenutoError as error:  # the reason helps the developer who signs such tokens
            raise Unauthenticated(f"token has an invalid claim: {error}") from None


def _malformed(error: Exception) -> Unauthenticated:
    return Unauthenticated(f"token is malformed, it must be a signed JWT: {shown(str(error))}")


def _claims_by(keys: Iterable[Key], algorithm: str, token: str) -> dict[str, Any] | None:
    """Return the claims if one of `keys` has signed them, else None. Raises Unauthenticated if they are malformed."""
    for key in keys:
        if algorithm in key.algorithms:
            try:
                claims: dict[str, Any] = jwt.decode(token, key.material, [algorithm], options=_SIGNATURE_ONLY)
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
                raise _malformed(error) from None
            return claims
    return None


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return the claim `name`, seconds since 1970, or None. Raises Unauthenticated for any other value."""
    value = claims.get(name)
    if value is None:
        return None
    # Check exactly: in Python a bool is an int, JSON may contain NaN, and an int may have a thousand digits.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_TIME_S:
        raise Unauthenticated(f"token claim {name} must be a number of seconds since 1970, got {shown(value)}")
    return float(value)


def _any_of(names: Iterable[str]) -> str:
    """Return `names` as text for an error message, with "or" between them."""
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
