"""Visitors on every transport: their ids, cookies and tokens, and that each has only its own channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from starlette.routing import Route

from tenuto import Hub, Identity, visitors
from tenuto.app import Visitors
from tenuto.core.errors import Forbidden, LocalError, Unauthenticated
from tenuto.core.visitor_ids import is_visitor, new_visitor_id
from tenuto.hub.access.rates import ClientLimits
from tenuto.hub.access.visitors import COOKIE, MAX_AGE_MS, RENEWED_MS
from tenuto.server.bounded_http import BoundedHttpProtocol
from tenuto.server.bounded_websocket import BoundedWebSocketProtocol
from tenuto.server.connections import Connections, TrustedProxies
from tests.interop.test_streams import STREAMS, install_adapters
from tests.transports.asgi import exchange
from tests.transports.conftest import asking, new_hub, serving
from tests.transports.permissions import OPERATIONS
from tests.transports.test_websocket import dialled
from tests.virtual import Watch

HERE = "http://chat.test"
KEY = "k" * 32
LIMITS = [("questions_per_minute", 0), ("questions_per_day", "100"), ("address_factor", 0.5), ("keep_days", 0)]


async def person(scope: Any) -> Identity | None:
    """Identify the caller with the token `ann`."""
    headers = dict(scope["headers"])
    grants = {"chat:*": frozenset({"subscribe", "history", "publish", "command"})}
    return Identity(client_id="ann", grants=grants) if headers.get(b"authorization") == b"Bearer ann" else None


def visiting(hub: Hub, *, cookie: str | None = None, base_url: str = HERE, **headers: str) -> httpx2.AsyncClient:
    """Return a browser whose page is at `base_url`, and which has `cookie`."""
    browser = asking(hub, base_url=base_url)
    browser.headers.update({"origin": base_url, **headers})
    if cookie is not None:
        browser.headers = httpx2.Headers({**browser.headers, "cookie": cookie}, encoding="latin-1")
    return browser


async def met(hub: Hub, **options: Any) -> tuple[str, str | None]:
    """Return the id that a browser gets from `POST /v1/visitor`, and the header with its new cookie."""
    async with visiting(hub, **options) as browser:
        response = await browser.post("/v1/visitor")
    assert response.status_code == 200
    visitor: str = response.json()["id"]
    assert is_visitor(visitor)
    return visitor, response.headers.get("set-cookie")


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    """A hub for visitors, whose clock can be advanced."""
    hub = new_hub(authenticate=visitors(), clock=Watch())
    yield hub
    await hub.close()


def guests_of(hub: Hub) -> Visitors:
    assert isinstance(hub.authenticate, Visitors)
    return hub.authenticate


def pair(header: str | None) -> str:
    """Return the cookie of a header `Set-Cookie`, as a browser sends it."""
    assert header is not None
    return header.partition(";")[0]


# Ids and cookies


async def test_browser_gets_an_id_and_keeps_it(hub: Hub) -> None:
    visitor, header = await met(hub)
    assert header is not None
    assert header.startswith(COOKIE)
    assert header.partition("=")[2].startswith(f"{visitor}.")
    assert header.endswith("; Max-Age=34560000; Path=/; HttpOnly; SameSite=Lax")
    assert len(header) < 200
    assert await met(hub, cookie=f"a=1; {pair(header)}; b=2") == (visitor, None)


async def test_cookie_is_renewed_and_ends(hub: Hub) -> None:
    assert isinstance(hub.clock, Watch)
    visitor, header = await met(hub)
    hub.clock.ahead_ms = RENEWED_MS
    again, renewed = await met(hub, cookie=pair(header))
    assert (again, renewed is None) == (visitor, False)
    hub.clock.ahead_ms = MAX_AGE_MS
    assert (await met(hub, cookie=pair(header)))[0] != visitor
    assert (await met(hub, cookie=pair(renewed)))[0] == visitor


async def test_cookie_that_proves_nothing_gives_a_new_id(hub: Hub) -> None:
    visitor, header = await met(hub)
    other, other_header = await met(hub)
    name, _, proof = pair(header).partition("=")
    stranger = new_hub(authenticate=visitors())
    _, foreign = await met(stranger)
    await stranger.close()
    for cookie in (
        f"{name}={proof[:-1]}",  # cut
        f"{name}={proof.replace(visitor, other)}",  # of another visitor
        f"{name}={guests_of(hub).token_of(visitor)}",  # a token, which a page could plant
        pair(foreign),  # of another hub
        f"{name}={pair(foreign).partition('=')[2]}",
        f"{name}={proof}{'x' * 4096}",  # 4 KB long
        f"{name}={'.' * 100}",
        f"{name}=",
        f"{name}={proof}é",
        f"{pair(header)}; {pair(other_header)}",  # set twice
        f"{pair(header)}; {pair(header)}",
        "",
    ):
        found, fresh = await met(hub, cookie=cookie)
        assert found not in (visitor, other)
        assert fresh is not None


async def test_hubs_of_one_host_keep_their_cookies_apart(hub: Hub) -> None:
    other = new_hub(authenticate=visitors())
    visitor, header = await met(hub)
    stranger, other_header = await met(other, cookie=pair(header))
    both = f"{pair(other_header)}; {pair(header)}"
    assert await met(hub, cookie=both) == (visitor, None)
    assert await met(other, cookie=both) == (stranger, None)
    app = FastAPI()

    @app.get("/")
    async def ids(one: str = Depends(guests_of(hub).of), two: str = Depends(guests_of(other).of)) -> list[str]:
        await hub.create(f"chat:{one}", author=one, text="a question")
        return [one, two]  # the same request

    async with asking(app) as browser:
        with pytest.raises(Forbidden):
            await browser.get("/", headers={"sec-fetch-site": "cross-site"})
        response = await browser.get("/")
    cookies = {one.split("=")[1].partition(".")[0] for one in response.headers.get_list("set-cookie")}
    assert (cookies, len(cookies)) == (set(response.json()), 2)
    with pytest.raises(LocalError, match="another hub"):
        Hub("memory://", authenticate=hub.authenticate)
    await other.close()


async def test_under_https_the_cookie_is_of_this_host_alone() -> None:
    for address, options in (("https://chat.test", {}), (HERE, {"public_origin": "https://chat.test"})):
        hub = new_hub(authenticate=visitors(), **options)
        async with visiting(hub, base_url=address) as browser:
            browser.headers["origin"] = "https://chat.test"
            response = await browser.post("/v1/visitor")
        assert response.headers["set-cookie"].startswith("__Host-tenuto_visitor_")
        assert response.headers["set-cookie"].endswith("; Secure")
        await hub.close()


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_cookie_is_secure_where_a_trusted_proxy_names_https(is_trusted: bool) -> None:
    book = Connections(max_open=100, proxies=TrustedProxies(["127.0.0.1"] if is_trusted else []))
    options: dict[str, Any] = {"http": partial(BoundedHttpProtocol, book), "ws": BoundedWebSocketProtocol}
    options["proxy_headers"] = False  # as `tenuto serve` sets it
    hub = new_hub(authenticate=visitors())
    headers = {"x-forwarded-proto": "https", "x-forwarded-for": "192.0.2.1"}
    async with serving(hub, **options) as served:
        response = await served.http.post("/v1/visitor", headers=headers)
        async with dialled(served, additional_headers=headers) as peer:
            assert peer.socket.response is not None
            for header in (response.headers["set-cookie"], peer.socket.response.headers["set-cookie"]):
                assert header.endswith("; Secure") is is_trusted


async def test_key_of_the_app_replaces_that_of_the_store_and_can_be_rotated() -> None:
    header: str | None = None
    visitor = ""
    for keys in ([KEY], ["n" * 32, KEY], ["n" * 32]):
        hub = new_hub(authenticate=visitors(key=keys))
        found, fresh = await met(hub, cookie=None if header is None else pair(header))
        if header is None:
            visitor, header = found, fresh
        else:
            assert (found == visitor) is (KEY in keys)
            assert fresh is not None  # signed with the newest key, so that the older one can go
            assert await met(hub, cookie=f"{pair(header)}; {pair(fresh)}") == (found, None)
        await hub.close()


@pytest.mark.parametrize(("name", "value"), [*LIMITS, ("key", "short"), ("verify", "person"), ("verify", visitors())])
def test_argument_that_cannot_work_is_refused(name: str, value: Any) -> None:
    with pytest.raises(LocalError):
        visitors(**{name: value})


async def test_closed_hub_is_not_opened_again_by_a_late_visitor(hub: Hub) -> None:
    await met(hub)
    await hub.close()
    async with visiting(hub) as browser:
        assert (await browser.post("/v1/visitor")).status_code == 503
    assert not hub.is_running


# Own channels


async def test_visitor_reaches_no_channel_of_another_visitor_on_any_operation() -> None:
    hub = new_hub(authenticate=visitors(), client_limits=ClientLimits(client_requests=10_000))
    guests = guests_of(hub)
    async with serving(hub) as served:
        mine, theirs = (new_visitor_id(bytes([number]) * 13) for number in (1, 2))
        await hub.create(f"chat:{theirs}", text="secret", id="m1")
        token = {"authorization": f"Bearer {guests.token_of(mine)}"}
        # one with messages, one without; names that begin alike; and persons' channels
        names = (f"chat:{theirs}", f"chat:{theirs}.x", f"chat:{mine}x", f"chat:{mine}:x", "chat:1")
        async with dialled(served, additional_headers=token) as peer:
            for operation in OPERATIONS:
                texts = set()
                for channel in names:
                    if operation.http is not None and "{channel}" in operation.http:
                        method, path = operation.http.format(channel=channel, id="m1").split(" ")
                        response = await served.http.request(method, path, json=operation.body, headers=token)
                        assert response.status_code == 403
                        texts.add(response.text.replace(channel, "…"))
                    if operation.frame is not None and operation.frame not in ("work", "turn.take"):
                        fields = operation.fields or operation.body or {}
                        fields = {"id": "m1", **fields, "channel": channel}
                        reply = await peer.ask(operation.frame, **fields)
                        if operation.frame not in ("detach", "turn.renew", "turn.done"):
                            assert (reply["type"], reply["code"]) == ("error", "forbidden")
                assert len(texts) <= 1  # whether the channel has messages or not
        assert [one.text for one in (await hub.history(f"chat:{theirs}")).messages] == ["secret"]
        assert (await served.http.get("/v1/channels", headers=token)).json()["channels"] == []


async def test_visitor_reaches_no_channel_of_another_visitor_through_an_adapter(hub: Hub) -> None:
    app = FastAPI()
    install_adapters(hub, app)
    theirs = new_visitor_id(bytes(13))
    await hub.create(f"chat:{theirs}", text="secret")
    async with visiting(app) as browser:  # type: ignore[arg-type]  # any ASGI app
        for method, path, body in (
            ("POST", "/api/chat", {**STREAMS[0][2], "id": theirs}),
            ("GET", f"/api/chat/{theirs}/stream", None),
            ("GET", f"/api/chat/{theirs}/messages", None),
            ("POST", f"/api/chat/{theirs}/stop", None),
            ("POST", "/api/agent", {**STREAMS[2][2], "threadId": theirs}),
        ):
            assert (await browser.request(method, path, json=body)).status_code == 403


async def test_visitor_uses_its_own_channels_and_lists_its_chats(hub: Hub) -> None:
    visitor, header = await met(hub)
    async with visiting(hub, cookie=pair(header)) as browser:
        for name in (visitor, f"{visitor}.k1"):
            response = await browser.post(f"/v1/channels/chat:{name}/messages", json={"text": f"What is {name}?"})
            assert response.status_code == 201
            assert response.json()["message"]["author"] == visitor
        await hub.create(f"chat:{visitor}.k2", role="assistant", text="no question")
        await hub.create(f"chat:{visitor}.k3", parts=[{"type": "file", "url": "https://a.example/b.png"}])
        long = "word " * 30
        await hub.create(f"chat:{visitor}.k3", text=long)
        about = (await browser.post("/v1/visitor")).json()
    assert about["channel"] == f"chat:{visitor}"
    assert "token" not in about
    assert [(one["channel"].removeprefix(f"chat:{visitor}"), one["title"]) for one in about["chats"]] == [
        (".k3", f"{long[:59]}…"),
        (".k2", ""),
        (".k1", f"What is {visitor}.k1?"),
        ("", f"What is {visitor}?"),
    ]


async def test_hub_without_visitors_names_the_setting() -> None:
    for authenticate in (None, person):
        hub = new_hub(authenticate=authenticate)
        async with asking(hub) as client:
            response = await client.post("/v1/visitor")
        assert (response.status_code, response.json()["code"]) == (404, "no_visitors")
        assert "Hub(authenticate=visitors())" in response.json()["detail"]
        await hub.close()


# Pages of another origin, and tokens


async def test_page_without_cookies_gets_a_token_only_for_a_new_visitor(hub: Hub) -> None:
    async with visiting(hub) as browser:
        about = (await browser.post("/v1/visitor?token=1")).json()
        again = (await browser.post("/v1/visitor?token=1")).json()  # with the cookie, which proves the id
    async with visiting(hub, authorization=f"Bearer {about['token']}") as browser:
        assert (await browser.post("/v1/visitor")).json()["id"] == about["id"]
    assert "token" not in again


async def test_foreign_page_becomes_no_visitor(hub: Hub) -> None:
    async with visiting(hub, origin="https://evil.test") as page:
        assert (await page.post("/v1/visitor")).status_code == 403
        assert (await page.post("/v1/channels/chat:x/messages", json={"text": "x"})).status_code == 403
    async with serving(hub) as served:
        with pytest.raises(Exception, match="403"):
            async with dialled(served, origin="https://evil.test"):
                pass


async def test_request_that_a_page_of_another_site_causes_replaces_no_cookie(hub: Hub) -> None:
    for dest, is_set in (("image", False), ("iframe", False), ("document", True)):
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-dest": dest}
        async with visiting(hub, **headers) as page:
            del page.headers["origin"]
            response = await page.get("/v1/channels/chat:1/messages")
        assert (response.status_code, "set-cookie" in response.headers) == (403, is_set)


async def test_bearer_token_that_proves_nothing_is_refused(hub: Hub) -> None:
    _, header = await met(hub)
    proof = pair(header).partition("=")[2]
    async with visiting(hub, cookie=pair(header)) as browser:
        for token in ("x", proof, "é" * 4000):
            response = await browser.post("/v1/visitor", headers={"authorization": f"Bearer {token}".encode()})
            assert (response.status_code, "set-cookie" in response.headers) == (401, False)
        # a password of the site is the proxy's
        assert (await browser.post("/v1/visitor", headers={"authorization": "Basic YTpi"})).status_code == 200


# Sockets


async def test_first_frame_of_a_socket_may_name_a_person() -> None:
    hub = new_hub(authenticate=visitors(person))
    async with serving(hub) as served:
        async with dialled(served) as peer:
            first, second = await peer.send("auth", token="ann"), await peer.send("attach", channel="chat:1")
            assert (await peer.reply(first))["you"]["id"] == "ann"
            assert (await peer.reply(second))["type"] == "ok"
            other = guests_of(hub).token_of(new_visitor_id(bytes(13)))
            assert (await peer.ask("auth", token=other))["code"] == "forbidden"
        async with dialled(served) as peer:
            assert (await peer.ask("auth", token="eve"))["code"] == "unauthenticated"
            assert (await peer.closed())[0] == 4201
        async with dialled(served) as peer:
            assert (await peer.ask("attach", channel="chat:1"))["code"] == "forbidden"
            assert (await peer.ask("auth", token="ann"))["code"] == "forbidden"  # the socket is a visitor's by now


async def test_person_with_the_id_of_a_visitor_is_refused() -> None:
    victim = new_visitor_id(bytes(13))

    async def verify(scope: Any) -> Identity | None:
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        return Identity(client_id=authorization.removeprefix(b"Bearer ").decode()) if authorization else None

    hub = new_hub(authenticate=visitors(verify))
    async with serving(hub) as served:
        refused = await served.http.post("/v1/visitor", headers={"authorization": f"Bearer {victim}"})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_name")
        assert "has the form of a visitor's id" in refused.json()["detail"]
        assert (await served.http.post("/v1/visitor", headers={"authorization": "Bearer v1"})).json()["id"] == "v1"
        async with dialled(served) as peer:
            assert (await peer.ask("auth", token=victim))["code"] == "invalid_name"


async def test_token_of_a_visitor_is_no_business_of_a_verifier_of_persons() -> None:
    async def strict(scope: Any) -> Identity | None:
        if b"authorization" in dict(scope["headers"]):
            raise Unauthenticated("no token of mine; send another one")
        raise HTTPException(401)  # as a dependency of the app's routes does

    hub = new_hub(authenticate=visitors(strict))
    async with serving(hub) as served:
        await hub.start()
        visitor = new_visitor_id(bytes(13))
        token = {"authorization": f"Bearer {guests_of(hub).token_of(visitor)}"}
        assert (await served.http.post("/v1/visitor", headers=token)).json()["id"] == visitor
        assert (await served.http.post("/v1/visitor", headers={"authorization": "Bearer x"})).status_code == 401
        assert (await served.http.post("/v1/visitor")).json()["channel"] is not None


# Routes of an app


def new_app(hub: Hub, guests: Visitors) -> FastAPI:
    app = FastAPI()

    @app.post("/id")
    async def id(visitor: str = Depends(guests.of)) -> dict[str, str]:
        return {"id": visitor}

    @app.post("/plain")
    async def plain(request: Request) -> Response:
        response = Response((await guests.of(request)) + (await guests.of(request)))
        await guests.of(request, response)
        return response

    @app.post("/ask")
    async def ask(visitor: str = Depends(guests.of), prompt: str | None = None, reply_id: str | None = None) -> Any:
        async def words() -> AsyncIterator[str]:
            yield "hello"

        return hub.stream_response(f"chat:{visitor}", words, prompt=prompt, reply_id=reply_id)

    @app.middleware("http")
    async def passing(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    return app


async def test_route_learns_the_visitor_and_sets_the_cookie(hub: Hub) -> None:
    async with serving(hub, new_app(hub, guests_of(hub))) as served:
        response = await served.http.post("/id")
        visitor = response.json()["id"]
        assert len(response.headers.get_list("set-cookie")) == 1
        assert (await served.http.post("/id", headers={"authorization": "Bearer x"})).status_code == 401
        origin = {"origin": f"http://127.0.0.1:{served.port}"}
        plain = await served.http.post("/plain", headers=origin)
        assert (plain.text, "set-cookie" in plain.headers) == (visitor * 2, False)
        served.http.cookies.clear()
        for path in ("/plain", "/ask?prompt=hi"):
            response = await served.http.post(path)
            assert response.status_code == 200
            assert len(response.headers.get_list("set-cookie")) == 1
            served.http.cookies.clear()
        accepted, *_ = await exchange(partial(hub.serve_socket, handle=lambda _: asyncio.sleep(0)), kind="websocket")
        assert [name for name, _ in accepted["headers"]] == [b"set-cookie"]
        channel = response.headers["tenuto-channel"]
        question, answer = (await hub.history(channel)).messages[::-1]
        assert (question.author, answer.text) == (channel.removeprefix("chat:"), "hello")


def asking_app(hub: Hub, guests: Visitors, *, streams: bool = False) -> FastAPI:
    """Return an app with a route that stores a question itself, and answers it by `stream_response` if it `streams`."""

    async def ask(request: Request) -> Response:
        channel = f"chat:{await guests.of(request)}"
        await hub.create(channel, text="why?", id=request.query_params.get("id"))
        if streams:
            return hub.stream_response(f"chat:{await guests.of(request)}", ["because"])
        return Response("stored")

    def ask_in_thread(request: Request) -> Response:
        return Response(hub.sync.create(request.query_params["channel"], text="why?", author="you").id)

    app = FastAPI()
    app.router.routes += [Route("/ask", ask, methods=["POST"]), Route("/thread", ask_in_thread)]
    hub.install(app, "/tenuto")
    return app


async def test_question_that_a_route_stores_counts_and_is_refused_with_429() -> None:
    guests = visitors(questions_per_minute=2)
    hub = new_hub(authenticate=guests)
    async with serving(hub, asking_app(hub, guests)) as served:
        visitor = (await served.http.post("/tenuto/v1/visitor")).json()["id"]
        served.http.headers["origin"] = f"http://127.0.0.1:{served.port}"
        assert [(await served.http.post(f"/ask?id=q{number}")).status_code for number in (1, 1, 2)] == [200] * 3
        for refused in (await served.http.post("/ask"), await served.http.get(f"/thread?channel=chat:{visitor}.2")):
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many")
            assert int(refused.headers["retry-after"]) >= refused.json()["retry_after_s"] == 30
        assert (await served.http.post("/ask?id=q1")).status_code == 200  # a repeat
        assert len((await hub.history(f"chat:{visitor}")).messages) == 2


async def test_question_of_a_route_and_its_answer_count_once() -> None:
    guests = visitors(questions_per_minute=3)
    hub = new_hub(authenticate=guests)
    app = asking_app(hub, guests, streams=True)

    @app.post("/blocking")
    def blocking(visitor: str = Depends(guests.of)) -> Any:
        hub.sync.create(f"chat:{visitor}", text="why?")
        return hub.stream_response(f"chat:{visitor}", ["because"])

    @app.post("/of-channel")
    def of_channel(channel: str) -> Any:
        hub.sync.create(channel, text="why?", author="you")
        return hub.stream_response(channel, ["because"])

    async with serving(hub, app) as served:
        await served.http.post("/tenuto/v1/visitor")
        served.http.headers["origin"] = f"http://127.0.0.1:{served.port}"
        paths = ("/ask", "/blocking", "/blocking", "/ask", "/blocking")
        statuses = [(await served.http.post(path)).status_code for path in paths]
        path = f"/of-channel?channel=chat:{new_visitor_id(bytes(13))}"
        by_channel = [(await served.http.post(path)).status_code for _ in range(4)]
    assert (statuses, by_channel) == ([200, 200, 200, 429, 429], [200, 200, 200, 429])


@pytest.mark.parametrize("path", ["/ask", "/blocking", "/access"])
async def test_page_of_another_site_stores_no_question_by_a_get_route(hub: Hub, path: str) -> None:
    guests, app = guests_of(hub), FastAPI()

    @app.get("/ask")
    async def ask(id: str, visitor: str = Depends(guests.of)) -> str:
        return (await hub.create(f"chat:{visitor}", text="why?", id=id)).id

    @app.get("/blocking")
    def blocking(id: str, visitor: str = Depends(guests.of)) -> str:
        return hub.sync.create(f"chat:{visitor}", text="why?", id=id).id

    @app.get("/access")
    async def by_access(request: Request, id: str) -> str:
        access = await hub.authorize(request.scope)
        return (await access.create(f"chat:{access.identity.client_id}", text="why?", id=id)).id

    hub.install(app, "/tenuto")
    async with serving(hub, app) as served:
        visitor = (await served.http.post("/tenuto/v1/visitor")).json()["id"]
        hub.allowed_origins = ["*"]  # which admits every page, but no cookies
        pages = ("sec-fetch-site: cross-site", "sec-purpose: prefetch", "origin: null", "sec-fetch-site: same-origin")
        for number, page in enumerate(pages):
            asked = await served.http.get(path, params={"id": f"q{number}"}, headers=[page.split(": ")])
            found = asked.json() if asked.is_success else asked.json()["code"]
            assert (asked.status_code, found) == ((200, "q3") if number == 3 else (403, "forbidden"))
        assert [one.id for one in (await hub.history(f"chat:{visitor}")).messages] == ["q3"]
        served.http.cookies.clear()
        assert (await served.http.get(path, params={"id": "q4"}, headers={"origin": "http://a.example"})).is_success


async def test_answer_in_a_channel_of_a_visitor_counts_for_it_without_a_word_of_the_app() -> None:
    guests = visitors(questions_per_minute=2)
    hub, app = new_hub(authenticate=guests), FastAPI()
    channel = f"chat:{new_visitor_id(bytes(13))}.2"

    @app.post("/ask")
    async def ask(by: str | None = None) -> Any:
        return hub.stream_response(channel, ["because"], prompt="why?", prompt_by=by)

    async with serving(hub, app) as served:
        statuses = [(await served.http.post(f"/ask{query}")).status_code for query in ("", "?by=you", "", "?by=you")]
    assert statuses == [200, 200, 429, 429]
