"""The demo's application: one answer to each message, leaving stops nothing, and a restart loses nothing.

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
import msgspec
import pytest

from holdfast import Hub
from holdfast.demo.agent import OTHER_TEXT, Settled, plan
from holdfast.demo.app import build
from holdfast.demo.guide import Sleep, continued

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

    def let_on(self) -> None:
        self.left = 100_000
        self.goes_on.set()


async def at_once(delay_s: float) -> None:
    """As fast as it goes, with the event loop's other work in between."""
    await asyncio.sleep(0)


class Demo:
    """A demo that serves, and somebody who talks to it."""

    def __init__(self, hub: Hub, http: httpx2.AsyncClient) -> None:
        self.hub = hub
        self.http = http

    async def ask(self, id: str = "q1", text: str = QUESTION) -> httpx2.Response:
        return await self.post("messages", {"id": id, "text": text, "meta": {"name": "Ada"}})

    async def post(self, path: str, body: object) -> httpx2.Response:
        return await self.http.post(f"/holdfast/v1/channels/{CHANNEL}/{path}", params={"client": "@ada"}, json=body)

    async def messages(self) -> list[dict[str, Any]]:
        """Oldest first."""
        page = await self.http.get(f"/holdfast/v1/channels/{CHANNEL}/messages")
        return list(reversed(page.json()["messages"]))

    async def answer(self, to: str = "q1", *, status: str = "") -> dict[str, Any]:
        """The answer to a message, once it has ended, or has `status`; waited for as a viewer would.

        After a restart it is `interrupted` for a moment, until the guide goes on.
        """
        async with asyncio.timeout(20):
            async for _ in self.hub.subscribe(CHANNEL):
                for message in await self.messages():
                    is_wanted = (
                        message["status"] == status if status else message["status"] not in ("streaming", "interrupted")
                    )
                    if message.get("reply_to") == to and is_wanted:
                        return message
        raise AssertionError

    async def asked(self, *, but_not: str = "") -> dict[str, Any]:
        """The approval that the guide waits for."""
        async with asyncio.timeout(20):
            async for _ in self.hub.subscribe(CHANNEL):
                page = await self.http.get(f"/holdfast/v1/channels/{CHANNEL}/poll", params={"history": 0})
                for command in page.json()["events"][0].get("commands", []):
                    if command["name"] == "approve" and command["id"] != but_not:
                        found: dict[str, Any] = command
                        return found
        raise AssertionError


@asynccontextmanager
async def demo(store: str, sleep: Sleep = at_once, **environ: str) -> AsyncIterator[Demo]:
    app = build(store, sleep=sleep, environ=environ)
    transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 50_000))
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
        yield Demo(app.state.hub, http)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/demo.db"


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message.get("parts", []))


def whole(message: dict[str, Any], question: str = QUESTION) -> str:
    return "".join(step.text for step in plan(question, msgspec.convert(message["meta"], Settled)))


async def test_a_message_is_answered_once() -> None:
    async with demo("memory://") as here:
        assert [(await here.ask()).status_code for _ in range(3)] == [201, 200, 200]
        answer = await here.answer()
        assert (answer["status"], answer["author"], answer["reply_to"]) == ("complete", "guide", "q1")
        assert text_of(answer) == whole(answer)
        assert [message["role"] for message in await here.messages()] == ["user", "assistant"]


async def test_people_are_answered_beside_each_other() -> None:
    async with demo("memory://", Pace(10).sleep) as here:
        await here.ask("q1")
        await here.ask("q2")
        for question in ("q1", "q2"):
            assert (await here.answer(question, status="streaming"))["status"] == "streaming"


