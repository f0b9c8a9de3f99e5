"""Requests to an ASGI app, made by hand: for scopes that no client would send, and sockets without a network.

Layer: tests.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.transports.conftest import PATIENCE_S

Headers = list[tuple[bytes, bytes]]
HERE: Headers = [(b"host", b"localhost:8000")]


def scope_of(path: str, *, headers: Headers = HERE, query: bytes = b"", **more: Any) -> dict[str, Any]:
    """Return the scope of a socket of the app; `more` are fields of another kind of scope."""
    return {
        "type": "websocket",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 5),
        "subprotocols": ["tenuto.v1"],
        "extensions": {"websocket.http.response": {}},
        **more,
    }


async def exchange(
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
    leaves: bool = False,
) -> list[Any]:
    """Send one request, or open a socket; return what the app sends. One that `leaves` takes one batch of a stream."""
    sent, has_batch = list[Any](), asyncio.Event()
    is_socket = kind == "websocket"
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body}]
    if is_socket:
        waiting = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        await has_batch.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if leaves and not message.get("body", b"retry:").startswith(b"retry:"):
            has_batch.set()

    more: dict[str, Any] = {"type": kind, "client": client, "extensions": extensions or {}, "subprotocols": []}
    more |= {"http_version": version, "scheme": scheme} | ({} if is_socket else {"method": method})
    scope = scope_of(path, headers=headers, query=query, **more)
    async with asyncio.timeout(PATIENCE_S):
        await app(scope, receive, send)
    return sent


async def ask(app: Any, path: str = "/v1/channels/c", **request: Any) -> tuple[int, Any]:
    """Return the status and the problem of an `exchange`; (101, None) for an accepted socket."""
    sent = await exchange(app, path, **request)
    if sent[0]["type"] == "websocket.accept":
        return 101, None
    if sent[0]["type"] == "websocket.close":
        return 403, sent[0]["reason"]
    body = sent[1].get("body", b"")
    return sent[0]["status"], json.loads(body)["code"] if sent[0]["status"] >= 400 else body
