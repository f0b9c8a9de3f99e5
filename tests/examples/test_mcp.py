"""The event store of `examples/mcp_events.py` under the SDK's own server and client.

Layer: tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import ModuleType

from mcp import Client
from mcp.server.mcpserver import Context
from mcp.server.streamable_http import EventMessage
from mcp_types import JSONRPCNotification

from tenuto import Hub
from tests.examples.programs import served_app

Load = Callable[[str], ModuleType]


async def test_clients_resume_their_calls_and_each_gets_its_own_events(program: Load) -> None:
    example = program("mcp_events")
    both = asyncio.Barrier(2)

    @example.server.tool()  # type: ignore[misc]
    async def interrupted(first: int, context: Context) -> str:
        """Report two steps, lose the connection of the call, and report two more."""
        for number in range(first, first + 4):
            await context.report_progress(number)
            if number == first + 1:
                await both.wait()
                await context.close_sse_stream()
        return f"began at {first}"

    async with served_app(example.app) as address:

        async def call(first: int) -> tuple[list[float], str]:
            reported: list[float] = []

            async def note(progress: float, total: float | None, message: str | None) -> None:
                reported.append(progress)

            async with Client(f"{address}/mcp", mode="legacy") as client:
                result = await client.call_tool("interrupted", {"first": first}, progress_callback=note)
            return reported, result.content[0].text

        one, other = await asyncio.gather(call(10), call(20))
    assert one == ([10, 11, 12, 13], "began at 10")
    assert other == ([20, 21, 22, 23], "began at 20")


async def test_events_are_replayed_by_another_hub_on_the_same_store(program: Load) -> None:
    example = program("mcp_events")
    example.channel_of_session.set("mcp:key")
    events, ids = example.HubEvents(), []
    for stream, number in (("1", 0), ("2", 1), ("1", 2), ("1", 3)):
        sent = JSONRPCNotification(jsonrpc="2.0", method="step", params={"number": number})
        ids.append(await events.store_event(stream, sent if number < 3 else None))
    await example.hub.close()
    example.hub = Hub("sqlite:///mcp-example.db")
    replayed: list[EventMessage] = []

    async def note(event: EventMessage) -> None:
        replayed.append(event)

    assert await events.replay_events_after(ids[0], note) == "1"
    assert [(one.event_id, one.message.params) for one in replayed] == [(ids[2], {"number": 2})]
    for unknown in ("", "mcp:key/x", "mcp:key/9", "chat:1/1"):
        assert await events.replay_events_after(unknown, note) is None
    await example.hub.close()
