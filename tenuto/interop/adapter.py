"""What adapters share: the routes of a chat, bodies that hold a whole conversation, tools in JSON, and ids.

Layer: interop.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import takewhile
from mimetypes import guess_type
from typing import Any, TypeVar, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tenuto import Hub, Message
from tenuto.core.errors import Deleted, Finished, IdConflict, InvalidRequest, LocalError, StillStreaming, TooLarge
from tenuto.interop.fold import Json
from tenuto.routes import CACHED, OPTIONS_KEY, OPTIONS_MARK, OUTPUT, Access, TurnStatus, guarded, is_id

F = TypeVar("F", bound=msgspec.Struct)
Endpoint = Callable[[Request], Awaitable[Response]]
Shown = Callable[[list[TurnStatus]], list[Json]]  # returns the client's messages of a conversation
MOST_UNSENT = 20  # earlier messages of the user that a request stores


class ChatRoutes:
    """The routes of an adapter. `{id}` in `channel` is the id of a `chat`, which clients send in `field`."""

    def __init__(self, hub: Hub, channel: str, *, chat: str, field: str, shown: Shown) -> None:
        self._hub = hub
        self._shown = shown
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

    def _install(self, app: Any, path: str, post: Endpoint, get: Endpoint, **of_chat: Endpoint) -> None:
        """Add the routes at `path`, and those of a chat, before other routes. `of_chat` has GET routes by name."""
        path = path.rstrip("/")
        of_chat["messages"] = self._messages
        app.router.routes[:0] = [
            Route(path, guarded(post), methods=["POST"]),
            Route(path, guarded(get), methods=["GET"]),
            *(Route(f"{path}/{{id}}/{name}", guarded(one), methods=["GET"]) for name, one in of_chat.items()),
            Route(f"{path}/{{id}}/stop", guarded(self._stop), methods=["POST"]),
        ]

    async def _messages(self, request: Request) -> Response:
        access, channel = await self._enter(request, request.path_params["id"], "history")
        return json_response(self._shown(await access.conversation(channel)))

    async def _stop(self, request: Request) -> Response:
        """Cancel the running turns, for all clients. Closing a connection cancels no turn."""
        access, channel = await self._enter(request, request.path_params["id"], "history", "command")
        await access.cancel_turns(channel)
        return Response(status_code=204)


def check_template(channel: str, chat: str = "chat") -> str:
    """Return `channel`. Raises LocalError unless it has a place for the id of a chat."""
    if "{id}" not in channel:
        raise LocalError(f'channel must hold {{id}}, the id of the {chat}, as in "chat:{{id}}", got {channel!r}')
    return channel


def json_response(value: object) -> Response:
    """Return a response that no cache keeps."""
    return JSONResponse(value, headers={"cache-control": "no-store"})


async def body_of(access: Access, request: Request, remedy: str) -> Json:
    """Return the body (`Access.body`), of at most the size of a message. A TooLarge has the `remedy` for the client."""
    try:
        return await access.body(request, limit_bytes=access.limits.message_bytes)
    except TooLarge as error:
        limit = error.details["limit"]
        text = f"the body has more than {limit} bytes (Limits.message_bytes); make its files smaller, or {remedy}"
        raise TooLarge(text, limit=limit) from None


def fields_in(given: Mapping[str, Any], form: type[F]) -> F:
    """Return the fields of `form` in a query or an event, null as absent. Raises InvalidRequest with a description."""
    try:
        return msgspec.convert({name: one for name, one in given.items() if one is not None}, form, strict=False)
    except msgspec.ValidationError as error:
        name = str(error).rstrip("`").rpartition("$.")[2]  # the message ends with it, as in "at `$.limit`"
        meta = next(get_args(one.type)[-1] for one in msgspec.structs.fields(form) if one.name == name)
        raise InvalidRequest(f"{name} must be {meta.description}, got {given.get(name)!r:.80}", param=name) from None


def stored_id(id: str) -> str:
    """Return the id of the stored message for a client's message `id`: the same, or a hash if it breaks the rules."""
    return id if is_id(id) and not id.startswith(OPTIONS_MARK) else hashed(id)


