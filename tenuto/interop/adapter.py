"""What adapters share: the routes of a chat, bodies that hold a whole conversation, tools in JSON, and ids.

Layer: interop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from contextlib import suppress

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenuto import Hub, Message
from tenuto.core.errors import InvalidRequest, LocalError, TooLarge
from tenuto.interop.fold import Json
from tenuto.routes import OUTPUT, Access, is_id


class ChatRoutes:
    """The routes of an adapter. `{id}` in `channel` is the id of a `chat`, which clients send in `field`."""

    def __init__(self, hub: Hub, channel: str, *, chat: str, field: str) -> None:
        self._hub = hub
        self._channel = check_template(channel, chat)
        self._missing = f"the request needs {field}, the id of the {chat} as text"

    def _channel_of(self, id: object) -> str:
        if not isinstance(id, str) or not id:
            raise InvalidRequest(self._missing)
        return self._channel.replace("{id}", id)

    async def _enter(self, request: Request, id: object, *capabilities: str) -> tuple[Access, str]:
        """Return the access of the caller, who needs `capabilities`, and the channel of a chat."""
        channel = self._channel_of(id)
        return await self._hub.authorize(request.scope, channel, capabilities), channel

    async def _stop(self, request: Request) -> Response:
        """Cancel the running turns, for all clients. Closing a connection cancels nothing."""
        access, channel = await self._enter(request, request.path_params["id"], "history", "command")
        await access.cancel_turns(channel)
        return Response(status_code=204)


def check_template(channel: str, chat: str = "chat") -> str:
    """Return `channel`. Raises LocalError unless it has a place for the id of a chat."""
    if "{id}" not in channel:
        raise LocalError(f'channel must hold {{id}}, the id of the {chat}, as in "chat:{{id}}", got {channel!r}')
    return channel


def json_response(value: object) -> Response:
    """Return a response that nobody keeps."""
    return JSONResponse(value, headers={"cache-control": "no-store"})


async def body_of(access: Access, request: Request, remedy: str) -> Json:
    """Return the body (`Access.body`), which may hold files of the size of a message.

    A TooLarge says with `remedy` what the client sends in its place.
    """
    try:
        return await access.body(request, limit_bytes=access.limits.message_bytes)
    except TooLarge as error:
        limit = error.details["limit"]
        text = f"the body of the request has more than {limit} bytes (Limits.message_bytes); {remedy}"
        raise TooLarge(text, limit=limit) from None


def stored_id(id: str) -> str:
    """Return the id of the stored message for a client's message `id`: the same, or a hash if it breaks the rules."""
    return id if is_id(id) else hashed(id)


def hashed(*values: str) -> str:
    """Return an id that is the same for the same values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]


def packed(*values: str) -> str:
    """Return an id that has `values`, which have no line breaks."""
    return base64.urlsafe_b64encode("\n".join(values).encode()).decode().rstrip("=")


def unpacked(id: str) -> list[str]:
    """Return the values of an id; an empty list for other texts."""
    with suppress(binascii.Error, ValueError):
        values = base64.b64decode(id + "=" * (-len(id) % 4), b"-_", validate=True).decode().split("\n")
        return values if packed(*values) == id else []
    return []


_DATA_TYPE = re.compile(r"data:([^;,/\s]{1,100}/[^;,\s]{1,100})[;,]", re.IGNORECASE)
REQUEST = "options"  # field of a question's `meta` with the wishes of its request (`with_options`)


def output_part(call: str, output: object) -> Json:
    """Return the part of a question with the output of the client's tool, for a turn that has ended without it."""
    return {"type": "data", "name": OUTPUT, "data": {"call_id": call, "output": output}}


def outputs_in(question: Message) -> Json:
    """Return the outputs of the client's tools in a question (`output_part`), by call."""
    data = [one.get("data") for one in question.parts if one["type"] == "data" and one["name"] == OUTPUT]
    return {
        one["call_id"]: one.get("output")
        for one in data
        if isinstance(one, dict) and isinstance(one.get("call_id"), str)
    }


def with_options(question: Message, options: Json) -> Message:
    """Return `question` with all that its request asks for in its `meta`, in which the store has the small values."""
    return replace(question, meta={**question.meta, REQUEST: options})


def own_tools(question: Message) -> frozenset[str]:
    """Return the names of the tools that the caller runs."""
    return frozenset(one["name"] for one in tools_in(requested_in(question)) if isinstance(one.get("name"), str))


def tools_in(requested: Json) -> list[Json]:
    """Return the tools in the wishes of a request, which other clients of the hub may have written in any form."""
    tools = requested.get("tools")
    return [one for one in tools if isinstance(one, dict)] if isinstance(tools, list) else []


def requested_in(question: Message) -> Json:
    """Return all that the request of `question` asks for (`with_options`)."""
    requested = question.meta.get(REQUEST)
    return requested if isinstance(requested, dict) else {}


def file_part(url: str, media_type: object = None, **fields: object) -> Json:
    """Return the part of a file, with its fields that are texts. If its type is unknown, the URL of data names it."""
    is_known = isinstance(media_type, str) and not media_type.endswith("/*")
    found = None if is_known else _DATA_TYPE.match(url)
    named = {"mediaType": found[1].lower() if found else media_type, **fields}
    return {"type": "file", "url": url, **{name: value for name, value in named.items() if isinstance(value, str)}}
