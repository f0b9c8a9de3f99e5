"""`tenuto f5` tells pages that keep an answer from pages that lose it, and names what is wrong with other pages."""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tenuto.cli import f5
from tenuto.cli.main import main
from tenuto.core.errors import LocalError
from tests.browser.tab import chromium_path
from tests.examples.nodes import Node
from tests.examples.programs import served_app
from tests.processes import serving

ANN = f"Basic {b64encode(b'ann:pass word').decode()}"
ASKS, DEAF, LATE, LOG, WAITS = (
    Path(__file__).with_name(f"{name}.html").read_text() for name in ("asks", "deaf", "late", "log", "waits")
)
QUESTION = "What survives when the server is killed?"
LOST, KEPT = ["no", "no", "no"], ["yes", "yes", "yes"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f5, "OFFLINE_S", 1.0)
    monkeypatch.setattr(f5, "QUIET_S", 1.0)
    monkeypatch.setenv("TENUTO_CHROMIUM", chromium_path())


def chat(url: str, *, answer: str | None = None, patience_s: float = 30.0, **options: Any) -> f5.Chat:
    return f5.Chat(
        url,
        QUESTION,
        **{"field": None, "send": None, "cookies": (), **options},
        answer=answer,
        patience_s=patience_s,
        screenshots=Path("f5"),
    )


async def survey(page: f5.Chat) -> list[str]:
    """Return for each fault whether the answer went on, once all of them have two screenshots."""
    results = await f5.survey(page)
    assert len([*page.screenshots.glob("*.png")]) == 2 * len(f5.FAULTS)
    assert all(one.has_question for one in results)
    assert all(one.kept >= f5.KEPT for one in results if one.goes_on != "no")
    return [one.goes_on for one in results]


async def test_the_chat_of_a_new_app_survives(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["new", "my-chat"]).exit_code == 0
    server = Node(["uvicorn", "--app-dir", str(tmp_path / "my-chat"), "main:app"], tmp_path / "server.log")
    with server:
        await asyncio.to_thread(server.until, server.is_listening)
        assert await survey(chat(server.url)) == KEPT


async def test_the_demo_keeps_one_answer_and_loses_that_of_its_plain_stream(tmp_path: Path) -> None:
    with serving("demo", tmp_path) as demo:
        url = f"http://127.0.0.1:{demo.port}/"
        assert await survey(chat(url, answer="#chat")) == KEPT
        assert await survey(chat(url, answer="#plain-text", patience_s=8)) == LOST


async def page(request: Request) -> Response:
    name = request.path_params["name"]
    if name == "basic" and request.headers.get("authorization") != ANN:
        return Response("No", 401, {"www-authenticate": 'Basic realm="chat"'})
    bodies = {
        "basic": "<script>fetch('none').then(() => document.body.innerHTML = '<textarea></textarea>')</script>",
        "none": "<p>Welcome</p>",
        "login": "<form action=asked><input><input type=password><button>Sign in</button></form>",
        "asked": "<p>The question was sent as a name",
        "forbidden": "<p>No</p>",
        "silent": "<textarea></textarea>",
        "deaf": DEAF,
        "late": LATE,
        "log": LOG,
        "waits": WAITS,
        "anew": ASKS,
        "replay": ASKS,
        "framed": f"<p>Shop</p><iframe src=http://localhost:{request.url.port}/replay>",
        "sign-in": "<iframe src=login>",
        "cookie": "<textarea></textarea>" if request.cookies.get("id") == "ann" else "<input type=password>",
    }
    return HTMLResponse(bodies[name], 403 if name == "forbidden" else 200)


@pytest.fixture
async def pages() -> AsyncIterator[str]:
    asked_s = dict[str, float]()

    async def answer(request: Request) -> Response:
        now_s = time.monotonic()
        begin_s = (
            now_s if request.path_params["name"] == "anew" else asked_s.setdefault(request.query_params["chat"], now_s)
        )

        async def words() -> AsyncIterator[str]:
            for number in range(400):  # those of the past at once
                await asyncio.sleep(begin_s + number / 20 - time.monotonic())
                yield f"word{number} "

        return StreamingResponse(words(), media_type="text/plain")

    async def saved(request: Request) -> Response:
        return Response()

    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        async for _ in socket.iter_text():
            pass

    routes = [
        Route("/saved", saved, methods=["GET", "POST"]),
        Route("/{name}", page),
        Route("/{name}/answer", answer),
        WebSocketRoute("/socket", socket),
    ]
    async with served_app(Starlette(routes=routes)) as address:
        yield address


