"""The demo's application: one answer to each message, which neither a lost viewer nor a restart cuts short.

Layer: tests.

The hub, the store and the ASGI app are real; only the test controls the pace of the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.applications import Starlette

from tenuto import Hub
from tenuto.demo.app import Controls, build, qr_rows
from tenuto.demo.guests import Guests
from tenuto.demo.guide import AGENTS, OTHER_TEXT, Guide, Settled, Sleep, whole

WEB = Path(__file__).parents[2] / "tenuto" / "web"

CHANNEL = "demo:test"
QUESTION = "What happens when I press F5?"
BASE = "http://localhost:8000"
KEY = "a key of the demo, of at least thirty-two bytes"


class Pace:
    """A sleep that passes a number of tokens at once, and then blocks until the test resumes it."""

    def __init__(self, tokens: int) -> None:
        self.left = tokens
        self.is_waiting = asyncio.Event()
        self.is_resumed = asyncio.Event()

    async def sleep(self, delay_s: float) -> None:
        self.left -= 1
        if self.left < 0:
            self.is_waiting.set()
            await self.is_resumed.wait()

    def resume(self) -> None:
        self.left = 100_000
        self.is_resumed.set()


async def at_once(delay_s: float) -> None:
    """Do not delay; only give way to other tasks of the event loop."""
    await asyncio.sleep(0)


class Demo:
    """A demo that serves, and an HTTP client that sends messages to it."""

    def __init__(self, hub: Hub, http: httpx2.AsyncClient) -> None:
        self.hub = hub
        self.http = http

    async def ask(self, id: str = "q1", text: str = QUESTION) -> httpx2.Response:
        return await self.post("messages", {"id": id, "text": text, "meta": {"name": "Ada"}})

    async def post(self, path: str, body: object) -> httpx2.Response:
        return await self.http.post(f"/tenuto/v1/channels/{CHANNEL}/{path}", params={"client": "@ada"}, json=body)

    async def messages(self) -> list[dict[str, Any]]:
        """Return the messages, oldest first."""
        page = await self.http.get(f"/tenuto/v1/channels/{CHANNEL}/messages")
        return list(reversed(page.json()["messages"]))

    async def answer(self, to: str = "q1", *, status: str = "") -> dict[str, Any]:
        """Wait like a viewer for the answer to a message, until it has ended or has `status`, and return it.

        After a restart it is `interrupted` for a moment, until the guide continues it.
        """
        wanted = [status] if status else ["complete", "cancelled", "failed"]
        async with asyncio.timeout(60):
            async for _ in self.hub.subscribe(CHANNEL):
                for message in await self.messages():
                    if message.get("reply_to") == to and message["status"] in wanted:
                        return message
        raise AssertionError

    async def approval(self) -> dict[str, Any]:
        """Return the command `approve` that waits for a reply."""
        async with asyncio.timeout(60):
            async for _ in self.hub.subscribe(CHANNEL):
                page = await self.http.get(f"/tenuto/v1/channels/{CHANNEL}/poll", params={"history": 0})
                for command in page.json()["events"][0].get("commands", []):
                    if command["name"] == "approve":
                        return dict(command)
        raise AssertionError


@asynccontextmanager
async def demo(
    store: str,
    sleep: Sleep = at_once,
    *,
    controls: Controls | None = None,
    guests: Guests | None = None,
    **environ: str,
) -> AsyncIterator[Demo]:
    async with served(build(store, sleep=sleep, environ=environ, controls=controls, guests=guests)) as here:
        yield here


@asynccontextmanager
async def served(app: Starlette) -> AsyncIterator[Demo]:
    transport = httpx2.ASGITransport(app=app, client=("127.0.0.1", 50_000))
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
        yield Demo(app.state.hub, http)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/demo.db"


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message.get("parts", []))


def planned(message: dict[str, Any], question: str = QUESTION) -> str:
    return whole(question, msgspec.convert(message["meta"], Settled))


@pytest.mark.parametrize("tokens", [2, 40])
async def test_an_answer_continues_at_its_offset_after_a_restart(store: str, tokens: int) -> None:
    pace = Pace(tokens)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
    blocked = Pace(0)
    async with demo(store, blocked.sleep) as here:
        await blocked.is_waiting.wait()
        between = await here.answer(status="streaming")
        # the text of the last token may be missing
        assert len(text_of(between)) >= tokens - 2
        assert planned(between).startswith(text_of(between))
    async with demo(store) as here:
        answer = await here.answer()
        assert answer["status"] == "complete"
        assert text_of(answer) == planned(answer)
        breaks = answer["meta"]["continued"]
        assert [one["at"] for one in breaks] == [len(text_of(between))] * 2
        assert [(one["by"], one["successor"]) for one in breaks] == [("guide", "guide")] * 2
        assert len(await here.messages()) == 2


async def test_steering_survives_a_restart(store: str) -> None:
    pace = Pace(60)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
        await here.post("commands", {"name": "steer", "target": "q1", "data": {"text": "And a cursor?"}})
        pace.left = 20
        pace.is_waiting.clear()
        pace.is_resumed.set()
        pace.is_resumed = asyncio.Event()
        await pace.is_waiting.wait()
    async with demo(store) as here:
        answer = await here.answer()
        assert "\n\n@ada says: And a cursor?\n\n# A cursor says" in text_of(answer)
        assert text_of(answer).count("@ada says: And a cursor?") == 1
        assert text_of(answer) == planned(answer)


async def test_an_answer_stops_when_its_text_changed_in_between(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(60)
    async with demo(store, pace.sleep) as here:
        await here.ask()
        await pace.is_waiting.wait()
    monkeypatch.setattr("tenuto.demo.guide.whole", lambda question, settled: "Another text.")
    async with demo(store) as here:
        assert text_of(await here.answer()).endswith(OTHER_TEXT)


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_messages_are_deleted_only_after_a_person_agrees(is_allowed: bool) -> None:
    async with demo("memory://") as here:
        await here.ask()
        await here.answer()
        await here.ask("q2", "Delete the messages")
        approval = await here.approval()
        assert approval["data"] == {"question": "Delete the 2 messages above?"}
        assert len(await here.messages()) == 4
        reply = {"ok": is_allowed, "data": {"name": "Bob"}}
        assert (await here.post(f"commands/{approval['id']}/reply", reply)).status_code == 200
        answer = await here.answer("q2")
        assert (f"Bob said {'yes' if is_allowed else 'no'}") in text_of(answer)
        assert len(await here.messages()) == (2 if is_allowed else 4)
        assert (await here.post(f"commands/{approval['id']}/reply", reply)).json()["code"] == "already_answered"


PATHS = [
    ("GET", "/", None),
    ("GET", "/demo/info", None),
    ("GET", f"/demo/plain?channel={CHANNEL}&question=q1", None),
    ("POST", "/demo/kill", {}),
    ("POST", "/demo/crash", {"channel": CHANNEL, "question": "q1"}),
    ("POST", "/demo/invites", {"channel": CHANNEL}),
    ("POST", "/demo/join", {"secret": "x"}),
]


class Switches:
    """The controls of a supervisor that only notes its calls."""

    def __init__(self) -> None:
        self.killed, self.crashed = list[None](), list[str]()
        self.controls = Controls(kill=lambda: self.killed.append(None), crash=self.crashed.append)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}])
async def test_foreign_origins_and_hosts_are_refused(headers: dict[str, str]) -> None:
    for guests, paths in ((None, PATHS[:-2]), (Guests(BASE, key=KEY), PATHS[-2:])):
        switches = Switches()
        async with demo("memory://", controls=switches.controls, guests=guests) as here:
            for method, path, body in paths:
                response = await here.http.request(method, path, json=body, headers=headers)
                assert response.status_code in (401, 403), path
        assert (switches.killed, switches.crashed) == ([], [])


async def test_a_demo_without_a_supervisor_or_a_network_has_no_routes_for_them() -> None:
    async with demo("memory://") as here:
        for method, path, body in PATHS[3:]:
            assert (await here.http.request(method, path, json=body)).status_code == 404


async def test_a_crash_needs_a_question() -> None:
    switches = Switches()
    async with demo("memory://", controls=switches.controls) as here:
        for body, status, code in (
            (b"{}", 400, "invalid_name"),
            (b'{"channel": 1, "question": "q"}', 400, "invalid_request"),
            (b'{"channel": "chat:1", "question": "q"}', 400, "invalid_name"),
            (b'{"channel": "demo:a/b", "question": "q"}', 400, "invalid_name"),
            (b'{"channel": "demo:' + b"a" * 2_000 + b'"}', 413, "too_large"),
            (b'{"channel": "demo:test", "question": "gone"}', 404, "not_found"),
        ):
            response = await here.http.post("/demo/crash", content=body, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["code"]) == (status, code), body
    assert switches.crashed == []


async def test_a_crash_kills_the_agent_of_the_question_or_else_an_idle_one() -> None:
    switches = Switches()
    pace = Pace(40)
    app = build("memory://", environ={}, controls=switches.controls)
    hub: Hub = app.state.hub
    hub.agent("demo:*", name="guide~2", on_crash="continue")(Guide(hub, None, pace.sleep).answer)
    async with served(app) as here:
        await here.ask("q1")
        await pace.is_waiting.wait()
        body = {"channel": CHANNEL, "question": "q1"}
        assert (await here.http.post("/demo/crash", json=body)).json() == {"agent": "guide~2"}
        pace.resume()
        await here.answer("q1")
        assert (await here.http.post("/demo/crash", json=body)).json()["agent"] in AGENTS  # the answer has ended
        assert await plain_of(here) == ("", False)  # a stream that began after the crash ends without the last event
    assert switches.crashed[0] == "guide~2"


async def test_a_question_that_comes_before_the_agents_is_answered() -> None:
    async with demo("memory://", controls=Switches().controls) as here:
        await here.ask()
        here.hub.agent("demo:*", name=AGENTS[0])(Guide(here.hub, None, at_once).answer)
        assert (await here.answer())["status"] == "complete"


# The plain endpoint ----------------------------------------------------------------------------------------------


async def plain_of(here: Demo, question: str = "q1", **more: str) -> tuple[str, bool]:
    """Return the text of a plain stream, and whether it has its last event."""
    response = await here.http.get("/demo/plain", params={"channel": CHANNEL, "question": question, **more})
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    events = [event.removeprefix("data: ") for event in response.text.split("\n\n") if event]
    texts = [json.loads(event) for event in events if event != "[DONE]"]
    text = "".join(texts).encode("utf-16", "surrogatepass").decode("utf-16")  # as JavaScript joins it
    return text, events[-1:] == ["[DONE]"]


async def test_the_plain_stream_has_the_tokens_of_the_answer_from_before_its_first_word() -> None:
    pace = Pace(0)
    async with demo("memory://", pace.sleep) as here:
        await here.ask()
        plain = asyncio.ensure_future(plain_of(here))
        await pace.is_waiting.wait()
        pace.resume()
        text, is_whole = await plain
        assert is_whole
        assert text == text_of(await here.answer())
        assert len(await here.messages()) == 2  # the request has stored no message


async def test_asking_again_sends_the_written_answer_from_its_beginning() -> None:
    async with demo("memory://") as here:
        await here.ask()
        answer = await here.answer()
        assert await plain_of(here, again="1") == (text_of(answer), True)


async def test_the_number_of_plain_streams_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenuto.demo.app.MOST_PLAIN", 0)
    async with demo("memory://") as here:
        await here.ask()
        response = await here.http.get("/demo/plain", params={"channel": CHANNEL, "question": "q1"})
        assert (response.status_code, response.json()["code"]) == (429, "too_many")


# Guests ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def lan() -> AsyncIterator[tuple[Demo, Guests]]:
    """A demo that other machines reach."""
    guests = Guests(BASE, key=KEY)
    async with demo("memory://", guests=guests, controls=Switches().controls) as here:
        yield here, guests


def secret_in(url: str) -> str:
    return url.partition("#join=")[2]


async def test_a_stranger_gets_the_page_and_no_chat() -> None:
    async with lan() as (here, _):
        assert (await here.http.get("/")).status_code == 200
        info = (await here.http.get("/demo/info")).json()
        assert (info["lan"], info["person"]) == (True, None)
        for method, path, body in PATHS[2:-1]:
            response = await here.http.request(method, path, json=body)
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated"), path
        assert (await here.ask()).status_code == 401
        assert (await here.http.get(f"/tenuto/v1/channels/{CHANNEL}/messages")).status_code == 401


async def test_a_guest_trades_the_secret_for_a_cookie_once() -> None:
    async with lan() as (here, guests):
        secret = secret_in(guests.invite())
        joined = await here.http.post("/demo/join", json={"secret": secret}, headers={"origin": BASE})
        assert joined.status_code == 200
        attributes = {one.strip().lower() for one in joined.headers["set-cookie"].split(";")[1:]}
        assert attributes >= {"httponly", "samesite=strict", "path=/"}
        person = (await here.http.get("/demo/info")).json()["person"]
        assert person == joined.json()["person"]
        asked = await here.http.post(
            f"/tenuto/v1/channels/{CHANNEL}/messages", json={"id": "q1", "text": "?"}, headers={"origin": BASE}
        )
        assert asked.json()["message"]["author"] == person["id"]
        foreign = {"origin": "http://evil.example"}
        assert (await here.http.post("/demo/kill", json={}, headers=foreign)).status_code == 403
        path = "/tenuto/v1/channels/chat:1/messages"
        other = await here.http.post(path, json={"text": "?"}, headers={"origin": BASE})
        assert other.status_code == 403  # a guest is let into the chats of the demo alone

        made = await here.http.post("/demo/invites", json={"channel": CHANNEL}, headers={"origin": BASE})
        assert made.status_code == 201
        assert made.json()["expiresInSeconds"] == 600
        assert made.json()["url"].startswith(f"{BASE}/?channel={CHANNEL}#join=")
        assert made.json()["qr"] == qr_rows(made.json()["url"])
        here.http.cookies.clear()
        again = await here.http.post("/demo/join", json={"secret": secret})
        assert (again.status_code, again.json()["code"]) == (403, "no_invite")
        second = await here.http.post("/demo/join", json={"secret": secret_in(made.json()["url"])})
        assert second.json()["person"]["id"] != person["id"]


async def test_the_chat_of_the_post_is_for_pages_of_this_machine() -> None:
    async with demo("memory://") as here:
        assert (await here.http.post("/post/tenuto/v1/visitor")).status_code == 200
        rebound = await here.http.post("/post/tenuto/v1/visitor", headers={"host": "evil.example:8000"})
        assert (rebound.status_code, rebound.json()["code"]) == (403, "forbidden")


async def test_every_file_of_the_page_has_a_content_security_policy() -> None:
    async with demo("memory://") as here:
        files = [path.relative_to(WEB).as_posix() for path in (WEB / "demo").rglob("*") if path.is_file()]
        assert len(files) >= 9
        for path in ("/", *(f"/tenuto/web/{file}" for file in files)):
            response = await here.http.get(path)
            assert response.status_code == 200
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
            assert response.headers.get_list("x-content-type-options") == ["nosniff"]
        for path in ("/demo/info", "/tenuto/web/client.js"):
            response = await here.http.get(path)
            assert (response.status_code, response.headers.get("x-content-type-options")) == (200, "nosniff")
