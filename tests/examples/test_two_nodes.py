"""Each example runs in two processes on one PostgreSQL, with no other change than the store.

Layer: tests.

All examples run at once, because they wait for their own pace most of the time; each has a test with its result. `make
test` runs three of them, `make test-long` (`TENUTO_SERVERS=long`) all. `here` and `there` are the two processes. The
pages of the examples in JavaScript are in `tests/interop/long` and in `scripts/smoke_npm.py`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.conftest import IS_LONG
from tests.examples.nodes import FOLLOW_S, Node, is_over, two_nodes, until, viewing
from tests.examples.programs import FOLDER, NAMES, PROCESSES, load
from tests.interop.pages import pages_at, text_of
from tests.postgres import needs_postgres, running_postgres
from tests.processes import python

pytestmark = [needs_postgres, pytest.mark.asyncio(loop_scope="module")]

STARTING = 2  # examples whose processes start at a time: each process takes about a second of CPU for it
NUMBERS = "".join(f"{count} " for count in range(1, 121))
LONG = " ".join(["why?"] * 50)  # the answer repeats the question first, so an agent can be killed for seconds
ANSWER = "You asked: why?\n" + NUMBERS.removeprefix("1 ")

Scene = Callable[[Node, Node], Awaitable[None]]


def http(node: Node, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=node.url, trust_env=False, timeout=FOLLOW_S, **options)


async def fastapi_app(here: Node, there: Node) -> None:
    """A question at one node is answered live at the other, and a page that is opened there has all the text so far."""
    async with http(here) as asking, viewing(there.hub, "chat:1") as (_, view):
        assert (await asking.post("/chats/1/questions", json={"text": "why?"})).status_code == 201
        begun = (await until(view, lambda messages: len(messages) == 2 and " 9 " in messages[1].text))[1]
        assert begun.status == "streaming"
        async with viewing(there.hub, "chat:1") as (_, refreshed):
            assert refreshed.messages[1].text.startswith(begun.text)
            question, answer = await until(refreshed, is_over)
        assert (question.text, answer.text, answer.status, answer.reply_to) == ("why?", ANSWER, "complete", question.id)
        assert await until(view, is_over) == [question, answer]


async def agent_fastapi(here: Node, there: Node) -> None:
    """One agent answers a question, a stop reaches it from either node, and one node fills the archive of both."""
    async with (
        viewing(here.hub, "chat:1", client_id="ann") as (ann, anns),
        viewing(there.hub, "chat:1", client_id="bob") as (bob, bobs),
    ):
        await ann.create("chat:1", text="why?")
        answer = (await until(bobs, is_over))[-1]
        assert (answer.author, answer.text, answer.status) == ("bot", ANSWER, "complete")
        # Either node may answer, and at most one of the two who stop is at that node.
        for client, count in ((ann, 4), (bob, 6)):
            await client.create("chat:1", text="and now?")
            running = (await until(bobs, lambda shown, n=count: len(shown) == n and " 5 " in shown[-1].text))[-1]
            await client.command("chat:1", "cancel", target=running.id)
            await until(anns, lambda shown, n=count: len(shown) == n and is_over(shown))
            stored = await until(bobs, lambda shown, n=count: len(shown) == n and is_over(shown))
            assert anns.messages == stored
            assert stored[-1].status == "cancelled"
    async with asyncio.timeout(FOLLOW_S), http(here) as one, http(there) as other:
        rows: list[dict[str, str]] = []
        while len(rows) < 6:
            response = await one.get("/archive")
            rows = response.json() if response.status_code == 200 else []  # no hook has made the table yet
            await asyncio.sleep(0.05)  # no event reports the work of a hook
        assert {row["id"]: row["text"] for row in rows} == {message.id: message.text for message in stored}
        assert (await other.get("/archive")).json() == rows


async def django_app(here: Node, there: Node) -> None:
    """A thread's remark at one node and an async view's answer at the other are shown at both."""
    async with http(here) as one, http(there) as other, viewing(here.hub, "chat:django") as (_, view):
        assert (await one.post("/remark", data={"text": "Good morning."})).status_code == 201
        assert (await other.post("/ask", data={"text": "why?"})).status_code == 201
        shown = await until(view, is_over)
        assert [(message.text, message.status) for message in shown] == [
            ("Good morning.", "complete"),
            ("why?", "complete"),
            (NUMBERS, "complete"),
        ]
    async with viewing(there.hub, "chat:django") as (_, refreshed):
        assert refreshed.messages == shown


def events_of(body: str) -> list[tuple[str, str]]:
    """Return the names and the data of the events of an event stream. An event without a name has an empty one."""
    found = []
    for block in body.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if line and not line.startswith((":", "id:"))]
        fields = [(name, value) for name, _, value in lines]
        data = "\n".join(value for name, value in fields if name == "data")
        if any(name == "data" for name, _ in fields):
            found.append((dict(fields).get("event", ""), data))
    return found


async def sse_endpoint(here: Node, there: Node) -> None:
    """Two requests of one page that reach two nodes at the same moment get one answer: one of them calls the model."""
    async with http(here) as one, http(there) as other:
        query = {"prompt": "why?", "id": "a1"}
        both = await asyncio.gather(*(node.get("/chat", params=query) for node in (one, other)))
        for response in both:
            *pieces, last = [data for name, data in events_of(response.text) if name == ""]
            assert ("".join(pieces), last) == (ANSWER.replace("\n", " (asked 1 times so far)\n", 1), "[DONE]")
        named = await other.get("/chat/events", params=query)
        assert events_of(named.text)[-1][0] == "done"


async def login_fastapi(here: Node, there: Node) -> None:
    """Who logs in at one node is known at the other, until the logout at either; a stranger is refused at both."""
    lobby, notes = "/tenuto/v1/channels/lobby/messages", "/tenuto/v1/channels/user:{}:notes/messages"
    async with http(here) as one, http(there) as other:
        for node in (one, other):
            assert (await node.get(lobby)).status_code == 401
        assert (await one.post("/login", json={"name": "ann"})).status_code == 204
        other.cookies = one.cookies  # as behind a proxy, where both have one address
        for node, origin in ((one, here.url), (other, there.url)):
            sent = await node.post(lobby, json={"text": "Hello"}, headers={"Origin": origin})
            assert (sent.status_code, sent.json()["message"]["author"]) == (201, "ann")
            assert (await node.get(notes.format("ann"))).status_code == 200
            assert (await node.get(notes.format("bob"))).status_code == 403
        begun = await one.post("/tenuto/v1/tickets", json={"channel": "lobby"}, headers={"Origin": here.url})
        assert 'You are <b id="me">ann</b>' in (await other.get("/")).text
        session = httpx2.Cookies(one.cookies)
        assert (await other.post("/logout")).status_code == 204
        for node in (one, other):
            node.cookies = session
            assert (await node.get(lobby)).status_code == 401
            node.cookies = httpx2.Cookies()
        query = {"ticket": begun.json()["ticket"], "history": 20}
        said = 0
        async with other.stream("GET", "/tenuto/v1/channels/lobby/events", params=query) as stream:
            async for line in stream.aiter_lines():
                said += '"Hello"' in line
                if said == 2:
                    break


async def react_server(here: Node, there: Node) -> None:
    """A token of one node is valid at the other; a stranger is refused at both."""
    tokens = []
    for node, name in ((here, "ann"), (there, "bob")):
        async with http(node) as one:
            tokens.append((await one.post("/token", params={"name": name})).text)
            assert (await one.get("/tenuto/v1/channels/chat:1/messages")).status_code == 401
    async with (
        viewing(here.hub, "chat:1", token=tokens[1]) as (_, bobs),
        viewing(there.hub, "chat:1", token=tokens[0]) as (ann, anns),
    ):
        await ann.create("chat:1", text="why?")
        question, answer = await until(bobs, is_over)
        assert (question.author, answer.status) == ("ann", "complete")
        assert answer.text.startswith("You asked: “why?”")
        assert answer.text.endswith("may stop it.")
        assert await until(anns, is_over) == [question, answer]


async def use_chat_server(here: Node, there: Node) -> None:
    """A page of the AI SDK asks at one node, and one at the other resumes in mid-answer, with the whole text."""
    question = "why? " * 100  # the answer repeats it: three seconds of text
    async with pages_at(f"{here.url}/api/chat") as asking, pages_at(f"{there.url}/api/chat") as resuming:
        await asking("a", "open", id="1")
        await asking("a", "send", text=question)
        await asking("a", "saw", wanted="You asked")
        await resuming("b", "open", id="1", load=True, resume=True)
        await resuming("b", "saw", wanted="You asked")
        ends = [await pages(page, "is", status="ready") for pages, page in ((asking, "a"), (resuming, "b"))]
        assert text_of(ends[0]) == text_of(ends[1])
        assert text_of(ends[0]).startswith(f"You asked: “{question}")
        assert text_of(ends[0]).endswith("may stop it.")


async def agent_elsewhere(here: Node, there: Node) -> None:
    """An agent answers a person at the other node. When it dies, one of that node continues, also without the first."""
    program = str(FOLDER / "agent_elsewhere.py")
    secret = "chat.secret"
    token = load("agent_elsewhere").token

    def run(node: Node, name: str, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return python(program, *arguments, TENUTO_URL=node.url, TENUTO_TOKEN=token(name, secret))

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(run(here, "bot"))
        async with asyncio.timeout(FOLLOW_S), viewing(there.url, "chat:1", token=token("ann", secret)) as (_, view):
            changes = aiter(view)
            while not any(member.kind == "agent" for member in view.members):
                await anext(changes)  # an earlier question waits for no agent
        person = await stack.enter_async_context(run(there, "ann", "ask", LONG))
        assert first.stdout is not None
        assert person.stdout is not None
        async with asyncio.timeout(FOLLOW_S):
            assert await first.stdout.readline() == f"ann asks, attempt 1: {LONG}\n".encode()
            begun = await person.stdout.readuntil(b"why? why? ")
            second = await stack.enter_async_context(run(there, "bot"))
            first.kill()
            assert second.stdout is not None
            assert await second.stdout.readline() == f"ann asks, attempt 2: {LONG}\n".encode()
            here.end(signal.SIGKILL)
            shown = (begun + await person.stdout.read()).decode()
    assert shown == f"You asked: {LONG}\n{NUMBERS.strip()}\n(complete)\n"


SCENES: dict[str, Scene] = {  # those that take longest begin first
    "agent_elsewhere": agent_elsewhere,
    "agent_fastapi": agent_fastapi,
    "fastapi_app": fastapi_app,
    "django_app": django_app,
    "sse_endpoint": sse_endpoint,
    "login_fastapi": login_fastapi,
    "react/server": react_server,
    "use_chat/server": use_chat_server,
}


FEW = ("fastapi_app", "django_app")
RUN = {name: scene for name, scene in SCENES.items() if IS_LONG or name in FEW}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server.url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runs(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Run all examples, and give the task of each."""
    folder = tmp_path_factory.mktemp("examples")
    starting = asyncio.Semaphore(STARTING)

    async def run(name: str, scene: Scene) -> None:
        async with AsyncExitStack() as stack:
            async with starting:
                here, there = await stack.enter_async_context(two_nodes(name, url, folder))
            if name in NAMES:
                for node in (here, there):
                    assert str((await asyncio.to_thread(node.get, "/"))[1]).startswith("<!doctype html>")
                    assert await asyncio.to_thread(node.get, "/tenuto/readyz") == (200, {"status": "ready"})
            async with asyncio.timeout(2 * FOLLOW_S):
                await scene(here, there)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the examples with tables of their own have them in files of their folder
        tasks = {name: asyncio.create_task(run(name, scene)) for name, scene in RUN.items()}
        yield tasks
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest.mark.parametrize("name", RUN)
async def test_an_example_runs_on_two_nodes(runs: dict[str, asyncio.Task[None]], name: str) -> None:
    await runs[name]


async def test_each_example_has_a_scene() -> None:
    servers = {f"{path.parent.name}/server" for path in FOLDER.glob("*/server.py")}
    assert set(SCENES) == {*NAMES, *PROCESSES, *servers}
