"""The app inside another app: mounted, under their middleware, with and without a lifespan, under test clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
from django.core.asgi import get_asgi_application
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from proof.wirecheck import SseViewer, WsViewer
from tenuto.app import Hub
from tenuto.core.errors import LocalError, StoreUnusable
from tenuto.hub.access.identity import CAPABILITIES
from tests.transports.conftest import Served, asking, new_hub, serving
from tests.transports.watching import write

LOCAL: dict[str, Any] = {"base_url": "http://localhost", "client": ("127.0.0.1", 1)}


class Looking(BaseHTTPMiddleware):
    """Middleware as most people write it: a task of its own around every request."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["x-looked"] = "yes"
        return response


@pytest.fixture
async def mounted() -> AsyncIterator[Served]:
    """A hub at /deep/tenuto of another app, which has middleware."""
    hub = new_hub()
    inner = Starlette(routes=[Mount("/tenuto", hub)])
    middleware = [Middleware(GZipMiddleware, minimum_size=1), Middleware(CORSMiddleware, allow_origins=["*"])]
    app = Starlette(routes=[Mount("/deep", inner)], middleware=[*middleware, *[Middleware(Looking)] * 2])
    async with serving(hub, app) as served:
        yield served


PREFIX = "/deep/tenuto"


async def test_requests_are_routed_below_the_mount(mounted: Served) -> None:
    messages = f"{PREFIX}/v1/channels/c/messages"
    assert (await mounted.http.post(messages, json={"id": "a+b", "text": "x"})).status_code == 201
    for path in (f"{messages}/a+b", f"{messages}/a%2Bb", f"{PREFIX}/v1/channels/c/poll", f"{PREFIX}/web/view.js"):
        assert (await mounted.http.get(path)).status_code == 200
    for path, code in ((f"{messages}/a%2Fb", "invalid_name"), (f"{PREFIX}/nothing", "not_found")):
        response = await mounted.http.get(path)
        assert (response.headers["content-type"], response.json()["code"]) == ("application/problem+json", code)


async def test_streams_and_sockets_work_below_the_mount_and_under_middleware(mounted: Served) -> None:
    async with (
        SseViewer(mounted.host, mounted.port, "c", prefix=PREFIX) as stream,
        WsViewer(mounted.host, mounted.port, "c", prefix=PREFIX) as socket,
    ):
        for viewer in (stream, socket):
            await viewer.until_attached()
        text = await write(mounted.hub, "c", [f"{number} " for number in range(100)])
        await stream.until(lambda: stream.checker.status("m1") == "complete")
        await socket.until(lambda: socket.checker.status("m1") == "complete")
        for viewer in (stream, socket):
            assert (viewer.checker.text("m1"), viewer.checker.violations) == (text, [])


# Mistakes of the app that mounts the hub


async def page(request: Request) -> Response:
    return Response("page")


@pytest.mark.parametrize(
    ("kind", "route"),
    [
        (Starlette, Mount("/", StaticFiles(directory="."))),
        (FastAPI, Mount("/", Starlette(routes=[Route("/{path:path}", page)]))),
        (FastAPI, Route("/{path:path}", page)),
        (Starlette, WebSocketRoute("/{path:path}", page)),
    ],
    ids=["static files", "mount", "route", "websocket route"],
)
async def test_install_puts_the_hub_before_a_route_that_would_hide_it(
    kind: type[Starlette], route: BaseRoute, caplog: pytest.LogCaptureFixture
) -> None:
    hub, app = new_hub(), kind()
    app.router.routes += [Route("/", page), Route("/tenuto/own", page), route]
    hub.install(app, "/tenuto/")
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"  # which Python prints without any configuration
    assert re.fullmatch(
        r"hub\.install put the hub at /tenuto before the route .+, which would have hidden it; call hub\.install "
        "before you add that route",
        warning.getMessage(),
    )
    async with serving(hub, app) as served:
        assert (await served.http.get("/tenuto/readyz")).status_code == 200
        async with WsViewer(served.host, served.port, "c", prefix="/tenuto") as socket:
            await socket.until_attached()
        assert (await served.http.get("/tenuto/own")).text == "page"  # routes that do not hide the hub stay before it


