"""Plain HTTP, route by route (docs/protocol.md, 8)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx2
import pytest

from tenuto.app import Hub
from tenuto.core.errors import StoreUnavailable
from tenuto.hub.access.identity import CAPABILITIES, Identity, Scope
from tenuto.stores.sqlite.store import SqliteStore
from tenuto.transports import http as http_module
from tenuto.transports.app import WEB
from tests.stores.files import run_on_thread
from tests.transports.asgi import ask
from tests.transports.conftest import asking, new_hub
from tests.virtual import virtual_clock, virtually

MESSAGES = "/v1/channels/chat:1/messages"
M1 = f"{MESSAGES}/m1"


async def create(http: httpx2.AsyncClient, **fields: Any) -> None:
    response = await http.post(MESSAGES, json={"id": "m1", **fields})
    assert response.status_code == 201, response.text


def refused(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["type"] == f"urn:tenuto:error:{problem['code']}"
    return response.status_code, problem["code"]


# Names and paths


UNKNOWN = ("/", "/v1/", "/v1/ws", "/v1/channels/", "/v2/channels", "/web/none.js", "/web/../app.py", "/web/..%2Fapp.py")


@pytest.mark.parametrize("path", [*UNKNOWN, "/v1/channels/c/messages/m/nothing", "/v1/channels/c/messages/m/events/"])
async def test_paths_that_do_not_exist_are_404(plain_http: httpx2.AsyncClient, path: str) -> None:
    for method in ["GET"] if path.startswith("/web/") else ["GET", "POST", "PUT", "DELETE", "OPTIONS"]:
        assert refused(await plain_http.request(method, path)) == (404, "not_found")
    assert ("a proxy must pass the headers Upgrade" in (await plain_http.get(path)).text) == (path == "/v1/ws")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/channels/c", "GET, DELETE, HEAD, OPTIONS"),
        ("GET", f"{M1}/append", "POST, OPTIONS"),
        ("HEAD", f"{M1}/append", "POST, OPTIONS"),
        ("POST", "/v1/channels/c/events", "GET, HEAD, OPTIONS"),
        ("BREW", "/v1/channels/c", "GET, DELETE, HEAD, OPTIONS"),
        ("POST", "/web/view.js", "GET, HEAD, OPTIONS"),
    ],
)
async def test_unsupported_methods_are_405(plain_http: httpx2.AsyncClient, method: str, path: str, allow: str) -> None:
    response = await plain_http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    assert response.headers["content-type"] == "application/problem+json"


async def test_head_has_the_headers_of_get(plain_http: httpx2.AsyncClient) -> None:
    await create(plain_http, text="x")
    for path in (M1, MESSAGES, "/v1/channels/c/poll?wait_s=60", "/healthz", "/web/view.js"):
        head, get = await plain_http.head(path), await plain_http.get(path)
        assert head.status_code == get.status_code == 200
        assert head.headers["content-type"] == get.headers["content-type"]
        assert head.headers["cache-control"] == get.headers["cache-control"]
    head = await plain_http.head("/v1/channels/c/events")
    assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


# The server itself


async def test_a_hub_whose_store_does_not_respond_is_not_ready(
    plain_http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(http_module, "READY_TIMEOUT_S", 0.01)
    for info in (AsyncMock(side_effect=StoreUnavailable("the disk is gone")), silent):
        monkeypatch.setattr(Hub, "info", info)
        assert refused(await plain_http.get("/readyz")) == (503, "store_unavailable")


async def test_a_hub_on_a_full_disk_is_not_ready_until_it_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.hub.committer.PROBE_S", 0)
    store = SqliteStore(tmp_path / "chat.db")
    hub = Hub(store, hooks_signals=False)
    async with asking(hub) as http:
        await create(http, text="kept")
        ((pages,),) = await run_on_thread(store, "PRAGMA page_count")
        await run_on_thread(store, f"PRAGMA max_page_count = {pages}")
        assert (await http.get("/readyz")).status_code == 200
        assert refused(await http.post(MESSAGES, json={"text": "x" * 50_000})) == (503, "store_unavailable")
        for _ in range(2):
            response = await http.get("/readyz")
            assert refused(response) == (503, "store_unavailable")
            assert "the disk is full; free some space" in response.json()["detail"]
        await run_on_thread(store, "PRAGMA max_page_count = 1000000")
        assert (await http.get("/readyz")).json() == {"status": "ready"}
        assert await store.notes("") == {}
        store.path.rename(tmp_path / "moved.db")
        for _ in ("removed", "replaced"):
            assert refused(await http.post(MESSAGES, json={"text": "lost"})) == (503, "store_unavailable")
            assert "was removed or replaced while it is open" in (await http.get("/readyz")).json()["detail"]
            store.path.touch()
        (tmp_path / "moved.db").rename(store.path)
        assert (await http.get("/readyz")).status_code == 200
    await hub.close()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("gzip, br", "gzip"), ("br;q=1, GZIP;q=0.5", "gzip"), ("*", "gzip"), ("gzip;q=0", None), ("br", None), ("", None)],
)
async def test_browser_files_are_compressed_for_clients_that_accept_it(
    plain_http: httpx2.AsyncClient, accepted: str, coding: str | None
) -> None:
    source = (WEB / "view.js").read_bytes()
    response = await plain_http.get("/web/view.js", headers={"accept-encoding": accepted})
    assert response.content == source  # the test's client decompresses it
    assert response.headers.get("content-encoding") == coding
    assert response.headers["vary"] == "Accept-Encoding"
    length = int(response.headers["content-length"])
    assert length < len(source) / 2 if coding else length == len(source)
    known = {"accept-encoding": accepted, "if-none-match": f'"other", W/{response.headers["etag"]}'}
    again = await plain_http.get("/web/view.js", headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", response.headers["etag"])
    assert again.headers["vary"] == "Accept-Encoding"
    assert (await plain_http.get("/web/view.js", headers={"if-none-match": "*"})).status_code == 304
    assert response.headers["cache-control"] == again.headers["cache-control"] == "no-cache"
    head = await plain_http.head("/web/view.js", headers={"accept-encoding": accepted})
    assert (head.content, head.headers["content-length"]) == (b"", str(length))


async def test_internal_error_carries_no_details(caplog: pytest.LogCaptureFixture) -> None:
    hub = new_hub()
    async with asking(hub) as http:
        hub.history = None  # type: ignore[method-assign, assignment]  # as good a mistake as any
        response = await http.get(MESSAGES)
        assert refused(response) == (500, "internal")
        assert "NoneType" not in response.text
        assert "an HTTP request failed" in caplog.text
        hub.attach = None  # type: ignore[method-assign, assignment]
        for path in ("/v1/channels/c/events", "/v1/channels/c/poll"):
            assert refused(await http.get(path)) == (500, "internal")
        hub.start = None  # type: ignore[method-assign, assignment]
        extensions: dict[str, Any] = {"websocket.http.response": {}}
        assert await ask(hub, "/v1/ws", kind="websocket", extensions=extensions) == (500, "internal")
        del hub.start
    await hub.close()


# CORS


@pytest.mark.parametrize("path", [MESSAGES, "/v1/channels/c/poll", "/v1/channels/c/messages/none/events", "/nothing"])
async def test_an_allowed_origin_may_read_every_response(path: str) -> None:
    hub = new_hub(allowed_origins=["https://app.example"])
    async with asking(hub) as http:
        response = await http.get(path, headers={"origin": "https://app.example"})
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["access-control-allow-credentials"] == "true"
        assert "Origin" in response.headers["vary"]
    await hub.close()


async def test_preflight_needs_no_identity() -> None:
    async def nobody(scope: object) -> None:
        raise AssertionError("a preflight carries no credentials")

    hub = new_hub(allowed_origins=["https://app.example"], authenticate=nobody)
    async with asking(hub, client="192.0.2.1") as http:
        headers = {
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, authorization",
        }
        for path in (MESSAGES, "/v1/channels/c/events"):
            response = await http.options(path, headers=headers)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == "https://app.example"
            assert "POST" in response.headers["access-control-allow-methods"]
    await hub.close()


# Presence and signals


@virtually
async def test_presence_lease_ends_with_the_identity() -> None:
    left_ms = 10_000

    async def authenticate(scope: Scope) -> Identity:
        return Identity(client_id="ada", expires_at_ms=hub.clock.now_ms() + left_ms)

    hub = new_hub(authenticate=authenticate, clock=virtual_clock())
    async with asking(hub) as http:

        async def enter() -> None:
            assert (await http.put("/v1/channels/c/presence/ada", json={"lease_s": 3600})).status_code == 204

        await enter()
        await asyncio.sleep(9)
        await enter()  # again, with a new token
        await asyncio.sleep(9)
        assert (await hub.members("c")).count == 1
        await asyncio.sleep(2)
        assert (await hub.members("c")).count == 0
        left_ms = 10**9
        await enter()
        await asyncio.sleep(3590)
        assert (await hub.members("c")).count == 1
        await asyncio.sleep(20)
        assert (await hub.members("c")).count == 0
    await hub.close()


# `GET /v1/channels` shows the channels on which the caller has `history` or `admin`.


async def test_list_shows_channels_with_history_or_admin_only() -> None:
    grants = {"chat:*": {"history"}, "log:1": {"admin"}, "secret:*": CAPABILITIES - {"history", "admin"}}

    async def authenticate(scope: object) -> Identity:
        return Identity(client_id="ada", grants={name: frozenset(one) for name, one in grants.items()})

    hub = Hub("memory://", hooks_signals=False, authenticate=authenticate)
    for name in ("chat:1", "log:1", "log:2", "secret:1"):
        await hub.create(name, text="x")
    async with asking(hub) as client:
        found = (await client.get("/v1/channels")).json()
        assert [one["channel"] for one in found["channels"]] == ["chat:1", "log:1"]
        assert (await client.get("/v1/channels?prefix=secret:")).json() == {"channels": [], "more": False}
        del grants["chat:*"]  # `admin` alone shows its channel
        assert [one["channel"] for one in (await client.get("/v1/channels")).json()["channels"]] == ["log:1"]
        del grants["log:1"]
        refused = await client.get("/v1/channels")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    await hub.close()
