"""An MCP server whose events are kept by a hub, so that its clients resume their streams: an event store of the SDK.

Run `pip install mcp`, `python examples/mcp_events.py`, and connect an MCP client to http://127.0.0.1:8000/mcp. A client
whose connection breaks during a call of `count` connects again with the id of the last event, and gets the rest.

The SDK numbers the streams of each session from one, and does not tell its store which session an event belongs to. The
middleware below does. The id of an event holds a random key of its session, so no client can ask for another's events.

The SDK keeps a session in the memory of one process; another one responds 404, and the client begins a new session. So
with several processes a proxy sends all requests of a client to one of them, such as nginx with `ip_hash`.
"""

from __future__ import annotations

import asyncio
import secrets
from contextvars import ContextVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_types import JSONRPCMessage, jsonrpc_message_adapter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenuto import Hub

hub = Hub("sqlite:///mcp-example.db")
server = MCPServer("counter")
channel_of_session: ContextVar[str] = ContextVar("channel_of_session")


@server.tool()
async def count(to: int, context: Context) -> str:
    """Count up to a number, and report each step."""
    for number in range(1, to + 1):
        await context.report_progress(number, to)
        await asyncio.sleep(0.1)
    return f"counted to {to}"


class HubEvents(EventStore):
    """The events of a session are the messages of a channel. An event's id is the channel and the message's serial."""

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        channel = channel_of_session.get()
        data = message.model_dump(mode="json", by_alias=True, exclude_unset=True) if message is not None else None
        part = {"type": "data", "name": stream_id, "data": data}
        stored = await hub.create(channel, role="system", parts=[part])
        return f"{channel}/{stored.created}"

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        channel, _, serial = last_event_id.rpartition("/")
        if not channel.startswith("mcp:") or not serial.isdecimal():
            return None
        last = int(serial)
        page = await hub.history(channel, after=last - 1, limit=1)
        if not page.messages or page.messages[0].created != last:
            return None
        stream = page.messages[0].parts[0]["name"]
        while True:
            page = await hub.history(channel, after=last, limit=200)
            for stored in page.messages:
                last, part = stored.created, stored.parts[0]
                if part["name"] == stream and part["data"] is not None:
                    event = jsonrpc_message_adapter.validate_python(part["data"])
                    await send_callback(EventMessage(event, f"{channel}/{last}"))
            if not page.more:
                return str(stream)


class Sessions:
    """Middleware that names the channel of the request's session. The tasks of a session inherit the name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.channels: dict[str, str] = {}  # by the ids of the sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        session = Headers(scope=scope).get("mcp-session-id", "")
        channel = self.channels.get(session) or f"mcp:{secrets.token_hex(16)}"
        channel_of_session.set(channel)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start" and not session:
                begun = Headers(raw=message["headers"]).get("mcp-session-id")
                if begun is not None:
                    self.channels[begun] = channel
            await send(message)

        await self.app(scope, receive, noted)


app = Sessions(server.streamable_http_app(event_store=HubEvents()))

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app)