SILENT = "showed too little text that grows within 4 s after the question"
SIGN_IN = "asks for a sign-in; give its cookie as --cookie NAME=VALUE, or a login of HTTP as https://USER:PASSWORD@HOST"
SELECTORS = "--input, --send and --answer need selectors of CSS, such as '#question'"
NO_LOGIN = "cannot be tested: Page.goto: net::ERR_INVALID_AUTH_CREDENTIALS; give its cookie as .*, or a login of HTTP"


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("none", {}, "has no field for text; check the address, or give --input; .*problem.png shows the page"),
        ("login", {}, SIGN_IN),
        ("sign-in", {}, SIGN_IN),
        ("forbidden", {}, "has status 403; check the address; .*problem.png shows the page"),
        ("cookie", {"cookies": ("id=ann",)}, SILENT),
        ("basic", {}, NO_LOGIN),
        ("silent", {"field": "#none"}, "has no visible '#none'; check the address, or give --input"),
        ("silent", {"field": "##"}, f'css selector "##".*; {SELECTORS}'),
        ("silent", {"answer": "text=Why"}, f"'text=Why' is not a valid selector.; {SELECTORS}"),
        ("silent", {"send": "#none"}, SILENT),
        ("log", {}, SILENT),
    ],
)
async def test_a_page_without_an_answer_is_named(name: str, options: dict[str, Any], problem: str, pages: str) -> None:
    with pytest.raises(LocalError, match=problem):
        await f5.survey(chat(f"{pages}/{name}", patience_s=4, **options))


@pytest.mark.parametrize("question", ["", " ?"])
async def test_a_question_without_a_word_is_refused(question: str) -> None:
    with pytest.raises(LocalError, match=f"--question must have a word, got {re.escape(repr(question))}"):
        await f5.survey(chat("http://127.0.0.1:9")._replace(question=question))


@pytest.mark.parametrize(("login", "problem"), [("ann:pass%20word@", SILENT), ("ann:wrong@", SIGN_IN)])
async def test_a_login_of_http_is_given_in_the_address(login: str, problem: str, pages: str) -> None:
    url = f"{pages}/basic".replace("://", f"://{login}")
    with pytest.raises(LocalError, match=problem) as raised:
        await f5.survey(chat(url, patience_s=4))
    assert "ann" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "chromium", "problem"),
    [
        ("http://127.0.0.1:9", None, r"'http://127\.0\.0\.1:9' cannot be tested: .+; check the address"),
        ("http://127.0.0.1:9", "/none", "for a browser, run playwright install chromium"),
        ("http://127.0.0.1:8", None, "ERR_SOCKS_CONNECTION_FAILED; check the address, its server and --patience-s"),
        ("file:///page.html", "/none", "URL must be like http://127.0.0.1:8000, got 'file:///page.html'"),
        ("http://[::1", "/none", r"URL must be like http://127.0.0.1:8000, got 'http://\[::1'"),
    ],
)
async def test_a_missing_page_or_browser_is_named(
    url: str, chromium: str | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENUTO_CHROMIUM", chromium or chromium_path())
    with pytest.raises(LocalError, match=problem):
        await f5.survey(chat(url, patience_s=1))


@pytest.mark.parametrize(("name", "goes_on"), [("anew", ["asked again"] * 3), ("replay", KEPT)])
async def test_an_answer_that_is_replayed_survives_and_one_that_is_asked_again_does_not(
    name: str, goes_on: list[str], pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f5, "POLL_MS", 300)  # a busy machine lengthens each look by less than that
    assert await survey(chat(f"{pages}/{name}")) == goes_on


async def test_a_page_is_asked_again_and_a_gap_of_its_answer_is_found(
    pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f5, "READY_S", 1.0)
    results = await f5.survey(chat(f"{pages}/deaf"))
    assert [one.goes_on for one in results] == ["yes", "with a gap", "yes"]


@pytest.mark.parametrize(
    ("name", "send"),
    [
        ("framed", None),
        ("waits", None),  # it has sent the question, and shows a sign of that
        ("waits?socket", None),
        ("late", None),  # its button waits for keys, and for the end of its start
        ("late", "#send"),
    ],
)
async def test_a_page_is_asked_once_in_whatever_way_it_takes_the_question(
    name: str, send: str | None, pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f5, "READY_S", 1.0 if name != "framed" else f5.READY_S)
    monkeypatch.setattr(f5, "FAULTS", ("reload",))
    assert await survey(chat(f"{pages}/{name}", send=send)) == ["yes"]


async def test_text_that_grew_before_the_question_is_not_the_rest_of_an_answer(
    pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f5, "FAULTS", ("no network",))
    assert await survey(chat(f"{pages}/log?asks", patience_s=8)) == ["no"]


def test_an_answer_is_what_grows_in_place() -> None:
    growth = f5.Growth(["10:00 Started"])
    for lines in (
        ["Menu", "10:00 Started", "Copy"],
        ["Menu", "10:00 Started 10:01 Ready", "Copy", "The sky"],
        ["Menu", "10:00 Started 10:01 Ready", "Edit", "The sky is"],
        ["Menu", "10:00 Started 10:01 Ready", "The sky is blue"],
    ):
        growth.take(lines)
    assert (growth.lines, growth.times) == (["The sky is blue"], 2)
    assert f5._kept("The sky is blue", "The sky is red") == 11