def test_install_and_wrap_refuse_other_apps_with_the_remedy() -> None:
    hub, anything = new_hub(), cast("Any", object())
    with pytest.raises(LocalError, match=r"hub.install takes a Starlette or FastAPI app.* hub.wrap\(app, path\)"):
        hub.install(get_asgi_application, "/tenuto")
    with pytest.raises(LocalError, match=r"hub\.wrap takes an ASGI app"):
        hub.wrap(anything, "/tenuto")
    with pytest.raises(LocalError, match=r"got the WSGI app .*get_asgi_application\(\) and an ASGI server"):
        hub.wrap(cast("Any", WSGIHandler.__new__(WSGIHandler)), "/tenuto")
    for path in ("tenuto", "", None):
        with pytest.raises(LocalError, match="path of the hub must begin with a slash"):
            hub.install(Starlette(), cast("Any", path))


# Lifespan


async def test_a_store_that_cannot_be_opened_stops_the_server_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, send = new_hub(), AsyncMock()
    monkeypatch.setattr(hub.store, "open", AsyncMock(side_effect=StoreUnusable("the file is not a Tenuto store")))
    await hub({"type": "lifespan"}, AsyncMock(return_value={"type": "lifespan.startup"}), send)
    send.assert_awaited_once_with({"type": "lifespan.startup.failed", "message": "the file is not a Tenuto store"})
    async with asking(hub) as http:
        for path in ("/readyz", "/v1/channels/c/poll", "/v1/channels/c/messages"):
            response = await http.get(path)
            assert (response.status_code, response.json()["code"]) == (500, "store_unusable")
        assert (await http.get("/healthz")).status_code == 200


async def test_thread_of_a_wrapped_app_uses_the_loop_of_a_server_without_a_lifespan() -> None:
    hub = new_hub()
    app = cast("Any", lambda *asgi: asyncio.to_thread(hub.sync.create, "c", text="from a view in a thread"))
    await hub.wrap(app, "/tenuto")({"type": "http", "path": "/"}, AsyncMock(), AsyncMock())
    assert hub.loop is asyncio.get_running_loop()
    await hub.close()


# Test clients: each makes an event loop of its own, or, without `with`, one for each request


def installed_app(hub: Hub) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"kept": True}

    app = FastAPI(lifespan=lifespan)
    hub.install(app, "/tenuto")
    return app


@pytest.mark.parametrize("make", [lambda hub: Starlette(routes=[Mount("/tenuto", hub)]), installed_app])
@pytest.mark.parametrize("with_lifespan", [True, False])
def test_test_clients_work_with_and_without_with(make: Callable[[Hub], Any], with_lifespan: bool) -> None:
    client = TestClient(make(new_hub()), **LOCAL)
    with ExitStack() as stack:
        if with_lifespan:
            stack.enter_context(client)
        messages = "/tenuto/v1/channels/c/messages"
        assert client.post(messages, json={"id": "m1", "text": "hello"}).status_code == 201
        assert client.get(f"{messages}/m1").json()["message"]["parts"] == [{"type": "text", "text": "hello"}]
        shown = ["channel.attached", "message.update"]
        assert [event["type"] for event in client.get("/tenuto/v1/channels/c/poll").json()["events"]] == shown
        with client.stream("GET", f"{messages}/m1/events") as stream:
            named = [line for line in stream.iter_lines() if line.startswith("event")]
        assert named == ["event: answer", "event: done"]
        # The client's base_url is not for sockets: without a host of its own it would say `testserver`.
        with client.websocket_connect("ws://localhost/tenuto/v1/ws", subprotocols=["tenuto.v1"]) as socket:
            assert socket.accepted_subprotocol == "tenuto.v1"
            socket.send_json({"type": "attach", "ref": 1, "channel": "c"})
            you = {"id": "anonymous", "can": sorted(CAPABILITIES)}
            assert socket.receive_json() == {"type": "ok", "ref": 1, "you": you}
            assert [event["type"] for event in socket.receive_json()["events"]] == shown
