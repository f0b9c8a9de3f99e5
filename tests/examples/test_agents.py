"""The examples with agents, an existing SSE endpoint and logins, on real servers, sockets and processes.

Layer: tests.

`test_pages` tests their pages in a browser.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx2
import pytest

from tenuto.client import ChannelView, Client
from tenuto.core.model import Message
from tests.examples.programs import FOLDER, served
from tests.processes import PATIENCE_S, python, serving

Load = Callable[[str], ModuleType]

NUMBERS = "".join(f"{count} " for count in range(2, 121))
ANSWER = f"You asked: why?\n{NUMBERS}"


async def until(view: ChannelView, is_true: Callable[[Message], bool]) -> Message:
    """Wait until the newest message of the channel satisfies `is_true`, and return it."""
    async with asyncio.timeout(PATIENCE_S):
        if not view.messages or not is_true(view.messages[-1]):
            async for _ in view:
                if view.messages and is_true(view.messages[-1]):
                    break
    return view.messages[-1]


def is_over(message: Message) -> bool:
    return message.role == "assistant" and message.status != "streaming"


# The agent in the app --------------------------------------------------------------------------------------------


async def test_a_hook_copies_a_finished_answer_to_the_apps_table(program: Load) -> None:
    async with (
        served(program("agent_fastapi"), pace_s=0.0) as address,
        httpx2.AsyncClient(base_url=address) as http,
        Client(f"{address}/tenuto", client_id="ann") as ann,
        ann.channel("chat:1") as view,
    ):
        prompt = await ann.create("chat:1", text="why?")
        answer = await until(view, is_over)
        assert (answer.author, answer.status, answer.text, answer.reply_to) == ("bot", "complete", ANSWER, prompt.id)
        rows = await archived(http, 2)
        assert [(row["id"], row["author"], row["status"]) for row in rows] == [
            (prompt.id, "ann", "complete"),
            (answer.id, "bot", "complete"),
        ]
        assert rows[1]["text"] == ANSWER
        await ann.delete("chat:1", prompt.id)
        assert [row["id"] for row in await archived(http, 1)] == [answer.id]


async def archived(http: httpx2.AsyncClient, count: int) -> list[dict[str, str]]:
    """Wait for `count` rows, and return them: a hook is called some time after the message is stored."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            response = await http.get("/archive")
            rows: list[dict[str, str]] = response.json() if response.status_code == 200 else []
            if len(rows) == count:
                return rows
            await asyncio.sleep(0.02)  # no event reports the work of a hook


async def test_a_stop_from_a_second_client_ends_the_answer_for_both(program: Load) -> None:
    async with (
        served(program("agent_fastapi"), pace_s=0.02) as address,
        Client(f"{address}/tenuto", client_id="ann") as ann,
        Client(f"{address}/tenuto", client_id="bob") as bob,
        ann.channel("chat:1") as anns,
        bob.channel("chat:1") as bobs,
    ):
        await ann.create("chat:1", text="why?")
        answer = await until(bobs, lambda message: " 5 " in message.text)
        await bob.command("chat:1", "cancel", target=answer.id)
        seen = [await until(view, is_over) for view in (anns, bobs)]
        assert [one.status for one in seen] == ["cancelled", "cancelled"]
        assert seen[0].text == seen[1].text
        assert ANSWER.startswith(seen[0].text)


# The agent in another process ------------------------------------------------------------------------------------

PROGRAM = FOLDER / "agent_elsewhere.py"


