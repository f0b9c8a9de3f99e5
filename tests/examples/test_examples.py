"""The examples behave as documented, under test clients, middleware and prefixes, and under a real server.

Layer: tests.

`test_pages` tests their pages in a browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import runpy
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from proof.chaos.processes import free_port
from proof.wirecheck import SseViewer, WsViewer
from tenuto.core.model import Message
from tenuto.server.serving import listen
from tenuto.server.serving import server as uvicorn_server
from tests.examples.programs import FOLDER, NAMES, OPEN, app_of, client_of, follow, forget_django
from tests.processes import PATIENCE_S, Process, request

Load = Callable[[str], ModuleType]

NUMBERS = "".join(f"{count} " for count in range(1, 121))
# Without a whole address, Starlette's client uses the host `testserver` for sockets.
SOCKET = "ws://localhost/deep/down/tenuto/v1/ws"
ANSWER = "You asked: why?\n" + NUMBERS.removeprefix("1 ")


def has_answer(messages: list[Message]) -> bool:
    return any(message.role == "assistant" and message.status != "streaming" for message in messages)


def ask(client: TestClient, *, prefix: str = "") -> None:
    response = client.post(f"{prefix}/chats/1/questions", json={"text": "why?"})
    assert response.status_code == 201, response.text


@pytest.mark.parametrize("name", NAMES)
def test_an_example_serves_its_page_and_its_hub(program: Load, name: str) -> None:
    with client_of(app_of(program(name))) as client:
        assert client.get("/").text.startswith("<!doctype html>")
        assert client.get("/tenuto/readyz").json() == {"status": "ready"}
        assert "export function connect" in client.get("/tenuto/web/client.js").text


@pytest.mark.parametrize("name", OPEN)
def test_an_example_works_without_a_lifespan(program: Load, name: str) -> None:
    client = client_of(app_of(program(name)))
    assert client.get("/").text.startswith("<!doctype html>")
    assert client.get("/tenuto/readyz").json() == {"status": "ready"}
    assert client.get("/tenuto/v1/channels/chat:1").json()["serial"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_example_run_as_a_program_serves_its_app(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    served: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.append((app, options)))
    forget_django()
    found = runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert served == [(found.get("application", found.get("app")), {"port": 8000})]


class Stamp(BaseHTTPMiddleware):
    """Ordinary middleware that adds a header to every response."""

    async def dispatch(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "seen"
        return response


def test_an_answer_is_unchanged_by_ordinary_middleware(program: Load) -> None:
    app = CORSMiddleware(
        GZipMiddleware(Stamp(program("fastapi_app").app), minimum_size=1), allow_origins=["https://elsewhere.example"]
    )
    with client_of(app) as client:
        ask(client)
        assert follow(client, "chat:1", has_answer).messages()[1].text == ANSWER
        read = client.get("/tenuto/v1/channels/chat:1/messages")
        assert (read.headers["x-stamp"], read.headers["content-encoding"]) == ("seen", "gzip")


@pytest.mark.parametrize("kind", [SseViewer, WsViewer])
async def test_a_stream_flows_live_through_ordinary_middleware(program: Load, kind: type[SseViewer | WsViewer]) -> None:
    chat = program("fastapi_app")
    chat.app.add_middleware(Stamp)
    chat.app.add_middleware(GZipMiddleware, minimum_size=1)
    chat.app.add_middleware(CORSMiddleware, allow_origins=["https://elsewhere.example"])
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    running = uvicorn_server(chat.app)
    serving = asyncio.create_task(running.serve(sockets=[listening]))
    try:
        async with kind("127.0.0.1", port, "chat:1", prefix="/tenuto") as viewer:
            await viewer.until_attached(PATIENCE_S)
            response = await asyncio.to_thread(request, port, "POST", "/chats/1/questions", {"text": "why?"})
            assert response[0] == 201
            await viewer.until(lambda: answer_of(viewer) == len(ANSWER), PATIENCE_S)
            assert len([one for one in viewer.events if one.event["type"] == "message.append"]) > 1
            assert viewer.checker.violations == []
    finally:
        running.should_exit = True
        await serving


@pytest.mark.parametrize("name", OPEN)
def test_an_example_lives_under_a_root_path(program: Load, name: str) -> None:
    with client_of(app_of(program(name)), root_path="/deep/down") as client:
        assert client.get("/deep/down/").text.startswith("<!doctype html>")
        assert client.get("/deep/down/tenuto/readyz").json() == {"status": "ready"}
        assert client.get("/deep/down/tenuto/web/view.js").status_code == 200
        with client.websocket_connect(SOCKET, subprotocols=["tenuto.v1"]) as socket:
            socket.send_json({"type": "attach", "ref": 1, "channel": "empty:1"})
            reply = socket.receive_json()
            assert (reply["type"], reply["ref"]) == ("ok", 1)


def test_a_conversation_under_a_root_path(program: Load) -> None:
    with client_of(program("fastapi_app").app, root_path="/deep") as client:
        ask(client, prefix="/deep")
        assert follow(client, "chat:1", has_answer, prefix="/deep").messages()[1].text == ANSWER


def test_a_question_outlives_the_event_loop_that_stored_it(program: Load) -> None:
    client = client_of(program("fastapi_app").app)  # a new event loop for each request
    ask(client)
    ask(client)
    stored = client.get("/tenuto/v1/channels/chat:1/messages").json()["messages"]
    assert [message["parts"][0]["text"] for message in stored if message["role"] == "user"] == ["why?", "why?"]


def test_the_server_of_the_react_example_serves_its_page_s_origin_with_a_token(program: Load) -> None:
    server = program("react/server")
    page = {"origin": server.PAGE}
    with client_of(server.app) as client:
        issued = client.post("/token", params={"name": "ann"}, headers=page)
        assert issued.headers["access-control-allow-origin"] == server.PAGE
        assert client.post("/token", params={"name": "Not A Name"}, headers=page).status_code == 422
        messages = "/tenuto/v1/channels/chat:1/messages"
        assert client.get(messages, headers=page).status_code == 401
        read = client.get(messages, headers={**page, "authorization": f"Bearer {issued.text}"})
        assert (read.status_code, read.headers.get_list("access-control-allow-origin")) == (200, [server.PAGE])
        elsewhere = client.post("/token", params={"name": "ann"}, headers={"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in elsewhere.headers


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the FastAPI example under uvicorn, not started yet, and its port."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    arguments = ["-m", "uvicorn", "examples.fastapi_app:app", "--app-dir", str(FOLDER.parent), "--port", str(port)]
    process = Process(arguments, tmp_path / "server.log")
    yield process, port
    process.clean_up()


async def test_a_viewer_under_uvicorn_survives_refresh_and_restart(server: tuple[Process, int]) -> None:
    process, port = server
    process.start()
    await until_ready(process, port)
    assert request(port, "POST", "/chats/1/questions", {"text": "why?"})[0] == 201
    async with SseViewer("127.0.0.1", port, "chat:1", prefix="/tenuto") as viewer:
        await viewer.until(lambda: answer_of(viewer) > 40, PATIENCE_S)
        before = answer_of(viewer)

        # Refresh: a page without state gets all the text so far in one event.
        async with SseViewer("127.0.0.1", port, "chat:1", prefix="/tenuto") as refreshed:
            await refreshed.until_attached(PATIENCE_S)
            updates = [one.event for one in refreshed.events if one.event["type"] == "message.update"]
            assert len(updates[-1]["message"]["parts"][0]["text"]) >= before

            assert process.end(signal.SIGKILL) == -signal.SIGKILL
            assert [viewer.checker.violations, refreshed.checker.violations] == [[], []]

        process.start()
        await until_ready(process, port)
        await viewer.reconnect()
        await viewer.until_attached(PATIENCE_S)
        _, answer = request(port, "GET", "/tenuto/v1/channels/chat:1/messages")[1]["messages"][::-1]
        await viewer.until(lambda: viewer.checker.status(answer["id"]) == "interrupted", PATIENCE_S)
        assert viewer.checker.differences(answer) == []
        assert len(viewer.checker.text(answer["id"])) >= before
        assert ANSWER.startswith(viewer.checker.text(answer["id"]))

        # The server ends although a stream is open.
        assert process.end(signal.SIGTERM) in (0, -signal.SIGTERM)
        assert viewer.checker.violations == []


def answer_of(viewer: SseViewer | WsViewer) -> int:
    """Return the length of the shown answer."""
    shown = viewer.checker.messages.values()
    return max((len(one.text) for one in shown if one.fields["role"] == "assistant"), default=0)


async def until_ready(process: Process, port: int) -> None:
    """Wait until the server serves."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(OSError):
                if (await asyncio.to_thread(request, port, "GET", "/tenuto/readyz"))[0] == 200:
                    return
            assert process.running.poll() is None, process.output
            await asyncio.sleep(0.02)  # between two tries to connect to a process that is starting


def test_the_index_names_at_most_twelve_examples_and_shows_each() -> None:
    rows = re.findall(r"^\| \[`([\w/.]+)`\].*\| (.*) \|$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert len(rows) <= 12
    found = {path.name + "/" * path.is_dir() for path in FOLDER.glob("[a-z]*") if path.name != "pictures"}
    assert {name for name, _ in rows} == found
    for name, shown in rows:
        picture = f"pictures/{name.rstrip('/').removesuffix('.py')}.png"
        assert shown == "below" or (f"]({picture})" in shown and (FOLDER / picture).exists()), name
