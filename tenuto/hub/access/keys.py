"""Keys that verify tokens, each bound to its algorithms.

Layer: hub, below `tokens`.

The binding makes algorithm confusion impossible: a public key never serves as an HMAC secret, whichever algorithm a
token's header names, and no key has the algorithm `none`. Safe to change: how keys are fetched and kept. Not safe: a
key that verifies an algorithm of another type.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import jwt
from jwt.algorithms import HMACAlgorithm, get_default_algorithms

from tenuto.core.errors import Busy, LocalError, shown, shown_url

logger = logging.getLogger("tenuto.hub")

# Minimum length of a secret in bytes: that of the hash (RFC 7518, 3.2).
HMAC_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVE_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
ALGORITHMS = frozenset((*HMAC_BYTES, *RSA_ALGORITHMS, *CURVE_ALGORITHMS.values(), "EdDSA"))
MIN_RSA_BITS = 2048

MAX_KEYS = 100  # limit of keys in one set; issuers publish two or three
MAX_SET_BYTES = 256 * 1024
FETCH_TIMEOUT_S = 5.0  # longest time of a whole fetch; access control waits 10 s for a verifier
FRESH_S = 600.0  # age after which the key set is fetched again; so a revoked key is accepted no longer than this
STALE_S = 3600.0  # how long the keys are accepted while the issuer cannot be reached; then every token is refused
COOLDOWN_S = 30.0  # least time between two fetches, even if many tokens name unknown keys
_MAX_REDIRECTS = 3


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
        if text.lstrip().startswith("{"):
            given = _json(text)
        else:
            return [_pem_key(text)]
    found = keys_of_set(given if "keys" in given else {"keys": [given]})
    if not found:
        raise LocalError("public_key holds no public key that could verify a token; give PEM, a JWK or a JWK set")
    return found


def keys_of_set(given: Any) -> list[Key]:
    """Return the usable keys of a JWK set and ignore the others (RFC 7517, 5). Raises LocalError for another object."""
    listed = given.get("keys") if isinstance(given, dict) else None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise LocalError(
            f"JWK set must be an object whose `keys` is a list of at most {MAX_KEYS} keys, got {shown(given)}"
        )
    return [key for one in listed if (key := _jwk_key(one)) is not None]


def check_cryptography() -> None:
    """Raise LocalError unless the package for public keys (`cryptography`) is installed."""
    if "RS256" not in get_default_algorithms():
        raise LocalError("public keys need the package cryptography; install Tenuto with [jwt], as its README shows")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise LocalError("public_key begins like a JWK but is not valid JSON; give PEM, a JWK or a JWK set") from None
    if not isinstance(value, dict):
        raise LocalError(f"public_key must be a JWK object, got {shown(value)}")
    return value


def _pem_key(text: str) -> Key:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if "PRIVATE KEY" in text:
        raise LocalError(
            "public_key holds a private key; give the public key, and keep the private one off this server"
        )
    try:
        material = load_pem_public_key(text.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise LocalError(
            "public_key is not in PEM form (-----BEGIN PUBLIC KEY-----); give PEM, a JWK or a JWK set"
        ) from None
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
    reader = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(one.get("kty")))
    if reader is None:  # unknown, or the type "oct": a secret must not be among public keys
        return None
    try:
        material: Any = get_default_algorithms()[reader].from_jwk(one)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    algorithms = _algorithms_of(material)
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


class KeySet:
    """The keys that an issuer publishes at a URL, fetched on demand and kept for `FRESH_S`.

    It runs one fetch at a time, in a thread, at most one each `COOLDOWN_S`. Used from one event loop at a time.
    """

    def __init__(self, url: str, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """Raise LocalError unless `url` is https, or http on this machine."""
        check_cryptography()
        parts = urlsplit(url)
        is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_here)):
            raise LocalError(f"jwks_url must be an https URL (http only on this machine), got {shown_url(url)}")
        self.url = url
        self._monotonic_s = monotonic_s
        self._keys: list[Key] = []
        self._fetched_at_s: float | None = None
        self._tried_at_s: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def keys(self, kid: str | None) -> Sequence[Key]:
        """Return the keys that may have signed a token that names `kid`. Raises Busy if the set is unavailable."""
        if self._age_s() > FRESH_S:
            fetching = self._fetch()
            if fetching is not None and self._age_s() > STALE_S:
                # all callers wait for the same fetch; cancelling one of them does not cancel it
                await asyncio.shield(fetching)
        if self._age_s() > STALE_S:
            raise Busy(f"keys at {shown_url(self.url)} cannot be fetched at present; try again")
        found = self._named(kid)
        # the issuer may have a new key: fetch once more
        if not found and kid is not None and (fetching := self._fetch()) is not None:
            await asyncio.shield(fetching)
            found = self._named(kid)
        return found

    def _named(self, kid: str | None) -> Sequence[Key]:
        return self._keys if kid is None else [key for key in self._keys if key.kid == kid]

    def _age_s(self) -> float:
        return float("inf") if self._fetched_at_s is None else self._monotonic_s() - self._fetched_at_s

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the running fetch, or start one; None during the cooldown. The returned task never raises."""
        loop = asyncio.get_running_loop()
        if self._fetching is None or self._fetching.done() or self._fetching.get_loop() is not loop:
            now_s = self._monotonic_s()
            if self._tried_at_s is not None and now_s - self._tried_at_s < COOLDOWN_S:
                return None
            self._tried_at_s = now_s
            self._fetching = loop.create_task(self._fetch_once())
        return self._fetching

    async def _fetch_once(self) -> None:
        try:
            self._keys = await asyncio.to_thread(fetch_set, self.url)
        except LocalError as error:
            logger.warning("keys at %s cannot be used: %s", shown_url(self.url), error)
        except Exception as error:
            logger.warning("keys at %s cannot be fetched: %s", shown_url(self.url), type(error).__name__)
        else:
            self._fetched_at_s = self._monotonic_s()


