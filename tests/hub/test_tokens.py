"""Tokens: the identity that a token names, and the reasons to refuse one. Keys and fetched JWK sets are real."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import threading
import traceback
from collections.abc import Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tenuto.core.errors import Busy, LocalError, Unauthenticated
from tenuto.hub.access import tokens
from tenuto.hub.access.identity import Expired, Identity
from tenuto.hub.access.tokens import JwtVerifier, KeySet, fetch_set, jwt_verifier, keys_of_set
from tests.virtual import Time

NOW_S = 1_700_000_000
SECRET = "this-is-a-secret-of-more-than-sixty-four-bytes-since-HS512-wants-so-many"
OTHER_SECRET = "another-secret-of-more-than-sixty-four-bytes-which-nobody-here-has-seen"
RSA, OTHER_RSA = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC256, EC384, EC521 = (ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
ED = ed25519.Ed25519PrivateKey.generate()
PRIVATE: dict[str, Any] = {"ES256": EC256, "ES384": EC384, "ES512": EC521, "EdDSA": ED}
PRIVATE |= dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA)


def pem(key: Any) -> str:
    text: str = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return text


def jwk(key: Any, **fields: Any) -> dict[str, Any]:
    reader = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256", ed25519.Ed25519PrivateKey: "EdDSA"}
    name = next(name for kind, name in reader.items() if isinstance(key, kind))
    found: dict[str, Any] = jwt.get_algorithm_by_name(name).to_jwk(key.public_key(), as_dict=True)
    return {**{name: value for name, value in found.items() if name != "key_ops"}, **fields}


def claims(**changed: Any) -> dict[str, Any]:
    """Good claims, with changes; those set to None are left out."""
    good = {"sub": "ada", "aud": "chat", "exp": NOW_S + 60, "tenuto": {"chat:*": ["subscribe", "history"]}}
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=headers)


def verifier(**options: Any) -> JwtVerifier:
    known: dict[str, Any] = {"audience": "chat", "now_s": lambda: NOW_S, **options}
    if not {"secret", "public_key", "jwks_url"} & set(options):
        known["secret"] = SECRET
    return jwt_verifier(**known)


def scope(*headers: tuple[str, str], query: str = "") -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "query_string": query.encode(),
    }


# Identity


async def test_valid_token_names_client_id_grants_and_expiry() -> None:
    identity = await verifier().verify_token(signed(tenuto={"chat:*": ["subscribe"], "user:{sub}": ["publish"]}))
    assert identity == Identity(
        client_id="ada",
        grants={"chat:*": frozenset({"subscribe"}), "user:ada": frozenset({"publish"})},
        expires_at_ms=(NOW_S + 70) * 1000,
    )


async def test_token_without_grants_gives_no_capability() -> None:
    identity = await verifier().verify_token(signed(tenuto=None))
    assert identity.grants == {}
    assert not identity.has("subscribe", "chat:1")


@pytest.mark.parametrize("algorithm", sorted(PRIVATE))
async def test_public_key_verifies_as_pem_as_jwk_and_in_a_set(algorithm: str) -> None:
    key = PRIVATE[algorithm]
    token = signed(key, algorithm)
    for given in (pem(key), pem(key).encode(), jwk(key), json.dumps(jwk(key)), {"keys": [jwk(key, kid="a")]}):
        assert (await verifier(public_key=given).verify_token(token)).client_id == "ada"


async def test_token_is_read_from_the_header_or_the_configured_cookie_only() -> None:
    token = signed()
    plain, with_cookie = verifier(), verifier(cookie="session")
    bearer, cookie = ("Authorization", f"Bearer {token}"), ("cookie", f'a=b; session="{token}"; c=d')
    for one in (plain, with_cookie):
        for header in (bearer, ("authorization", f"bearer  {token} ")):
            found = await one(scope(header))
            assert found is not None
            assert found.client_id == "ada"
        assert await one(scope()) is None
        assert await one(scope(query=f"token={token}&access_token={token}&ticket={token}")) is None
        assert await one(scope(("cookie", f"other={token}; xsession={token}"))) is None
    assert await plain(scope(cookie)) is None
    assert (await with_cookie(scope(cookie))) is not None
    # The header takes precedence over the cookie.
    with pytest.raises(Unauthenticated):
        await with_cookie(scope(cookie, ("authorization", "Bearer garbage")))


@pytest.mark.parametrize("values", [["Basic YTpi"], ["Bearer "], [""], ["Bearer a", "Bearer b"]])
async def test_header_without_a_single_bearer_token_is_refused(values: list[str]) -> None:
    with pytest.raises(Unauthenticated):
        await verifier()(scope(*(("authorization", one) for one in values)))


# Times


@pytest.mark.parametrize(("exp", "is_good"), [(NOW_S + 1, True), (NOW_S - 9, True), (NOW_S - 10, False), (0, False)])
async def test_token_expires_at_its_time_plus_the_leeway(exp: int, is_good: bool) -> None:
    if is_good:
        assert (await verifier().verify_token(signed(exp=exp))).expires_at_ms == (exp + 10) * 1000
    else:
        with pytest.raises(Expired, match="expired"):
            await verifier().verify_token(signed(exp=exp))


@pytest.mark.parametrize(("nbf", "is_good"), [(NOW_S, True), (NOW_S + 10, True), (NOW_S + 11, False)])
async def test_token_is_valid_from_its_time_minus_the_leeway(nbf: int, is_good: bool) -> None:
    if is_good:
        assert (await verifier().verify_token(signed(nbf=nbf))).client_id == "ada"
    else:
        with pytest.raises(Unauthenticated, match="not valid yet"):
            await verifier().verify_token(signed(nbf=nbf))


# Audiences and issuers


@pytest.mark.parametrize("aud", [["other", "chat"], "chat", "second"])
async def test_token_with_one_of_the_audiences_and_of_the_issuers_is_accepted(aud: object) -> None:
    one = verifier(audience=["chat", "second"], issuer=["https://old.example", "https://new.example"])
    assert (await one.verify_token(signed(aud=aud, iss="https://new.example"))).client_id == "ada"


# Signing keys


def by_hand(payload: object, header: object = None, key: str | bytes = SECRET) -> str:
    """Return a token signed with HMAC, made without a library that would refuse these claims."""

    def text(value: object) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signing = f"{text(header or {'alg': 'HS256', 'typ': 'JWT'})}.{text(payload)}"
    secret = key.encode() if isinstance(key, str) else key
    return f"{signing}.{text(hmac.digest(secret, signing.encode(), 'sha256'))}"


def unsigned(algorithm: object) -> str:
    return by_hand(claims(), {"alg": algorithm, "typ": "JWT"}).rsplit(".", 1)[0] + "."


UNKNOWN: list[tuple[str, str]] = [
    ("an unknown secret", signed(OTHER_SECRET)),
    ("alg none", unsigned("none")),
    ("alg of the wrong type", unsigned(["HS256"])),
    ("without a signature", unsigned("HS256")),
    ("another algorithm's signature", by_hand(claims(), {"alg": "HS512"})),
    ("a key of its own", by_hand(claims(), {"alg": "HS256", "jwk": {"kty": "oct", "k": "QUFB"}}, key="AAA")),
    ("a URL of its own", by_hand(claims(), {"alg": "HS256", "jku": "http://127.0.0.1:9/", "kid": "x"}, key="A" * 40)),
    ("an unknown public key", signed(OTHER_RSA, "RS256")),
]


@pytest.mark.parametrize(("why", "token"), UNKNOWN, ids=[why for why, _ in UNKNOWN])
async def test_token_without_the_signature_of_a_known_key_is_refused(why: str, token: str) -> None:
    for one in (verifier(), verifier(public_key=pem(RSA)), verifier(secret=SECRET, public_key=pem(RSA))):
        with pytest.raises(Unauthenticated):
            await one.verify_token(token)


@pytest.mark.parametrize("secret", [pem(RSA), pem(RSA).strip(), json.dumps(jwk(RSA))], ids=["pem", "stripped", "jwk"])
async def test_public_key_is_not_accepted_as_a_secret(secret: str) -> None:
    # An attacker signs with HMAC, with the text of the public key as the secret.
    for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "a"}):
        token = by_hand(claims(), header, key=secret)
        for one in (verifier(public_key=pem(RSA)), verifier(public_key={"keys": [jwk(RSA, kid="a")]})):
            with pytest.raises(Unauthenticated):
                await one.verify_token(token)
    with pytest.raises(LocalError, match="public_key"):
        verifier(secret=secret)


async def test_key_verifies_its_own_algorithm_only() -> None:
    with pytest.raises(Unauthenticated):
        await verifier(public_key=pem(EC384)).verify_token(signed(EC256, "ES256"))
    narrow = verifier(public_key=pem(RSA), algorithms=["PS256"])
    assert (await narrow.verify_token(signed(RSA, "PS256"))).client_id == "ada"
    with pytest.raises(Unauthenticated):
        await narrow.verify_token(signed(RSA, "RS256"))
    bound = verifier(public_key=jwk(RSA, alg="RS512"))
    assert (await bound.verify_token(signed(RSA, "RS512"))).client_id == "ada"
    with pytest.raises(Unauthenticated):
        await bound.verify_token(signed(RSA, "RS256"))


async def test_each_of_several_secrets_verifies() -> None:
    both = verifier(secret=[SECRET, OTHER_SECRET])
    for secret in (SECRET, OTHER_SECRET):
        assert (await both.verify_token(signed(secret))).client_id == "ada"


async def test_secret_does_not_verify_an_algorithm_for_which_it_is_too_short() -> None:
    with pytest.raises(LocalError, match="32 bytes"):
        verifier(secret="x" * 31)
    one = verifier(secret=SECRET[:40])
    assert (await one.verify_token(signed(SECRET[:40]))).client_id == "ada"
    with pytest.raises(Unauthenticated):
        await one.verify_token(by_hand(claims(), {"alg": "HS512"}, key=SECRET[:40]))


# Garbage


GARBAGE = [
    "",
    "é.é.é",
    "\udc80",
    signed() + "x",
    *map(by_hand, ([1, 2, 3], b"{", b"\xff\xfe", b"[" * 3000)),
    by_hand(claims(), "no header"),
    by_hand(claims(), {"alg": "HS256", "kid": 7}),
]
ISSUER = "https://issuer.example"
WRONG_CLAIMS: list[dict[str, Any]] = [
    *({"aud": aud} for aud in ("other", [], ["other"], None, "cha", {"chat": 1}, [["chat"]], 7)),
    *({"iss": iss} for iss in (None, "https://evil.example", "", [ISSUER], 5)),
    *({"sub": sub} for sub in (None, "", 7, "a b", "*", "x" * 65)),
    *({"exp": exp} for exp in (None, "tomorrow", True, -1, float("inf"), 10**400)),
    *({"nbf": nbf} for nbf in ("now", float("nan"))),
    *({"tenuto": {name: ["subscribe"]}} for name in ("chat*", "{name}")),
    *({"tenuto": grants} for grants in ([], {"chat:*": "subscribe"}, {"chat:*": [1]})),
    {"tenuto": {f"c{number}": [] for number in range(201)}},
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
async def test_garbage_is_refused_as_a_token(number: int) -> None:
    for one in (verifier(), verifier(public_key=pem(RSA))):
        with pytest.raises(Unauthenticated):
            await one.verify_token(GARBAGE[number])


async def test_signed_token_of_more_than_8_kib_is_refused() -> None:
    one = verifier()
    assert (await one.verify_token(signed(note="x" * 5_000))).client_id == "ada"
    with pytest.raises(Unauthenticated):
        await one.verify_token(signed(note="x" * 8_192))


@pytest.mark.parametrize("crit", [["b64"], ["urn:example:step-up"], [], 5])
async def test_critical_extension_is_refused(crit: object) -> None:
    with pytest.raises(Unauthenticated, match="crit"):
        await verifier().verify_token(by_hand(claims(), {"alg": "HS256", "crit": crit, "b64": True}))


@pytest.mark.parametrize("wrong", WRONG_CLAIMS, ids=lambda wrong: str(wrong)[:40])
async def test_claim_that_is_wrong_is_refused(wrong: dict[str, Any]) -> None:
    payload = {name: value for name, value in {**claims(), "iss": ISSUER, **wrong}.items() if value is not None}
    reason = {"aud": "audience", "iss": "issuer"}.get(next(iter(wrong)), "token")
    with pytest.raises(Unauthenticated, match=reason):
        await verifier(issuer=ISSUER).verify_token(by_hand(payload))


# Secrecy


async def test_errors_logs_and_reprs_contain_no_token_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    one = verifier(secret=SECRET, cookie="session")
    output = repr(one) + str(one) + repr(one._keys)
    tokens = [signed(OTHER_SECRET), signed(exp=1), signed(sub="a b"), signed(tenuto={"x": ["writ"]}), "garbage" * 9]
    for token in tokens:
        for header in (("authorization", f"Bearer {token}"), ("cookie", f"session={token}"), ("authorization", token)):
            with pytest.raises(Unauthenticated) as refused:
                await one(scope(header))
            output += "".join(traceback.format_exception(refused.value)) + json.dumps(refused.value.problem())
    for wrong in ("x" * 31, pem(RSA)):
        with pytest.raises(LocalError) as refused_key:
            jwt_verifier(audience="chat", secret=wrong)
        output += str(refused_key.value) + repr(refused_key.value.__cause__)
        assert wrong not in output
    output += caplog.text
    assert SECRET not in output
    for token in tokens:
        assert all(len(piece) < 20 or piece not in output for piece in token.split("."))


# Invalid settings


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"audience": "chat"}, "needs a secret"),
        ({"audience": "", "secret": SECRET}, "audience"),
        ({"audience": [], "secret": SECRET}, "audience"),
        ({"audience": "chat", "secret": SECRET, "algorithms": ["none"]}, "none"),
        ({"audience": "chat", "secret": SECRET, "algorithms": ["RS256"]}, "no key"),
        ({"audience": "chat", "secret": SECRET, "issuer": ""}, "issuer"),
        ({"audience": "chat", "public_key": "hello"}, "PEM"),
        ({"audience": "chat", "public_key": "{"}, "JSON"),
        ({"audience": "chat", "public_key": {"keys": []}}, "no public key"),
        ({"audience": "chat", "public_key": {"kty": "oct", "k": "QUFB"}}, "no public key"),
        ({"audience": "chat", "jwks_url": "http://issuer.example/keys"}, "https"),
        ({"audience": "chat", "jwks_url": "file:///etc/passwd"}, "https"),
    ],
)
def test_setting_that_would_accept_no_token_or_every_token_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(LocalError, match=expected):
        jwt_verifier(**options)


def test_private_key_is_refused_as_a_public_key() -> None:
    text = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    with pytest.raises(LocalError, match="private key"):
        verifier(public_key=text)
    assert keys_of_set({"keys": [jwt.get_algorithm_by_name("RS256").to_jwk(RSA, as_dict=True)]}) == []


def test_rsa_key_shorter_than_2048_bits_is_refused() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(LocalError, match="2048"):
        verifier(public_key=pem(short))
    assert keys_of_set({"keys": [jwk(short)]}) == []


@pytest.mark.parametrize(
    "fields", [{"use": "enc"}, {"key_ops": ["sign"]}, {"key_ops": "verify"}, {"kid": 7}, {"alg": "none"}, {"n": "?"}]
)
def test_keys_of_a_set_that_cannot_verify_are_ignored(fields: dict[str, Any]) -> None:
    good = jwk(RSA, kid="good", use="sig", key_ops=["verify"])
    assert [key.kid for key in keys_of_set({"keys": [jwk(RSA, **fields), {"kty": "new"}, 5, None, good]})] == ["good"]


def test_stored_keys_are_derived_from_the_secrets_and_differ_from_them() -> None:
    found = verifier(secret=[SECRET, OTHER_SECRET]).ticket_keys
    assert [len(key) for key in found] == [32, 32]
    assert len({*found, SECRET.encode(), OTHER_SECRET.encode()}) == 4
    assert verifier(secret=SECRET).ticket_keys == found[:1]
    assert verifier(public_key=pem(RSA)).ticket_keys == []


# Fetched keys


class Issuer:
    """A server on this machine that publishes keys, or responds with the status, body or location set here."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.status = 200
        self.body: bytes | None = None
        self.location: str | None = None
        self.requested: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requested.append(self.path)
                issuer.gate.wait(10)
                self.send_response(issuer.status if self.path == "/keys" else 200)
                if issuer.location is not None and self.path == "/keys":
                    self.send_header("Location", issuer.location)
                body = issuer.body if issuer.body is not None else json.dumps({"keys": issuer.keys}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    one = Issuer()
    yield one
    one.close()


@pytest.fixture
def time() -> Time:
    return Time(100.0)


@pytest.fixture
def fetching(issuer: Issuer, time: Time) -> JwtVerifier:
    """Return a verifier that fetches the keys of the issuer."""
    issuer.keys = [jwk(RSA, kid="one")]
    one = verifier(jwks_url=issuer.url)
    one._key_set = KeySet(issuer.url, monotonic_s=time)
    return one


async def settled(one: JwtVerifier) -> None:
    """Wait until the running fetch ends."""
    assert one._key_set is not None
    if one._key_set._fetching is not None:
        await one._key_set._fetching


def signed_by(kid: str, key: Any = RSA) -> str:
    return signed(key, "RS256", {"kid": kid})


async def test_simultaneous_requests_wait_for_one_fetch(fetching: JwtVerifier, issuer: Issuer) -> None:
    issuer.gate.clear()
    waiting = [asyncio.ensure_future(fetching.verify_token(signed_by("one"))) for _ in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    waiting[0].cancel()  # a cancelled request does not cancel the others
    await asyncio.sleep(0)
    issuer.gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {one.client_id for one in found[1:] if isinstance(one, Identity)} == {"ada"}
    assert len(issuer.requested) == 1


async def test_new_key_is_fetched_when_a_token_names_it(fetching: JwtVerifier, issuer: Issuer, time: Time) -> None:
    await fetching.verify_token(signed_by("one"))
    issuer.keys = [jwk(OTHER_RSA, kid="two"), jwk(RSA, kid="one")]
    time.now_s += 31
    assert (await fetching.verify_token(signed_by("two", OTHER_RSA))).client_id == "ada"
    assert (await fetching.verify_token(signed_by("one"))).client_id == "ada"
    assert len(issuer.requested) == 2


async def test_key_without_an_id_is_tried_for_each_token(fetching: JwtVerifier, issuer: Issuer) -> None:
    issuer.keys = [jwk(OTHER_RSA, kid="two"), jwk(RSA)]
    assert (await fetching.verify_token(signed_by("one"))).client_id == "ada"


async def test_unknown_key_ids_cause_one_fetch_in_30_seconds(fetching: JwtVerifier, issuer: Issuer, time: Time) -> None:
    await fetching.verify_token(signed_by("one"))
    for second in range(60):
        time.now_s += 1
        with pytest.raises(Unauthenticated):
            await fetching.verify_token(signed_by(f"unknown-{second}", OTHER_RSA))
    assert len(issuer.requested) == 3


async def test_withdrawn_key_is_refused_after_ten_minutes(fetching: JwtVerifier, issuer: Issuer, time: Time) -> None:
    await fetching.verify_token(signed_by("one"))
    issuer.keys = [jwk(OTHER_RSA, kid="two")]
    time.now_s += 599
    await fetching.verify_token(signed_by("one"))
    await settled(fetching)
    assert len(issuer.requested) == 1
    time.now_s += 2
    await fetching.verify_token(signed_by("one"))  # this starts a fetch in the background
    await settled(fetching)
    with pytest.raises(Unauthenticated):
        await fetching.verify_token(signed_by("one"))
    assert (await fetching.verify_token(signed_by("two", OTHER_RSA))).client_id == "ada"
    issuer.keys = [jwk(RSA, kid="one")]
    time.now_s += 3000
    with pytest.raises(Unauthenticated):  # no token has come for so long that the keys are older
        await fetching.verify_token(signed_by("two", OTHER_RSA))


async def test_keys_of_an_unreachable_issuer_are_used_for_an_hour(
    fetching: JwtVerifier, issuer: Issuer, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    await fetching.verify_token(signed_by("one"))
    issuer.status = 500
    time.now_s += 3599
    assert (await fetching.verify_token(signed_by("one"))).client_id == "ada"
    await settled(fetching)
    assert "responded with status 500" in caplog.text
    time.now_s += 32
    with pytest.raises(Busy):
        await fetching.verify_token(signed_by("one"))
    issuer.status = 200
    time.now_s += 31
    assert (await fetching.verify_token(signed_by("one"))).client_id == "ada"


async def test_verifier_without_keys_refuses_as_busy_until_a_fetch_succeeds(
    fetching: JwtVerifier, issuer: Issuer, time: Time
) -> None:
    issuer.status = 503
    for _ in range(5):
        with pytest.raises(Busy) as refused:
            await fetching.verify_token(signed_by("one"))
        assert refused.value.retry
    assert len(issuer.requested) == 1
    issuer.status = 200
    time.now_s += 31
    assert (await fetching.verify_token(signed_by("one"))).client_id == "ada"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"<html>", "did not respond with JSON"),
        (b"[" * 100_000, "did not respond with JSON"),
        (b'{"keys": [' + b"{}," * 100 + b"{}]}", "at most 100 keys"),
        (b'{"keys": []' + b" " * 2**20 + b"}", "responded with more than 1048576 bytes; check jwks_url"),
    ],
)
def test_response_other_than_a_jwk_set_is_refused(issuer: Issuer, body: bytes, expected: str) -> None:
    issuer.body = body
    with pytest.raises(LocalError, match=expected):
        fetch_set(issuer.url)


