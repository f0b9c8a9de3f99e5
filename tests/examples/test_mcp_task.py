"""`examples/mcp_task.py` as a process, with the real client of MCP.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from mcp import Client, ClientSession
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Request, Result
from pydantic import ConfigDict

from tests.examples.programs import FOLDER
from tests.processes import Process, listening

NAME = "io.modelcontextprotocol/tasks"


class State(Result):
    model_config = ConfigDict(extra="allow")

    def __getitem__(self, name: str) -> Any:
        assert self.model_extra is not None
        return self.model_extra[name]


class Task(State):
    result_type: Literal["task"]


class TaskRequest(Request[dict[str, Any], str]):
    name_param = "taskId"


class KnowsTasks(ClientExtension):
    identifier = NAME

    def claims(self) -> Sequence[ResultClaim[Any]]:
        async def resolve(task: Task, context: ClaimContext) -> CallToolResult:
            (asked,) = (await until(context.session, task["taskId"], "input_required"))["inputRequests"]
            responses = {asked: {"action": "accept", "content": {"time": "20:00"}}}
            await send(context.session, "update", task["taskId"], inputResponses=responses)
            return CallToolResult.model_validate((await until(context.session, task["taskId"], "completed"))["result"])

        return [ResultClaim(result_type="task", model=Task, resolve=resolve)]


@pytest.fixture
def server(tmp_path: Path, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> Process:
    """The example as a process, with its store in a folder of the test."""
    monkeypatch.setenv("PORT", str(unused_tcp_port))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return Process([str(FOLDER / "mcp_task.py")], tmp_path / "server.log", folder=tmp_path)


async def send(session: ClientSession, method: str, task: str, **params: Any) -> State:
    request = TaskRequest(method=f"tasks/{method}", params={"taskId": task, **params})
    return await session.send_request(request, State)


async def until(session: ClientSession, task: str, status: str) -> State:
    async with asyncio.timeout(60):
        while (state := await send(session, "get", task))["status"] != status:  # noqa: ASYNC110 - MCP polls
            await asyncio.sleep(0.05)
    return state


async def call(session: ClientSession) -> Task:
    task = await session.call_tool("book", {"guests": 4}, allow_claimed=True)
    assert isinstance(task, Task)
    return task


async def test_task_is_a_turn_that_asks_is_cancelled_and_survives_a_killed_server(
    server: Process, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/mcp"
    with listening(server, unused_tcp_port, end=signal.SIGKILL):
        async with Client(url, extensions=[KnowsTasks()]) as client:
            session = client.session
            assert [tool.name for tool in (await client.list_tools()).tools] == ["book"]
            (booked,) = (await client.call_tool("book", {"guests": 4})).content
            assert booked.model_dump(include={"text"}) == {"text": "A table for 4 at 20:00."}
            task, other = (await call(session))["taskId"], (await call(session))["taskId"]
            assert (await send(session, "get", task))["status"] in ("working", "input_required")
            (before,) = (await until(session, task, "input_required"))["inputRequests"]
            await send(session, "cancel", other)
            await until(session, other, "cancelled")
            await send(session, "cancel", other)  # again, without an effect
            for guests in (True, "4", 0, 10**400):
                with pytest.raises(MCPError, match="guests must be a whole number from 1 to 100"):
                    await session.call_tool("book", {"guests": guests}, allow_claimed=True)
            for reply in ({"action": "accept"}, {"action": "accept", "content": {"time": 7}}, {"action": "decline"}):
                third = (await call(session))["taskId"]
                (question,) = (await until(session, third, "input_required"))["inputRequests"]
                await send(session, "update", third, inputResponses={question: reply})
                state = await until(session, third, "completed")
                text = {"type": "text", "text": "No table was booked."}
                assert state["result"] == {"content": [text], "isError": False}
            with pytest.raises(MCPError, match="does not exist"):
                await send(session, "get", "other")
        async with Client(url) as client:
            with pytest.raises(MCPError, match="Missing required client capability"):
                await client.call_tool("book", {"guests": 4})
    with listening(server, unused_tcp_port):
        async with Client(url, extensions=[KnowsTasks()]) as client:
            session = client.session
            asked: dict[str, Any] = (await until(session, task, "input_required"))["inputRequests"]
            assert list(asked) == [before]  # the question of the killed attempt stays open
            assert asked[before]["method"] == "elicitation/create"
            assert asked[before]["params"]["message"] == "At what time do 4 guests come?"
            responses = {before: {"action": "accept", "content": {"time": "19:30"}}}
            await send(session, "update", task, inputResponses=responses)
            state = await until(session, task, "completed")
            text = {"type": "text", "text": "A table for 4 at 19:30."}
            assert state["result"] == {"content": [text], "isError": False}
            assert (await send(session, "get", other))["status"] == "cancelled"
