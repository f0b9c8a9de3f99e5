"""The demo's application: asking twice is asking once, leaving stops nothing, and a restart loses nothing.

The hub, the store and the ASGI app are real; only the pace of the answer is given.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from holdfast.demo.agent import Sleep, script
from holdfast.demo.app import LONGEST_QUESTION, build

CHANNEL = "demo:test"
QUESTION = "What happens when I press F5?"
BASE = "http://localhost:8000"


class Pace:
    """A sleep that lets an answer say so many tokens at once, and then waits to be let on."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.is_waiting = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def sleep(self, delay_s: float) -> None:
        self.left -= 1
        if self.left < 0:
            self.is_waiting.set()
            await self.goes_on.wait()


async def at_once(delay_s: float) -> None:
    """As fast as it goes, with the event loop's other work in between."""
    await asyncio.sleep(0)


@asynccontextmanager
async def demo(store: str, sleep: Sleep = at_once) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a demo that serves."""
    app = build(store, sleep=sleep)
    transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 50_000))
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/demo.db"


async def ask(client: httpx2.AsyncClient, id: str = "q1", text: str = QUESTION) -> httpx2.Response:
    return await client.post("/ask", json={"id": id, "channel": CHANNEL, "text": text})


async def messages(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    """Oldest first."""
    page = await client.get(f"/holdfast/v1/channels/{CHANNEL}/messages")
    return list(reversed(page.json()["messages"]))


async def ended(client: httpx2.AsyncClient, message_id: str) -> dict[str, Any]:
    """The message, once it has ended; waited for as a viewer would, by long poll."""
    while True:
        found = (await client.get(f"/holdfast/v1/channels/{CHANNEL}/messages/{message_id}")).json()
        message: dict[str, Any] = found["message"]
        if message["status"] != "streaming":
            return message
        params = {"since": found["cursor"], "wait_s": 5}
        await client.get(f"/holdfast/v1/channels/{CHANNEL}/poll", params=params)


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message.get("parts", []))


def whole(message: dict[str, Any]) -> str:
    return "".join(step.text for step in script(message["meta"]["question"], message["meta"]["seed"]))


async def test_a_question_is_stored_and_answered() -> None:
    async with demo("memory://") as client:
        asked = await ask(client)
        assert asked.status_code == 200
        answer = await ended(client, asked.json()["id"])
        assert answer["status"] == "complete"
        assert answer["reply_to"] == "q1"
        assert text_of(answer) == whole(answer)
        question = (await messages(client))[0]
        assert (question["id"], question["role"], question["author"]) == ("q1", "user", "you")
        assert text_of(question) == QUESTION


async def test_asking_twice_is_asking_once() -> None:
    async with demo("memory://", Pace(10).sleep) as client:
        first, second = await asyncio.gather(ask(client), ask(client))
        third = await ask(client)
        assert first.json() == second.json() == third.json()
        assert [message["role"] for message in await messages(client)] == ["user", "assistant"]


async def test_an_answer_to_asking_means_that_the_answer_is_stored(store: str) -> None:
    async def ask_and_count(client: httpx2.AsyncClient) -> int:
        assert (await ask(client)).status_code == 200
        return len(await messages(client))

    async with demo(store, Pace(10).sleep) as client:
        assert await asyncio.gather(*(ask_and_count(client) for _ in range(5))) == [2] * 5


async def test_asking_again_after_the_end_changes_nothing() -> None:
    async with demo("memory://") as client:
        answer_id = (await ask(client)).json()["id"]
        before = await ended(client, answer_id)
        assert (await ask(client)).status_code == 200
        assert (await messages(client))[-1] == before


async def test_the_same_id_with_another_question_is_refused() -> None:
    async with demo("memory://", Pace(10).sleep) as client:
        await ask(client)
        other = await ask(client, text="Something else?")
        assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


async def test_a_stopped_answer_stays_as_it_was_and_the_next_one_comes() -> None:
    pace = Pace(60)
    async with demo("memory://", pace.sleep) as client:
        answer_id = (await ask(client)).json()["id"]
        await pace.is_waiting.wait()
        stop = {"channel": CHANNEL, "id": answer_id}
        assert (await client.post("/stop", json=stop)).status_code == 200
        pace.left = 10_000
        pace.goes_on.set()
        second = await ended(client, (await ask(client, "q2")).json()["id"])
        assert second["status"] == "complete"
        assert (await client.post("/stop", json=stop)).status_code == 200
        stopped = await ended(client, answer_id)
        assert stopped["status"] == "cancelled"
        assert 0 < len(text_of(stopped)) < 1_000
        assert whole(stopped).startswith(text_of(stopped))


@pytest.mark.parametrize("tokens", [1, 2, 40, 700])
async def test_after_a_restart_the_answer_goes_on_where_it_was(store: str, tokens: int) -> None:
    pace = Pace(tokens)
    async with demo(store, pace.sleep) as client:
        answer_id = (await ask(client)).json()["id"]
        await pace.is_waiting.wait()
    blocked = Pace(0)
    async with demo(store, blocked.sleep) as client:
        between = (await messages(client))[-1]
        assert between["status"] == "streaming"
        assert len(text_of(between)) >= tokens
        assert whole(between).startswith(text_of(between))
    async with demo(store) as client:
        answer = await ended(client, answer_id)
        assert answer["status"] == "complete"
        assert text_of(answer) == whole(answer)
        assert len(await messages(client)) == 2


async def test_a_question_whose_answer_was_never_begun_is_answered_when_it_is_asked_again(store: str) -> None:
    async with demo(store) as client:
        body = {"id": "q1", "role": "user", "text": QUESTION}
        created = await client.post(f"/holdfast/v1/channels/{CHANNEL}/messages?client=you", json=body)
        assert created.status_code == 201
    async with demo(store) as client:
        answer = await ended(client, (await ask(client)).json()["id"])
        assert text_of(answer) == whole(answer)
        assert len(await messages(client)) == 2


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"id": "q1", "channel": CHANNEL, "text": "  \n"}, 400, "invalid_request"),
        ({"id": "q1", "channel": CHANNEL}, 400, "invalid_request"),
        ({"id": "q1", "channel": CHANNEL, "text": 5}, 400, "invalid_request"),
        ({"id": "q 1", "channel": CHANNEL, "text": "a"}, 400, "invalid_name"),
        ({"id": "q1", "channel": "chat:1", "text": "a"}, 400, "invalid_name"),
        ({"id": "q1", "channel": "demo:a/b", "text": "a"}, 400, "invalid_name"),
        ({"id": "q1", "channel": CHANNEL, "text": "a" * (LONGEST_QUESTION + 1)}, 413, "too_large"),
        ({"id": "q1", "channel": CHANNEL, "text": "a" * 100_000}, 413, "too_large"),
    ],
)
async def test_a_bad_question_gets_a_clear_error(body: dict[str, Any], status: int, code: str) -> None:
    async with demo("memory://") as client:
        answer = await client.post("/ask", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert await messages(client) == []


async def test_the_longest_question_is_answered() -> None:
    async with demo("memory://", Pace(10).sleep) as client:
        assert (await ask(client, text="\x00" * LONGEST_QUESTION)).status_code == 200
        assert (await ask(client, "q2", text="🌊" * LONGEST_QUESTION)).status_code == 200


@pytest.mark.parametrize("path", ["/ask", "/stop", "/", "/demo/info"])
@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
async def test_other_pages_and_names_are_kept_out(path: str, headers: dict[str, str]) -> None:
    async with demo("memory://") as client:
        method = "POST" if path in ("/ask", "/stop") else "GET"
        body = b'{"id": "q1", "channel": "demo:test", "text": "a"}' if method == "POST" else None
        sent = headers | {"content-type": "application/json"}
        answer = await client.request(method, path, content=body, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (403, "no_verifier")


async def test_a_form_is_no_question() -> None:
    async with demo("memory://") as client:
        answer = await client.post("/ask", content=b"{}", headers={"content-type": "text/plain"})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_stopping_what_is_not_there_is_said() -> None:
    async with demo("memory://") as client:
        answer = await client.post("/stop", json={"channel": CHANNEL, "id": "nothing"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_page_says_how_to_kill_this_server() -> None:
    async with demo("memory://") as client:
        info = await client.get("/demo/info")
        assert info.json() == {"pid": os.getpid(), "kill": f"kill -9 {os.getpid()}"}


async def test_the_page_and_all_it_loads_are_served_and_nothing_else_is_allowed() -> None:
    async with demo("memory://") as client:
        page = await client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        for name in ("demo/demo.js", "demo/demo.css", "demo/icon.svg", "demo/asking.js", "client.js", "view.js"):
            assert (await client.get(f"/holdfast/web/{name}")).status_code == 200
            assert f"/holdfast/web/{name}" in page.text or name.endswith(("asking.js", "client.js", "view.js"))