def hashed(*values: str) -> str:
    """Return an id that is the same for the same values."""
    return hashlib.sha256("\n".join(values).encode()).hexdigest()[:32]


def packed(*values: str) -> str:
    """Return an id that has `values`, which have no line breaks."""
    return base64.urlsafe_b64encode("\n".join(values).encode()).decode().rstrip("=")


def unpacked(id: str) -> list[str]:
    """Return the values of an id; an empty list for other texts."""
    with suppress(ValueError):
        values = base64.b64decode(id + "=" * (-len(id) % 4), b"-_", validate=True).decode().split("\n")
        return values if packed(*values) == id else []
    return []


_URL = re.compile("https?:|data:|/", re.IGNORECASE)  # "/": of a stored file of the app, which a reference names
_SCRIPT = re.compile("[\\0- ]*" + r"[\t\n\r]*".join("javascript:"), re.IGNORECASE)  # as browsers read an address
_DATA_TYPE = re.compile(r"data:([^;,/\s]{1,100}/[^;,\s]{1,100})[;,]", re.IGNORECASE)


def output_part(call: str, output: object, **about: object) -> Json:
    """Return the part of a question with the output of the client's tool, for a turn that has ended without it."""
    return {"type": "data", "name": OUTPUT, "data": {"call_id": call, "output": output, **about}}


def outputs_in(question: Message) -> dict[str, Json]:
    """Return the outputs of the client's tools in a question, by call, each with its fields (`output_part`)."""
    data = [one.get("data") for one in question.parts if one["type"] == "data" and one["name"] == OUTPUT]
    return {one["call_id"]: one for one in data if isinstance(one, dict) and isinstance(one.get("call_id"), str)}


def requested_in(question: Message) -> Json:
    """Return the small values of what the request of `question` asks for; `Access.options` returns all."""
    return requested if isinstance(requested := question.meta.get(OPTIONS_KEY), dict) else {}


async def read_messages(
    access: Access, channel: str, *, before: int | None = None, after: int | None = None, limit: int = sys.maxsize
) -> AsyncIterator[Message]:
    """Yield at most `limit` messages, newest first, before a serial if any; or those after a serial, oldest first."""
    while limit > 0:
        page = await access.history(channel, before=before, after=after, limit=min(limit, 200))
        for one in page.messages:
            yield one
        if not page.more:
            return
        limit, last = limit - len(page.messages), page.messages[-1].created
        before, after = (last, None) if after is None else (None, last)


def messages_in(messages: object, form: str, is_right: Callable[[Json], bool]) -> list[Json]:
    """Return `messages`. Raises InvalidRequest, with `form`, unless each has an id and a role, and `is_right`."""

    def is_message(one: object) -> bool:
        return isinstance(one, dict) and all(isinstance(one.get(name), str) and one[name] for name in ("id", "role"))

    if not isinstance(messages, list) or not messages or not all(is_message(one) and is_right(one) for one in messages):
        raise InvalidRequest(f"messages must be a list of at least one message, each with {form}, got {messages!r:.80}")
    return messages


async def store_unsent(
    access: Access, channel: str, earlier: list[Json], options: Json, content_of: Callable[[Json], Json]
) -> None:
    """Store the user's messages at the end of `earlier`, unless they are stored. They start no turn.

    A client goes on after a request that never arrived. `content_of` returns the parts of a message, and its meta.
    """
    for one in reversed(list(takewhile(lambda one: one["role"] == "user", reversed(earlier)))[:MOST_UNSENT]):
        with suppress(IdConflict, Deleted, InvalidRequest, TooLarge):  # stored with other content, deleted, or refused
            await access.remember(channel, id=stored_id(one["id"]), role="user", options=options, **content_of(one))


async def begin_unsent(access: Access, channel: str, turn: TurnStatus, options: Json) -> None:
    """Begin the turn of a message that has none: its request arrives after one that has stored it (`store_unsent`)."""
    if turn.state == "none":
        with suppress(Finished):  # no agent serves the channel
            await regenerate(access, channel, turn, options)


