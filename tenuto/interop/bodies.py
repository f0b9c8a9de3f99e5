"""Bodies of requests that hold a whole conversation.

Layer: interop.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from tenuto.core.errors import TooLarge
from tenuto.routes import Access


async def body_of(access: Access, request: Request, remedy: str) -> dict[str, Any]:
    """Return the body (`Access.body`), which may hold files of the size of a message.

    A TooLarge says with `remedy` what the client sends in its place.
    """
    try:
        return await access.body(request, limit_bytes=access.limits.message_bytes)
    except TooLarge as error:
        limit = error.details["limit"]
        text = f"the body of the request has more than {limit} bytes (Limits.message_bytes); {remedy}"
        raise TooLarge(text, limit=limit) from None
