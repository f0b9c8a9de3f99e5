"""Errors as HTTP responses: `application/problem+json`, with a stable code.

Layer: transports.

`http`, the streaming endpoints and refused WebSockets use these.
"""

from __future__ import annotations

import random

import msgspec
from starlette.types import Message

from tenuto.core.errors import MethodNotAllowed, TenutoError, Unauthenticated
from tenuto.transports.codec import for_peers

Headers = list[tuple[bytes, bytes]]
# Sent with every response: a browser takes no data for a page, and a page of another origin cannot embed it without
# CORS. Browsers fetch modules and EventSource with CORS, which decides alone.
GUARDS: Headers = [(b"x-content-type-options", b"nosniff"), (b"cross-origin-resource-policy", b"same-origin")]


def random_retry_s() -> int:
    """Return a random delay in seconds, so that clients that were refused together do not all return together."""
    return random.randint(1, 3)


def problem_headers(error: TenutoError) -> dict[str, str]:
    """Return the headers of a response that carries `error`."""
    headers = {
        "content-type": "application/problem+json",
        "cache-control": "no-store",
        **{name.decode(): value.decode() for name, value in GUARDS},
    }
    if error.status in (429, 503):
        headers["retry-after"] = str(error.details.get("retry_after_s", 1) - 1 + random_retry_s())
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        headers["allow"] = ", ".join(error.details["allow"])
    return headers


def problem_body(error: TenutoError) -> bytes:
    """Return the problem object of `error` as JSON."""
    return msgspec.json.encode(error.problem())


def problem_messages(
    error: TenutoError, more: Headers | None = None, *, prefix: str = "http.response"
) -> tuple[Message, Message]:
    """Return the two ASGI messages of a response with `error`.

    `prefix` is for a refused WebSocket, whose messages have other names.
    """
    error = for_peers(error)
    body = problem_body(error)
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    headers += [(b"content-length", str(len(body)).encode()), *(more or ())]
    return (
        {"type": f"{prefix}.start", "status": error.status, "headers": headers},
        {"type": f"{prefix}.body", "body": body, "more_body": False},
    )
