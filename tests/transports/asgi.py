"""One request to an ASGI app, made by hand: for scopes that no client would send.

Layer: tests.

"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.transports.conftest import PATIENCE_S

Headers = list[tuple[bytes, bytes]]
HERE: Headers = [(b"host", b"localhost:8000")]


async def ask(
    app: Any,
    path: str = "/v1/channels/c",
    *,
    headers: Headers = HERE,
    client: tuple[str, int] | None = ("127.0.0.1", 5),
    method: str = "GET",
    kind: str = "http",
    body: bytes = b"",
    extensions: Any = None,
    query: bytes = b"",
    version: str = "1.1",
    scheme: str = "http",
) -> tuple[int, Any]:
    """Send one request, or open a socket. Return its status and problem; (101, None) for an accepted socket."""
    sent: list[Any] = []
    is_socket = kind == "websocket"
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
    if is_socket:
        waiting = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def receive() -> Any:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": client,
        "extensions": extensions or {},
        "http_version": version,
        "scheme": scheme,
    }
    if not is_socket:
        scope["method"] = method
    async with asyncio.timeout(PATIENCE_S):
        await app(scope, receive, send)
    if sent[0]["type"] == "websocket.accept":
        return 101, None
    if sent[0]["type"] == "websocket.close":
        return 403, sent[0]["reason"]
    body = sent[1].get("body", b"")
    return sent[0]["status"], json.loads(body)["code"] if sent[0]["status"] >= 400 else body
