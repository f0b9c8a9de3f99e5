"""The table of `docs/sign-in.md` about other apps is true, and its program guards endpoints and hub with one function.

Layer: tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from playwright.async_api import Browser, expect
from starlette.applications import Starlette
from starlette.exceptions import WebSocketException
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tenuto import Hub, allow_everyone
from tests.examples.programs import blocks, client_of, served_app
from tests.examples.test_pages import opened

PROGRAM = blocks("docs/sign-in.md")[0]
CHANNEL = "/tenuto/v1/channels/chat:ann:notes/messages"


class Guard:
    """An ASGI middleware that refuses every request and socket."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse("no", 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4000})


async def refuse(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return PlainTextResponse("no", 403)


async def refusing(connection: HTTPConnection) -> None:
    raise HTTPException(403) if connection.scope["type"] == "http" else WebSocketException(4000)


def with_dependencies(hub: Hub) -> Any:
    app = FastAPI(dependencies=[Depends(refusing)])
    hub.install(app, "/tenuto")
    return app


def with_middleware(kind: Any, **options: Any) -> Callable[[Hub], Any]:
    def make(hub: Hub) -> Any:
        app = FastAPI()
        app.add_middleware(kind, **options)
        hub.install(app, "/tenuto")
        return app

    return make


def inside_wrap(hub: Hub) -> Any:
    app = Starlette()
    app.add_middleware(Guard)
    return hub.wrap(app, "/tenuto")


@pytest.mark.parametrize(
    ("make", "covers_requests", "covers_sockets"),
    [
        (with_dependencies, False, False),
        (with_middleware(BaseHTTPMiddleware, dispatch=refuse), True, False),
        (with_middleware(Guard), True, True),
        (inside_wrap, False, False),
        (lambda hub: Guard(hub.wrap(Starlette(), "/tenuto")), True, True),
    ],
)
def test_the_parts_of_another_app_cover_the_hub_as_the_table_states(
    make: Callable[[Hub], Any], covers_requests: bool, covers_sockets: bool
) -> None:
    with client_of(make(Hub("memory://", authenticate=allow_everyone))) as client:
        assert (client.get(CHANNEL).status_code == 403) is covers_requests
        assert is_socket_refused(client) is covers_sockets


def is_socket_refused(client: TestClient) -> bool:
    try:
        with client.websocket_connect("ws://localhost/tenuto/v1/ws", subprotocols=["tenuto.v1"]):
            return False
    except WebSocketDisconnect:
        return True


def test_one_function_guards_the_endpoints_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {"__name__": "page"}
    exec(compile(PROGRAM, "sign-in.md", "exec"), program)
    program["app"].add_api_route("/mine", lambda: "mine")
    with client_of(program["app"]) as client:
        for path in ("/mine", CHANNEL):
            assert client.get(path).status_code == 401
        client.cookies.set("session", "secret-1")
        for path in ("/mine", CHANNEL):
            assert client.get(path).status_code == 200
        assert client.get(CHANNEL.replace("ann:", "bob:")).status_code == 403


async def test_each_user_of_the_page_has_a_chat_of_their_own_that_survives_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser
) -> None:
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {"__name__": "page"}
    exec(compile(PROGRAM, "sign-in.md", "exec"), program)
    async with served_app(program["app"]) as address, opened(browser, address) as ann, opened(browser, address) as bob:
        for page, session, question in ((ann, "secret-1", "Why?"), (bob, "secret-2", "How?")):
            await page.evaluate(f'document.cookie = "session={session}"')  # as the page says
            await page.reload()
            await page.fill("textarea", question)
            await page.press("textarea", "Enter")
            await expect(page.locator("article").last).to_contain_text(f"You asked: {question} This")
            await page.reload()
        for page, question in ((ann, "Why?"), (bob, "How?")):
            await expect(page.locator("article").last).to_contain_text(
                f"You asked: {question} This is a long answer. This"
            )
            await expect(page.locator("article")).to_have_count(2)