async def test_a_stopped_answer_stays_as_it_was_and_the_next_one_comes() -> None:
    pace = Pace(60)
    async with demo("memory://", pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
        assert (await here.post("commands", {"name": "cancel", "target": "q1"})).status_code == 201
        stopped = await here.answer()
        assert stopped["status"] == "cancelled"
        assert 0 < len(text_of(stopped)) < 1_000
        assert whole(stopped).startswith(text_of(stopped))
        pace.let_on()
        await here.ask("q2")
        assert (await here.answer("q2"))["status"] == "complete"


async def test_an_answer_takes_up_what_people_say_to_it() -> None:
    pace = Pace(60)
    async with demo("memory://", pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
        body = {"name": "steer", "target": "q1", "data": {"text": "a bit\nshorter", "name": "Ada"}}
        assert (await here.post("commands", body)).status_code == 201
        pace.let_on()
        answer = await here.answer()
        assert "\n\nAda says: a bit shorter\n\nThat was all from me." in text_of(answer)
        assert text_of(answer) == whole(answer)
        assert len(text_of(answer)) < 1_000


def test_who_was_gone_is_who_wrote_last() -> None:
    once = continued({}, 60, "diver", "guide")
    assert once == {"continued": [{"at": 60, "by": "diver", "successor": "guide"}]}
    twice = continued(once, 90, "diver", "other")["continued"]
    assert twice == [*once["continued"], {"at": 90, "by": "guide", "successor": "other"}]


@pytest.mark.parametrize("tokens", [1, 2, 40, 700])
async def test_after_a_restart_the_answer_goes_on_where_it_was(store: str, tokens: int) -> None:
    pace = Pace(tokens)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
    blocked = Pace(0)
    async with demo(store, blocked.sleep) as here:
        await blocked.is_waiting.wait()
        between = await here.answer(status="streaming")
        assert len(text_of(between)) >= tokens - 1  # the first waits for the second
        assert whole(between).startswith(text_of(between))
    async with demo(store) as here:
        answer = await here.answer()
        assert answer["status"] == "complete"
        assert text_of(answer) == whole(answer)
        breaks = answer["meta"]["continued"]
        assert [one["at"] for one in breaks] == [len(text_of(between))] * 2
        assert [(one["by"], one["successor"]) for one in breaks] == [("guide", "guide")] * 2
        assert len(await here.messages()) == 2


async def test_what_people_said_to_an_answer_survives_a_restart(store: str) -> None:
    pace = Pace(60)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
        await here.post("commands", {"name": "steer", "target": "q1", "data": {"text": "And a cursor?"}})
        pace.left = 20
        pace.is_waiting.clear()
        pace.goes_on.set()
        pace.goes_on = asyncio.Event()
        await pace.is_waiting.wait()
    async with demo(store) as here:
        answer = await here.answer()
        assert "\n\n@ada says: And a cursor?\n\n" in text_of(answer)
        assert text_of(answer) == whole(answer)


async def test_an_answer_to_a_text_that_changed_meanwhile_says_so(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(60)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
    monkeypatch.setattr("holdfast.demo.guide.is_as_begun", lambda question, settled: False)
    async with demo(store) as here:
        assert text_of(await here.answer()).endswith(OTHER_TEXT)


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_nothing_is_deleted_before_somebody_agrees(is_allowed: bool) -> None:
    async with demo("memory://") as here:
        await here.ask()
        await here.answer()
        await here.ask("q2", "Delete what was said")
        asked = await here.asked()
        assert asked["data"] == {"question": "Delete the 2 messages above?"}
        assert len(await here.messages()) == 4
        reply = {"ok": is_allowed, "data": {"name": "Bob"}}
        assert (await here.post(f"commands/{asked['id']}/reply", reply)).status_code == 200
        answer = await here.answer("q2")
        assert (f"Bob said {'yes' if is_allowed else 'no'}") in text_of(answer)
        assert len(await here.messages()) == (2 if is_allowed else 4)
        assert (await here.post(f"commands/{asked['id']}/reply", reply)).json()["code"] == "already_answered"


async def test_where_nothing_was_said_nobody_is_asked() -> None:
    async with demo("memory://") as here:
        await here.ask(text="Delete what was said")
        assert text_of(await here.answer()).endswith("Nothing was there.")


async def test_what_was_asked_before_a_restart_is_asked_again(store: str) -> None:
    async with demo(store) as here:
        await here.ask()
        await here.answer()
        await here.ask("q2", "Delete what was said")
        first = await here.asked()
    async with demo(store) as here:
        second = await here.asked(but_not=first["id"])
        await here.post(f"commands/{second['id']}/reply", {"ok": True})
        assert "@ada said yes. 2 messages deleted" in text_of(await here.answer("q2"))
        assert len(await here.messages()) == 2


async def test_a_long_message_is_answered_and_its_length_costs_nothing() -> None:
    async with demo("memory://") as here:
        await here.ask(text="🌊" * 100_000)
        assert (await here.answer())["status"] == "complete"


@pytest.mark.parametrize("path", ["/demo/diver", "/", "/demo/info"])
@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
async def test_other_pages_and_names_are_kept_out(path: str, headers: dict[str, str]) -> None:
    async with demo("memory://") as here:
        method = "POST" if path == "/demo/diver" else "GET"
        body = b'{"channel": "demo:test"}' if method == "POST" else None
        sent = headers | {"content-type": "application/json"}
        answer = await here.http.request(method, path, content=body, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (403, "no_verifier")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"channel": "chat:1"}, 400, "invalid_name"),
        ({"channel": "demo:a/b"}, 400, "invalid_name"),
        ({"channel": "demo:" + "a" * 2_000}, 413, "too_large"),
    ],
)
async def test_divers_go_to_the_demo_s_channels_only(body: dict[str, str], status: int, code: str) -> None:
    async with demo("memory://") as here:
        answer = await here.http.post("/demo/diver", json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_a_form_calls_no_diver() -> None:
    async with demo("memory://") as here:
        answer = await here.http.post("/demo/diver", content=b"{}", headers={"content-type": "text/plain"})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_the_page_says_how_to_kill_this_server_and_who_answers() -> None:
    async with demo("memory://") as here:
        info = await here.http.get("/demo/info")
        assert info.json() == {"pid": os.getpid(), "kill": f"kill -9 {os.getpid()}", "model": None}


async def test_the_page_and_all_it_loads_are_served_and_nothing_else_is_allowed() -> None:
    async with demo("memory://") as here:
        page = await here.http.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        for name in ("demo/demo.js", "demo/demo.css", "demo/icon.svg"):
            assert f"/holdfast/web/{name}" in page.text
            assert (await here.http.get(f"/holdfast/web/{name}")).status_code == 200
        for name in ("demo/asking.js", "demo/people.js", "demo/approvals.js", "demo/me.js", "client.js", "view.js"):
            assert (await here.http.get(f"/holdfast/web/{name}")).status_code == 200
