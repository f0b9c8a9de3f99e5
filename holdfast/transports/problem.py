"""Errors as HTTP says them: `application/problem+json`, with a stable code.

Layer: transports.

`http` and the streaming endpoints both answer with these.
"""

from __future__ import annotations

import random

import msgspec
from starlette.types import Message

from holdfast.core.errors import HoldfastError, MethodNotAllowed, Unauthenticated
from holdfast.transports.codec import for_peers

Headers = list[tuple[bytes, bytes]]


def retry_after_s() -> int:
    """After how many seconds to come back: drawn, so that those who were refused together do not come together."""
    return random.randint(1, 3)


def problem_headers(error: HoldfastError) -> dict[str, str]:
    """The headers that go with `error`."""
    headers = {"content-type": "application/problem+json", "cache-control": "no-store"}
    if error.status in (429, 503):
        headers["retry-after"] = str(retry_after_s())
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        headers["allow"] = ", ".join(error.details["allow"])
    return headers


def problem_body(error: HoldfastError) -> bytes:
    """The problem object as JSON."""
    return msgspec.json.encode(error.problem())


def problem_messages(
    error: HoldfastError, more: Headers | None = None, *, prefix: str = "http.response"
) -> tuple[Message, Message]:
    """The two ASGI messages of an answer that says `error`; `prefix` for a WebSocket that was not accepted."""
    error = for_peers(error)
    body = problem_body(error)
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    headers += [(b"content-length", str(len(body)).encode()), *(more or ())]
    return (
        {"type": f"{prefix}.start", "status": error.status, "headers": headers},
        {"type": f"{prefix}.body", "body": body, "more_body": False},
    )