async def regenerate(access: Access, channel: str, turn: TurnStatus, options: Json) -> None:
    """Ask for an answer to the message of a turn that is over or has not begun, unless an answer streams.

    `options` replace those of the message for this answer.
    """
    assert turn.message is not None
    id, given = turn.message.id, [json.dumps(options, sort_keys=True)] if options else []
    # a repeat at the same moment is the same command, and that of another person finds a turn that waits
    command_id = hashed("regenerate", id, turn.round, access.identity.client_id or "", *given)
    with suppress(StillStreaming):
        await access.command(channel, "regenerate", target=id, id=command_id, options=options)


def stored_parts(content: object, *, is_strict: bool = False, has_data: bool = False) -> list[Json]:
    """Return the content of a client's message as it is stored, without empty texts. Raises InvalidRequest.

    It may be of any API, with data if `has_data`. If `is_strict`, unknown parts and scripts are refused, else left out.
    """
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(content, list):
        raise InvalidRequest(f"content must be a text or a list of parts, got {content!r:.80}")
    parts: list[Json] = []
    for given in content:
        part = _stored_part(given, has_data=has_data)
        if is_strict and (part is None or not _URL.match(part.get("url", "data:"))):  # a text has no URL
            raise InvalidRequest(f"content must be texts, sounds or files with http(s) or data URLs, got {given!r:.80}")
        if part is not None and part.get("text") != "" and not _SCRIPT.match(part.get("url", "")):
            cached = given.get(CACHED) if is_strict else None  # OpenAI: the prompt is cached up to this part
            parts += [part] if cached is None else [part, {"type": "data", "name": CACHED, "data": cached}]
    if not parts and not is_strict:
        raise InvalidRequest("the message has no text, file or data; send one at least")
    return parts


def _stored_part(given: Any, *, has_data: bool) -> Json | None:
    """Return a text, file or, if `has_data`, data in the form of an API as a part; None for other values."""
    match given:
        case {"type": "text" | "input_text" | "output_text", "text": str(text)} | {"refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "file" | "binary", "url": str(url)}:
            return _file(url, given.get("mediaType") or given.get("mimeType"), given)
        case {"image_url": {"url": str(url), **more}} | {"type": "input_image", "image_url": str(url), **more}:
            return _file(url, "image", more)
        case {"type": "input_file", **about} | {"type": "file", "file": {**about}}:
            file = about.get("file_data") or about.get("file_url")
            if not isinstance(file, str):
                raise InvalidRequest(f"a file needs file_data or file_url: the server has no files, got {given!r:.80}")
            if file is about.get("file_data") and file[:5].lower() != "data:":  # base64 alone
                file = f"data:{guess_type(str(about.get('filename')))[0] or 'application/octet-stream'};base64,{file}"
            return _file(file, None, about)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            return _file(f"data:audio/{'mpeg' if kind == 'mp3' else kind};base64,{data}", None, {})
        case {"type": str(kind), "source": {"type": "url", "value": str(url), **more}}:
            return _file(url, more.get("mimeType") or (kind if kind in ("image", "audio", "video") else None), given)
        case {"type": "binary", "mimeType": str(kind), "data": str(data)} | {
            "source": {"type": "data", "value": str(data), "mimeType": str(kind)}
        }:
            return _file(f"data:{kind};base64,{data}", None, given)
        case {"type": str(kind), **more} if has_data and kind.startswith("data-"):
            return {"type": "data", "name": kind.removeprefix("data-"), "data": more.get("data")}
    return None


def _file(url: str, media_type: object, about: dict[Any, Any]) -> Json:
    """Return the part of a file with the texts `about` it. A data URL names a type that `media_type` leaves open."""
    kind, _, subtype = media_type.partition("/") if isinstance(media_type, str) else ("", "", "")
    found = _DATA_TYPE.match(url) if subtype in ("", "*") else None  # the AI SDK may name the kind alone
    about = about["metadata"] if isinstance(about.get("metadata"), dict) else about  # AG-UI
    named = {"mediaType": found[1].lower() if found else f"{kind}/{subtype or '*'}" if kind else None}
    named |= {name: about.get(name) for name in ("filename", "detail")}
    return {"type": "file", "url": url, **{name: value for name, value in named.items() if isinstance(value, str)}}
