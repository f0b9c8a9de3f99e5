"""Access control (docs/protocol.md, 10): closed without a verifier, mounted or not, for every kind of request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tenuto.app import Hub
from tenuto.core.errors import Forbidden
from tenuto.hub.access.identity import Identity, allow_everyone
from tenuto.transports import access
from tests.transports.asgi import HERE, Headers, ask, exchange
from tests.transports.conftest import new_hub

WEB = Path(__file__).parents[2] / "tenuto" / "web"

PATHS = [
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/channels/c",
    "/v1/channels/c/messages",
    "/v1/channels/c/events",
    "/v1/channels/c/poll",
    "/v1/channels/c/messages/m/events",
    "/nothing",
]


@pytest.fixture
async def closed() -> Any:
    hub = new_hub()
    yield hub
    await hub.close()


OUTSIDE: list[tuple[str, dict[str, Any]]] = [
    ("a peer elsewhere", {"client": ("192.0.2.1", 5)}),
    ("a peer that is not known", {"client": None}),
    ("a foreign host", {"headers": [(b"host", b"evil.example")]}),
    ("HTTP/1.0", {"version": "1.0"}),
    ("an address of the network", {"headers": [(b"host", b"192.168.0.7:8000")]}),
    ("no host", {"headers": []}),
    ("two hosts", {"headers": [*HERE, (b"host", b"evil.example")]}),
    ("a proxy", {"headers": [*HERE, (b"X-Forwarded-For", b"127.0.0.1")]}),
    ("a foreign origin", {"headers": [*HERE, (b"origin", b"https://evil.example")]}),
    ("an origin without a name", {"headers": [*HERE, (b"origin", b"null")]}),
    ("an origin on another port", {"headers": [*HERE, (b"origin", b"http://localhost:3000")]}),
    ("another port of this site", {"headers": [*HERE, (b"sec-fetch-site", b"same-site")]}),
    ("two origins", {"headers": [*HERE, (b"origin", b"http://localhost:8000"), (b"origin", b"http://evil.example")]}),
]
INSIDE: list[tuple[str, dict[str, Any]]] = [
    ("localhost", {}),
    ("127.0.0.1", {"headers": [(b"host", b"127.0.0.1:9")]}),
    ("IPv6", {"headers": [(b"host", b"[::1]:9")], "client": ("::1", 5)}),
    ("a mapped address", {"client": ("::ffff:127.0.0.1", 5)}),
    ("127.0.0.0/8", {"client": ("127.8.8.8", 5)}),
    ("its own page", {"headers": [*HERE, (b"origin", b"http://localhost:8000")]}),
    ("its own page's own request", {"headers": [*HERE, (b"sec-fetch-site", b"same-origin")]}),
    ("a typed address", {"headers": [*HERE, (b"sec-fetch-site", b"none")]}),
    ("HTTP/2", {"version": "2"}),
    ("its own page on port 80", {"headers": [(b"host", b"localhost"), (b"origin", b"http://localhost")]}),
]


@pytest.mark.parametrize(("why", "how"), OUTSIDE, ids=[why for why, _ in OUTSIDE])
async def test_hub_without_verifier_refuses_requests_from_elsewhere(closed: Hub, why: str, how: dict[str, Any]) -> None:
    mounted = Starlette(routes=[Mount("/deep/tenuto", closed)])
    for path in PATHS:
        assert await ask(closed, path, **how) == (403, "no_verifier")
    assert await ask(mounted, "/deep/tenuto/v1/channels/c/messages", **how) == (403, "no_verifier")
    post = {**how, "headers": [*how.get("headers", HERE), (b"content-type", b"application/json")]}
    assert await ask(closed, "/v1/channels/c/messages", method="POST", body=b"{}", **post) == (403, "no_verifier")
    for app, path in ((closed, "/v1/ws"), (mounted, "/deep/tenuto/v1/ws")):
        assert await ask(app, path, kind="websocket", **how) == (403, "no_verifier")
        extensions: dict[str, Any] = {"websocket.http.response": {}}
        assert await ask(app, path, kind="websocket", extensions=extensions, **how) == (403, "no_verifier")
    assert (await closed.info("c")).serial == 0


@pytest.mark.parametrize(("why", "how"), INSIDE, ids=[why for why, _ in INSIDE])
async def test_hub_without_verifier_takes_requests_of_this_machine(closed: Hub, why: str, how: dict[str, Any]) -> None:
    mounted = Starlette(routes=[Mount("/tenuto", closed)])
    assert (await ask(closed, **how))[0] == 200
    assert (await ask(mounted, "/tenuto/v1/channels/c", **how))[0] == 200
    assert (await ask(closed, "/v1/ws", kind="websocket", **how))[0] == 101
    assert (await ask(mounted, "/tenuto/v1/ws", kind="websocket", **how))[0] == 101


async def test_refusal_without_verifier_names_the_setting(closed: Hub) -> None:
    _, body = await exchange(closed, "/", client=("192.0.2.1", 5))
    detail = json.loads(body["body"])["detail"]
    assert detail.index("authenticate=visitors()") < detail.index("authenticate=allow_everyone")
    assert "'192.0.2.1' is not a loopback address" in detail


async def test_allowed_origin_is_accepted_without_verifier_and_a_star_is_not() -> None:
    page: Headers = [*HERE, (b"origin", b"http://localhost:5173"), (b"sec-fetch-site", b"same-site")]
    named, star = new_hub(allowed_origins=["http://localhost:5173"]), new_hub(allowed_origins=["*"])
    for hub, status in ((named, 200), (star, 403)):
        assert (await ask(hub, headers=page))[0] == status
        assert (await ask(hub, headers=page, client=("192.0.2.1", 5)))[0] == 403
        await hub.close()


async def test_refused_peers_are_logged_once_with_the_reason(closed: Hub, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):
        assert (await ask(closed, client=("192.0.2.77", 5)))[0] == 403
    lines = [record.getMessage() for record in caplog.records if "192.0.2.77" in record.getMessage()]
    assert len(lines) == 1
    assert "is not a loopback address. Set Hub(authenticate=visitors())" in lines[0]


# With a verifier


async def with_verifier(
    verify: Callable[[Any], Awaitable[Identity | None]], how: dict[str, Any], **options: Any
) -> tuple[int, Any]:
    hub = new_hub(authenticate=verify, **options)
    try:
        return await ask(hub, **how)
    finally:
        await hub.close()


AWAY: dict[str, Any] = {"client": ("192.0.2.1", 5), "headers": [(b"host", b"chat.example")]}
SOCKET: dict[str, Any] = {**AWAY, "path": "/v1/ws", "kind": "websocket", "extensions": {"websocket.http.response": {}}}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/channels"), ("DELETE", "/v1/channels/c"), ("GET", "/v1/inspect"), ("GET", "/metrics")],
)
async def test_allow_everyone_lists_and_deletes_no_channel(method: str, path: str) -> None:
    assert await with_verifier(allow_everyone, {**AWAY, "method": method, "path": path}) == (403, "forbidden")


async def operator(scope: Any) -> Identity:
    """Identify every caller as one that may do everything."""
    return Identity(client_id="ada")


async def nobody(scope: Any) -> Identity | None:
    return None


@pytest.mark.parametrize(
    ("verify", "logged"),
    [
        (lambda scope: Identity(), "authenticate must be an async function, it returned a value of type Identity"),
        (lambda scope: returned("ada"), "authenticate must return an Identity or None, got a value of type str"),
    ],
    ids=["not async", "no identity"],
)
async def test_verifier_of_the_wrong_kind_is_logged_with_the_remedy(
    verify: Any, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await with_verifier(verify, AWAY) == (500, "internal")
    assert logged in caplog.text


async def returned(value: Any) -> Any:
    return value


async def test_verifier_may_raise_our_errors() -> None:
    async def refusing(scope: Any) -> Identity | None:
        raise Forbidden("not you")

    assert await with_verifier(refusing, AWAY) == (403, "forbidden")


async def test_verifier_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "VERIFY_TIMEOUT_S", 0.01)

    async def slow(scope: Any) -> Identity | None:
        await asyncio.Event().wait()
        return None

    assert await with_verifier(slow, AWAY) == (503, "busy")


FOREIGN: tuple[bytes, bytes] = (b"origin", b"https://evil.example")


OURS: tuple[bytes, bytes] = (b"host", b"chat.example")
COOKIE: tuple[bytes, bytes] = (b"cookie", b"a=b")
TOKEN: tuple[bytes, bytes] = (b"authorization", b"Bearer x")
PASSWORD: tuple[bytes, bytes] = (b"authorization", b"Basic eDp5")  # a browser adds this header by itself


def from_page(origin: str) -> tuple[bytes, bytes]:
    return (b"origin", origin.encode())


def from_site(relation: str) -> tuple[bytes, bytes]:
    return (b"sec-fetch-site", relation.encode())


SOCKETS: list[tuple[Headers, int]] = [
    ([OURS], 101),
    ([OURS, FOREIGN], 403),
    ([OURS, FOREIGN, TOKEN], 403),
    ([OURS, from_page("https://chat.example")], 101),
    ([(b"host", b"chat.example:8443"), from_page("https://chat.example:8443")], 101),
    ([OURS, from_page("https://chat.example:8443")], 403),
    ([OURS, from_page("https://app.example")], 101),
    ([OURS, COOKIE], 403),
    ([OURS, COOKIE, TOKEN], 101),
    ([OURS, COOKIE, PASSWORD], 403),
    ([OURS, PASSWORD], 101),
]


@pytest.mark.parametrize(("headers", "status"), SOCKETS)
async def test_foreign_pages_open_no_sockets(headers: Headers, status: int) -> None:
    response = await with_verifier(operator, {**SOCKET, "headers": headers}, allowed_origins=["https://app.example"])
    assert response == ((101, None) if status == 101 else (403, "forbidden"))


CHANGES: list[tuple[Headers, int]] = [
    ([OURS], 204),
    ([OURS, FOREIGN], 204),  # without a cookie a browser adds no credentials
    ([OURS, FOREIGN, COOKIE], 403),
    ([OURS, FOREIGN, COOKIE, TOKEN], 204),  # a foreign page can add this header only with permission by CORS
    ([OURS, FOREIGN, PASSWORD], 403),
    ([OURS, FOREIGN, COOKIE, PASSWORD], 403),
    ([OURS, PASSWORD], 204),  # no browser sends this, because it would name the origin
    ([OURS, COOKIE], 403),
    ([OURS, COOKIE, from_site("same-origin")], 204),
    ([OURS, COOKIE, from_site("same-site")], 403),
    ([OURS, COOKIE, from_site("cross-site")], 403),
    ([OURS, COOKIE, from_site("none")], 403),
    ([OURS, COOKIE, FOREIGN, from_site("same-origin")], 403),
    ([OURS, COOKIE, from_page("null")], 403),
    ([OURS, COOKIE, from_page("")], 403),
    ([OURS, COOKIE, from_page("https://chat.example")], 204),
    ([OURS, COOKIE, from_page("https://chat.example.evil.example")], 403),
    ([OURS, COOKIE, from_page("https://app.example")], 204),
    ([OURS, COOKIE, from_page("https://app.example"), from_site("cross-site")], 204),
    ([OURS, COOKIE, from_page("https://app.example"), FOREIGN], 403),
    # The scheme of a page behind a silent proxy is a guess of the server, and no guess of the browser.
    ([OURS, COOKIE, from_page("http://chat.example"), from_site("same-origin")], 204),
    ([OURS, COOKIE, from_page("http://chat.example"), from_site("same-site")], 403),
]


@pytest.mark.parametrize(("headers", "status"), CHANGES)
async def test_foreign_pages_change_nothing_with_cookies(headers: Headers, status: int) -> None:
    how = {**AWAY, "method": "DELETE", "headers": headers}
    response = await with_verifier(operator, how, allowed_origins=["https://app.example"])
    assert response == ((204, b"") if status == 204 else (403, "forbidden"))


async def test_star_origin_does_not_allow_cookies() -> None:
    for headers, status in (([OURS, FOREIGN], 204), ([OURS, FOREIGN, COOKIE], 403), ([OURS, FOREIGN, PASSWORD], 403)):
        how = {**AWAY, "method": "DELETE", "headers": headers}
        assert (await with_verifier(operator, how, allowed_origins=["*"]))[0] == status
    socket = {**SOCKET, "headers": [OURS, COOKIE]}  # which page it is of is unknown
    assert (await with_verifier(operator, socket, allowed_origins=["*"]))[0] == 403


async def test_reading_with_cookies_is_left_to_cors() -> None:
    assert (await with_verifier(operator, {**AWAY, "headers": [OURS, FOREIGN, COOKIE]}))[0] == 200


async def test_cookies_do_not_count_for_a_verifier_that_reads_none() -> None:
    class Verifier:
        reads_cookies = False

        async def __call__(self, scope: Any) -> Identity | None:
            return Identity(client_id="ada")

    assert (await with_verifier(Verifier(), {**AWAY, "method": "DELETE", "headers": [OURS, FOREIGN, COOKIE]}))[0] == 204


PLAIN_PAGE: Headers = [OURS, COOKIE, from_page("http://chat.example")]
SECURE_PAGE: Headers = [OURS, COOKIE, from_page("https://chat.example")]


@pytest.mark.parametrize(
    ("page", "scheme", "status"),
    [(PLAIN_PAGE, "http", 204), (PLAIN_PAGE, "https", 403), (SECURE_PAGE, "http", 204), (SECURE_PAGE, "https", 204)],
)
async def test_page_without_encryption_is_foreign_to_a_server_with_it(page: Headers, scheme: str, status: int) -> None:
    how = {**AWAY, "method": "DELETE", "headers": page}
    assert (await with_verifier(operator, {**how, "scheme": scheme}))[0] == status
    by_proxy = [*page, (b"x-forwarded-proto", scheme.encode())]  # a proxy that encrypts speaks plain HTTP to us
    assert (await with_verifier(operator, {**how, "headers": by_proxy}))[0] == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://chat.example", 204),
        ("http://chat.example", 403),  # the Host of the request, but not the configured scheme
        ("https://chat.example:8443", 403),
        ("https://evil.example", 403),
    ],
)
async def test_public_origin_replaces_the_host_of_the_request(origin: str, status: int) -> None:
    for host in (b"chat.example", b"127.0.0.1:8000"):
        how = {**AWAY, "method": "DELETE", "headers": [(b"host", host), COOKIE, from_page(origin)]}
        response = await with_verifier(operator, how, public_origin="https://chat.example")
        assert response[0] == status


async def test_text_of_credentials_has_no_secret(closed: Hub) -> None:
    scope = {"headers": [(b"authorization", b"Bearer secret"), (b"cookie", b"sid=secret")]}
    assert "secret" not in repr(access.Credentials(closed, scope, Identity(client_id="ann")))


async def test_expired_identity_is_401() -> None:
    async def over(scope: Any) -> Identity | None:
        return Identity(client_id="ada", expires_at_ms=1)

    for path in ("/v1/channels/c", "/v1/channels/c/poll"):
        assert await with_verifier(over, {**AWAY, "path": path}) == (401, "unauthenticated")
    shown = {**SOCKET, "headers": [*AWAY["headers"], (b"authorization", b"Bearer old")]}
    assert await with_verifier(over, shown) == (401, "unauthenticated")
    assert (await with_verifier(over, SOCKET))[0] == 101  # it may send a token


async def test_health_needs_no_identity_where_there_is_a_verifier() -> None:
    for path in ("/healthz", "/readyz", "/web/view.js"):
        assert (await with_verifier(nobody, {**AWAY, "path": path}))[0] == 200


async def test_every_response_is_marked_against_sniffing_and_embedding(closed: Hub) -> None:
    async def guards(path: str, **how: Any) -> list[bytes]:
        head, *_ = await exchange(closed, path, query=b"wait_s=0", leaves=True, **how)
        names = (b"x-content-type-options", b"cross-origin-resource-policy")
        return [value for name, value in head["headers"] if name in names]

    for path in (*PATHS, "/v1", "/web/client.js", "/web/nothing.js"):
        for how in ({}, {"client": ("192.0.2.1", 5)}, {"method": "OPTIONS"}, {"method": "DELETE"}):
            is_version = (path, how.get("method", "GET")) == ("/v1", "GET")  # the client's diagnosis asks without CORS
            policy = b"cross-origin" if is_version else b"same-origin"
            assert sorted(await guards(path, **how)) == sorted([b"nosniff", policy]), (path, how)


async def test_hub_does_not_serve_the_page_of_the_demo(closed: Hub) -> None:
    files = [path.relative_to(WEB).as_posix() for path in (WEB / "demo").rglob("*") if path.is_file()]
    assert "demo/index.html" in files
    for file in ("demo/", *files):
        assert (await ask(closed, f"/web/{file}"))[0] == 404