async def run(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run the program to its end, and return its exit code, stdout and stderr."""
    async with python(str(PROGRAM), *arguments, **environ) as process, asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "chat.secret"
    path.write_text("a secret of at least thirty-two bytes, as it should be\n")
    return path


async def test_a_refusal_is_one_line_without_the_token(program: Load, tmp_path: Path, secret: Path) -> None:
    other = tmp_path / "other.secret"
    other.write_text("another secret, of at least thirty-two bytes, too")
    token = program("agent_elsewhere").token
    foreign, ann = token("bot", str(other)), token("ann", str(secret))
    with serving("serve", tmp_path, "--jwt-secret-file", str(secret), "--jwt-audience", "chat") as server:
        url = {"TENUTO_URL": f"http://127.0.0.1:{server.port}"}
        runs = await asyncio.gather(
            run(**url),
            run(**url, TENUTO_TOKEN="garbled-token"),
            run(**url, TENUTO_TOKEN=foreign),
            run("ask", "why?", **url, TENUTO_TOKEN=foreign),
            run(**url, TENUTO_TOKEN=ann),
        )
        log = server.output
    assert [(code, out) for code, out, _ in runs] == [(1, "")] * 5
    assert [err for _, _, err in runs] == [
        "the server requires a token, and this client has none; give Client(..., token=...)\n",
        "token is malformed, it must be a signed JWT: 'Not enough segments'\n",
        "token signature matches no key of this server; check the keys of its verifier\n",
        "token signature matches no key of this server; check the keys of its verifier\n",
        "client 'ann' needs the capability 'agent' on all channels of 'chat:*'\n",
    ]
    assert [one for one in ("garbled-token", foreign, ann) if one in log] == []


# The existing endpoint -------------------------------------------------------------------------------------------

ENDPOINT_ANSWER = f"You asked: why? (asked 1 times so far)\n{NUMBERS}"


def plain(body: str) -> str:
    """Return the text that an ordinary reader of `data:` lines gets."""
    events = [event.splitlines() for event in body.split("\n\n") if event and not event.startswith(":")]
    pieces = ["\n".join(line[6:] for line in lines) for lines in events]
    assert pieces.pop() == "[DONE]"
    return "".join(pieces)


async def test_a_repeated_request_gets_the_same_whole_answer(program: Load) -> None:
    async with served(program("sse_endpoint")) as address, httpx2.AsyncClient(base_url=address) as http:
        query = {"prompt": "why?", "id": "a1"}
        async with http.stream("GET", "/chat", params=query) as dropped:
            await anext(dropped.aiter_raw())
        assert plain((await http.get("/chat", params=query)).text) == ENDPOINT_ANSWER
        named = await http.get("/chat/events", params=query)
        assert named.headers["tenuto-message"] == "a1"
        assert "event: done" in named.text
        assert plain((await http.get("/chat", params={"prompt": "why?", "id": "a2"})).text).startswith(
            "You asked: why? (asked 2 times so far)\n"
        )
        history = (await http.get("/tenuto/v1/channels/chat:1/messages")).json()["messages"]
        assert [one["role"] for one in history] == ["assistant", "user", "assistant", "user"]


async def test_an_invalid_id_is_refused_and_not_a_server_error(program: Load) -> None:
    async with served(program("sse_endpoint")) as address, httpx2.AsyncClient(base_url=address) as http:
        refused = await http.get("/chat", params={"prompt": "why?", "id": "not an id"})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_name")


# Logins ----------------------------------------------------------------------------------------------------------

LOBBY = "/tenuto/v1/channels/lobby"


async def test_a_login_opens_only_the_channels_of_its_user(program: Load) -> None:
    async with served(program("login_fastapi")) as address, httpx2.AsyncClient(base_url=address) as http:
        assert (await http.get(f"{LOBBY}/messages")).status_code == 401
        assert (await http.post("/login", json={"name": "ann:x"})).status_code == 422
        assert (await http.post("/login", json={"name": "ann"})).status_code == 204
        page = {"Origin": address}
        notes = "/tenuto/v1/channels/user:{}:notes/messages"
        assert (await http.post(notes.format("ann"), json={"text": "mine"}, headers=page)).status_code == 201
        assert (await http.post(notes.format("bob"), json={"text": "mine"}, headers=page)).status_code == 403
        assert (await http.get(notes.format("bob"))).json()["code"] == "forbidden"
        foreign = {"Origin": "https://elsewhere.example"}
        assert (await http.post(f"{LOBBY}/messages", json={"text": "!"}, headers=foreign)).status_code == 403
        sent = await http.post(f"{LOBBY}/messages", json={"text": "Hello", "author": "bob"}, headers=page)
        assert sent.json()["message"]["author"] == "ann"
        assert (await http.post("/logout")).status_code == 204
        assert (await http.get(f"{LOBBY}/messages")).status_code == 401


async def test_a_ticket_allows_only_watching_the_lobby(program: Load) -> None:
    async with served(program("login_fastapi")) as address, httpx2.AsyncClient(base_url=address) as http:
        await http.post("/login", json={"name": "ann"})
        page = {"Origin": address}
        response = await http.post("/tenuto/v1/tickets", json={"channel": "lobby"}, headers=page)
        ticket = {"ticket": response.json()["ticket"]}
        await http.post(f"{LOBBY}/messages", json={"text": "Hello"}, headers=page)
        http.cookies.clear()
        assert (await http.get(f"{LOBBY}/messages", params=ticket)).status_code == 401
        async with http.stream("GET", f"{LOBBY}/events", params={**ticket, "history": 1}) as stream:
            async with asyncio.timeout(PATIENCE_S):
                async for line in stream.aiter_lines():
                    if '"Hello"' in line:
                        break
