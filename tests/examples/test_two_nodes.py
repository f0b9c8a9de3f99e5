"""Two examples run in two processes on one PostgreSQL, with no other change than the store.

Layer: tests.

`here` and `there` are the two processes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tests.conftest import in_long
from tests.examples.nodes import FOLLOW_S, Node, is_over, two_nodes, until, viewing
from tests.examples.programs import FOLDER, load
from tests.postgres import needs_postgres, running_postgres
from tests.processes import python

pytestmark = [needs_postgres, in_long]

NUMBERS = "".join(f"{count} " for count in range(1, 121))
LONG = " ".join(["why?"] * 50)  # the answer repeats the question first, so an agent can be killed for seconds
ANSWER = "You asked: why?\n" + NUMBERS.removeprefix("1 ")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_postgres(fsync="off", full_page_writes="off") as server:
        yield server.url


async def test_a_question_at_one_node_is_answered_live_at_the_other_also_on_a_page_that_is_opened_there(
    url: str, tmp_path: Path
) -> None:
    async with (
        two_nodes("fastapi_app", url, tmp_path) as (here, there),
        httpx2.AsyncClient(base_url=here.url, trust_env=False, timeout=FOLLOW_S) as asking,
        viewing(there.hub, "chat:1") as (_, view),
    ):
        assert (await asking.post("/chats/1/questions", json={"text": "why?"})).status_code == 201
        begun = (await until(view, lambda messages: len(messages) == 2 and " 9 " in messages[1].text))[1]
        assert begun.status == "streaming"
        async with viewing(there.hub, "chat:1") as (_, refreshed):
            assert refreshed.messages[1].text.startswith(begun.text)
            question, answer = await until(refreshed, is_over)
        assert (question.text, answer.text, answer.status, answer.reply_to) == ("why?", ANSWER, "complete", question.id)
        assert await until(view, is_over) == [question, answer]


async def test_an_agent_of_the_other_node_continues_the_answer_of_one_that_died_also_without_the_first_node(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, secret, token = str(FOLDER / "agent_elsewhere.py"), "chat.secret", load("agent_elsewhere").token

    def run(node: Node, name: str, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        return python(program, *arguments, TENUTO_URL=node.url, TENUTO_TOKEN=token(name, secret))

    async with two_nodes("agent_elsewhere", url, tmp_path) as (here, there), AsyncExitStack() as stack:
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