def fetch_set(url: str) -> list[Key]:
    """Fetch a JWK set; blocks. Raises LocalError for an unusable response, OSError if none arrives in time."""
    deadline_s = time.monotonic() + FETCH_TIMEOUT_S
    request = urllib.request.Request(url, headers={"Accept": "application/jwk-set+json, application/json"})
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _SameHost,
    ):
        opener.add_handler(handler())  # leave out the handlers of file:, ftp: and data:, which the default opener has
    try:
        with opener.open(request, timeout=FETCH_TIMEOUT_S) as response:
            body = _read(response, deadline_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise LocalError(f"JWKS endpoint {shown_url(url)} responded with status {error.code}; check jwks_url") from None
    except HTTPException:
        raise LocalError(f"JWKS endpoint {shown_url(url)} did not respond with HTTP; check jwks_url") from None
    try:
        return keys_of_set(json.loads(body))
    except (ValueError, RecursionError):
        raise LocalError(f"JWKS endpoint {shown_url(url)} did not respond with JSON; check jwks_url") from None


def _read(response: Any, deadline_s: float) -> bytes:
    """Read the body within its bounds of bytes and time, also from a server that sends one byte a second."""
    body = b""
    while piece := response.read1(64 * 1024):
        body += piece
        if len(body) > MAX_SET_BYTES:
            raise LocalError(f"JWK set has more than {MAX_SET_BYTES} bytes, which is the limit; check jwks_url")
        if time.monotonic() > deadline_s:
            raise TimeoutError
    return body


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one origin only, because another origin must not decide which tokens are accepted."""

    max_redirections = _MAX_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to the new address. Raises LocalError for another origin."""
        if _origin(urljoin(req.full_url, newurl)) != _origin(req.full_url):
            raise LocalError(
                f"JWKS endpoint redirected to another origin, {shown_url(newurl)}; set jwks_url to that address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
