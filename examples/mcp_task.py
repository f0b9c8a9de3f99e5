"""An MCP server whose tool takes long and asks a person: its call is a task (MCP 2026-07-28), and a task is a turn.

Run `pip install mcp uvicorn`, `python examples/mcp_task.py`, and connect an MCP client with the extension
`io.modelcontextprotocol/tasks` to http://127.0.0.1:8000/mcp. The call of `book` returns a task at once. The client asks
for its state with `tasks/get`, replies to the question with `tasks/update`, and stops it with `tasks/cancel`. All of it
is in the hub's store: the task goes on after a crash of the server, and each process of the same store knows it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.extension import Extension, MethodBinding, ToolBinding
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, RequestParams
from mcp_types.jsonrpc import MISSING_REQUIRED_CLIENT_CAPABILITY

from tenuto import Hub, Turn
from tenuto.core.errors import AlreadyAnswered, Deleted, Finished, InvalidName, NotFound
from tenuto.routes import TurnStatus

hub = Hub("sqlite:///mcp-task-example.db")
PACE_S = 1.0
POLL_MS = 500
MOST_GUESTS = 100
CALL = "call"  # id of the message in the channel of a task that holds the arguments of the call


@hub.agent("task:*")
async def booking(turn: Turn) -> None:
    """Carry out a call of `book`. After a crash of the server it runs again."""
    guests = turn.message.parts[0]["data"]["guests"]
    async with turn.reply() as message:
        await asyncio.sleep(PACE_S)  # looks for a table
        schema = {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]}
        asked = {"message": f"At what time do {guests} guests come?", "requestedSchema": schema}
        reply = await turn.ask("elicit", asked, timeout_s=3600)
        match reply.data if reply.ok else None:
            case {"time": str(time)}:  # a client may reply without it
                await message.append(f"A table for {guests} at {time}.")
            case _:
                await message.append("No table was booked.")


async def book(guests: int) -> str:
    """Book a table at the restaurant."""
    raise NotImplementedError  # the extension below has the calls; this is their schema


class TaskParams(RequestParams):
    """The parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateParams(TaskParams):
    """The parameters of `tasks/update`."""

    input_responses: dict[str, dict[str, Any]]


class Tasks(Extension):
    """Tools whose calls are tasks. A task's id is random, so no other client knows it."""

    identifier = "io.modelcontextprotocol/tasks"

    def tools(self) -> Sequence[ToolBinding]:
        return [ToolBinding(book, kwargs={"structured_output": False})]  # the result of a task is a text

    def methods(self) -> Sequence[MethodBinding]:
        return [
            MethodBinding("tasks/get", TaskParams, self.get),
            MethodBinding("tasks/update", UpdateParams, self.update),
            MethodBinding("tasks/cancel", TaskParams, self.cancel),
        ]

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        if params.name != book.__name__:
            return await call_next(ctx)
        check_client(ctx)
        guests = (params.arguments or {}).get("guests")
        if type(guests) is not int or not 1 <= guests <= MOST_GUESTS:  # JSON's true is an int, too
            raise MCPError(INVALID_PARAMS, f"guests must be a whole number from 1 to {MOST_GUESTS}")
        task = secrets.token_urlsafe(24)
        part = {"type": "data", "name": "book", "data": {"guests": guests}}
        await hub.create(f"task:{task}", id=CALL, parts=[part])  # stored before the client has the id
        return {"resultType": "task", **shape(task, await hub.turn(f"task:{task}", CALL))}

    async def get(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        return {"resultType": "complete", **shape(params.task_id, await turn_of(ctx, params.task_id))}

    async def update(self, ctx: ServerRequestContext[Any, Any], params: UpdateParams) -> HandlerResult:
        await turn_of(ctx, params.task_id)
        for id, response in params.input_responses.items():
            accepted = response.get("action") == "accept"
            with suppress(AlreadyAnswered, NotFound, InvalidName):  # a question that is not open is ignored
                await hub.reply(f"task:{params.task_id}", id, ok=accepted, data=response.get("content"))
        return {"resultType": "complete"}

    async def cancel(self, ctx: ServerRequestContext[Any, Any], params: TaskParams) -> HandlerResult:
        await turn_of(ctx, params.task_id)
        with suppress(Finished):
            await hub.command(f"task:{params.task_id}", "cancel", target=CALL)
        return {"resultType": "complete"}


def check_client(ctx: ServerRequestContext[Any, Any]) -> None:
    """Raise the error of the protocol unless the client knows tasks."""
    declared = ctx.session.client_capabilities
    if Tasks.identifier not in ((declared.extensions if declared is not None else None) or {}):
        needed = {"requiredCapabilities": {"extensions": {Tasks.identifier: {}}}}
        raise MCPError(MISSING_REQUIRED_CLIENT_CAPABILITY, "Missing required client capability", needed)


async def turn_of(ctx: ServerRequestContext[Any, Any], task: str) -> TurnStatus:
    """Return the turn of a task."""
    check_client(ctx)
    try:
        return await hub.turn(f"task:{task}", CALL)
    except (NotFound, Deleted, InvalidName):
        raise MCPError(INVALID_PARAMS, f"task {task[:64]!r} does not exist") from None


def shape(task: str, turn: TurnStatus) -> Mapping[str, Any]:
    """Return a turn in the form of a task."""
    assert turn.message is not None
    answers = [one for one in turn.answers if one.status != "interrupted"]
    changed_ms = max(one.updated_at for one in [turn.message, *turn.answers])
    times = [datetime.fromtimestamp(ms / 1000, UTC).isoformat() for ms in (turn.message.created_at, changed_ms)]
    known = {"taskId": task, "createdAt": times[0], "lastUpdatedAt": times[1], "ttlMs": None, "pollIntervalMs": POLL_MS}
    if turn.questions:
        asked = {
            one.id: {"method": "elicitation/create", "params": {"mode": "form", **one.data}} for one in turn.questions
        }
        return {**known, "status": "input_required", "inputRequests": asked}
    if turn.state != "over":
        return {**known, "status": "working"}
    if turn.is_cancelled or any(one.status == "cancelled" for one in answers):
        return {**known, "status": "cancelled"}
    text = "".join(one.text for one in answers)
    failed = next((one.reason or one.status for one in answers if one.status != "complete"), None)
    result = {"content": [{"type": "text", "text": failed or text}], "isError": failed is not None}
    return {**known, "status": "completed", "result": result}


server = MCPServer("restaurant", extensions=[Tasks()])
app = server.streamable_http_app()
hub.install(app, "/tenuto")  # starts the hub with the app, so that tasks go on after a crash; a page may show them

if __name__ == "__main__":
    import os

    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
