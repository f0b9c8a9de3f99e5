"""Events that arrive while a stream begins, with its head still on the way to a slow peer."""

from __future__ import annotations

import asyncio
from typing import Any

from tenuto import Hub, allow_everyone
from tests.transports.asgi import HERE
from tests.virtual import virtual_clock, virtually


@virtually
async def test_answer_that_grows_during_an_attach_arrives_in_order() -> None:
    hub = Hub("memory://", authenticate=allow_everyone, hooks_signals=False, clock=virtual_clock())
    await hub.start()
    bodies: list[bytes] = []
    path = "/v1/channels/c/messages/m/events"
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": b"", "headers": HERE, "client": ("127.0.0.1", 5), "extensions": {}}  # type: ignore[dict-item]

    async def receive() -> Any:
        await asyncio.Event().wait()

    async with hub.message("c", id="m") as message:
        await message.append("one")
        await message.flush()

        async def send(event: Any) -> None:
            if event["type"] == "http.response.start":
                await message.append("two")
                await message.flush()
                await asyncio.sleep(1)
            bodies.append(event.get("body", b""))

        streaming = asyncio.ensure_future(hub(scope, receive, send))
        await asyncio.sleep(5)
    await streaming
    received = b"".join(bodies)
    assert 0 < received.index(b'"one"') < received.index(b'"two"') < received.index(b"event: done")
    await hub.close()