def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    issuer.status, issuer.location = 302, "/moved"
    with pytest.raises(LocalError, match="responded with status 302; check jwks_url"):
        fetch_set(issuer.url)
    assert issuer.requested == ["/keys"]


@pytest.mark.parametrize(("response", "error"), [(b"", OSError), (b"garbage\r\n\r\n", HTTPException)])
async def test_server_that_speaks_no_http_makes_the_keys_unavailable(
    response: bytes, error: type[Exception], time: Time
) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        with pytest.raises(error):
            await asyncio.to_thread(fetch_set, url)
        with pytest.raises(Busy, match="cannot be fetched at present"):
            await KeySet(url, monotonic_s=time).keys("one")


async def test_fetch_from_a_slow_issuer_times_out(
    fetching: JwtVerifier, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FETCH_TIMEOUT_S", 0.05)
    issuer.gate.clear()
    with pytest.raises(Busy):
        await fetching.verify_token(signed_by("one"))


async def test_log_names_an_unreachable_issuer_without_the_secrets_in_its_url(
    time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    found = KeySet("http://user:password@127.0.0.1:9/keys?key=hidden", monotonic_s=time)
    with pytest.raises(Busy):
        await found.keys("one")
    assert "keys at 'http://127.0.0.1:9/keys' cannot be fetched" in caplog.text
    assert "password" not in caplog.text
    assert "hidden" not in caplog.text
