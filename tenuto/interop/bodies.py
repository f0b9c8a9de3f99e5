"""What adapters share when they read requests: bodies that hold a whole conversation, tools in JSON, and ids.

Layer: interop.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from starlette.requests import Request

from tenuto import Message
from tenuto.agents.history import OUTPUT
from tenuto.core.errors import TooLarge
from tenuto.routes import Access, is_id


def stored_id(id: str) -> str:
    """Return the id of the stored message for a client's message `id`: the same, or a hash if it breaks the rules."""
    return id if is_id(id) else hashed(id)


def hashed(*values: str) -> str:
    """Return an id that is the same for the same values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]


_DATA_TYPE = re.compile(r"data:([^;,/\s]{1,100}/[^;,\s]{1,100})[;,]", re.IGNORECASE)
LEVELS = 60  # of nested values; parts may have 64, and `json.dumps` ends at about 1,000


def value_of(text: str) -> Any:
    """Return the value of the JSON in `text`. Raises ValueError if it is none, or has too many nested levels."""
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
    nested = [value]
    for _ in range(LEVELS):
        nested = [
            inner
            for outer in nested
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not nested:
            return value
    raise ValueError(f"JSON is nested deeper than {LEVELS} levels")


def output_part(call: str, output: object) -> dict[str, Any]:
    """Return the part of a question with the output of the client's tool, for a turn that has ended without it."""
    return {"type": "data", "name": OUTPUT, "data": {"call_id": call, "output": output}}


def outputs_in(question: Message) -> dict[str, Any]:
    """Return the outputs of the client's tools in a question (`output_part`), by call."""
    data = [one.get("data") for one in question.parts if one["type"] == "data" and one["name"] == OUTPUT]
    return {
        one["call_id"]: one.get("output")
        for one in data
        if isinstance(one, dict) and isinstance(one.get("call_id"), str)
    }


def output_of(output: object) -> Any:
    """Return the output of a client's tool: a value if it is JSON, as agents expect it."""
    if not isinstance(output, str):
        return output
    try:
        return value_of(output)
    except ValueError:
        return output


def file_part(url: str, media_type: object = None, **fields: object) -> dict[str, Any]:
    """Return the part of a file, with its fields that are texts. If its type is unknown, the URL of data names it."""
    is_known = isinstance(media_type, str) and not media_type.endswith("/*")
    found = None if is_known else _DATA_TYPE.match(url)
    named = {"mediaType": found[1].lower() if found else media_type, **fields}
    return {"type": "file", "url": url, **{name: value for name, value in named.items() if isinstance(value, str)}}


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
